//! The low-rank terms against a sum in f64, and their bits whatever the batch, the split, the threads and the instructions.

use std::ops::Range;

use super::*;
use crate::Pool;
use crate::dot::tests::values;

/// Bounds of the error, as a share of the sum of what is added, each product taken positive. Against the sum in f64 of x, A
/// and B rounded to bf16: A x is rounded again, and f32 rounds.
const TOLERANCE_OF_ROUNDED: f64 = 1.0 / 256.0 + 1e-6;
/// Against the sum in f64 of what is given: four numbers, each within 2^-8.
const TOLERANCE: f64 = 4.0 / 256.0 + 1e-4;

/// Numbers below `bound`, repeatable.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) as usize * bound) >> 31
    }
}

/// `rounded`: of values that bf16 holds.
fn term(seed: u64, [module_slot, inputs, rank, outputs]: [usize; 4], grown: bool, rounded: bool) -> LoraTermParts {
    let values = |seed, count| {
        let round = |value: f32| if rounded { half::bf16::from_f32(value).to_f32() } else { value };
        values(seed, count).into_iter().map(round).collect::<Vec<f32>>()
    };
    let mut a = values(seed, rank * inputs);
    // Rows of unlike sizes, and one of zeros.
    a.chunks_mut(inputs).zip([1.0, 1.0 / 16384.0, 256.0, 0.125].into_iter().cycle()).for_each(|(row, size)| {
        row.iter_mut().for_each(|value| *value *= size);
    });
    if rank > 2 {
        a[2 * inputs..3 * inputs].fill(0.0);
    }
    let b = values(seed + 1, rank * outputs).iter().map(|value| value / 32.0).collect();
    let growth = grown.then(|| values(seed + 2, outputs));
    LoraTermParts { module_slot, rank, outputs, a, b, scale: 1.7, growth }
}

/// A linear layer with three modules.
struct Case {
    /// Whether bf16 holds the weights and the inputs.
    is_rounded: bool,
    inputs: usize,
    first: [usize; 3],
    stride: usize,
    adapters: Vec<(Vec<LoraTermParts>, LoraGroup)>,
    /// Rows, adapter, weight, enabled slots.
    runs: Vec<(Range<usize>, usize, f32, u8)>,
    x: Vec<f32>,
    y: Vec<f32>,
    plain: Vec<f32>,
}

impl Case {
    fn random(seed: u64, rows: usize) -> Self {
        let mut random = Random(seed);
        let is_rounded = random.below(2) == 0;
        let inputs = [16, 32, 48, 96, 160][random.below(5)];
        let outputs = [[16, 1, 33], [64, 20, 20], [7, 96, 31]][random.below(3)];
        let first = [0, outputs[0], outputs[0] + outputs[1] + 3];
        let stride = first[2] + outputs[2] + 5;
        let mut adapters = Vec::new();
        for adapter in 0..4 {
            let mut terms = Vec::new();
            for slot in [2, 0, 1].into_iter().take(1 + random.below(3)) {
                let rank = [1, 2, 3, 4, 5, 8, 11, 12, 13, 16, 17, 31][random.below(12)];
                let seed = seed * 100 + adapter * 10 + slot as u64 * 3;
                terms.push(term(seed, [slot, inputs, rank, outputs[slot]], random.below(4) == 0, is_rounded));
            }
            let group = LoraGroup::pack(inputs, &terms).unwrap();
            adapters.push((terms, group));
        }
        let mut runs = Vec::new();
        // Short runs one after the other, maybe with rows without any between them: as sequences with an adapter each are.
        let mut next = if seed.is_multiple_of(3) { random.below(2) } else { rows };
        while next < rows {
            let end = rows.min(next + 1 + random.below(3));
            runs.push((next..end, random.below(4), [1.0, -0.3, 2.5][random.below(3)], 7));
            next = end + random.below(2);
        }
        for _ in 0..if runs.is_empty() { random.below(7) } else { 0 } {
            let start = random.below(rows);
            let end = start + random.below(rows - start + 1);
            runs.push((start..end, random.below(4), [1.0, -0.3, 2.5][random.below(3)], random.below(8) as u8));
        }
        if random.below(2) == 0 {
            runs.sort_by_key(|run| run.0.start);
        }
        let [mut x, y, plain] = [inputs, stride, stride].map(|width| values(seed + width as u64, rows * width));
        if is_rounded {
            x.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        }
        Self { is_rounded, inputs, first, stride, adapters, runs, x, y, plain }
    }

    /// These rows as a batch of their own; `split` in place of what the sizes suggest.
    fn compute(&self, team: &Team<'_>, isa: Isa, rows: Range<usize>, split: Option<Split>) -> Vec<f32> {
        self.compute_by(rows, |runs, io| {
            let mut scratch = LoraScratch::new();
            match split {
                None => grouped_lora(team, isa, runs, io, &mut scratch),
                Some(split) => {
                    scratch.plan(runs, team.threads(), self.stride);
                    run(team, isa, runs, io, &mut scratch, split);
                }
            }
        })
    }

