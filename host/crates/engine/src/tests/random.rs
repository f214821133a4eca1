//! Random arrivals, hang-ups, deadlines, failures, tiny memories, several answers to one prompt, tenants, priorities and
//! guesses: whoever survives has the tokens it would have alone.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;

const NAMES: [&str; 5] = ["a0", "a1", "a2", "a3", "broken"];
const EOS: [u32; 1] = [11];

#[derive(Clone, Debug)]
struct Arrival {
    request: Request,
    choices: u64,
    /// The step before which it comes, and how many steps later its reader leaves.
    comes: u32,
    leaves: Option<u32>,
}

impl Arrival {
    /// Its requests: the same but for the seed.
    fn requests(&self) -> Vec<Request> {
        let seeded = |choice| Request { seed: self.request.seed.map(|seed| seed ^ choice), ..self.request.clone() };
        (0..self.choices).map(seeded).collect()
    }
}

#[derive(Clone, Debug)]
struct Case {
    shape: RunnerShape,
    running_sequences_max: usize,
    arrivals: Vec<Arrival>,
    failing: Vec<u64>,
    echo: Option<u32>,
    /// Whether steps overlap.
    overlaps: bool,
    /// Whether the runner tells drawn tokens from asked ones; steps do not overlap then.
    separates: bool,
    /// Blocks of an adapter, at most.
    adapter_blocks_max: u32,
    speculation: SpeculationConfig,
}

fn terms() -> impl Strategy<Value = Terms> {
    (0..3u8, -1..2i8, prop::bool::weighted(0.8)).prop_map(|(tenant, priority, speculation)| {
        let tenant = Digest::of(&[tenant]);
        Terms { tenant, kv_salt: tenant, priority, speculation, author: None, unload: priority == 1 }
    })
}

/// Many are alike, so that they find each other's KV.
fn prompts() -> impl Strategy<Value = Vec<u32>> {
    let common = (1..20usize).prop_map(|length| (0..length as u32).map(|place| place * 7 % VOCABULARY).collect());
    let common_then = (1..19usize, 0..VOCABULARY)
        .prop_map(|(length, last)| (0..length as u32).map(|place| place * 7 % VOCABULARY).chain([last]).collect());
    let looping = (1..20usize).prop_map(|length| (0..length as u32).map(|place| place % 4).collect());
    prop_oneof![prop::collection::vec(0..VOCABULARY, 1..20), common, common_then, looping]
}

fn requests() -> impl Strategy<Value = Request> {
    let adapters = prop_oneof![
        4 => Just(vec![]),
        // One in twenty adapters is broken.
        6 => prop::collection::vec((0..20usize, prop::sample::select(vec![1.0f32, 0.5, -2.0])), 1..4),
    ];
    // Where each of them begins: mostly at once, else anywhere in prompt or output, or never.
    let begin = prop_oneof![2 => Just(Some(0u32)), 2 => (0..24u32).prop_map(Some), 1 => Just(None)];
    let begin = prop::collection::vec(begin, NAMES.len() - 1);
    let seed = prop::option::of(any::<u64>());
    let deadline_ms = prop::option::weighted(0.1, 0..40u32);
    let stop = prop::option::of(0..VOCABULARY);
    let penalty = prop_oneof![4 => Just(0.0f32), 1 => Just(0.5f32)];
    let logprobs = prop::option::of(0..3u32);
    let rest = (penalty, logprobs, terms(), begin);
    (prompts(), 1..25u32, adapters, any::<bool>(), seed, any::<bool>(), stop, deadline_ms, rest).prop_map(
        |(prompt, output, adapters, narrow, seed, ignore_eos, stop, deadline_ms, rest)| {
            let adapters = adapters.into_iter().map(|(i, weight)| (NAMES[if i == 19 { 4 } else { i % 4 }], weight));
            let adapters = adapters.collect();
            let stop = stop.into_iter().collect();
            let (presence_penalty, logprobs, terms, begin) = rest;
            let begin = NAMES.into_iter().zip(begin).filter(|(_, first)| *first != Some(0)).collect();
            let one =
                Request { adapters, begin, narrow, seed, stop, ignore_eos, deadline_ms, ..request(prompt, output) };
            Request { presence_penalty, logprobs, terms, ..one }
        },
    )
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = (1..5u32, 20..60u32, 3..5u32, 21..60u32, 1..24u32).prop_map(
        |(block_tokens, kv_tokens, adapter_slots, context_tokens_max, batch_rows_max)| RunnerShape {
            block_tokens,
            kv_blocks: kv_tokens.div_ceil(block_tokens),
            adapter_slots,
            context_tokens_max,
            batch_rows_max,
            vocabulary: VOCABULARY,
        },
    );
    let leaves = prop::option::weighted(0.2, 0..20u32);
    let choices = prop_oneof![2 => Just(1u64), 1 => 2..4u64];
    let arrival = (requests(), choices, 0..30u32, leaves);
    let arrival = arrival.prop_map(|(request, choices, comes, leaves)| Arrival { request, choices, comes, leaves });
    let failing = prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(0..60u64, 1..3)];
    let speculation = (0..6u32, prop::sample::select(vec![0, 5, 50]))
        .prop_map(|(draft_tokens_max, row_cost_percent)| SpeculationConfig { draft_tokens_max, row_cost_percent });
    let echo = prop::option::of(1..6u32);
    let adapter_blocks_max = prop_oneof![1 => Just(0u32), 2 => 1..5u32];
    let rest = (echo, any::<bool>(), any::<bool>(), adapter_blocks_max, speculation);
    (shape, 1..10usize, prop::collection::vec(arrival, 1..16), failing, rest).prop_map(
        |(
            shape,
            running_sequences_max,
            arrivals,
            failing,
            (echo, overlaps, separates, adapter_blocks_max, speculation),
        )| Case {
            shape,
            running_sequences_max,
            arrivals,
            failing,
            echo,
            overlaps,
            separates: separates && !overlaps,
            adapter_blocks_max,
            speculation,
        },
    )
}

