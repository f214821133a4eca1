//! Folders with something wrong in them: each is refused when it is opened, with a reason that names it.

use std::path::Path;

use generators::seeded_bytes;
use model::Base;
use serde_json::{Value, json};

use super::{fixtures, forms};

/// What is told of a copy of the base after it was damaged.
fn told(name: &str, damage: impl Fn(&Path)) -> (&'static str, String) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("base");
    forms::copy(&fixtures().join(name), &folder);
    assert!(Base::open(&folder).is_ok());
    damage(&folder);
    let error = Base::open(&folder).err().expect("it is refused");
    let text = error.to_string();
    assert!(text.len() < 600, "{text}");
    (error.code(), text)
}

fn refused(name: &str, code: &str, words: &str, damage: impl Fn(&Path)) {
    let (found, text) = told(name, damage);
    assert!(found == code && text.contains(words), "`{words}` is not told: {found}: {text}");
}

fn header_of(bytes: &[u8]) -> (usize, Value) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (length, serde_json::from_slice(&bytes[8..8 + length]).unwrap())
}

/// Puts another header before the same data.
fn rewrite_header(path: &Path, change: impl Fn(&mut Value)) {
    let bytes = std::fs::read(path).unwrap();
    let (length, mut header) = header_of(&bytes);
    change(&mut header);
    let header = header.to_string();
    let data = &bytes[8 + length..];
    std::fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()).unwrap();
}

fn change_bytes(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

const SINGLE: &str = "model.safetensors";
const SECOND: &str = "model-00002-of-00003.safetensors";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const MALFORMED: &str = "base_malformed";
const UNSUPPORTED: &str = "base_unsupported";

#[test]
fn files_that_are_missing_are_named() {
    for file in ["config.json", "tokenizer.json", SINGLE] {
        refused("llama", MALFORMED, file, |folder| std::fs::remove_file(folder.join(file)).unwrap());
    }
    refused("qwen3", MALFORMED, "model-00002-of-00003.safetensors is missing", |folder| {
        std::fs::remove_file(folder.join(SECOND)).unwrap();
    });
    refused("qwen3", MALFORMED, "neither", |folder| std::fs::remove_file(folder.join(forms::INDEX)).unwrap());
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(Base::open(empty.path()).err().unwrap().code(), MALFORMED);
}

#[test]
fn an_index_names_files_of_the_folder_and_what_is_in_them() {
    let with_map = |map: Value| {
        move |folder: &Path| {
            forms::change(&folder.join(forms::INDEX), &json!({"weight_map": map}));
        }
    };
    let with_shard = |shard: Value| {
        move |folder: &Path| {
            let index: Value = serde_json::from_slice(&std::fs::read(folder.join(forms::INDEX)).unwrap()).unwrap();
            let mut map = index["weight_map"].clone();
            map["model.norm.weight"] = shard.clone();
            forms::change(&folder.join(forms::INDEX), &json!({"weight_map": map}));
        }
    };
    let outside = "not a safetensors file of the folder";
    for name in ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\u{0}.safetensors"] {
        refused("qwen3", MALFORMED, outside, with_shard(json!(name)));
    }
    refused("qwen3", MALFORMED, outside, with_shard(json!("x".repeat(100_000))));
    refused("qwen3", MALFORMED, outside, with_shard(json!(["model-00001-of-00003.safetensors"])));
    refused("qwen3", MALFORMED, "absent.safetensors is missing", with_shard(json!("absent.safetensors")));
    refused("qwen3", MALFORMED, "and it is not", with_shard(json!("model-00001-of-00003.safetensors")));
    refused("qwen3", MALFORMED, "weight_map", with_map(json!({})));
    refused("qwen3", MALFORMED, "weight_map", with_map(json!([1])));
    refused("qwen3", MALFORMED, "is not JSON", |folder| std::fs::write(folder.join(forms::INDEX), "{").unwrap());
    let many: serde_json::Map<String, Value> =
        (0..2000).map(|at| (format!("t{at}"), Value::from(format!("s{at}.safetensors")))).collect();
    refused("qwen3", MALFORMED, "at most 1024", with_map(Value::Object(many)));
    // A tensor that the index does not name, and one that two files have.
    refused("qwen3", MALFORMED, "which model.safetensors.index.json does not name", |folder| {
        let path = folder.join(forms::INDEX);
        let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        index["weight_map"].as_object_mut().unwrap().remove(Q);
        std::fs::write(path, index.to_string()).unwrap();
    });
    refused("qwen3", MALFORMED, "is in model-00001-of-00003.safetensors and in more.safetensors", |folder| {
        std::fs::copy(folder.join("model-00001-of-00003.safetensors"), folder.join("more.safetensors")).unwrap();
        with_shard(json!("more.safetensors"))(folder);
    });
}

