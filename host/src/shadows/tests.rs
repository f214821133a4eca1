//! Tests of [`super`]: verdicts, and that reports are bounded and their own.

use std::time::Duration;

use super::*;

fn owner(function: &str) -> ShadowOwner {
    ShadowOwner { tenant: "acme".parse().expect("a name"), function: function.parse().expect("a name"), life: 1 }
}

fn said(shadows: &Shadows, pieces: &[&str], finish: &'static str) -> Answer {
    let mut listener = shadows.listener();
    pieces.iter().for_each(|piece| listener.hear(piece));
    listener.end(Some(finish), 3, None, Duration::from_millis(5))
}

fn failed(shadows: &Shadows, code: &str) -> Answer {
    shadows.listener().end(None, 0, Some(code.to_owned()), Duration::ZERO)
}

fn compared(primary: Answer, shadow: Answer) -> (&'static str, Option<u64>) {
    let comparison = Comparison::new("req_1".into(), (1, primary), (2, shadow));
    (comparison.verdict.name(), comparison.differs_at_byte)
}

#[test]
fn answers_are_equal_however_they_came_in_pieces() {
    let shadows = Shadows::new().expect("randomness");
    let whole = || said(&shadows, &["hello there"], "stop");
    assert_eq!(compared(whole(), said(&shadows, &["hel", "", "lo there"], "stop")), ("equal", None));
    assert_eq!(compared(whole(), said(&shadows, &["hello There"], "stop")), ("different", Some(6)));
    assert_eq!(compared(whole(), said(&shadows, &["hello"], "stop")), ("different", Some(5)));
    assert_eq!(compared(whole(), said(&shadows, &[], "stop")), ("different", Some(0)));
    assert_eq!(compared(whole(), said(&shadows, &["hello there"], "length")), ("different", None), "another end");
    assert_eq!(compared(whole(), failed(&shadows, "plugin_trap")).0, "failed");
    assert_eq!(compared(failed(&shadows, "plugin_trap"), failed(&shadows, "plugin_trap")), ("equal", None));
    assert_eq!(compared(failed(&shadows, "plugin_trap"), failed(&shadows, "plugin_error")).0, "failed");
    assert_eq!(compared(failed(&shadows, "plugin_trap"), whole()).0, "different");
}

#[test]
fn long_answers_are_compared_whole_though_not_all_is_kept() {
    let shadows = Shadows::new().expect("randomness");
    let long = "x".repeat(100_000);
    let answer = |end: &str| said(&shadows, &[&long, end], "stop");
    assert_eq!(compared(answer("a"), answer("a")), ("equal", None));
    assert_eq!(compared(answer("a"), answer("b")), ("different", None), "somewhere beyond what is kept");
}

#[test]
fn a_digest_is_not_to_be_guessed() {
    let (one, other) = (Shadows::new().expect("randomness"), Shadows::new().expect("randomness"));
    let yes = |shadows: &Shadows| said(shadows, &["yes"], "stop").digest;
    assert_eq!(yes(&one), yes(&one));
    assert_ne!(yes(&one), yes(&other));
    assert_ne!(yes(&one), types::Digest::of(b"yes"));
}

#[test]
fn reports_are_bounded_and_of_one_version() {
    let shadows = Shadows::new().expect("randomness");
    let note = |owner: &ShadowOwner, version: u32| {
        let (primary, shadow) = (said(&shadows, &["a"], "stop"), said(&shadows, &["a"], "stop"));
        shadows.note(owner, 7, u64::from(version), Comparison::new("req_1".into(), (1, primary), (version, shadow)));
    };
    let f = owner("f");
    (0..100).for_each(|_| note(&f, 2));
    shadows.count_dropped(&f, 2, 2, Dropped::Busy);
    let report = shadows.report(&f).expect("a report");
    assert_eq!((report.version, report.equal, report.dropped_busy), (2, 100, 1));
    assert_eq!((report.prompt_tokens, report.completion_tokens), (700, 300));
    assert_eq!(report.comparisons.len(), COMPARISONS_MAX);
    note(&f, 3);
    let report = shadows.report(&f).expect("a report");
    assert_eq!((report.version, report.equal, report.dropped_busy), (3, 1, 0), "another version begins anew");
    note(&f, 2);
    shadows.count_dropped(&f, 2, 2, Dropped::CutOff);
    let report = shadows.report(&f).expect("a report");
    assert_eq!(
        (report.version, report.equal, report.dropped_cut_off),
        (3, 1, 0),
        "what began before is of no interest"
    );
    (0..REPORTS_MAX).for_each(|number| note(&owner(&format!("g{number}")), 2));
    assert!(shadows.report(&f).is_none(), "the one that was not added to for longest went");
    assert_eq!(shadows.lock().by_owner.len(), REPORTS_MAX);
    shadows.remove(&owner("g7").tenant, &owner("g7").function);
    assert!(shadows.report(&owner("g7")).is_none() && shadows.report(&owner("g8")).is_some());
}

#[tokio::test]
async fn places_are_few_and_closing_cuts_off_what_runs() {
    let shadows = Shadows::new().expect("randomness");
    let places: Vec<_> = (0..COPIES_MAX).map(|_| shadows.place().expect("a place")).collect();
    assert!(shadows.place().is_none());
    drop(places);
    let (cut, was_cut) = tokio::sync::oneshot::channel();
    let place = shadows.place().expect("given back");
    let endless = async move {
        let _place = place;
        std::future::pending::<()>().await;
    };
    shadows.spawn(endless, || cut.send(()).expect("somebody listens"));
    tokio::time::timeout(Duration::from_secs(20), shadows.close()).await.expect("it does not wait for copies");
    assert_eq!(was_cut.await, Ok(()));
    assert!(shadows.place().is_none(), "no copy begins any more");
}
