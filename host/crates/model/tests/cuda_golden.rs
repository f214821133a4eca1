//! The CUDA runner on the emulated device against what torch, transformers and PEFT compute with the demo base: every golden,
//! alone and composed, in mixed batches. Several minutes of emulation, so it is a stage of its own (`cargo xtask test --stage
//! cuda-goldens`). The complete set is in `../shared` (or `TENON_SHARED`); without it the fixtures are checked.
//!
//! Not here: whether a row depends on its batch (`cuda_conformance.rs`), and the CPU's runners (`golden.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod cuda {
    #[allow(dead_code, reason = "it is what several tests share")]
    pub(super) mod setup;
}

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use engine::{Batch, BatchSequence, ModelRunner, SampleRequest};
use model::{AdapterLimits, Base, CudaRunner, CudaRunnerConfig, Precision, canonical_adapter};
use serde_json::Value;

use self::cuda::setup::{config, demo_base, in_a_child, load, packed, skip, whole};

/// Largest and mean distance of the log-probability of each of the best 20 tokens. Activations are rounded to bf16; the
/// goldens' page expects 0.1 to 0.3 of such a path, and 2 to 18 of the usual mistakes.
const TOP_TOLERANCE: [f64; 2] = [0.25, 0.04];
/// The same of all logits, of which all of a prompt may be moved alike.
const LOGIT_TOLERANCE: [f64; 2] = [0.5, 0.08];
/// Two tokens that are nearer than this may change places.
const MARGIN: f64 = 0.15;
/// Greedy tokens of each golden that has them: all.
const GREEDY_TOKENS: usize = 32;
const ROWS_MAX: usize = 256;
const BLOCK_TOKENS: usize = 16;
/// Blocks of a sequence: 80 tokens.
const SEQUENCE_BLOCKS: usize = 5;
/// Of all of them, KV and adapters.
const BLOCKS: usize = 640;

/// One configuration on one prompt.
struct Case {
    config: String,
    name: String,
    adapters: Vec<(String, f32)>,
    prompt: Vec<u32>,
    top: Vec<(usize, f64)>,
    log_sum_exp: f64,
    margin: f64,
    greedy: Vec<(u32, f64)>,
    logits: Option<Vec<f32>>,
}