    /// All rows, the terms beside what writes y.
    fn compute_beside(&self, team: &Team<'_>, isa: Isa, rows: usize, scratch: &mut LoraScratch) -> Vec<f32> {
        self.compute_by(0..rows, |runs, io| {
            io.y.fill(f32::NAN);
            grouped_lora_beside(team, isa, runs, io, scratch, |y| {
                let y = SharedMut::new(y);
                // SAFETY: each row is one tile's.
                team.tiles(rows, |_, row| unsafe {
                    let row = row * self.stride..(row + 1) * self.stride;
                    y.slice(row.clone()).copy_from_slice(&self.y[row]);
                });
            });
        })
    }

    fn compute_by(&self, rows: Range<usize>, by: impl FnOnce(&[LoraRun<'_>], LoraRows<'_>)) -> Vec<f32> {
        let shifted = |run: &Range<usize>| {
            let [start, end] = [run.start, run.end].map(|row| row.clamp(rows.start, rows.end) - rows.start);
            start..end
        };
        let runs: Vec<LoraRun<'_>> = self
            .runs
            .iter()
            .map(|(run, adapter, weight, enabled)| {
                let group = &self.adapters[*adapter].1;
                LoraRun { rows: shifted(run), group, weight: *weight, enabled: *enabled }
            })
            .collect();
        let mut y = self.y[rows.start * self.stride..rows.end * self.stride].to_vec();
        let io = LoraRows {
            x: &self.x[rows.start * self.inputs..rows.end * self.inputs],
            inputs: self.inputs,
            y: &mut y,
            y_stride: self.stride,
            module_first: &self.first,
            plain: Some(&self.plain[rows.start * self.stride..rows.end * self.stride]),
        };
        by(&runs, io);
        y
    }

    /// In f64 with the weights as given: (value, sum of the sizes of what was added).
    fn reference(&self) -> Vec<(f64, f64)> {
        let mut y: Vec<(f64, f64)> = self.y.iter().map(|y| (f64::from(*y), f64::from(y.abs()))).collect();
        for (rows, adapter, weight, enabled) in &self.runs {
            let terms = self.adapters[*adapter].0.iter().filter(|term| enabled >> term.module_slot & 1 == 1);
            for (term, row) in terms.flat_map(|term| rows.clone().map(move |row| (term, row))) {
                let x = &self.x[row * self.inputs..][..self.inputs];
                for output in 0..term.outputs {
                    let at = row * self.stride + self.first[term.module_slot] + output;
                    let (mut sum, mut size) = (0.0, 0.0);
                    for r in 0..term.rank {
                        let b = f64::from(term.b[r * term.outputs + output]) * f64::from(term.scale);
                        let products = term.a[r * self.inputs..][..self.inputs].iter().zip(x);
                        let products = products.map(|(a, x)| f64::from(*a) * f64::from(*x) * b);
                        let shrunk: f64 = products.clone().sum();
                        sum += shrunk;
                        size += if self.is_rounded { shrunk.abs() } else { products.map(f64::abs).sum() };
                    }
                    let weight = f64::from(*weight);
                    let growth = term.growth.as_ref().map_or(0.0, |growth| f64::from(growth[output]));
                    let plain = f64::from(self.plain[at]) * growth;
                    y[at].0 += weight * (plain + (growth + 1.0) * sum);
                    y[at].1 += weight.abs() * (plain.abs() + (growth + 1.0).abs() * size);
                }
            }
        }
        y
    }
}

#[test]
fn equals_the_sum_in_f64_with_the_same_bits_whatever_the_batch_the_threads_and_the_instructions() {
    let pool = Pool::new(3).unwrap();
    // With what earlier cases left in it.
    let mut scratch = LoraScratch::new();
    for seed in 0..120 {
        let rows = [1, 2, 5, 6, 7, 13, 31, 80][seed as usize % 8];
        let case = Case::random(seed, rows);
        let expected = case.compute(&Team::alone(), Isa::plain(), 0..rows, None);
        for ((at, found), (exact, size)) in expected.iter().enumerate().zip(case.reference()) {
            let error = (f64::from(*found) - exact).abs();
            let tolerance = if case.is_rounded { TOLERANCE_OF_ROUNDED } else { TOLERANCE };
            assert!(error <= tolerance * size, "seed {seed} at {at}: {found} {exact} of {size}");
        }
        for isa in Isa::available() {
            assert_eq!(case.compute(&Team::alone(), isa, 0..rows, None), expected, "{isa:?} seed {seed}");
            let splits = [Split::Inline, Split::Pieces, Split::Outputs { panels: 9, chunks: 1 + seed as usize % 5 }];
            for split in splits {
                let shared = pool.step(|team| case.compute(team, isa, 0..rows, Some(split)));
                assert_eq!(shared, expected, "{isa:?} seed {seed} three threads, {split:?}");
            }
            let beside = pool.step(|team| case.compute_beside(team, isa, rows, &mut scratch));
            assert_eq!(beside, expected, "{isa:?} seed {seed} beside what writes y");
            for part in [0..1, rows / 2..rows, rows / 3..rows / 3 + 1] {
                let alone = case.compute(&Team::alone(), isa, part.clone(), None);
                assert_eq!(alone, expected[part.start * case.stride..part.end * case.stride], "{isa:?} {part:?}");
            }
        }
    }
}

/// B(A x) for one row, one module.
fn one_term(parts: LoraTermParts, x: &[f32], rows: usize) -> Vec<f32> {
    let outputs = parts.outputs;
    let group = LoraGroup::pack(x.len() / rows, &[parts]).unwrap();
    let mut y = vec![0.0; rows * outputs];
    let runs = [LoraRun { rows: 0..rows, group: &group, weight: 1.0, enabled: 1 }];
    let inputs = x.len() / rows;
    let io = LoraRows { x, inputs, y: &mut y, y_stride: outputs, module_first: &[0], plain: None };
    grouped_lora(&Team::alone(), Isa::detect(), &runs, io, &mut LoraScratch::new());
    y
}

#[test]
fn weights_of_bf16_are_kept_exactly_and_others_within_their_share() {
    // Each output is one product: an input of 1, the others 0, and a B of one value.
    let kept = |value: f32| {
        let mut a = vec![0.0; 16];
        a[3] = value;
        let mut x = vec![0.0; 16];
        x[3] = 1.0;
        let parts = LoraTermParts { module_slot: 0, rank: 1, outputs: 1, a, b: vec![1.0], scale: 1.0, growth: None };
        let as_a = one_term(parts, &x, 1)[0];
        let (mut a, b) = (vec![0.0; 16], vec![0.0, value]);
        a[3] = 1.0;
        let parts = LoraTermParts { module_slot: 0, rank: 1, outputs: 2, a, b, scale: 1.0, growth: None };
        assert_eq!(one_term(parts, &x, 1)[1], as_a);
        as_a
    };
    for bits in (0x0080..0x7f80u32).step_by(11) {
        let value = f32::from_bits(bits << 16);
        assert_eq!(kept(value), value, "{bits:x}");
    }
    for value in values(5, 1000) {
        assert!((kept(value) - value).abs() <= value.abs() / 256.0, "{value}");
    }
}

#[test]
fn a_row_that_is_not_a_number_disturbs_no_other() {
    for hostile in [f32::NAN, f32::INFINITY, -f32::MAX, 0.0] {
        let parts = term(3, [0, 32, 5, 40], false, false);
        let mut x = values(8, 13 * 32);
        let clean = one_term(parts.clone(), &x, 13);
        x[4 * 32..5 * 32].fill(hostile);
        let found = one_term(parts, &x, 13);
        assert_eq!(found[..4 * 40], clean[..4 * 40]);
        assert_eq!(found[5 * 40..], clean[5 * 40..]);
        assert!(found[4 * 40..5 * 40].iter().all(|value| hostile == 0.0 && *value == 0.0 || !value.is_finite()));
    }
}

#[test]
fn gathered_groups_compute_the_same() {
    let case = Case::random(4, 31);
    let before = case.compute(&Team::alone(), Isa::detect(), 0..31, None);
    let mut case = case;
    let (parts, mut groups): (Vec<_>, Vec<_>) = case.adapters.into_iter().unzip();
    let bytes: usize = groups.iter().map(LoraGroup::memory_bytes).sum();
    LoraGroup::gather(&mut groups);
    assert_eq!(groups.iter().map(LoraGroup::memory_bytes).sum::<usize>(), bytes);
    case.adapters = parts.into_iter().zip(groups).collect();
    assert!(!case.runs.is_empty());
    assert_eq!(case.compute(&Team::alone(), Isa::detect(), 0..31, None), before);
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = term(1, [0, 32, 4, 20], true, false);
    let pack = |change: fn(&mut LoraTermParts)| {
        let mut term = good.clone();
        change(&mut term);
        LoraGroup::pack(32, &[term])
    };
    assert!(pack(|_| {}).is_some());
    assert!(pack(|term| term.a.truncate(3)).is_none());
    assert!(pack(|term| term.b.push(0.0)).is_none());
    assert!(pack(|term| term.b[7] = f32::NAN).is_none());
    assert!(pack(|term| term.a[7] = f32::INFINITY).is_none());
    assert!(pack(|term| term.scale = f32::NEG_INFINITY).is_none());
    assert!(pack(|term| term.growth = Some(vec![0.0; 19])).is_none());
    assert!(pack(|term| (term.rank, term.a, term.b) = (0, Vec::new(), Vec::new())).is_none());
    assert!(pack(|term| term.module_slot = SLOTS_MAX).is_none());
    assert!(LoraGroup::pack(32, &[]).is_none());
    assert!(LoraGroup::pack(32, &[good.clone(), good.clone()]).is_none());
    assert!(LoraGroup::pack(24, &[term(1, [0, 24, 4, 20], false, false)]).is_none());
}
