//! A panel of packed weights in bf16, in the order in which tiles are multiplied: for each 32 inputs two tiles (16 outputs each)
//! of 16 lines, each with a pair of inputs of 16 outputs. Not here: the products, and where a panel has what (`packed/layout.rs`).

use std::arch::x86_64::*;
use std::mem::transmute;

use super::super::vnni::{least_of, scale_of, unpack};
use super::{PANEL_BLOCK_BYTES, TILE_WORDS};
use crate::isa::Amx;
use crate::packed::{Layout, PANEL, formats, panel_bytes};
use crate::quantised::{BLOCK_VALUES, BlockFormat};

/// How far ahead of its use a panel is fetched, and the beginning of the next one: memory takes about 400 cycles.
const AHEAD_BYTES: usize = 4096;

/// Puts first and second halves of 32 numbers in turn.
const WEAVE: [u16; 32] = {
    let mut order = [0; 32];
    let mut at = 0;
    while at < 32 {
        order[at] = (at / 2 + at % 2 * 16) as u16;
        at += 1;
    }
    order
};

/// The blocks from `first` on of a panel, as many as `to` has room for, of a format that is neither bf16 nor f32.
///
/// # Panics
/// If the lengths do not belong together.
pub(super) fn widen(_: Amx, format: BlockFormat, panel: &[u8], first: usize, to: &mut [u32]) {
    let end = first + to.len() / (PANEL_BLOCK_BYTES / 4);
    assert!(to.len().is_multiple_of(PANEL_BLOCK_BYTES / 4) && to.as_ptr().addr().is_multiple_of(64));
    assert!(panel_bytes(format, end * BLOCK_VALUES) <= panel.len());
    // SAFETY: `Amx` exists only where the best level does, which has these features; the lengths were asserted.
    unsafe {
        match format {
            BlockFormat::Q4_0 => integers::<formats::Q40>(panel, first, to),
            BlockFormat::Q4_1 => integers::<formats::Q41>(panel, first, to),
            BlockFormat::Q5_0 => integers::<formats::Q50>(panel, first, to),
            BlockFormat::Q5_1 => integers::<formats::Q51>(panel, first, to),
            BlockFormat::Q8_0 => integers::<formats::Q80>(panel, first, to),
            BlockFormat::Q4_K => integers::<formats::Q4K>(panel, first, to),
            BlockFormat::Q5_K => integers::<formats::Q5K>(panel, first, to),
            BlockFormat::Q6_K => integers::<formats::Q6K>(panel, first, to),
            BlockFormat::F16 => halves(panel, first, to),
            BlockFormat::F32 | BlockFormat::Bf16 => unreachable!("not widened"),
        }
    }
}

/// Two inputs of 16 outputs, in pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
fn pairs(even: __m512, odd: __m512) -> __m512i {
    // SAFETY: 64 bytes each, of which any value is one.
    let (order, both) = unsafe {
        (transmute::<[u16; 32], __m512i>(WEAVE), transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(odd, even)))
    };
    _mm512_permutexvar_epi16(order, both)
}

/// # Safety
/// The machine has the features, `panel` the blocks that `to` has.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
unsafe fn integers<F: Layout>(panel: &[u8], first: usize, to: &mut [u32]) {
    let shape = F::SHAPE;
    let byte = _mm512_set1_epi32(255);
    for (block, to) in (first..).zip(to.chunks_exact_mut(PANEL_BLOCK_BYTES / 4)) {
        let to = to.as_mut_ptr();
        // SAFETY: a block of the panel and its header are within it: see `packed/layout.rs`. `to` has two tiles.
        unsafe {
            let packed = panel.as_ptr().add(shape.block_at(block));
            for line in 0..shape.block_bytes() / 64 {
                _mm_prefetch::<_MM_HINT_T0>(packed.wrapping_add(AHEAD_BYTES + line * 64).cast());
            }
            let scales = packed.add(2 * shape.codes_bytes());
            let header = packed.wrapping_sub(block % shape.shared * shape.block_bytes() + shape.header_bytes());
            for vector in 0..2 {
                let codes = packed.add(vector * shape.codes_bytes());
                let least = if shape.minima { least_of::<F>(header, scales, vector) } else { _mm512_setzero_ps() };
                macro_rules! groups {
                    ($half:literal: $($group:literal)*) => {
                        let scale = scale_of::<F, $half>(header, scales, vector);
                        // Exact, and so is scale · code + least without minima: they have few bits.
                        let least = match shape.minima {
                            true => least,
                            false => _mm512_mul_ps(scale, _mm512_set1_ps(-(shape.offset as f32))),
                        };
                        let value = |code: __m512i| _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(code), least);
                        $(
                            let quads = unpack::<F, $group>(codes);
                            let first = value(_mm512_and_si512(quads, byte));
                            let second = value(_mm512_and_si512(_mm512_srli_epi32::<8>(quads), byte));
                            let third = value(_mm512_and_si512(_mm512_srli_epi32::<16>(quads), byte));
                            let fourth = value(_mm512_srli_epi32::<24>(quads));
                            let lines = to.add(vector * TILE_WORDS + $group * 2 * 16).cast::<__m512i>();
                            _mm512_store_si512(lines, pairs(first, second));
                            _mm512_store_si512(lines.add(1), pairs(third, fourth));
                        )*
                    };
                }
                groups!(0: 0 1 2 3);
                if shape.bits == 6 {
                    groups!(1: 4 5 6 7);
                } else {
                    groups!(0: 4 5 6 7);
                }
            }
        }
    }
}

/// # Safety
/// The machine has the features, `panel` the inputs that `to` has.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn halves(panel: &[u8], first: usize, to: &mut [u32]) {
    for (block, to) in (first..).zip(to.chunks_exact_mut(PANEL_BLOCK_BYTES / 4)) {
        let from = panel[block * 32 * PANEL * 2..][..32 * PANEL * 2].as_ptr();
        for vector in 0..2 {
            for pair in 0..16 {
                // SAFETY: 32 outputs of f16 for each input; a line of a tile.
                unsafe {
                    let value = |input: usize| {
                        _mm512_cvtph_ps(_mm256_loadu_si256(from.add((input * PANEL + vector * 16) * 2).cast()))
                    };
                    let line = to.as_mut_ptr().add(vector * TILE_WORDS + pair * 16);
                    _mm512_store_si512(line.cast(), pairs(value(2 * pair), value(2 * pair + 1)));
                }
            }
        }
    }
}
