//! A x of some rows for one panel of lanes, x in int8 as [`QuantisedRows`](crate::QuantisedRows) has it. For each block of 32
//! inputs, ascending: sum = fma(scale of A · scale of x, Σ codes, sum). The sums of codes are of integers and exact, so that
//! every width, number of rows and instruction set gives the same bits.
//!
//! And what is made of the sums: times the term's and the run's factor, rounded to int8 with a scale for each 32 ranks.

use super::LoraRun;
use super::pack::{Codes, SCALE_BYTES, VECTOR, VECTOR_BYTES, ZERO};
use crate::Isa;
use crate::isa::{Level, multiversion};
use crate::quantised::BLOCK_VALUES;
use crate::quantised_rows::{BLOCK_WORDS, PANEL_ROWS, Words, quantise_block};

/// Some rows of a panel of activations.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    /// `[block][word][row of panel]`
    pub(super) words: &'a [u32],
    /// Rows of the panel.
    pub(super) panel_rows: usize,
    /// The first one that is meant.
    pub(super) first: usize,
    /// How many are.
    pub(super) rows: usize,
}

impl Inputs<'_> {
    fn blocks(&self) -> usize {
        self.words.len() / (self.panel_rows * BLOCK_WORDS)
    }
}

/// `sums[row][lane]` = (A x)[lane] for the `lanes` lanes of a panel; rows of `sums` are `stride` apart.
pub(super) fn shrink(isa: Isa, (a, lanes): (Codes<'_>, usize), x: Inputs<'_>, sums: &mut [f32], stride: usize) {
    let blocks = x.blocks();
    assert!(matches!(lanes, 4 | 8 | 16) && lanes <= stride && x.words.len() == blocks * x.panel_rows * BLOCK_WORDS);
    assert!(a.codes.len() == blocks * BLOCK_VALUES * lanes);
    assert!(a.scales.len() >= (blocks.saturating_sub(1) * lanes + VECTOR) * SCALE_BYTES);
    assert!((1..=PANEL_ROWS).contains(&x.rows) && x.first + x.rows <= x.panel_rows);
    assert!(sums.len() >= (x.rows - 1) * stride + lanes);
    match isa.level() {
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `vector` enables; the lengths
        // were asserted above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { vector::shrink((a, lanes), x, sums, stride) },
        _ => plain(isa, a, lanes, x, sums, stride),
    }
}

multiversion! {
    fn plain(a: Codes<'_>, lanes: usize, x: Inputs<'_>, sums: &mut [f32], stride: usize) {
        for row in 0..x.rows {
            let mut found = [0.0f32; VECTOR];
            let blocks = a.codes.chunks_exact(BLOCK_VALUES * lanes).zip(a.scales.chunks(lanes * SCALE_BYTES));
            for ((codes, scales), words) in blocks.zip(x.words.chunks_exact(x.panel_rows * BLOCK_WORDS)) {
                let word = |word: usize| words[word * x.panel_rows + x.first + row];
                let mut dots = [0i32; VECTOR];
                for (index, codes) in codes.chunks_exact(lanes * 4).enumerate() {
                    let x = word(Words::CODES + index).to_le_bytes();
                    for (dot, codes) in dots.iter_mut().zip(codes.as_chunks::<4>().0) {
                        for (code, x) in codes.iter().zip(x) {
                            *dot += (i32::from(*code) - i32::from(ZERO)) * i32::from(x.cast_signed());
                        }
                    }
                }
                let x_scale = f32::from_bits(word(Words::SCALE));
                for ((found, dot), scale) in found.iter_mut().zip(dots).zip(scales.as_chunks::<SCALE_BYTES>().0) {
                    let scale = f32::from_bits(u32::from(u16::from_le_bytes(*scale)) << 16);
                    *found = (scale * x_scale).mul_add(dot as f32, *found);
                }
            }
            sums[row * stride..][..lanes].copy_from_slice(&found[..lanes]);
        }
    }
}

/// What [`shrink`] gave for all lanes of a run's rows, in int8: see `Term::first_word`.
pub(super) fn round(isa: Isa, run: &LoraRun<'_>, sums: &[f32], words: &mut [u32]) {
    let layout = &*run.group.layout;
    for (sums, words) in sums.chunks_exact(layout.lanes).zip(words.chunks_exact_mut(layout.row_words)) {
        for term in layout.terms.iter().filter(|term| run.enabled >> term.slot & 1 == 1) {
            let lanes = term.first_lane..term.first_lane + term.rank;
            round_term(isa, &sums[lanes], term.scale * run.weight, &mut words[term.first_word..]);
        }
    }
}

fn round_term(isa: Isa, sums: &[f32], factor: f32, mut words: &mut [u32]) {
    for sums in sums.chunks(BLOCK_VALUES) {
        let (block, rest) = words.split_at_mut(2 + sums.len().div_ceil(4));
        match isa.level() {
            // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `vector` enables.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Vnni => unsafe { vector::round_block(sums, factor, block) },
            _ => round_block(isa, sums, factor, block),
        }
        words = rest;
    }
}

multiversion! {
    fn round_block(sums: &[f32], factor: f32, words: &mut [u32]) {
        let mut values = [0.0f32; BLOCK_VALUES];
        for (value, sum) in values.iter_mut().zip(sums) {
            *value = sum * factor;
        }
        let block = quantise_block(&values);
        words[0] = block.scale.to_bits();
        words[1] = (-128 * (block.sums[0] + block.sums[1])) as u32;
        for (word, codes) in words[2..].iter_mut().zip(block.codes.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(codes.map(|code| code as u8));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "with plain indices the compiler keeps the sums in registers")]
mod vector {
    use std::arch::x86_64::*;

    use crate::quantised_rows::codes;

    use super::{BLOCK_VALUES, BLOCK_WORDS, Codes, Inputs, SCALE_BYTES, VECTOR_BYTES, Words};

    /// How far ahead of its use a panel is fetched, in bytes: about what memory delivers within its latency.
    const AHEAD: usize = 4096;

    /// # Safety
    /// The machine has the features, and the lengths are as `super::shrink` asserts.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn shrink((a, lanes): (Codes<'_>, usize), x: Inputs<'_>, sums: &mut [f32], stride: usize) {
        macro_rules! for_rows {
            ($lanes:literal: $($rows:literal)*) => {
                match x.rows {
                    // SAFETY: the caller's promise.
                    $($rows if x.panel_rows == $rows => unsafe { rows::<$lanes, $rows, true>(a, x, sums, stride) },)*
                    // SAFETY: the caller's promise.
                    $($rows => unsafe { rows::<$lanes, $rows, false>(a, x, sums, stride) },)*
                    _ => {}
                }
            };
        }
        match lanes {
            16 => for_rows!(16: 1 2 3 4 5 6 7 8 9 10 11 12),
            8 => for_rows!(8: 1 2 3 4 5 6 7 8 9 10 11 12),
            _ => for_rows!(4: 1 2 3 4 5 6 7 8 9 10 11 12),
        }
    }

    /// # Safety
    /// As [`shrink`], for that many lanes and rows: a whole panel's, if WHOLE.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn rows<const LANES: usize, const ROWS: usize, const WHOLE: bool>(
        a: Codes<'_>,
        x: Inputs<'_>,
        out: &mut [f32],
        stride: usize,
    ) {
        let panel_rows = if WHOLE { ROWS } else { x.panel_rows };
        let mut sums = [_mm512_setzero_ps(); ROWS];
        let (mut codes, mut scales) = (a.codes.as_ptr(), a.scales.as_ptr());
        let mut words = x.words.as_ptr().wrapping_add(x.first);
        for _ in 0..x.blocks() {
            // SAFETY: `words` walks over the blocks of the panel from the first row that is meant, `codes` and `scales` over as
            // many blocks; each offset is within one of them.
            unsafe {
                let word = |word: usize, row: usize| words.add(word * panel_rows + row).cast::<i32>().read();
                let mut dots = [_mm512_setzero_si512(); ROWS];
                if LANES == 16 {
                    for row in 0..ROWS {
                        dots[row] = _mm512_set1_epi32(word(Words::MINUS_128, row));
                    }
                }
                for vector in 0..LANES / 2 {
                    _mm_prefetch::<_MM_HINT_T1>(codes.wrapping_add(vector * VECTOR_BYTES + AHEAD).cast());
                    let values = _mm512_load_si512(codes.add(vector * VECTOR_BYTES).cast());
                    for row in 0..ROWS {
                        let x = match LANES {
                            16 => _mm512_set1_epi32(word(Words::CODES + vector, row)),
                            8 => {
                                let [first, second] = [0, 1].map(|index| word(Words::CODES + 2 * vector + index, row));
                                _mm512_mask_set1_epi32(_mm512_set1_epi32(first), 0xff00, second)
                            }
                            _ => {
                                let [first, second, third, fourth] =
                                    [0, 1, 2, 3].map(|index| word(Words::CODES + 4 * vector + index, row));
                                let low = _mm512_mask_set1_epi32(_mm512_set1_epi32(first), 0xf0, second);
                                let low = _mm512_mask_set1_epi32(low, 0xf00, third);
                                _mm512_mask_set1_epi32(low, 0xf000, fourth)
                            }
                        };
                        dots[row] = _mm512_dpbusd_epi32(dots[row], values, x);
                    }
                }
                if LANES < 16 {
                    for row in 0..ROWS {
                        let minus = _mm512_set1_epi32(word(Words::MINUS_128, row));
                        let mut dot = dots[row];
                        dot = _mm512_add_epi32(dot, _mm512_shuffle_i64x2::<0b0100_1110>(dot, dot));
                        if LANES == 4 {
                            dot = _mm512_add_epi32(dot, _mm512_shuffle_i64x2::<0b1011_0001>(dot, dot));
                        }
                        dots[row] = _mm512_add_epi32(dot, minus);
                    }
                }
                let scale = widened(scales);
                for row in 0..ROWS {
                    let x_scale = _mm512_castsi512_ps(_mm512_set1_epi32(word(Words::SCALE, row)));
                    let both = _mm512_mul_ps(scale, x_scale);
                    sums[row] = _mm512_fmadd_ps(both, _mm512_cvtepi32_ps(dots[row]), sums[row]);
                }
            }
            codes = codes.wrapping_add(BLOCK_VALUES * LANES);
            scales = scales.wrapping_add(LANES * SCALE_BYTES);
            words = words.wrapping_add(panel_rows * BLOCK_WORDS);
        }
        for (row, sum) in sums.into_iter().enumerate() {
            let out = &mut out[row * stride..][..LANES];
            // SAFETY: the mask leaves LANES values, which `out` has.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), u16::MAX >> (16 - LANES), sum) };
        }
    }

    /// As `super::round_block`; at most 32 sums, and the words for them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub(super) fn round_block(sums: &[f32], factor: f32, words: &mut [u32]) {
        let count = sums.len();
        assert!((1..=BLOCK_VALUES).contains(&count) && words.len() == 2 + count.div_ceil(4));
        let mask = u32::MAX >> (BLOCK_VALUES - count);
        let factor = _mm512_set1_ps(factor);
        let halves = [0, 16].map(|at| {
            // SAFETY: the mask leaves what the slice has.
            let sums = unsafe { _mm512_maskz_loadu_ps((mask >> at) as u16, sums.as_ptr().wrapping_add(at)) };
            _mm512_mul_ps(sums, factor)
        });
        let (scale, [first, last]) = codes(halves);
        let all = _mm256_set_m128i(last, first);
        let sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), all);
        words[0] = scale.to_bits();
        words[1] = (-128 * _mm512_reduce_add_epi32(_mm512_zextsi256_si512(sums))) as u32;
        // SAFETY: the mask leaves the words behind the first two.
        unsafe { _mm256_mask_storeu_epi32(words.as_mut_ptr().add(2).cast(), u8::MAX >> (10 - words.len()), all) };
    }

    /// 16 numbers of bf16.
    ///
    /// # Safety
    /// `from` has 32 bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub(in super::super) unsafe fn widened(from: *const u8) -> __m512 {
        // SAFETY: the caller's promise.
        let halves = unsafe { _mm256_loadu_si256(from.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }
}
#[cfg(target_arch = "x86_64")]
pub(super) use vector::widened;
