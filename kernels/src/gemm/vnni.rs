//! Integer formats with AVX-512 VNNI. A tile is up to 6 rows x 32 outputs or 12 rows x 16: an i32 and an f32 register for
//! each row and 16 outputs (24), the codes of 4 inputs x 16 outputs, and a row's 4 inputs broadcast from memory.
//!
//! Per block, row and 16 outputs there are 8 VPDPBUSD, and 2 or 3 multiplications on the same two pipes: at most 80 % or
//! 73 % of the machine's peak. Not here: the order of the arithmetic, which is written down in `gemm.rs`.

use std::arch::x86_64::*;

use super::Results;
use crate::packed::{Layout, PANEL};
use crate::quantised_rows::{BLOCK_WORDS, PANEL_ROWS, Words};

/// An integer format: `weights` is a panel, `x` the words of a panel of `rows` rows.
///
/// # Safety
/// The machine has AVX-512 F, BW, VL, DQ and VNNI.
///
/// # Panics
/// If the lengths do not belong together.
pub(super) unsafe fn integers<F: Layout>(weights: &[u8], x: &[u32], rows: usize, results: &mut Results) {
    assert!((1..=PANEL_ROWS).contains(&rows));
    let blocks = x.len() / (rows * BLOCK_WORDS);
    assert!(x.len() == blocks * rows * BLOCK_WORDS && blocks.is_multiple_of(F::SHAPE.shared));
    assert!(weights.len() == F::SHAPE.block_at(blocks) - F::SHAPE.header_bytes());
    macro_rules! tiles {
        ($($both:literal)*, $($one:literal)*) => {
            match rows {
                $($both => tile::<F, $both, 2>(weights.as_ptr(), x.as_ptr(), blocks, 0, results),)*
                $($one => {
                    tile::<F, $one, 1>(weights.as_ptr(), x.as_ptr(), blocks, 0, results);
                    tile::<F, $one, 1>(weights.as_ptr(), x.as_ptr(), blocks, 1, results);
                })*
                _ => {}
            }
        };
    }
    // SAFETY: the features are the caller's promise; the lengths were asserted above and fit the number of rows.
    unsafe { tiles!(1 2 3 4 5 6, 7 8 9 10 11 12) }
}

/// The vectors of 16 outputs from `first` on.
///
/// # Safety
/// The machine has the features; `weights` has a panel of `blocks` blocks and `x` the words of ROWS rows of them;
/// `first + VECTORS <= 2`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<F: Layout, const ROWS: usize, const VECTORS: usize>(
    mut weights: *const u8,
    mut x: *const u32,
    blocks: usize,
    first: usize,
    results: &mut Results,
) {
    let shape = F::SHAPE;
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
    // SAFETY: `weights` and `x` walk over `blocks` blocks and their headers, and each offset is within one of them: see
    // `packed/layout.rs` and `quantised_rows.rs`. A row of results has 32 values.
    unsafe {
        for _ in 0..blocks / shape.shared {
            let header = weights;
            weights = weights.add(shape.header_bytes());
            for _ in 0..shape.shared {
                let scales = weights.add(2 * shape.codes_bytes());
                let codes: [*const u8; VECTORS] =
                    std::array::from_fn(|vector| weights.add((first + vector) * shape.codes_bytes()));
                if shape.bits == 6 {
                    for half in 0..2 {
                        let mut dots = start::<F, ROWS, VECTORS>(x, half);
                        for group in half * 4..half * 4 + 4 {
                            step::<F, ROWS, VECTORS>(&codes, group, x, &mut dots);
                        }
                        finish::<F, ROWS, VECTORS>(header, scales, first, half, x, &dots, &mut sums);
                    }
                } else {
                    let mut dots = start::<F, ROWS, VECTORS>(x, 0);
                    for group in 0..4 {
                        step::<F, ROWS, VECTORS>(&codes, group, x, &mut dots);
                        step::<F, ROWS, VECTORS>(&codes, group + 4, x, &mut dots);
                    }
                    finish::<F, ROWS, VECTORS>(header, scales, first, 0, x, &dots, &mut sums);
                }
                weights = weights.add(shape.block_bytes());
                x = x.add(ROWS * BLOCK_WORDS);
            }
        }
        for (results, sums) in results.iter_mut().zip(sums) {
            for (vector, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(results.as_mut_ptr().add((first + vector) * 16), sum);
            }
        }
    }
}

/// What the offset of the codes adds, taken away beforehand.
///
/// # Safety
/// `x` has the words of a block of ROWS rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn start<F: Layout, const ROWS: usize, const VECTORS: usize>(
    x: *const u32,
    half: usize,
) -> [[__m512i; VECTORS]; ROWS] {
    std::array::from_fn(|row| {
        // SAFETY: the word is in the block.
        let word = |word: usize| unsafe { _mm512_set1_epi32(x.add(word * ROWS + row).read() as i32) };
        let sum = match F::SHAPE.offset {
            0 => _mm512_setzero_si512(),
            8 => word(Words::MINUS_8),
            16 => _mm512_slli_epi32::<1>(word(Words::MINUS_8)),
            32 => word(Words::MINUS_32[half]),
            _ => word(Words::MINUS_128),
        };
        [sum; VECTORS]
    })
}

