//! Admission of adapters: made-up small ones, and the hostile set where `../shared` (or `TENON_SHARED`) has it.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::{
    AdapterBase, AdapterKind, AdapterLimits, AdapterRejection, CanonicalAdapter, Invocation, LoraAdapter, ModelConfig,
    ModelError, ModuleReport, NormLimits, Precision, canonical_adapter,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use types::{Digest, Module, ModuleSet};

/// The sizes of SmolLM2-135M.
fn smollm() -> ModelConfig {
    ModelConfig {
        layers: 30,
        hidden: 576,
        intermediate: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocabulary: 49152,
        context_tokens_max: 8192,
        rope_theta: 100_000.0,
        rope: model::RopeLayout::Neighbours,
        rope_divisors: Vec::new(),
        rms_epsilon: 1e-5,
        query_key_norm: false,
        tied_output: true,
    }
}

/// Two layers, 32 wide.
fn small() -> ModelConfig {
    ModelConfig { layers: 2, hidden: 32, intermediate: 64, heads: 1, kv_heads: 1, head_dim: 32, ..smollm() }
}

fn admit(config: &[u8], weights: &[u8], base: &ModelConfig) -> Result<CanonicalAdapter, AdapterRejection> {
    let limits = AdapterLimits::default();
    let canonical = canonical_adapter(config, weights, base, &limits)?;
    // Whatever is admitted can be packed.
    let packed = LoraAdapter::from_canonical(&canonical.bytes, base, &limits, Precision::F32).unwrap();
    assert_eq!((packed.rank(), packed.modules()), (canonical.rank, canonical.modules));
    let invocation = packed.invocation().map(Invocation::tokens).unwrap_or_default();
    assert_eq!(invocation, canonical.report.invocation_tokens);
    Ok(canonical)
}

const CONFIG: &[u8] =
    br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"], "base_model_name_or_path": "b"}"#;

/// name -> (dtype, shape, bytes); rank 2 on the two `down_proj`.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors() -> Tensors {
    let mut tensors = Tensors::new();
    for layer in 0..2u8 {
        for (factor, shape) in [("A", [2, 64]), ("B", [32, 2])] {
            let name = format!("base_model.model.model.layers.{layer}.mlp.down_proj.lora_{factor}.weight");
            let values = (0..shape[0] * shape[1]).map(|i| (i as f32 + f32::from(layer)) * 0.001);
            tensors.insert(name, (Dtype::F32, shape.to_vec(), values.flat_map(f32::to_le_bytes).collect()));
        }
    }
    tensors
}

fn file(tensors: &Tensors, notes: &str) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize(views, Some([("note".to_owned(), notes.to_owned())].into())).unwrap()
}

fn code_after(change: impl FnOnce(&mut Tensors)) -> &'static str {
    let mut tensors = tensors();
    change(&mut tensors);
    admit(CONFIG, &file(&tensors, ""), &small()).err().map_or("admitted", |rejection| rejection.code())
}

const A0: &str = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight";
const B1: &str = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight";

#[test]
fn the_canonical_form_is_the_same_for_the_same_adapter() {
    let first = admit(CONFIG, &file(&tensors(), "one"), &small()).unwrap();
    let config =
        br#"{"target_modules": ["down_proj"], "r": 2, "lora_alpha": 4.0, "peft_type": "LORA", "lora_dropout": 0.5}"#;
    let second = admit(config, &file(&tensors(), "two"), &small()).unwrap();
    assert_eq!(first.digest, second.digest);
    assert_eq!((first.rank, first.report.base_model_name.as_deref()), (2, Some("b")));
    let [found] = first.report.modules.as_slice() else { panic!("one group: {:?}", first.report.modules) };
    let norms = (found.frobenius_norms.clone(), found.spectral_norms.clone());
    let expected = ModuleReport {
        module: "down_proj".into(),
        layers: vec![0, 1],
        rank: 2,
        scale: 2.0,
        frobenius_norms: norms.0,
        spectral_norms: norms.1,
    };
    assert_eq!((first.report.kind, found), (AdapterKind::Lora, &expected));
    assert_eq!((first.report.dtypes.as_slice(), first.report.parameters), (&["f32".to_owned()][..], 2 * 192));
    assert_eq!(first.modules, ModuleSet::EMPTY.with(Module::Down));
    // Moves only if the canonical form does, and then every stored digest does too.
    assert_eq!(first.digest.to_string(), "3e176aafaad3666b5ac08a45510df979e35e2931c6643f094d618248febd7c0c");

    let scaled = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["down_proj"]}"#;
    assert_ne!(first.digest, admit(scaled, &file(&tensors(), ""), &small()).unwrap().digest);
    let mut changed = tensors();
    changed.get_mut(A0).unwrap().2[0] ^= 1;
    assert_ne!(first.digest, admit(CONFIG, &file(&changed, ""), &small()).unwrap().digest);
}

