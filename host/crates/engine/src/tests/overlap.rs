//! Steps that are submitted while the one before them runs: they change when the device waits, and nothing that a reader sees.
//! Random cases are in `random.rs`.

use super::*;

const OFF: SpeculationConfig = SpeculationConfig { draft_tokens_max: 0, row_cost_percent: 0 };

fn config() -> EngineConfig {
    EngineConfig { speculation: OFF, ..EngineConfig::default() }
}

fn rig(shape: RunnerShape, config: EngineConfig) -> Rig<FakeRunner> {
    Rig::new(FakeRunner::new(shape).overlapping(), config)
}

#[test]
fn steps_that_decode_overlap_and_take_as_many_steps_as_before() {
    let mut rig = rig(shape(), config());
    let requests: Vec<_> = (0..4u32)
        .map(|n| Request { seed: (n % 2 == 1).then_some(n.into()), ..request(0..n + 1, 30).with([("a0", 1.0)]) })
        .collect();
    let mut streams: Vec<_> = requests.iter().map(|one| rig.submit(one)).collect();
    rig.finish();
    for (request, stream) in requests.iter().zip(&mut streams) {
        assert_eq!(read_finished(stream), request.expected(&shape(), &[]));
    }
    let stats = rig.handle.stats();
    assert_eq!((stats.steps, stats.steps_overlapped), (30, 29), "the last token is known to be the last");
}

#[test]
fn a_token_that_ends_a_sequence_wastes_one_row_and_is_not_sent() {
    let plain = request([1, 2, 3], 30);
    let (tokens, ..) = plain.expected(&shape(), &[]);
    let (stop, others) = (Request { stop: vec![tokens[7]], ..plain }, request([9], 30));
    let mut rig = rig(shape(), config());
    let (mut stopped, mut goes_on) = (rig.submit(&stop), rig.submit(&others));
    rig.finish();
    assert_eq!(read_finished(&mut stopped), stop.expected(&shape(), &[]));
    assert_eq!(read_finished(&mut goes_on), others.expected(&shape(), &[]));
    assert_eq!(rig.handle.stats().tokens_generated, u64::from(stop.expected(&shape(), &[]).2.completion_tokens) + 30);
}

#[test]
fn blocks_of_one_that_ended_go_to_another_tenant_while_its_last_row_is_under_way() {
    // One after the other takes the blocks that the last one left: they are given out last in, first out.
    let shape = RunnerShape { kv_blocks: 12, context_tokens_max: 24, ..shape() };
    let mut rig = rig(shape, EngineConfig { running_sequences_max: 2, prefix_cache: false, ..config() });
    let mut all = Vec::new();
    for number in 0..12u32 {
        let plain = request([number % 5, 3], 22).of(["acme", "beta"][number as usize % 2]);
        let (tokens, ..) = plain.expected(&shape, &[]);
        let one = Request { stop: vec![tokens[5 + number as usize % 9]], ..plain };
        all.push((rig.submit(&one), one));
    }
    rig.finish();
    for (mut stream, request) in all {
        assert_eq!(read_finished(&mut stream), request.expected(&shape, &[]));
    }
    let stats = rig.handle.stats();
    assert!(stats.steps_overlapped + 2 >= stats.steps, "{stats:?}");
}

#[test]
fn what_needs_to_know_the_token_waits_for_it() {
    let guessing = SpeculationConfig { draft_tokens_max: 4, row_cost_percent: 0 };
    let penalised = request([1, 2], 20).penalised(1.3, 0.5);
    let run = |overlaps: bool, speculation| {
        let runner = FakeRunner::new(shape()).echoing(3);
        let runner = if overlaps { runner.overlapping() } else { runner };
        let mut rig = Rig::new(runner, EngineConfig { speculation, ..EngineConfig::default() });
        let mut streams = [rig.submit(&penalised), rig.submit(&request([1, 2], 60))];
        rig.finish();
        (streams.each_mut().map(read_finished), rig.handle.stats())
    };
    let (plain, _) = run(false, OFF);
    let (found, stats) = run(true, OFF);
    assert_eq!(found, plain);
    assert_eq!(stats.steps_overlapped, 40, "from when the penalised one draws its last");
    let (_, before) = run(false, guessing);
    let (found, stats) = run(true, guessing);
    assert_eq!(found, plain);
    assert!(stats.draft_tokens_accepted > 10 && stats.steps <= before.steps + 3, "{stats:?} for {before:?}");
}

