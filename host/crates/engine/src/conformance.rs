//! What every [`ModelRunner`] must do, as checks that its tests run: the fake one here, the others in their crates.

use std::sync::Arc;
use std::time::Duration;

use types::{Digest, Grants, Plan, PlanEntry, PlanLimits, Prompt, ValidPlan};

use crate::{Engine, EngineConfig, ModelRunner, Submission, TokenEvent};

/// What a runner is tried with.
pub struct ConformanceInput<A> {
    /// Prompts that fit its context together with the output.
    pub prompts: Vec<Vec<u32>>,
    /// At least two adapters that it can hold at the same time.
    pub adapters: Vec<(Digest, Arc<A>)>,
    /// Tokens to generate after each prompt.
    pub output_tokens: u32,
}

/// That greedy output depends on prompt and composition alone: each prompt under the base, each adapter and all of them
/// together gives the same tokens alone, with all others in the same batch, and with its prompt cut into small pieces.
///
/// `make` gives a fresh runner for each pass.
///
/// # Errors
/// The first output that differs, or the first failure.
pub fn check_runner<R: ModelRunner>(
    mut make: impl FnMut() -> R,
    input: &ConformanceInput<R::Adapter>,
) -> Result<(), String> {
    let requests = requests(input);
    let one_at_a_time = EngineConfig { running_sequences_max: 1, ..EngineConfig::default() };
    let together = EngineConfig::default();
    let in_pieces = EngineConfig { step_rows_max: Some(3), ..EngineConfig::default() };
    let alone = generate(make(), one_at_a_time, input, &requests)?;
    for (how, config) in [("together", together), ("in pieces", in_pieces)] {
        let outputs = generate(make(), config, input, &requests)?;
        for ((prompt, adapters), (alone, other)) in requests.iter().zip(alone.iter().zip(&outputs)) {
            if alone != other {
                return Err(format!("{prompt:?} under {adapters:?} gives {alone:?} alone and {other:?} {how}"));
            }
        }
    }
    Ok(())
}

type Request = (Vec<u32>, Vec<Digest>);

/// Every prompt with every composition.
fn requests<A>(input: &ConformanceInput<A>) -> Vec<Request> {
    let all: Vec<Digest> = input.adapters.iter().map(|(digest, _)| *digest).collect();
    let mut compositions = vec![Vec::new(), all.clone()];
    compositions.extend(all.into_iter().map(|digest| vec![digest]));
    let with = |prompt: &Vec<u32>| compositions.iter().map(|c| (prompt.clone(), c.clone())).collect::<Vec<_>>();
    input.prompts.iter().flat_map(with).collect()
}

/// One pass over all requests; their outputs.
fn generate<R: ModelRunner>(
    runner: R,
    config: EngineConfig,
    input: &ConformanceInput<R::Adapter>,
    requests: &[Request],
) -> Result<Vec<Vec<u32>>, String> {
    let config = EngineConfig { waiting_requests_max: requests.len(), ..config };
    let clock = Arc::new(|| Duration::ZERO);
    let (handle, mut engine) = Engine::new(runner, config, clock).map_err(|error| error.to_string())?;
    let mut streams = Vec::new();
    for (prompt, adapters) in requests {
        let submission = submission(input, prompt, adapters)?;
        streams.push(handle.submit(submission).map_err(|error| error.to_string())?);
    }
    engine.step(Duration::ZERO);
    while !engine.is_idle() {
        engine.step(Duration::ZERO);
    }
    let mut outputs = Vec::new();
    for mut stream in streams {
        let mut output = Vec::new();
        while let Some(event) = stream.try_recv() {
            match event {
                TokenEvent::Token { id, .. } => output.push(id),
                TokenEvent::Finished { .. } => {}
                TokenEvent::Failed(why) => return Err(why.to_string()),
            }
        }
        outputs.push(output);
    }
    Ok(outputs)
}

/// Adapters at different weights, so that a mixed-up weight shows.
fn submission<A>(input: &ConformanceInput<A>, prompt: &[u32], adapters: &[Digest]) -> Result<Submission<A>, String> {
    let mut plan = Plan::new(Prompt::Tokens(prompt.to_vec()));
    let weights = [1.0, -0.5, 0.75].into_iter().cycle();
    plan.composition =
        adapters.iter().zip(weights).map(|(d, weight)| PlanEntry::whole(d.to_string(), weight)).collect();
    plan.stop.ignore_eos = true;
    plan.token_budget = Some(input.output_tokens);
    let limits = PlanLimits { composition_entries_max: adapters.len(), ..PlanLimits::default() };
    let plan = ValidPlan::check(plan, &ByDigest, &limits).map_err(|error| error.to_string())?;
    Ok(Submission { plan, prompt: prompt.to_vec(), adapters: input.adapters.clone(), seed: 0 })
}

/// Grants what is named by its digest.
struct ByDigest;

impl Grants for ByDigest {
    fn adapter(&self, name: &str) -> Option<Digest> {
        name.parse().ok()
    }

    fn has_template(&self, _: &str) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FakeAdapter, FakeRunner, RunnerShape};

    fn shape(kv_blocks: u32) -> RunnerShape {
        RunnerShape {
            block_tokens: 4,
            kv_blocks,
            adapter_slots: 3,
            context_tokens_max: 64,
            batch_rows_max: 64,
            vocabulary: 100,
        }
    }

    fn input() -> ConformanceInput<FakeAdapter> {
        let adapter = |value: u64| (Digest::of(&value.to_le_bytes()), Arc::new(FakeAdapter { value, broken: false }));
        let prompts = vec![vec![1], (0..30).collect(), vec![7; 5]];
        ConformanceInput { prompts, adapters: (0..3).map(adapter).collect(), output_tokens: 12 }
    }

    #[test]
    fn the_fake_runner_conforms_with_much_and_little_memory() {
        for kv_blocks in [200, 20] {
            check_runner(|| FakeRunner::new(shape(kv_blocks)), &input()).expect("conforms");
        }
    }

    #[test]
    fn a_failure_is_reported() {
        let error = check_runner(|| FakeRunner::new(shape(200)).failing_at([5]), &input()).expect_err("it fails");
        assert!(error.contains("told to fail"), "{error}");
    }
}
