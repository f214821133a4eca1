//! Storing keys and values of many rows in a [`PagedKv`]. Not here: their layout (`paged`) and what reads them.

use crate::isa::multiversion;
use crate::paged::{GROUP_POSITIONS, KvFormat, Line, PagedKv, Shape};
use crate::pool::SharedMut;
use crate::{Isa, Team};

/// Parts of the blocks that are written by one tile each: those whose number has this remainder.
const PARTS: usize = 4;
/// Below this many rows and heads the caller does the work alone: it takes less time than waking others.
const ALONE_MAX: usize = 24;
/// A bf16 that is not a number, twice.
const NAN_PAIR: u32 = 0x7fc0_7fc0;

impl PagedKv {
    /// Stores the keys and values of rows of a layer: those of row i go to (block, offset) `places[i]`. Row i's keys are
    /// `projected[i * stride + key_first ..]`, `[kv_heads, head_dim]`, its values at `value_first`. Every ISA stores the same
    /// bits. Of two rows with the same place the later one stays.
    ///
    /// # Panics
    /// If a place or a row lies outside.
    #[expect(clippy::too_many_arguments, reason = "an operation on slices")]
    pub fn write(
        &mut self,
        team: &Team<'_>,
        isa: Isa,
        layer: usize,
        places: &[(u32, u32)],
        projected: &[f32],
        stride: usize,
        key_first: usize,
        value_first: usize,
    ) {
        let shape = self.shape;
        let width = shape.kv_heads * shape.head_dim;
        assert!(key_first.max(value_first) + width <= stride && places.len() * stride <= projected.len() + stride);
        let lines = SharedMut::new(self.lines_mut());
        let store = |kv_head: usize, wanted: &dyn Fn(u32) -> bool| {
            for (row, (block, offset)) in places.iter().enumerate().filter(|(_, place)| wanted(place.0)) {
                let (group, lane) = (*offset as usize / GROUP_POSITIONS, *offset as usize % GROUP_POSITIONS);
                let at = row * stride + kv_head * shape.head_dim;
                let head = |first: usize| &projected[at + first..][..shape.head_dim];
                // SAFETY: tiles differ in the head or in the remainder of the block, and hence in the range; a tile has
                // one part at a time.
                let lines = unsafe { lines.slice(shape.group_range(layer, *block, kv_head, group)) };
                store_row(isa, shape, lines, lane, head(key_first), head(value_first));
            }
        };
        if places.len() * shape.kv_heads <= ALONE_MAX {
            (0..shape.kv_heads).for_each(|kv_head| store(kv_head, &|_| true));
        } else {
            team.tiles(shape.kv_heads * PARTS, |_, tile| {
                store(tile / PARTS, &|block| block as usize % PARTS == tile % PARTS);
            });
        }
    }
}

fn store_row(isa: Isa, shape: Shape, lines: &mut [Line], lane: usize, key: &[f32], value: &[f32]) {
    let (keys, rest) = lines.split_at_mut(shape.half_lines());
    let (values, scales) = rest.split_at_mut(shape.half_lines());
    match shape.format {
        KvFormat::Bf16 => store_bf16(isa, keys, values, lane, key, value),
        KvFormat::Int8 => store_int8(isa, keys, values, scales, lane, key, value),
    }
}

multiversion! {
    fn store_bf16(keys: &mut [Line], values: &mut [Line], lane: usize, key: &[f32], value: &[f32]) {
        let (keys, key) = (&mut keys[..key.len() / 2], key.as_chunks::<2>().0);
        for (line, [first, second]) in keys.iter_mut().zip(key) {
            line.0[lane] = bf16_bits(*first) | bf16_bits(*second) << 16;
        }
        let vectors = value.len() / 16;
        let (values, shift) = (&mut values[lane / 2 * vectors..][..vectors], lane % 2 * 16);
        let mut exponents = 0;
        for (line, value) in values.iter_mut().zip(value.as_chunks::<16>().0) {
            for (word, value) in line.0.iter_mut().zip(value) {
                let bits = bf16_bits(*value);
                exponents = exponents.max(bits & 0x7f80);
                *word = *word & !(0xffff << shift) | bits << shift;
            }
        }
        if exponents == 0x7f80 {
            keys[0].0[lane] = NAN_PAIR;
            values.iter_mut().for_each(|line| line.0.iter_mut().for_each(|word| *word &= !(0xffff << shift)));
        }
    }
}

