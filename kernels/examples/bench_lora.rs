//! What low-rank terms add to the products of one step, over all linear layers of a base of SmolLM2-135M's sizes in Q4_1,
//! beside how fast this machine reads their bytes, with the adapters in memory of their own and in mapped files:
//! `cargo run --release -p kernels --example bench_lora [threads] [rank]`.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Instant;

use kernels::{
    BlockFormat, Isa, LoraGroup, LoraRun, LoraScratch, LoraTermHead, LoraTermParts, MappedPart, Mapping, PackedMatrix,
    Pool, QuantisedRows, matmul_lora,
};

const LAYERS: usize = 30;
/// Inputs, and the outputs of the modules that share them.
const GROUPS: [(usize, &[usize]); 4] = [(576, &[576, 192, 192]), (576, &[576]), (576, &[1536, 1536]), (1536, &[576])];
const REPEATS: usize = 7;

/// Rows and their adapter.
type Placed = (Range<usize>, usize);

fn main() {
    let threads = std::env::args().nth(1).and_then(|threads| threads.parse().ok()).unwrap_or(2);
    let rank = std::env::args().nth(2).and_then(|rank| rank.parse().ok()).unwrap_or(16);
    let Ok(pool) = Pool::new(threads) else { return };
    let adapters: Vec<Vec<LoraGroup>> = (0..32).map(|seed| adapter(seed, rank)).collect();
    let bytes: usize = adapters[0].iter().map(LoraGroup::memory_bytes).sum();
    println!("{threads} threads, rank {rank}: {:.2} MB an adapter", bytes as f64 / 1e6);
    let mapped: Option<Vec<Vec<LoraGroup>>> = adapters.iter().map(|adapter| mapped(adapter)).collect();
    let Some(mapped) = mapped else { return };
    let base = base();
    for (name, runs) in cases() {
        let rows = runs.iter().map(|run| run.0.end).max().unwrap_or(0);
        let mut distinct: Vec<usize> = runs.iter().map(|run| run.1).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let (mut alone, mut best, mut read) = (f64::MAX, f64::MAX, f64::MAX);
        let (mut best_mapped, mut read_mapped) = (f64::MAX, f64::MAX);
        for _ in 0..REPEATS {
            alone = alone.min(pool.step(|team| step(team, &base, &adapters, &[], rows)));
            best = best.min(pool.step(|team| step(team, &base, &adapters, &runs, rows)));
            read = read.min(pool.step(|team| read_all(team, &adapters[..distinct.len()])));
            best_mapped = best_mapped.min(pool.step(|team| step(team, &base, &mapped, &runs, rows)));
            read_mapped = read_mapped.min(pool.step(|team| read_all(team, &mapped[..distinct.len()])));
        }
        println!(
            "{name:32} {:7.3} ms, {:7.3} ms more than without; reading them takes {:7.3} ms: {:5.2} of it; \
             mapped {:7.3} ms, reading {:7.3} ms",
            best * 1e3,
            (best - alone) * 1e3,
            read * 1e3,
            (best - alone) / read,
            best_mapped * 1e3,
            read_mapped * 1e3,
        );
    }
}

/// The matrices of all layers, of zeros.
fn base() -> Vec<Vec<PackedMatrix>> {
    let matrix = |inputs: usize, outputs: &usize| {
        let format = BlockFormat::Q4_1;
        let bytes = format.row_bytes(inputs).unwrap_or_default() * outputs;
        PackedMatrix::pack(*outputs, inputs, format, &vec![0; bytes])
    };
    let layers = (0..LAYERS).flat_map(|_| GROUPS);
    let mut base: Vec<Vec<PackedMatrix>> = layers
        .map(|(inputs, outputs)| outputs.iter().filter_map(|outputs| matrix(inputs, outputs)).collect())
        .collect();
    PackedMatrix::gather(base.iter_mut().flat_map(|layer| layer.chunks_mut(1)));
    base
}

