//! How one adapter's terms lie in memory for [`matmul_lora`](super::matmul_lora): one run of bytes in the order of their
//! use, in int8 with a scale in bf16 for each 32 values of a row of A and of a row of B. Not here: the arithmetic.
//!
//! The A of all modules are stacked into *lanes* (one a rank of a module) and cut into panels of 16, 8 or 4 lanes. For each
//! block of 32 inputs a panel holds 8 words a lane, a word being the codes of 4 inputs. With 16 lanes a vector of 16 words
//! is one word of each lane; with 8 lanes it is the first word of each lane and then the second; with 4 it is four. So a
//! vector is always full. The scales of a panel follow its codes: one a lane for each block.
//!
//! Behind the panels lies B: for each 16 outputs of a module, a vector of 16 words for each 4 ranks, and behind all of a
//! module's codes its scales: 16 outputs for each 32 ranks.
//!
//! A code is its value divided by the scale, plus 128: VPDPBUSD takes one unsigned operand.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use crate::isa::multiversion;
use crate::memory::Memory;
use crate::quantised::BLOCK_VALUES;
use crate::{Floats, Isa, MappedPart};

/// Words in a vector: outputs of a tile of B.
pub(super) const VECTOR: usize = 16;
/// Bytes of such a vector.
pub(super) const VECTOR_BYTES: usize = 64;
/// Codes in a word.
const WORD: usize = 4;
/// Words of a block of 32 values.
pub(super) const BLOCK_WORDS: usize = BLOCK_VALUES / WORD;
/// Bytes of a scale.
pub(super) const SCALE_BYTES: usize = 2;
/// A group's values begin at a cache line, and so does each of their kinds.
const LINE_BYTES: usize = 64;
/// What a code of zero is stored as.
pub(super) const ZERO: u8 = 128;

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

/// A packed term without its factors. What is packed lies as these say: see the top of the file.
#[derive(Clone, Debug)]
pub struct LoraTermHead<G = Floats> {
    /// As in [`LoraTermParts`].
    pub module_slot: usize,
    /// Rows of A.
    pub rank: usize,
    /// Rows of B.
    pub outputs: usize,
    /// What B(A x) is multiplied by.
    pub scale: f32,
    /// For DoRA: g − 1 of each output.
    pub growth: Option<G>,
}

impl LoraTermParts {
    fn head(&self) -> LoraTermHead {
        let Self { module_slot, rank, outputs, scale, .. } = *self;
        LoraTermHead { module_slot, rank, outputs, scale, growth: self.growth.clone().map(Floats::from) }
    }
}

/// One adapter's terms for the modules of one layer that have the same input, packed.
///
/// A value is kept within 1/252 of the largest of its 32 (see [`LoraGroup::pack`]).
pub struct LoraGroup {
    pub(super) layout: Arc<Layout>,
    growths: Growths,
    values: Values,
}

/// For DoRA: g − 1 of each output, of each term. Empty if no term has it.
type Growths = Box<[Option<Floats>]>;

/// How a group's codes and scales lie: one for all groups of all adapters that are alike, so that a step finds it in its
/// cache, and knows by its address that what it planned for another layer is right for this one.
pub(super) struct Layout {
    pub(super) inputs: usize,
    pub(super) panels: Vec<Panel>,
    pub(super) terms: Vec<Term>,
    /// Lanes of all panels.
    pub(super) lanes: usize,
    /// Words of a row of what A makes of x, rounded: see [`Term::first_word`].
    pub(super) row_words: usize,
    /// Whether a term has growth.
    pub(super) grows: bool,
    /// Bytes of A, and of all.
    a_bytes: usize,
    bytes: usize,
}

/// What makes a layout: inputs, and of each term its slot, rank, outputs, the bits of its scale, and whether it has growth.
type LayoutKey = (usize, Vec<(usize, usize, usize, u32, bool)>);

/// Layouts that are in use somewhere.
static LAYOUTS: LazyLock<Mutex<HashMap<LayoutKey, Weak<Layout>>>> = LazyLock::new(Mutex::default);

/// Where the codes and scales are.
enum Values {
    /// These bytes, maybe with other groups' before and after them.
    Own(Arc<Memory>, Range<usize>),
    Mapped(MappedPart),
}

/// Lanes of A that are computed together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    pub(super) first_lane: usize,
    /// 16, 8 or 4.
    pub(super) lanes: usize,
    /// Where its codes begin, and its scales.
    at: [usize; 2],
}

