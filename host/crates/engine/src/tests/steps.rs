//! The engine step by step, one situation a test.

use super::*;

#[test]
fn requests_with_different_compositions_run_together_and_as_if_alone() {
    let requests = [
        request(0..40, 20),
        request([3], 12).with([("a0", 1.0)]),
        request(5..15, 9).with([("a1", 0.5), ("a0", -1.0)]),
        request(5..15, 9).with([("a0", -1.0)]),
        Request { seed: Some(7), ..request([1, 2, 3], 30).with([("a2", 2.0), ("a2", 0.5)]) },
    ];
    let mut rig = Rig::fake(shape());
    let mut streams: Vec<_> = requests.iter().map(|request| rig.submit(request)).collect();
    rig.finish();
    for (request, stream) in requests.iter().zip(&mut streams) {
        assert_eq!(read_finished(stream), request.expected(&shape(), &[]), "{request:?}");
    }
    let stats = rig.handle.stats();
    assert_eq!(stats.tokens_generated, 80);
    assert!(stats.steps < 40, "they ran together: {} steps", stats.steps);
    assert_eq!(stats.resident_adapters.len(), 3, "idle adapters stay");
}

#[test]
fn a_long_prompt_is_cut_and_does_not_hold_up_those_that_decode() {
    let mut rig = Rig::fake(RunnerShape { batch_rows_max: 8, ..shape() });
    let (short, long) = (request([1], 30), request(0..50, 2));
    let mut one = rig.submit(&short);
    rig.step();
    let mut two = rig.submit(&long);
    for _ in 0..8 {
        rig.step();
        assert_eq!(read(&mut one).0.len(), if rig.handle.stats().steps == 2 { 2 } else { 1 }, "one token a step");
    }
    assert_eq!(read(&mut two).0.len(), 1, "50 tokens at 7 a step");
    rig.finish();
    assert_eq!(read_finished(&mut two).2.completion_tokens, 2);
}

#[test]
fn refusals_at_the_door() {
    let rig = Rig::fake(RunnerShape { adapter_slots: 1, kv_blocks: 8, ..shape() });
    let refusal = |request: Request| rig.handle.submit(request.submission()).map(drop);
    let long = SubmitError::PromptLength { tokens: 32, max: 31 };
    assert_eq!(refusal(request(0..32, 1)), Err(long), "8 blocks of 4 tokens, one token to answer");
    assert_eq!(refusal(request(0..31, 1)), Ok(()));
    assert_eq!(refusal(request([1, 50], 1)), Err(SubmitError::UnknownToken { id: 50, vocabulary: 50 }));
    let two = request([1], 1).with([("a0", 1.0), ("a1", 1.0)]);
    assert_eq!(refusal(two), Err(SubmitError::TooManyAdapters { adapters: 2, slots: 1 }));
    assert_eq!(refusal(request([1], 1).with([("a0", 1.0), ("a0", 0.5)])), Ok(()), "one adapter, twice");
    let mut empty = request([1], 1).submission();
    empty.prompt.clear();
    assert!(matches!(rig.handle.submit(empty).err(), Some(SubmitError::PromptLength { tokens: 0, .. })));
    let mut bare = request([1], 1).with([("a0", 1.0)]).submission();
    bare.adapters.clear();
    assert_eq!(rig.handle.submit(bare).err(), Some(SubmitError::MissingAdapter(Digest::of(b"a0"))));
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let config = EngineConfig { waiting_requests_max: 2, running_sequences_max: 1, ..EngineConfig::default() };
    let mut rig = Rig::new(FakeRunner::new(shape()), config);
    let submit = |rig: &Rig<FakeRunner>| rig.handle.submit(request([1], 3).submission());
    let full = |rig: &Rig<FakeRunner>| matches!(submit(rig), Err(SubmitError::TenantQueueFull { waiting: 2, .. }));
    let _one = submit(&rig).expect("a place");
    let two = submit(&rig).expect("a place");
    assert!(full(&rig));
    rig.step();
    assert_eq!((rig.handle.stats().waiting, rig.handle.stats().running), (1, 1));
    let _three = submit(&rig).expect("the first one runs");
    assert!(full(&rig));
    drop(two);
    rig.step();
    let _four = submit(&rig).expect("the second one went away");
    rig.finish();
}

#[test]
fn a_reader_that_leaves_frees_its_blocks_at_the_next_step() {
    let mut rig = Rig::fake(shape());
    let stream = rig.submit(&request(0..12, 50).with([("a0", 1.0)]));
    rig.step();
    let stats = rig.handle.stats();
    assert_eq!((stats.kv_blocks_free, stats.adapter_slots_used, stats.running), (61, 1, 1));
    drop(stream);
    rig.step();
    let stats = rig.handle.stats();
    assert_eq!((stats.kv_blocks_free, stats.adapter_slots_used, stats.running), (64, 0, 0));
    assert_eq!(stats.steps, 1, "an empty step is none");
}

