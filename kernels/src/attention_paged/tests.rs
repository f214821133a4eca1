//! Paged attention against the softmax in f64, and against itself in other batches, chunks, blocks and threads.

use super::*;
use crate::Pool;
use crate::dot::tests::values;

/// Largest difference from f64 on values in -1 .. 1: see the head of the module.
const TOLERANCES: [(KvFormat, f64); 2] = [(KvFormat::Bf16, 0.02), (KvFormat::Int8, 0.04)];

/// A model's shape.
#[derive(Clone, Copy, Debug)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Heads {
    fn stride(self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim + 16
    }
    fn key_first(self) -> usize {
        self.heads * self.head_dim + 8
    }
    fn value_first(self) -> usize {
        self.key_first() + self.kv_heads * self.head_dim
    }
    /// Rows of `positions` positions.
    fn rows(self, seed: u64, positions: usize) -> Vec<f32> {
        values(seed, positions * self.stride()).into_iter().map(|value| value * 1.7).collect()
    }
}

/// A sequence that takes its place in a shared cache.
struct Fixture {
    heads: Heads,
    kv: PagedKv,
    way: Way,
    scratch: AttentionScratch,
}

/// An instruction set, with or without tiles.
type Way = (Isa, Option<Amx>);

/// Those of this machine: tiles, if it has some, come last.
fn ways() -> Vec<Way> {
    let tiles = Amx::detect().map(|amx| (Isa::detect(), Some(amx)));
    Isa::available().into_iter().map(|isa| (isa, None)).chain(tiles).collect()
}

/// Those whose bits differ.
fn kinds() -> Vec<Way> {
    [Some((Isa::detect(), None)), Amx::detect().map(|amx| (Isa::detect(), Some(amx)))].into_iter().flatten().collect()
}

const LAYERS: usize = 2;
const LAYER: usize = 1;

impl Fixture {
    fn new(way: Way, format: KvFormat, heads: Heads, blocks: usize, block_tokens: usize) -> Self {
        let kv = PagedKv::new(format, LAYERS, blocks, block_tokens, heads.kv_heads, heads.head_dim).unwrap();
        Self { heads, kv, way, scratch: AttentionScratch::default() }
    }

    fn write(&mut self, team: &Team<'_>, blocks: &[u32], first: usize, rows: &[f32]) {
        let tokens = self.kv.block_tokens();
        let place = |p: usize| (blocks[p / tokens], (p % tokens) as u32);
        let places: Vec<(u32, u32)> = (first..first + rows.len() / self.heads.stride()).map(place).collect();
        let (key, value) = (self.heads.key_first(), self.heads.value_first());
        self.kv.write(team, self.way.0, LAYER, &places, rows, self.heads.stride(), key, value);
    }

    fn attend(&mut self, team: &Team<'_>, sequences: &[AttentionSequence<'_>], rows: &[f32]) -> Vec<f32> {
        let Heads { heads, head_dim, .. } = self.heads;
        let mut out = vec![0.0; rows.len() / self.heads.stride() * heads * head_dim];
        let stride = self.heads.stride();
        paged_attention(
            team,
            self.way.0,
            &self.kv,
            LAYER,
            sequences,
            rows,
            stride,
            0,
            heads,
            &mut out,
            &mut self.scratch,
        );
        out
    }

    /// Stores and attends to rows of one sequence.
    fn step(&mut self, team: &Team<'_>, blocks: &[u32], first_position: usize, rows: &[f32]) -> Vec<f32> {
        self.write(team, blocks, first_position, rows);
        let count = rows.len() / self.heads.stride();
        self.attend(team, &[AttentionSequence { blocks, first_position, rows: 0..count, amx: self.way.1 }], rows)
    }

    /// Leaves numbers of another owner, NaN and infinity among them, in the whole cache.
    fn soil(&mut self, blocks: usize) {
        let mut rows = self.heads.rows(77, blocks * self.kv.block_tokens());
        for (index, value) in rows.iter_mut().enumerate() {
            match index % 11 {
                0 => *value = f32::NAN,
                3 => *value = f32::INFINITY,
                5 => *value = -1e38,
                _ => {}
            }
        }
        let all: Vec<u32> = (0..blocks as u32).collect();
        self.write(&Team::alone(), &all, 0, &rows);
    }
}

