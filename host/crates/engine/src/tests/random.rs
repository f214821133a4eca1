//! Random arrivals, hang-ups, deadlines, failures, tiny memories: whoever survives has the tokens it would have alone.

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 5] = ["a0", "a1", "a2", "a3", "broken"];
const EOS: [u32; 1] = [11];

#[derive(Clone, Debug)]
struct Arrival {
    request: Request,
    /// The step before which it comes, and how many steps later its reader leaves.
    comes: u32,
    leaves: Option<u32>,
}

#[derive(Clone, Debug)]
struct Case {
    shape: RunnerShape,
    running_sequences_max: usize,
    arrivals: Vec<Arrival>,
    failing: Vec<u64>,
}

fn requests() -> impl Strategy<Value = Request> {
    let adapters = prop_oneof![
        4 => Just(vec![]),
        // One in twenty adapters is broken.
        6 => prop::collection::vec((0..20usize, prop::sample::select(vec![1.0f32, 0.5, -2.0])), 1..4),
    ];
    let seed = prop::option::of(any::<u64>());
    let prompt = prop::collection::vec(0..VOCABULARY, 1..20);
    let deadline_ms = prop::option::weighted(0.1, 0..40u32);
    let stop = prop::option::of(0..VOCABULARY);
    (prompt, 1..25u32, adapters, any::<bool>(), seed, any::<bool>(), stop, deadline_ms).prop_map(
        |(prompt, output, adapters, narrow, seed, ignore_eos, stop, deadline_ms)| {
            let adapters = adapters.into_iter().map(|(i, weight)| (NAMES[if i == 19 { 4 } else { i % 4 }], weight));
            let adapters = adapters.collect();
            let stop = stop.into_iter().collect();
            Request { adapters, narrow, seed, stop, ignore_eos, deadline_ms, ..request(prompt, output) }
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
    let arrival = (requests(), 0..30u32, leaves);
    let arrival = arrival.prop_map(|(request, comes, leaves)| Arrival { request, comes, leaves });
    let failing = prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(0..60u64, 1..3)];
    (shape, 1..10usize, prop::collection::vec(arrival, 1..16), failing).prop_map(
        |(shape, running_sequences_max, arrivals, failing)| Case { shape, running_sequences_max, arrivals, failing },
    )
}

/// Runs the case; the streams of those whose readers stayed.
fn run(case: &Case) -> Vec<(&Request, TokenStream)> {
    let runner = FakeRunner::new(case.shape).failing_at(case.failing.iter().copied());
    let running_sequences_max = case.running_sequences_max;
    let config = EngineConfig { eos_token_ids: EOS.to_vec(), running_sequences_max, ..EngineConfig::default() };
    let mut rig = Rig::new(runner, config);
    let mut streams: Vec<_> = case.arrivals.iter().map(|_| None).collect();
    for step in 0..60 {
        let mut gone = 0;
        for (arrival, stream) in case.arrivals.iter().zip(&mut streams) {
            if arrival.comes == step {
                *stream = Some(rig.submit(&arrival.request));
            }
            if arrival.leaves.is_some_and(|after| arrival.comes + after <= step) {
                *stream = None;
            }
            gone += usize::from(stream.is_none());
        }
        rig.step();
        let stats = rig.handle.stats();
        assert!(stats.waiting + stats.running + gone <= streams.len(), "one that left is still there");
    }
    rig.finish();
    case.arrivals.iter().zip(streams).filter_map(|(arrival, stream)| Some((&arrival.request, stream?))).collect()
}

fn check(case: &Case, request: &Request, stream: &mut TokenStream) {
    let (expected, reason, usage) = request.expected(&case.shape, &EOS);
    let (tokens, last) = read(stream);
    let is_prefix = expected.starts_with(&tokens);
    let broken = request.adapters.iter().any(|(name, _)| *name == "broken");
    match last.expect("every stream ends") {
        TokenEvent::Failed(why) => {
            assert!(is_prefix && (broken || why.to_string().contains("told to fail")), "{why}");
            assert!(!broken || tokens.is_empty());
        }
        TokenEvent::Finished { reason: FinishReason::Deadline, usage, .. } => {
            assert!(is_prefix && request.deadline_ms.is_some());
            assert_eq!(usage.completion_tokens as usize, tokens.len());
        }
        TokenEvent::Finished { reason: why, usage: used, .. } => {
            assert_eq!((tokens, why, used), (expected, reason, usage));
            assert!(!broken);
        }
        TokenEvent::Token { .. } => unreachable!("not a last event"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn survivors_are_as_if_alone(case in cases()) {
        for (request, mut stream) in run(&case) {
            check(&case, request, &mut stream);
        }
    }
}
