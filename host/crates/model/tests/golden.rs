//! The runner against what torch, transformers and PEFT compute: `tests/fixtures/lora`, and the complete set where
//! `../shared` (or `TENON_SHARED`) has it. Without the base in the cache everything here is skipped, with the reason.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use engine::{Batch, BatchSequence, LoraSegment, ModelRunner, SampleRequest, Slot};
use model::{AdapterLimits, Base, CpuRunner, CpuRunnerConfig, LoraAdapter, Precision, Prompts, canonical_adapter};
use serde_json::Value;
use types::{Chat, LayerRange, Message, ModuleSet};

const BASE_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const BLOCK_TOKENS: usize = 16;
const BATCH_ROWS_MAX: usize = 256;
const GREEDY_TOKENS: usize = 32;
/// Blocks of one sequence: 256 tokens.
const SEQUENCE_BLOCKS: usize = 16;

fn base() -> Option<Arc<Base>> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let path = std::env::var_os("TENON_BASE")
        .map(PathBuf::from)
        .or_else(|| cache.map(|cache| cache.join("tenon/base").join(BASE_FILE)))
        .filter(|path| path.exists());
    if path.is_none() {
        println!("skipped: {BASE_FILE} is not in the cache; `cargo xtask test` fetches it");
    }
    path.map(|path| Base::open(&path).unwrap())
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// The complete set if it is there, else the fixtures.
fn golden_root() -> (PathBuf, PathBuf) {
    let shared = std::env::var_os("TENON_SHARED").map_or_else(|| repository().join("../shared"), PathBuf::from);
    let shared = shared.join("lora");
    if shared.join("golden/golden.json").exists() {
        return (shared.join("golden"), shared.join("adapters"));
    }
    println!("the complete set is not at {}: only the fixtures are checked", shared.display());
    (repository().join("tests/fixtures/lora/golden"), repository().join("tests/fixtures/lora"))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// One configuration on one prompt.
#[derive(Clone)]
struct Case {
    name: String,
    adapters: Vec<(String, f32)>,
    prompt: Vec<u32>,
    top: Vec<(u32, f32)>,
    log_sum_exp: f32,
    greedy: Option<Vec<u32>>,
    logits: Option<Vec<f32>>,
}

/// Every configuration on each of its prompts.
fn cases(root: &Path) -> Vec<Case> {
    let golden = json(&root.join("golden.json"));
    let file = std::fs::read(root.join("full_logits.safetensors")).unwrap();
    let full = safetensors::SafeTensors::deserialize(&file).unwrap();
    let mut cases = Vec::new();
    for (config, entry) in golden["configs"].as_object().unwrap() {
        let adapters =
            entry["adapters"].as_array().unwrap().iter().map(|adapter| {
                (adapter["name"].as_str().unwrap().to_owned(), adapter["weight"].as_f64().unwrap() as f32)
            });
        let adapters: Vec<_> = adapters.collect();
        for (prompt, result) in entry["results"].as_object().unwrap() {
            let top = result["top20"].as_array().unwrap().iter();
            let logits = result["full_logits_key"].as_str().map(|key| {
                let data = full.tensor(key).unwrap().data().as_chunks::<4>().0;
                data.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            });
            cases.push(Case {
                name: format!("{config}/{prompt}"),
                adapters: adapters.clone(),
                prompt: ids(&golden["prompts"][prompt]["ids"]),
                top: top.map(|top| (top[0].as_u64().unwrap() as u32, top[1].as_f64().unwrap() as f32)).collect(),
                log_sum_exp: result["logsumexp"].as_f64().unwrap() as f32,
                greedy: result.get("greedy_ids").filter(|ids| !ids.is_null()).map(ids),
                logits,
            });
        }
    }
    cases
}

/// A runner with every adapter of the cases in a slot.
struct Bench {
    runner: CpuRunner,
    slots: BTreeMap<String, Slot>,
}

impl Bench {
    fn new(base: &Base, adapters: &Path, cases: &[Case], precision: Precision) -> Self {
        let config = CpuRunnerConfig {
            precision,
            block_tokens: BLOCK_TOKENS as u32,
            kv_blocks: (cases.len().max(1) * SEQUENCE_BLOCKS) as u32,
            adapter_slots: 8,
            batch_rows_max: BATCH_ROWS_MAX as u32,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            prompts: Prompts::Auto,
        };
        let started = Instant::now();
        let mut runner = CpuRunner::new(base, config).unwrap();
        println!("{precision} runner loaded in {:.1?}", started.elapsed());
        let mut slots = BTreeMap::new();
        for (name, _) in cases.iter().flat_map(|case| &case.adapters) {
            if !slots.contains_key(name) {
                let slot = Slot(slots.len() as u32);
                let adapter = Arc::new(adapter(base, &adapters.join(name), precision));
                runner.load_adapter(slot, &adapter, &[]).unwrap();
                assert!(runner.load_adapter(slot, &adapter, &[]).is_err(), "a slot holds one adapter");
                slots.insert(name.clone(), slot);
            }
        }
        Self { runner, slots }
    }

    /// Adds rows of one sequence to the batch; its blocks are scattered but its own.
    fn push(&self, batch: &mut Batch, case: &Case, sequence: usize, sequences: usize, first: usize, tokens: &[u32]) {
        let start = batch.tokens.len() as u32;
        let rows = start..start + tokens.len() as u32;
        let blocks = (first + tokens.len()).div_ceil(BLOCK_TOKENS);
        let table = batch.block_tables.len() as u32;
        batch.tokens.extend(tokens);
        batch.positions.extend((first as u32..).take(tokens.len()));
        batch.block_tables.extend((0..blocks).map(|block| (block * sequences + sequence) as u32));
        batch.sequences.push(BatchSequence { rows: rows.clone(), blocks: table..table + blocks as u32 });
        for (name, weight) in &case.adapters {
            batch.segments.push(LoraSegment {
                rows: rows.clone(),
                slot: self.slots[name],
                weight: *weight,
                modules: ModuleSet::ALL,
                layers: LayerRange::ALL,
            });
        }
    }

    /// Prompt logits and greedy tokens of all cases, decoded together; prompts are cut where the batch is full.
    fn generate(&mut self, cases: &[Case], tokens: usize) -> Vec<(Vec<f32>, Vec<u32>)> {
        let mut outputs = vec![(Vec::new(), Vec::new()); cases.len()];
        let mut batch = Batch::default();
        let mut owners = Vec::new();
        for (sequence, case) in cases.iter().enumerate() {
            let mut first = 0;
            while first < case.prompt.len() {
                let count = (case.prompt.len() - first).min(BATCH_ROWS_MAX - batch.tokens.len());
                self.push(&mut batch, case, sequence, cases.len(), first, &case.prompt[first..first + count]);
                first += count;
                if first == case.prompt.len() {
                    batch.samples.push(greedy(batch.tokens.len() - 1));
                    owners.push(sequence);
                }
                if batch.tokens.len() == BATCH_ROWS_MAX {
                    self.flush(&mut batch, &mut owners, &mut outputs);
                }
            }
        }
        self.flush(&mut batch, &mut owners, &mut outputs);
        for step in 1..tokens {
            let mut sampled = Vec::new();
            for (sequence, case) in cases.iter().enumerate() {
                let last = outputs[sequence].1[step - 1];
                self.push(&mut batch, case, sequence, cases.len(), case.prompt.len() + step - 1, &[last]);
                batch.samples.push(greedy(sequence));
            }
            self.runner.step(&batch, &mut sampled).unwrap();
            outputs.iter_mut().zip(sampled).for_each(|(output, token)| output.1.push(token.id));
            batch = Batch::default();
        }
        outputs
    }

    fn flush(&mut self, batch: &mut Batch, owners: &mut Vec<usize>, outputs: &mut [(Vec<f32>, Vec<u32>)]) {
        let logits = self.runner.step_logits(batch).unwrap();
        let vocabulary = self.runner.shape().vocabulary as usize;
        for (owner, logits) in owners.drain(..).zip(logits.chunks_exact(vocabulary)) {
            outputs[owner] = (logits.to_vec(), vec![argmax(logits)]);
        }
        *batch = Batch::default();
    }

    /// Logits at every position of a text.
    fn text_logits(&mut self, case: &Case) -> Vec<f32> {
        let mut batch = Batch::default();
        self.push(&mut batch, case, 0, 1, 0, &case.prompt);
        batch.samples = (0..case.prompt.len()).map(greedy).collect();
        self.runner.step_logits(&batch).unwrap()
    }
}

fn adapter(base: &Base, folder: &Path, precision: Precision) -> LoraAdapter {
    let read = |name| std::fs::read(folder.join(name)).unwrap();
    let limits = AdapterLimits::default();
    let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    let canonical = canonical_adapter(&config, &weights, base, &limits).unwrap();
    LoraAdapter::from_canonical(&canonical.bytes, base, &limits, precision).unwrap()
}

fn greedy(row: usize) -> SampleRequest {
    SampleRequest::greedy(row as u32)
}

fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

fn max_difference(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}

#[test]
fn prompts_tokenise_and_render_as_transformers_does() {
    let Some(base) = base() else { return };
    let golden = json(&golden_root().0.join("golden.json"));
    let prompts = golden["prompts"].as_object().unwrap();
    assert_eq!(prompts.len(), 12);
    for (name, prompt) in prompts {
        let text = prompt["text"].as_str().unwrap();
        if let Some(messages) = prompt["messages"].as_array() {
            let field = |message: &Value, field| message[field].as_str().unwrap().to_owned();
            let messages = messages.iter().map(|m| Message { role: field(m, "role"), content: field(m, "content") });
            let rendered = base.chat_template().render(&Chat::from(messages.collect::<Vec<_>>()), true).unwrap();
            assert_eq!(rendered, text, "{name}");
        }
        let tokens = base.tokenizer().encode(text).unwrap();
        assert_eq!(tokens, ids(&prompt["ids"]), "{name}");
        let mut decoder = base.tokenizer().decoder();
        let mut streamed: String = tokens.iter().map(|id| decoder.push(*id)).collect();
        streamed.push_str(&decoder.finish());
        assert_eq!(streamed, base.tokenizer().decode(&tokens), "{name}");
        let whole: String = tokens.iter().map(|id| base.tokenizer().token_text(*id)).collect();
        assert!(prompt["kind"] != "chat" || whole == text, "{name}");
        assert_eq!(streamed, text.replace("<|im_start|>", "").replace("<|im_end|>", ""), "{name}");
    }
    assert_eq!(base.tokenizer().encode(" 12  34").unwrap().len(), 6);
    assert_eq!(base.eos(), [2]);
}

#[test]
fn f32_equals_the_goldens_alone_and_in_one_mixed_batch() {
    let Some(base) = base() else { return };
    let (golden, adapters) = golden_root();
    let cases = cases(&golden);
    let mut bench = Bench::new(&base, &adapters, &cases, Precision::F32);

    assert!(bench.runner.step_logits(&Batch::default()).unwrap().is_empty());
    let started = Instant::now();
    let mixed = bench.generate(&cases, GREEDY_TOKENS);
    println!("{} sequences in one batch: {:.1?}", cases.len(), started.elapsed());
    let started = Instant::now();
    let mut errors = BTreeMap::<&str, f32>::new();
    for (case, mixed) in cases.iter().zip(&mixed) {
        let alone = bench.generate(std::slice::from_ref(case), GREEDY_TOKENS).remove(0);
        assert!(alone.0 == mixed.0, "{}: other logits in the mixed batch", case.name);
        assert_eq!(alone.1, mixed.1, "{}: other tokens in the mixed batch", case.name);
        if let Some(expected) = &case.greedy {
            assert_eq!(alone.1, *expected, "{}: greedy tokens", case.name);
        }
        let top: Vec<f32> = case.top.iter().map(|(id, _)| alone.0[*id as usize]).collect();
        let top_expected: Vec<f32> = case.top.iter().map(|(_, logit)| *logit).collect();
        let full = case.logits.as_ref().map_or(0.0, |expected| max_difference(&alone.0, expected));
        let error = max_difference(&top, &top_expected).max(full);
        assert!(error < 1e-3, "{}: logits differ by {error}", case.name);
        let config = case.name.split('/').next().unwrap();
        let worst = errors.entry(config).or_default();
        *worst = worst.max(error);
    }
    println!("{} sequences alone: {:.1?}", cases.len(), started.elapsed());
    for (config, error) in errors {
        println!("{config}: largest logit error {error:.1e}");
    }
}

/// log softmax, in f64.
fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let normaliser = kernels::log_sum_exp(logits);
    logits.iter().map(|logit| f64::from(*logit) - normaliser).collect()
}

