//! How long norms, gates and rotary embeddings take on 512 rows and on one row of the demo base, beside a copy of as many
//! bytes in the same run. `cargo run --release -p kernels --example bench_elementwise [threads]`.

use std::time::Instant;

use kernels::{Isa, Pool, ReferencePool, RopeLayout, RopeRows, RopeTable, Team};

const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const STRIDE: usize = 960;
const HEADS: usize = 12;
const HEAD_DIM: usize = 64;

/// Best seconds of one call of a few runs.
fn best(calls: usize, mut work: impl FnMut()) -> f64 {
    let run = |_| {
        let start = Instant::now();
        (0..calls).for_each(|_| work());
        start.elapsed().as_secs_f64() / calls as f64
    };
    (0..20).map(run).fold(f64::INFINITY, f64::min)
}

fn report(name: &str, bytes: usize, seconds: f64) {
    println!("  {name}: {:.2} us, {:.1} GB/s", seconds * 1e6, bytes as f64 / seconds / 1e9);
}

fn rows(team: &Team<'_>, isa: Isa, rows: usize) {
    let calls = 512 / rows;
    let mut x: Vec<f32> = (0..rows * HIDDEN).map(|at| (at % 97) as f32 / 50.0 - 1.0).collect();
    let added = x.clone();
    let mut out = x.clone();
    let weight = vec![0.5; HIDDEN];
    println!("{isa:?}, {rows} rows");
    let copy = best(calls, || std::hint::black_box(&mut out).copy_from_slice(std::hint::black_box(&x)));
    report("copy of 576", 2 * 4 * x.len(), copy);
    let norm = best(calls, || kernels::rms_norm_rows(team, isa, &x, &weight, 1e-5, &mut out));
    report("rms norm 576", 2 * 4 * x.len(), norm);
    let norm = best(calls, || kernels::add_rms_norm_rows(team, isa, &mut x, &added, &weight, 1e-5, &mut out));
    report("add and rms norm 576", 4 * 4 * x.len(), norm);
    let gate_up: Vec<f32> = (0..rows * 2 * INTERMEDIATE).map(|at| (at % 89) as f32 / 9.0 - 5.0).collect();
    let mut out = vec![0.0; rows * INTERMEDIATE];
    let copy = best(calls, || {
        std::hint::black_box(&mut out).copy_from_slice(&std::hint::black_box(&gate_up)[..rows * INTERMEDIATE]);
    });
    report("copy of 1536", 2 * 4 * out.len(), copy);
    let gate = best(calls, || kernels::swiglu_rows(team, isa, &gate_up, INTERMEDIATE, &mut out));
    report("swiglu 1536", 3 * 4 * out.len(), gate);
    let table = RopeRows::new(rows, HEAD_DIM, 100_000.0, &[]);
    let positions: Vec<u32> = (0..rows as u32).collect();
    let mut projected = vec![0.5; rows * STRIDE];
    for layout in [RopeLayout::Neighbours, RopeLayout::Halves] {
        let turn = best(calls, || {
            let projected = &mut projected;
            kernels::rope_rows(team, isa, &table, layout, &positions, projected, STRIDE, 0, HEADS, HEAD_DIM, None);
        });
        report(&format!("rope {layout:?}"), 2 * 4 * rows * HEADS * HEAD_DIM, turn);
    }
}

/// The f32 references on one thread.
fn references(rows: usize) {
    println!("f32 references, {rows} rows");
    let x = vec![0.5; rows * HIDDEN];
    let mut out = x.clone();
    let norm = best(3, || kernels::rms_norm(&x, &[0.5; HIDDEN], 1e-5, &mut out));
    report("rms norm 576", 2 * 4 * x.len(), norm);
    let gate_up = vec![0.5; rows * 2 * INTERMEDIATE];
    let mut out = vec![0.0; rows * INTERMEDIATE];
    let gate = best(3, || kernels::swiglu(&gate_up, INTERMEDIATE, &mut out));
    report("swiglu 1536", 3 * 4 * out.len(), gate);
    let table = RopeTable::new(rows, HEAD_DIM, 100_000.0);
    let mut projected = vec![0.5; rows * STRIDE];
    let turn = best(3, || {
        for (position, row) in projected.chunks_mut(STRIDE).enumerate() {
            table.apply(position, &mut row[..HEADS * HEAD_DIM]);
        }
    });
    report("rope Neighbours", 2 * 4 * rows * HEADS * HEAD_DIM, turn);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).and_then(|threads| threads.parse().ok()).unwrap_or(1);
    ReferencePool::new(1)?.run(|| references(512));
    let pool = Pool::new(threads)?;
    pool.step(|team| {
        for isa in Isa::available().into_iter().rev() {
            rows(team, isa, 512);
            rows(team, isa, 1);
        }
    });
    Ok(())
}
