//! Tests of [`super`]: bounds, cursors, waiting, deletion.

use super::ring::LINE_OVERHEAD_BYTES;
use super::*;

fn owner(tenant: &str, function: &str, life: u32) -> LogOwner {
    LogOwner::new(&tenant.parse().expect("a name"), &function.parse().expect("a name"), life)
}

fn remove(logs: &FunctionLogs, owner: &LogOwner) {
    logs.remove(&owner.tenant, &owner.function, owner.life + 1);
}

fn messages(page: &Page) -> Vec<&str> {
    page.lines.iter().map(|line| line.message.as_str()).collect()
}

#[test]
fn the_newest_lines_come_first_and_a_cursor_goes_on_from_there() {
    let logs = FunctionLogs::new(LogLimits::default());
    let owner = owner("tenant", "function", 1);
    let log = logs.invocation(owner.clone(), 3, "req_1");
    for number in 1..=5 {
        log.write(Level::Info, &number.to_string());
    }
    let page = logs.read(&owner, Cursor::Newest, 2);
    assert_eq!((messages(&page), page.dropped), (vec!["4", "5"], 0));
    assert_eq!((page.lines[0].version, &*page.lines[0].request_id), (3, "req_1"));
    log.write(Level::Error, "6");
    log.write(Level::Error, "7");
    let after = page.next.to_string().parse().expect("a cursor survives its text");
    let page = logs.read(&owner, after, 1);
    assert_eq!((messages(&page), page.lines[0].sequence), (vec!["6"], 6));
    let page = logs.read(&owner, page.next, 10);
    assert_eq!(messages(&page), ["7"]);
    let end = logs.read(&owner, page.next, 10);
    assert!(end.lines.is_empty() && end.next == page.next);
}

#[test]
fn what_is_forgotten_is_counted() {
    let limits = LogLimits { function_lines_max: 3, line_bytes_max: 4, ..LogLimits::default() };
    let logs = FunctionLogs::new(limits);
    let owner = owner("tenant", "function", 1);
    let log = logs.invocation(owner.clone(), 1, "req");
    log.write(Level::Info, "1");
    let start = logs.read(&owner, Cursor::Newest, 10).next;
    for number in 2..=9 {
        log.write(Level::Info, &number.to_string());
    }
    let page = logs.read(&owner, start, 10);
    assert_eq!((messages(&page), page.dropped), (vec!["7", "8", "9"], 5), "2 to 6 are gone");
    assert_eq!(logs.read(&owner, Cursor::Newest, 1).dropped, 6, "1 to 6 are gone");
    log.write(Level::Info, "ab\u{1f600}cd");
    let page = logs.read(&owner, page.next, 1);
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
    let count =
        |tenant: &str, function: &str| logs.read(&owner(tenant, function, 1), Cursor::Newest, usize::MAX).lines.len();
    let write = |tenant: &str, function: &str, lines: usize| {
        let log = logs.invocation(owner(tenant, function, 1), 1, "req");
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
        remove(&logs, &owner(tenant, function, 1));
    }
    assert_eq!(logs.shared.lock().bytes, 0);
}

#[test]
fn a_deleted_function_leaves_its_successor_no_line() {
    let logs = FunctionLogs::new(LogLimits::default());
    let (first, second) = (owner("tenant", "function", 1), owner("tenant", "function", 2));
    let old = logs.invocation(first.clone(), 1, "req_old");
    old.write(Level::Info, "old");
    let cursor = logs.read(&first, Cursor::Newest, 10).next;
    remove(&logs, &first);
    old.write(Level::Info, "too late");
    assert_eq!(logs.shared.lock().bytes, 0);
    let new = logs.invocation(second.clone(), 2, "req_new");
    old.write(Level::Info, "too late");
    new.write(Level::Info, "new");
    assert_eq!(messages(&logs.read(&second, Cursor::Newest, 10)), ["new"]);
    assert_eq!(messages(&logs.read(&second, cursor, 10)), ["new"], "an old cursor starts at the beginning");
}

