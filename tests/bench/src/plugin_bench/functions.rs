//! Thousands of functions on one host, each with a plugin of its own: how long they take to deploy, what the first call of each
//! costs after a restart, over a later one, and how much memory they hold. The components differ by a custom section, and so in
//! digest, compiled file and mapping; the calls are answered without generating. Not here: what a call costs by itself (`calls`).
//!
//! Of thousands of calls some are slow whatever is called, since a core of the machine is away. So the host is
//! started several times, all functions are called in the same order, and a function's first call takes the median of its first
//! calls: what is its own or its place's comes back each time. All calls together are told beside it.

use std::path::Path;
use std::time::Instant;

use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;

use super::calls::fixture;
use super::deploy::{deploy, invoke};
use crate::files::files;
use crate::load::Http;
use crate::machine::resident_bytes;
use crate::process::Server;
use crate::report::{Report, rounded};
use crate::stalls::{Stall, StallMeter};
use crate::statistics::{Bound, Spread, median, quantile};
use crate::{Given, Outcome, progress};

/// Uploads at once: the host compiles one at a time and has the next ones at hand.
const UPLOADS: usize = 4;
const FIRST_OVER_WARM_MS_BAR: f64 = 5.0;
/// Starts of the host, in each of which every function has a first call.
const STARTS: usize = 5;
/// Of the slowest first calls it is told what the cores did meanwhile.
const SLOWEST_TOLD: usize = 10;
/// Functions in other languages beside them, where `sdk/check.py` has left components.
const OTHERS: [(&str, &str); 2] = [("python", "python-skill-router.wasm"), ("typescript", "js-skill-router.wasm")];

/// Calls of one function after a restart, in milliseconds.
struct Calls {
    first: f64,
    warm: f64,
    warm_again: f64,
    /// When the first one was under way.
    at: (Instant, Instant),
}

impl Calls {
    fn over(&self) -> f64 {
        self.first - self.warm
    }
}

/// Deploys, restarts, calls, and reports.
///
/// # Errors
/// If a server does not come up, or refuses something.
pub(super) fn run(given: &Given, components: &Path, functions: usize, threads: usize, report: &mut Report) -> Outcome {
    println!("\n== {functions} functions on one host");
    let http = Http::new()?;
    let folder = tempfile::tempdir()?;
    let settings = [("THREADS", threads.to_string())];
    let start = |data: &str| Server::tenon_on(&http, &given.tenon, &given.base, &folder.path().join(data), &settings);

    let empty = start("empty")?;
    let empty_bytes = resident_bytes(empty.pid()).unwrap_or_default();
    empty.stop()?;

    let server = start("data")?;
    let started = Instant::now();
    register(&http, &server, functions)?;
    let deployed_s = started.elapsed().as_secs_f64();
    let others: Vec<&str> = OTHERS
        .iter()
        .filter_map(|(name, file)| {
            let component = std::fs::read(components.join(file)).ok()?;
            let (runtime, client) = http.parts();
            runtime.block_on(deploy(client, &server.target, name, component, json!({}))).ok().map(|()| *name)
        })
        .collect();
    server.stop()?;
    let compiled: Vec<u64> = files(&folder.path().join("data/plugin-cache"))?.iter().map(|(_, bytes)| *bytes).collect();
    report.row(json!({"functions": functions, "deployed_in_s": rounded(deployed_s),
        "ms_each": rounded(deployed_s * 1e3 / functions as f64), "uploads_at_once": UPLOADS,
        "compiled_mb": rounded(compiled.iter().sum::<u64>() as f64 / 1e6), "compiled_files": compiled.len()}));

    let bar = progress::bar(functions * STARTS, "called");
    let mut calls: Vec<Vec<Calls>> = (0..functions).map(|_| Vec::with_capacity(STARTS)).collect();
    let mut in_others: Vec<Vec<Calls>> = others.iter().map(|_| Vec::with_capacity(STARTS)).collect();
    let meter = StallMeter::start()?;
    for started in 0..STARTS {
        let server = start("data")?;
        let idle_bytes = resident_bytes(server.pid()).unwrap_or_default();
        for (number, calls) in calls.iter_mut().enumerate() {
            calls.push(call(&http, &server, &name(number))?);
            bar.inc(1);
        }
        if started == 0 {
            let called_bytes = resident_bytes(server.pid()).unwrap_or_default();
            let mappings = std::fs::read_to_string(format!("/proc/{}/maps", server.pid()))?.lines().count();
            let each_kb = |from: u64, to: u64| rounded((to as f64 - from as f64) / 1024.0 / functions as f64);
            report.row(json!({"resident_mb_without_functions": rounded(empty_bytes as f64 / 1e6),
                "kb_each_deployed_and_not_called": each_kb(empty_bytes, idle_bytes),
                "kb_each_called_and_idle": each_kb(idle_bytes, called_bytes), "mappings": mappings}));
        }
        for (name, calls) in others.iter().zip(&mut in_others) {
            calls.push(call(&http, &server, name)?);
        }
        server.stop()?;
    }
    bar.finish_and_clear();
    let (cores, stalls) = (meter.cores(), meter.end());
    for (name, calls) in others.iter().zip(&in_others) {
        let (first, warm) = (median_of(calls, |calls| calls.first), median_of(calls, |calls| calls.warm));
        report.row(json!({"function_in": name, "first_ms": rounded(first), "warm_ms": rounded(warm)}));
    }
    first_calls(&calls, report);
    slowest_calls(&calls, cores, &stalls, report);
    Ok(())
}