multiversion! {
    fn store_int8(
        keys: &mut [Line],
        values: &mut [Line],
        scales: &mut [Line],
        lane: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let (mut key_scale, value_scale) = (scale_of(key), scale_of(value));
        if !value_scale.is_finite() {
            key_scale = f32::NAN;
        }
        let code = |value: f32, scale: f32| {
            let code = if scale > 0.0 && scale.is_finite() { (value / scale).round_ties_even() } else { 0.0 };
            (code as i8).cast_unsigned()
        };
        for (line, codes) in keys.iter_mut().zip(key.as_chunks::<4>().0) {
            line.0[lane] = u32::from_le_bytes(codes.map(|value| code(value, key_scale)));
        }
        let vectors = value.len() / 16;
        let (values, shift) = (&mut values[lane / 4 * vectors..][..vectors], lane % 4 * 8);
        for (line, value) in values.iter_mut().zip(value.as_chunks::<16>().0) {
            for (word, value) in line.0.iter_mut().zip(value) {
                *word = *word & !(0xff << shift) | u32::from(code(*value, value_scale)) << shift;
            }
        }
        scales[0].0[lane] = key_scale.to_bits();
        scales[1].0[lane] = if value_scale.is_finite() { value_scale.to_bits() } else { 0 };
    }
}

/// What one step of a code is worth: largest magnitude / 127, 0 for magnitudes too small to divide by, NaN if a value is
/// not finite.
#[inline(always)]
fn scale_of(values: &[f32]) -> f32 {
    // As integers, in which infinity and NaN are the largest.
    let largest = values.iter().map(|value| value.to_bits() & 0x7fff_ffff).fold(0, u32::max);
    match f32::from_bits(largest) {
        value if !value.is_finite() => f32::NAN,
        value if value < 1e-30 => 0.0,
        value => value / 127.0,
    }
}

/// The nearest bf16, ties to even; what is too small for a normal number becomes zero, as AVX-512's conversion has it.
#[inline(always)]
pub(crate) fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let magnitude = bits & 0x7fff_ffff;
    let finite = if magnitude < 0x0080_0000 { bits >> 16 & 0x8000 } else { nearest };
    if magnitude > 0x7f80_0000 { bits >> 16 | 0x40 } else { finite }
}

/// Keys and values of a group as bf16 pairs in the layout of [`KvFormat::Bf16`], and the scales of its positions' keys and
/// values. An int8 code is exact in bf16.
pub(crate) fn expand_group(isa: Isa, lines: &[Line], head_dim: usize, out: &mut [Line]) -> [[f32; 16]; 2] {
    let half = head_dim / 4;
    let (keys, values) = out.split_at_mut(2 * half);
    expand(isa, &lines[..half], 1, keys);
    expand(isa, &lines[half..2 * half], head_dim / 16, values);
    let scales = &lines[2 * half..];
    [0, 1].map(|which: usize| scales[which].0.map(f32::from_bits))
}

multiversion! {
    fn expand(codes: &[Line], vectors: usize, out: &mut [Line]) {
        // A word has four codes: two of a pair, and two of the pair after it, `vectors` lines further.
        for (codes, out) in codes.chunks_exact(vectors).zip(out.chunks_exact_mut(2 * vectors)) {
            let (first, second) = out.split_at_mut(vectors);
            for ((codes, first), second) in codes.iter().zip(first).zip(second) {
                for lane in 0..GROUP_POSITIONS {
                    let code = |byte: u32| (((codes.0[lane] << (24 - 8 * byte)).cast_signed() >> 24) as f32).to_bits();
                    first.0[lane] = code(0) >> 16 | code(1);
                    second.0[lane] = code(2) >> 16 | code(3);
                }
            }
        }
    }
}
