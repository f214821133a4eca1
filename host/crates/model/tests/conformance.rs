//! The CPU runner under the suite that every runner must pass, on a base and adapters made here, in both precisions: what
//! it draws, with penalties and without, depends on nothing else in the batch.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::Arc;

use engine::{Batch, BatchSequence, ConformanceInput, ModelRunner as _, SampleRequest, check_runner};
use generators::{Draw, Sizes, adapter, base_file, quantised_base_file, seeded_bytes};
use model::{AdapterLimits, Base, CpuRunner, CpuRunnerConfig, LoraAdapter, Precision, Prompts, canonical_adapter};

#[test]
fn the_cpu_runner_conforms_with_much_and_little_memory() {
    // The fast one's blocks are of 16 tokens at least.
    check(&base_file(&Sizes::TINY), (Precision::F32, Prompts::Auto), 8, [200, 8]);
    check(&base_file(&Sizes::TINY), (Precision::Quantised, Prompts::Auto), 16, [100, 4]);
    check(&quantised_base_file(&Sizes::TINY), (Precision::Quantised, Prompts::Int8), 16, [100, 4]);
    check(&quantised_base_file(&Sizes::TINY), (Precision::Quantised, Prompts::Auto), 16, [100, 4]);
}

fn check(file_bytes: &[u8], (precision, prompts): (Precision, Prompts), block_tokens: u32, kv_blocks: [u32; 2]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), file_bytes).unwrap();
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
    let texts = vec![vec![1], (0..40).map(|id| id * 7 % vocabulary).collect(), vec![5; 9]];
    let input = ConformanceInput { prompts: texts, adapters: adapters.take(2).collect(), output_tokens: 12 };
    for kv_blocks in kv_blocks {
        let config = CpuRunnerConfig {
            precision,
            block_tokens,
            kv_blocks,
            adapter_slots: 2,
            batch_rows_max: 64,
            threads: 2,
            prompts,
        };
        let separates = CpuRunner::new(base, config.clone()).unwrap().separates_prompts();
        // Matrices of f32 stay as they are.
        let may =
            (precision, prompts) == (Precision::Quantised, Prompts::Auto) && file_bytes != base_file(&Sizes::TINY);
        assert_eq!(separates, may && kernels::Amx::detect().is_some());
        check_runner(|| CpuRunner::new(base, config.clone()).unwrap(), &input).unwrap();
    }
}

#[test]
fn a_fingerprint_is_of_one_base_and_one_way_to_compute() {
    let bytes = quantised_base_file(&Sizes::TINY);
    let mut other = bytes.clone();
    // A weight of the last tensor.
    *other.last_mut().unwrap() ^= 1;
    let way = |bytes: &[u8], precision, kv_blocks, threads, prompts| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let base = Base::open(file.path()).unwrap();
        let (block_tokens, adapter_slots, batch_rows_max) = (16, 2, 8);
        let config =
            CpuRunnerConfig { precision, block_tokens, kv_blocks, adapter_slots, batch_rows_max, threads, prompts };
        CpuRunner::new(&base, config).unwrap().fingerprint()
    };
    let of = |bytes: &[u8], precision, kv_blocks, threads| way(bytes, precision, kv_blocks, threads, Prompts::Auto);
    let one = of(&bytes, Precision::F32, 8, 1);
    // How much memory there is and who computes changes no bit.
    assert_eq!(one, of(&bytes, Precision::F32, 16, 2));
    let all = [one, of(&bytes, Precision::Quantised, 8, 1), of(&other, Precision::F32, 8, 1)];
    assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2]);
    let int8 = way(&bytes, Precision::Quantised, 8, 1, Prompts::Int8);
    assert_eq!(int8 != all[1], kernels::Amx::detect().is_some(), "prompts in bf16 have other bits");
    assert_eq!(way(&bytes, Precision::F32, 8, 1, Prompts::Int8), one);
}

/// Rows of both kinds in one step, in any company: logits to the bit, and those of the two kinds are not the same.
#[test]
fn asked_and_drawn_rows_of_a_step_do_not_meet() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), quantised_base_file(&Sizes::TINY)).unwrap();
    let base: &Base = &Base::open(file.path()).unwrap();
    let config = CpuRunnerConfig {
        precision: Precision::Quantised,
        block_tokens: 16,
        kv_blocks: 64,
        adapter_slots: 0,
        batch_rows_max: 256,
        threads: 3,
        prompts: Prompts::Auto,
    };
    let mut runner = CpuRunner::new(base, config).unwrap();
    let vocabulary = base.config().vocabulary;
    let tokens = |sequence: u32| (0..20 + 7 * sequence).map(move |at| (at * 13 + sequence) % vocabulary as u32);
    // Sequences in this order, of which the first so many are drawn.
    let mut logits = |sequences: &[u32], drawn: usize| {
        let mut batch = Batch::default();
        for (index, sequence) in (0u32..).zip(sequences) {
            let start = batch.tokens.len() as u32;
            batch.tokens.extend(tokens(*sequence));
            let rows = start..batch.tokens.len() as u32;
            batch.positions.extend(0..rows.len() as u32);
            let first = batch.block_tables.len() as u32;
            batch.block_tables.extend((0..4).map(|block| index * 4 + block));
            batch.samples.push(SampleRequest::greedy(rows.end - 1));
            if (index as usize) < drawn {
                batch.drawn_rows = rows.end;
            }
            batch.sequences.push(BatchSequence { rows, blocks: first..first + 4 });
        }
        let bits: Vec<u32> = runner.step_logits(&batch).unwrap().iter().map(|logit| logit.to_bits()).collect();
        bits.chunks(vocabulary).map(<[u32]>::to_vec).collect::<Vec<_>>()
    };
    let asked: Vec<_> = (0..4).map(|sequence| logits(&[sequence], 0).remove(0)).collect();
    let drawn: Vec<_> = (0..4).map(|sequence| logits(&[sequence], 1).remove(0)).collect();
    assert_eq!(asked[0] != drawn[0], kernels::Amx::detect().is_some());
    for order in [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]] {
        for count in 0..=4 {
            for (index, (sequence, found)) in order.iter().zip(logits(&order, count)).enumerate() {
                let expected = if index < count { &drawn } else { &asked };
                assert!(found == expected[*sequence as usize], "{order:?}, {count} drawn: sequence {sequence}");
            }
        }
    }
}
