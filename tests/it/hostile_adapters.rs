//! Adapters that mean harm or were cut off, each sent as a form and named by `file://`: the verdict is the expected one, and
//! after it the host answers as before and nothing of what it refused is left. Not here: adapters that are used.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::{Answer, Client, Options, PeftAdapter, Server, adapter_folder, safetensors_file, shared, skip};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// What the set leaves open, decided strictly: refused, but for two claims about the base that nothing else contradicts,
/// which the admission report warns of, and the pattern, which is evaluated.
const LEFT_OPEN: [(&str, Verdict); 16] = [
    // The set is older than what is executed.
    ("c-variant-alora", Verdict::Admitted),
    ("t-finite-overflow", Verdict::Refused),
    ("t-missing-layer", Verdict::Refused),
    ("t-extra-tensor", Verdict::Refused),
    ("t-untargeted-module", Verdict::Refused),
    ("c-alpha-norm-bomb", Verdict::Refused),
    ("c-alpha-negative", Verdict::Refused),
    ("c-wrong-base-name", Verdict::AdmittedWith("meta-llama")),
    ("c-base-traversal", Verdict::AdmittedWith("etc/passwd")),
    ("c-target-modules-string", Verdict::Admitted),
    ("c-fan-in-fan-out", Verdict::Refused),
    ("c-dora-zero-norm", Verdict::Refused),
    ("c-config-2mb", Verdict::Refused),
    ("c-variant-qalora", Verdict::Refused),
    ("c-init-pissa", Verdict::Refused),
    ("c-regex-target-redos", Verdict::Refused),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Admitted,
    /// With a warning that has this.
    AdmittedWith(&'static str),
    /// With a reason, by whatever limit or rule.
    Refused,
    /// With this code.
    RefusedAs(&'static str),
    /// Archives and pickles: 415.
    MediaType,
}

/// A server, a neighbour whose answers must not change, and what lies on the disk.
struct Watch {
    server: Server,
    client: Client,
    root: PathBuf,
    neighbour: Value,
    files: BTreeSet<PathBuf>,
}

impl Watch {
    fn start(test: &str, root: &Path) -> Option<Self> {
        let arguments = vec!["--adapters-root".into(), root.to_str().expect("a UTF-8 path").into()];
        let server = Server::start(test, Options { arguments, ..Options::default() })?;
        let client = server.client();
        let folder = adapter_folder("all-caps").expect("a committed adapter");
        let _ = client.upload_adapter("neighbour", &folder).expect(201);
        let (neighbour, files) = (ask(&client), files_below(server.data()));
        Some(Self { server, client, root: root.to_owned(), neighbour, files })
    }

    /// One answer to one case, and what must hold after it.
    fn check(&mut self, case: &str, answer: &Answer, verdict: Verdict) {
        let shown = format!("{case}: expected {verdict:?}, got {} {}", answer.status, answer.text);
        match verdict {
            Verdict::Admitted => assert_eq!(answer.status, 201, "{shown}"),
            Verdict::AdmittedWith(warning) => {
                assert_eq!(answer.status, 201, "{shown}");
                let warnings = answer.json()["report"]["warnings"].to_string();
                assert!(warnings.contains(warning), "{shown}");
            }
            Verdict::MediaType => {
                assert_eq!((answer.status, answer.code().as_str()), (415, "unsupported_media_type"), "{shown}")
            }
            Verdict::RefusedAs(code) => assert_eq!(answer.code(), code, "{shown}"),
            Verdict::Refused => {}
        }
        if answer.status == 201 {
            self.client.delete("/v1/adapters/hostile").expect(204);
            self.files = files_below(self.server.data());
        } else {
            assert!(matches!(answer.status, 400 | 413 | 415 | 422), "{shown}");
            let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
            assert!(message.len() > 20, "the reason is told: {shown}");
            assert!(!message.contains("root:x"), "no content leaks: {shown}");
            assert_eq!(files_below(self.server.data()), self.files, "something is left of {case}");
        }
        self.client.get("/v1/adapters/hostile").expect_not_found();
        let listed = self.client.get("/v1/adapters").expect(200).json();
        assert_eq!(listed["data"].as_array().map(Vec::len), Some(1), "{case}: {listed}");
        assert_eq!(ask(&self.client), self.neighbour, "{case} changed a neighbour's answer");
        assert_eq!(pwned(), Vec::<PathBuf>::new(), "{case} wrote outside");
    }

    fn put_source(&self, path: &Path) -> Answer {
        self.client.put("/v1/adapters/hostile", &json!({"source": format!("file://{}", path.display())}))
    }

    /// A folder's files, as a form and by `file://`.
    fn check_folder(&mut self, name: &str, files: &[(String, Vec<u8>)], verdict: Verdict) {
        let answer = self.client.upload_files("hostile", files.to_vec());
        self.check(&format!("{name} as a form"), &answer, verdict);
        let answer = self.put_source(&self.root.join(name));
        self.check(&format!("{name} by file://"), &answer, verdict);
    }

    /// An archive: as a form's only part, in the place of the weights, beside a good adapter in a part that is ignored, as the
    /// whole body, and by `file://`.
    fn check_archive(&mut self, name: &str, bytes: &[u8]) {
        let good = PeftAdapter::tiny(1);
        let config = good.config_file();
        let readme = vec![
            (CONFIG.to_owned(), config.clone()),
            (WEIGHTS.to_owned(), good.weights_file()),
            ("README.md".to_owned(), bytes.to_vec()),
        ];
        let weights = vec![(CONFIG.to_owned(), config), (WEIGHTS.to_owned(), bytes.to_vec())];
        let nameless = vec![("file".to_owned(), bytes.to_vec())];
        let alone = vec![(name.to_owned(), bytes.to_vec())];
        for (how, files) in
            [("a form", alone), ("a nameless part", nameless), ("weights", weights), ("a README", readme)]
        {
            let answer = self.client.upload_files("hostile", files);
            self.check(&format!("{name} as {how}"), &answer, Verdict::MediaType);
        }
        for kind in ["application/zip", "application/octet-stream", "application/json"] {
            let answer = self.client.put_bytes("/v1/adapters/hostile", kind, bytes.to_vec());
            self.check(&format!("{name} as {kind}"), &answer, Verdict::MediaType);
        }
        let answer = self.put_source(&self.root.join(name));
        self.check(&format!("{name} by file://"), &answer, Verdict::MediaType);
    }
}

/// What the neighbour's adapter answers, to the last digit of its log-probabilities.
fn ask(client: &Client) -> Value {
    let body = json!({"model": "neighbour", "prompt": "The sea is", "max_tokens": 2, "temperature": 0, "logprobs": 2});
    let choice = &client.post("/v1/completions", &body).expect(200).json()["choices"][0];
    json!([choice["text"], choice["logprobs"], choice["finish_reason"]])
}

fn files_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("the data folder can be read").map(|entry| entry.expect("an entry")) {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.extend(files_below(&path));
        }
        files.insert(path);
    }
    files
}