/// 4 inputs.
///
/// # Safety
/// `codes` point to the codes of a block and `x` to the words of a block of ROWS rows; `group < 8`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn step<F: Layout, const ROWS: usize, const VECTORS: usize>(
    codes: &[*const u8; VECTORS],
    group: usize,
    x: *const u32,
    dots: &mut [[__m512i; VECTORS]; ROWS],
) {
    // SAFETY: `group` is one of the block's 8.
    let codes: [__m512i; VECTORS] = std::array::from_fn(|vector| unsafe { unpack::<F>(codes[vector], group) });
    for (row, dots) in dots.iter_mut().enumerate() {
        // SAFETY: the word is in the block.
        let x = unsafe { _mm512_set1_epi32(x.add((Words::CODES + group) * ROWS + row).read() as i32) };
        for (dot, codes) in dots.iter_mut().zip(codes) {
            *dot = _mm512_dpbusd_epi32(*dot, codes, x);
        }
    }
}

/// The codes of 4 inputs x 16 outputs.
///
/// # Safety
/// `codes` points to the codes of a vector of a block; `group < 8`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn unpack<F: Layout>(codes: *const u8, group: usize) -> __m512i {
    // SAFETY: offsets within `codes_bytes` of the format.
    unsafe {
        if F::SHAPE.bits == 8 {
            return _mm512_load_si512(codes.add(group * 64).cast());
        }
        let both = _mm512_load_si512(codes.add(group % 4 * 64).cast());
        let low = if group < 4 { both } else { _mm512_srli_epi16::<4>(both) };
        let low = _mm512_and_si512(low, _mm512_set1_epi8(15));
        match F::SHAPE.bits {
            5 => {
                let fifth = codes.add(256 + group * 8).cast::<u64>().read();
                _mm512_mask_add_epi8(low, fifth, low, _mm512_set1_epi8(16))
            }
            6 => {
                let pairs = _mm512_load_si512(codes.add(256 + group / 4 * 64).cast());
                let pairs = match group % 4 {
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

/// Scales the sums of a block (Q6_K: half a block) and adds them.
///
/// # Safety
/// `header` and `scales` point to those of a block, `x` to the words of a block of ROWS rows; `first + VECTORS <= 2`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn finish<F: Layout, const ROWS: usize, const VECTORS: usize>(
    header: *const u8,
    scales: *const u8,
    first: usize,
    half: usize,
    x: *const u32,
    dots: &[[__m512i; VECTORS]; ROWS],
    sums: &mut [[__m512; VECTORS]; ROWS],
) {
    let shape = F::SHAPE;
    // SAFETY: within the header or the scales, by their layout.
    let halves = |at: *const u8, vector: usize| unsafe {
        _mm512_cvtph_ps(_mm256_load_si256(at.add((first + vector) * 32).cast()))
    };
    // SAFETY: within the scales, by their layout.
    let bytes = |at: usize, vector: usize| unsafe { _mm_load_si128(scales.add(at + (first + vector) * 16).cast()) };
    // SAFETY: within the header or the scales, by their layout: minima follow the 32 scales.
    let scale_and_least: [(__m512, __m512); VECTORS] = std::array::from_fn(|vector| unsafe {
        match (shape.shared, shape.minima) {
            (1, false) => (halves(scales, vector), _mm512_setzero_ps()),
            (1, true) => (halves(scales, vector), halves(scales.add(2 * PANEL), vector)),
            (_, false) => {
                let sub = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(half * PANEL, vector)));
                (_mm512_mul_ps(halves(header, vector), sub), _mm512_setzero_ps())
            }
            (_, true) => {
                let sub = |at: usize| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(at, vector)));
                let least = _mm512_xor_ps(halves(header.add(2 * PANEL), vector), _mm512_set1_ps(-0.0));
                (_mm512_mul_ps(halves(header, vector), sub(0)), _mm512_mul_ps(least, sub(PANEL)))
            }
        }
    });
    for row in 0..ROWS {
        // SAFETY: the word is in the block.
        let word = |word: usize| unsafe { _mm512_set1_ps(f32::from_bits(x.add(word * ROWS + row).read())) };
        for (vector, (scale, least)) in scale_and_least.iter().enumerate() {
            let scale = _mm512_mul_ps(*scale, word(Words::SCALE));
            let mut sum = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dots[row][vector]), sums[row][vector]);
            if shape.minima {
                sum = _mm512_fmadd_ps(*least, word(Words::SCALED_SUM), sum);
            }
            sums[row][vector] = sum;
        }
    }
}
