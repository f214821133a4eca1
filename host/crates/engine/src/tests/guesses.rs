//! Guessed tokens: they change how many steps it takes, and nothing else.

use super::batches::recorded;
use super::*;

const ALWAYS: SpeculationConfig = SpeculationConfig { draft_tokens_max: 4, row_cost_percent: 0 };
const OFF: SpeculationConfig = SpeculationConfig { draft_tokens_max: 0, row_cost_percent: 0 };

fn config(speculation: SpeculationConfig) -> EngineConfig {
    EngineConfig { speculation, ..EngineConfig::default() }
}

/// All that comes, and what was counted.
fn run(request: &Request, speculation: SpeculationConfig, eos: &[u32]) -> (Vec<TokenEvent>, EngineStats) {
    let config = EngineConfig { eos_token_ids: eos.to_vec(), ..config(speculation) };
    let mut rig = Rig::new(FakeRunner::new(shape()).echoing(3), config);
    let mut stream = rig.submit(request);
    rig.finish();
    (std::iter::from_fn(|| stream.try_recv()).collect(), rig.handle.stats())
}

#[test]
fn right_guesses_save_steps_and_the_stream_is_the_same() {
    for seed in [None, Some(3)] {
        let request = Request { seed, logprobs: Some(2), ..request([1, 2, 3], 60) };
        let (plain, slow) = run(&request, OFF, &[]);
        let (guessed, fast) = run(&request, ALWAYS, &[]);
        assert_eq!(plain, guessed);
        assert_eq!((slow.steps, slow.draft_tokens, slow.tokens_generated), (60, 0, 60));
        assert_eq!(fast.tokens_generated, 60);
        assert!(fast.steps < 45 && fast.draft_tokens_accepted > 15, "{fast:?}");
        assert_eq!(fast.steps + fast.draft_tokens_accepted, 60, "each right guess saves a step");
        assert!(fast.draft_tokens > fast.draft_tokens_accepted, "some were wrong");
    }
}

#[test]
fn stops_end_inside_a_run_of_right_guesses() {
    let plain = request([1, 2, 3], 60);
    let tokens: Vec<u32> = run(&plain, OFF, &[]).0.iter().filter_map(token).collect();
    for end in tokens {
        let stopped = Request { stop: vec![end], ..plain.clone() };
        let (without, _) = run(&stopped, OFF, &[]);
        assert_eq!(run(&stopped, ALWAYS, &[]).0, without, "stop at {end}");
        let heeding = Request { ignore_eos: false, ..plain.clone() };
        assert_eq!(run(&heeding, ALWAYS, &[end]).0, run(&heeding, OFF, &[end]).0, "eos {end}");
    }
    for output in 1..30 {
        let cut = Request { output, ..plain.clone() };
        assert_eq!(run(&cut, ALWAYS, &[]).0, run(&cut, OFF, &[]).0, "{output} tokens");
    }
}

fn token(event: &TokenEvent) -> Option<u32> {
    if let TokenEvent::Token { id, .. } = event { Some(*id) } else { None }
}

#[test]
fn penalties_and_requests_that_ask_for_none_are_not_guessed() {
    let mut asked = request([1, 2, 3], 40);
    assert!(run(&asked, ALWAYS, &[]).1.draft_tokens > 0);
    asked.terms.speculation = false;
    assert_eq!(run(&asked, ALWAYS, &[]).1.draft_tokens, 0);
    let penalised = request([1, 2, 3], 40).penalised(1.0, 0.5);
    assert_eq!(run(&penalised, ALWAYS, &[]).1.draft_tokens, 0);
}

#[test]
fn guessing_begins_when_it_would_have_paid_and_ends_when_it_does_not() {
    let careful = SpeculationConfig { draft_tokens_max: 4, row_cost_percent: 40 };
    let stats = run(&request([1, 2, 3], 60), careful, &[]).1;
    assert!(stats.draft_tokens > 0 && stats.draft_tokens_accepted * 2 > stats.draft_tokens, "{stats:?}");
    let mut rig = Rig::new(FakeRunner::new(shape()), config(careful));
    rig.run(&request([1, 2, 3, 1, 2, 3], 60));
    assert_eq!(rig.handle.stats().draft_tokens, 0, "nothing repeats there");
}

#[test]
fn guesses_take_only_rows_and_blocks_that_nobody_needs() {
    let tight = RunnerShape { kv_blocks: 12, batch_rows_max: 6, ..shape() };
    let (mut rig, batches) = recorded(FakeRunner::new(tight).echoing(2), config(ALWAYS));
    let requests: Vec<_> = (0..4).map(|i| request([i, i + 1], 30)).collect();
    let mut streams: Vec<_> = requests.iter().map(|request| rig.submit(request)).collect();
    let (mut plain, _) = recorded(FakeRunner::new(tight).echoing(2), config(OFF));
    let mut without: Vec<_> = requests.iter().map(|request| plain.submit(request)).collect();
    rig.finish();
    plain.finish();
    for (one, two) in streams.iter_mut().zip(&mut without) {
        assert_eq!(read_finished(one), read_finished(two));
    }
    let batches = batches.lock().expect("not poisoned");
    let guesses =
        |batch: &Batch| batch.sequences.iter().any(|s| s.rows.len() > 1 && batch.positions[s.rows.start as usize] > 1);
    assert!(batches.iter().filter(|batch| guesses(batch)).count() > 5);
    assert!(batches.iter().all(|batch| batch.tokens.len() <= 6));
    let last = batches.iter().flat_map(|batch| &batch.positions).max();
    assert_eq!(last, Some(&30), "of 32 tokens the last is never computed, guessed or not");
    assert!(rig.handle.stats().preemptions <= plain.handle.stats().preemptions + 2);
}