/// What the archives and pickles of the set would write.
fn pwned() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(Path::new("/tmp")).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("PWNED")).collect()
}

#[test]
fn every_case_of_the_shared_set_gets_its_verdict() {
    let test = "every_case_of_the_shared_set_gets_its_verdict";
    let Some(root) = shared().map(|shared| shared.join("lora/hostile")).filter(|folder| folder.is_dir()) else {
        return skip(test, "../shared/lora/hostile is not there");
    };
    let cases: Value = serde_json::from_slice(&std::fs::read(root.join("cases.json")).expect("cases")).expect("JSON");
    let Some(mut watch) = Watch::start(test, &root) else { return };
    let cases = cases["cases"].as_array().expect("a list");
    let (mut admitted, mut refused) = (0, 0);
    for case in cases {
        let (name, expect) = (case["name"].as_str().expect("a name"), case["expect"].as_str().expect("a verdict"));
        let path = root.join(name);
        if path.is_file() {
            watch.check_archive(name, &std::fs::read(&path).expect("an archive"));
            refused += 1;
            continue;
        }
        let open = LEFT_OPEN.iter().find(|(open, _)| *open == name).map(|(_, verdict)| *verdict);
        let verdict = match expect {
            _ if name.starts_with("p-") => Verdict::MediaType,
            "accept" => Verdict::Admitted,
            _ if open.is_some() => open.unwrap_or(Verdict::Refused),
            "reject" => Verdict::Refused,
            _ => panic!("{name} ({expect}) is not decided here"),
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry")) {
            files.push((entry.file_name().into_string().expect("UTF-8"), std::fs::read(entry.path()).expect("a file")));
        }
        watch.check_folder(name, &files, verdict);
        if matches!(verdict, Verdict::Admitted | Verdict::AdmittedWith(_)) { admitted += 1 } else { refused += 1 }
    }
    println!("{} cases: {admitted} admitted, {refused} refused", cases.len());
    assert_eq!((admitted + refused, admitted), (cases.len(), 8));
}