/// [`CONFIG`], invoked by these tokens.
fn activated(tokens: &str) -> Vec<u8> {
    let config = std::str::from_utf8(CONFIG).unwrap();
    let invoked = format!(r#"{{"task_type": "CAUSAL_LM", "alora_invocation_tokens": {tokens}, "#);
    config.replacen('{', &invoked, 1).into_bytes()
}

#[test]
fn what_invokes_an_adapter_is_part_of_its_name() {
    let admit = |config: &[u8]| admit(config, &file(&tensors(), ""), &small());
    let (plain, one) = (admit(CONFIG).unwrap(), admit(&activated("[5, 6]")).unwrap());
    assert_eq!((one.report.kind, one.report.invocation_tokens.as_slice()), (AdapterKind::Alora, &[5, 6][..]));
    assert_eq!(one.digest, admit(&activated("[5,6]")).unwrap().digest);
    let others = [plain, admit(&activated("[6, 5]")).unwrap(), admit(&activated("[5, 6, 5]")).unwrap()];
    assert!(others.iter().all(|other| other.digest != one.digest));
    for none in ["null", "[]"] {
        assert_eq!(admit(&activated(none)).unwrap().digest, others[0].digest, "{none} is as absent");
    }
    // Moves only if the canonical form does, and then every stored digest does too.
    assert_eq!(one.digest.to_string(), "0ace41812e64be98e297e96f02ab84e7069c2a2c796dcb9a281fec1dfe970568");
    assert_eq!(admit(&activated("[49152]")).unwrap_err().code(), "adapter_shape_mismatch");
}

#[test]
fn canonical_bytes_of_an_activated_adapter_are_checked_again() {
    let bytes = admit(&activated("[5, 6]"), &file(&tensors(), ""), &small()).unwrap().bytes;
    let code = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len(), "the header's length stays");
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect(from);
        let mut changed = bytes.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        let limits = AdapterLimits::default();
        LoraAdapter::from_canonical(&changed, &small(), &limits, Precision::F32).err().map(|error| error.code())
    };
    assert_eq!(code("[5,6]", "[5,7]"), None);
    for (from, to) in [("[5,6]", "[   ]"), ("[5,6]", "\\\"5\\\""), ("invocation_tokens", "invocation_tokenz")] {
        assert_eq!(code(from, to), Some("adapter_malformed"), "{to}");
    }
    assert_eq!(code("[5,6]", "[1e9]"), Some("adapter_malformed"));
}

