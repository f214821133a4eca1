//! Measures products of rows in tiles (`gemm/amx.rs`) beside those of rows in int8, in turn on one thread, conversions of rows and
//! weights included. Prints best times; run it on a quiet machine.
//!
//! `cargo run --release -p kernels --example bench_amx [FORMAT...]`. With `ADD=1` in the environment results are added to what is
//! there.

use std::time::Instant;

use kernels::{
    Amx, BlockFormat, Buffer, Isa, PackedMatrix, QuantisedRows, Team, TileRows, TileScratch, matmul_packed,
    matmul_tiles,
};

/// (outputs, inputs): the linear layers of SmolLM2-135M, and one of an 8B.
const SHAPES: [(usize, usize); 4] = [(576, 576), (1536, 576), (576, 1536), (4096, 4096)];
const DEFAULT: [BlockFormat; 4] = [BlockFormat::Q4_1, BlockFormat::Q4_K, BlockFormat::Q8_0, BlockFormat::Bf16];

fn main() {
    let Some(amx) = Amx::detect() else { return println!("this machine has no AMX") };
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |format: &BlockFormat| match wanted.is_empty() {
        true => DEFAULT.contains(format),
        false => wanted.iter().any(|name| *name == format!("{format:?}")),
    };
    for format in BlockFormat::ALL.into_iter().filter(is_wanted) {
        for (outputs, inputs) in SHAPES {
            // K formats need whole blocks of 256.
            let inputs = inputs.next_multiple_of(format.block_values().max(32));
            let blocks = vec![17u8; outputs * inputs / format.block_values() * format.block_bytes()];
            let Some(matrix) = PackedMatrix::pack(outputs, inputs, format, &blocks) else { continue };
            for rows in [512, 128, 32] {
                bench(amx, &matrix, rows);
            }
        }
    }
}

fn bench(amx: Amx, matrix: &PackedMatrix, rows: usize) {
    let (team, isa, accumulate) = (Team::alone(), Isa::detect(), std::env::var_os("ADD").is_some());
    let (format, outputs, inputs) = (matrix.format(), matrix.outputs(), matrix.inputs());
    let buffer = |len: usize| {
        // In huge pages, as a runner's are.
        let mut buffer = Buffer::<f32>::with_capacity(len);
        buffer.resize(len);
        buffer.fill(0.25);
        buffer
    };
    let (x, mut out) = (buffer(rows * inputs), buffer(rows * outputs));
    let mut quantised = QuantisedRows::for_formats([format]);
    let (mut tiles, mut scratch) = (TileRows::default(), TileScratch::default());
    let mut best = [f64::MAX; 4];
    for _ in 0..if outputs * rows > 1 << 20 { 5 } else { 30 } {
        let mut lap = Instant::now();
        let mut time = |index: usize| {
            best[index] = best[index].min(lap.elapsed().as_secs_f64());
            lap = Instant::now();
        };
        quantised.fill(&team, isa, &x, rows, inputs);
        time(0);
        matmul_packed(&team, isa, &[matrix], &quantised, &mut out, accumulate);
        time(1);
        tiles.fill(&team, amx, &x, rows, inputs);
        time(2);
        matmul_tiles(&team, isa, amx, &[matrix], &tiles, &mut out, accumulate, &mut scratch);
        time(3);
    }
    let gops = |seconds: f64| 2.0 * (rows * outputs * inputs) as f64 / seconds / 1e9;
    let [fill, product, tiles_fill, tiles_product] = best;
    println!(
        "{format:?} {outputs} x {inputs}, {rows:3} rows: {:7.0} us + {:4.0} us, {:5.0} Gop/s; in tiles {:7.0} us + {:4.0} us, \
         {:5.0} Gop/s: {:.2} times as fast",
        product * 1e6,
        fill * 1e6,
        gops(product),
        tiles_product * 1e6,
        tiles_fill * 1e6,
        gops(tiles_product),
        (fill + product) / (tiles_fill + tiles_product),
    );
}