/// Its name, its files, what they should get.
type Case = (String, Vec<(String, Vec<u8>)>, Verdict);

/// One case made here: the two files of a sound adapter, changed.
fn made(name: &str, verdict: Verdict, change: impl FnOnce(&mut PeftAdapter)) -> Case {
    let mut adapter = PeftAdapter::tiny(1);
    change(&mut adapter);
    weighed(name, verdict, &adapter, adapter.weights_file())
}

fn weighed(name: &str, verdict: Verdict, adapter: &PeftAdapter, weights: Vec<u8>) -> Case {
    (name.to_owned(), vec![(CONFIG.to_owned(), adapter.config_file()), (WEIGHTS.to_owned(), weights)], verdict)
}

fn container_cases() -> Vec<Case> {
    use Verdict::{MediaType, RefusedAs};
    let sound = PeftAdapter::tiny(1);
    let bytes = sound.weights_file();
    let malformed = RefusedAs("adapter_malformed");
    let with = |name: &str, verdict, weights: Vec<u8>| weighed(name, verdict, &sound, weights);
    let at = |entry: &mut Value, from: usize, to: usize| entry["data_offsets"] = json!([from, to]);
    let first = sound.tensors[0].name.clone();
    let changed = |change: &dyn Fn(&mut Value)| {
        sound.weights_file_with(|header| change(header.get_mut(&first).expect("the first tensor")))
    };
    let header = String::from_utf8_lossy(&bytes[8..]).split("}}").next().unwrap_or_default().to_owned() + "}}";
    let data = &bytes[8 + header.len()..];
    let twice =
        header.replacen('{', &format!("{{\"{first}\":{{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}},"), 1);
    vec![
        with("empty", malformed, Vec::new()),
        with("seven-bytes", malformed, bytes[..7].to_vec()),
        with("cut", malformed, bytes[..bytes.len() - 1].to_vec()),
        with("trailing", malformed, [&bytes[..], &[0; 64]].concat()),
        with("header-bomb", malformed, [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat()),
        with(
            "header-large",
            RefusedAs("adapter_too_large"),
            safetensors_file(&[b"{}".to_vec(), vec![b' '; 1 << 20]].concat(), &[]),
        ),
        with("header-not-json", malformed, safetensors_file(b"{\xff\xfe", &[])),
        with("header-space", malformed, safetensors_file(format!(" {header}").as_bytes(), data)),
        with("header-nested", malformed, safetensors_file("{\"a\":".repeat(5000).as_bytes(), &[])),
        with("key-twice", malformed, safetensors_file(twice.as_bytes(), data)),
        with("offset-past-end", malformed, changed(&|entry| at(entry, 0, 1 << 30))),
        with("offset-reversed", malformed, changed(&|entry| at(entry, 8, 0))),
        with("offset-overlap", malformed, changed(&|entry| at(entry, 0, 4))),
        with("shape-overflow", malformed, changed(&|entry| entry["shape"] = json!([u64::MAX, u64::MAX]))),
        with("dtype-unknown", malformed, changed(&|entry| entry["dtype"] = json!("F7"))),
        with("lfs-pointer", malformed, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n".to_vec()),
        with("zip-as-weights", MediaType, b"PK\x03\x04\x14\0\0\0\0\0torch's zip".to_vec()),
        with("pickle-as-weights", MediaType, b"\x80\x02cposix\nsystem\nX\x02\0\0\0idR.".to_vec()),
    ]
}

fn tensor_cases() -> Vec<Case> {
    use Verdict::{Admitted, RefusedAs};
    let value = |tensor: usize, value: f32| {
        move |adapter: &mut PeftAdapter| adapter.tensors[tensor].data[..4].copy_from_slice(&value.to_le_bytes())
    };
    let malformed = RefusedAs("adapter_malformed");
    let mismatch = RefusedAs("adapter_shape_mismatch");
    let unsupported = RefusedAs("adapter_unsupported");
    let renamed = |to: &'static str| move |adapter: &mut PeftAdapter| adapter.tensors[0].name = to.into();
    vec![
        made("sound", Admitted, |_| ()),
        made("subnormal", Admitted, |adapter| {
            adapter
                .tensors
                .iter_mut()
                .for_each(|tensor| tensor.data.as_chunks_mut::<4>().0.fill(1e-40f32.to_le_bytes()));
        }),
        made("nan", RefusedAs("adapter_not_finite"), value(1, f32::NAN)),
        made("infinity", RefusedAs("adapter_not_finite"), value(0, f32::INFINITY)),
        made("norm-bomb", RefusedAs("adapter_too_large"), value(0, 1e30)),
        made("no-tensors", malformed, |adapter| adapter.tensors.clear()),
        made("no-b", malformed, |adapter| drop(adapter.tensors.remove(1))),
        made("no-layer-1", malformed, |adapter| adapter.tensors.truncate(4)),
        made("untargeted", malformed, |adapter| adapter.push_pair("layers.0.self_attn.o_proj", 2, 576, 576, 3)),
        made("beyond-the-layers", mismatch, |adapter| adapter.push_pair("layers.30.self_attn.q_proj", 2, 576, 576, 3)),
        made("lm-head", unsupported, |adapter| adapter.push("lm_head.weight", &[4, 576], vec![0.0; 4 * 576])),
        made("name-tricks", unsupported, renamed("../../etc/passwd\0\n")),
        made("name-long", unsupported, |adapter| adapter.tensors[0].name = "a".repeat(4096)),
        made("flat", mismatch, |adapter| adapter.tensors[0].shape = vec![2 * 576]),
        made("other-width", mismatch, |adapter| {
            adapter.tensors[0].shape = vec![2, 512];
            adapter.tensors[0].data.truncate(2 * 512 * 4);
        }),
        made("integers", unsupported, |adapter| adapter.tensors[0].dtype = "I32".into()),
        made("dora-sound", Admitted, |adapter| adapter.add_magnitudes(1.5)),
        made("dora-zero", unsupported, |adapter| adapter.add_magnitudes(0.0)),
        made("dora-nan", RefusedAs("adapter_not_finite"), |adapter| adapter.add_magnitudes(f32::NAN)),
        made("dora-large", RefusedAs("adapter_too_large"), |adapter| adapter.add_magnitudes(1e9)),
        made("dora-half", malformed, |adapter| {
            adapter.add_magnitudes(1.5);
            adapter.tensors.pop();
        }),
        made("dora-without-vectors", malformed, |adapter| adapter.set("use_dora", json!(true))),
        made("vectors-without-dora", malformed, |adapter| {
            adapter.add_magnitudes(1.5);
            adapter.set("use_dora", json!(false));
        }),
    ]
}

fn config_cases() -> Vec<Case> {
    use Verdict::{Admitted, AdmittedWith, Refused, RefusedAs};
    let set = |name: &str, key: &str, value: Value, verdict| made(name, verdict, |adapter| adapter.set(key, value));
    let malformed = RefusedAs("adapter_malformed");
    let unsupported = RefusedAs("adapter_unsupported");
    let too_large = RefusedAs("adapter_too_large");
    let pattern = |name: &str, pattern: &str, verdict| {
        made(name, verdict, |adapter| {
            adapter.set("target_modules", json!(pattern));
            adapter.set("layers_to_transform", Value::Null);
        })
    };
    let mut cases = vec![
        set("alpha-zero", "lora_alpha", json!(0), AdmittedWith("changes nothing")),
        set("alpha-negative", "lora_alpha", json!(-4), unsupported),
        set("alpha-bomb", "lora_alpha", json!(1e12), too_large),
        set("alpha-text", "lora_alpha", json!("4"), malformed),
        set("rank-zero", "r", json!(0), malformed),
        set("rank-huge", "r", json!(1u64 << 31), RefusedAs("adapter_shape_mismatch")),
        made("rank-over", too_large, |adapter| {
            *adapter = PeftAdapter::tiny(1);
            adapter.set("r", json!(257));
            for tensor in &mut adapter.tensors {
                let narrow = tensor.shape.iter_mut().find(|size| **size == 2).expect("the rank");
                *narrow = 257;
                tensor.data = vec![0; 4 * tensor.shape.iter().product::<usize>()];
            }
        }),
        set("base-digest-other", "tenon.base_digest", json!("0".repeat(64)), RefusedAs("adapter_base_mismatch")),
        set("base-digest-text", "tenon.base_digest", json!("SmolLM2"), malformed),
        set("rank-missing", "r", Value::Null, malformed),
        set("rank-other", "r", json!(8), RefusedAs("adapter_shape_mismatch")),
        set("rank-pattern-other", "rank_pattern", json!({"q_proj": 3}), RefusedAs("adapter_shape_mismatch")),
        set("rank-pattern-same", "rank_pattern", json!({"q_proj": 2}), Admitted),
        set("ia3", "peft_type", json!("IA3"), unsupported),
        set(
            "auto-mapping",
            "auto_mapping",
            json!({"base_model_class": "Popen", "parent_library": "subprocess"}),
            unsupported,
        ),
        set("fan-in-fan-out", "fan_in_fan_out", json!(true), unsupported),
        set("modules-to-save", "modules_to_save", json!(["lm_head"]), unsupported),
        set("bias", "bias", json!("all"), unsupported),
        set("lora-bias", "lora_bias", json!(true), unsupported),
        set("layer-replication", "layer_replication", json!([[0, 30], [0, 30]]), unsupported),
        set("target-parameters", "target_parameters", json!(["mlp.experts.gate_up_proj"]), unsupported),
        set("trainable-tokens", "trainable_token_indices", json!([1]), unsupported),
        set("qalora", "use_qalora", json!(true), unsupported),
        set("alora", "alora_invocation_tokens", json!([1, 520, 9531, 198]), Admitted),
        set("alora-nothing", "alora_invocation_tokens", json!([]), Admitted),
        set("alora-text", "alora_invocation_tokens", json!("<|assistant|>"), malformed),
        set(
            "alora-beyond-the-vocabulary",
            "alora_invocation_tokens",
            json!([1, 49152]),
            RefusedAs("adapter_shape_mismatch"),
        ),
        set("alora-beyond-numbers", "alora_invocation_tokens", json!([1e300]), malformed),
        set("alora-long", "alora_invocation_tokens", json!(vec![1; 257]), too_large),
        made("alora-other-task", unsupported, |adapter| {
            adapter.set("alora_invocation_tokens", json!([1]));
            adapter.set("task_type", json!("SEQ_2_SEQ_LM"));
        }),
        made("alora-dora", unsupported, |adapter| {
            adapter.add_magnitudes(1.5);
            adapter.set("alora_invocation_tokens", json!([1]));
        }),
        set("bdlora", "use_bdlora", json!({"nblocks": 2}), unsupported),
        set("pissa", "init_lora_weights", json!("pissa"), unsupported),
        set("unknown-module", "target_modules", json!(["qkv_fused", "v_proj"]), unsupported),
        set("unknown-keys", "future_flag", json!(true), AdmittedWith("future_flag")),
        set("other-base", "base_model_name_or_path", json!("meta-llama/Llama-3.2-1B"), AdmittedWith("Llama-3.2-1B")),
        set("padded", "padding", json!("a".repeat(400_000)), Refused),
        pattern("regex", r".*layers\.[01]\.self_attn\.(q_proj|v_proj)", Admitted),
        pattern("regex-catastrophic", "(([a-z0-9_.]+)+)+!", unsupported),
        pattern("regex-look-around", r"(?=.*q_proj).*", unsupported),
        pattern("regex-large", "(?:(?:a{1000}){1000}){1000}", unsupported),
        pattern("regex-everything", ".*", unsupported),
    ];
    let sound = PeftAdapter::tiny(1);
    let nan = String::from_utf8(sound.config_file()).expect("UTF-8").replace("\"lora_alpha\":4", "\"lora_alpha\":NaN");
    for (name, config, verdict) in [
        ("alpha-nan", nan.into_bytes(), malformed),
        ("not-json", b"{'r': 2,}".to_vec(), malformed),
        ("a-list", b"[]".to_vec(), malformed),
    ] {
        let files = vec![(CONFIG.to_owned(), config), (WEIGHTS.to_owned(), sound.weights_file())];
        cases.push((name.to_owned(), files, verdict));
    }
    let pickle =
        vec![(CONFIG.to_owned(), sound.config_file()), ("adapter_model.bin".to_owned(), b"\x80\x02.".to_vec())];
    cases.push(("pickle".to_owned(), pickle, Verdict::MediaType));
    cases.push(("no-weights".to_owned(), vec![(CONFIG.to_owned(), sound.config_file())], Refused));
    cases
}

/// Needs nothing beside the checkout but the base: the important cases, made here.
#[test]
fn every_case_that_is_made_here_gets_its_verdict() {
    let root = tempfile::tempdir().expect("a folder");
    let Some(mut watch) = Watch::start("every_case_that_is_made_here_gets_its_verdict", root.path()) else { return };
    let cases: Vec<Case> = [container_cases(), tensor_cases(), config_cases()].concat();
    for (name, files, verdict) in &cases {
        let folder = root.path().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        for (file, bytes) in files {
            std::fs::write(folder.join(file), bytes).expect("a file");
        }
        watch.check_folder(name, files, *verdict);
    }
    let tar = || {
        let mut header = vec![0u8; 512];
        header[..17].copy_from_slice(b"../../tmp/PWNED_T");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        [header, vec![0; 1024]].concat()
    };
    for (name, bytes) in [
        ("archive.zip", b"PK\x03\x04\x14\0\0\0\0\0a zip".to_vec()),
        ("archive.tar.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03a gzip".to_vec()),
        ("archive.tar.zst", b"\x28\xb5\x2f\xfda zstd".to_vec()),
        ("archive.tar", tar()),
    ] {
        std::fs::write(root.path().join(name), &bytes).expect("a file");
        watch.check_archive(name, &bytes);
    }
    println!("{} cases and 4 archives", cases.len());
}
