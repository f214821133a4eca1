//! An adapter from pinned host memory to its first use: alone, and while others decode. How long it takes to be written
//! there, by another thread, stands beside it. Not here: from disk to host memory.

use std::time::Instant;

use engine::{ModelRunner, Slot};
use serde_json::json;

use crate::measure::{median, rounded, spread_ms};
use crate::record::{Bound, Record};
use crate::rig::{Rig, Room};
use crate::shapes::{self, BF16};
use crate::{Given, Outcome, floor};

const RANK: usize = 16;
/// Adapters that are loaded in turn.
const ADAPTERS: usize = 8;
/// The most seconds that an adapter may take.
const BAR_SECONDS: f64 = 0.004;
/// The most that loads may add to the median step.
const HIDDEN_BAR: f64 = 1.05;
/// Steps from one load to the next.
const STEPS: usize = 4;

pub(crate) fn run(given: &Given, record: &mut Record) -> Outcome {
    let shape = shapes::large(given.tiny);
    let (rows, context, turns) = if given.tiny { (4, 32, 2) } else { (32, 1024, 40) };
    // Two at a time are on the device: one that is used, and one that comes.
    let room =
        Room { context, sequences: rows + 1, rows: rows + 1, slots: 2, adapters: Some((2, RANK)), ..Room::default() };
    let mut rig = Rig::new(&shape, BF16, &room)?;
    let adapters = rig.adapters(ADAPTERS, crate::rig::small(RANK))?;
    // As a host's other threads do before the engine hears of a request.
    let mut prepared = Vec::new();
    for adapter in &adapters {
        let start = Instant::now();
        if !rig.runner.staging().prepare(adapter) {
            return Err("there is no pinned memory for an adapter".into());
        }
        prepared.push(start.elapsed().as_secs_f64());
    }
    let blocks = adapters.first().map_or(0, |adapter| rig.runner.adapter_blocks(adapter));
    let end = rig.runner.shape().kv_blocks;
    let end_of = |slot: usize| end - crate::rig::small(slot) * blocks;
    let load = |rig: &mut Rig, slot: usize, turn: usize| -> Outcome {
        rig.runner.unload_adapter(Slot(crate::rig::small(slot)));
        rig.load_below(slot, &adapters[turn % ADAPTERS], end_of(slot)).map(drop)
    };

    // Alone: what a request of one token waits longer for if its adapter is not there.
    let one = rig.decode(1, context).with_adapters(1).done();
    let (mut cold, mut warm, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    load(&mut rig, 0, 0)?;
    for turn in 0..turns {
        rig.step(&one)?;
        warm.push(rig.step(&one)?);
        let start = Instant::now();
        load(&mut rig, 0, turn + 1)?;
        calls.push(start.elapsed().as_secs_f64());
        rig.step(&one)?;
        cold.push(start.elapsed().as_secs_f64());
    }
    let added = median(&cold) - median(&warm);
    let bytes = floor::adapter_bytes(&rig.config, RANK);
    let upload = bytes / given.limits.upload_bytes_per_s.max(1.0);
    record.row(&json!({
        "cell": "cold, alone", "adapter_bytes": rounded(bytes), "cold_step_ms": spread_ms(&cold),
        "warm_step_ms": spread_ms(&warm), "load_call_ms": spread_ms(&calls), "prepare_ms": spread_ms(&prepared), "added_ms": rounded(1e3 * added),
        "upload_floor_ms": rounded(1e3 * upload),
    }));
    record.bar("cold load, host memory to first use: ms", Bound::AtMost(1e3 * BAR_SECONDS), 1e3 * added);

    // While others decode: the step after a load has a row that uses it.
    let decode = rig.decode(rows, context).done();
    let mut joined = rig.decode(rows, context);
    let each = Rig::blocks_of(context);
    let new = joined.sequence(
        crate::rig::small(context) - 1,
        1,
        crate::rig::small(rows) * each..crate::rig::small(rows + 1) * each,
    );
    joined.adapter(new, 1);
    let joined = joined.done();
    load(&mut rig, 1, 0)?;
    let (mut quiet, mut loaded) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        // The same steps twice, once with a load between them; whoever measures from the outside sees all of it.
        for loads in [false, true] {
            let times = if loads { &mut loaded } else { &mut quiet };
            for step in 0..STEPS {
                let start = Instant::now();
                if loads && step == 0 {
                    load(&mut rig, 1, turn + 1)?;
                }
                rig.step(if step + 1 == STEPS { &joined } else { &decode })?;
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let ratio = median(&loaded) / median(&quiet);
    record.row(&json!({
        "cell": format!("one load in {STEPS} steps of {rows} rows"), "step_ms": spread_ms(&loaded),
        "step_ms_without_loads": spread_ms(&quiet), "of_median": rounded(ratio),
    }));
    if rig.runner.load_copied_bytes() > 0 {
        return Err("a load copied what was prepared".into());
    }
    record.bar("cold load, hidden: median step in that without loads", Bound::AtMost(HIDDEN_BAR), ratio);
    Ok(())
}
