//! `tenon canary` and `tenon shadow`: versions beside the live one. Not here: which callers a canary gets, which is the host's.

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Printer, cell, items, short, table, text, time};
use super::remote::{Connection, Remote, segment};

#[derive(Debug, Args)]
pub(crate) struct CanaryArgs {
    /// Name of the function
    name: String,
    /// The version that is to answer a share of the callers; without it, the canary is shown
    #[arg(value_name = "VERSION", requires = "percent")]
    target: Option<u32>,
    /// Of the callers, more than 0, in steps of 0.01; a larger share only adds callers
    #[arg(long, value_name = "PERCENT", requires = "target")]
    percent: Option<f64>,
    /// Only if this version is live
    #[arg(long, value_name = "VERSION", requires = "target")]
    expect: Option<u32>,
    /// Have the live version answer all callers
    #[arg(long, conflicts_with = "target")]
    off: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Sets, ends or shows the canary.
pub(crate) async fn canary(arguments: CanaryArgs, printer: Printer) -> Result<(), Failure> {
    let remote = Remote::new(&arguments.connection)?;
    let CanaryArgs { name, target, percent, expect, off, .. } = arguments;
    let path = format!("/v1/functions/{}", segment(&name));
    let canary = if off {
        remote.send(remote.call(Method::DELETE, &format!("{path}/canary"))).await?;
        Value::Null
    } else if let Some(version) = target {
        let body = json!({"version": version, "percent": percent, "expect": expect});
        let set = remote.json(remote.call(Method::PUT, &format!("{path}/canary")).json(&body)).await?;
        set.get("canary").cloned().unwrap_or_default()
    } else {
        remote.get(&path).await?.get("canary").cloned().unwrap_or_default()
    };
    printer.result(&json!({"name": name, "canary": canary}), |_| match canary {
        Value::Null => format!("{name}: no canary"),
        canary => {
            format!("{name}: version {} for {} % of the callers", cell(&canary, "version"), cell(&canary, "percent"))
        }
    })
}

#[derive(Debug, Args)]
pub(crate) struct ShadowArgs {
    /// Name of the function
    name: String,
    /// The version that is to get copies; without it, what came of them is shown
    #[arg(value_name = "VERSION")]
    target: Option<u32>,
    /// Of the requests, more than 0, in steps of 0.01; all if absent
    #[arg(long, value_name = "PERCENT", requires = "target")]
    percent: Option<f64>,
    /// Only if this version is live
    #[arg(long, value_name = "VERSION", requires = "target")]
    expect: Option<u32>,
    /// Send no more copies
    #[arg(long, conflicts_with = "target")]
    off: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Sets or ends the shadow, or shows what came of it.
pub(crate) async fn shadow(arguments: ShadowArgs, printer: Printer) -> Result<(), Failure> {
    let remote = Remote::new(&arguments.connection)?;
    let ShadowArgs { name, target, percent, expect, off, .. } = arguments;
    let path = format!("/v1/functions/{}/shadow", segment(&name));
    if off {
        remote.send(remote.call(Method::DELETE, &path)).await?;
        return printer.result(&json!({"name": name, "shadow": null}), |_| format!("{name}: no shadow"));
    }
    if let Some(version) = target {
        let body = json!({"version": version, "percent": percent, "expect": expect});
        let set = remote.json(remote.call(Method::PUT, &path).json(&body)).await?;
        return printer.result(&set, |set| format!("{name}: {}", shadow_text(set)));
    }
    let report = remote.get(&path).await?;
    printer.result(&report, report_text)
}

fn shadow_text(value: &Value) -> String {
    match value.get("shadow").filter(|shadow| !shadow.is_null()) {
        Some(shadow) => {
            format!("version {} gets {} % of the requests", cell(shadow, "version"), cell(shadow, "percent"))
        }
        None => "no shadow".into(),
    }
}

fn report_text(report: &Value) -> String {
    let dropped = report.get("dropped").cloned().unwrap_or_default();
    let counts = ["equal", "different", "failed"].map(|name| format!("{name} {}", cell(report, name)));
    let dropped = ["busy", "under_way", "cut_off"].map(|name| format!("{name} {}", cell(&dropped, name)));
    let head = format!(
        "{}: {}\nversion {}: {}; dropped: {}",
        text(report, "name"),
        shadow_text(report),
        cell(report, "version"),
        counts.join(", "),
        dropped.join(", ")
    );
    let titles = ["TIME", "REQUEST", "VERDICT", "AT BYTE", "LIVE", "SHADOW"].map(str::to_owned).to_vec();
    let answer = |one: &Value, side: &str| {
        let answer = one.get(side).cloned().unwrap_or_default();
        let end = answer.get("error").filter(|error| !error.is_null()).map_or_else(
            || {
                format!(
                    "{} {} B {}",
                    cell(&answer, "finish_reason"),
                    cell(&answer, "bytes"),
                    short(text(&answer, "digest"))
                )
            },
            |_| cell(&answer, "error"),
        );
        format!("{}: {end} in {} ms", cell(&answer, "version"), cell(&answer, "duration_ms"))
    };
    let row = |one: &Value| {
        let when = time(one.get("time_unix_ms").and_then(Value::as_u64).unwrap_or_default());
        let (request, verdict) = (text(one, "request").to_owned(), text(one, "verdict").to_owned());
        vec![when, request, verdict, cell(one, "differs_at_byte"), answer(one, "primary"), answer(one, "shadow")]
    };
    let rows: Vec<_> = items(report, "data").map(row).collect();
    if rows.is_empty() { head } else { format!("{head}\n{}", table(&[vec![titles], rows].concat())) }
}
