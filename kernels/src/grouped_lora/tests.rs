use std::ops::Range;

use super::*;
use crate::Pool;
use crate::dot::tests::values;

/// Against the sum in f64 over the weights as packed (f16): of the sum of the products' sizes. f32's own rounding.
const TOLERANCE_KERNEL: f64 = 1e-6;
/// Against the sum in f64 over the weights as given: each factor is within 2^-11, a product within 2^-10.
const TOLERANCE_F16: f64 = 1.0 / 1024.0 + TOLERANCE_KERNEL;

/// Numbers below `bound`, repeatable.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) as usize * bound) >> 31
    }
}

fn term(seed: u64, module_slot: usize, inputs: usize, rank: usize, outputs: usize, grown: bool) -> LoraTermParts {
    let mut a = values(seed, rank * inputs);
    // Rows of unlike sizes, and one of zeros.
    a.chunks_mut(inputs).zip([1.0, 1e-4, 300.0, 0.02].into_iter().cycle()).for_each(|(row, size)| {
        row.iter_mut().for_each(|value| *value *= size);
    });
    if rank > 2 {
        a[2 * inputs..3 * inputs].fill(0.0);
    }
    let b = values(seed + 1, rank * outputs).iter().map(|value| value * 0.05).collect();
    let growth = grown.then(|| values(seed + 2, outputs));
    LoraTermParts { module_slot, rank, outputs, a, b, scale: 1.7, growth }
}

/// A linear layer with three modules.
struct Case {
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
                terms.push(term(seed, slot, inputs, rank, outputs[slot], random.below(4) == 0));
            }
            let group = LoraGroup::pack(inputs, &terms).unwrap();
            adapters.push((terms, group));
        }
        let mut runs = Vec::new();
        for _ in 0..random.below(7) {
            let start = random.below(rows);
            let end = start + random.below(rows - start + 1);
            runs.push((start..end, random.below(4), [1.0, -0.3, 2.5][random.below(3)], random.below(8) as u8));
        }
        if random.below(2) == 0 {
            runs.sort_by_key(|run| run.0.start);
        }
        let [x, y, plain] = [inputs, stride, stride].map(|width| values(seed + width as u64, rows * width));
        Self { inputs, first, stride, adapters, runs, x, y, plain }
    }

    /// These rows as a batch of their own; `split` in place of what the sizes suggest.
    fn compute(&self, team: &Team<'_>, isa: Isa, rows: Range<usize>, split: Option<Split>) -> Vec<f32> {
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
        let mut scratch = LoraScratch::new();
        match split {
            None => grouped_lora(team, isa, &runs, io, &mut scratch),
            Some(split) => {
                scratch.plan(&runs, team.threads());
                run(team, isa, &runs, io, &mut scratch, split);
            }
        }
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
                        for (a, x) in term.a[r * self.inputs..][..self.inputs].iter().zip(x) {
                            let product = f64::from(*a) * f64::from(*x) * b;
                            sum += product;
                            size += product.abs();
                        }
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
    for seed in 0..120 {
        let rows = [1, 2, 5, 6, 7, 13, 31, 80][seed as usize % 8];
        let case = Case::random(seed, rows);
        let expected = case.compute(&Team::alone(), Isa::plain(), 0..rows, None);
        for ((at, found), (exact, size)) in expected.iter().enumerate().zip(case.reference()) {
            let error = (f64::from(*found) - exact).abs();
            assert!(error <= TOLERANCE_F16 * size, "seed {seed} at {at}: {found} {exact} of {size}");
        }
        for isa in Isa::available() {
            assert_eq!(case.compute(&Team::alone(), isa, 0..rows, None), expected, "{isa:?} seed {seed}");
            let splits = [Split::Inline, Split::Pieces, Split::Outputs { panels: 9, chunks: 1 + seed as usize % 5 }];
            for split in splits {
                let shared = pool.step(|team| case.compute(team, isa, 0..rows, Some(split)));
                assert_eq!(shared, expected, "{isa:?} seed {seed} three threads, {split:?}");
            }
            for part in [0..1, rows / 2..rows, rows / 3..rows / 3 + 1] {
                let alone = case.compute(&Team::alone(), isa, part.clone(), None);
                assert_eq!(alone, expected[part.start * case.stride..part.end * case.stride], "{isa:?} {part:?}");
            }
        }
    }
}