#[test]
fn safetensors_files_that_are_cut_or_lie_are_refused() {
    let damaged = |words: &str, change: fn(&mut Vec<u8>)| {
        refused("llama", MALFORMED, words, |folder| change_bytes(&folder.join(SINGLE), change));
    };
    damaged("cannot be read", Vec::clear);
    damaged("cannot be read", |bytes| bytes.truncate(7));
    damaged("too long", |bytes| bytes.truncate(100));
    damaged("fetch it again", |bytes| bytes.truncate(bytes.len() - 1));
    damaged("fetch it again", |bytes| bytes.push(0));
    damaged("too long", |bytes| bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes()));
    damaged("too long", |bytes| bytes[..8].copy_from_slice(&(1u64 << 26).to_le_bytes()));
    damaged("not sound", |bytes| bytes[9] = 0xff);
    damaged("not sound", |bytes| bytes[..8].copy_from_slice(&2u64.to_le_bytes()));

    let header = |code: &str, words: &str, change: fn(&mut Value)| {
        refused("llama", code, words, |folder| rewrite_header(&folder.join(SINGLE), change));
    };
    // One tensor over another, behind the end, backwards, larger than its bytes, larger than any memory.
    header(MALFORMED, "not sound", |header| header[Q]["data_offsets"] = json!([0, 64 * 64 * 2]));
    header(MALFORMED, "not sound", |header| header[Q]["data_offsets"] = json!([0, 1u64 << 40]));
    header(MALFORMED, "not sound", |header| header[Q]["data_offsets"] = json!([4096, 0]));
    header(MALFORMED, "not sound", |header| header[Q]["shape"] = json!([64, 65]));
    header(MALFORMED, "not sound", |header| header[Q]["shape"] = json!([1u64 << 40, 1u64 << 40]));
    header(MALFORMED, "not sound", |header| header[Q]["dtype"] = json!("F128"));
    header(MALFORMED, "not sound", |header| *header = json!([]));
    // Sound, and not the base that the configuration speaks of.
    header(MALFORMED, "attn_q.weight has shape [32, 128], expected [64, 64]", |header| {
        header[Q]["shape"] = json!([32, 128]);
    });
    header(UNSUPPORTED, "convert it", |header| header[Q]["dtype"] = json!("I16"));
    header(UNSUPPORTED, "q_proj.bias", |header| {
        let tensor = header[Q].take();
        header.as_object_mut().unwrap().remove(Q);
        header["model.layers.0.self_attn.q_proj.bias"] = tensor;
    });
    header(UNSUPPORTED, "blk.7.attn_q.weight", |header| {
        let tensor = header[Q].take();
        header.as_object_mut().unwrap().remove(Q);
        header["model.layers.7.self_attn.q_proj.weight"] = tensor;
    });
}

#[test]
fn a_tensor_too_few_or_too_many_is_found() {
    let rewrite = |change: fn(&mut forms::Weights)| {
        move |folder: &Path| {
            let mut form = forms::read(folder);
            change(&mut form.weights);
            std::fs::remove_file(folder.join(SINGLE)).unwrap();
            forms::write(folder, &form, safetensors::Dtype::BF16, 1);
        }
    };
    refused("llama", MALFORMED, "blk.0.attn_q.weight is missing", rewrite(|weights| drop(weights.remove(Q))));
    refused(
        "llama",
        UNSUPPORTED,
        "attn_q_norm",
        rewrite(|weights| {
            weights.insert("model.layers.0.self_attn.q_norm.weight".into(), (vec![32], vec![1.0; 32]));
        }),
    );
    refused(
        "llama",
        UNSUPPORTED,
        "extra",
        rewrite(|weights| drop(weights.insert("extra".into(), (vec![1], vec![1.0])))),
    );
    // Left by old versions, and made of what the configuration says.
    let scratch = tempfile::tempdir().unwrap();
    forms::copy(&fixtures().join("llama"), scratch.path());
    rewrite(|weights| {
        let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
        weights.insert(name.into(), (vec![16], vec![1.0; 16]));
    })(scratch.path());
    assert!(Base::open(scratch.path()).is_ok());
}

