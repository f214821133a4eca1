//! Temporary.
#![allow(clippy::unwrap_used, missing_docs)]
use engine::{Batch, BatchSequence, ModelRunner as _, SampleRequest};
use model::{Base, CpuRunner, CpuRunnerConfig, Precision, Prompts};
use std::time::Instant;

fn batch(tokens: &[u32], first: u32, drawn: bool, all: bool) -> Batch {
    let rows = tokens.len() as u32;
    let blocks = (first + rows).div_ceil(16);
    Batch {
        tokens: tokens.to_vec(),
        drawn_rows: if drawn { rows } else { 0 },
        positions: (first..first + rows).collect(),
        sequences: vec![BatchSequence { rows: 0..rows, blocks: 0..blocks }],
        block_tables: (0..blocks).collect(),
        samples: (if all { 0 } else { rows - 1 }..rows).map(SampleRequest::greedy).collect(),
        ..Batch::default()
    }
}

fn log_softmax(x: &[f32]) -> Vec<f64> {
    let max = x.iter().copied().fold(f32::MIN, f32::max) as f64;
    let sum: f64 = x.iter().map(|x| (*x as f64 - max).exp()).sum::<f64>().ln();
    x.iter().map(|x| *x as f64 - max - sum).collect()
}

fn main() {
    let path = std::env::args().nth(1).unwrap();
    let threads: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let base: &Base = &Base::open(std::path::Path::new(&path)).unwrap();
    let runner = |precision, prompts| {
        let config = CpuRunnerConfig {
            precision,
            block_tokens: 16,
            kv_blocks: 64,
            adapter_slots: 0,
            batch_rows_max: 1024,
            threads,
            prompts,
        };
        CpuRunner::new(base, config).unwrap()
    };
    let mut all = [runner(Precision::Quantised, Prompts::Auto), runner(Precision::Quantised, Prompts::Int8)];
    println!("separates {} {}", all[0].separates_prompts(), all[1].separates_prompts());
    for rows in [512u32, 128, 32, 8, 1] {
        let tokens: Vec<u32> = (0..rows).map(|i| i * 37 % 4000 + 20).collect();
        let mut best = [f64::MAX; 4];
        for _ in 0..(if rows > 100 { 12 } else { 30 }) {
            for (index, runner) in all.iter_mut().enumerate() {
                for drawn in [false, true] {
                    let batch = batch(&tokens, 0, drawn, false);
                    let started = Instant::now();
                    runner.step(&batch, &mut Vec::new()).unwrap();
                    let at = index * 2 + usize::from(drawn);
                    best[at] = best[at].min(started.elapsed().as_secs_f64());
                }
            }
        }
        println!(
            "rows {rows}: amx {:.2} ms, its drawn {:.2}; int8 {:.2} {:.2}; {:.2}x",
            best[0] * 1e3,
            best[1] * 1e3,
            best[2] * 1e3,
            best[3] * 1e3,
            best[2].min(best[3]) / best[0]
        );
    }
    let Some(text) = std::env::args().nth(3) else { return };
    let text = std::fs::read_to_string(text).unwrap();
    let tokens = base.tokenizer().encode(&text).unwrap();
    let mut reference = runner(Precision::F32, Prompts::Auto);
    let (mut kl, mut same, mut count) = ([0.0f64; 2], [0usize; 2], 0usize);
    let vocabulary = base.config().vocabulary;
    for window in tokens.chunks_exact(512).take(6) {
        let batch = batch(window, 0, false, true);
        let exact = reference.step_logits(&batch).unwrap();
        for (index, runner) in all.iter_mut().enumerate() {
            let found = runner.step_logits(&batch).unwrap();
            for (p, q) in exact.chunks(vocabulary).zip(found.chunks(vocabulary)) {
                let best = |x: &[f32]| x.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
                same[index] += usize::from(best(p) == best(q));
                let (p, q) = (log_softmax(p), log_softmax(q));
                kl[index] += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
            }
        }
        count += window.len();
        println!(
            "{count} tokens: mean KL amx {:.5}, int8 {:.5}; same argmax {:.4} {:.4}",
            kl[0] / count as f64,
            kl[1] / count as f64,
            same[0] as f64 / count as f64,
            same[1] as f64 / count as f64
        );
    }
}
