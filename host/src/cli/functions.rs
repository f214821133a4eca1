//! `tenon versions`, `rollback` and `logs`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Printer, cell, items, printable, put, short, table, text, time};
use super::remote::{Connection, Remote, segment};
use crate::error::Error;

/// How long one question for new lines waits on the host.
const FOLLOW_WAIT_MS: u64 = 20_000;
/// Lines that one question may bring.
const PAGE_LINES_MAX: u64 = 1000;
/// How often a host that went away is asked again, a second apart.
const RETRIES_MAX: u32 = 60;

#[derive(Debug, Args)]
pub(crate) struct VersionsArgs {
    /// Name of the function
    name: String,
    /// What was done in place of what is there: deployments, promotions, rollbacks, canaries, shadows
    #[arg(long)]
    history: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Lists a function's versions.
pub(crate) async fn versions(arguments: VersionsArgs, printer: Printer) -> Result<(), Failure> {
    let path = format!("/v1/functions/{}/versions", segment(&arguments.name));
    let found = Remote::new(&arguments.connection)?.get(&path).await?;
    printer.result(&found, if arguments.history { history_text } else { versions_text })?;
    Ok(())
}

fn versions_text(found: &Value) -> String {
    let head = ["VERSION", "", "PLUGIN", "ADAPTERS", "CREATED"].map(str::to_owned).to_vec();
    let row = |one: &Value| {
        let is = |name: &str| found.get(name).is_some_and(|version| Some(version) == one.get("version"));
        let marks = ["live", "latest", "previous"].into_iter().filter(|name| is(name)).map(str::to_owned);
        let beside = ["canary", "shadow"].into_iter().filter_map(|name| {
            let beside = found.get(name).filter(|beside| beside.get("version") == one.get("version"))?;
            beside.is_object().then(|| format!("{name} {} %", cell(beside, "percent")))
        });
        let marks: Vec<String> = marks.chain(beside).collect();
        let adapters: Vec<&str> = items(one, "adapters").filter_map(Value::as_str).collect();
        let created = one.get("created_unix_ms").and_then(Value::as_u64).unwrap_or_default();
        vec![cell(one, "version"), marks.join(","), short(text(one, "plugin")), adapters.join(","), time(created)]
    };
    table(&std::iter::once(head).chain(items(found, "data").map(row)).collect::<Vec<_>>())
}

fn history_text(found: &Value) -> String {
    let head = ["TIME", "WHAT", "VERSION", "FROM", "PERCENT", "PLUGIN", "KEY"].map(str::to_owned).to_vec();
    let row = |one: &Value| {
        let when = time(one.get("time_unix_ms").and_then(Value::as_u64).unwrap_or_default());
        let kind = text(one, "kind");
        let kind = if kind.is_empty() { "live".to_owned() } else { kind.replace('_', " ") };
        let plugin = short(text(one, "plugin"));
        vec![when, kind, cell(one, "to"), cell(one, "from"), cell(one, "percent"), plugin, text(one, "by").to_owned()]
    };
    table(&std::iter::once(head).chain(items(found, "changes").map(row)).collect::<Vec<_>>())
}

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Name of the function
    name: String,
    /// The version to make live; the one that was live before if absent
    #[arg(long, value_name = "VERSION")]
    to: Option<u32>,
    #[command(flatten)]
    connection: Connection,
}

/// Makes an earlier version live, unless someone else moved the pointer meanwhile.
pub(crate) async fn rollback(arguments: RollbackArgs, printer: Printer) -> Result<(), Failure> {
    let remote = Remote::new(&arguments.connection)?;
    let path = format!("/v1/functions/{}", segment(&arguments.name));
    let found = remote.get(&format!("{path}/versions")).await?;
    let live = found.get("live").cloned().unwrap_or_default();
    let previous = found.get("previous").and_then(Value::as_u64);
    let Some(version) = arguments.to.map(u64::from).or(previous) else {
        let message = format!("nothing was live before version {live}; name a version with --to");
        return Err(Error::invalid("no_previous_version", "to", message).into());
    };
    let body = json!({"version": version, "expect": live});
    remote.json(remote.call(Method::POST, &format!("{path}/promote")).json(&body)).await?;
    let done = json!({"name": arguments.name, "from": live, "live": version});
    printer.result(&done, |_| format!("{}: version {version} is live (was {live})", arguments.name))?;
    Ok(())
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Name of the function
    name: String,
    /// Go on with new lines as they come
    #[arg(short, long)]
    follow: bool,
    /// At most so many of the newest lines
    #[arg(long, value_name = "LINES", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=PAGE_LINES_MAX))]
    lines: u64,
    /// Only lines since then: 30s, 10m, 2h, 1d, or a time such as 2026-11-21T13:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<u64>,
    #[command(flatten)]
    connection: Connection,
}

/// Prints a function's log; with `--follow` goes on until it is interrupted or the function is deleted.
pub(crate) async fn logs(arguments: LogsArgs, printer: Printer) -> Result<(), Failure> {
    let remote = Remote::new(&arguments.connection)?;
    let path = format!("/v1/functions/{}/logs", segment(&arguments.name));
    let since = arguments.since.unwrap_or_default();
    let first = remote.get(&format!("{path}?limit={}&since_unix_ms={since}", arguments.lines)).await?;
    if !arguments.follow {
        say_dropped(&first, printer);
        printer.result(&first, |page| items(page, "data").map(line_text).collect::<Vec<_>>().join("\n"))?;
        return Ok(());
    }
    let mut tail = Tail { path, since, next: None };
    tail.say(&first, printer)?;
    Err(tail.follow(&remote, printer).await)
}