/// One module's part.
#[derive(Debug)]
pub(super) struct Term {
    pub(super) slot: usize,
    pub(super) first_lane: usize,
    pub(super) rank: usize,
    pub(super) outputs: usize,
    /// What B(A x) is multiplied by.
    pub(super) scale: f32,
    /// Where its part of a row of what A makes of x begins: for each 32 ranks a scale, −128 · the sum of the codes, and the
    /// codes, 4 to a word.
    pub(super) first_word: usize,
    /// Where B's codes begin, and its scales.
    at: [usize; 2],
}

impl Term {
    /// Vectors of outputs, the last one padded.
    pub(super) fn tiles(&self) -> usize {
        self.outputs.div_ceil(VECTOR)
    }

    /// Words of ranks, the last one padded.
    pub(super) fn words(&self) -> usize {
        self.rank.div_ceil(WORD)
    }

    /// Blocks of ranks that share a scale, the last one maybe shorter.
    pub(super) fn blocks(&self) -> usize {
        self.rank.div_ceil(BLOCK_VALUES)
    }
}

/// Codes and what they are multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    pub(super) codes: &'a [u8],
    /// bf16.
    pub(super) scales: &'a [u8],
}

impl LoraGroup {
    /// From the terms of one adapter. `None` if there is none, two are of one slot, a rank is 0, a length is wrong, a value
    /// is not finite, or `inputs` is not a multiple of 32.
    ///
    /// Each 32 values of a row of A, and each 32 ranks of an output of B, are rounded to 255 steps: their largest is up to
    /// 127, and the scale is rounded up to a bf16 first, so that its own rounding is no error.
    #[must_use]
    pub fn pack(inputs: usize, terms: &[LoraTermParts]) -> Option<Self> {
        if !terms.iter().all(|term| fits(inputs, term)) {
            return None;
        }
        let (layout, growths) = Layout::of(inputs, terms.iter().map(LoraTermParts::head))?;
        let mut memory = Memory::new(layout.bytes);
        for (term, parts) in layout.terms.iter().zip(terms) {
            fill(inputs, &layout.panels, term, parts, memory.bytes_mut());
        }
        let values = Values::Own(Arc::new(memory), 0..layout.bytes);
        Some(Self { layout, growths, values })
    }

    /// A group that was packed before, over its [`Self::values`] in a file. `None` if it cannot be one: as for
    /// [`Self::pack`], or if these are not as many bytes as such a group has, or do not begin at a cache line.
    #[must_use]
    pub fn mapped(inputs: usize, terms: Vec<LoraTermHead>, values: MappedPart) -> Option<Self> {
        // A code takes a byte, so this bounds the sizes before anything is made of them.
        let bounded = |rank: usize, width| rank.checked_mul(width).is_some_and(|codes| codes <= values.bytes().len());
        let sound = |term: &LoraTermHead| {
            term.rank > 0
                && term.outputs > 0
                && bounded(term.rank, inputs.max(1))
                && bounded(term.rank, term.outputs)
                && term.scale.is_finite()
                && term.growth.as_ref().is_none_or(|growth| growth.len() == term.outputs)
        };
        if !terms.iter().all(sound) {
            return None;
        }
        let (layout, growths) = Layout::of(inputs, terms)?;
        let at_a_line = values.bytes().as_ptr().addr().is_multiple_of(LINE_BYTES);
        if values.bytes().len() != layout.bytes || !at_a_line {
            return None;
        }
        Some(Self { layout, growths, values: Values::Mapped(values) })
    }

    /// Its terms, as [`Self::mapped`] takes them.
    pub fn heads(&self) -> impl Iterator<Item = LoraTermHead<&[f32]>> {
        self.layout.terms.iter().enumerate().map(|(number, term)| LoraTermHead {
            module_slot: term.slot,
            rank: term.rank,
            outputs: term.outputs,
            scale: term.scale,
            growth: self.growth(number),
        })
    }

    /// Moves the values of groups that are used one after the other into one piece of memory, in huge pages if they fill
    /// one: the way to keep all of an adapter.
    pub fn gather(groups: &mut [Self]) {
        let mut memory = Memory::new(groups.iter().map(|group| group.values().len()).sum());
        let mut rest = memory.bytes_mut();
        for group in &*groups {
            let (own, behind) = rest.split_at_mut(group.values().len());
            own.copy_from_slice(group.values());
            rest = behind;
        }
        let memory = Arc::new(memory);
        let mut at = 0;
        for group in groups {
            let end = at + group.values().len();
            group.values = Values::Own(Arc::clone(&memory), at..end);
            at = end;
        }
    }

