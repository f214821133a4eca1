//! What adapters cost: decode with one shared adapter, with all distinct ones, with two each, beside the base; and that what
//! is not used costs nothing. Not here: other people's servers.

use model::ModelConfig;
use serde_json::json;

use crate::Outcome;
use crate::adapters::RandomAdapter;
use crate::calm::Calm;
use crate::cells::{CONTEXT, Setting};
use crate::ours::{Mix, Ours};
use crate::report::{Report, rounded, spread_json};
use crate::rounds::interleaved;
use crate::statistics::{Bound, Spread, median};

/// Batches with bars, and rounds for each of the other parts': the bars are a few hundredths away, so there are many short ones.
const BATCHES: [(usize, usize); 2] = [(8, 16), (32, 6)];
/// Batches at which what is unused must cost nothing, and rounds likewise.
const BATCHES_UNUSED: [(usize, usize); 2] = [(1, 8), (8, 8)];
/// Decode steps of one value: some 50 to 150 ms, shorter than what a virtual machine's CPUs stay where they are for.
const STEPS: usize = 8;
const TAX_BAR: f64 = 2.0;
const SHARED_BAR: f64 = 0.92;

/// Measures all mixes and adds their rows and bars. `bare` has no adapter slots at all.
///
/// # Errors
/// If a step fails.
pub(crate) fn run(
    ours: &mut Ours,
    bare: &mut Ours,
    config: &ModelConfig,
    setting: &Setting<'_>,
    calm: &mut Calm,
    report: &mut Report,
) -> Outcome {
    println!("\n== decode with adapters of rank 16 on all linear layers");
    for (batch, factor) in BATCHES {
        let parameters = RandomAdapter::new(0, config).parameters();
        tax(ours, (batch, parameters), setting, (setting.rounds * factor, calm), report)?;
    }
    for (batch, factor) in BATCHES_UNUSED {
        unused(ours, bare, batch, (setting.rounds * factor, calm), report)?;
    }
    Ok(())
}

fn tax(
    ours: &mut Ours,
    (batch, parameters): (usize, usize),
    setting: &Setting<'_>,
    (rounds, calm): (usize, &mut Calm),
    report: &mut Report,
) -> Outcome {
    // The base comes before and after each of the first two, and is compared with as the mean of both: what a side leaves in the
    // caches, and a machine that slows down, hit both sides alike.
    const MIXES: [Mix; 6] = [Mix::Base, Mix::Shared, Mix::Base, Mix::Distinct(usize::MAX), Mix::Base, Mix::TwoEach];
    let set_bytes = batch * ours.adapter_bytes();
    // Beyond every cache, as what a step reads of base and adapters is.
    let read_bytes = setting.cost.weight_bytes as usize + set_bytes;
    ours.decode(batch, Mix::Base, CONTEXT, 1)?;
    // Seconds of a step. The last side is the floor: seconds to read the adapters once, in the same round, as CPUs of a virtual
    // machine move nearer to memory and away from it.
    let values = interleaved(calm, rounds, MIXES.len() + 1, |side| match MIXES.get(side) {
        Some(mix) => Ok(ours.decode_on(batch, *mix, CONTEXT, STEPS)?.as_secs_f64() / STEPS as f64),
        None => Ok(set_bytes as f64 / setting.read_bandwidth(read_bytes)?),
    })?;
    let [before, shared, base, distinct, after, two, floors] = values.as_slice() else { return Ok(()) };
    let mean =
        |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(one, other)| (one + other) / 2.0).collect::<Vec<_>>();
    let (beside_shared, beside_distinct) = (mean(before, base), mean(base, after));
    let control = Spread::of_median_ratio(before, base).ok_or("no rounds")?;
    let adapter_bytes = ours.adapter_bytes();
    let mixes = [(0, before, before), (1, shared, &beside_shared), (3, distinct, &beside_distinct), (5, two, after)];
    for (place, seconds, base) in mixes {
        let mix = MIXES[place];
        let speed = Spread::of(&seconds.iter().map(|seconds| batch as f64 / seconds).collect::<Vec<_>>());
        let milliseconds = Spread::of(seconds).map(|spread| spread.times(1e3));
        report.row(json!({"cell": format!("decode batch {batch}"), "side": "tenon", "adapters": mix.name(),
            "tokens_per_s": spread_json(speed), "step_ms": spread_json(milliseconds),
            "of_base": spread_json(Spread::of_ratios(base, seconds)), "control_a_a": spread_json(Some(control))}));
    }
    let floor = median(floors).ok_or("no rounds")?;
    let bandwidth = set_bytes as f64 / floor;
    let in_floors = |((distinct, base), floor): ((&f64, &f64), &f64)| (distinct - base) / floor;
    let extra: Vec<f64> = distinct.iter().zip(&beside_distinct).zip(floors).map(in_floors).collect();
    // The same in bytes that do not depend on how we keep adapters: two for each parameter.
    let bf16_bytes = (batch * parameters * 2) as f64;
    let extra_of_bf16 = Spread::of(&extra).map(|extra| extra.times(floor / (bf16_bytes / bandwidth)));
    let noise = noise_of(&[base, after], floor);
    report.row(json!({"cell": format!("decode batch {batch}"), "adapters": format!("{batch} distinct"),
        "adapter_mb": rounded(adapter_bytes as f64 / 1e6), "read_gb_per_s": rounded(bandwidth / 1e9),
        "read_floor_ms": rounded(floor * 1e3), "extra_over_floor": spread_json(Spread::of(&extra)),
        "extra_over_floor_of_bf16": spread_json(extra_of_bf16)}));
    let extra = Spread::of_median(&extra).map(|spread| Spread {
        low: spread.low.min(spread.median - noise),
        high: spread.high.max(spread.median + noise),
        ..spread
    });
    let name = format!("adapter tax: extra time of {batch} distinct adapters over their read floor");
    report.bar(&name, Bound::AtMost(TAX_BAR), extra.ok_or("no rounds"));
    let ratio = Spread::of_median_ratio(&beside_shared, shared).map(|ratio| ratio.widened_by(control.of_mean()));
    let name = format!("one shared adapter at batch {batch}: share of base tokens/s");
    report.bar(&name, Bound::AtLeast(SHARED_BAR), ratio.ok_or("no rounds"));
    Ok(())
}

