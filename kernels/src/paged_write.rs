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
        for (line, [first, second]) in keys.iter_mut().zip(key.as_chunks::<2>().0) {
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
        let (mut key_scale, mut value_scale) = (Scale::of(key), Scale::of(value));
        if value_scale.step.is_nan() {
            key_scale.step = f32::NAN;
            value_scale.step = 0.0;
        }
        for (lines, key) in keys.as_chunks_mut::<4>().0.iter_mut().zip(key.as_chunks::<16>().0) {
            let codes = key.map(|value| key_scale.code(value));
            for (line, codes) in lines.iter_mut().zip(codes.as_chunks::<4>().0) {
                line.0[lane] = codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24;
            }
        }
        let vectors = value.len() / 16;
        let (values, shift) = (&mut values[lane / 4 * vectors..][..vectors], lane % 4 * 8);
        for (line, value) in values.iter_mut().zip(value.as_chunks::<16>().0) {
            for (word, value) in line.0.iter_mut().zip(value) {
                *word = *word & !(0xff << shift) | value_scale.code(*value) << shift;
            }
        }
        scales[0].0[lane] = key_scale.step.to_bits();
        scales[1].0[lane] = value_scale.step.to_bits();
    }
}

/// The scale of one position's key or value.
struct Scale {
    /// What one step of a code is worth: largest magnitude / 127; 0 for magnitudes too small to divide by; NaN if a value is
    /// not finite.
    step: f32,
    /// Steps in 1.
    steps: f32,
}

impl Scale {
    #[inline(always)]
    fn of(values: &[f32]) -> Self {
        // As integers, in which infinity and NaN are the largest.
        let largest = values.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
        match f32::from_bits(largest) {
            value if !value.is_finite() => Self { step: f32::NAN, steps: 0.0 },
            value if value < 1e-30 => Self { step: 0.0, steps: 0.0 },
            value => Self { step: value / 127.0, steps: 127.0 / value },
        }
    }

    /// The nearest code, as a byte; any byte if the value is not finite.
    #[inline(always)]
    fn code(&self, value: f32) -> u32 {
        // Adding 1.5 · 2²³ rounds to whole numbers and leaves them in the low bits.
        (value * self.steps + 12_582_912.0).to_bits() & 0xff
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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::Pool;
    use crate::dot::tests::values;

    const KV_HEADS: usize = 3;
    const HEAD_DIM: usize = 48;
    const STRIDE: usize = 2 * KV_HEADS * HEAD_DIM + 5;
    const KEY_FIRST: usize = 3;
    const VALUE_FIRST: usize = KEY_FIRST + KV_HEADS * HEAD_DIM;

    fn written(team: &Team<'_>, isa: Isa, format: KvFormat, places: &[(u32, u32)], rows: &[f32]) -> PagedKv {
        let mut kv = PagedKv::new(format, 2, 7, 32, KV_HEADS, HEAD_DIM).unwrap();
        kv.write(team, isa, 1, places, rows, STRIDE, KEY_FIRST, VALUE_FIRST);
        kv
    }

    /// Key and value of a position and head, and their scales, read by the layout's description.
    fn stored(kv: &PagedKv, place: (u32, u32), kv_head: usize) -> [Vec<f32>; 2] {
        let (group, lane) = (place.1 as usize / 16, place.1 as usize % 16);
        let lines = kv.group(1, place.0, kv_head, group);
        let mut halves = vec![Line::ZERO; HEAD_DIM];
        let mut scales = [1.0; 2];
        match kv.shape.format {
            KvFormat::Bf16 => halves.copy_from_slice(lines),
            KvFormat::Int8 => {
                scales = expand_group(Isa::plain(), lines, HEAD_DIM, &mut halves).map(|scales| scales[lane]);
            }
        }
        let halves: Vec<u16> =
            halves.iter().flat_map(|line| line.0).flat_map(|word| [word as u16, (word >> 16) as u16]).collect();
        let number = |at: usize| bf16::from_bits(halves[at]).to_f32();
        let key = (0..HEAD_DIM).map(|d| number((d / 2 * 16 + lane) * 2 + d % 2) * scales[0]);
        let values = HEAD_DIM * 16;
        let value = (0..HEAD_DIM).map(|d| number(values + (lane / 2 * HEAD_DIM + d) * 2 + lane % 2) * scales[1]);
        [key.collect(), value.collect()]
    }

    #[test]
    fn rows_are_found_again_and_every_isa_and_team_stores_the_same() {
        let pool = Pool::new(3).unwrap();
        // Every offset of some blocks, out of order, with the first place written twice.
        let mut places: Vec<(u32, u32)> = (0..96).map(|at| ([5, 0, 6][at % 3], (at as u32 / 3 * 13) % 32)).collect();
        places.push(places[0]);
        let rows = values(1, places.len() * STRIDE);
        for format in [KvFormat::Bf16, KvFormat::Int8] {
            let plain = written(&Team::alone(), Isa::plain(), format, &places, &rows);
            for (row, place) in places.iter().enumerate().skip(1) {
                for kv_head in 0..KV_HEADS {
                    let row = &rows[row * STRIDE + kv_head * HEAD_DIM..];
                    for (stored, first) in stored(&plain, *place, kv_head).iter().zip([KEY_FIRST, VALUE_FIRST]) {
                        let exact = &row[first..][..HEAD_DIM];
                        let largest = exact.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                        for (stored, exact) in stored.iter().zip(exact) {
                            match format {
                                KvFormat::Bf16 => assert_eq!(*stored, bf16::from_f32(*exact).to_f32()),
                                KvFormat::Int8 => assert!((stored - exact).abs() <= largest / 127.0 * 0.51),
                            }
                        }
                    }
                }
            }
            for isa in Isa::available() {
                let mut other = pool.step(|team| written(team, isa, format, &places, &rows));
                let mut plain = written(&Team::alone(), Isa::plain(), format, &places, &rows);
                let both = other.lines_mut().iter().zip(plain.lines_mut());
                assert!(both.into_iter().all(|(other, plain)| other.0 == plain.0), "{isa:?} {format:?}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_told_by_the_key_alone() {
        for format in [KvFormat::Bf16, KvFormat::Int8] {
            for isa in Isa::available() {
                for poison in [f32::NAN, f32::NEG_INFINITY] {
                    for first in [KEY_FIRST, VALUE_FIRST] {
                        let mut rows = values(1, 2 * STRIDE);
                        rows[first + HEAD_DIM + 40] = poison;
                        let kv = written(&Team::alone(), isa, format, &[(2, 7), (2, 6)], &rows);
                        for kv_head in 0..KV_HEADS {
                            let [key, value] = stored(&kv, (2, 7), kv_head);
                            assert_eq!(key.iter().all(|key| key.is_finite()), kv_head != 1);
                            assert!(value.iter().all(|value| value.is_finite()));
                            let [key, value] = stored(&kv, (2, 6), kv_head);
                            assert!(key.iter().chain(&value).all(|value| value.is_finite()));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn bf16_rounds_to_even_and_drops_what_is_not_normal() {
        for at in 0..100_000u32 {
            let value = f32::from_bits(at.wrapping_mul(42_949));
            let bits = bf16_bits(value) as u16;
            if value.is_nan() {
                assert!(bf16::from_bits(bits).is_nan());
            } else if value != 0.0 && !value.is_normal() && value.is_finite() {
                assert_eq!(bits & 0x7fff, 0);
            } else {
                assert_eq!(bits, bf16::from_f32(value).to_bits(), "{value}");
            }
        }
    }
}
