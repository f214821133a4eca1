//! Adapters and sequences come and go under a ceiling of device memory, which is sampled at every step, and a request that
//! is asked again and again between them must have the same answer. Not here: what the host's admission does.

use std::time::{Duration, Instant};

use engine::{ModelRunner, Slot};
use kernels::cuda::Device;
use serde_json::json;

use crate::measure::{Random, rounded, spread_ms};
use crate::record::{Bound, Record};
use crate::rig::{Rig, Room, small};
use crate::shapes::{self, BF16};
use crate::{Given, Outcome};

/// Shorter runs do not decide the bar.
const SECONDS_BAR: f64 = 300.0;
/// What of the free memory the ceiling is.
const CEILING: f64 = 0.8;
const RANKS: [u32; 4] = [8, 16, 32, 64];

pub(crate) fn run(given: &Given, record: &mut Record) -> Outcome {
    let shape = shapes::large(given.tiny);
    let (rows_max, context, slots) = if given.tiny { (8, 32, 4) } else { (128, 2048, 64) };
    // The context and its streams are the driver's, and there before anything of ours.
    let device = Device::open(0)?;
    let (free, _) = device.memory()?;
    let ceiling = (free as f64 * CEILING) as u64;
    let adapters = given.tiny.then_some((slots, 64));
    let rows = 4 * rows_max;
    let room = Room { context, sequences: rows_max, rows, slots, adapters, ceiling: Some(ceiling), ..Room::default() };
    let mut rig = Rig::new(&shape, BF16, &room)?;
    let used = |device: &Device| -> Outcome<u64> { Ok(free.saturating_sub(device.memory()?.0) as u64) };
    let (at_start, mut most, mut least) = (used(&device)?, 0, u64::MAX);
    let mut hosts = Vec::new();
    for (seed, rank) in (0..).zip(RANKS) {
        let adapter = model::LoraAdapter::generated(&rig.config, rank, seed).ok_or("no such adapter")?;
        hosts.push(std::sync::Arc::new(adapter));
    }
    let shape = rig.runner.shape();
    let mut churn =
        Churn { random: Random::new(11), free: (0..shape.kv_blocks).rev().collect(), slots: vec![None; slots] };
    // What is asked again and again has a slot and blocks of its own, below everything that comes and goes.
    let probe_blocks: Vec<u32> = churn.take(Rig::blocks_of(context.min(64))).ok_or("no blocks")?;
    let own = churn.take(rig.runner.adapter_blocks(&hosts[0])).ok_or("no blocks for an adapter")?;
    rig.runner.load_adapter(Slot(0), &hosts[0], &own)?;
    churn.slots[0] = Some(own);
    let first_block = probe_blocks.first().copied().unwrap_or_default();
    let mut probe = rig.batch();
    let tokens = small(context.min(20));
    let row = probe.sequence(0, tokens, first_block..first_block + Rig::blocks_of(tokens as usize));
    probe.adapter(row, 0);
    let probe = probe.done();
    rig.step(&probe)?;
    let answer: Vec<u32> = rig.sampled().collect();

    let seconds = given.seconds - 1.0;
    let end = Instant::now() + Duration::from_secs_f64(seconds.max(0.0));
    let begun = Instant::now();
    let (mut times, mut loads, mut wrong, mut steps) = (Vec::new(), 0usize, 0usize, 0usize);
    while steps < 3 || (Instant::now() < end && !(given.tiny && steps >= 12)) {
        loads += churn.change(&mut rig, &hosts)?;
        times.push(churn.step(&mut rig, rows, context)?);
        rig.step(&probe)?;
        wrong += usize::from(!rig.sampled().eq(answer.iter().copied()));
        let now = used(&device)?;
        (most, least) = (most.max(now), least.min(now));
        steps += 1;
    }
    let ran = begun.elapsed().as_secs_f64();
    record.row(&json!({
        "cell": "churn", "seconds": rounded(ran), "steps": steps, "loads": loads, "step_ms": spread_ms(&times),
        "ceiling_bytes": ceiling, "allocated_bytes": rig.runner.device_memory_bytes(), "used_at_start_bytes": at_start,
        "used_most_bytes": most, "used_least_bytes": least, "wrong_answers": wrong,
    }));
    record.verdict("red line: wrong answers in churn", Bound::AtMost(0.0), wrong as f64);
    let (name, bound) = ("red line: device memory in use, of the ceiling", Bound::AtMost(1.0));
    let ratio = most as f64 / ceiling as f64;
    if ran >= SECONDS_BAR - 5.0 || ratio > 1.0 {
        record.bar(name, bound, ratio);
    } else {
        record.undecided(name, bound, Some(ratio), &format!("{ran:.0} s of {SECONDS_BAR:.0}"));
    }
    Ok(())
}