#[test]
fn canonical_bytes_are_for_one_base_and_checked_again() {
    let limits = AdapterLimits::default();
    let bytes = admit(CONFIG, &file(&tensors(), ""), &small()).unwrap().bytes;
    let packed = LoraAdapter::from_canonical(&bytes, &small(), &limits, Precision::F32).unwrap();
    assert_eq!(packed.memory_bytes(), 2 * (2 * 64 + 32 * 2) * 4);
    let code = |bytes: &[u8], base: &ModelConfig| {
        LoraAdapter::from_canonical(bytes, base, &limits, Precision::F32).err().map(|error| error.code())
    };
    assert_eq!(code(&bytes, &smollm()), Some("adapter_shape_mismatch"));
    assert_eq!(code(&file(&tensors(), ""), &small()), Some("adapter_malformed"));
    assert_eq!(code(&bytes[..bytes.len() - 1], &small()), Some("adapter_malformed"));
    let mut poisoned = bytes.clone();
    let end = poisoned.len();
    poisoned[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(code(&poisoned, &small()), Some("adapter_not_finite"));
}

#[test]
fn each_fault_of_the_tensors_has_its_code() {
    assert_eq!(code_after(|_| ()), "admitted");
    let rename = |tensors: &mut Tensors, to: &str| {
        let tensor = tensors.remove(A0).unwrap();
        tensors.insert(to.to_owned(), tensor);
    };
    assert_eq!(code_after(|tensors| drop(tensors.remove(B1))), "adapter_malformed");
    assert_eq!(code_after(Tensors::clear), "adapter_malformed");
    assert_eq!(code_after(|tensors| tensors.retain(|name, _| name.contains("layers.0"))), "adapter_malformed");
    for name in [
        "base_model.model.model.layers.00.mlp.down_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.down_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.down_proj.lora_A.bias",
        "base_model.model.model.layers.0.mlp.down_proj.lora_embedding_A",
        "base_model.model.lm_head.lora_A.weight",
        "../../etc/passwd\0\n",
    ] {
        assert_eq!(code_after(|tensors| rename(tensors, name)), "adapter_unsupported", "{name}");
    }
    let move_layer_1 = |tensors: &mut Tensors, to: &str| {
        let moved = std::mem::take(tensors).into_iter();
        tensors.extend(moved.map(|(name, tensor)| (name.replace("layers.1.mlp.down_proj", to), tensor)));
    };
    assert_eq!(code_after(|tensors| move_layer_1(tensors, "layers.2.mlp.down_proj")), "adapter_shape_mismatch");
    assert_eq!(code_after(|tensors| move_layer_1(tensors, "layers.1.mlp.up_proj")), "adapter_malformed");
    assert_eq!(code_after(|tensors| move_layer_1(tensors, "layers.1.self_attn.o_proj")), "adapter_malformed");
    assert_eq!(code_after(|tensors| tensors.get_mut(A0).unwrap().1 = vec![64, 2]), "adapter_shape_mismatch");
    assert_eq!(code_after(|tensors| tensors.get_mut(A0).unwrap().1 = vec![128]), "adapter_shape_mismatch");
    assert_eq!(code_after(|tensors| tensors.get_mut(A0).unwrap().0 = Dtype::I32), "adapter_unsupported");
    for (value, code) in [
        (f32::NAN, "adapter_not_finite"),
        (f32::INFINITY, "adapter_not_finite"),
        (1e30, "adapter_too_large"),
        (1e-40, "admitted"),
    ] {
        let set = |tensors: &mut Tensors| tensors.get_mut(B1).unwrap().2[..4].copy_from_slice(&value.to_le_bytes());
        assert_eq!(code_after(set), code, "{value}");
    }
}

#[test]
fn each_limit_has_its_unit_in_the_message() {
    let weights = file(&tensors(), "");
    let refuse = |limits: AdapterLimits| {
        let rejection = canonical_adapter(CONFIG, &weights, &small(), &limits).unwrap_err();
        assert_eq!(rejection.code(), "adapter_too_large");
        rejection.to_string()
    };
    let limits = AdapterLimits::default;
    assert!(refuse(AdapterLimits { file_bytes_max: 1000, ..limits() }).contains("at most 1000"));
    assert!(refuse(AdapterLimits { header_bytes_max: 64, ..limits() }).contains("header in bytes"));
    assert!(refuse(AdapterLimits { config_bytes_max: 64, ..limits() }).contains("adapter_config.json in bytes"));
    assert!(refuse(AdapterLimits { rank_max: 1, ..limits() }).contains("rank is 2"));
    // Two modules of rank 2 with 64 inputs and 32 outputs.
    let bytes = 2 * 2 * (64 + 32) * 4;
    assert!(refuse(AdapterLimits { memory_bytes_max: bytes - 1, ..limits() }).contains("at most 1535"));
    assert!(
        canonical_adapter(CONFIG, &weights, &small(), &AdapterLimits { memory_bytes_max: bytes, ..limits() }).is_ok()
    );
    assert!(refuse(AdapterLimits { tensors_max: 3, ..limits() }).contains("is 4, at most 3"));
}

#[test]
fn norms_are_reported_and_the_operator_may_limit_them() {
    let weights = file(&tensors(), "");
    let admit =
        |norms| canonical_adapter(CONFIG, &weights, &small(), &AdapterLimits { norms, ..AdapterLimits::default() });
    let report = admit(NormLimits::default()).unwrap().report;
    let module = &report.modules[0];
    // s·B·A of each layer, as a dense product.
    let values = |name: &str| -> Vec<f64> {
        let bytes = &tensors()[name].2;
        bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
    };
    for (layer, (frobenius, spectral)) in module.frobenius_norms.iter().zip(&module.spectral_norms).enumerate() {
        let [a, b] = ["A", "B"]
            .map(|factor| values(&format!("base_model.model.model.layers.{layer}.mlp.down_proj.lora_{factor}.weight")));
        let cell = |row: usize, column: usize| 2.0 * (b[2 * row] * a[column] + b[2 * row + 1] * a[64 + column]);
        let squares = (0..32).flat_map(|row| (0..64).map(move |column| cell(row, column).powi(2))).sum::<f64>();
        assert!((frobenius / squares.sqrt() - 1.0).abs() < 1e-3, "{frobenius}, {}", squares.sqrt());
        assert!(spectral <= frobenius && *spectral > 0.7 * frobenius, "rank 2: {spectral} of {frobenius}");
    }
    assert_eq!((module.frobenius_norms.len(), module.spectral_norms.len()), (2, 2));
    let largest = module.frobenius_norms[1];
    for (norms, named) in [
        (NormLimits { frobenius_max: Some(0.99 * largest), ..NormLimits::default() }, "adapter_frobenius_norm_max"),
        (NormLimits { spectral_max: Some(0.5 * largest), ..NormLimits::default() }, "adapter_spectral_norm_max"),
    ] {
        let rejection = admit(norms).unwrap_err();
        let told = rejection.to_string();
        assert_eq!(rejection.code(), "adapter_norm_too_large");
        assert!(told.contains("down_proj in layer") && told.contains(named), "{told}");
    }
    let roomy = NormLimits { frobenius_max: Some(1.01 * largest), spectral_max: Some(1.01 * largest) };
    assert!(admit(roomy).is_ok());
}

/// A base that is known by digest.
struct Named(ModelConfig);

impl AdapterBase for Named {
    fn config(&self) -> &ModelConfig {
        &self.0
    }

    fn digest(&self) -> Option<Digest> {
        Some(Digest::of(b"this base"))
    }

    fn dense(&self, layer: usize, module: Module) -> Result<Vec<f32>, ModelError> {
        self.0.dense(layer, module)
    }

    fn may_be_called(&self, name: &str) -> bool {
        name == "b"
    }
}

/// An adapter to put faults into.
struct Faulty {
    config: serde_json::Map<String, serde_json::Value>,
    tensors: Tensors,
    notes: Vec<(&'static str, String)>,
    before_the_header: &'static [u8],
    before_the_file: &'static [u8],
    limits: AdapterLimits,
}

impl Faulty {
    fn sound() -> Self {
        Self {
            config: serde_json::from_slice(CONFIG).unwrap(),
            tensors: tensors(),
            notes: Vec::new(),
            before_the_header: b"",
            before_the_file: b"",
            limits: AdapterLimits::default(),
        }
    }

    fn weights(&self) -> Vec<u8> {
        let views = self
            .tensors
            .iter()
            .map(|(name, (dtype, shape, data))| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
        let notes = self.notes.iter().map(|(key, note)| ((*key).to_owned(), note.clone())).collect();
        let file = safetensors::serialize(views, Some(notes)).unwrap();
        let (length, rest) = file.split_first_chunk::<8>().unwrap();
        let length = u64::from_le_bytes(*length) + self.before_the_header.len() as u64;
        [self.before_the_file, &length.to_le_bytes(), self.before_the_header, rest].concat()
    }

    fn admit(&self) -> Result<CanonicalAdapter, AdapterRejection> {
        let config = serde_json::to_vec(&self.config).unwrap();
        canonical_adapter(&config, &self.weights(), &Named(small()), &self.limits)
    }
}

/// A fault of each step in the order of the steps: its code, what its message says, how it is made.
type Fault = (&'static str, &'static str, fn(&mut Faulty));

const FAULTS: [Fault; 10] = [
    ("adapter_too_large", "weights in bytes", |adapter| adapter.limits.file_bytes_max = 100),
    ("unsupported_media_type", "zip", |adapter| adapter.before_the_file = b"PK\x03\x04"),
    ("adapter_malformed", "does not begin with `{`", |adapter| adapter.before_the_header = b" "),
    ("adapter_unsupported", "IA3", |adapter| drop(adapter.config.insert("peft_type".into(), "IA3".into()))),
    ("adapter_base_mismatch", "this base is", |adapter| {
        adapter.notes.push(("tenon.base_digest", Digest::of(b"another").to_string()));
    }),
    ("adapter_unsupported", "lm_head", |adapter| {
        let tensor = adapter.tensors.remove(A0).unwrap();
        adapter.tensors.insert("base_model.model.lm_head.lora_A.weight".into(), tensor);
    }),
    ("adapter_shape_mismatch", "has shape [2, 32]", |adapter| adapter.tensors.get_mut(B1).unwrap().1.reverse()),
    ("adapter_too_large", "rank", |adapter| adapter.limits.rank_max = 1),
    ("adapter_not_finite", "B of down_proj in layer 1", |adapter| {
        adapter.tensors.get_mut(B1).unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    }),
    ("adapter_norm_too_large", "adapter_frobenius_norm_max", |adapter| {
        adapter.limits.norms.frobenius_max = Some(1e-9);
    }),
];

#[test]
fn of_two_faults_the_one_of_the_earlier_step_is_told() {
    assert!(Faulty::sound().admit().is_ok());
    let told = |faults: &[Fault], (code, says, _): Fault| {
        let mut adapter = Faulty::sound();
        faults.iter().for_each(|(_, _, put)| put(&mut adapter));
        let rejection = adapter.admit().unwrap_err();
        let message = rejection.to_string();
        assert_eq!(rejection.code(), code, "{message}");
        assert!(message.contains(says), "{code}: {message}");
    };
    for (at, earlier) in FAULTS.iter().enumerate() {
        told(&[*earlier], *earlier);
        for later in &FAULTS[at + 1..] {
            told(&[*later, *earlier], *earlier);
        }
    }
    told(&FAULTS, FAULTS[0]);
}

#[test]
fn an_adapter_that_names_its_base_by_digest_is_for_that_base_alone() {
    let own = Digest::of(b"this base").to_string();
    let other = Digest::of(b"another").to_string();
    let verdict = |config: Option<&str>, note: Option<&str>| {
        let mut adapter = Faulty::sound();
        // Its name alone would make a warning.
        adapter.config.insert("base_model_name_or_path".into(), "another/base".into());
        config.and_then(|digest| adapter.config.insert("tenon.base_digest".into(), digest.into()));
        adapter.notes.extend(note.map(|digest| ("tenon.base_digest", digest.to_owned())));
        match adapter.admit() {
            Ok(admitted) if admitted.report.base_is_named => {
                assert_eq!(admitted.report.warnings, [""; 0]);
                "named"
            }
            Ok(admitted) => {
                assert!(admitted.report.warnings.iter().any(|warning| warning.contains("another/base")));
                "not named"
            }
            Err(rejection) => rejection.code(),
        }
    };
    assert_eq!(verdict(None, None), "not named");
    for (config, note) in [(Some(&*own), None), (None, Some(&*own)), (Some(&*own), Some(&*own))] {
        assert_eq!(verdict(config, note), "named");
    }
    for (config, note) in [(Some(&*other), None), (None, Some(&*other)), (Some(&*own), Some(&*other))] {
        assert_eq!(verdict(config, note), "adapter_base_mismatch");
    }
    for text in ["", "SmolLM2", &own[..63], &"g".repeat(64)] {
        assert_eq!((verdict(Some(text), None), verdict(None, Some(text))), ("adapter_malformed", "adapter_malformed"));
    }
    // Where only sizes are known, nothing can be compared.
    let mut adapter = Faulty::sound();
    adapter.notes.push(("tenon.base_digest", own));
    let config = serde_json::to_vec(&adapter.config).unwrap();
    let rejection = canonical_adapter(&config, &adapter.weights(), &small(), &adapter.limits).unwrap_err();
    assert_eq!(rejection.code(), "adapter_base_mismatch");
}

/// `../shared/lora/hostile`: the verdicts of `cases.json` for folders with both files; the rest needs a host (tests/it).
#[test]
fn the_hostile_set_gets_its_verdicts() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let shared = std::env::var_os("TENON_SHARED").map_or_else(|| repository.join("../shared"), PathBuf::from);
    let root = shared.join("lora/hostile");
    let Ok(cases) = std::fs::read(root.join("cases.json")) else {
        println!("skipped: no hostile set at {}", root.display());
        return;
    };
    let cases: serde_json::Value = serde_json::from_slice(&cases).unwrap();
    let mut counts = BTreeMap::<String, u32>::new();
    for case in cases["cases"].as_array().unwrap() {
        let (name, expect) = (case["name"].as_str().unwrap(), case["expect"].as_str().unwrap());
        let read = |file| std::fs::read(root.join(name).join(file));
        let (Ok(config), Ok(weights)) = (read("adapter_config.json"), read("adapter_model.safetensors")) else {
            continue;
        };
        let verdict = admit(&config, &weights, &smollm());
        let shown = verdict.as_ref().map_or_else(|r| format!("{}: {r}", r.code()), |_| "admitted".into());
        println!("{name} ({expect}): {shown}");
        match expect {
            // The set is older than what is executed.
            _ if name == "c-variant-alora" => assert_eq!(verdict.as_ref().unwrap().report.kind, AdapterKind::Alora),
            "accept" => assert!(verdict.is_ok(), "{name}: {shown}"),
            "reject" => assert!(verdict.is_err(), "{name}: admitted, {}", case["why"]),
            _ => {}
        }
        *counts.entry(format!("{expect} -> {}", verdict.map_or_else(|r| r.code(), |_| "admitted"))).or_default() += 1;
    }
    println!("{counts:?}");
    assert!(counts.values().sum::<u32>() > 50);
}