/// f64, no blocks, no rounding.
fn reference(heads: Heads, rows: &[f32], position: usize) -> Vec<f64> {
    let row = |p: usize| &rows[p * heads.stride()..][..heads.stride()];
    let mut out = Vec::new();
    for head in 0..heads.heads {
        let at = head / (heads.heads / heads.kv_heads) * heads.head_dim;
        let query = &row(position)[head * heads.head_dim..][..heads.head_dim];
        let dot = |key: &[f32]| query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
        let score = |p: usize| dot(&row(p)[heads.key_first() + at..]) / (heads.head_dim as f64).sqrt();
        let scores: Vec<f64> = (0..=position).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..heads.head_dim {
            let value = |p: usize| f64::from(row(p)[heads.value_first() + at + d]);
            out.push((0..=position).map(|p| weights[p] * value(p)).sum::<f64>() / sum);
        }
    }
    out
}

const SHAPES: [Heads; 7] = [
    Heads { heads: 9, kv_heads: 3, head_dim: 64 },
    Heads { heads: 2, kv_heads: 2, head_dim: 32 },
    Heads { heads: 8, kv_heads: 1, head_dim: 80 },
    Heads { heads: 4, kv_heads: 2, head_dim: 128 },
    Heads { heads: 7, kv_heads: 1, head_dim: 16 },
    Heads { heads: 5, kv_heads: 1, head_dim: 96 },
    Heads { heads: 50, kv_heads: 1, head_dim: 16 },
];

fn blocks_of(count: usize) -> Vec<u32> {
    // A shuffled order: 7 and the counts used here have no common factor.
    (0..count).map(|block| ((block * 7 + 3) % count) as u32).collect()
}