    /// Bytes in memory, without the few of its own bookkeeping.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let growth: usize = self.growths.iter().flatten().map(|growth| growth.len()).sum();
        self.values().len() + growth * size_of::<f32>()
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
        self.layout.inputs
    }

    /// For DoRA: g − 1 of each output of a term, by its number.
    pub(super) fn growth(&self, term: usize) -> Option<&[f32]> {
        self.growths.get(term)?.as_deref()
    }

    /// A panel's `[inputs / 32, lanes / 2, 64]` codes and `[inputs / 32, lanes]` scales, see the top of the file.
    pub(super) fn a(&self, panel: Panel) -> Codes<'_> {
        let [codes, scales] = panel.at;
        let values = self.values();
        Codes {
            codes: &values[codes..][..panel.lanes * self.layout.inputs],
            scales: &values[scales..][..panel.scale_bytes(self.layout.inputs)],
        }
    }

    /// A term's `[tiles, words, 64]` codes and `[tiles, blocks, 16]` scales.
    pub(super) fn b(&self, term: &Term) -> Codes<'_> {
        let part = |at: usize, tile_bytes: usize| &self.values()[at..][..term.tiles() * tile_bytes];
        Codes {
            codes: part(term.at[0], term.words() * VECTOR_BYTES),
            scales: part(term.at[1], term.blocks() * VECTOR * SCALE_BYTES),
        }
    }

    /// The bytes that a step reads first: A.
    pub(super) fn beginning(&self) -> &[u8] {
        &self.values()[..self.layout.a_bytes]
    }

    /// Its codes and scales.
    #[must_use]
    pub fn values(&self) -> &[u8] {
        match &self.values {
            Values::Own(memory, own) => &memory.bytes()[own.clone()],
            Values::Mapped(part) => part.bytes(),
        }
    }
}

impl Layout {
    /// Of these terms, and their growths. `None` as for [`LoraGroup::pack`], but for lengths.
    fn of(inputs: usize, heads: impl IntoIterator<Item = LoraTermHead>) -> Option<(Arc<Self>, Growths)> {
        let (mut terms, mut growths, mut slots) = (Vec::new(), Vec::new(), 0u8);
        for LoraTermHead { module_slot, rank, outputs, scale, growth } in heads {
            let bit = 1u8.checked_shl(u32::try_from(module_slot).ok()?)?;
            if slots & bit != 0 {
                return None;
            }
            slots |= bit;
            terms.push((module_slot, rank, outputs, scale.to_bits(), growth.is_some()));
            growths.push(growth);
        }
        if slots == 0 || inputs == 0 || !inputs.is_multiple_of(BLOCK_VALUES) {
            return None;
        }
        if growths.iter().all(Option::is_none) {
            growths.clear();
        }
        let key = (inputs, terms);
        let mut layouts = LAYOUTS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = layouts.get(&key).and_then(Weak::upgrade) {
            return Some((known, growths.into()));
        }
        let layout = Arc::new(Self::new(&key));
        if layouts.len().is_power_of_two() {
            layouts.retain(|_, layout| layout.strong_count() > 0);
        }
        layouts.insert(key, Arc::downgrade(&layout));
        Some((layout, growths.into()))
    }

    fn new((inputs, heads): &LayoutKey) -> Self {
        let mut bytes = 0;
        let mut place = |wanted: usize| {
            let at = bytes;
            bytes += wanted.next_multiple_of(LINE_BYTES);
            at
        };
        let mut panels = panels(heads.iter().map(|(_, rank, ..)| rank).sum());
        for panel in &mut panels {
            panel.at = [panel.lanes * inputs, panel.scale_bytes(*inputs)].map(&mut place);
        }
        let lanes = panels.last().map_or(0, |panel| panel.first_lane + panel.lanes);
        let (mut terms, mut first_lane, mut row_words) = (Vec::new(), 0, 0);
        for &(slot, rank, outputs, scale, _) in heads {
            let scale = f32::from_bits(scale);
            let mut term = Term { slot, first_lane, rank, outputs, scale, first_word: row_words, at: [0; 2] };
            let scales = term.tiles() * term.blocks() * VECTOR * SCALE_BYTES;
            term.at = [term.tiles() * term.words() * VECTOR_BYTES, scales].map(&mut place);
            first_lane += rank;
            row_words += 2 * term.blocks() + term.words();
            terms.push(term);
        }
        let a_bytes = terms.iter().map(|term| term.at[0]).min().unwrap_or_default();
        let grows = heads.iter().any(|(.., grows)| *grows);
        Self { inputs: *inputs, panels, terms, lanes, row_words, grows, a_bytes, bytes }
    }
}