/// The lines of a function's log as they come.
pub(super) struct Tail {
    path: String,
    since: u64,
    /// Where to go on.
    next: Option<String>,
}

impl Tail {
    /// From the first line on.
    pub(super) fn new(function: &str) -> Self {
        Self { path: format!("/v1/functions/{}/logs", segment(function)), since: 0, next: None }
    }

    /// Passes over the lines that are there, if there is such a function.
    pub(super) async fn skip(&mut self, remote: &Remote) {
        if let Ok(page) = remote.get(&format!("{}?limit=1", self.path)).await {
            self.next = Some(text(&page, "next").to_owned());
        }
    }

    /// Prints lines until there is no more to come, and says why. It may be dropped and called again.
    pub(super) async fn follow(&mut self, remote: &Remote, printer: Printer) -> Failure {
        let mut failures = 0;
        loop {
            let after = self.next.as_deref().map(|next| format!("after={}&", segment(next))).unwrap_or_default();
            let (path, since) = (&self.path, self.since);
            let wait = format!("wait_ms={FOLLOW_WAIT_MS}&limit={PAGE_LINES_MAX}&since_unix_ms={since}");
            match remote.get(&format!("{path}?{after}{wait}")).await {
                Ok(page) => {
                    failures = 0;
                    if let Err(failure) = self.say(&page, printer) {
                        return failure;
                    }
                }
                // A host that restarts is back in a moment; its log then begins anew, which the cursor shows it.
                Err(failure) if failures < RETRIES_MAX && is_passing(&failure) => {
                    failures += 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(failure) => return failure,
            }
        }
    }

    fn say(&mut self, page: &Value, printer: Printer) -> Result<(), Failure> {
        say_dropped(page, printer);
        self.next = Some(text(page, "next").to_owned());
        for line in items(page, "data") {
            put(&format!("{}\n", if printer.json { line.to_string() } else { line_text(line) }))?;
        }
        Ok(())
    }
}

fn is_passing(failure: &Failure) -> bool {
    match failure {
        Failure::Unreachable(_) => true,
        Failure::Remote(refusal) => refusal.status == Some(503),
        Failure::Local(_) | Failure::Unsound | Failure::NobodyReads => false,
    }
}

fn say_dropped(page: &Value, printer: Printer) {
    let dropped = page.get("dropped").and_then(Value::as_u64).unwrap_or_default();
    if dropped > 0 && !printer.json {
        eprintln!("({dropped} older lines were dropped)");
    } else if dropped > 0 {
        eprintln!("{}", json!({"dropped": dropped}));
    }
}

/// A plugin wrote the message: it gets no line of its own and no colour.
pub(super) fn line_text(line: &Value) -> String {
    let at = line.get("time_unix_ms").and_then(Value::as_u64).unwrap_or_default();
    let level = text(line, "level").to_uppercase();
    let (version, request) = (cell(line, "version"), text(line, "request"));
    printable(&format!("{} {level:<5} v{version} {request} {}", time(at), text(line, "message")))
}

/// Milliseconds since 1970 of a time, or of so long ago.
fn since(text: &str) -> Result<u64, String> {
    let expected = || "use 30s, 10m, 2h, 1d, or a time such as 2026-11-21T13:00:00Z".to_owned();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return u64::try_from(time.timestamp_millis()).map_err(|_| expected());
    }
    let unit_ms: u64 = match text.chars().last() {
        Some('s') => 1000,
        Some('m') => 60_000,
        Some('h') => 3_600_000,
        Some('d') => 86_400_000,
        _ => return Err(expected()),
    };
    let number: u64 = text.get(..text.len() - 1).and_then(|number| number.parse().ok()).ok_or_else(expected)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Ok(now.saturating_sub(number.saturating_mul(unit_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_as_an_age_or_as_a_time() {
        assert_eq!(since("2026-11-21T13:42:11.042Z"), Ok(1_795_268_531_042));
        assert_eq!(since("2026-11-21T14:42:11+01:00"), Ok(1_795_268_531_000));
        let now = since("0s").expect("now");
        let hour = since("1h").expect("an hour ago");
        assert!((3_590_000..=3_610_000).contains(&(now - hour)), "{hour} {now}");
        assert_eq!(since("99999999999999999d"), Ok(0), "before 1970 is 1970");
        for text in ["", "s", "ten", "-1s", "1w", "10", "é"] {
            assert!(since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_line_stays_a_line() {
        let line = json!({"time_unix_ms": 1_795_268_531_042_u64, "level": "warn", "version": 2, "request": "req_1",
            "message": "a\n2026-11-21T13:42:11.042Z ERROR v2 req_2 forged\u{1b}[2J"});
        let text = line_text(&line);
        let expected =
            "2026-11-21T13:42:11.042Z WARN  v2 req_1 a\\n2026-11-21T13:42:11.042Z ERROR v2 req_2 forged\\u{1b}[2J";
        assert_eq!(text, expected);
    }
}