#[test]
fn a_mask_is_asked_for_when_its_token_is_known() {
    #[derive(Debug)]
    struct Even(Vec<u32>);
    impl OutputConstraint for Even {
        fn mask(&mut self) -> Arc<TokenMask> {
            // Another half of the vocabulary after each token, by what it was.
            let last = self.0.last().copied().unwrap_or(0);
            let words = (0..2).map(|_| if last.is_multiple_of(3) { 0x5555_5555 } else { 0xaaaa_aaaa });
            Arc::new(TokenMask::known(words.collect()))
        }

        fn push(&mut self, id: u32) -> Result<OutputState, String> {
            let last = self.0.last().copied().unwrap_or(0);
            self.0.push(id);
            let allowed = id % 2 == u32::from(!last.is_multiple_of(3));
            if allowed { Ok(OutputState::Open) } else { Err(format!("{id} after {last}")) }
        }
    }
    let run = |overlaps: bool| {
        let runner = FakeRunner::new(shape());
        let runner = if overlaps { runner.overlapping() } else { runner };
        let mut rig = Rig::new(runner, config());
        let mut free = rig.submit(&request([5], 40));
        (0..10).for_each(|_| rig.step());
        let kept = Submission { constraint: Some(Box::new(Even(Vec::new()))), ..request([7, 8], 12).submission() };
        let mut kept = rig.handle.submit(kept).expect("accepted");
        rig.finish();
        (read_finished(&mut free), read_finished(&mut kept), rig.handle.stats().steps_overlapped)
    };
    let ((free, kept, overlapped), (plain_free, plain_kept, none)) = (run(true), run(false));
    assert_eq!((&free, &kept, none), (&plain_free, &plain_kept, 0));
    assert!((20..30).contains(&overlapped), "before and after the one with the mask: {overlapped}");
}

#[test]
fn a_failed_step_takes_the_one_behind_it_along_and_no_later_one() {
    for step in 1..6 {
        let config = EngineConfig { running_sequences_max: 2, ..config() };
        let mut rig = Rig::new(FakeRunner::new(shape()).overlapping().failing_at([step]), config);
        let mut hit = [rig.submit(&request([1], 10)), rig.submit(&request([2], 10).of("beta"))];
        let mut waits = rig.submit(&request([4], 10).of("beta"));
        for _ in 0..=step + 1 {
            rig.step();
        }
        for stream in &mut hit {
            let (tokens, last) = read(stream);
            assert_eq!(tokens.len() as u64, step);
            let Some(TokenEvent::Failed(why)) = last else { panic!("{last:?}") };
            assert!(why.to_string().contains(&format!("told to fail in step {step}")), "{why}");
            assert_eq!(stream.try_recv(), None, "nothing comes after the end");
        }
        rig.finish();
        assert_eq!(read_finished(&mut waits), request([4], 10).expected(&shape(), &[]));
        let mut later = rig.submit(&request([3], 10));
        rig.finish();
        assert_eq!(read_finished(&mut later), request([3], 10).expected(&shape(), &[]));
    }
}

#[test]
fn what_is_revoked_or_left_ends_at_once_and_the_rest_goes_on() {
    let mut rig = rig(RunnerShape { adapter_slots: 1, ..shape() }, config());
    let mut revoked = rig.submit(&request([1], 20).with([("a0", 1.0)]));
    let left = rig.submit(&request([2], 20));
    let mut stays = rig.submit(&request([3], 20));
    (0..4).for_each(|_| rig.step());
    assert!(rig.handle.stats().steps_overlapped > 0, "one is under way now");
    drop(left);
    rig.revoke(Digest::of(b"a0"));
    // Into the slot of the revoked one.
    let next = request([4], 20).with([("a1", 1.0)]);
    let mut other = rig.submit(&next);
    rig.step();
    let (tokens, last) = read(&mut revoked);
    assert_eq!((tokens.len(), last), (3, Some(TokenEvent::Failed(GenerationError::Revoked(Digest::of(b"a0"))))));
    assert_eq!(rig.handle.stats().running, 2);
    rig.finish();
    assert_eq!(read_finished(&mut stays), request([3], 20).expected(&shape(), &[]));
    assert_eq!(read_finished(&mut other), next.expected(&shape(), &[]));
}

#[test]
fn an_engine_is_not_idle_while_a_step_is_under_way() {
    let mut rig = rig(shape(), config());
    let stream = rig.submit(&request([1], 20));
    (0..3).for_each(|_| rig.step());
    drop(stream);
    rig.handle.inbox().try_send(Message::Abort).expect("room");
    assert!(!rig.engine.is_idle());
    rig.step();
    assert!(rig.engine.is_idle(), "what was drawn for nobody was collected");
}