/// Σ p (ln p - ln q)
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// What int8 activations and adapters, and keys and values in bf16 cost; measured over more text by `cargo xtask bench quality`.
#[test]
fn quantised_stays_near_f32_over_goldens_and_a_text() {
    let Some(base) = base() else { return };
    let (golden, adapters) = golden_root();
    let cases = cases(&golden);
    let text = json(&golden.join("perplexity.json"));
    let text_of = |config: &str| {
        let adapters = cases.iter().find(|case| case.name.starts_with(&format!("{config}/"))).unwrap().adapters.clone();
        Case { adapters, prompt: ids(&text["ids"]), ..cases[0].clone() }
    };
    let mut f32_bench = Bench::new(&base, &adapters, &cases, Precision::F32);
    let mut quantised_bench = Bench::new(&base, &adapters, &cases, Precision::Quantised);

    let (mut divergences, mut errors, mut agreeing, mut greedy) = (Vec::new(), Vec::new(), 0, 0);
    let f32_outputs = f32_bench.generate(&cases, 1);
    let quantised_outputs = quantised_bench.generate(&cases, GREEDY_TOKENS);
    for (case, (f32_output, quantised_output)) in cases.iter().zip(f32_outputs.iter().zip(&quantised_outputs)) {
        let alone = quantised_bench.generate(std::slice::from_ref(case), GREEDY_TOKENS).remove(0);
        assert!(alone == *quantised_output, "{}: depends on the batch", case.name);
        let ours = log_probabilities(&quantised_output.0);
        divergences.push(divergence(&log_probabilities(&f32_output.0), &ours));
        let expected = |logit: f32| f64::from(logit) - f64::from(case.log_sum_exp);
        errors.extend(case.top.iter().map(|(id, logit)| (ours[*id as usize] - expected(*logit)).abs()));
        if let Some(expected) = &case.greedy {
            greedy += 1;
            agreeing += usize::from(*expected == quantised_output.1);
        }
    }
    for config in text["configs"].as_object().unwrap().keys() {
        // Of the fixtures' goldens, the text's mixed configuration is not one.
        if golden.starts_with(repository()) && !cases.iter().any(|case| case.name.starts_with(&format!("{config}/"))) {
            continue;
        }
        let case = text_of(config);
        let (f32_logits, logits) = (f32_bench.text_logits(&case), quantised_bench.text_logits(&case));
        let vocabulary = base.config().vocabulary;
        let rows = logits.chunks_exact(vocabulary).zip(f32_logits.chunks_exact(vocabulary));
        let diverged: Vec<f64> =
            rows.map(|(row, f32_row)| divergence(&log_probabilities(f32_row), &log_probabilities(row))).collect();
        println!("{config}: mean KL of the text {:.5}", mean(&diverged));
        divergences.extend(diverged);
    }
    let max = errors.iter().copied().fold(0.0, f64::max);
    println!(
        "quantised: log-probability error of {} top tokens: max {max:.3}, mean {:.4}",
        errors.len(),
        mean(&errors)
    );
    println!("quantised: {agreeing} of {greedy} greedy continuations of {GREEDY_TOKENS} tokens equal the golden's");
    println!("quantised: mean KL to f32 over {} positions: {:.5}", divergences.len(), mean(&divergences));
    assert!(mean(&divergences) < 0.01 && mean(&errors) < 0.25 && 4 * agreeing >= greedy);
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
#[ignore = "prints tokens/s; run it alone on a quiet machine"]
fn speed_is_printed() {
    let Some(base) = base() else { return };
    let mut case = Case {
        name: "speed".into(),
        adapters: Vec::new(),
        prompt: (0..128).map(|id| 1000 + id * 7).collect(),
        top: Vec::new(),
        log_sum_exp: 0.0,
        greedy: None,
        logits: None,
    };
    for precision in [Precision::F32, Precision::Quantised] {
        let mut bench = Bench::new(&base, Path::new(""), &[], precision);
        bench.generate(std::slice::from_ref(&case), 2);
        let started = Instant::now();
        bench.generate(std::slice::from_ref(&case), 1);
        let prefill = started.elapsed().as_secs_f64();
        case.prompt.truncate(8);
        let started = Instant::now();
        bench.generate(std::slice::from_ref(&case), GREEDY_TOKENS);
        let decode = started.elapsed().as_secs_f64();
        println!("{precision}: prefill {:.0} tokens/s, decode {:.1} tokens/s", 128.0 / prefill, 32.0 / decode);
        case.prompt = (0..128).map(|id| 1000 + id * 7).collect();
    }
}
