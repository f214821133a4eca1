//! Who is served next, who gives way, and who is refused.

use super::*;

fn one_at_a_time() -> EngineConfig {
    EngineConfig { running_sequences_max: 1, ..EngineConfig::default() }
}

/// Steps until all have ended; the order in which they did, those that end together in the order given.
fn endings<R: ModelRunner>(rig: &mut Rig<R>, streams: &mut [TokenStream]) -> Vec<usize> {
    let mut ended = Vec::new();
    while ended.len() < streams.len() {
        rig.step();
        let now = |stream: &mut TokenStream| std::iter::from_fn(|| stream.try_recv()).any(|event| !is_token(&event));
        let new: Vec<_> = streams.iter_mut().map(now).enumerate().filter(|(_, now)| *now).collect();
        ended.extend(new.into_iter().map(|(index, _)| index));
        assert!(rig.handle.stats().steps < 10_000);
    }
    ended
}

const fn is_token(event: &TokenEvent) -> bool {
    matches!(event, TokenEvent::Token { .. })
}

#[test]
fn higher_priorities_go_first_and_equal_ones_in_turn() {
    let mut rig = Rig::new(FakeRunner::new(shape()), one_at_a_time());
    let requests = [0, -5, 3, 0, 3].map(|priority| request([1, 2], 2).urgent(priority));
    let mut streams = requests.map(|request| rig.submit(&request));
    assert_eq!(endings(&mut rig, &mut streams), [2, 4, 0, 3, 1]);
}

#[test]
fn a_lower_priority_makes_room_and_goes_on_afterwards() {
    for config in [one_at_a_time(), EngineConfig::default()] {
        let small = RunnerShape { kv_blocks: 6, ..shape() };
        let mut rig = Rig::new(FakeRunner::new(small), config);
        let (low, high) = (request(0..8, 8), request(10..22, 4).urgent(1));
        let mut streams = [rig.submit(&low)];
        (0..3).for_each(|_| rig.step());
        let mut urgent = rig.submit(&high);
        for _ in 0..4 {
            rig.step();
        }
        assert_eq!(read_finished(&mut urgent), high.expected(&small, &[]), "it did not wait");
        assert_eq!(rig.handle.stats().preemptions, 1);
        rig.finish();
        assert_eq!(read_finished(&mut streams[0]), low.expected(&small, &[]));
    }
}

#[test]
fn a_long_prompt_of_lower_priority_lends_its_rows_and_loses_nothing() {
    let mut rig = Rig::fake(RunnerShape { batch_rows_max: 8, ..shape() });
    let (low, high) = (request(0..40, 2), request(10..16, 2).urgent(1));
    let mut long = rig.submit(&low);
    rig.step();
    let mut urgent = rig.submit(&high);
    (0..2).for_each(|_| rig.step());
    assert_eq!(read_finished(&mut urgent), high.expected(&shape(), &[]), "it did not wait");
    rig.finish();
    assert_eq!(read_finished(&mut long), low.expected(&shape(), &[]));
    assert_eq!((rig.handle.stats().preemptions, rig.handle.stats().steps), (0, 1 + 1 + 5 + 1));
}

#[test]
fn equal_priorities_make_no_room() {
    let mut rig = Rig::new(FakeRunner::new(shape()), one_at_a_time());
    let mut streams = [rig.submit(&request([1], 9)), rig.submit(&request([2], 1))];
    assert_eq!(endings(&mut rig, &mut streams), [0, 1]);
    assert_eq!(rig.handle.stats().preemptions, 0);
}

#[test]
fn tenants_share_whatever_they_ask_for() {
    let mut rig = Rig::new(FakeRunner::new(shape()), one_at_a_time());
    // One sends twenty before the other sends four of the same size.
    let mut streams: Vec<_> = (0..20).map(|i| rig.submit(&request([i, 1], 4).of("greedy"))).collect();
    rig.step();
    streams.extend((0..4).map(|i| rig.submit(&request([i, 2], 4).of("modest"))));
    let order = endings(&mut rig, &mut streams);
    let last_modest = order.iter().position(|index| *index == 23).expect("it ended");
    assert!(last_modest <= 9, "the fourth of the modest one ended as number {last_modest}: {order:?}");
}