#[test]
fn what_a_failed_step_was_to_wipe_is_wiped_in_a_later_one() {
    // All blocks: three of them were an adapter's, which the fake runner lets nobody write before they are wiped.
    let shape = RunnerShape { kv_blocks: 6, batch_rows_max: 32, ..shape() };
    let (brings, fills) = (request([1, 2], 2).with([("a0", 1.0)]), request(0..20, 3));
    for overlaps in [false, true] {
        for failing in [vec![2], vec![2, 3]] {
            let runner = FakeRunner::new(shape).with_adapters_in_blocks(3).failing_at(failing.clone());
            let mut rig = Rig::new(if overlaps { runner.overlapping() } else { runner }, config());
            rig.run(&brings);
            let stats = rig.handle.stats();
            assert_eq!((stats.steps, stats.adapter_blocks), (2, 3), "the next step is the one that fails");
            // Where steps overlap, the second is behind the first, and fails with it.
            for _ in 0..if overlaps { 1 } else { failing.len() } {
                let mut failed = rig.submit(&fills);
                rig.finish();
                assert!(matches!(read(&mut failed), (_, Some(TokenEvent::Failed(GenerationError::Runner(_))))));
            }
            assert_eq!(rig.run(&fills), fills.expected(&shape, &[]), "overlaps: {overlaps}, failing: {failing:?}");
        }
    }
}

#[test]
fn a_block_that_is_copied_into_is_not_wiped_for_a_failed_step_that_had_it_before() {
    /// Allows everything, and has the runner wait for it all the same.
    #[derive(Debug)]
    struct Open;
    impl OutputConstraint for Open {
        fn mask(&mut self) -> Arc<TokenMask> {
            Arc::new(TokenMask::known(vec![u32::MAX; 2]))
        }

        fn push(&mut self, _: u32) -> Result<OutputState, String> {
            Ok(OutputState::Open)
        }
    }
    let known = request(0..12, 6);
    let mut rig = Rig::new(FakeRunner::new(shape()).overlapping().failing_at([6]), config());
    rig.run(&known);
    assert_eq!(rig.handle.stats().steps, 6, "the next step is the one that fails");
    // Of another tenant, and in the block with the first one's 17th token, which is to be wiped.
    let leaves = rig.submit(&request([7], 10).of("beta"));
    rig.step();
    drop(leaves);
    // Into that block is copied, while the step is under way that was to wipe it.
    let submission = Submission { constraint: Some(Box::new(Open)), ..known.submission() };
    let mut copied = rig.handle.submit(submission).expect("accepted");
    rig.finish();
    assert_eq!(read_finished(&mut copied), known.expected(&shape(), &[]));
    let stats = rig.handle.stats();
    assert_eq!((stats.prefix_tokens_found, stats.steps_overlapped), (11, 5), "all but the last token was kept");
}

/// Refuses one step when it is submitted.
struct Refusing(FakeRunner, u64);

impl ModelRunner for Refusing {
    type Adapter = FakeAdapter;

    fn shape(&self) -> RunnerShape {
        self.0.shape()
    }

    fn fingerprint(&self) -> Digest {
        self.0.fingerprint()
    }

    fn load_adapter(&mut self, slot: Slot, adapter: &Arc<FakeAdapter>, blocks: &[u32]) -> Result<(), RunnerError> {
        self.0.load_adapter(slot, adapter, blocks)
    }

    fn unload_adapter(&mut self, slot: Slot) {
        self.0.unload_adapter(slot);
    }

    fn step(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        self.0.step(batch, sampled)
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        self.1 = self.1.wrapping_sub(1);
        if self.1 == 0 { Err(RunnerError::Failed("refused".into())) } else { self.0.submit(batch) }
    }

    fn collect(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        self.0.collect(batch, sampled)
    }
}

#[test]
fn a_refused_step_fails_after_the_one_before_it_was_collected() {
    let mut rig = Rig::new(Refusing(FakeRunner::new(shape()).overlapping(), 4), config());
    let mut hit = rig.submit(&request([1], 10));
    (0..4).for_each(|_| rig.step());
    let (tokens, last) = read(&mut hit);
    assert_eq!(tokens, request([1], 3).expected(&shape(), &[]).0);
    assert_eq!(last, Some(TokenEvent::Failed(GenerationError::Runner("runner failed: refused".into()))));
    assert!(rig.engine.is_idle());
    assert_eq!(rig.run(&request([2], 10)), request([2], 10).expected(&shape(), &[]));
}
