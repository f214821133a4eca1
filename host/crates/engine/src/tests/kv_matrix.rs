//! The matrix of what a KV block's key depends on, in one place: each way in which two requests can differ, asked of a whole engine in
//! both orders. What may be shared is shared, and nothing else is. Not here: keys by themselves (`block_keys.rs`), sharing while a
//! sequence runs (`sharing.rs`), and the fingerprint of a real runner (`model`).

use super::*;

/// Tokens of the common beginning: five whole blocks, and one token that is computed in any case.
const TOKENS: u32 = 21;
const ALL: u64 = 20;
const NOTHING: u64 = 0;

fn plain() -> Request {
    request((0..TOKENS).map(|place| place * 7 % VOCABULARY), 2).of("one")
}

fn with(adapters: &[(&'static str, f32)]) -> Request {
    plain().with(adapters.iter().copied())
}

/// The same after a switch: `before` acted on the tokens up to `end`.
fn switched(request: &Request, before: &[(&'static str, f32)], end: u32) -> Submission<FakeAdapter> {
    let earlier = Request { adapters: before.to_vec(), ..request.clone() }.submission();
    let mut submission = request.submission();
    let stretch = Stretch { composition: earlier.plan.composition().clone(), activations: Vec::new(), end };
    submission.continues = Continuation { stretches: vec![stretch], ..Continuation::default() };
    submission.adapters.extend(earlier.adapters);
    submission
}

/// Tokens of KV that the second finds after the first, and that its answer is what it is alone.
fn found(first: Submission<FakeAdapter>, second: impl Fn() -> Submission<FakeAdapter>) -> u64 {
    let run = |rig: &mut Rig<FakeRunner>, submission| {
        let mut stream = rig.handle.submit(submission).expect("accepted");
        rig.finish();
        read_finished(&mut stream)
    };
    let alone = run(&mut Rig::fake(shape()), second());
    let mut rig = Rig::fake(shape());
    run(&mut rig, first);
    let before = rig.handle.stats().prefix_tokens_found;
    assert_eq!(run(&mut rig, second()), alone, "a wrong reuse");
    rig.handle.stats().prefix_tokens_found - before
}

#[test]
fn what_may_be_shared_is_and_nothing_else() {
    let one = || with(&[("a0", 1.0), ("a1", 0.5)]);
    let narrow = |request: Request| Request { narrow: true, ..request };
    let plainly =
        |request: Request| -> Box<dyn Fn() -> Submission<FakeAdapter>> { Box::new(move || request.submission()) };
    let switch = |before: &'static [(&'static str, f32)], end| -> Box<dyn Fn() -> Submission<FakeAdapter>> {
        Box::new(move || switched(&with(&[("a0", 1.0), ("a1", 0.5)]), before, end))
    };
    let rows: [(&str, _, _, u64); 21] = [
        ("the same", plainly(one()), plainly(one()), ALL),
        ("another order of the list", plainly(one()), plainly(with(&[("a1", 0.5), ("a0", 1.0)])), ALL),
        ("a weight of zero", plainly(one()), plainly(with(&[("a0", 1.0), ("a2", 0.0), ("a1", 0.5)])), ALL),
        ("a weight of minus zero and none", plainly(plain()), plainly(with(&[("a0", -0.0)])), ALL),
        // The engine knows no names: an alias that moved is another digest.
        ("the same name with other bytes", plainly(one()), plainly(with(&[("a0'", 1.0), ("a1", 0.5)])), NOTHING),
        ("the same bytes at another scale", plainly(one()), plainly(with(&[("a0", 1.0), ("a1", 0.25)])), NOTHING),
        ("the opposite sign", plainly(one()), plainly(with(&[("a0", 1.0), ("a1", -0.5)])), NOTHING),
        ("weights exchanged", plainly(one()), plainly(with(&[("a0", 0.5), ("a1", 1.0)])), NOTHING),
        ("one adapter less", plainly(one()), plainly(with(&[("a0", 1.0)])), NOTHING),
        ("one adapter twice", plainly(one()), plainly(with(&[("a0", 1.0), ("a0", 1.0), ("a1", 0.5)])), NOTHING),
        ("no adapter", plainly(one()), plainly(plain()), NOTHING),
        ("fewer modules", plainly(one()), plainly(narrow(one())), NOTHING),
        ("the same modules", plainly(narrow(one())), plainly(narrow(one())), ALL),
        ("another tenant", plainly(one()), plainly(one().of("two")), NOTHING),
        ("another tenant on the base", plainly(plain()), plainly(plain().of("two")), NOTHING),
        ("another seed and sampling", plainly(one()), plainly(Request { seed: Some(9), ..one() }), ALL),
        ("an adapter that is never invoked", plainly(with(&[("a0", 1.0)])), plainly(one().begins_at("a1", None)), ALL),
        ("one invoked at the 13th token", plainly(with(&[("a0", 1.0)])), plainly(one().begins_at("a1", Some(13))), 12),
        ("a switch from the base", plainly(plain()), switch(&[], 10), 8),
        ("a switch at another token", switch(&[], 14), switch(&[], 10), 8),
        ("the same switch", switch(&[("a2", 1.0)], 10), switch(&[("a2", 1.0)], 10), ALL),
    ];
    for (what, first, second, expected) in &rows {
        assert_eq!(found(first(), second), *expected, "{what}");
        assert_eq!(found(second(), first), *expected, "{what}, the other way round");
    }
    // A switch from one adapter shares nothing with the same switch from another one, nor with what it leads to.
    assert_eq!(found(switch(&[("a2", 1.0)], 10)(), switch(&[("a3", 1.0)], 10)), NOTHING);
    assert_eq!(found(switch(&[("a2", 1.0)], 10)(), plainly(one())), NOTHING);
}
