//! Calls within a process: the router in Rust, in the sandbox and natively, and in the other languages; chunks. Sides take turns,
//! round by round; the router in Rust is measured twice in each (A/A). Not here: what is seen over HTTP (`served`).

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use types::Digest;

use super::native::Native;
use super::sandbox::{Cycle, Sandbox};
use crate::Outcome;
use crate::machine::repository;
use crate::report::{Report, rounded, spread_json};
use crate::statistics::{Bound, Spread, median, quantile};

const PLAN_P50_US_BAR: f64 = 40.0;
const PLAN_P99_US_BAR: f64 = 200.0;
const CHUNK_US_BAR: f64 = 2.0;
const OVER_RUST_US_BAR: f64 = 1000.0;
/// Guests in other languages: what a row calls them, and the component that `sdk/check.py` leaves.
const OTHERS: [(&str, &str); 3] = [
    ("TypeScript", "js-skill-router.wasm"),
    ("JavaScript, the template", "template-js.wasm"),
    ("Python", "python-skill-router.wasm"),
];
/// Between requests in other languages and those in Rust that they are compared with: the shortest of answers takes longer, and an
/// instance may be started meanwhile for the next request.
const PAUSE: Duration = Duration::from_millis(10);
const COMPONENTS_MISSING: &str = "run `python3 sdk/check.py python js ts`";

/// How much is measured.
pub(super) struct Amount {
    pub(super) rounds: usize,
    /// Requests of a round, in Rust and natively; a tenth of it in other languages.
    pub(super) cycles: usize,
    pub(super) chunks: usize,
}

/// The values of one side, round by round.
#[derive(Default)]
struct Side {
    plan_p50: Vec<f64>,
    plan_p99: Vec<f64>,
    whole_p50: Vec<f64>,
    whole_p99: Vec<f64>,
}

impl Side {
    fn add(&mut self, cycles: &[Cycle]) {
        let plans: Vec<f64> = cycles.iter().map(|cycle| cycle.plan_us).collect();
        let wholes: Vec<f64> = cycles.iter().map(|cycle| cycle.whole_us).collect();
        for (values, of, share) in [
            (&mut self.plan_p50, &plans, 0.5),
            (&mut self.plan_p99, &plans, 0.99),
            (&mut self.whole_p50, &wholes, 0.5),
            (&mut self.whole_p99, &wholes, 0.99),
        ] {
            values.extend(quantile(of, share));
        }
    }

    fn row(&self, name: &str, report: &mut Report) {
        report.row(json!({"guest": name,
            "plan_p50_us": spread_json(Spread::of(&self.plan_p50)), "plan_p99_us": spread_json(Spread::of(&self.plan_p99)),
            "with_its_end_p50_us": spread_json(Spread::of(&self.whole_p50)),
            "with_its_end_p99_us": spread_json(Spread::of(&self.whole_p99))}));
    }
}

