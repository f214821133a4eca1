//! What every [`ModelRunner`] must do, as checks that its tests run: the fake one here, the others in their crates.

use std::sync::Arc;
use std::time::Duration;

use types::{Digest, Grants, Plan, PlanEntry, PlanLimits, Prompt, Sampling, ValidPlan};

use crate::{
    Activation, Continuation, Engine, EngineConfig, ModelRunner, OutputConstraint, OutputState, SpeculationConfig,
    Submission, Terms, TokenEvent, TokenMask, TokenStream,
};

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
/// together, from the first token on or from others, greedily and drawn with every penalty, freely and kept to a rhythm, gives the same tokens alone, with all others in the same batch, with its
/// prompt cut into small pieces, over KV that it shares with others that were asked the same, over KV that was kept, and
/// with its next tokens guessed.
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
    let plain = EngineConfig {
        speculation: SpeculationConfig { draft_tokens_max: 0, row_cost_percent: 0 },
        waiting_requests_max: 3 * requests.len(),
        ..EngineConfig::default()
    };
    let one_at_a_time = EngineConfig { running_sequences_max: 1, ..plain.clone() };
    let alone: Vec<_> = requests
        .iter()
        .map(|request| generate(make(), &one_at_a_time, input, std::slice::from_ref(request), Times::ONCE))
        .collect::<Result<Vec<_>, _>>()?
        .concat();
    let speculation = SpeculationConfig { draft_tokens_max: 4, row_cost_percent: 0 };
    let passes = [
        ("together", plain.clone(), Times::ONCE),
        ("in pieces", EngineConfig { step_rows_max: Some(3), ..plain.clone() }, Times::ONCE),
        ("three times at once", plain.clone(), Times { copies: 3, rounds: 1 }),
        ("again", plain.clone(), Times { copies: 1, rounds: 2 }),
        ("guessing", EngineConfig { speculation, ..plain }, Times { copies: 2, rounds: 2 }),
    ];
    for (how, config, times) in passes {
        let outputs = generate(make(), &config, input, &requests, times)?;
        let asked = requests.iter().zip(&alone).cycle();
        for ((request, alone), other) in asked.zip(&outputs) {
            if alone != other {
                return Err(format!("{request:?} gives {alone:?} alone and {other:?} {how}"));
            }
        }
    }
    Ok(())
}

/// How often each request is made.
#[derive(Clone, Copy)]
struct Times {
    /// In one submission.
    copies: usize,
    /// One after the other.
    rounds: usize,
}

impl Times {
    const ONCE: Self = Self { copies: 1, rounds: 1 };
}

#[derive(Clone, Debug)]
struct Request {
    prompt: Vec<u32>,
    adapters: Vec<Digest>,
    activations: Vec<Activation>,
    sampling: Sampling,
    constrained: bool,
}

/// Every prompt with every composition, greedily; and drawn, with all that acts on a draw, under all adapters.
fn requests<A>(input: &ConformanceInput<A>) -> Vec<Request> {
    let all: Vec<Digest> = input.adapters.iter().map(|(digest, _)| *digest).collect();
    let mut ways = vec![(Vec::new(), Sampling::default()), (all.clone(), Sampling::default()), (all.clone(), drawn())];
    ways.extend(all.iter().map(|digest| (vec![*digest], Sampling::default())));
    let with = |prompt: &Vec<u32>| {
        let request = |adapters: &[Digest], activations, sampling: &Sampling| Request {
            constrained: false,
            prompt: prompt.clone(),
            adapters: adapters.to_vec(),
            activations,
            sampling: sampling.clone(),
        };
        let at_once = ways.iter().map(|(adapters, sampling)| request(adapters, Vec::new(), sampling));
        let later = beginnings(prompt.len(), &all).into_iter();
        let later = later.map(|begin| request(&all, begin, &Sampling::default()));
        let kept = [Sampling::default(), drawn()];
        let kept = kept.map(|sampling| Request { constrained: true, ..request(&all, Vec::new(), &sampling) });
        at_once.chain(later).chain(kept).collect::<Vec<_>>()
    };
    input.prompts.iter().flat_map(with).collect()
}