/// Goldens and adapters: the complete set if it is there, else the fixtures.
fn folders() -> (PathBuf, PathBuf) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let shared = std::env::var_os("TENON_SHARED").map_or_else(|| repository.join("../shared"), PathBuf::from);
    let shared = shared.join("lora");
    if shared.join("golden/golden.json").exists() {
        return (shared.join("golden"), shared.join("adapters"));
    }
    println!("  the complete set is not at {}: only the fixtures are checked", shared.display());
    (repository.join("tests/fixtures/lora/golden"), repository.join("tests/fixtures/lora"))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn cases(folder: &Path) -> Vec<Case> {
    let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let file = std::fs::read(folder.join("full_logits.safetensors")).unwrap();
    let full = safetensors::SafeTensors::deserialize(&file).unwrap();
    let mut cases = Vec::new();
    for (config, entry) in golden["configs"].as_object().unwrap() {
        let adapters = entry["adapters"].as_array().unwrap().iter();
        let adapters = adapters.map(|one| (one["name"].as_str().unwrap().to_owned(), one["weight"].as_f64().unwrap()));
        let adapters: Vec<(String, f32)> = adapters.map(|(name, weight)| (name, weight as f32)).collect();
        for (prompt, result) in entry["results"].as_object().unwrap() {
            let top = result["top20"].as_array().unwrap().iter();
            let greedy = result.get("greedy_ids").filter(|ids| !ids.is_null()).map(ids).unwrap_or_default();
            let margins = if greedy.is_empty() { Vec::new() } else { numbers(&result["greedy_margins"]) };
            assert_eq!(greedy.len(), margins.len());
            let of_key = |key| full.tensor(key).unwrap().data().as_chunks::<4>().0;
            cases.push(Case {
                config: config.clone(),
                name: format!("{config}/{prompt}"),
                adapters: adapters.clone(),
                prompt: ids(&golden["prompts"][prompt]["ids"]),
                top: top.map(|top| (top[0].as_u64().unwrap() as usize, top[1].as_f64().unwrap())).collect(),
                log_sum_exp: result["logsumexp"].as_f64().unwrap(),
                margin: result["argmax_margin"].as_f64().unwrap(),
                greedy: greedy.into_iter().zip(margins).collect(),
                logits: result["full_logits_key"]
                    .as_str()
                    .map(|key| of_key(key).iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
            });
        }
    }
    cases
}

/// A runner with every adapter of the cases in a slot.
struct Bench {
    runner: CudaRunner,
    slots: BTreeMap<String, u32>,
}

impl Bench {
    fn new(base: &Base, adapters: &Path, cases: &[Case]) -> Self {
        let config = CudaRunnerConfig {
            block_tokens: BLOCK_TOKENS as u32,
            kv_blocks_max: Some(BLOCKS as u32),
            context_tokens_max: 128,
            adapter_slots: 8,
            batch_rows_max: ROWS_MAX as u32,
            ..config()
        };
        let (mut runner, mut slots) = (CudaRunner::new(base, &config).unwrap(), BTreeMap::new());
        let mut first = (cases.len() * SEQUENCE_BLOCKS) as u32;
        for (name, _) in cases.iter().flat_map(|case| &case.adapters) {
            if slots.contains_key(name) {
                continue;
            }
            let (slot, read) = (slots.len() as u32, |file| std::fs::read(adapters.join(name).join(file)).unwrap());
            let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
            let canonical = canonical_adapter(&config, &weights, base, &AdapterLimits::default()).unwrap();
            let blocks = load(&mut runner, slot, &packed(base, &canonical.bytes, Precision::Bf16), first);
            first += blocks.len() as u32;
            slots.insert(name.clone(), slot);
        }
        println!("  {} adapters, {first} of {BLOCKS} blocks", slots.len());
        Self { runner, slots }
    }

    /// Adds rows of one sequence to the batch; its blocks are scattered but its own.
    fn push(&self, batch: &mut Batch, case: &Case, [sequence, sequences]: [usize; 2], first: usize, tokens: &[u32]) {
        let start = batch.tokens.len() as u32;
        let rows = start..start + tokens.len() as u32;
        let blocks = (first + tokens.len()).div_ceil(BLOCK_TOKENS);
        assert!(blocks <= SEQUENCE_BLOCKS, "{}", case.name);
        let table = batch.block_tables.len() as u32;
        batch.tokens.extend(tokens);
        batch.positions.extend((first as u32..).take(tokens.len()));
        batch.block_tables.extend((0..blocks).map(|block| (block * sequences + sequence) as u32));
        batch.sequences.push(BatchSequence { rows: rows.clone(), blocks: table..table + blocks as u32 });
        let segments = case.adapters.iter().map(|(name, weight)| whole(rows.clone(), self.slots[name], *weight));
        batch.segments.extend(segments);
    }

    /// Logits of the last token of every prompt; prompts are cut where the batch is full.
    fn prompts(&mut self, cases: &[Case]) -> Vec<Vec<f32>> {
        let (mut logits, mut batch) = (Vec::new(), Batch::default());
        for (sequence, case) in cases.iter().enumerate() {
            let mut first = 0;
            while first < case.prompt.len() {
                let end = case.prompt.len().min(first + ROWS_MAX - batch.tokens.len());
                self.push(&mut batch, case, [sequence, cases.len()], first, &case.prompt[first..end]);
                first = end;
                if first == case.prompt.len() {
                    batch.samples.push(SampleRequest::greedy(batch.tokens.len() as u32 - 1));
                }
                if batch.tokens.len() == ROWS_MAX {
                    logits.extend(self.step(&std::mem::take(&mut batch)));
                }
            }
        }
        logits.extend(self.step(&batch));
        logits
    }

    fn step(&mut self, batch: &Batch) -> Vec<Vec<f32>> {
        let started = Instant::now();
        let logits = self.runner.step_logits(batch).unwrap();
        println!("  {} rows of {} sequences: {:.0?}", batch.tokens.len(), batch.sequences.len(), started.elapsed());
        logits.chunks_exact(self.runner.shape().vocabulary as usize).map(<[f32]>::to_vec).collect()
    }
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).rev().max_by(|one, other| logits[*one].total_cmp(&logits[*other])).unwrap() as u32
}

