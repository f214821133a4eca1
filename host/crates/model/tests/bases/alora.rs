//! An activated adapter against what PEFT computes with it (`tests/bases/alora.py`): where it begins, the logits before, at
//! and after that, beside an ordinary adapter too; and through the engine, over KV that the base or others have computed.

use std::time::Duration;

use engine::{Activation, Continuation, Engine, EngineConfig, Submission, Terms, TokenEvent};
use types::{Digest, Grants, Plan, PlanEntry, PlanLimits, Prompt, ValidPlan};

use super::*;

fn folder() -> PathBuf {
    fixtures().join("../alora")
}

struct Case {
    name: String,
    prompt: Vec<u32>,
    /// What PEFT found.
    start: Option<u32>,
    /// Positions whose logits are known.
    logits_at: Vec<u32>,
    greedy: Vec<u32>,
}

fn cases() -> Vec<Case> {
    let golden: Value = serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap();
    let case = |(name, case): (&String, &Value)| Case {
        name: name.clone(),
        prompt: ids(&case["ids"]),
        start: case["start"].as_u64().map(|start| start as u32),
        logits_at: ids(&case["logits_at"]),
        greedy: ids(&case["greedy"]),
    };
    golden["prompts"].as_object().unwrap().iter().map(case).collect()
}

fn runner(base: &Base, precision: Precision, kv_blocks: u32) -> CpuRunner {
    let (block_tokens, batch_rows_max) = (BLOCK_TOKENS as u32, BATCH_ROWS_MAX as u32);
    let config = CpuRunnerConfig {
        precision,
        block_tokens,
        kv_blocks,
        adapter_slots: 2,
        batch_rows_max,
        threads: 2,
        prompts: Prompts::Auto,
    };
    CpuRunner::new(base, config).unwrap()
}

/// Logits at these positions of a prompt, with the adapter in slot 0 from `start` on and, if asked, the one in slot 1.
fn logits(runner: &mut CpuRunner, case: &Case, at: &[u32], beside: bool) -> Vec<f32> {
    let mut found = Vec::new();
    let end = case.prompt.len() as u32;
    for first in (0..end).step_by(BATCH_ROWS_MAX) {
        let positions: Vec<u32> = (first..end.min(first + BATCH_ROWS_MAX as u32)).collect();
        let rows = positions.len() as u32;
        let segment = |slot, begins: u32| {
            let rows = begins.saturating_sub(first)..rows;
            let (modules, layers) = (ModuleSet::ALL, LayerRange::ALL);
            (!rows.is_empty()).then_some(LoraSegment { rows, slot: Slot(slot), weight: 1.0, modules, layers })
        };
        let activated = case.start.and_then(|start| segment(0, start));
        let batch = Batch {
            tokens: case.prompt[first as usize..][..rows as usize].to_vec(),
            sequences: vec![BatchSequence { rows: 0..rows, blocks: 0..KV_BLOCKS as u32 }],
            block_tables: (0..KV_BLOCKS as u32).collect(),
            segments: activated.into_iter().chain(if beside { segment(1, 0) } else { None }).collect(),
            samples: positions
                .iter()
                .filter(|position| at.contains(position))
                .map(|position| SampleRequest::greedy(position - first))
                .collect(),
            positions,
            ..Batch::default()
        };
        found.extend(runner.step_logits(&batch).unwrap());
    }
    found
}

