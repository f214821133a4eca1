//! The low-rank terms against a sum in f64, and their bits whatever the batch, the threads and the instructions.

use std::ops::Range;

use super::pack::{Codes, SCALE_BYTES, VECTOR, ZERO};
use super::*;
use crate::dot::tests::values;
use crate::quantised_rows::{quantise_block, row_panel, row_panels};
use crate::{BLOCK_VALUES, BlockFormat, Floats, MappedPart, Pool};

/// Numbers below `bound`, repeatable.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) as usize * bound) >> 31
    }
}

fn term(seed: u64, [module_slot, inputs, rank, outputs]: [usize; 4], grown: bool) -> LoraTermParts {
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

fn matrix(seed: u64, outputs: usize, inputs: usize) -> PackedMatrix {
    let bytes: Vec<u8> = values(seed, outputs * inputs).into_iter().flat_map(f32::to_le_bytes).collect();
    PackedMatrix::pack(outputs, inputs, BlockFormat::F32, &bytes).unwrap()
}

/// A word's code, and its scale: both by the layout that `pack.rs` describes, in words of its own.
fn value(codes: Codes<'_>, code: usize, scale: usize) -> f32 {
    let scale = &codes.scales[scale * SCALE_BYTES..][..SCALE_BYTES];
    let scale = f32::from_bits(u32::from(u16::from_le_bytes([scale[0], scale[1]])) << 16);
    (f32::from(codes.codes[code]) - f32::from(ZERO)) * scale
}

/// A `[rank, inputs]` and B `[rank, outputs]` as they are kept.
fn kept(group: &LoraGroup, term: &Term) -> [Vec<f32>; 2] {
    let mut a = Vec::new();
    for lane in term.first_lane..term.first_lane + term.rank {
        let panel = group.layout.panels.iter().find(|panel| lane < panel.first_lane + panel.lanes).unwrap();
        let (codes, lane) = (group.a(*panel), lane - panel.first_lane);
        a.extend(
            (0..group.inputs())
                .map(|k| value(codes, (k / 4 * panel.lanes + lane) * 4 + k % 4, k / BLOCK_VALUES * panel.lanes + lane)),
        );
    }
    let b = group.b(term);
    let b = (0..term.rank).flat_map(|rank| {
        (0..term.outputs).map(move |output| {
            let (tile, lane) = (output / VECTOR, output % VECTOR);
            let code = ((tile * term.words() + rank / 4) * VECTOR + lane) * 4 + rank % 4;
            value(b, code, (tile * term.blocks() + rank / BLOCK_VALUES) * VECTOR + lane)
        })
    });
    [a, b.collect()]
}

/// A linear layer with three modules.
struct Case {
    inputs: usize,
    outputs: [usize; 3],
    matrices: [PackedMatrix; 3],
    adapters: Vec<(Vec<LoraTermParts>, LoraGroup)>,
    /// Rows, adapter, weight, enabled slots.
    runs: Vec<(Range<usize>, usize, f32, u8)>,
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Case {
    fn random(seed: u64, rows: usize) -> Self {
        let mut random = Random(seed);
        let inputs = [32, 64, 96, 160][random.below(4)];
        let outputs = [[16, 1, 33], [64, 20, 20], [7, 96, 31]][random.below(3)];
        let mut adapters = Vec::new();
        for adapter in 0..4 {
            let mut terms = Vec::new();
            for slot in [2, 0, 1].into_iter().take(1 + random.below(3)) {
                let rank = [1, 2, 3, 4, 5, 8, 11, 12, 13, 16, 17, 31, 33, 70][random.below(14)];
                let seed = seed * 100 + adapter * 10 + slot as u64 * 3;
                terms.push(term(seed, [slot, inputs, rank, outputs[slot]], seed % 2 == 1 && random.below(4) == 0));
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
        let [x, y] = [inputs, outputs.iter().sum()].map(|width| values(seed + width as u64, rows * width));
        let matrices = [0, 1, 2].map(|slot| matrix(seed + 7 + slot as u64, outputs[slot], inputs));
        Self { inputs, outputs, matrices, adapters, runs, x, y }
    }

    fn stride(&self) -> usize {
        self.outputs.iter().sum()
    }

    /// These rows as a batch of their own.
    fn compute(
        &self,
        team: &Team<'_>,
        isa: Isa,
        rows: Range<usize>,
        accumulate: bool,
        scratch: &mut LoraScratch,
    ) -> Vec<f32> {
        let shifted = |run: &Range<usize>| {
            let [start, end] = [run.start, run.end].map(|row| row.clamp(rows.start, rows.end) - rows.start);
            start..end
        };
        let runs = self.runs.iter().map(|(run, adapter, weight, enabled)| {
            let group = &self.adapters[*adapter].1;
            LoraRun { rows: shifted(run), group, weight: *weight, enabled: *enabled }
        });
        let runs: Vec<LoraRun<'_>> = runs.collect();
        let mut x = QuantisedRows::new();
        x.fill(team, isa, &self.x[rows.start * self.inputs..rows.end * self.inputs], rows.len(), self.inputs);
        let mut y = self.y[rows.start * self.stride()..rows.end * self.stride()].to_vec();
        let matrices = self.matrices.each_ref();
        scratch.upcoming(runs.iter().map(|run| run.group));
        matmul_lora(team, isa, &matrices, &x, &mut y, accumulate, &runs, scratch);
        y
    }

    /// In f64 with the weights and activations as they are kept, added to y: (value, by how much a result may differ).
    fn reference(&self, wx: &[f32]) -> Vec<(f64, f64)> {
        let rows = self.x.len() / self.inputs;
        let x: Vec<f32> = self
            .x
            .as_chunks()
            .0
            .iter()
            .flat_map(|x| {
                let block = quantise_block(x);
                block.codes.map(|code| f32::from(code) * block.scale)
            })
            .collect();
        let sum = |(y, wx): (&f32, &f32)| (f64::from(*y) + f64::from(*wx), 1e-5 * f64::from(y.abs() + wx.abs()));
        let mut y: Vec<(f64, f64)> = self.y.iter().zip(wx).map(sum).collect();
        let first = [0, self.outputs[0], self.outputs[0] + self.outputs[1]];
        for (rows, adapter, weight, enabled) in
            self.runs.iter().map(|run| (run.0.start..run.0.end.min(rows), run.1, run.2, run.3))
        {
            let group = &self.adapters[adapter].1;
            let terms = group.layout.terms.iter().enumerate();
            for ((number, term), row) in terms.flat_map(|term| rows.clone().map(move |row| (term, row))) {
                if enabled >> term.slot & 1 == 0 {
                    continue;
                }
                let [a, b] = kept(group, term);
                let dot = |a: &[f32]| {
                    let x = &x[row * self.inputs..][..self.inputs];
                    let products = a.iter().zip(x).map(|(a, x)| f64::from(*a) * f64::from(*x));
                    let factor = 1.7 * f64::from(weight);
                    (products.clone().sum::<f64>() * factor, products.map(f64::abs).sum::<f64>() * factor.abs())
                };
                let h: Vec<(f64, f64)> = a.chunks(self.inputs).map(dot).collect();
                for output in 0..term.outputs {
                    let at = row * self.stride() + first[term.slot] + output;
                    let (mut sum, mut error) = (0.0, 0.0);
                    for (block, h) in h.chunks(BLOCK_VALUES).enumerate() {
                        let largest = h.iter().fold(0.0, |largest: f64, h| largest.max(h.0.abs()));
                        for (rank, h) in h.iter().enumerate() {
                            let b = f64::from(b[(block * BLOCK_VALUES + rank) * term.outputs + output]);
                            sum += h.0 * b;
                            error += (largest / 253.0 + 1e-5 * h.1) * b.abs();
                        }
                    }
                    let growth = group.growth(number).map_or(0.0, |growth| f64::from(growth[output]));
                    let plain = f64::from(weight) * growth * f64::from(wx[at]);
                    y[at].0 += plain + (growth + 1.0) * sum;
                    y[at].1 += 1e-5 * plain.abs() + (growth + 1.0).abs() * error;
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
    // Cases with many adapters, and with few or with growth: terms of both kinds of place have the same bits.
    let mut streamed = [0; 2];
    for seed in 0..120 {
        let rows = [1, 2, 5, 6, 7, 13, 31, 80][seed as usize % 8];
        let case = Case::random(seed, rows);
        let expected = case.compute(&Team::alone(), Isa::plain(), 0..rows, true, &mut LoraScratch::new());
        let mut x = QuantisedRows::new();
        x.fill(&Team::alone(), Isa::plain(), &case.x, rows, case.inputs);
        let mut wx = vec![0.0; case.y.len()];
        crate::matmul_packed(&Team::alone(), Isa::plain(), &case.matrices.each_ref(), &x, &mut wx, false);
        for ((at, found), (exact, allowed)) in expected.iter().enumerate().zip(case.reference(&wx)) {
            let error = (f64::from(*found) - exact).abs();
            assert!(error <= allowed, "seed {seed} at {at}: {found} {exact}, {allowed} is allowed");
        }
        let written = case.compute(&Team::alone(), Isa::plain(), 0..rows, false, &mut scratch);
        for ((sum, y), written) in expected.iter().zip(&case.y).zip(&written) {
            assert_eq!(*sum, y + written, "seed {seed}");
        }
        for isa in Isa::available() {
            let found = case.compute(&Team::alone(), isa, 0..rows, true, &mut scratch);
            assert_eq!(found, expected, "{isa:?} seed {seed}");
            let shared = pool.step(|team| case.compute(team, isa, 0..rows, true, &mut scratch));
            assert_eq!(shared, expected, "{isa:?} seed {seed} three threads");
            streamed[usize::from(scratch.streams)] += 1;
            for part in [0..1, rows / 2..rows, rows / 3..rows / 3 + 1] {
                let alone = case.compute(&Team::alone(), isa, part.clone(), true, &mut scratch);
                assert_eq!(alone, expected[part.start * case.stride()..part.end * case.stride()], "{isa:?} {part:?}");
            }
        }
    }
    assert!(streamed.iter().all(|cases| *cases >= 10 * Isa::available().len()), "{streamed:?}");
}

#[test]
fn weights_are_kept_within_a_step_of_the_largest_of_their_32() {
    for seed in 0..40 {
        let case = Case::random(seed, 1);
        for (parts, group) in &case.adapters {
            for (parts, term) in parts.iter().zip(&group.layout.terms) {
                let [a, b] = kept(group, term);
                let close = |kept: &[f32], given: &[f32]| {
                    let largest = given.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                    for (kept, given) in kept.iter().zip(given) {
                        assert!((kept - given).abs() <= largest / 252.0, "{kept} {given} of {largest}");
                    }
                };
                a.chunks(BLOCK_VALUES).zip(parts.a.chunks(BLOCK_VALUES)).for_each(|(kept, given)| close(kept, given));
                for output in 0..term.outputs {
                    let column = |b: &[f32]| b.iter().skip(output).step_by(term.outputs).copied().collect::<Vec<f32>>();
                    let (kept, given) = (column(&b), column(&parts.b));
                    kept.chunks(BLOCK_VALUES)
                        .zip(given.chunks(BLOCK_VALUES))
                        .for_each(|(kept, given)| close(kept, given));
                }
            }
        }
    }
}

#[test]
fn the_smallest_and_the_largest_weights_are_kept() {
    for value in [f32::MAX, 1e-30, f32::MIN_POSITIVE, 0.0, -3e38] {
        let parts = LoraTermParts {
            module_slot: 0,
            rank: 1,
            outputs: 1,
            a: vec![value; 32],
            b: vec![value],
            scale: 1.0,
            growth: None,
        };
        let group = LoraGroup::pack(32, &[parts]).unwrap();
        let [a, b] = kept(&group, &group.layout.terms[0]);
        for kept in [a[31], b[0]] {
            assert!((kept - value).abs() <= value.abs() / 126.0, "{kept} {value}");
        }
    }
}

/// B(A x) of one module, without Wx.
fn one_term(parts: LoraTermParts, x: &[f32], rows: usize) -> Vec<f32> {
    let (inputs, outputs) = (x.len() / rows, parts.outputs);
    let nothing = PackedMatrix::pack(outputs, inputs, BlockFormat::F32, &vec![0; outputs * inputs * 4]).unwrap();
    let group = LoraGroup::pack(inputs, &[parts]).unwrap();
    let mut quantised = QuantisedRows::for_formats([BlockFormat::F32, BlockFormat::Q8_0]);
    quantised.fill(&Team::alone(), Isa::detect(), x, rows, inputs);
    let mut y = vec![0.0; rows * outputs];
    let runs = [LoraRun { rows: 0..rows, group: &group, weight: 1.0, enabled: 1 }];
    let scratch = &mut LoraScratch::new();
    matmul_lora(&Team::alone(), Isa::detect(), &[&nothing], &quantised, &mut y, false, &runs, scratch);
    y
}

#[test]
fn a_row_that_is_not_a_number_disturbs_no_other() {
    for hostile in [f32::NAN, f32::INFINITY, -f32::MAX, 0.0] {
        let parts = term(3, [0, 32, 5, 40], false);
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
    let mut case = Case::random(4, 31);
    let compute = |case: &Case| case.compute(&Team::alone(), Isa::detect(), 0..31, false, &mut LoraScratch::new());
    let before = compute(&case);
    let (parts, mut groups): (Vec<_>, Vec<_>) = case.adapters.into_iter().unzip();
    let bytes: usize = groups.iter().map(LoraGroup::memory_bytes).sum();
    LoraGroup::gather(&mut groups);
    assert_eq!(groups.iter().map(LoraGroup::memory_bytes).sum::<usize>(), bytes);
    case.adapters = parts.into_iter().zip(groups).collect();
    assert!(!case.runs.is_empty());
    assert_eq!(compute(&case), before);
}

/// The group over its own values in a file, growth and all, if it is changed so.
fn mapped(group: &LoraGroup, change: impl Fn(&mut Vec<LoraTermHead>, &mut Vec<u8>, &mut usize)) -> Option<LoraGroup> {
    let mut inputs = group.inputs();
    let mut bytes = group.values().to_vec();
    let values = bytes.len();
    group.heads().filter_map(|head| head.growth).flatten().for_each(|growth| bytes.extend(growth.to_ne_bytes()));
    let file = crate::mapping::tests::mapped(&bytes);
    let part = |range| MappedPart::new(&file, range).unwrap();
    let mut at = values;
    let mut growth = |growth: &[f32]| {
        at += size_of_val(growth);
        Floats::mapped(part(at - size_of_val(growth)..at)).unwrap()
    };
    let mut growths: Vec<Option<Floats>> =
        group.heads().map(|head| head.growth).map(|own| own.map(&mut growth)).collect();
    let heads = group.heads().zip(&mut growths).map(|(head, growth)| {
        let LoraTermHead { module_slot, rank, outputs, scale, .. } = head;
        LoraTermHead { module_slot, rank, outputs, scale, growth: growth.take() }
    });
    let mut heads = heads.collect();
    bytes.truncate(values);
    change(&mut heads, &mut bytes, &mut inputs);
    let file = crate::mapping::tests::mapped(&bytes);
    LoraGroup::mapped(inputs, heads, MappedPart::new(&file, 0..bytes.len()).unwrap())
}

#[test]
fn mapped_groups_compute_the_same() {
    for seed in 0..24 {
        let mut case = Case::random(seed, 13);
        let compute = |case: &Case| case.compute(&Team::alone(), Isa::detect(), 0..13, false, &mut LoraScratch::new());
        let before = compute(&case);
        for (_, group) in &mut case.adapters {
            let again = mapped(group, |_, _, _| {}).unwrap();
            assert_eq!(again.memory_bytes(), group.memory_bytes());
            assert_eq!(again.values(), group.values());
            *group = again;
        }
        assert_eq!(compute(&case), before, "seed {seed}");
    }
}

#[test]
fn values_that_are_not_those_of_the_terms_are_not_mapped() {
    let group = LoraGroup::pack(32, &[term(1, [0, 32, 4, 20], true), term(2, [1, 32, 5, 9], false)]).unwrap();
    assert!(mapped(&group, |_, _, _| {}).is_some());
    assert!(mapped(&group, |_, bytes, _| bytes.extend([0; 64])).is_none());
    assert!(mapped(&group, |_, bytes, _| bytes.truncate(64)).is_none());
    assert!(mapped(&group, |_, _, inputs| *inputs = 64).is_none());
    assert!(mapped(&group, |_, _, inputs| *inputs = 48).is_none());
    assert!(mapped(&group, |_, _, inputs| *inputs = 0).is_none());
    assert!(mapped(&group, |heads, _, _| heads.clear()).is_none());
    assert!(mapped(&group, |heads, _, _| drop(heads.pop())).is_none());
    assert!(mapped(&group, |heads, _, _| heads[1].module_slot = 0).is_none());
    assert!(mapped(&group, |heads, _, _| heads[1].module_slot = SLOTS_MAX).is_none());
    assert!(mapped(&group, |heads, _, _| heads[0].rank = 0).is_none());
    assert!(mapped(&group, |heads, _, _| heads[0].rank = usize::MAX).is_none());
    assert!(mapped(&group, |heads, _, _| heads[0].outputs = 19).is_none(), "growth is of 20");
    assert!(mapped(&group, |heads, _, _| heads[1].outputs = usize::MAX).is_none());
    assert!(mapped(&group, |heads, _, _| heads[0].scale = f32::NAN).is_none());
    // Not at a cache line.
    let file = crate::mapping::tests::mapped(&[&[0; 4], group.values()].concat());
    let part = MappedPart::new(&file, 4..4 + group.values().len()).unwrap();
    let plain = |head: LoraTermHead<&[f32]>| {
        let LoraTermHead { module_slot, rank, outputs, scale, .. } = head;
        LoraTermHead { module_slot, rank, outputs, scale, growth: None }
    };
    assert!(LoraGroup::mapped(32, group.heads().map(plain).collect(), part).is_none());
}

#[test]
fn nobody_waits_for_ever_for_a_tile_that_panics() {
    let waiting = AtomicUsize::new(1);
    let panicked = std::panic::catch_unwind(|| {
        let _ready = Ready(&waiting);
        panic!("a tile");
    });
    assert!(panicked.is_err());
    wait_for(&waiting);
}

#[test]
fn what_does_not_fit_is_refused() {
    let good = term(1, [0, 32, 4, 20], true);
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
    assert!(LoraGroup::pack(48, &[term(1, [0, 48, 4, 20], false)]).is_none());
}

/// All forms of all rows.
fn forms(rows: &QuantisedRows) -> Vec<u32> {
    let panels = || (0..row_panels(rows.rows())).map(|panel| row_panel(rows.rows(), panel));
    let words = panels().flat_map(|panel| rows.words(&panel));
    words
        .chain(panels().flat_map(|panel| rows.pairs(&panel)))
        .chain(panels().flat_map(|panel| rows.floats(&panel)))
        .copied()
        .collect()
}

#[test]
fn what_gates_let_through_has_the_bits_of_the_product_and_the_gate_one_after_the_other() {
    let pool = Pool::new(3).unwrap();
    for (rows, inputs, outputs) in [(1, 64, 32), (2, 32, 96), (7, 160, 64), (12, 64, 32), (13, 64, 256), (40, 96, 96)] {
        let matrices = [matrix(3, outputs, inputs), matrix(4, outputs, inputs)];
        let terms = [term(5, [0, inputs, 16, outputs], false), term(6, [1, inputs, 5, outputs], rows == 7)];
        let group = LoraGroup::pack(inputs, &terms).unwrap();
        let run = |rows: Range<usize>, enabled| LoraRun { rows, group: &group, weight: -0.7, enabled };
        let mut x = values(7, rows * inputs);
        x[inputs - 1] = if rows == 2 { f32::NAN } else { 1e4 };
        for runs in
            [vec![], vec![run(0..rows, 3)], vec![run(0..1, 2), run(0..rows.div_ceil(2), 1), run(rows - 1..rows, 3)]]
        {
            for isa in Isa::available() {
                let mut given = QuantisedRows::new();
                given.fill(&Team::alone(), isa, &x, rows, inputs);
                let mut product = vec![0.0; rows * 2 * outputs];
                let (both, scratch) = ([&matrices[0], &matrices[1]], &mut LoraScratch::default());
                matmul_lora(&Team::alone(), isa, &both, &given, &mut product, false, &runs, scratch);
                let mut passed = vec![0.0; rows * outputs];
                crate::swiglu_rows(&Team::alone(), isa, &product, outputs, &mut passed);
                let mut expected = QuantisedRows::new();
                expected.fill(&Team::alone(), isa, &passed, rows, outputs);
                let expected = forms(&expected);
                let mut gated = QuantisedRows::new();
                let scratch = &mut LoraScratch::default();
                matmul_lora_gated(&Team::alone(), isa, both, &given, &mut gated, &runs, scratch);
                assert_eq!(forms(&gated), expected, "{isa:?} {rows} x {outputs}, {} runs", runs.len());
                pool.step(|team| matmul_lora_gated(team, isa, both, &given, &mut gated, &runs, scratch));
                assert_eq!(forms(&gated), expected, "{isa:?} {rows} x {outputs}, {} runs, threads", runs.len());
            }
        }
    }
}

#[test]
#[should_panic(expected = "rows of 40 values")]
fn gates_pass_whole_blocks() {
    let matrices = [matrix(3, 40, 32), matrix(4, 40, 32)];
    let mut x = QuantisedRows::new();
    x.fill(&Team::alone(), Isa::plain(), &values(7, 32), 1, 32);
    let (gated, scratch) = (&mut QuantisedRows::new(), &mut LoraScratch::default());
    matmul_lora_gated(&Team::alone(), Isa::plain(), [&matrices[0], &matrices[1]], &x, gated, &[], scratch);
}