#[test]
fn what_the_other_files_say_must_fit() {
    let config = |code: &str, words: &str, members: Value| {
        refused("qwen3", code, words, |folder| forms::change(&folder.join("config.json"), &members));
    };
    config(MALFORMED, "shape", json!({"hidden_size": 64}));
    config(MALFORMED, "the tokenizer has 288 tokens", json!({"vocab_size": 256}));
    config(MALFORMED, "blk.3.", json!({"num_hidden_layers": 4}));
    config(UNSUPPORTED, "blk.2.", json!({"num_hidden_layers": 2}));
    config(UNSUPPORTED, "blk.0.attn_k_norm.weight", json!({"model_type": "llama"}));
    config(UNSUPPORTED, "gpt2", json!({"model_type": "gpt2"}));
    for eos in [json!(-1), json!("x"), json!([1, 9999]), json!(9999)] {
        refused("qwen3", MALFORMED, "token", |folder| {
            forms::change(&folder.join("generation_config.json"), &json!({"eos_token_id": eos}));
        });
    }
    for (file, text, words) in [
        ("config.json", "[]", "config.json is not a JSON object"),
        ("config.json", "{", "config.json is not JSON"),
        ("tokenizer.json", "{}", "tokenizer.json"),
        ("tokenizer_config.json", "\u{1}", "tokenizer_config.json"),
        ("chat_template.jinja", "{% for", "chat template"),
    ] {
        refused("qwen3", MALFORMED, words, |folder| std::fs::write(folder.join(file), text).unwrap());
    }
    refused("qwen3", MALFORMED, "UTF-8", |folder| std::fs::write(folder.join("chat_template.jinja"), [0xff]).unwrap());
}

#[test]
fn a_gguf_file_that_is_cut_is_refused_when_it_is_opened() {
    let bytes = std::fs::read(fixtures().join("qwen3.gguf")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    for length in [bytes.len() - 64, bytes.len() / 2, 40, 0] {
        std::fs::write(file.path(), &bytes[..length]).unwrap();
        assert_eq!(Base::open(file.path()).err().unwrap().code(), MALFORMED, "{length} bytes");
    }
}

/// Where a random byte goes matters most in what is parsed: headers and JSON, not weights.
const PARSED_BYTES: usize = 4096;

#[test]
fn random_damage_is_an_error_or_another_base_and_never_a_panic() {
    let scratch = tempfile::tempdir().unwrap();
    forms::copy(&fixtures().join("qwen3"), scratch.path());
    let original = Base::open(scratch.path()).unwrap().digest();
    let files: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let (mut refused, mut opened) = (0, 0);
    for seed in 0..400 {
        let random: Vec<usize> = seeded_bytes(seed, 8).into_iter().map(usize::from).collect();
        let path = &files[random[0] % files.len()];
        let sound = std::fs::read(path).unwrap();
        let mut bytes = sound.clone();
        let at = (random[1] << 8 | random[2]) % bytes.len().min(PARSED_BYTES);
        match random[3] % 4 {
            0 => bytes.truncate(at),
            1 => drop(bytes.splice(at..at, [random[4] as u8; 3])),
            // Digits for digits: numbers that are wrong and still numbers.
            2 => match (at..bytes.len()).find(|at| bytes[*at].is_ascii_digit()) {
                Some(at) => bytes[at] = b'0' + (bytes[at] - b'0' + 1 + (random[4] % 9) as u8) % 10,
                None => bytes[at] ^= 1,
            },
            _ => bytes[at] ^= 1 << (random[4] % 8),
        }
        std::fs::write(path, &bytes).unwrap();
        println!("seed {seed}: {}", path.display());
        match Base::open(scratch.path()) {
            Ok(base) => {
                assert_ne!(base.digest(), original, "seed {seed}");
                opened += 1;
            }
            Err(error) => {
                assert!(matches!(error.code(), MALFORMED | UNSUPPORTED), "seed {seed}: {error}");
                refused += 1;
            }
        }
        std::fs::write(path, sound).unwrap();
    }
    assert!(refused > 150 && opened > 20, "{refused} refused, {opened} opened");
    assert_eq!(Base::open(scratch.path()).unwrap().digest(), original);
}