#[test]
fn deadlines_end_those_that_run_and_those_that_wait() {
    let config = EngineConfig { running_sequences_max: 1, ..EngineConfig::default() };
    let mut rig = Rig::new(FakeRunner::new(shape()), config);
    let mut runs = rig.submit(&Request { deadline_ms: Some(6), ..request([1], 50) });
    let mut waits = rig.submit(&Request { deadline_ms: Some(4), ..request([2], 50) });
    rig.finish();
    let (tokens, reason, usage) = read_finished(&mut runs);
    assert_eq!((tokens.len(), reason, usage.completion_tokens), (5, FinishReason::Deadline, 5));
    let (tokens, last) = read(&mut waits);
    let usage = Usage { prompt_tokens: 1, completion_tokens: 0 };
    let queued = Duration::from_millis(4);
    assert_eq!((tokens, last), (vec![], Some(TokenEvent::Finished { reason: FinishReason::Deadline, usage, queued })));
}

#[test]
fn end_of_sequence_and_stop_tokens_count_and_are_not_sent() {
    let plain = request([9], 30);
    let (tokens, ..) = plain.expected(&shape(), &[]);
    let eos = tokens[6];
    let first = tokens.iter().position(|id| *id == eos).expect("it is there");
    let config = EngineConfig { eos_token_ids: vec![eos], ..EngineConfig::default() };
    let mut rig = Rig::new(FakeRunner::new(shape()), config);
    let mut heeded = rig.submit(&Request { ignore_eos: false, ..plain.clone() });
    let mut ignored = rig.submit(&plain);
    let mut stopped = rig.submit(&Request { stop: vec![eos], ..plain.clone() });
    rig.finish();
    let cut = Usage { prompt_tokens: 1, completion_tokens: first as u32 + 1 };
    assert_eq!(read_finished(&mut heeded), (tokens[..first].to_vec(), FinishReason::Stop, cut));
    assert_eq!(read_finished(&mut stopped), (tokens[..first].to_vec(), FinishReason::Stop, cut));
    assert_eq!(read_finished(&mut ignored), plain.expected(&shape(), &[]));
}

#[test]
fn the_context_ends_a_sequence() {
    for small in [RunnerShape { context_tokens_max: 10, ..shape() }, RunnerShape { kv_blocks: 3, ..shape() }] {
        let mut rig = Rig::fake(small);
        let mut stream = rig.submit(&request([1, 2], 100));
        rig.finish();
        let (tokens, reason, _) = read_finished(&mut stream);
        assert_eq!((tokens.len() + 2, reason), (small.sequence_tokens_max(), FinishReason::Length));
    }
}

#[test]
fn when_blocks_run_out_the_youngest_is_set_back_and_nothing_is_sent_twice() {
    let small = RunnerShape { kv_blocks: 6, ..shape() };
    let requests = [request([1, 2, 3], 20), request([4, 5, 6], 20).with([("a0", 1.0)]), request([7], 5)];
    let mut rig = Rig::fake(small);
    let mut streams: Vec<_> = requests.iter().map(|request| rig.submit(request)).collect();
    rig.finish();
    assert!(rig.handle.stats().preemptions > 0);
    for (request, stream) in requests.iter().zip(&mut streams) {
        assert_eq!(read_finished(stream), request.expected(&small, &[]));
    }
}

#[test]
fn more_adapters_than_slots_take_turns() {
    const NAMES: [&str; 6] = ["a0", "a1", "a2", "a3", "a4", "a5"];
    let small = RunnerShape { adapter_slots: 2, ..shape() };
    let requests: Vec<_> =
        (0..6).map(|i| request([i as u32], 4).with([(NAMES[i], 1.0), (NAMES[(i + 1) % 6], 1.0)])).collect();
    let mut rig = Rig::fake(small);
    let mut streams: Vec<_> = requests.iter().map(|request| rig.submit(request)).collect();
    rig.finish();
    for (request, stream) in requests.iter().zip(&mut streams) {
        assert_eq!(read_finished(stream), request.expected(&small, &[]));
    }
}

#[test]
fn a_failed_step_fails_its_sequences_and_no_later_one() {
    let config = EngineConfig { running_sequences_max: 2, ..EngineConfig::default() };
    let mut rig = Rig::new(FakeRunner::new(shape()).failing_at([2]), config);
    let mut hit = [rig.submit(&request([1], 10)), rig.submit(&request([2], 10))];
    let mut waits = rig.submit(&request([4], 10));
    for _ in 0..3 {
        rig.step();
    }
    for stream in &mut hit {
        let (tokens, last) = read(stream);
        assert_eq!(tokens.len(), 2);
        assert_eq!(
            last,
            Some(TokenEvent::Failed(GenerationError::Runner("runner failed: told to fail in step 2".into())))
        );
        assert_eq!(stream.try_recv(), None, "nothing comes after the end");
    }
    assert_eq!(rig.handle.stats().kv_blocks_free, 64);
    let mut later = rig.submit(&request([3], 10));
    rig.finish();
    assert_eq!(read_finished(&mut waits), request([4], 10).expected(&shape(), &[]));
    assert_eq!(read_finished(&mut later), request([3], 10).expected(&shape(), &[]));
}

