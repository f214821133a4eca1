//! Measures the products of `gemm.rs` beside the machine's own limits, measured in the same run: the int8 peak (VPDPBUSD
//! from registers) and the read bandwidth (a sum over 128 MB). Prints best times; run it on a quiet machine.
//!
//! `cargo run --release -p kernels --example bench_gemm [THREADS] [FORMAT...]`. In the environment, `ROWS=1,8` chooses batch sizes and
//! `ISA=1` an instruction set by its place in `Isa::available()`; with
//! `APART=1` matrices are not gathered.

use std::hint::black_box;
use std::time::Instant;

use kernels::{BlockFormat, Isa, PackedMatrix, Pool, QuantisedRows, Team, matmul_packed};

/// The linear layers of SmolLM2-135M: (outputs of each matrix, inputs).
const LAYER: [(&[usize], usize); 4] = [(&[576, 192, 192], 576), (&[576], 576), (&[1536, 1536], 576), (&[576], 1536)];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1);
    let wanted: Vec<String> = arguments.collect();
    let pool = match Pool::new(threads) {
        Ok(pool) => pool,
        Err(error) => return eprintln!("{error}"),
    };
    pool.step(|team| {
        let peak = int8_peak(team);
        let bandwidth = read_bandwidth(team);
        println!("{threads} threads, int8 peak {peak:.0} Gop/s, read {bandwidth:.1} GB/s of 128 MB");
        for format in BlockFormat::ALL {
            if wanted.is_empty() || wanted.iter().any(|name| *name == format!("{format:?}")) {
                bench(team, format, peak, bandwidth);
            }
        }
    });
}

