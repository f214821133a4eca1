//! How long the LM head of a base of SmolLM2-135M's sizes takes (Q8_0, 49152 × 576), with what rows may want of it, and what
//! a draw from full logits takes beside it: `cargo run --release -p kernels --example bench_head`.

use std::time::Instant;

use kernels::{
    BlockFormat, HeadOutput, HeadWant, Isa, PackedMatrix, Pool, QuantisedRows, Team, TokenWeights, best_of, lm_head,
    matmul_packed,
};

const VOCABULARY: usize = 49_152;
const HIDDEN: usize = 576;
const REPEATS: usize = 25;

fn main() {
    let threads = std::env::args().nth(1).and_then(|threads| threads.parse().ok()).unwrap_or(2);
    let isa = Isa::detect();
    let blocks: Vec<u8> = (0..VOCABULARY * HIDDEN / 32 * 34)
        .map(|at| match at % 34 {
            0 => 0,
            1 => 0x20,
            _ => ((at * 2_654_435_761) >> 7) as u8,
        })
        .collect();
    let Some(matrix) = PackedMatrix::pack(VOCABULARY, HIDDEN, BlockFormat::Q8_0, &blocks) else { return };
    let Ok(pool) = Pool::new(threads) else { return };
    println!("{threads} threads, {isa:?}, {:.1} MB", matrix.memory_bytes() as f64 / 1e6);
    let wants = [
        ("best 1", HeadWant { top: 1, ..HeadWant::default() }),
        ("best 40", HeadWant { top: 40, ..HeadWant::default() }),
        ("best 5 and log sum", HeadWant { top: 5, log_sum_exp: true, ..HeadWant::default() }),
        ("all", HeadWant { logits: true, ..HeadWant::default() }),
    ];
    for rows in [1, 8, 32] {
        let x: Vec<f32> = (0..rows * HIDDEN).map(|at| ((at * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
        let mut quantised = QuantisedRows::for_formats([BlockFormat::Q8_0]);
        pool.step(|team| quantised.fill(team, isa, &x, rows, HIDDEN));
        let mut logits = vec![0.0; rows * VOCABULARY];
        let mut outputs: Vec<HeadOutput> = wants.iter().map(|_| HeadOutput::new()).collect();
        let mut plain = f64::MAX;
        let mut best = [f64::MAX; 4];
        for _ in 0..REPEATS {
            let multiply =
                |team: &Team<'_>| seconds(|| matmul_packed(team, isa, &[&matrix], &quantised, &mut logits, false));
            plain = plain.min(pool.step(multiply));
            for ((best, out), (_, want)) in best.iter_mut().zip(&mut outputs).zip(wants) {
                let wants = vec![want; rows];
                let head = |team: &Team<'_>| seconds(|| lm_head(team, isa, &matrix, &quantised, &wants, out));
                *best = best.min(pool.step(head));
            }
        }
        println!("{rows:3} rows: product alone {:7.3} ms", plain * 1e3);
        for ((name, _), best) in wants.iter().zip(best) {
            println!("          {name:20} {:7.3} ms, {:4.2} of it", best * 1e3, best / plain);
        }
    }
    let logits: Vec<f32> = (0..VOCABULARY).map(|at| ((at * 7919) % 1009) as f32 / -50.0).collect();
    let mut weights = TokenWeights::new();
    let mut best = [f64::MAX; 2];
    for _ in 0..200 {
        best[0] = best[0].min(seconds(|| weights.fill(isa, &logits, 0.0, 0.7)));
        best[1] = best[1].min(seconds(|| _ = std::hint::black_box(weights.log_sum_exp(isa, &logits))));
    }
    let mut top = Vec::new();
    let top = (0..200).map(|_| seconds(|| best_of(isa, &logits, 40, &mut top))).fold(f64::MAX, f64::min);
    println!(
        "one row, one thread: weights {:.1} µs, log sum {:.1} µs, best 40 {:.1} µs",
        best[0] * 1e6,
        best[1] * 1e6,
        top * 1e6
    );
}

fn seconds(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}