impl Case {
    fn runner(&self) -> FakeRunner {
        let runner = FakeRunner::new(self.shape).with_adapters_in_blocks(self.adapter_blocks_max);
        let runner = if self.separates { runner.separating() } else { runner };
        self.echo.map_or(runner.clone(), |echo| runner.echoing(echo))
    }

    fn rig(&self, runner: FakeRunner, running_sequences_max: usize, speculation: SpeculationConfig) -> Rig<FakeRunner> {
        let eos_token_ids = EOS.to_vec();
        let config = EngineConfig { eos_token_ids, running_sequences_max, speculation, ..EngineConfig::default() };
        Rig::new(runner, config)
    }

    /// What this request gives by itself in an engine that does nothing clever.
    fn alone(&self, request: &Request) -> Vec<TokenEvent> {
        let off = SpeculationConfig { draft_tokens_max: 0, row_cost_percent: 0 };
        let mut rig = self.rig(self.runner(), 1, off);
        let mut stream = rig.submit(&Request { deadline_ms: None, ..request.clone() });
        rig.finish();
        let events = events(&mut stream);
        let has_room = self.adapter_blocks_max == 0 || request.adapters.is_empty();
        if self.echo.is_none() && !self.separates && !is_broken(request) && has_room {
            let (expected, reason, usage) = request.expected(&self.shape, &EOS);
            assert_eq!(ids(&events), expected);
            assert_eq!(ending(events.last()), Some((reason, usage)));
        }
        events
    }
}

fn is_broken(request: &Request) -> bool {
    request.adapters.iter().any(|(name, _)| *name == "broken")
}

fn events(stream: &mut TokenStream) -> Vec<TokenEvent> {
    std::iter::from_fn(|| stream.try_recv()).collect()
}

fn ids(events: &[TokenEvent]) -> Vec<u32> {
    let id = |event: &TokenEvent| if let TokenEvent::Token { id, .. } = event { Some(*id) } else { None };
    events.iter().filter_map(id).collect()
}

fn ending(event: Option<&TokenEvent>) -> Option<(FinishReason, Usage)> {
    match event {
        Some(TokenEvent::Finished { reason, usage, .. }) => Some((*reason, *usage)),
        _ => None,
    }
}