fn cases() -> Vec<(&'static str, Vec<Placed>)> {
    let distinct = |rows: usize| (0..rows).map(|row| (row..row + 1, row)).collect::<Vec<_>>();
    let two = (0..16).flat_map(|row| [(row..row + 1, 2 * row), (row..row + 1, 2 * row + 1)]).collect();
    vec![
        ("1 row, 1 adapter", distinct(1)),
        ("2 rows, 2 adapters", distinct(2)),
        ("8 rows, 8 adapters", distinct(8)),
        ("32 rows, 32 adapters", distinct(32)),
        ("16 rows, 2 adapters each", two),
        ("8 rows share one", vec![(0..8, 0)]),
        ("32 rows share one", vec![(0..32, 0)]),
        ("512 rows share one", vec![(0..512, 0)]),
        ("32 rows, each eight share one", (0..4).map(|i| (8 * i..8 * i + 8, i)).collect()),
    ]
}

fn adapter(seed: usize, rank: usize) -> Vec<LoraGroup> {
    let values = |count: usize| (0..count).map(|i| ((i * 7 + seed) % 31) as f32 * 0.001).collect::<Vec<f32>>();
    let group = |(inputs, outputs): (usize, &[usize])| {
        let term = |(module_slot, outputs): (usize, &usize)| LoraTermParts {
            module_slot,
            rank,
            outputs: *outputs,
            a: values(rank * inputs),
            b: values(rank * outputs),
            scale: 2.0,
            growth: None,
        };
        LoraGroup::pack(inputs, &outputs.iter().enumerate().map(term).collect::<Vec<_>>())
    };
    let mut groups: Vec<LoraGroup> =
        (0..LAYERS).flat_map(|_| GROUPS.iter().filter_map(|sizes| group(*sizes))).collect();
    LoraGroup::gather(&mut groups);
    groups
}

/// The same adapter, mapped from a file.
fn mapped(groups: &[LoraGroup]) -> Option<Vec<LoraGroup>> {
    let file = tempfile::NamedTempFile::new().ok()?;
    groups.iter().try_for_each(|group| file.as_file().write_all(group.values())).ok()?;
    file.as_file().set_permissions(Permissions::from_mode(0o400)).ok()?;
    let mapping = Arc::new(Mapping::of(&File::open(file.path()).ok()?).ok()?);
    let mut at = 0;
    let mapped = groups.iter().map(|group| {
        let part = MappedPart::new(&mapping, at..at + group.values().len())?;
        at += group.values().len();
        let head = |head: LoraTermHead<&[f32]>| LoraTermHead {
            module_slot: head.module_slot,
            rank: head.rank,
            outputs: head.outputs,
            scale: head.scale,
            growth: None,
        };
        LoraGroup::mapped(group.inputs(), group.heads().map(head).collect(), part)
    });
    mapped.collect()
}

/// Seconds of all layers.
fn step(
    team: &kernels::Team<'_>,
    base: &[Vec<PackedMatrix>],
    adapters: &[Vec<LoraGroup>],
    runs: &[Placed],
    rows: usize,
) -> f64 {
    let isa = Isa::detect();
    let mut scratch = LoraScratch::new();
    let mut x = QuantisedRows::for_formats([BlockFormat::Q4_1]);
    let mut y = vec![0.5f32; rows * 3072];
    let runs_of = |index: usize| {
        let run = |(rows, adapter): &Placed| LoraRun {
            rows: rows.clone(),
            group: &adapters[*adapter][index],
            weight: 0.5,
            enabled: u8::MAX,
        };
        runs.iter().map(run).collect::<Vec<_>>()
    };
    let mut seconds = 0.0;
    for (index, matrices) in base.iter().enumerate() {
        let (inputs, outputs) = GROUPS[index % GROUPS.len()];
        x.fill(team, isa, &vec![0.25; rows * inputs], rows, inputs);
        let matrices: Vec<&PackedMatrix> = matrices.iter().collect();
        let (now, next) = (runs_of(index), runs_of((index + 1) % base.len()));
        let y = &mut y[..rows * outputs.iter().sum::<usize>()];
        let begun = Instant::now();
        scratch.upcoming(next.iter().map(|run| run.group));
        matmul_lora(team, isa, &matrices, &x, y, false, &now, &mut scratch);
        seconds += begun.elapsed().as_secs_f64();
    }
    seconds
}

/// Seconds to read the weights once, each group by one thread.
fn read_all(team: &kernels::Team<'_>, adapters: &[Vec<LoraGroup>]) -> f64 {
    let begun = Instant::now();
    team.tiles(adapters.len() * LAYERS * GROUPS.len(), |_, index| {
        let group = &adapters[index % adapters.len()][index / adapters.len()];
        std::hint::black_box(group.checksum(Isa::detect()));
    });
    begun.elapsed().as_secs_f64()
}
