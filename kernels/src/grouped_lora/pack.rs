//! How one adapter's terms lie in memory for [`grouped_lora`](super::grouped_lora): one run of bytes in the order of their
//! use, in f16 under exact power-of-two scales. Not here: the arithmetic.
//!
//! The A of all modules are stacked into *lanes* (one a rank of a module) and cut into panels of 16, 8 or 4 lanes. A panel
//! holds, for each four inputs, 4 · lanes values in vectors of 16: with 16 lanes a vector is one input of each, with 8 it
//! is two inputs (lane 0's first, lane 0's second, lane 1's first, ...), with 4 it is four. So a vector is always full, and
//! each lane has four sums, of the inputs 0, 1, 2 and 3 modulo 4, whatever the panel's width.
//! Behind the panels lies B: for each 16 outputs of a module, 16 values of each rank.

use half::f16;

use crate::Isa;
use crate::isa::multiversion;

/// Values of a vector.
pub(super) const VECTOR: usize = 16;
/// Inputs that a panel keeps together, each in a sum of its own.
pub(super) const CHAINS: usize = 4;
/// A row's largest value is scaled to this power of two, so that values down to 2^-29 of it are normal numbers of f16.
const TOP_EXPONENT: i32 = 15;

/// What an adapter adds to one module: y += scale · B(A x), or with `growth` what DoRA makes of it.
#[derive(Clone, Debug)]
pub struct LoraTermParts {
    /// Which of the modules that share the input, from 0; below [`SLOTS_MAX`](super::SLOTS_MAX).
    pub module_slot: usize,
    /// Rows of A.
    pub rank: usize,
    /// Rows of B.
    pub outputs: usize,
    /// `[rank, inputs]`
    pub a: Vec<f32>,
    /// B transposed, `[rank, outputs]`.
    pub b: Vec<f32>,
    /// What B(A x) is multiplied by.
    pub scale: f32,
    /// For DoRA: g − 1 of each output.
    pub growth: Option<Vec<f32>>,
}

/// One adapter's terms for the modules of one layer that have the same input, packed.
///
/// Values are kept in f16, each row of A and each column of B under a power of two: within 2^-11 of what they were if they
/// are not below 2^-29 of the row's or column's largest, exact if they came from f16, or from bf16 within that range.
pub struct LoraGroup {
    pub(super) inputs: usize,
    pub(super) panels: Vec<Panel>,
    pub(super) terms: Vec<Term>,
    /// Of each lane, padded to the panels: the scale of the term and of the lane's A and B.
    pub(super) factors: Vec<f32>,
    data: Vec<Line>,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u16; 32]);

/// Lanes of A that are computed together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    pub(super) first_lane: usize,
    /// 16, 8 or 4.
    pub(super) lanes: usize,
    /// Where its values begin.
    at: usize,
}

/// One module's part.
#[derive(Debug)]
pub(super) struct Term {
    pub(super) slot: usize,
    pub(super) first_lane: usize,
    pub(super) rank: usize,
    pub(super) outputs: usize,
    pub(super) growth: Option<Vec<f32>>,
    /// Where B begins.
    at: usize,
}

impl Term {
    /// Vectors of outputs, the last one padded.
    pub(super) fn tiles(&self) -> usize {
        self.outputs.div_ceil(VECTOR)
    }
}

impl LoraGroup {
    /// From the terms of one adapter. `None` if there is none, two are of one slot, a rank is 0, a length is wrong, a value
    /// is not finite, or `inputs` is not a multiple of 16.
    #[must_use]
    pub fn pack(inputs: usize, terms: &[LoraTermParts]) -> Option<Self> {
        let mut slots = 0u8;
        for term in terms {
            let bit = 1u8.checked_shl(u32::try_from(term.module_slot).ok()?)?;
            if slots & bit != 0 || !fits(inputs, term) {
                return None;
            }
            slots |= bit;
        }
        if slots == 0 || !inputs.is_multiple_of(VECTOR) {
            return None;
        }
        let panels = panels(inputs, terms.iter().map(|term| term.rank).sum());
        let lanes = panels.last().map_or(0, |panel| panel.first_lane + panel.lanes);
        let mut group = Self { inputs, panels, terms: Vec::new(), factors: vec![0.0; lanes], data: Vec::new() };
        let mut at = lanes * inputs;
        let mut first_lane = 0;
        for term in terms {
            let (slot, rank, outputs, growth) = (term.module_slot, term.rank, term.outputs, term.growth.clone());
            let packed = Term { slot, first_lane, rank, outputs, growth, at };
            first_lane += rank;
            at += packed.tiles() * VECTOR * rank;
            group.terms.push(packed);
        }
        group.data = vec![Line([0; 32]); at.div_ceil(32)];
        for (index, term) in terms.iter().enumerate() {
            group.fill(index, term);
        }
        Some(group)
    }

