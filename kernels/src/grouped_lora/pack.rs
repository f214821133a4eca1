//! How one adapter's terms lie in memory for [`grouped_lora`](super::grouped_lora): one run of bytes in the order of their
//! use, in bf16, two values to 32 bits. Not here: the arithmetic.
//!
//! The A of all modules are stacked into *lanes* (one a rank of a module, a module's beginning at an even one) and cut into
//! panels of 16, 8 or 4 lanes. A panel holds, for each four pairs of inputs, 4 · lanes pairs in vectors of 16: with 16 lanes
//! a vector is one pair of inputs of each lane, with 8 it is two (lane 0's first, lane 0's second, lane 1's first, ...),
//! with 4 it is four. So a vector is always full, and each lane has four sums, of the pairs 0, 1, 2 and 3 modulo 4,
//! whatever the panel's width.
//! Behind the panels lies B: for each 16 outputs of a module, 16 pairs of each two ranks.

use std::ops::Range;
use std::sync::Arc;

use super::bf16;
use crate::Isa;
use crate::isa::multiversion;
use crate::memory::Memory;

/// Pairs in a vector.
pub(super) const VECTOR: usize = 16;
/// Pairs of inputs that a panel keeps together, each in a sum of its own.
pub(super) const CHAINS: usize = 4;
/// A group's values begin at a cache line.
const LINE_BYTES: usize = 64;

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
/// Values are kept in bf16: within 2^-8 of what they were, exact if they came from bf16.
pub struct LoraGroup {
    pub(super) inputs: usize,
    pub(super) panels: Vec<Panel>,
    pub(super) terms: Vec<Term>,
    /// Of each lane, padded to the panels: the scale of its term.
    pub(super) factors: Vec<f32>,
    /// Maybe with other groups' values before and after its own.
    memory: Arc<Memory>,
    /// Its own, in bytes.
    own: Range<usize>,
}

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

    /// Pairs of ranks, the last one padded.
    pub(super) fn pairs(&self) -> usize {
        self.rank.div_ceil(2)
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
        let panels = panels(inputs / 2, terms.iter().map(|term| term.rank.next_multiple_of(2)).sum());
        let lanes = panels.last().map_or(0, |panel| panel.first_lane + panel.lanes);
        let (mut packed_terms, mut factors) = (Vec::new(), vec![0.0; lanes]);
        let mut at = lanes * inputs / 2;
        let mut first_lane = 0;
        for term in terms {
            let (slot, rank, outputs, growth) = (term.module_slot, term.rank, term.outputs, term.growth.clone());
            let packed = Term { slot, first_lane, rank, outputs, growth, at };
            first_lane += 2 * packed.pairs();
            at += packed.tiles() * VECTOR * packed.pairs();
            packed_terms.push(packed);
        }
        let bytes = (at * size_of::<u32>()).next_multiple_of(LINE_BYTES);
        let mut memory = Memory::new(bytes);
        let values = values_mut(memory.bytes_mut());
        for (term, parts) in packed_terms.iter().zip(terms) {
            fill(inputs, &panels, term, parts, values, &mut factors);
        }
        Some(Self { inputs, panels, terms: packed_terms, factors, memory: Arc::new(memory), own: 0..bytes })
    }

    /// Moves the values of groups that are used one after the other into one piece of memory, in huge pages if they fill
    /// one: the way to keep all of an adapter.
    pub fn gather(groups: &mut [Self]) {
        let mut memory = Memory::new(groups.iter().map(|group| group.own.len()).sum());
        let mut rest = memory.bytes_mut();
        for group in &*groups {
            let (own, behind) = rest.split_at_mut(group.own.len());
            own.copy_from_slice(&group.memory.bytes()[group.own.clone()]);
            rest = behind;
        }
        let memory = Arc::new(memory);
        let mut at = 0;
        for group in groups {
            let end = at + group.own.len();
            (group.memory, group.own) = (Arc::clone(&memory), at..end);
            at = end;
        }
    }

    /// Bytes in memory, without the few of its own bookkeeping.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let growth: usize = self.terms.iter().filter_map(|term| term.growth.as_ref()).map(Vec::len).sum();
        self.own.len() + (self.factors.len() + growth) * size_of::<f32>()
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

    /// Of a panel, its pairs: `[inputs / 8, lanes / 4, 16]`, see the top of the file.
    pub(super) fn a(&self, panel: Panel) -> &[u32] {
        &self.values()[panel.at..][..panel.lanes * self.inputs / 2]
    }

    /// Of a term, `[tiles, pairs of ranks, 16]`.
    pub(super) fn b(&self, term: &Term) -> &[u32] {
        &self.values()[term.at..][..term.tiles() * VECTOR * term.pairs()]
    }

    fn values(&self) -> &[u32] {
        let own = &self.memory.bytes()[self.own.clone()];
        assert!(own.as_ptr().cast::<u32>().is_aligned());
        // SAFETY: aligned as asserted; any four bytes are a u32.
        unsafe { std::slice::from_raw_parts(own.as_ptr().cast(), own.len() / 4) }
    }
}

fn values_mut(bytes: &mut [u8]) -> &mut [u32] {
    assert!(bytes.as_ptr().cast::<u32>().is_aligned());
    // SAFETY: aligned as asserted; any four bytes are a u32, and the borrow goes on.
    unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / 4) }
}

fn fill(inputs: usize, panels: &[Panel], term: &Term, parts: &LoraTermParts, values: &mut [u32], factors: &mut [f32]) {
    for row in 0..term.rank {
        let lane = term.first_lane + row;
        let Some(panel) = panels.iter().find(|panel| lane < panel.first_lane + panel.lanes) else { continue };
        let a = &parts.a[row * inputs..][..inputs];
        for (pair, a) in a.as_chunks::<2>().0.iter().enumerate() {
            values[panel.at + place(panel.lanes, lane - panel.first_lane, pair)] = bf16::pair(a[0], a[1]);
        }
        factors[lane] = parts.scale;
    }
    let b = |row: usize, output: usize| parts.b.get(row * term.outputs + output).filter(|_| row < term.rank).copied();
    for (pair, output) in (0..term.pairs()).flat_map(|pair| (0..term.outputs).map(move |output| (pair, output))) {
        let ranks = [2 * pair, 2 * pair + 1].map(|row| b(row, output).unwrap_or(0.0));
        let tile = output / VECTOR * term.pairs() + pair;
        values[term.at + tile * VECTOR + output % VECTOR] = bf16::pair(ranks[0], ranks[1]);
    }
}

multiversion! {
    fn add_all(values: &[u32], sum: &mut u64) {
        let mut sums = [0u32; 128];
        for values in values.as_chunks::<128>().0 {
            for lane in 0..128 {
                sums[lane] ^= values[lane];
            }
        }
        *sum = sums.iter().map(|sum| u64::from(*sum)).sum();
    }
}

/// Where within a panel a lane's pair of inputs lies.
fn place(lanes: usize, lane: usize, pair: usize) -> usize {
    let chains = VECTOR / lanes;
    let (group, chain) = (pair / CHAINS, pair % CHAINS);
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
fn panels(pairs: usize, lanes: usize) -> Vec<Panel> {
    let mut panels = Vec::new();
    let mut first_lane = 0;
    while first_lane < lanes {
        let width = match lanes - first_lane {
            13.. => 16,
            5.. => 8,
            _ => 4,
        };
        panels.push(Panel { first_lane, lanes: width, at: first_lane * pairs });
        first_lane += width;
    }
    panels
}