/// Measures, and reports.
///
/// # Errors
/// If a guest is refused or a call fails.
pub(super) fn run(tenon: &Path, native: &Path, components: &Path, amount: &Amount, report: &mut Report) -> Outcome {
    println!("\n== calls in the sandbox");
    let sandbox = Sandbox::new(tenon)?;
    let mut native = Native::start(native)?;
    let router = sandbox.admit(fixture("skill-router")?)?;
    let mut others = Vec::new();
    for (name, file) in OTHERS {
        let component =
            fs::read(components.join(file)).map_err(|error| format!("{file}: {error}; {COMPONENTS_MISSING}"));
        // On a machine with other work the compiler may run out of time.
        match component.map_err(Into::into).and_then(|component| sandbox.admit(component)) {
            Ok(guest) => others.push((name, guest)),
            Err(error) => report.row(json!({"guest": name, "not_measured": error.to_string()})),
        }
    }
    let few = (amount.cycles / 10).max(10);
    let at_once = |guest: Digest, count: usize| sandbox.cycles(guest, count, Duration::ZERO);
    let warm = |guest: Digest, count: usize| at_once(guest, count).map(drop);
    warm(router, amount.cycles)?;
    others.iter().try_for_each(|(_, guest)| warm(*guest, few))?;
    native.cycles(amount.cycles)?;

    let (mut first, mut second, mut three) = (Side::default(), Side::default(), Side::default());
    // With a pause, and one after the other.
    let mut sides: Vec<[Side; 2]> = others.iter().map(|_| Default::default()).collect();
    let mut paused = Side::default();
    let (mut native_p50, mut native_p99) = (Vec::new(), Vec::new());
    for round in 0..amount.rounds {
        let times = native.cycles(amount.cycles)?;
        native_p50.extend(quantile(&times, 0.5));
        native_p99.extend(quantile(&times, 0.99));
        let order = if round % 2 == 0 { [&mut first, &mut second] } else { [&mut second, &mut first] };
        let [one, two] = order;
        one.add(&at_once(router, amount.cycles)?);
        three.add(&sandbox.cycles_in_three_visits(router, amount.cycles)?);
        for ((_, guest), side) in others.iter().zip(&mut sides) {
            let [paused, at_once_side] = side;
            paused.add(&sandbox.cycles(*guest, few, PAUSE)?);
            at_once_side.add(&at_once(*guest, few)?);
        }
        paused.add(&sandbox.cycles(router, few, PAUSE)?);
        two.add(&at_once(router, amount.cycles)?);
    }
    report.row(json!({"guest": "Rust, natively", "plan_p50_us": spread_json(Spread::of(&native_p50)),
        "plan_p99_us": spread_json(Spread::of(&native_p99)), "requests_each_round": amount.cycles}));
    first.row("Rust", report);
    second.row("Rust again", report);
    paused.row("Rust, one in 10 ms", report);
    three.row("Rust, a visit to the plugin threads for each call", report);
    report.row(json!({"rust_over_native_p50": spread_json(Spread::of_ratios(&first.plan_p50, &native_p50)),
        "control_a_a": spread_json(Spread::of_ratios(&second.plan_p50, &first.plan_p50))}));
    bar("Rust: instantiate, route and compose, p50 in us", PLAN_P50_US_BAR, &first.plan_p50, &second.plan_p50, report);
    bar("Rust: instantiate, route and compose, p99 in us", PLAN_P99_US_BAR, &first.plan_p99, &second.plan_p99, report);
    for ((name, _), [side, at_once]) in others.iter().zip(&sides) {
        side.row(&format!("{name}, one in 10 ms"), report);
        at_once.row(&format!("{name}, one after the other"), report);
        let over: Vec<f64> = side.whole_p50.iter().zip(&paused.whole_p50).map(|(other, rust)| other - rust).collect();
        let name = format!("{name}: a warm request over one in Rust, in us");
        report.bar(&name, Bound::AtMost(OVER_RUST_US_BAR), Spread::of_median(&over).ok_or("no rounds"));
    }
    for (name, _) in OTHERS.iter().filter(|(name, _)| !others.iter().any(|(found, _)| found == name)) {
        let name = format!("{name}: a warm request over one in Rust, in us");
        report.bar(&name, Bound::AtMost(OVER_RUST_US_BAR), Err("see its row"));
    }
    chunks(&sandbox, &others, amount, report)
}

/// A bar on a time, as wide as the same side differs from itself.
fn bar(name: &str, max: f64, values: &[f64], again: &[f64], report: &mut Report) {
    let control = Spread::of_median_ratio(again, values);
    let spread = Spread::of_median(values).zip(control).map(|(spread, control)| spread.widened_by(control));
    report.bar(name, Bound::AtMost(max), spread.ok_or("no rounds"));
}

fn chunks(sandbox: &Sandbox, others: &[(&'static str, Digest)], amount: &Amount, report: &mut Report) -> Outcome {
    let passing = vec![("*".to_owned(), "pass".to_owned())];
    let mut guests = vec![
        ("Rust, passes", sandbox.admit(fixture("echo")?)?, Vec::new()),
        ("Rust, passes as its configuration says", sandbox.admit(fixture("actions")?)?, passing),
    ];
    // What the SDK does with a chunk for which a policy does nothing.
    guests.extend(others.iter().map(|(name, guest)| (*name, *guest, Vec::new())));
    let mut medians = vec![Vec::new(); guests.len()];
    let (mut p99s, mut again) = (medians.clone(), Vec::new());
    for _ in 0..amount.rounds {
        for (place, (_, guest, config)) in guests.iter().enumerate() {
            let times = sandbox.chunks(*guest, config, amount.chunks)?;
            if let (Some(medians), Some(p99s)) = (medians.get_mut(place), p99s.get_mut(place)) {
                medians.extend(median(&times));
                p99s.extend(quantile(&times, 0.99));
            }
        }
        if let Some((_, guest, config)) = guests.first() {
            again.extend(median(&sandbox.chunks(*guest, config, amount.chunks)?));
        }
    }
    for ((name, ..), (medians, p99s)) in guests.iter().zip(medians.iter().zip(&p99s)) {
        report.row(json!({"chunk_by": name, "p50_us": spread_json(Spread::of(medians)), "p99_us": spread_json(Spread::of(p99s))}));
    }
    if let Some(passes) = medians.first() {
        bar("Rust: a chunk that passes, p50 in us", CHUNK_US_BAR, passes, &again, report);
    }
    report.row(json!({"chunks_each_round": amount.chunks, "chunk_bytes": rounded(6.0)}));
    Ok(())
}

/// A guest as it lies in the repository.
///
/// # Errors
/// If it is not there.
pub(super) fn fixture(name: &str) -> Outcome<Vec<u8>> {
    let path = repository().join("tests/fixtures/guests").join(format!("{name}.wasm"));
    Ok(fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?)
}
