//! Tests of [`super`]: bounds, cursors, waiting, deletion.

use super::ring::LINE_OVERHEAD_BYTES;
use super::*;

fn names() -> (TenantId, FunctionName) {
    ("tenant".parse().expect("a name"), "function".parse().expect("a name"))
}

fn messages(page: &Page) -> Vec<&str> {
    page.lines.iter().map(|line| line.message.as_str()).collect()
}

#[test]
fn the_newest_lines_come_first_and_a_cursor_goes_on_from_there() {
    let logs = FunctionLogs::new(LogLimits::default());
    let (tenant, function) = names();
    let log = logs.invocation(&tenant, &function, 3, "req_1");
    for number in 1..=5 {
        log.write(Level::Info, &number.to_string());
    }
    let page = logs.read(&tenant, &function, Cursor::Newest, 2);
    assert_eq!((messages(&page), page.dropped), (vec!["4", "5"], 0));
    assert_eq!((page.lines[0].version, &*page.lines[0].request_id), (3, "req_1"));
    log.write(Level::Error, "6");
    log.write(Level::Error, "7");
    let after = page.next.to_string().parse().expect("a cursor survives its text");
    let page = logs.read(&tenant, &function, after, 1);
    assert_eq!((messages(&page), page.lines[0].sequence), (vec!["6"], 6));
    let page = logs.read(&tenant, &function, page.next, 10);
    assert_eq!(messages(&page), ["7"]);
    let end = logs.read(&tenant, &function, page.next, 10);
    assert!(end.lines.is_empty() && end.next == page.next);
}

#[test]
fn what_is_forgotten_is_counted() {
    let limits = LogLimits { function_lines_max: 3, line_bytes_max: 4, ..LogLimits::default() };
    let logs = FunctionLogs::new(limits);
    let (tenant, function) = names();
    let log = logs.invocation(&tenant, &function, 1, "req");
    log.write(Level::Info, "1");
    let start = logs.read(&tenant, &function, Cursor::Newest, 10).next;
    for number in 2..=9 {
        log.write(Level::Info, &number.to_string());
    }
    let page = logs.read(&tenant, &function, start, 10);
    assert_eq!((messages(&page), page.dropped), (vec!["7", "8", "9"], 5), "2 to 6 are gone");
    assert_eq!(logs.read(&tenant, &function, Cursor::Newest, 1).dropped, 6, "1 to 6 are gone");
    log.write(Level::Info, "ab\u{1f600}cd");
    let page = logs.read(&tenant, &function, page.next, 1);
    assert_eq!(messages(&page), ["ab … (6 bytes were cut)"], "cut between characters");
}

#[test]
fn bytes_are_bounded_by_function_tenant_and_host() {
    let line = 100 + LINE_OVERHEAD_BYTES;
    let limits = LogLimits {
        function_bytes_max: 10 * line,
        tenant_bytes_max: 16 * line,
        host_bytes_max: 24 * line,
        ..LogLimits::default()
    };
    let logs = FunctionLogs::new(limits);
    let text = "x".repeat(100);
    let count = |tenant: &str, function: &str| {
        let (tenant, function) = (tenant.parse().expect("name"), function.parse().expect("name"));
        logs.read(&tenant, &function, Cursor::Newest, usize::MAX).lines.len()
    };
    let write = |tenant: &str, function: &str, lines: usize| {
        let (tenant, function) = (tenant.parse().expect("name"), function.parse().expect("name"));
        let log = logs.invocation(&tenant, &function, 1, "req");
        (0..lines).for_each(|_| log.write(Level::Info, &text));
    };
    write("small", "f", 2);
    write("a", "f", 50);
    assert_eq!(count("a", "f"), 10, "one function's limit");
    write("a", "g", 10);
    assert!((14..=16).contains(&(count("a", "f") + count("a", "g"))), "the tenant's limit, the larger gives first");
    write("b", "f", 10);
    let sums = logs.shared.lock().logs.values().map(|logs| logs.bytes).sum::<usize>();
    assert_eq!(sums, logs.shared.lock().bytes, "the sum is kept");
    assert!(sums <= limits.host_bytes_max, "the host's limit");
    assert_eq!(count("small", "f"), 2, "who has little keeps it");
    assert!(count("b", "f") > 0 && count("a", "f") + count("a", "g") > 0);
    for (tenant, function) in [("small", "f"), ("a", "f"), ("a", "g"), ("b", "f")] {
        logs.remove(&tenant.parse().expect("name"), &function.parse().expect("name"));
    }
    assert_eq!(logs.shared.lock().bytes, 0);
}

#[test]
fn a_deleted_function_leaves_its_successor_no_line() {
    let logs = FunctionLogs::new(LogLimits::default());
    let (tenant, function) = names();
    let old = logs.invocation(&tenant, &function, 1, "req_old");
    old.write(Level::Info, "old");
    let cursor = logs.read(&tenant, &function, Cursor::Newest, 10).next;
    logs.remove(&tenant, &function);
    old.write(Level::Info, "too late");
    let new = logs.invocation(&tenant, &function, 2, "req_new");
    old.write(Level::Info, "too late");
    new.write(Level::Info, "new");
    assert_eq!(messages(&logs.read(&tenant, &function, Cursor::Newest, 10)), ["new"]);
    assert_eq!(messages(&logs.read(&tenant, &function, cursor, 10)), ["new"], "an old cursor starts at the beginning");
}

#[tokio::test]
async fn who_waits_is_woken_by_a_line_by_the_end_and_by_time() {
    let logs = FunctionLogs::new(LogLimits::default());
    let (tenant, function) = names();
    let log = logs.invocation(&tenant, &function, 1, "req");
    let long = Duration::from_secs(60);
    let cursor = logs.read(&tenant, &function, Cursor::Newest, 10).next;
    let soon = Duration::from_secs(20);
    let started = std::time::Instant::now();
    let ((), ()) = tokio::join!(logs.wait(&tenant, &function, cursor, long), async {
        tokio::task::yield_now().await;
        log.write(Level::Info, "a line");
    });
    logs.wait(&tenant, &function, cursor, long).await;
    let cursor = logs.read(&tenant, &function, cursor, 10).next;
    logs.wait(&tenant, &function, cursor, Duration::from_millis(20)).await;
    let ((), ()) = tokio::join!(logs.wait(&tenant, &function, cursor, long), async {
        tokio::task::yield_now().await;
        logs.remove(&tenant, &function);
    });
    let ((), ()) = tokio::join!(logs.wait(&tenant, &function, cursor, long), async {
        tokio::task::yield_now().await;
        logs.close();
    });
    logs.wait(&tenant, &function, cursor, long).await;
    assert!(started.elapsed() < soon, "nobody waited to the end");
}
