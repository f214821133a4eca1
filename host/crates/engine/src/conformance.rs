//! What every [`ModelRunner`] must do, as checks that its tests run: the fake one here, the others in their crates.

use std::sync::Arc;
use std::time::Duration;

use types::{Digest, Grants, Plan, PlanEntry, PlanLimits, Prompt, Sampling, ValidPlan};

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

/// That output depends on prompt, composition and sampling alone: each prompt under the base, each adapter and all of them
/// together, greedily and drawn with every penalty, gives the same tokens alone, with all others in the same batch, and with its
/// prompt cut into small pieces.
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
        for (request, (alone, other)) in requests.iter().zip(alone.iter().zip(&outputs)) {
            if alone != other {
                return Err(format!("{request:?} gives {alone:?} alone and {other:?} {how}"));
            }
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
struct Request {
    prompt: Vec<u32>,
    adapters: Vec<Digest>,
    sampling: Sampling,
}

/// Every prompt with every composition, greedily; and drawn, with all that acts on a draw, under all adapters.
fn requests<A>(input: &ConformanceInput<A>) -> Vec<Request> {
    let all: Vec<Digest> = input.adapters.iter().map(|(digest, _)| *digest).collect();
    let mut ways = vec![(Vec::new(), Sampling::default()), (all.clone(), Sampling::default()), (all.clone(), drawn())];
    ways.extend(all.into_iter().map(|digest| (vec![digest], Sampling::default())));
    let with = |prompt: &Vec<u32>| {
        let request = |(adapters, sampling): &(Vec<Digest>, Sampling)| Request {
            prompt: prompt.clone(),
            adapters: adapters.clone(),
            sampling: sampling.clone(),
        };
        ways.iter().map(request).collect::<Vec<_>>()
    };
    input.prompts.iter().flat_map(with).collect()
}

fn drawn() -> Sampling {
    Sampling {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.01,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.4,
        logit_bias: vec![(0, -2.0), (1, 2.0)],
        ..Sampling::default()
    }
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
    for request in requests {
        let submission = submission(input, request)?;
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
fn submission<A>(input: &ConformanceInput<A>, request: &Request) -> Result<Submission<A>, String> {
    let Request { prompt, adapters, sampling } = request;
    let mut plan = Plan::new(Prompt::Tokens(prompt.clone()));
    let weights = [1.0, -0.5, 0.75].into_iter().cycle();
    plan.composition =
        adapters.iter().zip(weights).map(|(d, weight)| PlanEntry::whole(d.to_string(), weight)).collect();
    plan.sampling = sampling.clone();
    plan.stop.ignore_eos = true;
    plan.token_budget = Some(input.output_tokens);
    let limits = PlanLimits { composition_entries_max: adapters.len(), ..PlanLimits::default() };
    let plan = ValidPlan::check(plan, &ByDigest, &limits).map_err(|error| error.to_string())?;
    Ok(Submission { plan, prompt: prompt.clone(), adapters: input.adapters.clone(), seed: 5 })
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