/// The deletion failed half-way, or an invocation had asked for the function before it and for its log after it.
#[test]
fn a_log_that_was_not_removed_is_not_the_successors() {
    let logs = FunctionLogs::new(LogLimits::default());
    let (first, second) = (owner("tenant", "function", 1), owner("tenant", "function", 4));
    let neighbour = logs.invocation(owner("tenant", "neighbour", 1), 1, "req");
    neighbour.write(Level::Info, "kept");
    let old = logs.invocation(first.clone(), 3, "req_old");
    old.write(Level::Info, "old");
    let cursor = logs.read(&first, Cursor::Newest, 10).next;
    let new = logs.invocation(second.clone(), 4, "req_new");
    old.write(Level::Info, "too late");
    assert!(logs.read(&second, cursor, 10).lines.is_empty());
    new.write(Level::Info, "new");
    let late = logs.invocation(first.clone(), 3, "req_late");
    late.write(Level::Info, "too late");
    assert_eq!(messages(&logs.read(&second, Cursor::Newest, 10)), ["new"]);
    let page = logs.read(&first, cursor, 10);
    assert!(page.lines.is_empty() && page.next == cursor, "the first one's log is gone: {page:?}");
    remove(&logs, &first);
    assert_eq!(messages(&logs.read(&second, Cursor::Newest, 10)), ["new"], "a late removal is not of the successor");
    remove(&logs, &second);
    let kept = "kept".len() + LINE_OVERHEAD_BYTES;
    assert_eq!(logs.shared.lock().bytes, kept);
    assert_eq!(logs.shared.lock().logs.values().map(|logs| logs.bytes).sum::<usize>(), kept);
}

#[test]
fn a_cursor_tells_neither_the_time_nor_how_many_logs_there_are() {
    let epochs = || {
        let logs = FunctionLogs::new(LogLimits::default());
        let next = |function: &str| logs.read(&owner("tenant", function, 1), Cursor::Newest, 1).next;
        ["a", "b", "c", "d"].map(|function| match next(function) {
            Cursor::After { epoch, .. } => epoch,
            Cursor::Newest => panic!("a place"),
        })
    };
    let mut all: Vec<u64> = (0..4).flat_map(|_| epochs()).collect();
    all.sort_unstable();
    // Of counters and of times, neighbours would be near each other. 16 random ones are so once in 2^40.
    assert!(all.windows(2).all(|pair| pair[1] - pair[0] > 1 << 16), "{all:x?}");
}

#[test]
fn the_largest_give_first_and_all_that_must_at_once() {
    assert_eq!(level(vec![5, 1, 9, 3], 18), usize::MAX, "there is room");
    assert_eq!(level(vec![5, 1, 9, 3], 17), 8, "1 + 3 + 5 + 8");
    assert_eq!(level(vec![5, 1, 9, 3], 11), 3, "1 + 3 + 3 + 3, and 1 is left");
    assert_eq!((level(vec![5, 1], 0), level(Vec::new(), 7)), (0, usize::MAX));
    let line = 100 + LINE_OVERHEAD_BYTES;
    let limits = LogLimits { tenant_bytes_max: 1600 * line, ..LogLimits::default() };
    let logs = FunctionLogs::new(limits);
    let text = "x".repeat(100);
    let functions: Vec<_> =
        (0..200).map(|number| logs.invocation(owner("tenant", &format!("f{number}"), 1), 1, "req")).collect();
    functions[0].write(Level::Info, &text);
    // The others come to 8 lines each and a few more.
    for turn in 0..1600 {
        functions[1 + turn % 199].write(Level::Info, &text);
    }
    let tenants = logs.shared.lock();
    let logs = &tenants.logs[&"tenant".parse().expect("a name")];
    let small = logs.rings[&"f0".parse().expect("a name")].bytes();
    assert_eq!((small, tenants.bytes), (line, logs.bytes), "who has little keeps it");
    // One line too many made room for many.
    assert!((1300 * line..=1500 * line).contains(&logs.bytes), "{} lines", logs.bytes / line);
    let rest = logs.rings.values().filter(|ring| ring.bytes() > line);
    assert!(rest.clone().count() == 199 && rest.clone().all(|ring| (6..=8).contains(&(ring.bytes() / line))));
}

#[tokio::test]
async fn who_waits_is_woken_by_a_line_by_the_end_and_by_time() {
    let logs = FunctionLogs::new(LogLimits::default());
    let owner = owner("tenant", "function", 1);
    let log = logs.invocation(owner.clone(), 1, "req");
    let long = Duration::from_secs(60);
    let cursor = logs.read(&owner, Cursor::Newest, 10).next;
    let soon = Duration::from_secs(20);
    let started = std::time::Instant::now();
    let ((), ()) = tokio::join!(logs.wait(&owner, cursor, long), async {
        tokio::task::yield_now().await;
        log.write(Level::Info, "a line");
    });
    logs.wait(&owner, cursor, long).await;
    let cursor = logs.read(&owner, cursor, 10).next;
    logs.wait(&owner, cursor, Duration::from_millis(20)).await;
    let ((), ()) = tokio::join!(logs.wait(&owner, cursor, long), async {
        tokio::task::yield_now().await;
        remove(&logs, &owner);
    });
    let ((), ()) = tokio::join!(logs.wait(&owner, cursor, long), async {
        tokio::task::yield_now().await;
        logs.close();
    });
    logs.wait(&owner, cursor, long).await;
    assert!(started.elapsed() < soon, "nobody waited to the end");
}