#[test]
fn is_close_to_the_reference_and_the_same_on_any_machine() {
    for (format, tolerance) in TOLERANCES {
        for (index, heads) in SHAPES.into_iter().enumerate() {
            let positions = [150, 33, 64, 65, 16, 17, 1][index];
            let rows = heads.rows(index as u64, positions);
            let mut expected = Vec::new();
            for way in ways() {
                let blocks = blocks_of(10);
                let mut fixture = Fixture::new(way, format, heads, 10, 16);
                fixture.soil(10);
                let out = fixture.step(&Team::alone(), &blocks, 0, &rows);
                let mut worst = 0.0f64;
                for (position, out) in out.chunks(heads.heads * heads.head_dim).enumerate() {
                    for (out, exact) in out.iter().zip(reference(heads, &rows, position)) {
                        worst = worst.max((f64::from(*out) - exact).abs());
                        assert!(out.is_finite());
                    }
                }
                assert!(worst < tolerance, "{format:?} {heads:?} {way:?}: {worst}");
                if expected.is_empty() {
                    expected = out;
                } else if way.1.is_none() {
                    assert_eq!(bits(&out), bits(&expected), "{format:?} {heads:?} {way:?}");
                }
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_row_has_the_same_bits_however_it_is_computed() {
    let pool = Pool::new(3).unwrap();
    for (way, (format, _)) in kinds().into_iter().flat_map(|way| TOLERANCES.map(|format| (way, format))) {
        for (index, heads) in SHAPES.into_iter().enumerate() {
            let positions = [131, 70, 40, 67, 50, 20, 19][index];
            let rows = heads.rows(index as u64, positions);
            let width = heads.heads * heads.head_dim;
            let whole = Fixture::new(way, format, heads, 10, 16).step(&Team::alone(), &blocks_of(10), 0, &rows);
            // Other blocks, what others left in them, another thread count, and chunks of each length.
            for chunk in [1, 2, 3, 7, 16, 30, 100] {
                for block_tokens in [16, 32] {
                    let mut fixture = Fixture::new(way, format, heads, 11, block_tokens);
                    fixture.soil(11);
                    let blocks = blocks_of(11);
                    let mut out = Vec::new();
                    for (at, rows) in rows.chunks(chunk * heads.stride()).enumerate() {
                        out.extend(pool.step(|team| fixture.step(team, &blocks, at * chunk, rows)));
                    }
                    for (position, (out, whole)) in out.chunks(width).zip(whole.chunks(width)).enumerate() {
                        assert_eq!(bits(out), bits(whole), "{way:?} {format:?} {heads:?} {chunk} position {position}");
                    }
                }
            }
        }
    }
}

#[test]
fn long_contexts_are_the_same_side_by_side_and_in_turn() {
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 32 };
    let (positions, first) = (2_600, 2_000);
    let rows = heads.rows(5, positions);
    let pool = Pool::new(2).unwrap();
    for way in ways() {
        let mut fixture = Fixture::new(way, KvFormat::Bf16, heads, 200, 16);
        let blocks = blocks_of(200);
        let chunk = &rows[first * heads.stride()..];
        fixture.write(&Team::alone(), &blocks, 0, &rows[..first * heads.stride()]);
        let prefill = fixture.step(&Team::alone(), &blocks, first, chunk);
        let width = heads.heads * heads.head_dim;
        for position in [2_000, 2_047, 2_048, 2_063, 2_064, 2_599] {
            let row = &rows[position * heads.stride()..][..heads.stride()];
            let alone = [AttentionSequence { blocks: &blocks, first_position: position, rows: 0..1, amx: way.1 }];
            let decoded = pool.step(|team| fixture.attend(team, &alone, row));
            assert_eq!(bits(&decoded), bits(&prefill[(position - first) * width..][..width]), "{way:?} {position}");
            for (out, exact) in decoded.iter().zip(reference(heads, &rows, position)) {
                assert!((f64::from(*out) - exact).abs() < 0.02);
            }
        }
    }
}

#[test]
fn a_sequence_that_is_not_finite_stays_alone() {
    let heads = SHAPES[0];
    let (width, stride) = (heads.heads * heads.head_dim, heads.stride());
    for (format, _) in TOLERANCES {
        for way in ways() {
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
                let clean = heads.rows(1, 40);
                let mut sick = heads.rows(2, 40);
                // Position 21's values, of the second head only.
                sick[21 * stride + heads.value_first() + heads.head_dim + 5] = poison;
                let mut fixture = Fixture::new(way, format, heads, 6, 16);
                let (one, two) = ([0u32, 2, 4], [1u32, 3, 5]);
                fixture.write(&Team::alone(), &two, 0, &sick);
                let alone = fixture.step(&Team::alone(), &one, 0, &clean);
                let batch = [
                    AttentionSequence { blocks: &two, first_position: 0, rows: 0..40, amx: way.1 },
                    AttentionSequence { blocks: &one, first_position: 0, rows: 40..80, amx: way.1 },
                ];
                let out = fixture.attend(&Team::alone(), &batch, &[sick.clone(), clean].concat());
                assert_eq!(bits(&out[40 * width..]), bits(&alone));
                for (at, out) in out[..40 * width].iter().enumerate() {
                    let (position, kv_head) = (at / width, at % width / heads.head_dim / 3);
                    let sees = position >= 21 && kv_head == 1 && (poison != f32::MAX || format == KvFormat::Bf16);
                    assert_eq!(out.is_finite(), !sees, "{format:?} {way:?} {poison} {position} {kv_head}");
                }
            }
        }
    }
}

#[test]
fn sequences_of_a_mixed_batch_are_as_if_alone() {
    let heads = SHAPES[3];
    let (stride, width) = (heads.stride(), heads.heads * heads.head_dim);
    // (first position, new rows) of each: decode, prefill, a later chunk, no rows, a long one's drafted tokens.
    let parts = [(36, 1), (0, 90), (50, 33), (10, 0), (1_100, 4), (0, 1)];
    let pool = Pool::new(3).unwrap();
    for way in ways() {
        let mut fixture = Fixture::new(way, KvFormat::Bf16, heads, 120, 16);
        let order = blocks_of(120);
        let (mut block, mut rows, mut alone, mut batch) = (0, Vec::new(), Vec::new(), Vec::new());
        for (index, (first, count)) in parts.into_iter().enumerate() {
            let all = heads.rows(index as u64, first + count);
            // Where there are tiles, the first two are drawn and do without.
            fixture.way.1 = way.1.filter(|_| index >= 2);
            let needed = (first + count).div_ceil(16);
            let blocks = &order[block..block + needed];
            block += needed;
            fixture.write(&Team::alone(), blocks, 0, &all[..first * stride]);
            alone.extend(fixture.step(&Team::alone(), blocks, first, &all[first * stride..]));
            // A row of nobody before each.
            alone.splice(alone.len() - count * width..alone.len() - count * width, vec![0.0; width]);
            rows.extend(vec![f32::NAN; stride]);
            let start = rows.len() / stride;
            rows.extend(&all[first * stride..]);
            batch.push(AttentionSequence {
                blocks,
                first_position: first,
                rows: start..start + count,
                amx: fixture.way.1,
            });
        }
        let out = pool.step(|team| fixture.attend(team, &batch, &rows));
        assert_eq!(bits(&out), bits(&alone), "{way:?}");
    }
}

/// What `attention_amx` promises, value by value, for one row that sees up to 128 positions.
fn in_tiles(heads: Heads, rows: &[f32], position: usize) -> Vec<f32> {
    let bf16 = |value: f32| f32::from_bits(bf16_bits(value) << 16);
    let flushed = |value: f32| if value.abs() < f32::MIN_POSITIVE { 0.0 } else { value };
    // Pairs' even and odd values apart, from zero; then both to what is there.
    let add = |sum: f32, pairs: &[([f32; 2], [f32; 2])]| {
        let mut halves = [0.0f32; 2];
        for (a, b) in pairs {
            for (half, (a, b)) in halves.iter_mut().zip(a.iter().zip(b)) {
                *half = flushed(a.mul_add(*b, *half));
            }
        }
        flushed(sum + flushed(halves[0] + halves[1]))
    };
    let row = |p: usize| &rows[p * heads.stride()..][..heads.stride()];
    let seen = (position + 1).next_multiple_of(GROUP_POSITIONS);
    let part = |p: usize, at: usize| match p <= position {
        true => row(p)[at..][..heads.head_dim].iter().map(|value| bf16(*value)).collect(),
        false => vec![0.0; heads.head_dim],
    };
    let factor = std::f32::consts::LOG2_E / (heads.head_dim as f32).sqrt();
    let mut out = Vec::new();
    for head in 0..heads.heads {
        let at = head / (heads.heads / heads.kv_heads) * heads.head_dim;
        let query = part(position, head * heads.head_dim);
        let score = |p: usize| {
            let both: Vec<_> = query
                .as_chunks()
                .0
                .iter()
                .zip(part(p, heads.key_first() + at).as_chunks().0)
                .map(|(q, k)| (*q, *k))
                .collect();
            both.chunks(16).fold(0.0, &add)
        };
        let scores: Vec<f32> = (0..=position).map(score).collect();
        let maximum = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max) * factor;
        let mut weights: Vec<f32> =
            scores.iter().map(|score| bf16(crate::attention_tile::exp2(score.mul_add(factor, -maximum)))).collect();
        weights.resize(seen, 0.0);
        let mut sums = [0.0f32; 16];
        // As `weigh` adds them: a lane has a pair of each 32, the odd one first.
        for (lane, pair) in weights.as_chunks::<2>().0.iter().enumerate() {
            sums[lane % 16] = sums[lane % 16] + pair[1] + pair[0];
        }
        for half in [8, 4, 2, 1] {
            (0..half).for_each(|lane| sums[lane] += sums[lane + half]);
        }
        let values: Vec<Vec<f32>> = (0..seen).map(|p| part(p, heads.value_first() + at)).collect();
        out.extend((0..heads.head_dim).map(|d| {
            let value = |p: usize| values[p][d];
            let pair = |p: usize| ([weights[p], weights[p + 1]], [value(p), value(p + 1)]);
            let both: Vec<_> = (0..seen).step_by(2).map(pair).collect();
            both.chunks(8).fold(0.0, &add) * (1.0 / sums[0]) + 0.0
        }));
    }
    out
}

#[test]
fn tiles_have_the_bits_that_are_promised() {
    let Some(amx) = Amx::detect() else {
        eprintln!("this machine has no AMX: nothing is tested");
        return;
    };
    for (index, heads) in SHAPES.into_iter().enumerate() {
        let positions = [128, 33, 64, 65, 16, 17, 1][index];
        let rows = heads.rows(index as u64, positions);
        let mut fixture = Fixture::new((Isa::detect(), Some(amx)), KvFormat::Bf16, heads, 10, 16);
        let out = fixture.step(&Team::alone(), &blocks_of(10), 0, &rows);
        for (position, out) in out.chunks(heads.heads * heads.head_dim).enumerate() {
            assert_eq!(bits(out), bits(&in_tiles(heads, &rows, position)), "{heads:?} {position}");
        }
    }
}

#[test]
fn zeros_have_no_sign() {
    // Values so small that their products with probabilities are not normal: bf16 dots make them zero, with their sign.
    let heads = SHAPES[0];
    let mut rows = heads.rows(1, 20);
    for (position, row) in rows.chunks_mut(heads.stride()).enumerate() {
        let value = if position % 2 == 0 { -0.0 } else { -1.2e-38 };
        row[heads.value_first()..][..heads.kv_heads * heads.head_dim].fill(value);
    }
    for way in ways() {
        let mut fixture = Fixture::new(way, KvFormat::Bf16, heads, 2, 16);
        fixture.soil(2);
        let out = fixture.step(&Team::alone(), &[1, 0], 0, &rows);
        assert!(out.iter().all(|out| out.abs() < 1.3e-38 && out.to_bits() != (-0.0f32).to_bits()));
    }
}

#[test]
fn copied_and_wiped_blocks_and_rows_of_nobody() {
    let heads = SHAPES[0];
    let rows = heads.rows(1, 30);
    let mut fixture = Fixture::new((Isa::detect(), None), KvFormat::Bf16, heads, 4, 16);
    let first = fixture.step(&Team::alone(), &[0, 1], 0, &rows);
    fixture.kv.copy_block(0, 3);
    fixture.kv.copy_block(1, 2);
    fixture.kv.wipe_block(0);
    fixture.kv.wipe_block(1);
    let copy = [AttentionSequence { blocks: &[3, 2], first_position: 0, rows: 0..30, amx: None }];
    assert_eq!(fixture.attend(&Team::alone(), &copy, &rows), first);
    // Wiped: all values are zero.
    let wiped = [AttentionSequence { blocks: &[0, 1], first_position: 4, rows: 3..20, amx: None }];
    let out = fixture.attend(&Team::alone(), &wiped, &rows);
    assert!(out.iter().all(|out| out.to_bits() == 0));
    assert!(fixture.attend(&Team::alone(), &[], &rows).iter().all(|out| *out == 0.0));
}
