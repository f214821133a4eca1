//! Integer formats with AVX-512 VNNI. A tile is up to 6 rows x 32 outputs: an i32 and an f32 register for each row and
//! 16 outputs (24), the codes of 4 inputs x 32 outputs, and a row's 4 inputs broadcast from memory. More rows are two tiles.
//!
//! Per block, row and 16 outputs there are 8 VPDPBUSD, and 2 or 3 multiplications on the same two pipes: at most 80 % or
//! 73 % of the machine's peak. Not here: the order of the arithmetic, which is written down in `gemm.rs`.

use std::arch::x86_64::*;

use super::Results;
use super::ahead::{Ahead, LINE_BYTES, Pace};
use crate::packed::{Layout, PANEL};
use crate::quantised_rows::{BLOCK_WORDS, PANEL_ROWS, Words};

/// Vectors of 16 outputs of a panel.
const VECTORS: usize = PANEL / 16;
/// How far ahead of its use the stream is fetched where few rows pass over it once: memory takes about 400 cycles.
const NEAR_BYTES: usize = 4096;

/// An integer format: `weights` is a panel, `x` the words of a panel of `rows` rows. The lines `ahead` are
/// fetched into the second-level cache meanwhile, at an even pace.
///
/// # Safety
/// The machine has AVX-512 F, BW, VL, DQ and VNNI.
///
/// # Panics
/// If the lengths do not belong together.
pub(super) unsafe fn integers<F: Layout>(
    weights: &[u8],
    x: &[u32],
    rows: usize,
    ahead: &mut Ahead,
    results: &mut Results,
) {
    assert!((1..=PANEL_ROWS).contains(&rows));
    let blocks = x.len() / (rows * BLOCK_WORDS);
    assert!(x.len() == blocks * rows * BLOCK_WORDS && blocks.is_multiple_of(F::SHAPE.shared));
    assert!(weights.len() == F::SHAPE.block_at(blocks) - F::SHAPE.header_bytes());
    let (panel, x) = (weights.as_ptr(), x.as_ptr());
    macro_rules! tiles {
        ($($all:literal)*, $($sum:literal = $one:literal + $two:literal)*) => {
            match rows {
                $($all => tile::<F, $all, $all>(panel, x, blocks, &mut ahead.pace(blocks), results),)*
                $($sum => {
                    let mut pace = ahead.pace(2 * blocks);
                    let (first, last) = results.split_at_mut($one);
                    tile::<F, $one, $sum>(panel, x, blocks, &mut pace, first);
                    tile::<F, $two, $sum>(panel, x.add($one), blocks, &mut pace, last);
                })*
                _ => {}
            }
        };
    }
    // SAFETY: the features are the caller's promise; the lengths were asserted above and fit the number of rows.
    unsafe { tiles!(1 2 3 4 5 6, 7 = 4 + 3 8 = 4 + 4 9 = 5 + 4 10 = 5 + 5 11 = 6 + 5 12 = 6 + 6) }
}

// The parts of a tile are macros with indices, and no functions with iterators: the compiler keeps the sums in registers only
// when it sees every index as a constant. F, ROWS and STRIDE are those of `tile`.

/// A word of a row of the block at `x`, in all lanes.
macro_rules! word {
    ($x:ident, $word:expr, $row:expr) => {
        _mm512_set1_epi32($x.add($word * STRIDE + $row).read() as i32)
    };
}

/// Begins the sums with what the offset of the codes will add, taken away.
macro_rules! start {
    ($x:ident, $half:literal, $dots:ident) => {
        for row in 0..ROWS {
            let minus = match F::SHAPE.offset {
                0 => _mm512_setzero_si512(),
                8 => word!($x, Words::MINUS_8, row),
                16 => _mm512_slli_epi32::<1>(word!($x, Words::MINUS_8, row)),
                32 => word!($x, Words::MINUS_32[$half], row),
                _ => word!($x, Words::MINUS_128, row),
            };
            for vector in 0..VECTORS {
                $dots[row][vector] = minus;
            }
        }
    };
}