/// How far the base is from itself, in floors.
fn noise_of(sides: &[&[f64]; 2], floor: f64) -> f64 {
    let differences: Vec<f64> = sides[0].iter().zip(sides[1]).map(|(one, other)| one - other).collect();
    Spread::of_median(&differences).map_or(0.0, |spread| spread.low.abs().max(spread.high.abs()) / floor)
}

/// The base with adapters loaded that nobody uses, beside a runner that has no slots.
fn unused(
    ours: &mut Ours,
    bare: &mut Ours,
    batch: usize,
    (rounds, calm): (usize, &mut Calm),
    report: &mut Report,
) -> Outcome {
    for side in [&mut *ours, &mut *bare] {
        side.decode(batch, Mix::Base, CONTEXT, 1)?;
    }
    let values = interleaved(calm, rounds, 4, |side| {
        let side = if side.is_multiple_of(2) { &mut *ours } else { &mut *bare };
        Ok((batch * STEPS) as f64 / side.decode_on(batch, Mix::Base, CONTEXT, STEPS)?.as_secs_f64())
    })?;
    let [loaded, bare, loaded_again, bare_again] = values.as_slice() else { return Ok(()) };
    let ratio = Spread::of_ratios(&[loaded.as_slice(), loaded_again].concat(), &[bare.as_slice(), bare_again].concat());
    let ratio = ratio.ok_or("no rounds")?;
    let controls = [Spread::of_ratios(loaded, loaded_again), Spread::of_ratios(bare, bare_again)];
    let away = |spread: &Spread| (spread.low - 1.0).abs().max((spread.high - 1.0).abs());
    let control = controls.iter().flatten().map(away).fold(0.0, f64::max);
    report.row(json!({"cell": format!("decode batch {batch}"), "adapters": "loaded, unused",
        "over_no_slots": spread_json(Some(ratio)), "control_a_a_away_from_1": rounded(control)}));
    let name = format!("unused adapters at batch {batch}: distance of the ratio from 1, bar is the A/A spread");
    report.bar(&name, Bound::AtMost(control), Ok(Spread::exactly((ratio.median - 1.0).abs())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_in_floors_of_either_sign() {
        assert_eq!(noise_of(&[&[1.0, 1.0], &[1.5, 1.5]], 0.25), 2.0);
        assert_eq!(noise_of(&[&[1.0], &[1.0]], 0.25), 0.0);
    }
}