impl Panel {
    /// A vector's more than the scales take: the last one is read as a whole vector.
    fn scale_bytes(&self, inputs: usize) -> usize {
        (inputs / BLOCK_VALUES * self.lanes + VECTOR - self.lanes) * SCALE_BYTES
    }
}

fn fill(inputs: usize, panels: &[Panel], term: &Term, parts: &LoraTermParts, bytes: &mut [u8]) {
    for row in 0..term.rank {
        let lane = term.first_lane + row;
        let Some(panel) = panels.iter().find(|panel| lane < panel.first_lane + panel.lanes) else { continue };
        let [codes_at, scales_at] = panel.at;
        let (lanes, lane_of_panel) = (panel.lanes, lane - panel.first_lane);
        for (block, a) in parts.a[row * inputs..][..inputs].chunks_exact(BLOCK_VALUES).enumerate() {
            let (scale, codes) = quantise(a.iter().copied());
            let at = scales_at + (block * lanes + lane_of_panel) * SCALE_BYTES;
            bytes[at..at + SCALE_BYTES].copy_from_slice(&scale.to_le_bytes());
            for (word, codes) in codes.as_chunks::<WORD>().0.iter().enumerate() {
                let at = codes_at + (block * BLOCK_WORDS * lanes + word * lanes + lane_of_panel) * WORD;
                bytes[at..at + WORD].copy_from_slice(codes);
            }
        }
    }
    let [codes_at, scales_at] = term.at;
    for output in 0..term.outputs {
        let (tile, lane) = (output / VECTOR, output % VECTOR);
        for block in 0..term.blocks() {
            let ranks = block * BLOCK_VALUES..term.rank.min((block + 1) * BLOCK_VALUES);
            let (scale, codes) = quantise(ranks.map(|rank| parts.b[rank * term.outputs + output]));
            let at = scales_at + ((tile * term.blocks() + block) * VECTOR + lane) * SCALE_BYTES;
            bytes[at..at + SCALE_BYTES].copy_from_slice(&scale.to_le_bytes());
            let words = (term.words() - block * BLOCK_WORDS).min(BLOCK_WORDS);
            for (word, codes) in codes.as_chunks::<WORD>().0[..words].iter().enumerate() {
                let at = codes_at + ((tile * term.words() + block * BLOCK_WORDS + word) * VECTOR + lane) * WORD;
                bytes[at..at + WORD].copy_from_slice(codes);
            }
        }
    }
}

/// Up to 32 values as a scale in bf16 and codes, zeros behind them.
fn quantise(values: impl Iterator<Item = f32> + Clone) -> (u16, [u8; BLOCK_VALUES]) {
    let largest = values.clone().fold(0.0f32, |largest, value| largest.max(value.abs()));
    // Up, so that no code is beyond 127.
    let scale = ((largest / 127.0).to_bits() + 0xffff) >> 16;
    let mut codes = [ZERO; BLOCK_VALUES];
    if scale > 0 {
        for (code, value) in codes.iter_mut().zip(values) {
            let steps = (value / f32::from_bits(scale << 16)).round_ties_even().clamp(-127.0, 127.0);
            *code = (steps as i32 + i32::from(ZERO)) as u8;
        }
    }
    (scale as u16, codes)
}

multiversion! {
    fn add_all(values: &[u8], sum: &mut u64) {
        let mut sums = [0u8; 512];
        for values in values.as_chunks::<512>().0 {
            for lane in 0..512 {
                sums[lane] ^= values[lane];
            }
        }
        *sum = sums.iter().map(|sum| u64::from(*sum)).sum();
    }
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
fn panels(lanes: usize) -> Vec<Panel> {
    let mut panels = Vec::new();
    let mut first_lane = 0;
    while first_lane < lanes {
        let width = match lanes - first_lane {
            13.. => 16,
            5.. => 8,
            _ => 4,
        };
        panels.push(Panel { first_lane, lanes: width, at: [0; 2] });
        first_lane += width;
    }
    panels
}
