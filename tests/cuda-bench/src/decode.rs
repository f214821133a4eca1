//! Decode steps and one long prompt, beside what the device could do. Not here: adapters.

use kernels::cuda::cublaslt_version;
use model::Matmul;
use serde_json::json;

use crate::measure::{Rounds, median, rounded, spread_ms};
use crate::record::{Bound, Record};
use crate::rig::{Rig, Room};
use crate::shapes::{self, BF16, Format, Q4_K, Q8_0, Shape};
use crate::{Given, Outcome, floor};

/// Tokens of each sequence in decode steps: few, so that the floor is that of the weights.
const CONTEXT: usize = 128;
/// What a prompt must have of the matrix peak.
const PREFILL_BAR: f64 = 0.6;

/// A base, its format, rows of a step, and what they must have of the floor.
struct Cell {
    rows: usize,
    bar: Option<f64>,
}

const fn cell(rows: usize, bar: Option<f64>) -> Cell {
    Cell { rows, bar }
}

pub(crate) fn run(given: &Given, record: &mut Record) -> Outcome {
    let large = || shapes::large(given.tiny);
    let mut bases: Vec<(Shape, Format, Vec<Cell>)> = vec![
        (large(), BF16, vec![cell(1, Some(0.85)), cell(8, None), cell(64, Some(0.8))]),
        (large(), Q4_K, vec![cell(1, Some(0.7)), cell(64, None)]),
        (large(), Q8_0, vec![cell(1, None), cell(64, None)]),
    ];
    if !given.tiny {
        bases.push((shapes::medium(), BF16, vec![cell(1, None), cell(64, None)]));
        bases.push((shapes::medium(), Q4_K, vec![cell(1, None)]));
        bases.push((shapes::small(), BF16, vec![cell(1, None), cell(64, None)]));
        bases.push((shapes::small(), Q8_0, vec![cell(1, None)]));
    }
    let cells: usize = bases.iter().map(|(_, _, cells)| cells.len()).sum();
    // Half of the time is for the making.
    let seconds = (given.seconds / 2.0 / cells as f64).min(2.0);
    let mut failed = Vec::new();
    for (shape, format, cells) in bases {
        // A base that does not fit leaves the others.
        if let Err(error) = measure(given, record, &shape, format, &cells, seconds) {
            failed.push(format!("{} in {}: {error}", shape.name, format.name));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ").into()) }
}

fn measure(given: &Given, record: &mut Record, shape: &Shape, format: Format, cells: &[Cell], seconds: f64) -> Outcome {
    let context = if given.tiny { 32 } else { CONTEXT };
    let rows_max = cells.iter().map(|cell| cell.rows).max().unwrap_or(1);
    let room = Room { context, sequences: rows_max, rows: rows_max, adapters: Some((0, 0)), ..Room::default() };
    let mut rig = Rig::new(shape, format, &room)?;
    for Cell { rows, bar } in cells {
        let batch = rig.decode(*rows, context).done();
        let rounds = Rounds { seconds, least: 2, most: if given.tiny { 2 } else { 400 } };
        let times = rounds.run(|| rig.step(&batch))?;
        let step = median(&times);
        let bytes = floor::weight_bytes(&rig.config, format.device) + floor::kv_bytes(&rig.config, rows * context);
        let memory_floor = given.limits.memory_seconds(bytes)?;
        let matrix_floor = floor::decode_operations(&rig.config, *rows) / given.limits.peak().max(1.0);
        let cell = format!("{} {} batch {rows}", shape.name, format.name);
        record.row(&json!({
            "cell": cell, "step_ms": spread_ms(&times), "tokens_per_s": rounded(*rows as f64 / step),
            "bytes": rounded(bytes), "memory_floor_ms": rounded(1e3 * memory_floor),
            "matrix_floor_ms": rounded(1e3 * matrix_floor), "of_memory_floor": rounded(memory_floor / step),
        }));
        if let Some(bar) = bar {
            record.bar(&format!("decode {cell}: of the memory floor"), Bound::AtLeast(*bar), memory_floor / step);
        }
    }
    Ok(())
}

/// A prompt at once, by our own kernels; then by cuBLASLt, if it is there.
pub(crate) fn run_prefill(given: &Given, record: &mut Record) -> Outcome {
    let of_peak = prefill(given, record, Matmul::Own)?;
    let (name, bound) = ("prefill: of the matrix peak", Bound::AtLeast(PREFILL_BAR));
    if given.limits.library_operations_per_s > 0.0 {
        record.bar(name, bound, of_peak);
    } else {
        let why = "PyTorch is not here, and our own product is no peak";
        record.undecided(name, bound, Some(of_peak), why);
    }
    match cublaslt_version() {
        Ok(_) => prefill(given, record, Matmul::CublasLt { rows_min: 1 }).map(drop),
        Err(reason) => {
            record.row(&json!({ "cell": "prefill by cublaslt", "why_not": reason.to_string() }));
            Ok(())
        }
    }
}

/// What it has of the peak.
fn prefill(given: &Given, record: &mut Record, matmul: Matmul) -> Outcome<f64> {
    let shape = shapes::large(given.tiny);
    let tokens = if given.tiny { 48 } else { 4096 };
    let room = Room { context: tokens, sequences: 1, rows: tokens, adapters: Some((0, 0)), matmul, ..Room::default() };
    let mut rig = Rig::new(&shape, BF16, &room)?;
    let mut batches = rig.batch();
    batches.sequence(0, crate::rig::small(tokens), 0..Rig::blocks_of(tokens));
    let batch = batches.done();
    let rounds = Rounds { seconds: 4.0, least: 1, most: if given.tiny { 1 } else { 20 } };
    let times = rounds.run(|| rig.step(&batch))?;
    let operations = floor::prefill_operations(&rig.config, tokens);
    let of_peak = operations / median(&times) / given.limits.peak().max(1.0);
    let way = if matmul == Matmul::Own { "" } else { " by cublaslt" };
    record.row(&json!({
        "cell": format!("{} bf16 prefill {tokens}{way}", shape.name), "step_ms": spread_ms(&times),
        "tokens_per_s": rounded(tokens as f64 / median(&times)), "operations": rounded(operations),
        "operations_per_s": rounded(operations / median(&times)), "of_peak": rounded(of_peak),
    }));
    Ok(of_peak)
}