/// Distances, by what was compared.
#[derive(Default)]
struct Errors {
    count: usize,
    sum: f64,
    most: f64,
}

impl Errors {
    fn add(&mut self, error: f64) {
        // Not `max`, which would let a NaN pass.
        self.most = if error <= self.most { self.most } else { error };
        (self.count, self.sum) = (self.count + 1, self.sum + error);
    }

    fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    fn are_within(&self, [most, mean]: [f64; 2]) -> bool {
        self.count > 0 && self.most < most && self.mean() < mean
    }
}

mod emulated {
    use super::*;

    #[test]
    #[ignore = "many minutes of emulation: `cargo xtask test --stage cuda-goldens`"]
    fn every_golden_is_met() {
        let test = "every_golden_is_met";
        let Some(path) = demo_base() else { return skip(test, "the demo base is not in the cache") };
        in_a_child(test, &[&[("EMU_SEED", "0"), ("EMU_MEMORY_BYTES", "1073741824")]], || {
            let (golden, adapters) = folders();
            let cases = cases(&golden);
            let base = Base::open(&path).unwrap();
            let mut bench = Bench::new(&base, &adapters, &cases);
            let found = bench.prompts(&cases);
            assert_eq!(found.len(), cases.len());
            let (mut tops, mut logits, mut misses) = (Errors::default(), Errors::default(), Vec::new());
            let mut configs = BTreeMap::<&str, Errors>::new();
            for (case, found) in cases.iter().zip(&found) {
                let normaliser = kernels::log_sum_exp(found) - case.log_sum_exp;
                for (id, logit) in &case.top {
                    let error = (f64::from(found[*id]) - logit - normaliser).abs();
                    tops.add(error);
                    configs.entry(&case.config).or_default().add(error);
                }
                for (found, expected) in case.logits.iter().flat_map(|expected| found.iter().zip(expected)) {
                    logits.add(f64::from((found - expected).abs()));
                }
                if case.margin > MARGIN && best(found) as usize != case.top[0].0 {
                    misses.push(format!("{}: the first token is {}", case.name, best(found)));
                }
            }
            for (config, errors) in configs {
                let (prompts, mean) = (errors.count / 20, errors.mean());
                println!("  {config}: {prompts} prompts, largest {:.4}, mean {mean:.4}", errors.most);
            }
            println!("  {} log-probabilities: largest {:.4}, mean {:.4}", tops.count, tops.most, tops.mean());
            println!("  {} logits: largest {:.4}, mean {:.4}", logits.count, logits.most, logits.mean());
            let [same, near] = greedy(&mut bench, &cases, &found, &mut misses);
            println!("  {same} greedy tokens are the golden's, {near} others lay where two were near");
            assert!(misses.is_empty(), "{misses:#?}");
            assert!(tops.are_within(TOP_TOLERANCE) && logits.are_within(LOGIT_TOLERANCE));
        });
    }

    /// Goes on with the goldens' own tokens, so that one that changed places with its neighbour spoils nothing after it.
    fn greedy(bench: &mut Bench, cases: &[Case], first: &[Vec<f32>], misses: &mut Vec<String>) -> [usize; 2] {
        let going: Vec<usize> = (0..cases.len()).filter(|case| !cases[*case].greedy.is_empty()).collect();
        let mut logits: Vec<Vec<f32>> = going.iter().map(|case| first[*case].clone()).collect();
        let mut counts = [0, 0];
        for at in 0..GREEDY_TOKENS {
            let mut batch = Batch::default();
            for (row, (case, logits)) in going.iter().zip(&logits).enumerate() {
                let (sequence, case) = (*case, &cases[*case]);
                let (expected, margin) = case.greedy[at];
                match best(logits) {
                    found if found == expected => counts[0] += 1,
                    _ if margin < MARGIN => counts[1] += 1,
                    found => misses.push(format!("{}: token {at} is {found}, not {expected}", case.name)),
                }
                bench.push(&mut batch, case, [sequence, cases.len()], case.prompt.len() + at, &[expected]);
                batch.samples.push(SampleRequest::greedy(row as u32));
            }
            if at + 1 < GREEDY_TOKENS {
                logits = bench.step(&batch);
            }
        }
        counts
    }
}