#[test]
fn an_adapter_that_does_not_load_fails_only_those_that_need_it() {
    let mut rig = Rig::fake(RunnerShape { adapter_slots: 2, ..shape() });
    let good = request([1], 6).with([("a0", 1.0)]);
    let mut streams = [
        rig.submit(&good),
        rig.submit(&request([1], 6).with([("broken", 1.0), ("a0", 1.0)])),
        rig.submit(&request([2], 6).with([("broken", 1.0)])),
        rig.submit(&request([3], 6)),
    ];
    rig.finish();
    let [one, two, three, four] = &mut streams;
    assert_eq!(read_finished(one), good.expected(&shape(), &[]));
    for stream in [two, three] {
        let failed = TokenEvent::Failed(GenerationError::Adapter("adapter does not fit: it is broken".into()));
        assert_eq!(read(stream), (vec![], Some(failed)));
    }
    assert_eq!(read_finished(four), request([3], 6).expected(&shape(), &[]));
    assert_eq!(rig.handle.stats().resident_adapters, [Digest::of(b"a0")]);
}

#[test]
fn a_shape_without_room_is_refused() {
    let clock: Clock = Arc::new(|| Duration::ZERO);
    for bad in [RunnerShape { kv_blocks: 0, ..shape() }, RunnerShape { context_tokens_max: 1, ..shape() }] {
        let engine = Engine::new(FakeRunner::new(bad), EngineConfig::default(), Arc::clone(&clock));
        assert!(matches!(engine.err(), Some(EngineError::Shape(_))));
    }
}

#[test]
fn an_adapter_that_is_to_be_unloaded_leaves_its_slot_with_its_last_sequence() {
    let mut rig = Rig::fake(RunnerShape { adapter_slots: 2, ..shape() });
    let with = |prompt, output, unload| {
        let mut one = request([prompt], output).with([("a0", 1.0)]);
        one.terms.unload = unload;
        one
    };
    let residents = |rig: &Rig<FakeRunner>| rig.handle.stats().resident_adapters;
    let (short, long) = (with(1, 2, true), with(2, 9, false));
    let (mut first, mut second) = (rig.submit(&short), rig.submit(&long));
    for _ in 0..4 {
        rig.step();
    }
    assert_eq!(read_finished(&mut first), short.expected(&shape(), &[]));
    assert_eq!(residents(&rig), [Digest::of(b"a0")], "somebody has it still");
    rig.finish();
    assert_eq!(read_finished(&mut second), long.expected(&shape(), &[]));
    assert!(residents(&rig).is_empty());
    // It can come back, stay, and go when whoever has it hangs up.
    assert_eq!(rig.run(&with(3, 2, false)), with(3, 2, false).expected(&shape(), &[]));
    assert_eq!(residents(&rig), [Digest::of(b"a0")]);
    let gone = rig.submit(&with(4, 9, true));
    rig.step();
    drop(gone);
    rig.step();
    assert!(residents(&rig).is_empty());
}

#[test]
fn what_is_revoked_ends_at_once_and_its_slot_is_empty() {
    let mut rig = Rig::fake(RunnerShape { adapter_slots: 2, ..shape() });
    let author = Digest::of(b"a plugin");
    let mut written = request([6], 10);
    written.terms.author = Some(author);
    let mut hit = [
        rig.submit(&request([1], 10).with([("a0", 1.0)])),
        rig.submit(&request([2], 10).with([("a1", 0.5), ("a0", 1.0)])),
    ];
    let mut spared = rig.submit(&request([3], 10).with([("a1", 0.5)]));
    let mut by_plugin = rig.submit(&written);
    for _ in 0..3 {
        rig.step();
    }
    rig.revoke(Digest::of(b"a0"));
    let mut late = rig.submit(&request([4], 10).with([("a0", 1.0)]));
    rig.step();
    for stream in hit.iter_mut().chain([&mut late]) {
        let (tokens, last) = read(stream);
        assert!(tokens.len() <= 3, "{tokens:?}");
        assert_eq!(last, Some(TokenEvent::Failed(GenerationError::Revoked(Digest::of(b"a0")))));
    }
    assert_eq!(rig.handle.stats().resident_adapters, [Digest::of(b"a1")]);
    rig.revoke(author);
    rig.finish();
    assert_eq!(read(&mut by_plugin).1, Some(TokenEvent::Failed(GenerationError::Revoked(author))));
    assert_eq!(read_finished(&mut spared), request([3], 10).with([("a1", 0.5)]).expected(&shape(), &[]));
    // Idle in its slot: it leaves it all the same.
    rig.revoke(Digest::of(b"a1"));
    rig.step();
    assert!(rig.handle.stats().resident_adapters.is_empty());
    let mut after = rig.submit(&written);
    rig.finish();
    assert_eq!(read(&mut after), (vec![], Some(TokenEvent::Failed(GenerationError::Revoked(author)))));
}
