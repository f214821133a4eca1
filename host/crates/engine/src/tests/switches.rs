//! Answers that go on under another composition: what was computed is kept, or computed anew, and never taken for something else.

use super::*;

const OUTPUT: u32 = 12;

fn prompt() -> impl Iterator<Item = u32> {
    (0..14).map(|place| place * 3 % VOCABULARY)
}

fn composition(adapters: &[(&'static str, f32)]) -> types::Composition {
    request([1], 1).with(adapters.iter().copied()).submission().plan.composition().clone()
}

/// What the engine is asked when the composition of a request changes after so many tokens of its answer; the earlier one keeps
/// acting on what came before if the KV is reused.
fn switched(
    before: &Request,
    generated: &[u32],
    after: &[(&'static str, f32)],
    is_reused: bool,
) -> Submission<FakeAdapter> {
    let tokens: Vec<u32> = before.prompt.iter().chain(generated).copied().collect();
    // The KV of the last token was not computed yet.
    let end = tokens.len() as u32 - 1;
    let stretch = Stretch { composition: composition(&before.adapters), activations: Vec::new(), end };
    let request = Request { prompt: tokens, adapters: after.to_vec(), ..before.clone() };
    let mut submission = request.submission();
    submission.continues = Continuation {
        generated_tokens: generated.len() as u32,
        stretches: if is_reused { vec![stretch] } else { Vec::new() },
        drawn: Vec::new(),
    };
    // What acted is needed too, should its KV be gone.
    submission.adapters.extend(before.submission().adapters);
    submission
}

fn run<R: ModelRunner<Adapter = FakeAdapter>>(
    rig: &mut Rig<R>,
    submission: Submission<FakeAdapter>,
) -> (Vec<u32>, FinishReason, Usage) {
    let mut stream = rig.handle.submit(submission).expect("accepted");
    rig.finish();
    read_finished(&mut stream)
}

fn rig(prefix_cache: bool) -> Rig<FakeRunner> {
    Rig::new(FakeRunner::new(shape()), EngineConfig { prefix_cache, ..EngineConfig::default() })
}

#[test]
fn one_that_goes_on_as_it_was_is_as_if_nothing_had_happened() {
    let plain = || request(prompt(), OUTPUT).with([("a0", 0.5), ("a1", 1.0)]);
    let adapters = plain().adapters;
    for one in [plain(), Request { seed: Some(5), ..plain() }, plain().penalised(1.5, 0.5)] {
        let mut rig = rig(true);
        let (whole, reason, usage) = rig.run(&one);
        for generated in [1, 2, 5, 11] {
            let (head, tail) = whole.split_at(generated);
            let found = rig.handle.stats().prefix_tokens_found;
            let went_on = run(&mut rig, switched(&one, head, &adapters, true));
            assert_eq!(went_on, (tail.to_vec(), reason, usage), "after {generated}");
            // All whole blocks are there still, and of a last one all but the token that is computed in any case.
            let found = rig.handle.stats().prefix_tokens_found - found;
            assert!(found as usize >= (14 + generated - 1) / 4 * 4, "{found} after {generated}");
        }
    }
}

#[test]
fn a_switch_is_the_same_whether_its_kv_was_kept_or_computed_again() {
    let one = request(prompt(), OUTPUT).with([("a0", 0.5)]);
    let (whole, ..) = rig(true).run(&one);
    let mut all = Vec::new();
    for (after, is_reused) in [(&[("a1", 1.0)][..], true), (&[("a1", 1.0)], false), (&[], true), (&[], false)] {
        let head = &whole[..5];
        let answer = |prefix_cache, runs_before: bool, small: bool| {
            let shape = if small { RunnerShape { batch_rows_max: 3, ..shape() } } else { shape() };
            let config = EngineConfig { prefix_cache, ..EngineConfig::default() };
            let mut rig = Rig::new(FakeRunner::new(shape), config);
            if runs_before {
                rig.run(&one);
            }
            run(&mut rig, switched(&one, head, after, is_reused))
        };
        let kept = answer(true, true, false);
        assert_eq!(kept, answer(false, true, false), "without a cache");
        assert_eq!(kept, answer(true, false, false), "nothing was there");
        assert_eq!(kept, answer(true, true, true), "in small pieces");
        assert_eq!((kept.0.len() as u32, kept.2.prompt_tokens, kept.2.completion_tokens), (OUTPUT - 5, 14, OUTPUT));
        all.push(kept.0);
    }
    for (index, tokens) in all.iter().enumerate() {
        assert!(!all[..index].contains(tokens), "another composition or another KV is another answer: {all:?}");
        assert_ne!(*tokens, whole[5..]);
    }
    // With its KV computed anew it is what it would be without a past.
    let fresh = Request { prompt: prompt().chain(whole[..5].iter().copied()).collect(), ..request([0], OUTPUT - 5) };
    assert_eq!(all[3], fresh.expected(&shape(), &[]).0);
}

#[test]
fn what_a_switch_computed_is_found_by_the_same_switch_and_by_no_other() {
    let one = request(prompt(), OUTPUT).with([("a0", 0.5)]);
    let (whole, ..) = rig(true).run(&one);
    let (head, after) = (&whole[..6], [("a1", 1.0)]);
    let tokens: Vec<u32> = prompt().chain(head.iter().copied()).collect();
    let found_after = |first: Submission<FakeAdapter>, second: Submission<FakeAdapter>| {
        let mut rig = rig(true);
        run(&mut rig, first);
        let before = rig.handle.stats().prefix_tokens_found;
        run(&mut rig, second);
        rig.handle.stats().prefix_tokens_found - before
    };
    let switch = || switched(&one, head, &after, true);
    let long = |adapters: &[(&'static str, f32)]| {
        Request { prompt: tokens.clone(), ..request([0], 3) }.with(adapters.to_vec())
    };
    assert_eq!(found_after(switch(), switch()), 19, "all but the last of 20 tokens");
    // 19 tokens are under the first composition: four whole blocks, whoever asks.
    assert_eq!(found_after(switch(), long(&[("a0", 0.5)]).submission()), 16);
    assert_eq!(found_after(long(&[("a0", 0.5)]).submission(), switch()), 16);
    for other in [&after[..], &[], &[("a0", 0.25)], &[("a0", 0.5), ("a1", 1.0)]] {
        assert_eq!(found_after(switch(), long(other).submission()), 0, "{other:?}");
        assert_eq!(found_after(long(other).submission(), switch()), 0, "{other:?}");
    }
    // The same tokens, switched earlier: only what lies before both switches.
    let mut earlier = switch();
    earlier.continues.stretches[0].end = 9;
    assert_eq!(found_after(earlier, switch()), 8);
    assert_eq!(
        found_after(switch(), {
            let mut weak = switch();
            weak.terms.kv_salt = Digest::of(b"another");
            weak
        }),
        0
    );
}

#[test]
fn a_continuation_that_makes_no_sense_is_refused() {
    let one = request(prompt(), OUTPUT).with([("a0", 0.5)]);
    let rig = rig(true);
    let refused = |change: &dyn Fn(&mut Submission<FakeAdapter>)| {
        let mut submission = switched(&one, &[1, 2, 3], &[("a1", 1.0)], true);
        change(&mut submission);
        rig.handle.submit(submission).map(drop)
    };
    assert_eq!(refused(&|_| {}), Ok(()));
    assert_eq!(
        refused(&|one| one.continues.generated_tokens = 17),
        Err(SubmitError::Continuation),
        "no prompt is left"
    );
    assert_eq!(refused(&|one| one.continues.stretches[0].end = 18), Err(SubmitError::Continuation));
    let twice = |one: &mut Submission<FakeAdapter>| {
        let mut again = one.continues.stretches[0].clone();
        again.end -= 1;
        one.continues.stretches.push(again);
    };
    assert_eq!(refused(&twice), Err(SubmitError::Continuation), "not in order");
    let forgotten = |one: &mut Submission<FakeAdapter>| one.adapters.truncate(1);
    assert_eq!(refused(&forgotten), Err(SubmitError::MissingAdapter(Digest::of(b"a0"))));
}
