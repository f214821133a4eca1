//! A runner that computes drawn tokens in another way than asked ones: the same tokens whatever the batch, the cache and the
//! memory, and KV that is found by its own kind only.

use super::batches::recorded;
use super::*;

fn rig(shape: RunnerShape) -> Rig<FakeRunner> {
    Rig::new(FakeRunner::new(shape).separating(), EngineConfig::default())
}

/// What a request gives with nobody beside it and nothing kept.
fn alone(request: &Request) -> Vec<u32> {
    let config = EngineConfig { prefix_cache: false, ..EngineConfig::default() };
    Rig::new(FakeRunner::new(shape()).separating(), config).run(request).0
}

/// Tokens of KV that a submission found, and what came of it.
fn found(rig: &mut Rig<FakeRunner>, submission: Submission<FakeAdapter>) -> (u64, Vec<u32>) {
    let before = rig.handle.stats().prefix_tokens_found;
    let mut stream = rig.handle.submit(submission).expect("accepted");
    rig.finish();
    (rig.handle.stats().prefix_tokens_found - before, read_finished(&mut stream).0)
}

#[test]
fn an_answer_is_found_by_whoever_says_that_it_was_drawn_and_by_nobody_else() {
    let first = request(0..14, 12);
    let answer = alone(&first);
    assert_ne!(answer, first.expected(&shape(), &[]).0, "the kinds make a difference");
    // 14 asked, 12 drawn, of which the last was never computed: 25.
    let dialogue = request((0..14).chain(answer.iter().copied()).chain([1, 2]), 6);
    let said = |drawn: std::ops::Range<u32>| {
        let mut submission = dialogue.submission();
        submission.continues.drawn = vec![drawn];
        submission
    };
    let mut rig = rig(shape());
    assert_eq!(rig.run(&first).0, answer);
    let (tokens, as_asked) = found(&mut rig, said(0..0));
    assert_eq!((tokens, &as_asked), (12, &alone(&dialogue)), "the blocks of the prompt alone");
    let (tokens, as_drawn) = found(&mut rig, said(14..26));
    assert_eq!(tokens, 24, "all full blocks");
    assert_ne!(as_drawn, as_asked, "other KV");
    let (tokens, other) = found(&mut rig, said(14..20));
    assert_eq!(tokens, 20, "as far as it is the same");
    assert!(other != as_drawn && other != as_asked);
    // And all of them as with nothing kept.
    let config = EngineConfig { prefix_cache: false, ..EngineConfig::default() };
    let mut fresh = Rig::new(FakeRunner::new(shape()).separating(), config);
    assert_eq!(found(&mut fresh, said(14..26)), (0, as_drawn));
    assert_eq!(found(&mut fresh, said(14..20)), (0, other));
}

#[test]
fn whoever_was_set_back_goes_on_with_the_same_tokens() {
    // Little memory: those that decode give way.
    let small = RunnerShape { kv_blocks: 16, ..shape() };
    let requests: Vec<Request> = (0..6).map(|seed| request((0..9).map(|at| at * seed % VOCABULARY), 20)).collect();
    let mut rig = rig(small);
    let mut streams: Vec<_> = requests.iter().map(|request| rig.submit(request)).collect();
    rig.finish();
    assert!(rig.handle.stats().preemptions > 0);
    for (request, stream) in requests.iter().zip(&mut streams) {
        assert_eq!(read_finished(stream).0, alone(request));
    }
}

#[test]
fn drawn_rows_come_first_and_no_sequence_has_both_kinds_in_a_step() {
    let (mut rig, batches) = recorded(FakeRunner::new(shape()).separating(), EngineConfig::default());
    let with = |prompt: std::ops::Range<u32>, name| request(prompt, 9).with([(name, 1.0)]);
    let mut streams = vec![rig.submit(&with(0..5, "a1"))];
    rig.step();
    streams.push(rig.submit(&with(0..40, "a0")));
    rig.step();
    // It knows what it drew: its KV has to be computed all the same, in steps of their own.
    let mut known = request(5..30, 4).submission();
    known.continues.drawn = vec![3..9, 12..13];
    streams.push(rig.handle.submit(known).expect("accepted"));
    rig.finish();
    let batches = batches.lock().expect("not poisoned");
    let mixed = batches.iter().filter(|batch| batch.drawn_rows > 0 && (batch.drawn_rows as usize) < batch.tokens.len());
    assert!(mixed.count() > 2, "steps with both kinds");
    let prompts: Vec<u32> = (0..5).chain(0..40).chain(5..8).chain(14..17).chain(18..30).collect();
    let asked = batches.iter().flat_map(|batch| batch.tokens[batch.drawn_rows as usize..].iter().copied());
    let (mut asked, mut expected) = (asked.collect::<Vec<_>>(), prompts);
    asked.sort_unstable();
    expected.sort_unstable();
    assert_eq!(asked, expected, "each asked token once, and no drawn one");
    for stream in &mut streams {
        read_finished(stream);
    }
}

#[test]
fn guesses_follow_drawn_tokens_only_and_change_nothing() {
    let echoing = || FakeRunner::new(shape()).separating().echoing(3);
    let asked = request([7, 7, 7, 7, 7, 7], 40);
    let off = SpeculationConfig { draft_tokens_max: 0, row_cost_percent: 0 };
    let plain = EngineConfig { speculation: off, ..EngineConfig::default() };
    let expected = Rig::new(echoing(), plain.clone()).run(&asked);
    let speculation = SpeculationConfig { draft_tokens_max: 4, row_cost_percent: 0 };
    let (mut rig, batches) = recorded(echoing(), EngineConfig { speculation, ..plain });
    let mut stream = rig.submit(&asked);
    rig.finish();
    assert_eq!(read_finished(&mut stream), expected);
    assert!(rig.handle.stats().draft_tokens > 0);
    let batches = batches.lock().expect("not poisoned");
    assert!(batches.iter().all(|batch| batch.drawn_rows == 0 || batch.drawn_rows as usize == batch.tokens.len()));
}