/// Ways in which adapters can begin in a prompt of so many tokens: the first of them in the middle, at the last token or
/// never, the others before it, with it or at once.
fn beginnings(prompt_tokens: usize, adapters: &[Digest]) -> Vec<Vec<Activation>> {
    let small = |position: usize| u32::try_from(position).unwrap_or(u32::MAX);
    let (middle, last) = (small(prompt_tokens / 2), small(prompt_tokens.saturating_sub(1)));
    let starts = [[Some(middle), Some(middle / 2)], [Some(last), Some(0)], [None, Some(last)], [Some(middle), None]];
    let begin = |starts: [Option<u32>; 2]| {
        let starts = starts.into_iter().cycle();
        adapters
            .iter()
            .zip(starts)
            .map(|(adapter, first_token)| Activation { adapter: *adapter, first_token })
            .collect()
    };
    starts.into_iter().map(begin).collect()
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

/// One pass over all requests; their outputs, all first copies, then all second ones, and so on.
fn generate<R: ModelRunner>(
    runner: R,
    config: &EngineConfig,
    input: &ConformanceInput<R::Adapter>,
    requests: &[Request],
    times: Times,
) -> Result<Vec<Vec<u32>>, String> {
    let clock = Arc::new(|| Duration::ZERO);
    let (handle, mut engine) = Engine::new(runner, config.clone(), clock).map_err(|error| error.to_string())?;
    let mut outputs = Vec::new();
    for _ in 0..times.rounds {
        let mut streams = Vec::new();
        for request in requests {
            let vocabulary = handle.shape().vocabulary;
            let copies = (0..times.copies).map(|_| submission(input, request, vocabulary));
            let copies = copies.collect::<Result<Vec<_>, _>>()?;
            streams.push(handle.submit_all(copies).map_err(|error| error.to_string())?);
        }
        engine.step(Duration::ZERO);
        while !engine.is_idle() {
            engine.step(Duration::ZERO);
        }
        engine.check_integrity()?;
        for copy in 0..times.copies {
            let of_copy = streams.iter_mut().filter_map(|streams| streams.get_mut(copy));
            for (stream, request) in of_copy.zip(requests) {
                let output = read(stream)?;
                if request.constrained && !keeps_rhythm(&output) {
                    return Err(format!("{request:?} gives {output:?}, which its mask does not allow"));
                }
                outputs.push(output);
            }
        }
    }
    Ok(outputs)
}

fn read(stream: &mut TokenStream) -> Result<Vec<u32>, String> {
    let mut output = Vec::new();
    while let Some(event) = stream.try_recv() {
        match event {
            TokenEvent::Token { id, .. } => output.push(id),
            TokenEvent::Finished { .. } => {}
            TokenEvent::Failed(why) => return Err(why.to_string()),
        }
    }
    Ok(output)
}

/// Adapters at different weights, so that a mixed-up weight shows.
fn submission<A>(input: &ConformanceInput<A>, request: &Request, vocabulary: u32) -> Result<Submission<A>, String> {
    let Request { prompt, adapters, activations, sampling, constrained } = request;
    let mut plan = Plan::new(Prompt::Tokens(prompt.clone()));
    let weights = [1.0, -0.5, 0.75].into_iter().cycle();
    plan.composition =
        adapters.iter().zip(weights).map(|(d, weight)| PlanEntry::whole(d.to_string(), weight)).collect();
    plan.sampling = sampling.clone();
    plan.stop.ignore_eos = true;
    plan.token_budget = Some(input.output_tokens);
    let limits = PlanLimits { composition_entries_max: adapters.len(), ..PlanLimits::default() };
    let plan = ValidPlan::check(plan, &ByDigest, &limits).map_err(|error| error.to_string())?;
    let terms = Terms::default();
    let (prompt, adapters, activations) = (prompt.clone(), input.adapters.clone(), activations.clone());
    let continues = Continuation::default();
    let rhythm = || -> Box<dyn OutputConstraint> { Box::new(Rhythm { vocabulary, tokens: 0 }) };
    let constraint = constrained.then(rhythm);
    Ok(Submission { plan, prompt, adapters, activations, continues, constraint, seed: 5, terms })
}

/// Every third token, beginning with another one each time.
#[derive(Debug)]
struct Rhythm {
    vocabulary: u32,
    tokens: u32,
}

impl OutputConstraint for Rhythm {
    fn mask(&mut self) -> Arc<TokenMask> {
        let mut words = vec![0; self.vocabulary.div_ceil(32) as usize];
        for id in (0..self.vocabulary).filter(|id| id % 3 == self.tokens % 3) {
            words.get_mut(id as usize / 32).into_iter().for_each(|word| *word |= 1 << (id % 32));
        }
        Arc::new(TokenMask::known(words))
    }

    fn push(&mut self, id: u32) -> Result<OutputState, String> {
        if id % 3 != self.tokens % 3 {
            return Err(format!("token {id} after {} others", self.tokens));
        }
        self.tokens += 1;
        Ok(OutputState::Open)
    }
}

fn keeps_rhythm(output: &[u32]) -> bool {
    (0..).zip(output).all(|(place, id): (u32, _)| id % 3 == place % 3)
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
            check_runner(|| FakeRunner::new(shape(kv_blocks)).echoing(3), &input()).expect("conforms");
            check_runner(|| FakeRunner::new(shape(kv_blocks)).overlapping(), &input()).expect("conforms");
            check_runner(|| FakeRunner::new(shape(kv_blocks)).separating(), &input()).expect("conforms");
            check_runner(|| FakeRunner::new(shape(kv_blocks)).separating().echoing(3), &input()).expect("conforms");
            check_runner(|| FakeRunner::new(shape(kv_blocks)).with_adapters_in_blocks(2), &input()).expect("conforms");
        }
    }

    #[test]
    fn a_failure_is_reported() {
        let error = check_runner(|| FakeRunner::new(shape(200)).failing_at([5]), &input()).expect_err("it fails");
        assert!(error.contains("told to fail"), "{error}");
    }
}
