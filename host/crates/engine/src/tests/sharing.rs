//! KV that is computed once: kept after a sequence, and shared by several answers to one prompt.

use super::batches::recorded;
use super::*;

/// Tokens of KV that this request found after that one had run to its end.
fn found_after(first: &Request, second: &Request) -> u64 {
    let mut rig = Rig::fake(shape());
    assert_eq!(rig.run(first), first.expected(&shape(), &[]));
    let before = rig.handle.stats().prefix_tokens_found;
    assert_eq!(rig.run(second), second.expected(&shape(), &[]));
    rig.handle.stats().prefix_tokens_found - before
}

#[test]
fn a_beginning_that_is_known_is_not_computed_again() {
    let first = request(0..14, 5);
    for (second, found) in [
        (request(0..14, 3), 12),
        (request((0..9).chain([40]), 3), 8),
        (request((0..3).chain([40]), 3), 0),
        (request([40].into_iter().chain(1..14), 3), 0),
        // All of it is known, and its last token is computed all the same: the block before is copied to write into.
        (request(0..12, 3), 11),
        (request(0..13, 3), 12),
    ] {
        assert_eq!(found_after(&first, &second), found, "{:?}", second.prompt);
    }
    // An answer is as good a beginning as a prompt.
    let (answer, ..) = first.expected(&shape(), &[]);
    let dialogue = request((0..14).chain(answer).chain([1, 2]), 4);
    assert_eq!(found_after(&first, &dialogue), 16, "18 were computed, of which 16 fill blocks");
}

