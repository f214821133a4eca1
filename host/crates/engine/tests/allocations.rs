//! A step that decodes allocates nothing in the engine: counted by an allocator, with a runner that does not either.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;
use std::time::Duration;

use engine::{
    Activation, Batch, Continuation, Engine, EngineConfig, ModelRunner, RunnerError, RunnerShape, SampledToken, Slot,
    SpeculationConfig, Submission, Terms, TokenEvent, TokenStream,
};
use types::{Digest, Grants, Plan, PlanEntry, PlanLimits, Prompt, ValidPlan};

/// Counts upwards, again and again: something to guess, rightly and at the turn wrongly.
struct Counting;

impl ModelRunner for Counting {
    type Adapter = ();

    fn shape(&self) -> RunnerShape {
        RunnerShape {
            block_tokens: 16,
            kv_blocks: 6000,
            adapter_slots: 8,
            context_tokens_max: 3000,
            batch_rows_max: 256,
            vocabulary: 50,
        }
    }

    fn fingerprint(&self) -> Digest {
        Digest::of(b"counting")
    }

    fn load_adapter(&mut self, _: Slot, _: &Arc<()>, _: &[u32]) -> Result<(), RunnerError> {
        Ok(())
    }

    fn unload_adapter(&mut self, _: Slot) {}

    fn step(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        let next = |row: u32| (batch.tokens[row as usize] + 1) % 50;
        sampled.extend(batch.samples.iter().map(|sample| SampledToken { id: next(sample.row), ..Default::default() }));
        Ok(())
    }
}

struct Everything;

impl Grants for Everything {
    fn adapter(&self, name: &str) -> Option<Digest> {
        Some(Digest::of(name.as_bytes()))
    }

    fn has_template(&self, _: &str) -> bool {
        false
    }
}

fn submission(number: u32, penalised: bool) -> Submission<()> {
    let prompt: Vec<u32> = (0..20 + number).map(|place| place % 50).collect();
    let mut plan = Plan::new(Prompt::Tokens(prompt.clone()));
    let names = [format!("adapter {}", number % 5), "of all".to_owned()];
    plan.composition = names.iter().map(|name| PlanEntry::whole(name, 0.5)).collect();
    plan.token_budget = Some(2000);
    plan.stop.ignore_eos = true;
    if penalised {
        plan.sampling.presence_penalty = 0.5;
    }
    let plan = ValidPlan::check(plan, &Everything, &PlanLimits::default()).unwrap();
    let adapters = names.iter().map(|name| (Digest::of(name.as_bytes()), Arc::new(()))).collect();
    let tenant = Digest::of(&[(number % 3) as u8]);
    // Half of them begin in mid-stream, one in four never.
    let first_token = (number % 4 != 1).then_some(number % 2 * 7);
    let activations = vec![Activation { adapter: Digest::of(names[0].as_bytes()), first_token }];
    let terms = Terms { tenant, kv_salt: tenant, ..Terms::default() };
    let continues = Continuation::default();
    Submission { plan, prompt, adapters, activations, continues, constraint: None, seed: 1, terms }
}

fn read(streams: &mut [TokenStream]) -> usize {
    let mut tokens = 0;
    for stream in streams {
        while let Some(TokenEvent::Token { .. }) = stream.try_recv() {
            tokens += 1;
        }
    }
    tokens
}

#[test]
fn a_step_that_decodes_allocates_nothing() {
    for draft_tokens_max in [0, 6] {
        let speculation = SpeculationConfig { draft_tokens_max, row_cost_percent: 5 };
        let config = EngineConfig { speculation, ..EngineConfig::default() };
        let (handle, mut engine) = Engine::new(Counting, config, Arc::new(|| Duration::ZERO)).unwrap();

        let mut streams: Vec<_> =
            (0..40).map(|number| handle.submit(submission(number, number % 4 == 0)).unwrap()).collect();
        let mut step = |number: u64, engine: &mut Engine<Counting>| {
            engine.step(Duration::from_millis(number));
            read(&mut streams)
        };
        // The channels' memory is in use, and every token of the vocabulary was seen.
        for number in 0..100 {
            step(number, &mut engine);
        }
        let mut tokens = 0;
        let counted = allocation_counter::measure(|| {
            for number in 100..200 {
                tokens += step(number, &mut engine);
            }
        });
        assert!(tokens >= 100 * 40, "{tokens} tokens in 100 steps");
        assert_eq!(counted.count_total, 0, "{draft_tokens_max} guesses: {counted:?}");
        assert_eq!(handle.stats().draft_tokens > 0, draft_tokens_max > 0);
        assert_eq!(engine.check_integrity(), Ok(()));
    }
}
