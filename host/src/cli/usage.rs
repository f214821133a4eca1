//! `tenon usage`.

use clap::Args;
use serde_json::Value;

use super::failure::Failure;
use super::output::{Printer, cell, items, short, table, text};
use super::remote::{Connection, Remote, segment};

#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// The first day, in UTC; 30 days before the last if absent
    #[arg(long, value_name = "YYYY-MM-DD")]
    from: Option<String>,
    /// The last day; today if absent
    #[arg(long, value_name = "YYYY-MM-DD")]
    to: Option<String>,
    /// Another tenant's; needs the right `admin`
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

/// Prints what the tenant used.
pub(crate) async fn run(arguments: UsageArgs, printer: Printer) -> Result<(), Failure> {
    let options = [("from", &arguments.from), ("to", &arguments.to), ("tenant", &arguments.tenant)];
    let query = options.iter().filter_map(|(name, value)| Some(format!("{name}={}", segment(value.as_deref()?))));
    let path = format!("/v1/usage?{}", query.collect::<Vec<_>>().join("&"));
    let usage = Remote::new(&arguments.connection)?.get(path.trim_end_matches('?')).await?;
    printer.result(&usage, usage_text)?;
    Ok(())
}

fn usage_text(usage: &Value) -> String {
    let head = ["DAY", "OF", "REQUESTS", "FAILED", "PROMPT", "COMPLETION", "PLUGIN MS"].map(str::to_owned).to_vec();
    let row = |day: &str, of: String, counts: &Value| {
        let columns = ["requests", "failed_requests", "prompt_tokens", "completion_tokens", "plugin_ms"];
        let counts = columns.map(|name| cell(counts, name));
        [day.to_owned(), of].into_iter().chain(counts).collect::<Vec<String>>()
    };
    let mut rows = vec![head];
    for day in items(usage, "data") {
        let date = text(day, "day");
        rows.push(row(date, "all".into(), day));
        for (list, kind, name) in [("functions", "function", "name"), ("adapters", "adapter", "digest")] {
            let named = |one: &Value| match name {
                "digest" => format!("{kind} {}", short(text(one, name))),
                _ => format!("{kind} {}", text(one, name)),
            };
            rows.extend(items(day, list).map(|one| row(date, named(one), one)));
        }
    }
    let total = usage.get("total").cloned().unwrap_or_default();
    rows.push(row("total", format!("{} to {}", text(usage, "from"), text(usage, "to")), &total));
    table(&rows)
}