/// Who has which blocks.
struct Churn {
    random: Random,
    free: Vec<u32>,
    /// Blocks of each slot's adapter.
    slots: Vec<Option<Vec<u32>>>,
}

impl Churn {
    fn take(&mut self, count: u32) -> Option<Vec<u32>> {
        let keep = self.free.len().checked_sub(count as usize)?;
        let mut taken = self.free.split_off(keep);
        taken.reverse();
        Some(taken)
    }

    /// Some adapters go, some come; how many came.
    fn change(&mut self, rig: &mut Rig, hosts: &[std::sync::Arc<model::LoraAdapter>]) -> Outcome<usize> {
        let mut loads = 0;
        for _ in 0..2 {
            let slot = 1 + self.random.below(self.slots.len() - 1);
            if let Some(blocks) = self.slots[slot].take() {
                rig.runner.unload_adapter(Slot(small(slot)));
                self.free.extend(blocks);
            }
            let adapter = &hosts[self.random.below(hosts.len())];
            // Half of the memory stays for sequences.
            let blocks = rig.runner.adapter_blocks(adapter);
            if self.free.len() > 2 * blocks as usize {
                let Some(blocks) = self.take(blocks) else { continue };
                rig.runner.load_adapter(Slot(small(slot)), adapter, &blocks)?;
                self.slots[slot] = Some(blocks);
                loads += 1;
            }
        }
        Ok(loads)
    }

    /// A step of some sequences in blocks that were another's, wiped first; prompts and single rows, with adapters or without.
    fn step(&mut self, rig: &mut Rig, rows_max: usize, context: usize) -> Outcome<f64> {
        let mut batch = rig.batch();
        let sequences = 1 + self.random.below(rows_max / 4);
        let loaded: Vec<usize> = (0..self.slots.len()).filter(|slot| self.slots[*slot].is_some()).collect();
        let (mut rows_left, mut back) = (rows_max, Vec::new());
        for _ in 0..sequences {
            let tokens = 1 + self.random.below(context);
            let rows = if self.random.below(4) == 0 { tokens.min(1 + self.random.below(rows_max / 2)) } else { 1 };
            let rows = rows.min(rows_left);
            let each = Rig::blocks_of(tokens);
            // Neighbouring blocks: what a table may name is not what is tested here.
            let Some(blocks) = self.run_of(each) else { break };
            if rows == 0 {
                self.free.extend(blocks);
                break;
            }
            rows_left -= rows;
            batch.wipe(blocks.clone());
            let first = blocks.first().copied().unwrap_or_default();
            let range = batch.sequence(small(tokens - rows), small(rows), first..first + each);
            if self.random.below(3) > 0 {
                batch.adapter(range, loaded[self.random.below(loaded.len())]);
            }
            back.extend(blocks);
        }
        let seconds = rig.step(&batch.done());
        self.free.extend(back);
        seconds
    }

    /// Free neighbours, if the list happens to end with so many.
    fn run_of(&mut self, count: u32) -> Option<Vec<u32>> {
        self.free.sort_unstable_by(|one, other| other.cmp(one));
        let count = count as usize;
        let is_run =
            |run: &[u32]| run.first().zip(run.last()).is_some_and(|(high, low)| (high - low) as usize + 1 == count);
        let start = (0..=self.free.len().checked_sub(count)?)
            .rev()
            .step_by(count.max(1))
            .find(|start| self.free.get(*start..start + count).is_some_and(is_run))?;
        Some(self.free.drain(start..start + count).rev().collect())
    }
}
