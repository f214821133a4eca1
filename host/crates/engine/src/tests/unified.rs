//! Adapters and KV in one memory: who gives way to whom, and that both are whole afterwards. `random.rs` has the same with
//! everything at once.

use super::*;

/// Adapters of three blocks each (`a0`, `a4`, …: see [`blocks`]) beside as many blocks of KV as are given here.
fn rig(kv_blocks: u32, running_sequences_max: usize) -> Rig<FakeRunner> {
    let runner = FakeRunner::new(RunnerShape { kv_blocks, ..shape() }).with_adapters_in_blocks(3);
    Rig::new(runner, EngineConfig { running_sequences_max, ..EngineConfig::default() })
}

fn blocks(name: &str) -> u64 {
    value_of(name) % 4
}

/// Two names of three blocks each.
fn large() -> [&'static str; 2] {
    let mut names = ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"].into_iter().filter(|name| blocks(name) == 3);
    [names.next().expect("one in four"), names.next().expect("one in four")]
}

#[test]
fn kv_takes_the_blocks_of_an_adapter_that_nobody_uses() {
    let [one, _] = large();
    let mut rig = rig(8, 4);
    rig.run(&request([1], 2).with([(one, 1.0)]));
    let stats = rig.handle.stats();
    assert_eq!((stats.adapter_blocks, stats.kv_blocks_free, stats.resident_adapters.len()), (3, 8, 1));
    // 20 tokens are 5 blocks, beside which the adapter stays; 24 are 6.
    let expected = |request: &Request| request.expected(&RunnerShape { kv_blocks: 8, ..shape() }, &[]);
    let beside = request([2], 19);
    assert_eq!(rig.run(&beside), expected(&beside));
    assert_eq!(rig.handle.stats().adapter_blocks, 3);
    let longer = request([3], 23);
    assert_eq!(rig.run(&longer), expected(&longer));
    let stats = rig.handle.stats();
    assert_eq!((stats.adapter_blocks, stats.resident_adapters.len()), (0, 0), "it was in the way");
    assert_eq!(stats.preemptions, 0);
}

#[test]
fn an_adapter_takes_the_blocks_of_kv_that_is_only_kept_and_then_those_of_another_adapter() {
    let [one, two] = large();
    let mut rig = rig(6, 4);
    rig.run(&request(0..20, 2));
    assert_eq!(rig.handle.stats().kv_blocks_idle, 5);
    rig.run(&request([1], 2).with([(one, 1.0)]));
    let stats = rig.handle.stats();
    assert_eq!((stats.adapter_blocks, stats.kv_blocks_idle), (3, 2), "the oldest went");
    rig.run(&request([1], 2).with([(two, 1.0)]));
    let stats = rig.handle.stats();
    assert_eq!((stats.adapter_blocks, stats.resident_adapters), (3, vec![Digest::of(two.as_bytes())]));
}

#[test]
fn one_whose_adapter_finds_no_blocks_waits_for_them() {
    let [one, two] = large();
    let mut rig = rig(8, 4);
    let (mut first, mut second) =
        (rig.submit(&request([1], 10).with([(one, 1.0)])), rig.submit(&request([1], 10).with([(two, 1.0)])));
    rig.step();
    rig.step();
    let stats = rig.handle.stats();
    assert_eq!((stats.running, stats.adapter_blocks), (2, 6), "a block of KV for each");
    // Each needs a third block: the younger one gives way, with its adapter, and comes back.
    rig.finish();
    for stream in [&mut first, &mut second] {
        assert_eq!(read_finished(stream).1, FinishReason::Length);
    }
    assert!(rig.handle.stats().preemptions > 0);
}

#[test]
fn what_would_not_fit_beside_its_adapters_is_refused_and_what_just_fits_ends_there() {
    let [one, two] = large();
    let mut rig = rig(8, 4);
    // Two blocks of four tokens are left.
    let both = |prompt: u32| request(0..prompt, 20).with([(one, 1.0), (two, 1.0)]);
    let mut refused = rig.submit(&both(8));
    rig.finish();
    let (_, last) = read(&mut refused);
    assert_eq!(last, Some(TokenEvent::Failed(GenerationError::NoRoom { tokens: 8, max: 7 })));
    let (tokens, reason, _) = rig.run(&both(7));
    assert_eq!((tokens.len(), reason), (1, FinishReason::Length));
    assert_eq!(rig.run(&request(0..7, 20)).0.len(), 20, "nobody else is limited by them");
}

#[test]
fn an_adapter_that_cannot_be_loaded_leaves_its_blocks() {
    let mut rig = rig(8, 4);
    let mut broken = rig.submit(&request([1], 2).with([("broken", 1.0)]));
    rig.finish();
    assert!(matches!(read(&mut broken).1, Some(TokenEvent::Failed(GenerationError::Adapter(_)))));
    assert_eq!((rig.handle.stats().adapter_blocks, rig.handle.stats().kv_blocks_free), (0, 8));
    let [one, _] = large();
    rig.run(&request([1], 2).with([(one, 1.0)]));
    let told = rig.handle.inbox().try_send(Message::Revoke(Digest::of(one.as_bytes())));
    assert!(told.is_ok());
    rig.step();
    assert_eq!((rig.handle.stats().adapter_blocks, rig.handle.stats().kv_blocks_free), (0, 8));
}

#[test]
fn who_brings_adapters_is_served_less_than_who_does_not() {
    // Each in its turn: two tenants, prompts and answers of equal length, and room for one at a time.
    let served_before_the_third_of_one = |adapters: [&'static str; 3]| {
        let mut rig = rig(16, 1);
        let ones = adapters.map(|name| request([1], 2).of("one").with([(name, 1.0)]));
        let mut ones: Vec<_> = ones.iter().map(|request| rig.submit(request)).collect();
        let mut twos: Vec<_> = (0..12).map(|_| rig.submit(&request([1], 2).of("two"))).collect();
        let (mut served, mut ended) = (0, 0);
        while ended < 3 {
            rig.step();
            served += twos.iter_mut().filter_map(|stream| read(stream).1).count();
            ended += ones.iter_mut().filter_map(|stream| read(stream).1).count();
        }
        rig.finish();
        served
    };
    let names = ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9", "b0", "b1"];
    let mut large = names.into_iter().filter(|name| blocks(name) == 3);
    let large: [_; 3] = std::array::from_fn(|_| large.next().expect("one in four"));
    let turns = served_before_the_third_of_one([large[0]; 3]);
    let brings = served_before_the_third_of_one(large);
    // One of "two" takes a prompt of 1 and an output of 2 tokens that count double; an adapter takes the room of 12.
    assert_eq!((turns, brings), (5, 7), "the first that is brought is paid for too");
}
