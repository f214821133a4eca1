//! How long paged attention takes on shapes of the demo base (9 heads, 3 key heads, 64 values), beside what this machine
//! can do at most, measured in the same run. `cargo run --release -p kernels --example bench_attention`.

use std::time::Instant;

use kernels::{
    Amx, AttentionRow, AttentionScratch, AttentionSequence, Isa, KvFormat, KvLayer, PagedKv, Pool, ReferencePool, Team,
};

const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const STRIDE: usize = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
const BLOCK_TOKENS: usize = 16;

/// Best seconds of a few runs.
fn best(times: usize, mut work: impl FnMut()) -> f64 {
    let run = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    (0..times).map(run).fold(f64::INFINITY, f64::min)
}

struct Bench {
    kv: PagedKv,
    scratch: AttentionScratch,
    isa: Isa,
    rows: Vec<f32>,
    out: Vec<f32>,
    blocks: Vec<u32>,
}

impl Bench {
    fn new(isa: Isa, format: KvFormat, positions: usize, rows: usize) -> Option<Self> {
        let blocks = positions.div_ceil(BLOCK_TOKENS);
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values = (0..rows.max(256) * STRIDE).map(|_| next()).collect();
        let mut bench = Self {
            kv: PagedKv::new(format, 1, blocks, BLOCK_TOKENS, KV_HEADS, HEAD_DIM)?,
            scratch: AttentionScratch::default(),
            isa,
            rows: values,
            out: vec![0.0; rows * HEADS * HEAD_DIM],
            blocks: (0..blocks as u32).map(|block| (block * 7 + 1) % blocks as u32).collect(),
        };
        for first in (0..positions).step_by(256) {
            bench.write(&Team::alone(), first, 256.min(positions - first));
        }
        Some(bench)
    }

    fn write(&mut self, team: &Team<'_>, first: usize, count: usize) {
        let place = |p: usize| (self.blocks[p / BLOCK_TOKENS], (p % BLOCK_TOKENS) as u32);
        let places: Vec<_> = (first..first + count).map(place).collect();
        let (key, value) = (HEADS * HEAD_DIM, (HEADS + KV_HEADS) * HEAD_DIM);
        self.kv.write(team, self.isa, 0, &places, &self.rows, STRIDE, key, value);
    }

    fn attend(&mut self, team: &Team<'_>, sequences: &[AttentionSequence<'_>]) {
        kernels::paged_attention(
            team,
            self.isa,
            &self.kv,
            0,
            sequences,
            &self.rows,
            STRIDE,
            0,
            HEADS,
            &mut self.out,
            &mut self.scratch,
        );
    }
}

type Way = (Isa, Option<Amx>);

fn prefill(
    team: &Team<'_>,
    (isa, amx): Way,
    format: KvFormat,
    (tokens, first_position): (usize, usize),
    peak_gops: f64,
) {
    let Some(mut bench) = Bench::new(isa, format, first_position + tokens, tokens) else { return };
    let blocks = bench.blocks.clone();
    let sequence = [AttentionSequence { blocks: &blocks, first_position, rows: 0..tokens, amx }];
    let seconds = best(20, || bench.attend(team, &sequence));
    let written = best(20, || bench.write(team, first_position, tokens));
    let pairs: usize = (first_position + 1..=first_position + tokens).sum();
    let gops = (pairs * HEADS * HEAD_DIM * 4) as f64 / seconds / 1e9;
    println!(
        "prefill {tokens} at {first_position} {format:?}: {:.0} us, {gops:.0} Gop/s ({:.0} % of the bf16 peak); write {:.1} us",
        seconds * 1e6,
        100.0 * gops / peak_gops,
        written * 1e6
    );
}

fn decode(team: &Team<'_>, isa: Isa, format: KvFormat, sequences: usize, context: usize) {
    let each = context.div_ceil(BLOCK_TOKENS);
    let Some(mut bench) = Bench::new(isa, format, sequences * each * BLOCK_TOKENS, sequences) else { return };
    let blocks = bench.blocks.clone();
    let sequence = |index: usize| AttentionSequence {
        blocks: &blocks[index * each..][..each],
        first_position: context - 1,
        rows: index..index + 1,
        amx: None,
    };
    let all: Vec<_> = (0..sequences).map(sequence).collect();
    let calls = (200_000 / (sequences * context)).clamp(1, 1000);
    let seconds = best(20, || (0..calls).for_each(|_| bench.attend(team, &all))) / calls as f64;
    let bytes = bench.kv.memory_bytes() as f64;
    println!(
        "decode {sequences} x {context} {format:?}: {:.2} us, {:.1} MB, {:.1} GB/s",
        seconds * 1e6,
        bytes / 1e6,
        bytes / seconds / 1e9
    );
}

