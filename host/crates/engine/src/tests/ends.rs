//! How things end that do not end by themselves: adapters that go with those who brought them, a device that is lost.

use super::*;

#[test]
fn an_adapter_that_is_to_go_goes_also_with_one_that_was_set_back() {
    let config = EngineConfig { running_sequences_max: 1, ..EngineConfig::default() };
    let leaves = |cancelled: bool, shared: bool| {
        let mut rig = Rig::new(FakeRunner::new(shape()), config.clone());
        let mut low = request(0..9, 40).with([("a0", 1.0)]);
        low.terms.unload = true;
        let mut low = Some(rig.submit(&low));
        rig.step();
        assert_eq!(rig.handle.stats().resident_adapters, [Digest::of(b"a0")]);
        let urgent = request(0..9, 8).urgent(1);
        let mut urgent = rig.submit(&if shared { urgent.with([("a0", 1.0)]) } else { urgent });
        rig.step();
        assert_eq!(rig.handle.stats().preemptions, 1, "it waits again");
        assert_eq!(rig.handle.stats().resident_adapters.len(), 1, "it comes back for it");
        if cancelled {
            drop(low.take());
        }
        rig.step();
        let soon = rig.handle.stats().resident_adapters.len();
        rig.finish();
        read_finished(&mut urgent);
        (soon, rig.handle.stats().resident_adapters.len())
    };
    assert_eq!(leaves(true, false), (0, 0), "at once");
    assert_eq!(leaves(true, true), (1, 0), "with the other one that uses it");
    assert_eq!(leaves(false, false), (1, 0), "with its own end");
}

#[test]
fn one_that_never_ran_has_nothing_unloaded() {
    let config = EngineConfig { running_sequences_max: 1, ..EngineConfig::default() };
    let mut rig = Rig::new(FakeRunner::new(shape()), config);
    rig.run(&request(0..9, 2).with([("a0", 1.0)]));
    let _first = rig.submit(&request(0..9, 20));
    let mut second = request(0..9, 2).with([("a0", 1.0)]);
    second.terms.unload = true;
    let second = rig.submit(&second);
    rig.step();
    drop(second);
    rig.finish();
    assert_eq!(rig.handle.stats().resident_adapters, [Digest::of(b"a0")]);
}

#[test]
fn with_a_lost_device_everything_ends_and_nothing_is_taken() {
    let runner = || FakeRunner::new(RunnerShape { batch_rows_max: 4, ..shape() }).losing_at(3);
    // Where steps overlap, the one behind it was submitted before the loss is known.
    for (runner, steps) in [(runner(), 4), (runner().overlapping(), 5)] {
        ends_with_its_device(runner, steps);
    }
}

fn ends_with_its_device(runner: FakeRunner, steps: u64) {
    let mut rig = Rig::new(runner, EngineConfig { running_sequences_max: 2, ..EngineConfig::default() });
    let mut unloaded = request(0..6, 20).with([("a0", 1.0)]);
    unloaded.terms.unload = true;
    let mut streams: Vec<_> = (0..4).map(|_| rig.submit(&unloaded)).collect();
    for _ in 0..steps - 1 {
        rig.step();
    }
    assert_eq!(rig.handle.lost(), None);
    rig.step();
    for stream in &mut streams {
        let last = read(stream).1;
        assert_eq!(last, Some(TokenEvent::Failed(GenerationError::DeviceLost)), "what ran and what waited");
    }
    assert!(rig.engine.is_idle());
    assert!(rig.handle.lost().expect("it is said how").contains("step 3"));
    assert!(!rig.handle.is_stopped(), "whoever asks is answered");
    let refused = rig.handle.submit(unloaded.submission()).expect_err("nothing is taken");
    assert_eq!((refused.code(), refused.blame()), ("device_lost", types::Blame::Capacity));
    // The fake runner panics if it is asked for anything.
    rig.revoke(Digest::of(b"a0"));
    rig.step();
    let stats = rig.handle.stats();
    assert_eq!((stats.steps, stats.resident_adapters, stats.adapter_blocks), (steps, Vec::new(), 0));
}

#[test]
fn no_adapter_is_said_to_lie_on_a_device_that_is_lost() {
    let runner = FakeRunner::new(shape()).with_adapters_in_blocks(3).losing_at(2);
    let mut rig = Rig::new(runner, EngineConfig::default());
    rig.run(&request(0..6, 2).with([("a0", 1.0)]));
    let before = rig.handle.stats();
    assert_eq!(
        (before.steps, before.resident_adapters, before.adapter_blocks),
        (2, vec![Digest::of(b"a0")], 3),
        "idle"
    );
    let mut hit = rig.submit(&request(0..6, 2));
    rig.step();
    assert_eq!(read(&mut hit).1, Some(TokenEvent::Failed(GenerationError::DeviceLost)));
    let stats = rig.handle.stats();
    assert_eq!((stats.resident_adapters, stats.resident_fillers, stats.adapter_blocks), (vec![], vec![], 0));
}

#[test]
fn what_came_before_the_loss_was_known_ends_too() {
    let mut rig = Rig::new(FakeRunner::new(shape()).losing_at(0), EngineConfig::default());
    let arrival = || {
        let place = rig.handle.door().enter(Terms::default(), 1, Duration::MAX).expect("a place").remove(0);
        let (events, stream) = tokio::sync::mpsc::channel(9);
        let submission = request(0..6, 8).submission();
        (crate::handle::Arrival { submission, submitted: Duration::ZERO, events, place, family: None }, stream)
    };
    let (late, mut stream) = arrival();
    let mut first = rig.submit(&request(0..6, 8));
    rig.step();
    assert_eq!(read(&mut first).1, Some(TokenEvent::Failed(GenerationError::DeviceLost)));
    assert!(rig.handle.inbox().try_send(Message::Arrival(Box::new(late))).is_ok());
    rig.step();
    assert_eq!(stream.try_recv().ok(), Some(TokenEvent::Failed(GenerationError::DeviceLost)));
    assert_eq!(rig.handle.stats().steps, 1);
}
