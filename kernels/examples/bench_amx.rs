//! Measures products of prompts' rows by AMX beside VNNI's, in turn.

use std::time::Instant;

use kernels::{
    Amx, BlockFormat, Buffer, Isa, PackedMatrix, QuantisedRows, Team, TileRows, TileScratch, matmul_packed,
    matmul_tiles,
};

fn main() {
    let Some(amx) = Amx::detect() else { return println!("no AMX") };
    let team = Team::alone();
    let isa = Isa::detect();
    let accumulate = std::env::var_os("ADD").is_some();
    let mut seed = 1u32;
    let mut random = || {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    for format in [BlockFormat::Q4_1, BlockFormat::Q4_K, BlockFormat::Q8_0, BlockFormat::Bf16] {
        for (outputs, inputs) in [(576, 576), (1536, 576), (576, 1536), (4096, 4096)] {
            let inputs = usize::next_multiple_of(inputs, format.block_values().max(32));
            let mut blocks = vec![0u8; outputs * inputs / format.block_values() * format.block_bytes()];
            for chunk in blocks.chunks_mut(format.block_bytes()) {
                for byte in chunk.iter_mut() {
                    *byte = (random() * 127.0) as i8 as u8;
                }
                if format == BlockFormat::Bf16 {
                    let bits = (random().to_bits() >> 16) as u16;
                    chunk.copy_from_slice(&bits.to_le_bytes());
                } else {
                    chunk[..2].copy_from_slice(&0x2000u16.to_le_bytes());
                    if matches!(format, BlockFormat::Q4_1 | BlockFormat::Q4_K) {
                        chunk[2..4].copy_from_slice(&0x2800u16.to_le_bytes());
                    }
                }
            }
            let matrix = PackedMatrix::pack(outputs, inputs, format, &blocks).unwrap();
            for rows in [512, 128, 32] {
                let x: Vec<f32> = (0..rows * inputs).map(|_| random()).collect();
                let mut quantised = QuantisedRows::for_formats([format]);
                let (mut tiles, mut scratch) = (TileRows::default(), TileScratch::default());
                let (mut a, mut b) = (Buffer::<f32>::default(), Buffer::<f32>::default());
                a.resize(rows * outputs);
                b.resize(rows * outputs);
                let mut y = Buffer::<f32>::default();
                y.resize(x.len());
                y.copy_from_slice(&x);
                let x = y;
                let mut best = [f64::MAX; 4];
                for _ in 0..(if outputs * rows > 1 << 20 { 5 } else { 30 }) {
                    let mut lap = Instant::now();
                    let mut time = |index: usize| {
                        best[index] = best[index].min(lap.elapsed().as_secs_f64());
                        lap = Instant::now();
                    };
                    quantised.fill(&team, isa, &x, rows, inputs);
                    time(0);
                    matmul_packed(&team, isa, &[&matrix], &quantised, &mut a, accumulate);
                    time(1);
                    tiles.fill(&team, amx, &x, rows, inputs);
                    time(2);
                    matmul_tiles(&team, isa, amx, &[&matrix], &tiles, &mut b, accumulate, &mut scratch);
                    time(3);
                }
                let (mut error, mut norm) = (0.0f64, 0.0f64);
                for (a, b) in a.iter().zip(b.iter()) {
                    error += f64::from(a - b).powi(2);
                    norm += f64::from(*a).powi(2);
                }
                let gops = |seconds: f64| 2.0 * (rows * outputs * inputs) as f64 / seconds / 1e9;
                println!(
                    "{format:?} {outputs}x{inputs} rows {rows}: vnni fill {:.0} us, {:.0} us = {:.0} Gop/s; amx fill {:.0} us, {:.0} us = {:.0} Gop/s; {:.2}x; difference {:.5}",
                    best[0] * 1e6,
                    best[1] * 1e6,
                    gops(best[1]),
                    best[2] * 1e6,
                    best[3] * 1e6,
                    gops(best[3]),
                    (best[0] + best[1]) / (best[2] + best[3]),
                    (error / norm).sqrt(),
                );
            }
        }
    }
}