    /// Bytes in memory, without the few of its own bookkeeping.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let growth: usize = self.terms.iter().filter_map(|term| term.growth.as_ref()).map(Vec::len).sum();
        size_of_val(&*self.data) + (self.factors.len() + growth) * size_of::<f32>()
    }

    /// The sum of all bits, for what wants to have read them all: the floor of a step's time.
    #[must_use]
    pub fn checksum(&self, isa: Isa) -> u64 {
        let mut sum = 0;
        add_all(isa, self.values(), &mut sum);
        sum
    }

    /// Columns of A.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Whether a term needs the plain output of its module.
    #[must_use]
    pub fn has_growth(&self) -> bool {
        self.terms.iter().any(|term| term.growth.is_some())
    }

    /// Of a panel, its values: `[inputs / 4, lanes / 4, 16]`, see the top of the file.
    pub(super) fn a(&self, panel: Panel) -> &[u16] {
        &self.values()[panel.at..][..panel.lanes * self.inputs]
    }

    /// Of a term, `[tiles, rank, 16]`.
    pub(super) fn b(&self, term: &Term) -> &[u16] {
        &self.values()[term.at..][..term.tiles() * VECTOR * term.rank]
    }

    fn values(&self) -> &[u16] {
        // SAFETY: a `Line` is 32 values of u16 without padding, and the slice covers exactly the lines of `data`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().cast(), self.data.len() * 32) }
    }

    fn values_mut(&mut self) -> &mut [u16] {
        // SAFETY: as in `values`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_mut_ptr().cast(), self.data.len() * 32) }
    }

    fn fill(&mut self, index: usize, parts: &LoraTermParts) {
        let Term { first_lane, rank, outputs, at, .. } = self.terms[index];
        for row in 0..rank {
            let lane = first_lane + row;
            let a = &parts.a[row * self.inputs..][..self.inputs];
            let a_exponent = exponent(a);
            let panel = self.panels.iter().find(|panel| lane - panel.first_lane < panel.lanes).copied();
            let Some(panel) = panel else { continue };
            for (input, value) in a.iter().enumerate() {
                let place = panel.at + place(panel.lanes, lane - panel.first_lane, input);
                self.values_mut()[place] = f16::from_f64(f64::from(*value) * 2f64.powi(-a_exponent)).to_bits();
            }
            let b = &parts.b[row * outputs..][..outputs];
            let b_exponent = exponent(b);
            for (output, value) in b.iter().enumerate() {
                let place = at + (output / VECTOR * rank + row) * VECTOR + output % VECTOR;
                self.values_mut()[place] = f16::from_f64(f64::from(*value) * 2f64.powi(-b_exponent)).to_bits();
            }
            // Beyond f32's range the products are too; finite, so that a sum of zero stays zero.
            let factor = f64::from(parts.scale) * 2f64.powi(a_exponent + b_exponent);
            self.factors[lane] = (factor as f32).clamp(f32::MIN, f32::MAX);
        }
    }
}

multiversion! {
    fn add_all(values: &[u16], sum: &mut u64) {
        let mut sums = [[0u16; 32]; 8];
        for values in values.chunks_exact(256) {
            for (sums, values) in sums.iter_mut().zip(values.chunks_exact(32)) {
                sums.iter_mut().zip(values).for_each(|(sum, value)| *sum ^= value);
            }
        }
        *sum = sums.iter().flatten().map(|sum| u64::from(*sum)).sum();
    }
}

/// Where within a panel the value of a lane and an input lies.
fn place(lanes: usize, lane: usize, input: usize) -> usize {
    let chains = VECTOR / lanes;
    let (group, chain) = (input / CHAINS, input % CHAINS);
    group * CHAINS * lanes + chain / chains * VECTOR + lane * chains + chain % chains
}

fn fits(inputs: usize, term: &LoraTermParts) -> bool {
    let LoraTermParts { rank, outputs, a, b, scale, growth, .. } = term;
    *rank > 0
        && *outputs > 0
        && rank.checked_mul(inputs) == Some(a.len())
        && rank.checked_mul(*outputs) == Some(b.len())
        && growth.as_ref().is_none_or(|growth| growth.len() == *outputs)
        && a.iter().chain(b).chain([scale]).all(|value| value.is_finite())
}

/// Panels for this many lanes: as many of 16 as are full, then what pads least.
fn panels(inputs: usize, lanes: usize) -> Vec<Panel> {
    let mut panels = Vec::new();
    let mut first_lane = 0;
    while first_lane < lanes {
        let width = match lanes - first_lane {
            13.. => 16,
            5.. => 8,
            _ => 4,
        };
        panels.push(Panel { first_lane, lanes: width, at: first_lane * inputs });
        first_lane += width;
    }
    panels
}

/// The power of two to take out of these values, so that the largest is just below 2^16.
fn exponent(values: &[f32]) -> i32 {
    let max = values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    if max == 0.0 {
        return 0;
    }
    // Subnormal numbers of f32 have no exponent of their own, of f64 all do.
    let exponent = ((f64::from(max).to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let within = f64::from(max) * 2f64.powi(TOP_EXPONENT - exponent);
    // What would round up to 2^16 has no place in f16.
    if f16::from_f64(within).is_finite() { exponent - TOP_EXPONENT } else { exponent - TOP_EXPONENT + 1 }
}
