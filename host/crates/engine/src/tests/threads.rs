//! The engine on its own thread.

use std::time::Instant;

use super::*;

fn started(runner: FakeRunner) -> Started<FakeAdapter> {
    let start = Instant::now();
    crate::start(runner, EngineConfig::default(), move || start.elapsed()).expect("a thread")
}

fn read_to_end(mut stream: TokenStream) -> (usize, TokenEvent) {
    let mut tokens = 0;
    loop {
        match stream.blocking_recv().expect("an event that ends the stream comes first") {
            TokenEvent::Token { .. } => tokens += 1,
            last => {
                assert_eq!(stream.blocking_recv(), None);
                return (tokens, last);
            }
        }
    }
}

fn is_length(event: &TokenEvent) -> bool {
    matches!(event, TokenEvent::Finished { reason: FinishReason::Length, .. })
}

#[test]
fn stop_finishes_what_is_there_and_refuses_what_comes() {
    let (handle, thread) = started(FakeRunner::new(shape()));
    let streams: Vec<_> = (0..8).map(|i| handle.submit(request([i], 100).submission()).expect("accepted")).collect();
    thread.stop().expect("a good end");
    for stream in streams {
        let (tokens, last) = read_to_end(stream);
        assert!(tokens == 100 && is_length(&last), "{tokens} {last:?}");
    }
    assert!(handle.is_stopped());
    assert_eq!(handle.submit(request([1], 1).submission()).err(), Some(SubmitError::Stopped));
}

#[test]
fn abort_fails_what_is_there() {
    let (handle, thread) = started(FakeRunner::new(shape()));
    let streams: Vec<_> =
        (0..200).map(|i| handle.submit(request([i % VOCABULARY], 100).submission()).expect("accepted")).collect();
    thread.abort().expect("a good end");
    let failed = TokenEvent::Failed(GenerationError::Stopped);
    let lasts: Vec<_> = streams.into_iter().map(|stream| read_to_end(stream).1).collect();
    assert!(lasts.iter().all(|last| *last == failed || is_length(last)), "{lasts:?}");
    assert!(lasts.contains(&failed), "200 requests are too many to finish by now");
}

#[test]
fn the_engine_ends_with_its_last_handle_after_its_work() {
    let (handle, thread) = started(FakeRunner::new(shape()));
    let other = handle.clone();
    let stream = handle.submit(request([1], 100).submission()).expect("accepted");
    drop(handle);
    drop(other);
    assert!(is_length(&read_to_end(stream).1));
    let patience = Instant::now();
    while !thread.is_finished() {
        assert!(patience.elapsed() < Duration::from_secs(10), "the thread goes on without handles");
        std::thread::yield_now();
    }
    thread.stop().expect("a good end");
}

#[test]
fn a_panic_of_the_runner_ends_every_stream() {
    let (handle, thread) = started(FakeRunner::new(shape()).panicking_at(3));
    let streams: Vec<_> = (0..20).map(|i| handle.submit(request([i], 100).submission())).collect();
    for stream in streams.into_iter().flatten() {
        assert_eq!(read_to_end(stream).1, TokenEvent::Failed(GenerationError::Stopped));
    }
    assert!(matches!(thread.stop(), Err(EngineError::Panicked)));
    assert_eq!(handle.submit(request([1], 1).submission()).err(), Some(SubmitError::Stopped));
}

#[test]
fn an_idle_engine_wakes_for_each_request_and_needs_no_reader() {
    let (handle, thread) = started(FakeRunner::new(shape()));
    let unread = handle.submit(request([1], 120).submission()).expect("accepted");
    for i in 0..5 {
        let stream = handle.submit(request([i], 3).with([("a0", 1.0)]).submission()).expect("accepted");
        assert!(is_length(&read_to_end(stream).1));
    }
    assert_eq!(read_to_end(unread).0, 120);
    thread.stop().expect("a good end");
    let stats = handle.stats();
    assert_eq!((stats.waiting, stats.running, stats.tokens_generated), (0, 0, 135));
}
