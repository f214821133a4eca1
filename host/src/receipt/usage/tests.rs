//! Tests of [`super`]: the sums are those of the records, whatever happens between.

use std::collections::BTreeMap;
use std::time::Duration;

use types::TenantId;

use super::*;
use crate::receipt::log::tests::{Bench, started, tenant};
use crate::receipt::{Ending, Envelope, Final, Outcome, ReceiptLog, Timings, TokenCounts};

fn last(ending: Ending, prompt: u32, completion: u32) -> Final {
    let timings =
        Timings { plugin: Duration::from_nanos(1_234_567), total: Duration::from_micros(7001), ..Timings::default() };
    let tokens = TokenCounts { prompt, completion };
    Final { ending, outcome: Outcome { tokens, timings, ..Outcome::default() } }
}

fn week() -> UsageDays {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a sane clock");
    UsageDays::last(7, day_of(since.as_millis() as u64))
}

/// What the exported records of a tenant come to, by day and part.
fn from_export(log: &ReceiptLog, tenant: &TenantId) -> BTreeMap<(NaiveDate, Part), UsageCounts> {
    let mut sums: BTreeMap<_, UsageCounts> = BTreeMap::new();
    for line in log.export(tenant).expect("export") {
        let line = line.expect("line");
        let receipt = Envelope::parse(line.as_bytes()).expect("parse").peek().expect("peek");
        let Some(counts) = UsageCounts::of(&receipt) else { continue };
        for part in parts(&receipt) {
            let sum = sums.entry((day_of(receipt.time_unix_ms), part)).or_default();
            *sum = sum.plus(counts);
        }
    }
    sums
}

fn from_usage(log: &ReceiptLog, tenant: &TenantId) -> BTreeMap<(NaiveDate, Part), UsageCounts> {
    let rows = log.usage(tenant, week()).expect("usage");
    rows.into_iter().map(|row| ((row.day, row.part), row.counts)).collect()
}

fn total(log: &ReceiptLog, tenant: &TenantId) -> UsageCounts {
    let rows = log.usage(tenant, week()).expect("usage");
    let rows = rows.iter().filter(|row| row.part == Part::Total);
    rows.fold(UsageCounts::default(), |sum, row| sum.plus(row.counts))
}

#[tokio::test]
async fn usage_is_what_the_final_records_say() {
    let bench = Bench::new();
    let log = bench.open();
    let endings = [Ending::Finished, Ending::Failed("plugin_trap".into()), Ending::Cancelled, Ending::Finished];
    for (number, ending) in endings.into_iter().enumerate() {
        let open = log.start(started("a", &format!("r{number}"))).await.expect("started");
        open.finish(last(ending, 10, number as u32)).await.expect("final");
    }
    let other = log.start(started("b", "r")).await.expect("started");
    other.finish(last(Ending::Finished, 1000, 1000)).await.expect("final");
    let _still_running = log.start(started("a", "running")).await.expect("started");
    let a = tenant("a");
    let sum = total(&log, &a);
    let kinds = (sum.requests, sum.finished, sum.failed, sum.cancelled, sum.recovered);
    assert_eq!(kinds, (4, 2, 1, 1, 0));
    assert_eq!((sum.prompt_tokens, sum.completion_tokens), (40, 6));
    assert_eq!((sum.plugin_us, sum.total_us), (4 * 1234, 4 * 7001), "as the records say, to the microsecond");
    let rows = from_usage(&log, &a);
    assert_eq!(rows, from_export(&log, &a));
    let parts: Vec<_> = rows.keys().map(|(_, part)| part.clone()).collect();
    let expected = [
        Part::Total,
        Part::Function("skills".parse().expect("a name")),
        Part::Adapter(Digest::of(b"adapter")),
        Part::Base(Digest::of(b"base")),
    ];
    assert_eq!(parts, expected);
    assert_eq!(total(&log, &tenant("b")).prompt_tokens, 1000);
    assert!(log.usage(&tenant("nobody"), week()).expect("usage").is_empty());
}

#[tokio::test]
async fn after_a_crash_the_sums_hold_and_what_was_open_is_recovered() {
    let bench = Bench::new();
    let log = bench.open();
    let a = tenant("a");
    log.start(started("a", "1")).await.expect("started").finish(last(Ending::Finished, 3, 4)).await.expect("final");
    // Leaked, as by a process that dies: no final record is written.
    std::mem::forget(log.start(started("a", "2")).await.expect("started"));
    drop(log);
    let log = bench.open();
    let sum = total(&log, &a);
    assert_eq!((sum.requests, sum.finished, sum.recovered, sum.prompt_tokens), (2, 1, 1, 3));
    assert_eq!(from_usage(&log, &a), from_export(&log, &a));
    drop(log);
    let log = bench.open();
    assert_eq!(total(&log, &a), sum, "nothing is counted twice");
}

#[tokio::test]
async fn records_of_before_there_was_usage_are_counted_once() {
    let bench = Bench::new();
    let log = bench.open();
    for number in 0..3 {
        let open = log.start(started("a", &number.to_string())).await.expect("started");
        open.finish(last(Ending::Finished, 1, 2)).await.expect("final");
    }
    drop(log);
    let forgotten = bench.db.write(|db| {
        let transaction = db.begin_write()?;
        let was_there = transaction.delete_table(USAGE)?;
        transaction.commit()?;
        Ok::<_, ReceiptError>(was_there)
    });
    assert!(forgotten.expect("deleted"));
    let log = bench.open();
    assert_eq!(total(&log, &tenant("a")).completion_tokens, 6);
    assert_eq!(from_usage(&log, &tenant("a")), from_export(&log, &tenant("a")));
}

#[test]
fn days_are_bounded_and_in_order() {
    let day = |text: &str| text.parse::<NaiveDate>().expect("a day");
    assert_eq!(day_of(0), day("1970-01-01"));
    assert_eq!((day_of(86_399_999), day_of(86_400_000)), (day("1970-01-01"), day("1970-01-02")));
    assert!(UsageDays::new(day("2026-01-01"), day("2026-01-01")).is_ok());
    let error = UsageDays::new(day("2026-01-02"), day("2026-01-01")).expect_err("backwards");
    assert_eq!(error.code(), "invalid_request");
    let error = UsageDays::new(day("2026-01-01"), day("2026-12-31")).expect_err("too long");
    assert_eq!((error.code(), error.blame()), ("limit_exceeded", types::Blame::Caller));
    let days = UsageDays::last(30, day("2026-03-01"));
    assert_eq!((days.from(), days.to()), (day("2026-01-31"), day("2026-03-01")));
}
