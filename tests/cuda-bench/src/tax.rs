//! What adapters cost in the shape of the public table: 8B, 128 rows at 1,024 tokens, rank 16 on all linear layers. Not here:
//! LoRA's kernels by themselves.

use std::time::Instant;

use serde_json::json;

use crate::measure::{Rounds, median, quantile, rounded, spread_ms};
use crate::record::{Bound, Record};
use crate::rig::{Rig, Room};
use crate::shapes::{self, BF16};
use crate::{Given, Outcome, floor};

const RANK: usize = 16;
/// What every step must have of its floor.
const BAR: f64 = 0.75;
/// The record that the ratios are reported beside.
const PUBLIC: &str = "82 %, 64 %, 53 % at 3 adapters";

pub(crate) fn run(given: &Given, record: &mut Record) -> Outcome {
    let shape = shapes::large(given.tiny);
    let (rows, context) = if given.tiny { (8, 32) } else { (128, 1024) };
    let start = Instant::now();
    let left = || given.seconds - start.elapsed().as_secs_f64();
    let rounds = |seconds: f64| Rounds { seconds, least: 2, most: if given.tiny { 2 } else { 200 } };
    let room = Room { context, sequences: rows, rows, adapters: Some((0, RANK)), ..Room::default() };
    let base = {
        let mut rig = Rig::new(&shape, BF16, &room)?;
        let batch = rig.decode(rows, context).done();
        rounds(2.0).run(|| rig.step(&batch))?
    };
    let mut rig = Rig::new(&shape, BF16, &Room { slots: rows, adapters: Some((rows, RANK)), ..room })?;
    // Before the adapters of host memory: if there is no room for them, the rest is known.
    let weights = floor::weight_bytes(&rig.config, BF16.device) + floor::kv_bytes(&rig.config, rows * context);
    let adapter = floor::adapter_bytes(&rig.config, RANK);
    let floor = |distinct: usize| given.limits.memory_seconds(weights + distinct as f64 * adapter);
    let row = |record: &mut Record, cell: &str, times: &[f64], floor: f64| {
        record.row(&json!({
            "cell": cell, "step_ms": spread_ms(times), "tokens_per_s": rounded(rows as f64 / median(times)),
            "floor_ms": rounded(1e3 * floor), "of_floor": rounded(floor / median(times)),
            "of_base": rounded(median(&base) / median(times)),
        }));
    };
    row(record, "base", &base, floor(0)?);
    record.bar("adapter tax, base: of the floor", Bound::AtLeast(BAR), floor(0)? / median(&base));
    let made = Instant::now();
    let adapters = rig.adapters(rows, crate::rig::small(RANK))?;
    println!("{rows} adapters in host memory in {:.1} s", made.elapsed().as_secs_f64());
    rig.load_all(&adapters)?;
    let plain = rig.decode(rows, context).done();
    let counts: Vec<usize> = [1, 3, 8, 32, 128].into_iter().filter(|count| *count <= rows).collect();
    let batches: Vec<_> = counts.iter().map(|count| rig.decode(rows, context).with_adapters(*count).done()).collect();
    // In turn, so that what the device does to one it does to all.
    let mut unused = Vec::new();
    let mut times = vec![Vec::new(); batches.len()];
    let turns = 4;
    let seconds = ((left() - 2.0) / (turns * (batches.len() + 1)) as f64).clamp(0.0, 1.0);
    for _ in 0..if given.tiny { 1 } else { turns } {
        unused.extend(rounds(seconds).run(|| rig.step(&plain))?);
        for (times, batch) in times.iter_mut().zip(&batches) {
            times.extend(rounds(seconds).run(|| rig.step(batch))?);
        }
    }
    row(record, "unused", &unused, floor(0)?);
    // The spread of base, as a ratio: what lies within it is no difference.
    let spread = quantile(&base, 0.9) / median(&base);
    let ratio = median(&unused) / median(&base);
    record.bar(
        "adapter tax, unused: step time in that of base, beside the spread of base",
        Bound::AtMost(spread),
        ratio,
    );
    for ((count, times), _) in counts.iter().zip(&times).zip(&batches) {
        row(record, &format!("{count} distinct"), times, floor(*count)?);
        let name = format!("adapter tax, {count} distinct: of the floor");
        record.bar(&name, Bound::AtLeast(BAR), floor(*count)? / median(times));
    }
    record.row(&json!({"cell": "public record of throughput in that of the base", "text": PUBLIC}));
    Ok(())
}