/// Runs the case; the streams of those whose readers stayed, and what was counted.
fn run(case: &Case) -> (Vec<(Request, TokenStream)>, EngineStats) {
    let runner = case.runner().failing_at(case.failing.iter().copied());
    let runner = if case.overlaps { runner.overlapping() } else { runner };
    let mut rig = case.rig(runner, case.running_sequences_max, case.speculation);
    let mut streams: Vec<_> = case.arrivals.iter().map(|_| Vec::new()).collect();
    let mut sent = 0;
    for step in 0..60 {
        for (arrival, streams) in case.arrivals.iter().zip(&mut streams) {
            if arrival.comes == step {
                let requests = arrival.requests();
                match rig.handle.submit_all(requests.iter().map(Request::submission).collect()) {
                    Ok(given) => *streams = given,
                    Err(error) => {
                        let foreseen = matches!(error, SubmitError::DeadlineTooShort { .. });
                        assert!(foreseen && arrival.request.deadline_ms.is_some(), "{error}");
                    }
                }
                sent += streams.len();
            }
            if arrival.leaves.is_some_and(|after| arrival.comes + after <= step) {
                sent -= streams.len();
                streams.clear();
            }
        }
        rig.step();
        let stats = rig.handle.stats();
        assert!(stats.waiting + stats.running <= sent, "one that left is still there");
    }
    rig.finish();
    let both = case.arrivals.iter().zip(streams);
    let streams = both.flat_map(|(arrival, streams)| arrival.requests().into_iter().zip(streams)).collect();
    (streams, rig.handle.stats())
}

fn check(case: &Case, request: &Request, stream: &mut TokenStream) {
    let expected = case.alone(request);
    let found = events(stream);
    let (last, tokens) = found.split_last().expect("every stream ends");
    let is_prefix = expected.starts_with(tokens);
    let broken = is_broken(request);
    match last {
        // As it would alone.
        TokenEvent::Failed(GenerationError::NoRoom { .. }) => assert_eq!(found, expected),
        TokenEvent::Failed(why) => {
            assert!(is_prefix && (broken || why.to_string().contains("told to fail")), "{why}");
            assert!(!broken || tokens.is_empty());
        }
        TokenEvent::Finished { reason: FinishReason::Deadline, usage, .. } => {
            assert!(is_prefix && request.deadline_ms.is_some());
            assert_eq!(usage.completion_tokens as usize, tokens.len());
        }
        TokenEvent::Finished { .. } => {
            assert!(is_prefix && tokens.len() + 1 == expected.len() && !broken, "{found:?} for {expected:?}");
            assert_eq!(ending(Some(last)), ending(expected.last()));
        }
        TokenEvent::Token { .. } => unreachable!("not a last event"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn survivors_are_as_if_alone(case in cases()) {
        for (request, mut stream) in run(&case).0 {
            check(&case, &request, &mut stream);
        }
    }

    #[test]
    fn overlapping_steps_change_no_stream(case in cases()) {
        let calm = |overlaps| {
            let mut case = Case { overlaps, separates: false, failing: Vec::new(), ..case.clone() };
            for arrival in &mut case.arrivals {
                arrival.leaves = None;
                arrival.request.deadline_ms = None;
            }
            let all = run(&case).0.into_iter().map(|(_, mut stream)| {
                let events = events(&mut stream);
                // Times differ, and which of several adapters' failures came first.
                let is_failed = matches!(events.last(), Some(TokenEvent::Failed(_)));
                let tokens = events.iter().filter(|event| matches!(event, TokenEvent::Token { .. })).cloned();
                (tokens.collect::<Vec<_>>(), ending(events.last()), is_failed)
            });
            all.collect::<Vec<_>>()
        };
        prop_assert_eq!(calm(true), calm(false));
    }
}

/// The property above is worth something only if its cases meet what it is about.
#[test]
fn the_cases_meet_everything() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let all: Vec<EngineStats> =
        (0..100).map(|_| run(&cases().new_tree(&mut runner).expect("a case").current()).1).collect();
    let meet = |what: fn(&EngineStats) -> u64| all.iter().filter(|stats| what(stats) > 0).count();
    assert!(meet(|stats| stats.preemptions) > 20);
    let with_overlap =
        |what: fn(&EngineStats) -> bool| all.iter().filter(|s| s.steps_overlapped > 5 && what(s)).count();
    assert!(with_overlap(|_| true) > 30);
    assert!(with_overlap(|stats| stats.preemptions > 0) > 10);
    assert!(with_overlap(|stats| stats.draft_tokens > 0) > 10);
    assert!(with_overlap(|stats| stats.adapter_blocks > 0) > 8);
    assert!(meet(|stats| stats.prefix_tokens_found) > 50);
    assert!(meet(|stats| stats.draft_tokens_accepted) > 15);
    assert!(meet(|stats| stats.draft_tokens - stats.draft_tokens_accepted) > 15);
    assert!(meet(|stats| stats.deadlines_foreseen) > 0);
    assert!(meet(|stats| u64::from(stats.kv_blocks_idle)) > 50);
    assert!(meet(|stats| u64::from(stats.adapter_blocks)) > 20);
}
