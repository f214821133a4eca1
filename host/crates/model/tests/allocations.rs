//! A step that decodes allocates nothing in the fast runner: counted by an allocator, on the thread that calls it, over
//! adapters, greedy and top-k draws.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;

use engine::{Batch, BatchSequence, LoraSegment, ModelRunner, SampleRequest, SampledToken, Slot};
use generators::{Draw, Sizes, adapter, base_file, seeded_bytes};
use model::{AdapterLimits, Base, CpuRunner, CpuRunnerConfig, LoraAdapter, Precision, Prompts, canonical_adapter};
use types::{LayerRange, ModuleSet};

const SEQUENCES: u32 = 12;
const BLOCKS: u32 = 2;

/// A step that decodes the token at `position` of each sequence; a third has the adapter.
fn decode(position: u32, batch: &mut Batch) {
    let (modules, layers) = (ModuleSet::ALL, LayerRange::ALL);
    *batch = Batch {
        tokens: (0..SEQUENCES).map(|sequence| sequence + position).collect(),
        positions: vec![position; SEQUENCES as usize],
        sequences: (0..SEQUENCES)
            .map(|s| BatchSequence { rows: s..s + 1, blocks: s * BLOCKS..(s + 1) * BLOCKS })
            .collect(),
        block_tables: (0..SEQUENCES * BLOCKS).collect(),
        segments: vec![LoraSegment { rows: 0..4, slot: Slot(0), weight: 0.7, modules, layers }],
        samples: (0..SEQUENCES)
            .map(|row| SampleRequest {
                temperature: (row % 2) as f32,
                top_k: 20,
                top_p: 0.9,
                ..SampleRequest::greedy(row)
            })
            .collect(),
        ..Batch::default()
    };
}

/// The first of the generator's that fits.
fn first_adapter(base: &Base) -> LoraAdapter {
    let limits = AdapterLimits::default();
    let fitting = (0..).find_map(|seed| {
        let bytes = seeded_bytes(seed, 200);
        let files = adapter(&mut Draw::new(&bytes), &Sizes::TINY);
        let canonical = canonical_adapter(&files.config, &files.weights, base, &limits).ok()?;
        LoraAdapter::from_canonical(&canonical.bytes, base, &limits, Precision::Quantised).ok()
    });
    fitting.unwrap()
}

#[test]
fn a_step_that_decodes_allocates_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), base_file(&Sizes::TINY)).unwrap();
    let base: &Base = &Base::open(file.path()).unwrap();
    for threads in [1, 2] {
        let config = CpuRunnerConfig {
            precision: Precision::Quantised,
            block_tokens: 16,
            kv_blocks: SEQUENCES * BLOCKS,
            adapter_slots: 1,
            batch_rows_max: 64,
            threads,
            prompts: Prompts::Auto,
        };
        let mut runner = CpuRunner::new(base, config).unwrap();
        runner.load_adapter(Slot(0), &Arc::new(first_adapter(base)), &[]).unwrap();
        let mut batch = Batch::default();
        let mut sampled: Vec<SampledToken> = Vec::with_capacity(64);
        for position in 0..24 {
            decode(position, &mut batch);
            sampled.clear();
            let counted = allocation_counter::measure(|| runner.step(&batch, &mut sampled).unwrap());
            assert_eq!(sampled.len(), SEQUENCES as usize);
            // The first steps make the room that later ones use.
            assert!(position < 8 || counted.count_total == 0, "{threads} threads, position {position}: {counted:?}");
        }
    }
}