#[test]
fn only_what_is_the_same_to_the_last_bit_and_of_the_same_tenant_is_found() {
    let with = |parts: &[(&'static str, f32)]| request(0..12, 2).with(parts.iter().copied());
    let first = with(&[("a0", 1.0), ("a1", 0.5)]);
    for (second, found) in [
        (with(&[("a0", 1.0), ("a1", 0.5)]), 11),
        (with(&[("a1", 0.5), ("a0", 1.0)]), 11),
        (with(&[("a0", 1.0), ("a1", 0.5), ("a2", 0.0)]), 11),
        (with(&[("a0", 1.0), ("a1", 0.25)]), 0),
        (with(&[("a0", 0.5), ("a1", 1.0)]), 0),
        (with(&[("a0", 1.0)]), 0),
        (with(&[]), 0),
        (Request { narrow: true, ..first.clone() }, 0),
        (first.clone().of("another"), 0),
    ] {
        assert_eq!(found_after(&first, &second), found, "{second:?}");
    }
    // A tenant of two shares with itself, and the one who shares a salt with it.
    assert_eq!(found_after(&first.clone().of("one"), &first.clone().of("one")), 11);
    let mut friend = first.clone().of("two");
    friend.terms.kv_salt = first.clone().of("one").terms.kv_salt;
    assert_eq!(found_after(&first.of("one"), &friend), 11);
}

#[test]
fn blocks_that_pass_to_another_tenant_are_wiped_and_no_others() {
    let small = RunnerShape { kv_blocks: 4, ..shape() };
    let config = EngineConfig { prefix_cache: false, ..EngineConfig::default() };
    let (mut rig, batches) = recorded(FakeRunner::new(small), config);
    let mut wiped = |tenant: &str, prompt: u32| {
        let one = request(0..prompt, 3).of(tenant);
        assert_eq!(rig.run(&one), one.expected(&small, &[]));
        batches.lock().expect("not poisoned").drain(..).flat_map(|batch| batch.wipes).count()
    };
    assert_eq!(wiped("one", 9), 0, "nobody had them");
    assert_eq!(wiped("one", 9), 0, "its own");
    assert_eq!(wiped("two", 6), 2, "both that it needs");
    assert_eq!(wiped("two", 6), 0);
    assert_eq!(wiped("one", 13), 2, "neither its own nor the one that nobody had");
}

#[test]
fn a_block_that_a_failed_step_was_to_copy_into_is_wiped_after_all() {
    let small = RunnerShape { kv_blocks: 8, ..shape() };
    let (theirs, known) = (request(20..48, 2).of("two"), request(0..12, 3).of("one"));
    let batches_of = |failing: Option<u64>| {
        let (mut rig, batches) = recorded(FakeRunner::new(small).failing_at(failing), EngineConfig::default());
        for request in [&theirs, &known, &known, &request(5..11, 2).of("one")] {
            let _stream = rig.submit(request);
            rig.finish();
        }
        let batches = batches.lock().expect("not poisoned");
        batches.clone()
    };
    // What is known is copied into a block that was another tenant's, and for that it need not be wiped.
    let batches = batches_of(None);
    let step = batches.iter().position(|batch| !batch.copies.is_empty()).expect("a copy");
    let to = batches[step].copies[0].to;
    let is_theirs = |batch: &Batch| batch.block_tables.contains(&to) && !batch.copies.iter().any(|copy| copy.to == to);
    assert!(batches[..step].iter().any(is_theirs) && !batches[step].wipes.contains(&to));
    // Unless nobody knows whether it was.
    let batches = batches_of(Some(step as u64));
    assert_eq!(batches[step].copies[0].to, to);
    assert!(batches[step + 1].wipes.contains(&to), "{:?}", batches[step + 1]);
}

#[test]
fn what_lies_before_an_invocation_is_shared_by_the_base_and_all_that_are_invoked() {
    let prompt = || request(0..30, 3);
    let invoked = |name, first| prompt().with([(name, 1.0)]).begins_at(name, first);
    for (first, second, found) in [
        // The base has computed 32 tokens, 30 of them of the prompt; the 17th is in the fifth block.
        (prompt(), invoked("a0", Some(17)), 16),
        (prompt(), invoked("a0", Some(16)), 16),
        (prompt(), invoked("a0", Some(29)), 28),
        (prompt(), invoked("a0", Some(3)), 0),
        (prompt(), invoked("a0", Some(0)), 0),
        (prompt(), invoked("a0", None), 28),
        (invoked("a0", Some(17)), prompt(), 16),
        (invoked("a0", Some(17)), invoked("a1", Some(17)), 16),
        (invoked("a0", Some(17)), invoked("a1", Some(22)), 16),
        (invoked("a0", Some(17)), invoked("a0", Some(17)), 28),
        (invoked("a0", Some(17)), invoked("a0", Some(18)), 16),
        (invoked("a0", Some(17)), invoked("a0", Some(20)), 16),
        (invoked("a0", Some(17)), Request { narrow: true, ..invoked("a0", Some(17)) }, 16),
        // Acting at once is as acting always.
        (invoked("a0", Some(0)), prompt().with([("a0", 1.0)]), 28),
        // Beside one that always acts: that one's beginning is another than the base's.
        (prompt().with([("a1", 0.5)]), invoked("a0", Some(17)).with([("a1", 0.5)]), 16),
        (prompt(), invoked("a0", Some(17)).with([("a1", 0.5)]), 0),
        (invoked("a0", Some(9)).with([("a1", 1.0)]).begins_at("a1", Some(21)), invoked("a0", Some(9)), 20),
        (prompt().of("one"), invoked("a0", Some(17)).of("two"), 0),
    ] {
        assert_eq!(found_after(&first, &second), found, "{second:?} after {first:?}");
    }
}

#[test]
fn one_prefix_is_computed_once_for_the_base_and_ten_invoked_adapters() {
    const NAMES: [&str; 10] = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9"];
    let mut rig = Rig::fake(RunnerShape { batch_rows_max: 128, ..shape() });
    let base = request((0..40).map(|place| place % VOCABULARY), 2);
    assert_eq!(rig.run(&base), base.expected(&shape(), &[]));
    for (number, name) in NAMES.into_iter().enumerate() {
        // Each has its own invocation behind the common 40 tokens.
        let prompt = (0..40).chain([number as u32, 7, 7]);
        let one = request(prompt, 2).with([(name, 1.0)]).begins_at(name, Some(40));
        assert_eq!(rig.run(&one), one.expected(&shape(), &[]));
    }
    let stats = rig.handle.stats();
    assert_eq!((stats.prefix_tokens_asked, stats.prefix_tokens_found), (40 + 10 * 43, 10 * 40));
}

#[test]
fn one_that_is_never_invoked_takes_no_slot() {
    let small = RunnerShape { adapter_slots: 1, ..shape() };
    let mut rig = Rig::fake(small);
    let one = request(0..9, 3).with([("a0", 1.0), ("a1", 1.0)]).begins_at("a1", None);
    assert_eq!(rig.run(&one), request(0..9, 3).with([("a0", 1.0)]).expected(&small, &[]));
    assert_eq!(rig.handle.stats().resident_adapters, [Digest::of(b"a0")]);
    let both = request(0..9, 3).with([("a0", 1.0), ("a1", 1.0)]).begins_at("a1", Some(8));
    let refused = rig.handle.submit(both.submission()).map(drop);
    assert_eq!(refused, Err(SubmitError::TooManyAdapters { adapters: 2, slots: 1 }));
}

#[test]
fn several_answers_with_an_invoked_adapter_compute_their_prompt_once() {
    let (mut rig, batches) = recorded(FakeRunner::new(shape()), EngineConfig::default());
    let begins = |first| request(0..14, 6).with([("a0", 0.5)]).begins_at("a0", Some(first));
    let mut requests = choices(&begins(9), 0..4);
    let mut streams = submit_all(&rig, &requests);
    rig.finish();
    // Those that begin elsewhere are no family of these, but find what lies before.
    let others = [begins(9), begins(5), begins(13)];
    streams.extend(submit_all(&rig, &others));
    requests.extend(others);
    rig.finish();
    for (request, stream) in requests.iter().zip(&mut streams) {
        assert_eq!(read_finished(stream), request.expected(&shape(), &[]));
    }
    let rows: usize = batches.lock().expect("not poisoned").iter().map(|batch| batch.tokens.len()).sum();
    let (family, others) = (14 + 3 + 4 * 5, (14 - 12) + (14 - 4) + (14 - 8) + 3 * 5);
    assert_eq!(rows, family + others);
}

#[test]
fn another_tenant_is_served_in_as_many_steps_and_rows_as_if_nobody_had_asked_before() {
    let rows_of = |before: Option<&Request>, request: &Request| {
        let (mut rig, batches) = recorded(FakeRunner::new(shape()), EngineConfig::default());
        before.map(|before| rig.run(before));
        batches.lock().expect("not poisoned").clear();
        rig.run(request);
        let batches = batches.lock().expect("not poisoned");
        batches.iter().map(|batch| (batch.tokens.len(), batch.copies.len())).collect::<Vec<_>>()
    };
    let mine = request(0..40, 4).of("one");
    assert_eq!(rows_of(Some(&mine.clone().of("two")), &mine), rows_of(None, &mine));
    assert_ne!(rows_of(Some(&mine), &mine), rows_of(None, &mine));
}

#[test]
fn what_is_kept_gives_way_to_what_runs() {
    let small = RunnerShape { kv_blocks: 8, ..shape() };
    let mut rig = Rig::fake(small);
    rig.run(&request(0..20, 2));
    assert_eq!((rig.handle.stats().kv_blocks_free, rig.handle.stats().kv_blocks_idle), (8, 5));
    let large = request(20..48, 3);
    assert_eq!(rig.run(&large), large.expected(&small, &[]));
    assert_eq!(rig.handle.stats().preemptions, 0, "kept blocks count as free");
    let before = rig.handle.stats().prefix_tokens_found;
    rig.run(&request(0..20, 2));
    assert_eq!(rig.handle.stats().prefix_tokens_found, before, "the older one had to go");
}

#[test]
fn nothing_is_kept_if_nothing_is_to_be() {
    let config = EngineConfig { prefix_cache: false, ..EngineConfig::default() };
    let mut rig = Rig::new(FakeRunner::new(shape()), config);
    for _ in 0..2 {
        rig.run(&request(0..20, 2));
        assert_eq!((rig.handle.stats().prefix_tokens_found, rig.handle.stats().kv_blocks_idle), (0, 0));
    }
    let mut streams = submit_all(&rig, &choices(&request(0..20, 2), 0..2));
    rig.finish();
    assert!(streams.iter_mut().all(|stream| read_finished(stream).1 == FinishReason::Length));
    assert_eq!(rig.handle.stats().prefix_tokens_found, 19, "two answers to one prompt share it");
}

/// Answers to one prompt under these seeds.
fn choices(request: &Request, seeds: impl IntoIterator<Item = u64>) -> Vec<Request> {
    seeds.into_iter().map(|seed| Request { seed: Some(seed), ..request.clone() }).collect()
}

fn submit_all<R: ModelRunner<Adapter = FakeAdapter>>(rig: &Rig<R>, requests: &[Request]) -> Vec<TokenStream> {
    rig.handle.submit_all(requests.iter().map(Request::submission).collect()).expect("accepted")
}

#[test]
fn several_answers_compute_their_prompt_once() {
    for (prompt, copies, blocks) in [(14, 3, 3 + 4), (12, 3, 2 + 2 + 3), (13, 0, 3 + 4), (1, 0, 4)] {
        let (mut rig, batches) = recorded(FakeRunner::new(shape()), EngineConfig::default());
        let requests = choices(&request(0..prompt, 6).with([("a0", 0.5)]), 0..4);
        let mut streams = submit_all(&rig, &requests);
        rig.step();
        rig.step();
        let used = 64 - rig.handle.stats().kv_blocks_free;
        rig.finish();
        for (request, stream) in requests.iter().zip(&mut streams) {
            assert_eq!(read_finished(stream), request.expected(&shape(), &[]));
        }
        let batches = batches.lock().expect("not poisoned");
        let rows: usize = batches.iter().map(|batch| batch.tokens.len()).sum();
        assert_eq!(
            rows,
            prompt as usize + 3 + 4 * 5,
            "the prompt once, its last token for each, and what they generate"
        );
        assert_eq!(batches.iter().map(|batch| batch.copies.len()).sum::<usize>(), copies, "{prompt}");
        assert_eq!(used, blocks, "{prompt}: what is common is there once");
    }
}

#[test]
fn answers_to_different_prompts_are_no_family() {
    let mut rig = Rig::fake(shape());
    let requests =
        [request(0..9, 3), request(1..10, 3), request(0..9, 3).with([("a0", 1.0)]), request(0..9, 3).of("two")];
    let mut streams = submit_all(&rig, &requests);
    rig.finish();
    for (request, stream) in requests.iter().zip(&mut streams) {
        assert_eq!(read_finished(stream), request.expected(&shape(), &[]));
    }
    assert_eq!(rig.handle.stats().prefix_tokens_found, 0);
}

#[test]
fn when_the_first_answer_is_given_up_the_next_one_computes_the_prompt() {
    for gone_after in 0..6 {
        let mut rig = Rig::fake(RunnerShape { batch_rows_max: 8, ..shape() });
        let requests = choices(&request(0..30, 4), 0..3);
        let mut streams = submit_all(&rig, &requests);
        for _ in 0..gone_after {
            rig.step();
        }
        drop(streams.remove(0));
        rig.finish();
        for (request, stream) in requests[1..].iter().zip(&mut streams) {
            assert_eq!(read_finished(stream), request.expected(&shape(), &[]), "{gone_after}");
        }
    }
}
