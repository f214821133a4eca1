//! 2,000 adapters of which some are popular, more than the device holds: how long a request waits for its first token, and
//! whether that falls off a cliff where adapters have to come and go. Not here: which request runs when (the engine).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use engine::{ModelRunner, Slot};
use model::LoraAdapter;
use serde_json::json;

use crate::measure::{Random, Zipf, median, quantile, rounded, spread_ms};
use crate::record::{Bound, Record};
use crate::rig::{Rig, Room, small};
use crate::shapes::{self, BF16};
use crate::{Given, Outcome};

const RANK: usize = 16;
/// The share of a popular adapter: 1 / its rank.
const EXPONENT: f64 = 1.0;
/// What the 99th of 100 requests may wait for, in what it waits for when all adapters are there.
const BAR: f64 = 2.0;
/// Fewer requests have no 99th of 100.
const REQUESTS_MIN: usize = 300;

/// The adapters on the device, each in a slot and blocks of its own; the one that was used longest ago goes first.
struct Cache {
    /// Of each slot.
    blocks: Vec<Vec<u32>>,
    slots: HashMap<usize, usize>,
    /// Adapters, from the one used longest ago.
    order: VecDeque<usize>,
    loads: usize,
}

impl Cache {
    fn new(slots: usize, blocks_each: u32, end: u32) -> Self {
        let of = |slot: usize| {
            let end = end - small(slot) * blocks_each;
            (end - blocks_each..end).collect()
        };
        Self { blocks: (0..slots).map(of).collect(), slots: HashMap::new(), order: VecDeque::new(), loads: 0 }
    }

    /// The slot of this adapter, which is loaded if it is not there.
    fn slot(&mut self, rig: &mut Rig, number: usize, hosts: &[Arc<LoraAdapter>]) -> Outcome<usize> {
        self.order.retain(|other| *other != number);
        self.order.push_back(number);
        if let Some(slot) = self.slots.get(&number) {
            return Ok(*slot);
        }
        let slot = if self.slots.len() < self.blocks.len() {
            self.slots.len()
        } else {
            let oldest = self.order.pop_front().ok_or("no adapter can go")?;
            let slot = self.slots.remove(&oldest).ok_or("an adapter has no slot")?;
            rig.runner.unload_adapter(Slot(small(slot)));
            slot
        };
        let adapter = hosts.get(number % hosts.len().max(1)).ok_or("no adapters")?;
        rig.runner.load_adapter(Slot(small(slot)), adapter, &self.blocks[slot])?;
        self.slots.insert(number, slot);
        self.loads += 1;
        Ok(slot)
    }
}

pub(crate) fn run(given: &Given, record: &mut Record) -> Outcome {
    let shape = shapes::large(given.tiny);
    let start = Instant::now();
    let (count, hosts, rows, context, prompt) = if given.tiny { (12, 3, 2, 32, 5) } else { (2000, 64, 31, 1024, 64) };
    let slots = if given.tiny { 5 } else { count };
    let adapters = given.tiny.then_some((slots, RANK));
    let room = Room { context, sequences: rows + 1, rows: rows + prompt, slots, adapters, ..Room::default() };
    let mut rig = Rig::new(&shape, BF16, &room)?;
    // More adapters than host memory holds share their numbers with others: a copy takes as long whatever it copies.
    let hosts = rig.adapters(hosts, small(RANK))?;
    let blocks_each = hosts.first().map_or(1, |adapter| rig.runner.adapter_blocks(adapter).max(1));
    let (all, kv) = (rig.runner.shape().kv_blocks, small(rows + 1) * Rig::blocks_of(context));
    let fit = (all.saturating_sub(kv) / blocks_each) as usize;
    let mut cache = Cache::new(fit.min(slots), blocks_each, all);
    if cache.blocks.len() < rows + 2 {
        return Err(format!("{} adapters fit beside the base: too few", cache.blocks.len()).into());
    }
    let popular = Zipf::new(count, EXPONENT);
    let mut random = Random::new(3);
    // Those that are most often asked for are there at first, the most popular one used last.
    for number in (0..cache.blocks.len().min(count)).rev() {
        cache.slot(&mut rig, number, &hosts)?;
    }
    let filled = cache.loads;
    let mut running: VecDeque<usize> = (0..rows).collect();
    let (mut warm, mut hits, mut misses) = (Vec::new(), Vec::new(), Vec::new());
    let seconds = given.seconds - start.elapsed().as_secs_f64() - 1.0;
    let most = if given.tiny { 12 } else { 20_000 };
    let begun = Instant::now();
    while warm.len() < most && (warm.len() + hits.len() + misses.len() < 4 || begun.elapsed().as_secs_f64() < seconds) {
        // In turn one request of the load, and one for what is surely there.
        for is_warm in [false, true] {
            let number = match is_warm {
                true => running.back().copied().unwrap_or_default(),
                false => popular.draw(&mut random),
            };
            let loads = cache.loads;
            let asked = Instant::now();
            let slot = cache.slot(&mut rig, number, &hosts)?;
            let mut batch = rig.batch();
            let each = Rig::blocks_of(context);
            let mut others = Vec::new();
            for (place, other) in running.iter().enumerate() {
                others.push((cache.slot(&mut rig, *other, &hosts)?, small(place)));
            }
            for (slot, place) in &others {
                let row = batch.sequence(small(context) - 1, 1, place * each..(place + 1) * each);
                batch.adapter(row, *slot);
            }
            let row = batch.sequence(0, small(prompt), small(rows) * each..small(rows) * each + Rig::blocks_of(prompt));
            batch.adapter(row, slot);
            rig.step(&batch.done())?;
            let waited = asked.elapsed().as_secs_f64();
            match (is_warm, cache.loads > loads) {
                (true, _) => warm.push(waited),
                (false, true) => misses.push(waited),
                (false, false) => hits.push(waited),
            }
            if !is_warm {
                running.push_back(number);
                running.pop_front();
            }
        }
    }
    let all: Vec<f64> = hits.iter().chain(&misses).copied().collect();
    record.row(&json!({
        "cell": "first token, zipf load", "adapters": count, "on_the_device": cache.blocks.len(), "loads": cache.loads - filled,
        "requests": all.len(), "loaded_for": misses.len(), "all_ms": spread_ms(&all), "warm_ms": spread_ms(&warm),
        "loaded_ms": spread_ms(&misses), "p99_ms": rounded(1e3 * quantile(&all, 0.99)),
        "warm_p99_ms": rounded(1e3 * quantile(&warm, 0.99)), "of_median": rounded(median(&all) / median(&warm)),
        "different_in_host_memory": hosts.len(),
    }));
    let (name, bound) = ("2,000 adapters: p99 of the first token in that of warm", Bound::AtMost(BAR));
    let ratio = quantile(&all, 0.99) / quantile(&warm, 0.99);
    if all.len() < REQUESTS_MIN {
        record.undecided(name, bound, Some(ratio), "too few requests for a p99");
    } else if misses.is_empty() {
        record.undecided(name, bound, Some(ratio), "no adapter had to come");
    } else {
        record.bar(name, bound, ratio);
    }
    Ok(())
}