fn golden_logits(key: &str) -> Vec<f32> {
    let file = std::fs::read(folder().join("logits.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let bytes = tensors.tensor(key).unwrap().data().to_vec();
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn it_begins_where_peft_begins_and_computes_what_peft_computes() {
    let base = Base::open(&fixtures().join("llama")).unwrap();
    for precision in [Precision::F32, Precision::Quantised] {
        let activated = adapter(&base, &folder().join("adapter"), precision);
        let invocation = activated.invocation().expect("it is activated");
        let mut runner = runner(&base, precision, KV_BLOCKS as u32);
        runner.load_adapter(Slot(0), &activated, &[]).unwrap();
        runner.load_adapter(Slot(1), &adapter(&base, &fixtures().join("llama-adapter"), precision), &[]).unwrap();
        let mut worst = 0.0f32;
        for case in cases() {
            assert_eq!(invocation.last_start(&case.prompt), case.start, "{}", case.name);
            let last = [case.prompt.len() as u32 - 1];
            for (of, at) in [("alora", &case.logits_at[..]), ("both", &last)] {
                let ours = logits(&mut runner, &case, at, of == "both");
                let theirs = golden_logits(&format!("{of}/{}", case.name));
                assert_eq!(ours.len(), theirs.len(), "{} {of}", case.name);
                let differences = ours.iter().zip(&theirs).map(|(ours, theirs)| (ours - theirs).abs());
                let (difference, tolerance) = match precision {
                    Precision::F32 => (differences.fold(0.0, f32::max), TOLERANCE),
                    Precision::Quantised | Precision::Bf16 => {
                        ((differences.map(|d| d * d).sum::<f32>() / theirs.len() as f32).sqrt(), TOLERANCE_QUANTISED)
                    }
                };
                worst = worst.max(difference);
                assert!(difference < tolerance, "{precision} {} {of}: logits differ by {difference}", case.name);
            }
        }
        println!("{precision}: logits differ by at most {worst}");
    }
}

struct ByDigest;

impl Grants for ByDigest {
    fn adapter(&self, name: &str) -> Option<Digest> {
        name.parse().ok()
    }

    fn has_template(&self, _: &str) -> bool {
        false
    }
}

/// To the golden's length, greedily: the base if there is no adapter.
fn submission(case: &Case, adapter: Option<&Arc<LoraAdapter>>) -> Submission<LoraAdapter> {
    let digest = Digest::of(b"the activated one");
    let mut plan = Plan::new(Prompt::Tokens(case.prompt.clone()));
    plan.composition = adapter.iter().map(|_| PlanEntry::whole(digest.to_string(), 1.0)).collect();
    plan.sampling.temperature = 0.0;
    plan.stop.ignore_eos = true;
    plan.token_budget = Some(case.greedy.len() as u32);
    let activation = |adapter: &Arc<LoraAdapter>| {
        let first_token = adapter.invocation().unwrap().last_start(&case.prompt);
        Activation { adapter: digest, first_token }
    };
    Submission {
        plan: ValidPlan::check(plan, &ByDigest, &PlanLimits::default()).unwrap(),
        prompt: case.prompt.clone(),
        adapters: adapter.map(|adapter| (digest, Arc::clone(adapter))).into_iter().collect(),
        activations: adapter.map(activation).into_iter().collect(),
        continues: Continuation::default(),
        constraint: None,
        seed: 0,
        terms: Terms::default(),
    }
}

/// What PEFT's `generate` gives: alone; all in one batch; in small pieces with so little memory that they give way to each
/// other; and over KV that the base computed.
#[test]
fn it_generates_what_peft_generates_however_it_is_scheduled() {
    let base = Base::open(&fixtures().join("llama")).unwrap();
    let activated = adapter(&base, &folder().join("adapter"), Precision::F32);
    let cases = cases();
    let tokens: usize = cases.iter().map(|case| case.prompt.len()).sum();
    for (how, kv_blocks, running, rows, rounds) in
        [("alone", 64, 1, 64, 1), ("together", 64, 32, 64, 1), ("cramped", 14, 32, 20, 1), ("again", 96, 32, 64, 3)]
    {
        let config =
            EngineConfig { running_sequences_max: running, step_rows_max: Some(rows), ..EngineConfig::default() };
        let runner = runner(&base, Precision::F32, kv_blocks);
        let (handle, mut engine) = Engine::new(runner, config, Arc::new(|| Duration::ZERO)).unwrap();
        for round in 0..rounds {
            let is_base = how == "again" && round == 0;
            let adapter = (!is_base).then_some(&activated);
            let before = handle.stats();
            let mut streams: Vec<_> =
                cases.iter().map(|case| handle.submit(submission(case, adapter)).unwrap()).collect();
            engine.step(Duration::ZERO);
            while !engine.is_idle() {
                engine.step(Duration::ZERO);
            }
            for (case, stream) in cases.iter().zip(&mut streams) {
                let mut output = Vec::new();
                while let Some(TokenEvent::Token { id, .. }) = stream.try_recv() {
                    output.push(id);
                }
                assert!(is_base || output == case.greedy, "{how} {}: {output:?} {:?}", case.name, case.greedy);
            }
            let stats = handle.stats();
            let found = (stats.prefix_tokens_found - before.prefix_tokens_found) as usize;
            match (how, round) {
                ("cramped", _) => assert!(stats.preemptions > 0),
                // Whole blocks of what lies before each invocation, the last token excepted.
                ("again", 1) => {
                    let shared =
                        |case: &Case| case.start.map_or(case.prompt.len() - 1, |start| start as usize) / BLOCK_TOKENS;
                    assert_eq!(found, cases.iter().map(|case| shared(case) * BLOCK_TOKENS).sum::<usize>());
                    assert!(found > tokens / 3, "{found} of {tokens}");
                }
                ("again", 2) => {
                    let shared = |case: &Case| (case.prompt.len() - 1) / BLOCK_TOKENS;
                    assert_eq!(found, cases.iter().map(|case| shared(case) * BLOCK_TOKENS).sum::<usize>());
                }
                _ => {}
            }
        }
    }
}