#[test]
fn tenants_with_large_requests_get_fewer_of_them() {
    // Tokens of the prompts and of the answers; one of a prompt counts 1, one of an answer 2.
    for (large, small) in [((2, 40), (2, 10)), ((90, 1), (18, 1)), ((2, 30), (44, 1))] {
        let cost = |(prompt, output)| i64::from(prompt + 2 * output);
        let mut rig = Rig::new(FakeRunner::new(RunnerShape { batch_rows_max: 100, ..shape() }), one_at_a_time());
        // No two begin alike.
        let ask =
            |number: u32, (prompt, output): (u32, u32)| request((0..prompt).map(|i| (number + i * i) % 50), output);
        let of_large = (0..12).map(|number| ask(number, large).of("large"));
        let of_small = (0..30).map(|number| ask(number, small).of("small"));
        let mut streams: Vec<_> = of_large.chain(of_small).map(|request| rig.submit(&request)).collect();
        let order = endings(&mut rig, &mut streams);
        for ended in 1..=20 {
            let larges = order.iter().take(ended).filter(|index| **index < 12).count() as i64;
            let difference = cost(large) * larges - cost(small) * (ended as i64 - larges);
            assert!(difference.abs() <= cost(large) + cost(small), "{difference} after {ended}: {order:?}");
        }
    }
}

#[test]
fn what_cannot_be_ready_in_time_is_given_up_before_it_is_computed() {
    let rows = RunnerShape { batch_rows_max: 10, kv_blocks: 200, context_tokens_max: 400, ..shape() };
    let mut rig = Rig::new(FakeRunner::new(rows), EngineConfig::default());
    // One step a millisecond: 10 rows in each.
    rig.run(&request((0..200).map(|i| i % 50), 1));
    let asked = rig.handle.stats().steps;
    let hopeless = Request { deadline_ms: Some(15), ..request((0..200).map(|i| i % 49), 1) };
    let (tokens, reason, usage) = rig.run(&hopeless);
    assert_eq!((tokens.len(), reason, usage.completion_tokens), (0, FinishReason::Deadline, 0));
    assert_eq!((rig.handle.stats().steps - asked, rig.handle.stats().deadlines_foreseen), (0, 1));
    let known = Request { deadline_ms: Some(15), ..request((0..200).map(|i| i % 50), 1) };
    assert_eq!(rig.run(&known).1, FinishReason::Length, "its KV is kept: it is in time");
    let possible = Request { deadline_ms: Some(25), ..hopeless };
    assert_eq!(rig.run(&possible).1, FinishReason::Length);
}

#[test]
fn a_deadline_that_ends_in_the_queue_is_refused_at_the_door() {
    let mut rig = Rig::new(FakeRunner::new(shape()), one_at_a_time());
    let mut streams: Vec<_> = (0..20).map(|i| rig.submit(&request([i], 10))).collect();
    (0..60).for_each(|_| rig.step());
    // A start every ten milliseconds, and 14 wait.
    let submit = |deadline_ms, priority| {
        let request = Request { deadline_ms: Some(deadline_ms), ..request([40], 1).urgent(priority) };
        rig.handle.submit(request.submission())
    };
    let Err(error) = submit(100, 0) else { panic!("14 wait") };
    assert!(matches!(error, SubmitError::DeadlineTooShort { .. }), "{error}");
    let wait_ms = error.retry_after().expect("measured").as_millis();
    assert!((120..160).contains(&wait_ms), "{wait_ms}");
    streams.push(submit(200, 0).expect("long enough"));
    streams.push(submit(100, 1).expect("it goes before them"));
    rig.finish();
    for stream in &mut streams {
        assert_eq!(read_finished(stream).1, FinishReason::Length);
    }
}

#[test]
fn no_tenant_fills_the_queue() {
    let config = EngineConfig { waiting_requests_max: 6, tenant_waiting_requests_max: Some(4), ..one_at_a_time() };
    let mut rig = Rig::new(FakeRunner::new(shape()), config);
    let greedy = request([1], 2).of("greedy");
    let mut streams: Vec<_> = (0..4).map(|_| rig.submit(&greedy)).collect();
    let refused = rig.handle.submit(greedy.submission()).err();
    assert!(matches!(refused, Some(SubmitError::TenantQueueFull { waiting: 4, .. })), "{refused:?}");
    streams.extend((0..2).map(|_| rig.submit(&greedy.clone().of("modest"))));
    let refused = rig.handle.submit(greedy.clone().of("late").submission()).err();
    assert!(matches!(refused, Some(SubmitError::QueueFull { waiting: 6, .. })), "{refused:?}");
    rig.finish();
    assert!(streams.iter_mut().all(|stream| read_finished(stream).1 == FinishReason::Length));
    let stats = rig.handle.stats();
    assert_eq!((stats.requests_started, stats.waiting), (6, 0));
    assert_eq!(stats.queued, Duration::from_millis(1 + 3 + 5 + 7 + 9 + 11), "two steps for each before it");
}
