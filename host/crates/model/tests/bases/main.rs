//! The tiny llama and qwen3 of `tests/fixtures/bases` against what transformers and PEFT compute with the same weights
//! (`tests/bases/make.py`): every form of a base gives the same tokens, the same text and the same logits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod alora;
mod forms;
mod hostile;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{Batch, BatchSequence, LoraSegment, ModelRunner, SampleRequest, Slot};
use model::{AdapterLimits, Base, CpuRunner, CpuRunnerConfig, LoraAdapter, Precision, Prompts, canonical_adapter};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use types::{Chat, LayerRange, Message, ModuleSet};

const BLOCK_TOKENS: usize = 16;
const KV_BLOCKS: usize = 32;
/// Fewer than the longest prompt has, so that it comes in pieces.
const BATCH_ROWS_MAX: usize = 100;
/// The largest difference of a logit; they are up to 10.
const TOLERANCE: f32 = 1e-4;
/// With bf16 or int8 activations, and keys and values in bf16: the root mean square of the differences, which a few outliers
/// do not decide.
const TOLERANCE_QUANTISED: f32 = 0.25;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures/bases")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("golden.json")).unwrap()).unwrap()
}

/// The logits behind each prompt, `base/NAME` or `adapter/NAME`.
fn golden_logits(name: &str, key: &str) -> Vec<f32> {
    let file = std::fs::read(fixtures().join(format!("{name}-logits.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let bytes = tensors.tensor(key).unwrap().data().to_vec();
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn adapter(base: &Base, folder: &Path, precision: Precision) -> Arc<LoraAdapter> {
    let read = |name| std::fs::read(folder.join(name)).unwrap();
    let limits = AdapterLimits::default();
    let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    let canonical = canonical_adapter(&config, &weights, base, &limits).unwrap();
    Arc::new(LoraAdapter::from_canonical(&canonical.bytes, base, &limits, precision).unwrap())
}

/// Logits behind the prompt and the greedy tokens after it, with the adapter in slot 0 or without.
fn generate(runner: &mut CpuRunner, prompt: &[u32], tokens: usize, adapted: bool) -> (Vec<f32>, Vec<u32>) {
    let (mut at, mut input, mut first, mut output) = (0, prompt.to_vec(), Vec::new(), Vec::new());
    while output.len() < tokens {
        let rows: Vec<u32> = input.drain(..input.len().min(BATCH_ROWS_MAX)).collect();
        let count = rows.len() as u32;
        let segment = LoraSegment {
            rows: 0..count,
            slot: Slot(0),
            weight: 1.0,
            modules: ModuleSet::ALL,
            layers: LayerRange::ALL,
        };
        let batch = Batch {
            positions: (at..at + count).collect(),
            sequences: vec![BatchSequence { rows: 0..count, blocks: 0..KV_BLOCKS as u32 }],
            // Scattered.
            block_tables: (0..KV_BLOCKS as u32).map(|block| block * 7 % KV_BLOCKS as u32).collect(),
            segments: adapted.then_some(segment).into_iter().collect(),
            samples: if input.is_empty() { vec![SampleRequest::greedy(count - 1)] } else { Vec::new() },
            tokens: rows,
            ..Batch::default()
        };
        at += count;
        let logits = runner.step_logits(&batch).unwrap();
        if input.is_empty() {
            let best = (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32;
            output.push(best);
            input.push(best);
            if first.is_empty() {
                first = logits;
            }
        }
    }
    (first, output)
}

/// Holds a base in one of its forms against the goldens; gives the largest difference of a logit.
fn hold(name: &str, path: &Path) -> f32 {
    let base = Base::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (golden, what) = (golden(), path.display());
    let expected = &golden[name];
    assert_eq!(base.architecture().name(), name);
    assert_eq!(base.eos()[0], ids(&expected["eos"])[0], "{what}");
    let field = |message: &Value, field| message[field].as_str().unwrap().to_owned();
    let messages = golden["messages"].as_array().unwrap().iter();
    let messages: Vec<_> = messages.map(|m| Message { role: field(m, "role"), content: field(m, "content") }).collect();
    assert_eq!(base.chat_template().render(&Chat::from(messages), true).unwrap(), expected["chat"], "{what}");

    let mut worst = 0.0f32;
    for precision in [Precision::F32, Precision::Quantised] {
        let config = CpuRunnerConfig {
            precision,
            block_tokens: BLOCK_TOKENS as u32,
            kv_blocks: KV_BLOCKS as u32,
            adapter_slots: 1,
            batch_rows_max: BATCH_ROWS_MAX as u32,
            threads: 2,
            prompts: Prompts::Auto,
        };
        let mut runner = CpuRunner::new(&base, config).unwrap();
        let packed = adapter(&base, &fixtures().join(format!("{name}-adapter")), precision);
        runner.load_adapter(Slot(0), &packed, &[]).unwrap();
        let (tolerance, is_exact) = match precision {
            Precision::F32 => (TOLERANCE, true),
            Precision::Quantised | Precision::Bf16 => (TOLERANCE_QUANTISED, false),
        };
        for (prompt, expected) in expected["prompts"].as_object().unwrap() {
            let tokens = ids(&expected["ids"]);
            assert_eq!(base.tokenizer().encode(expected["text"].as_str().unwrap()).unwrap(), tokens, "{what} {prompt}");
            assert_eq!(base.tokenizer().decode(&tokens), expected["decoded"], "{what} {prompt}");
            for (adapted, of, greedy) in [(false, "base", "greedy"), (true, "adapter", "adapted")] {
                let greedy = ids(&expected[greedy]);
                let (logits, output) = generate(&mut runner, &tokens, greedy.len(), adapted);
                let golden = golden_logits(name, &format!("{of}/{prompt}"));
                assert_eq!(logits.len(), golden.len());
                let differences = logits.iter().zip(&golden).map(|(ours, theirs)| (ours - theirs).abs());
                let difference = match is_exact {
                    true => differences.fold(0.0, f32::max),
                    false => (differences.map(|d| d * d).sum::<f32>() / golden.len() as f32).sqrt(),
                };
                assert!(difference < tolerance, "{what} {precision} {prompt} {of}: a logit differs by {difference}");
                if is_exact {
                    assert_eq!(output, greedy, "{what} {precision} {prompt} {of}");
                    worst = worst.max(difference);
                }
            }
        }
    }
    worst
}

/// In every form: one file or three, GGUF, other dtypes, other shards, and the older words of its configuration.
fn hold_all(name: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = fixtures().join(name);
    let mut paths = vec![folder.clone(), fixtures().join(format!("{name}.gguf"))];
    for (dtype, shards) in [(safetensors::Dtype::F32, 1), (safetensors::Dtype::F16, 4), (safetensors::Dtype::BF16, 2)] {
        let path = scratch.path().join(format!("{dtype:?}-{shards}"));
        forms::write(&path, &forms::read(&folder), dtype, shards);
        paths.push(path);
    }
    let old = scratch.path().join("old");
    forms::copy(&folder, &old);
    forms::as_transformers_4(&old);
    paths.push(old);
    let mut digests = Vec::new();
    for path in paths {
        let difference = hold(name, &path);
        println!("{name} {}: largest logit error {difference:.1e}", path.file_name().unwrap().display());
        digests.push(Base::open(&path).unwrap().digest());
    }
    let count = digests.len();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), count, "another digest for each form");
}

#[test]
fn llama_in_every_form_is_what_transformers_computes() {
    hold_all("llama");
}

#[test]
fn qwen3_in_every_form_is_what_transformers_computes() {
    hold_all("qwen3");
}

#[test]
fn sizes_are_read_from_every_form_alike() {
    for name in ["llama", "qwen3"] {
        let folder = Base::open(&fixtures().join(name)).unwrap();
        let gguf = Base::open(&fixtures().join(format!("{name}.gguf"))).unwrap();
        let mut expected = folder.config().clone();
        expected.rope = gguf.config().rope;
        assert_eq!(gguf.config(), &expected, "{name}: all but the order of the rows of q and k");
        assert_eq!(gguf.config().rope == model::RopeLayout::Neighbours, name == "llama");
        assert_eq!(folder.eos(), ids(&golden()[name]["eos"]), "the list of generation_config.json");
        assert_eq!((folder.name(), gguf.name()), (name, &*format!("tiny {name}")));
        // A row of the embedding that is no token prints nothing.
        let beyond = u32::try_from(folder.config().vocabulary - 1).unwrap();
        for base in [&folder, &gguf] {
            let printed = if name == "qwen3" { "" } else { "<|eot_id|>" };
            assert_eq!(
                (base.tokenizer().token_text(beyond).as_str(), base.tokenizer().decode(&[beyond])),
                (printed, String::new())
            );
        }
        let weight = |base: &Base| {
            let config = base.config();
            base.tensor("token_embd.weight", &[config.vocabulary, config.hidden]).unwrap().to_f32().unwrap()
        };
        assert_eq!(weight(&folder), weight(&gguf), "{name}: the same numbers in bf16 and in Q8_0");
    }
}

#[test]
fn a_folders_digest_is_that_of_its_files_and_of_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let digest = |path: &Path| Base::open(path).unwrap().digest();
    let original = digest(&fixtures().join("qwen3"));
    let copy = scratch.path().join("elsewhere");
    forms::copy(&fixtures().join("qwen3"), &copy);
    std::fs::write(copy.join("README.md"), "not a part of the model").unwrap();
    assert_eq!(digest(&copy), original);
    for file in ["config.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"] {
        let path = copy.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text} ")).unwrap();
        assert_ne!(digest(&copy), original, "{file}");
        std::fs::write(&path, text).unwrap();
    }
    let shard = copy.join("model-00002-of-00003.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    assert_ne!(digest(&copy), original, "a weight");
}

#[test]
fn tokens_that_end_are_those_of_generation_then_of_the_configuration_and_the_tokenizers() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    forms::copy(&fixtures().join("qwen3"), folder);
    let eos = || Base::open(folder).unwrap().eos().to_vec();
    forms::change(&folder.join("config.json"), &json!({"eos_token_id": [7, 9, 7]}));
    let own = ids(&golden()["qwen3"]["eos"]);
    assert_eq!(eos(), own);
    forms::change(&folder.join("generation_config.json"), &json!({"eos_token_id": 5}));
    assert_eq!(eos(), [5, own[0]]);
    std::fs::remove_file(folder.join("generation_config.json")).unwrap();
    assert_eq!(eos(), [7, 9, own[0]]);
    forms::change(&folder.join("tokenizer_config.json"), &json!({"eos_token": null}));
    assert_eq!(eos(), [7, 9]);
}