/// Adds groups of 4 inputs.
macro_rules! step {
    ($x:ident, $codes:ident, $dots:ident, $($group:literal)*) => { $(
        let mut quad = [_mm512_setzero_si512(); VECTORS];
        for vector in 0..VECTORS {
            quad[vector] = unpack::<F, $group>($codes.add(vector * F::SHAPE.codes_bytes()));
        }
        for row in 0..ROWS {
            let x = word!($x, Words::CODES + $group, row);
            for vector in 0..VECTORS {
                $dots[row][vector] = _mm512_dpbusd_epi32($dots[row][vector], quad[vector], x);
            }
        }
    )* };
}

/// Scales the sums of a block (Q6_K: of half a block) and adds them to the results.
macro_rules! finish {
    ($x:ident, $header:ident, $scales:ident, $half:literal, $dots:ident, $sums:ident) => {
        let mut scale = [_mm512_setzero_ps(); VECTORS];
        let mut least = [_mm512_setzero_ps(); VECTORS];
        for vector in 0..VECTORS {
            scale[vector] = scale_of::<F, $half>($header, $scales, vector);
            if F::SHAPE.minima {
                least[vector] = least_of::<F>($header, $scales, vector);
            }
        }
        for row in 0..ROWS {
            let x_scale = _mm512_castsi512_ps(word!($x, Words::SCALE, row));
            for vector in 0..VECTORS {
                let sum = &mut $sums[row][vector];
                let scale = _mm512_mul_ps(scale[vector], x_scale);
                *sum = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps($dots[row][vector]), *sum);
                if F::SHAPE.minima {
                    let x_sum = _mm512_castsi512_ps(word!($x, Words::SCALED_SUM, row));
                    *sum = _mm512_fmadd_ps(least[vector], x_sum, *sum);
                }
            }
        }
    };
}

/// ROWS rows of a panel of STRIDE.
///
/// # Safety
/// The machine has the features; `weights` has a panel of `blocks` blocks and `x` the words of STRIDE rows of them, from
/// the first of the ROWS rows on; there are ROWS rows of results.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<F: Layout, const ROWS: usize, const STRIDE: usize>(
    mut weights: *const u8,
    mut x: *const u32,
    blocks: usize,
    pace: &mut Pace<'_>,
    results: &mut [[f32; PANEL]],
) {
    let shape = F::SHAPE;
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    let Pace { mut lines, lines_each, mut stream, stream_each, mut later, later_each, .. } = *pace;
    // SAFETY: `weights` and `x` walk over `blocks` blocks and their headers, and each offset is within one of them: see
    // `packed/layout.rs` and `quantised_rows.rs`. A row of results has 32 values. `lines` walks over `lines_each`
    // for each of the steps that the pace is for, fetching them reads nothing.
    unsafe {
        for _ in 0..blocks / shape.shared {
            let header = weights;
            weights = weights.add(shape.header_bytes());
            for _ in 0..shape.shared {
                if ROWS == STRIDE {
                    fetch::<F>(weights.wrapping_add(NEAR_BYTES));
                }
                for _ in 0..stream_each {
                    _mm_prefetch::<_MM_HINT_T1>(stream.cast());
                    stream = stream.wrapping_add(LINE_BYTES);
                }
                for _ in 0..later_each {
                    _mm_prefetch::<_MM_HINT_T1>(later.cast());
                    later = later.wrapping_add(LINE_BYTES);
                }
                for _ in 0..lines_each {
                    _mm_prefetch::<_MM_HINT_T1>(lines.read().cast());
                    lines = lines.add(1);
                }
                let codes = weights;
                let scales = weights.add(2 * shape.codes_bytes());
                let mut dots = [[_mm512_setzero_si512(); VECTORS]; ROWS];
                if shape.bits == 6 {
                    start!(x, 0, dots);
                    step!(x, codes, dots, 0 1 2 3);
                    finish!(x, header, scales, 0, dots, sums);
                    start!(x, 1, dots);
                    step!(x, codes, dots, 4 5 6 7);
                    finish!(x, header, scales, 1, dots, sums);
                } else {
                    start!(x, 0, dots);
                    step!(x, codes, dots, 0 4 1 5 2 6 3 7);
                    finish!(x, header, scales, 0, dots, sums);
                }
                weights = weights.add(shape.block_bytes());
                x = x.add(STRIDE * BLOCK_WORDS);
            }
        }
        (pace.lines, pace.stream, pace.later) = (lines, stream, later);
        for (results, sums) in results.iter_mut().zip(sums) {
            for (vector, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(results.as_mut_ptr().add(vector * 16), sum);
            }
        }
    }
}