/// Of what the starts gave.
fn median_of(calls: &[Calls], value: impl Fn(&Calls) -> f64) -> f64 {
    median(&calls.iter().map(value).collect::<Vec<_>>()).unwrap_or(f64::NAN)
}

/// What the cores did while the slowest were under way, beside what they do in general.
fn slowest_calls(calls: &[Vec<Calls>], cores: usize, stalls: &[Stall], report: &mut Report) {
    let longest = stalls.iter().map(Stall::ms).fold(0.0, f64::max);
    report.row(json!({"cores_watched": cores, "woke_over_1_ms_late": stalls.len(), "latest_ms": rounded(longest)}));
    let all = calls.iter().enumerate().flat_map(|(function, calls)| calls.iter().map(move |calls| (function, calls)));
    let mut slowest: Vec<(usize, &Calls)> = all.collect();
    slowest.sort_by(|(_, one), (_, other)| other.over().total_cmp(&one.over()));
    for (function, one) in slowest.into_iter().take(SLOWEST_TOLD) {
        let (from, to) = one.at;
        let late = stalls.iter().map(|stall| stall.ms_within(from, to)).fold(0.0, f64::max);
        let over: Vec<_> = calls[function].iter().map(|calls| rounded(calls.over())).collect();
        report.row(json!({"slow_first_call_of": function, "first_ms": rounded(one.first),
            "over_warm_ms": rounded(one.over()), "a_core_was_late_by_ms": rounded(late), "over_warm_ms_in_all_starts": over}));
    }
}

fn first_calls(calls: &[Vec<Calls>], report: &mut Report) {
    let all = |value: fn(&Calls) -> f64| calls.iter().flatten().map(value).collect::<Vec<f64>>();
    let each = |value: fn(&Calls) -> f64| calls.iter().map(|calls| median_of(calls, value)).collect::<Vec<f64>>();
    // What two warm calls differ by: fsync and the machine's other work.
    let control: fn(&Calls) -> f64 = |calls| calls.warm_again - calls.warm;
    let spread = |values: &[f64]| {
        let at = |share| quantile(values, share).map(rounded);
        let over = values.iter().filter(|value| **value > FIRST_OVER_WARM_MS_BAR).count();
        json!({"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0), (format!("over_{FIRST_OVER_WARM_MS_BAR}_ms")): over})
    };
    report.row(json!({"warm_call_ms": spread(&all(|calls| calls.warm))}));
    report.row(json!({"first_calls": calls.len() * STARTS, "over_a_warm_one_ms": spread(&all(Calls::over)),
        "control_warm_over_warm_ms": spread(&all(control))}));
    let (over, control) = (each(Calls::over), each(control));
    report.row(json!({"functions": calls.len(), "starts": STARTS, "median_over_a_warm_one_ms": spread(&over),
        "control_warm_over_warm_ms": spread(&control)}));
    for (what, share) in [("p99", 0.99), ("the slowest", 1.0)] {
        let name = format!("first call of a function over a warm one, median of {STARTS} starts, {what}, in ms");
        // The tail of what two warm calls differ by is the machine's own.
        let noise = quantile(&control, share).map(Spread::exactly);
        let value = quantile(&over, share).map(Spread::exactly);
        let value = value.zip(noise).map(|(value, noise)| value.widened_by_difference(noise));
        report.bar(&name, Bound::AtMost(FIRST_OVER_WARM_MS_BAR), value.ok_or("no functions"));
    }
}

fn register(http: &Http, server: &Server, functions: usize) -> Outcome {
    let component = fixture("skill-router")?;
    let (runtime, client) = http.parts();
    let bar = progress::bar(functions, "deployed");
    let deployed = futures::stream::iter(0..functions).map(|number| {
        let (component, bar) = (distinct(&component, number), &bar);
        async move {
            deploy(client, &server.target, &name(number), component, json!({})).await?;
            bar.inc(1);
            Outcome::Ok(())
        }
    });
    runtime.block_on(deployed.buffer_unordered(UPLOADS).try_collect::<Vec<()>>())?;
    bar.finish_and_clear();
    Ok(())
}

fn call(http: &Http, server: &Server, name: &str) -> Outcome<Calls> {
    let (runtime, client) = http.parts();
    let once = || -> Outcome<f64> {
        let begun = Instant::now();
        runtime.block_on(invoke(client, &server.target, name))?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    };
    let begun = Instant::now();
    let first = once()?;
    let at = (begun, Instant::now());
    Ok(Calls { first, warm: once()?, warm_again: once()?, at })
}

fn name(number: usize) -> String {
    format!("function-{number}")
}

/// The component with a custom section that no other one has.
fn distinct(component: &[u8], number: usize) -> Vec<u8> {
    let name = b"number";
    let content = number.to_le_bytes();
    let length = 1 + name.len() + content.len();
    let mut other = component.to_vec();
    // A custom section is number 0, its length, its name's length, its name, its content; all lengths are below 128.
    other.extend([0, length as u8, name.len() as u8]);
    other.extend(name);
    other.extend(content);
    other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_makes_another_component() {
        let component = b"\0asm\x0d\0\x01\0";
        let (one, two) = (distinct(component, 1), distinct(component, 256));
        assert!(one.starts_with(component) && one != two && one.len() == two.len());
        assert_eq!(one[8..11], [0, 15, 6]);
        assert_eq!(one.len(), component.len() + 2 + 15);
    }
}
