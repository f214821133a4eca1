//! What the first use of an adapter adds to the time to the first token: single requests in turn, one with an adapter that no
//! request has used since the server started, and two with adapters that are in memory, which are each other's control. Not
//! here: load.

use serde_json::json;

use super::population::{DISK_BYTES_MAX, Population};
use super::scratch::drop_page_cache;
use super::traffic::{request, touch};
use crate::Outcome;
use crate::calm::Calm;
use crate::load::{Http, read_stream};
use crate::report::{Report, spread_json};
use crate::rounds::interleaved;
use crate::statistics::Spread;

/// Adapters that stay in memory: one of each rank for each of the two sides.
pub(super) const WARM: usize = 4;
/// Tokens of an answer.
const OUTPUT_TOKENS: usize = 2;
/// Memory for adapters, as a share of all packed bytes.
const SHARE: f64 = 0.25;

/// Milliseconds that a first use adds, or why nobody knows. With no disk for packed adapters they are packed anew.
///
/// # Errors
/// If a server does not come up, or a request fails.
pub(super) fn measure(
    population: &Population,
    http: &Http,
    rounds: usize,
    disk_bytes_max: u64,
    report: &mut Report,
) -> Outcome<Result<Spread, &'static str>> {
    let memory = (population.packed_bytes as f64 * SHARE) as u64;
    let server = population.start(http, memory.max(1 << 20), disk_bytes_max)?;
    touch(http, &server.target, (0..WARM).collect(), 1, "in memory")?;
    let dropped = drop_page_cache(&population.data)?;
    let (runtime, client) = http.parts();
    let mut calls = 0;
    // The three of a round have one prompt and one rank; no two of them share keys and values.
    let values = interleaved(&mut Calm::never_asked(), rounds, 3, |side| {
        let round = calls / 3;
        calls += 1;
        let adapter = match side {
            0 => round % 2,
            1 => WARM + round,
            _ => 2 + round % 2,
        };
        let body = request(adapter, round, OUTPUT_TOKENS);
        let stream = runtime.block_on(read_stream(client, &server.target, "/v1/completions", &body))?;
        Ok(stream.first.as_secs_f64() * 1e3)
    })?;
    server.stop()?;
    let [warm, first, again] = values.as_slice() else { return Ok(Err("no rounds")) };
    let less = |one: &[f64], two: &[f64]| -> Vec<f64> { one.iter().zip(two).map(|(one, two)| one - two).collect() };
    let (added, control) = (Spread::of_median(&less(first, warm)), Spread::of_median(&less(again, warm)));
    let added = added.zip(control).map(|(added, control)| added.widened_by_difference(control));
    let kind = if disk_bytes_max == DISK_BYTES_MAX { "packed file" } else { "packed anew" };
    report.row(json!({"first_use": kind, "rounds": rounds, "warm_ms": spread_json(Spread::of(warm)),
        "first_ms": spread_json(Spread::of(first)), "added_ms": spread_json(added), "control_a_a_ms": spread_json(control),
        "page_cache_dropped_mb": (dropped / 1e6).round()}));
    Ok(added.ok_or("no rounds"))
}