/// Prefill with the f32 reference on one thread.
fn reference(tokens: usize) -> Result<(), Box<dyn std::error::Error>> {
    let (kv_width, width) = (KV_HEADS * HEAD_DIM, HEADS * HEAD_DIM);
    let keys = vec![0.1; tokens * kv_width];
    let kv = KvLayer { keys: &keys, values: &keys, block_tokens: 16, kv_heads: KV_HEADS, head_dim: HEAD_DIM };
    let blocks: Vec<u32> = (0..tokens.div_ceil(16) as u32).collect();
    let rows: Vec<_> = (0..tokens).map(|position| AttentionRow { blocks: &blocks, position }).collect();
    let queries = vec![0.1; tokens * width];
    let mut out = vec![0.0; queries.len()];
    let pool = ReferencePool::new(1)?;
    let seconds = pool.run(|| best(3, || kernels::attention(Isa::detect(), &rows, &queries, kv, HEADS, &mut out)));
    println!("prefill {tokens} with the f32 reference: {:.0} us", seconds * 1e6);
    Ok(())
}

/// Read bandwidth over this many bytes, in GB/s.
fn read_gbs(team: &Team<'_>, bytes: usize) -> f64 {
    let data = vec![1u64; bytes / 8];
    let part = 1 << 16;
    let seconds = best(10, || {
        team.tiles(data.len() / part, |_, tile| {
            let words = &data[tile * part..][..part];
            let mut sums = [0u64; 64];
            for words in words.chunks_exact(64) {
                (0..64).for_each(|lane| sums[lane] ^= words[lane]);
            }
            std::hint::black_box(sums);
        });
    });
    bytes as f64 / seconds / 1e9
}

#[cfg(target_arch = "x86_64")]
fn peak_gops() -> f64 {
    use std::arch::x86_64::{__m512bh, __m512i, _mm512_dpbf16_ps, _mm512_setzero_ps, _mm512_setzero_si512};
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dots(count: usize) {
        let mut sums = [_mm512_setzero_ps(); 24];
        // SAFETY: two names of the same 64 bytes.
        let ones = std::hint::black_box(unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_setzero_si512()) });
        for _ in 0..count {
            sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, ones, ones));
        }
        std::hint::black_box(sums);
    }
    if !is_x86_feature_detected!("avx512bf16") {
        return f64::NAN;
    }
    // SAFETY: detected above.
    let seconds = best(10, || unsafe { dots(100_000) });
    24.0 * 64.0 * 100_000.0 / seconds / 1e9
}

#[cfg(not(target_arch = "x86_64"))]
fn peak_gops() -> f64 {
    f64::NAN
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).and_then(|threads| threads.parse().ok()).unwrap_or(1);
    // Which instruction sets: the name's beginning, or the best one.
    let wanted = std::env::args().nth(2);
    let matches = |isa: &Isa| match &wanted {
        Some(wanted) => format!("{isa:?}").contains(wanted),
        None => *isa == Isa::detect(),
    };
    // Which cases: all whose format, kind and sizes are not excluded by `-name`.
    let chosen = |name: &str| std::env::args().skip(3).all(|word| word.strip_prefix('-') != Some(name));
    reference(512)?;
    let pool = Pool::new(threads)?;
    pool.step(|team| {
        let peak = peak_gops() * threads as f64;
        println!("{threads} threads; bf16 dot peak {peak:.0} Gop/s; read 96 MiB {:.1} GB/s", read_gbs(team, 96 << 20));
        for isa in Isa::available().into_iter().rev().filter(matches) {
            println!("{isa:?}");
            for format in [KvFormat::Bf16, KvFormat::Int8].into_iter().filter(|format| chosen(&format!("{format:?}"))) {
                for sizes in [(512, 0), (512, 1536)].into_iter().filter(|_| chosen("prefill")) {
                    prefill(team, (isa, None), format, sizes, peak);
                    if let Some(amx) = Amx::detect().filter(|_| isa == Isa::detect()) {
                        print!("in tiles: ");
                        prefill(team, (isa, Some(amx)), format, sizes, peak);
                    }
                }
                let decodes = [(1, 100), (1, 8192), (32, 200), (32, 4096)].into_iter();
                for (sequences, context) in decodes.filter(|(a, b)| chosen("decode") && chosen(&format!("{a}x{b}"))) {
                    decode(team, isa, format, sequences, context);
                }
            }
        }
    });
    Ok(())
}