/// Fetches a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn fetch<F: Layout>(block: *const u8) {
    for line in 0..F::SHAPE.block_bytes() / 64 {
        _mm_prefetch::<_MM_HINT_T1>(block.wrapping_add(line * 64).cast());
    }
}

/// The codes of 4 inputs x 16 outputs.
///
/// # Safety
/// `codes` points to the codes of a vector of a block; `GROUP < 8`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn unpack<F: Layout, const GROUP: usize>(codes: *const u8) -> __m512i {
    // SAFETY: offsets within `codes_bytes` of the format.
    unsafe {
        if F::SHAPE.bits == 8 {
            return _mm512_load_si512(codes.add(GROUP * 64).cast());
        }
        let both = _mm512_load_si512(codes.add(GROUP % 4 * 64).cast());
        let low = if GROUP < 4 { both } else { _mm512_srli_epi16::<4>(both) };
        let low = _mm512_and_si512(low, _mm512_set1_epi8(15));
        match F::SHAPE.bits {
            5 => {
                let fifth = codes.add(256 + GROUP * 8).cast::<u64>().read();
                _mm512_mask_add_epi8(low, fifth, low, _mm512_set1_epi8(16))
            }
            6 => {
                let pairs = _mm512_load_si512(codes.add(256 + GROUP / 4 * 64).cast());
                let pairs = match GROUP % 4 {
                    0 => _mm512_slli_epi16::<4>(pairs),
                    1 => _mm512_slli_epi16::<2>(pairs),
                    2 => pairs,
                    _ => _mm512_srli_epi16::<2>(pairs),
                };
                _mm512_or_si512(low, _mm512_and_si512(pairs, _mm512_set1_epi8(0x30)))
            }
            _ => low,
        }
    }
}

/// The scales of a vector of a block (Q6_K: half a block).
///
/// # Safety
/// `header` and `scales` point to those of a block; `vector < 2`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn scale_of<F: Layout, const HALF: usize>(
    header: *const u8,
    scales: *const u8,
    vector: usize,
) -> __m512 {
    let shape = F::SHAPE;
    // SAFETY: f16 of both vectors begin the header or the scales; in the K formats bytes of both begin the scales.
    unsafe {
        if shape.shared == 1 {
            return _mm512_cvtph_ps(_mm256_load_si256(scales.add(vector * 32).cast()));
        }
        let scale = _mm512_cvtph_ps(_mm256_load_si256(header.add(vector * 32).cast()));
        let sub = _mm_load_si128(scales.add(HALF * PANEL + vector * 16).cast());
        let sub = if shape.minima { _mm512_cvtepu8_epi32(sub) } else { _mm512_cvtepi8_epi32(sub) };
        _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sub))
    }
}

/// What a format with minima adds for each unit of input.
///
/// # Safety
/// As [`scale_of`], of a format with minima.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn least_of<F: Layout>(header: *const u8, scales: *const u8, vector: usize) -> __m512 {
    // SAFETY: minima of 32 outputs follow the scales of 32, in the header or in the scales.
    unsafe {
        if F::SHAPE.shared == 1 {
            return _mm512_cvtph_ps(_mm256_load_si256(scales.add(2 * PANEL + vector * 32).cast()));
        }
        let least = _mm512_cvtph_ps(_mm256_load_si256(header.add(2 * PANEL + vector * 32).cast()));
        let sub = _mm_load_si128(scales.add(PANEL + vector * 16).cast());
        _mm512_mul_ps(_mm512_xor_ps(least, _mm512_set1_ps(-0.0)), _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sub)))
    }
}