/// A set of layers of more than 128 MB, one after the other, at several batch sizes.
fn bench(team: &Team<'_>, format: BlockFormat, peak: f64, bandwidth: f64) {
    let isa = std::env::var("ISA").ok().and_then(|text| Isa::available().get(text.parse::<usize>().ok()?).copied());
    let isa = isa.unwrap_or(Isa::detect());
    let mut layers: Vec<Vec<(Vec<PackedMatrix>, usize)>> = Vec::new();
    let mut bytes = 0;
    while bytes < 128 << 20 {
        let mut layer = Vec::new();
        for (outputs, inputs) in LAYER {
            // K formats need whole blocks of 256.
            let inputs = inputs.next_multiple_of(format.block_values().max(32));
            let pack = |outputs: &usize| {
                let blocks = vec![17u8; outputs * inputs / format.block_values() * format.block_bytes()];
                PackedMatrix::pack(*outputs, inputs, format, &blocks)
            };
            layer.push((outputs.iter().filter_map(pack).collect::<Vec<_>>(), inputs));
        }
        bytes += layer.iter().flat_map(|(group, _)| group).map(PackedMatrix::memory_bytes).sum::<usize>();
        layers.push(layer);
    }
    if std::env::var_os("APART").is_none() {
        PackedMatrix::gather(layers.iter_mut().flatten().flat_map(|(group, _)| group.chunks_mut(1)));
    }
    let values: f64 = layers
        .iter()
        .flatten()
        .flat_map(|(group, inputs)| group.iter().map(move |m| m.outputs() * inputs))
        .sum::<usize>() as f64;
    let chosen = std::env::var("ROWS").unwrap_or_default();
    let chosen: Vec<usize> = chosen.split(',').filter_map(|text| text.parse().ok()).collect();
    for rows in if chosen.is_empty() { vec![1, 2, 3, 4, 6, 8, 12, 13, 16, 24, 32, 96, 512] } else { chosen } {
        let passes = if rows > 90 { 2 } else { layers.len() };
        let values = values / layers.len() as f64;
        let x = vec![0.25f32; rows * 1536];
        let mut quantised = QuantisedRows::for_formats([format]);
        let mut out = vec![0.0f32; rows * 3072];
        // The best time of each product: others use this machine too. Between two tries all layers pass through the cache.
        let operations = passes * LAYER.len();
        let (mut fill_s, mut product_s) = (vec![f64::MAX; operations], vec![f64::MAX; operations]);
        for _ in 0..if rows > 90 { 6 } else { 12 } {
            for (index, (group, inputs)) in layers[..passes].iter().flatten().enumerate() {
                let begin = Instant::now();
                quantised.fill(team, isa, &x[..rows * inputs], rows, *inputs);
                fill_s[index] = begin.elapsed().as_secs_f64().min(fill_s[index]);
                let matrices: Vec<&PackedMatrix> = group.iter().collect();
                let outputs: usize = matrices.iter().map(|matrix| matrix.outputs()).sum();
                let begin = Instant::now();
                matmul_packed(team, isa, &matrices, &quantised, &mut out[..rows * outputs], false);
                product_s[index] = begin.elapsed().as_secs_f64().min(product_s[index]);
            }
        }
        let of_layer = |seconds: &[f64]| seconds.iter().sum::<f64>() / passes as f64;
        let (fill_s, product_s) = (of_layer(&fill_s), of_layer(&product_s));
        let mut hot_s = [f64::MAX; LAYER.len()];
        for (index, (group, inputs)) in layers[0].iter().enumerate() {
            quantised.fill(team, isa, &x[..rows * inputs], rows, *inputs);
            let matrices: Vec<&PackedMatrix> = group.iter().collect();
            let outputs: usize = matrices.iter().map(|matrix| matrix.outputs()).sum();
            for _ in 0..10 {
                let begin = Instant::now();
                matmul_packed(team, isa, &matrices, &quantised, &mut out[..rows * outputs], false);
                hot_s[index] = begin.elapsed().as_secs_f64().min(hot_s[index]);
            }
        }
        let hot = hot_s.iter().sum::<f64>() / product_s * 100.0;
        let gops = 2.0 * rows as f64 * values / product_s / 1e9;
        let gbytes = bytes as f64 / layers.len() as f64 / product_s / 1e9;
        println!(
            "{format:?} rows {rows:3}: {:8.1} us a layer, {gops:6.1} Gop/s = {:4.1} % of peak, {gbytes:5.1} GB/s = {:5.1} % \
             of read; {hot:3.0} % of the time if in cache; fill {:6.1} us a layer",
            product_s * 1e6,
            gops / peak * 100.0,
            gbytes / bandwidth * 100.0,
            fill_s * 1e6,
        );
    }
}

/// Gop/s of all threads; 0 where there is no VNNI.
fn int8_peak(team: &Team<'_>) -> f64 {
    const TURNS: usize = 400_000;
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        let mut times = Vec::new();
        for _ in 0..7 {
            let begin = Instant::now();
            // SAFETY: the features were found.
            team.tiles(team.threads(), |_, _| unsafe { dot_products(TURNS) });
            times.push(begin.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        return (TURNS * 12 * 128 * team.threads()) as f64 / times[0] / 1e9;
    }
    let _ = team;
    0.0
}

/// # Safety
/// The machine has AVX-512 VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_products(turns: usize) {
    use std::arch::x86_64::*;
    let (a, b) = (black_box(_mm512_set1_epi8(3)), black_box(_mm512_set1_epi8(5)));
    let mut sums = [_mm512_setzero_si512(); 12];
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    let total = sums.into_iter().fold(a, |total, sum| _mm512_add_epi32(total, sum));
    black_box(_mm512_reduce_add_epi32(total));
}

/// GB/s of all threads.
fn read_bandwidth(team: &Team<'_>) -> f64 {
    const PIECE: usize = 64 << 10;
    let data = vec![1u64; 16 << 20];
    let mut times = Vec::new();
    for _ in 0..7 {
        let begin = Instant::now();
        team.tiles(data.len() / PIECE, |_, tile| {
            let mut sums = [0u64; 32];
            for values in data[tile * PIECE..][..PIECE].as_chunks::<32>().0 {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum ^= value);
            }
            black_box(sums);
        });
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    (data.len() * 8) as f64 / times[0] / 1e9
}
