//! The CPU runner under the suite that every runner must pass, on a base and adapters made here, in both precisions: what
//! it draws, with penalties and without, depends on nothing else in the batch.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;

use engine::{ConformanceInput, ModelRunner as _, check_runner};
use generators::{Draw, Sizes, adapter, base_file, seeded_bytes};
use model::{AdapterLimits, Base, CpuRunner, CpuRunnerConfig, LoraAdapter, Precision, Prompts, canonical_adapter};

#[test]
fn the_cpu_runner_conforms_with_much_and_little_memory() {
    // The fast one's blocks are of 16 tokens at least.
    check(Precision::F32, 8, [200, 8]);
    check(Precision::Quantised, 16, [100, 4]);
}

fn check(precision: Precision, block_tokens: u32, kv_blocks: [u32; 2]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), base_file(&Sizes::TINY)).unwrap();
    let base: &Base = &Base::open(file.path()).unwrap();
    let limits = AdapterLimits::default();
    let adapters = (0..).filter_map(|seed| {
        let bytes = seeded_bytes(seed, 200);
        let files = adapter(&mut Draw::new(&bytes), &Sizes::TINY);
        let canonical = canonical_adapter(&files.config, &files.weights, base, &limits).ok()?;
        let packed = LoraAdapter::from_canonical(&canonical.bytes, base, &limits, precision).ok()?;
        Some((types::Digest::of(&canonical.bytes), Arc::new(packed)))
    });
    let vocabulary = base.config().vocabulary as u32;
    let prompts = vec![vec![1], (0..40).map(|id| id * 7 % vocabulary).collect(), vec![5; 9]];
    let input = ConformanceInput { prompts, adapters: adapters.take(2).collect(), output_tokens: 12 };
    for kv_blocks in kv_blocks {
        let config = CpuRunnerConfig {
            precision,
            block_tokens,
            kv_blocks,
            adapter_slots: 2,
            batch_rows_max: 64,
            threads: 2,
            prompts: Prompts::Auto,
        };
        check_runner(|| CpuRunner::new(base, config.clone()).unwrap(), &input).unwrap();
    }
}

#[test]
fn a_fingerprint_is_of_one_base_and_one_way_to_compute() {
    let bytes = base_file(&Sizes::TINY);
    let mut other = bytes.clone();
    // A weight of the last tensor.
    *other.last_mut().unwrap() ^= 1;
    let of = |bytes: &[u8], precision, kv_blocks, threads| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let base = Base::open(file.path()).unwrap();
        let (block_tokens, adapter_slots, batch_rows_max) = (16, 2, 8);
        let config = CpuRunnerConfig {
            precision,
            block_tokens,
            kv_blocks,
            adapter_slots,
            batch_rows_max,
            threads,
            prompts: Prompts::Auto,
        };
        CpuRunner::new(&base, config).unwrap().fingerprint()
    };
    let one = of(&bytes, Precision::F32, 8, 1);
    // How much memory there is and who computes changes no bit.
    assert_eq!(one, of(&bytes, Precision::F32, 16, 2));
    let all = [one, of(&bytes, Precision::Quantised, 8, 1), of(&other, Precision::F32, 8, 1)];
    assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2]);
}
