//! A step of the online softmax with AVX-512's bf16 dot products. Same result, to the bit, as `attention_lanes` (but for
//! numbers too small to be normal). Up to 6 rows by 4 registers of sums share the loads of keys and of values.

#![expect(
    clippy::needless_range_loop,
    reason = "tiles of registers: each index is of several arrays or of a row of one"
)]

use std::arch::x86_64::*;

use crate::attention_tile::{Between, EXP2, QueryRows, Scales, State, TILE_GROUPS, Tile};
use crate::paged::{GROUP_POSITIONS, Line};

/// Rows that share loads.
const ROWS: usize = 6;
/// Twice one, in bf16.
const ONES: i32 = 0x3f80_3f80;

/// What lies between the steps of a part of the rows.
struct Part {
    rows: [Between; ROWS],
    /// What the old state is multiplied by.
    alphas: [f32; ROWS],
}

/// Takes a tile into the state of the rows.
///
/// # Safety
/// The machine has what [`crate::isa::Level::Avx512Vnni`] promises.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
pub(crate) unsafe fn tile_bf16(rows: QueryRows<'_>, tile: &Tile<'_>, state: &mut State<'_>) {
    let (pairs, count) = (rows.head_dim / 2, rows.count);
    assert!(rows.head_dim.is_multiple_of(16) && rows.pairs.len() >= count * pairs);
    assert!(state.sums.len() >= count * 16 && state.maxima.len() >= count);
    assert!(state.outs.len() >= count * rows.head_dim && (1..=TILE_GROUPS).contains(&tile.groups));
    for group in 0..tile.groups {
        assert!(tile.keys[group].len() >= pairs && tile.values[group].len() >= pairs);
    }
    let mut part = Part { rows: [[Line::ZERO; _]; ROWS], alphas: [0.0; ROWS] };
    let mut first = 0;
    macro_rules! parts {
        ($($rows:literal)*) => {
            // SAFETY: the lengths that `one_part` asks for were asserted above, and `first + R <= count`.
            match (count - first).min(ROWS) { $($rows => unsafe {
                one_part::<$rows>(rows, first, tile, state, &mut part)
            },)* _ => {} }
        };
    }
    while first < count {
        parts!(1 2 3 4 5 6);
        first += ROWS;
    }
}

/// # Safety
/// As [`tile_bf16`]; rows `first .. first + R` exist; queries, state, keys and values have the lengths that it asserts.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
unsafe fn one_part<const R: usize>(
    rows: QueryRows<'_>,
    first: usize,
    tile: &Tile<'_>,
    state: &mut State<'_>,
    part: &mut Part,
) {
    for at in (0..tile.groups).step_by(4) {
        macro_rules! widths {
            ($($groups:literal)*) => {
                // SAFETY: the caller's promise; `at + G` is at most the number of groups.
                match (tile.groups - at).min(4) { $($groups => unsafe {
                    add_scores::<R, $groups>(rows, first, tile, at, part)
                },)* _ => {} }
            };
        }
        widths!(1 2 3 4);
    }
    let is_special = is_special(rows, first, tile);
    for r in 0..R {
        // SAFETY: the caller's promise.
        part.alphas[r] = unsafe { weigh(rows, first + r, tile, is_special, state, &mut part.rows[r]) };
    }
    let vectors = rows.head_dim / 16;
    for at in (0..vectors).step_by(4) {
        macro_rules! vectors {
            ($($width:literal)*) => {
                // SAFETY: the caller's promise; `at + D <= vectors`.
                match (vectors - at).min(4) { $($width => unsafe {
                    add_values::<R, $width>(rows.head_dim, first, at, tile, part, state)
                },)* _ => {} }
            };
        }
        vectors!(1 2 3 4);
    }
}

/// Scores of R rows with G groups, from group `at` on.
///
/// # Safety
/// As [`one_part`], and the tile has `at + G` groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
unsafe fn add_scores<const R: usize, const G: usize>(
    rows: QueryRows<'_>,
    first: usize,
    tile: &Tile<'_>,
    at: usize,
    part: &mut Part,
) {
    let count = rows.head_dim / 2;
    let queries = rows.pairs[first * count..][..R * count].as_ptr();
    let mut sums = [[_mm512_setzero_ps(); G]; R];
    let mut keys = [std::ptr::null::<Line>(); G];
    for g in 0..G {
        keys[g] = tile.keys[at + g].as_ptr();
    }
    for pair in 0..count {
        let mut key = [_mm512_setzero_si512(); G];
        for g in 0..G {
            // SAFETY: a group's keys have `count` lines.
            key[g] = unsafe { _mm512_load_si512(keys[g].add(pair).cast()) };
        }
        for r in 0..R {
            // SAFETY: R rows of `count` words each.
            let query = unsafe { *queries.add(r * count + pair) };
            let query = pairs(_mm512_set1_epi32(query.cast_signed()));
            for g in 0..G {
                sums[r][g] = _mm512_dpbf16_ps(sums[r][g], pairs(key[g]), query);
            }
        }
    }
    for r in 0..R {
        for g in 0..G {
            // SAFETY: a line is 64 bytes and aligned to them.
            unsafe { _mm512_store_ps(part.rows[r][at + g].0.as_mut_ptr().cast(), sums[r][g]) };
        }
    }
}

/// Whether one of the rows from `first` on does not see every position of a tile, or something is scaled.
#[inline]
pub(crate) fn is_special(rows: QueryRows<'_>, first: usize, tile: &Tile<'_>) -> bool {
    // All rows see all groups but the last whole, and the first row sees the least of that.
    tile.scales.is_some() || rows.visible(first, tile.first_position) < tile.groups * GROUP_POSITIONS
}

/// A row's new maximum, sums and probabilities; returned is what its old state is to be multiplied by.
///
/// # Safety
/// The machine has what [`crate::isa::Level::Avx512Vnni`] promises; the row exists, and its state has the lengths that
/// [`tile_bf16`] asserts.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
pub(crate) unsafe fn weigh(
    rows: QueryRows<'_>,
    row: usize,
    tile: &Tile<'_>,
    is_special: bool,
    state: &mut State<'_>,
    between: &mut Between,
) -> f32 {
    match (is_special, tile.scales) {
        // SAFETY: the caller's promise.
        (false, None) => unsafe { weigh_row::<false>(rows, row, tile, None, state, between) },
        // SAFETY: as above.
        (_, scales) => unsafe { weigh_row::<true>(rows, row, tile, scales, state, between) },
    }
}

/// [`weigh`]; `SPECIAL` is false where the row sees every position and nothing is scaled.
///
/// # Safety
/// As [`weigh`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
unsafe fn weigh_row<const SPECIAL: bool>(
    rows: QueryRows<'_>,
    row: usize,
    tile: &Tile<'_>,
    scales: Option<&Scales>,
    state: &mut State<'_>,
    between: &mut Between,
) -> f32 {
    let factor = _mm512_set1_ps(rows.factor);
    let (scores, probabilities) = between.split_at_mut(TILE_GROUPS);
    let visible = if SPECIAL { rows.visible(row, tile.first_position) } else { 0 };
    let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
    for g in 0..tile.groups {
        // SAFETY: a line is 64 bytes and aligned to them.
        let mut score = unsafe { _mm512_load_ps(scores[g].0.as_ptr().cast()) };
        if SPECIAL {
            if let Some(scales) = scales {
                // SAFETY: 16 f32.
                score = _mm512_mul_ps(score, unsafe { _mm512_loadu_ps(scales.keys[g].as_ptr()) });
            }
            score = _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), lanes(visible, g), score);
            // SAFETY: as where it was read.
            unsafe { _mm512_store_ps(scores[g].0.as_mut_ptr().cast(), score) };
        }
        // The second operand is what remains where one is not a number.
        largest = _mm512_max_ps(score, largest);
    }
    let old = state.maxima[row];
    let scaled = _mm512_reduce_max_ps(largest) * rows.factor;
    let maximum = if scaled > old { scaled } else { old };
    state.maxima[row] = maximum;
    let alpha = exp2(_mm512_set1_ps(old - maximum));
    // SAFETY: the row's 16 sums.
    let sums_at = unsafe { state.sums.as_mut_ptr().add(row * 16) };
    // SAFETY: as above.
    let mut sums = _mm512_mul_ps(unsafe { _mm512_loadu_ps(sums_at) }, alpha);
    let maximum = _mm512_set1_ps(maximum);
    for g in (0..tile.groups).step_by(2) {
        let mut plain = [_mm256_setzero_si256(); 2];
        for half in 0..2.min(tile.groups - g) {
            // SAFETY: a line is 64 bytes and aligned to them.
            let score = unsafe { _mm512_load_ps(scores[g + half].0.as_ptr().cast()) };
            let mut probability = exp2(_mm512_fmsub_ps(score, factor, maximum));
            if SPECIAL {
                probability = _mm512_maskz_mov_ps(lanes(visible, g + half), probability);
            }
            plain[half] = bits(_mm512_cvtneps_pbh(probability));
            let mut scaled = plain[half];
            if let Some(scales) = scales.filter(|_| SPECIAL) {
                // SAFETY: 16 f32.
                let scale = unsafe { _mm512_loadu_ps(scales.values[g + half].as_ptr()) };
                scaled = bits(_mm512_cvtneps_pbh(_mm512_mul_ps(probability, scale)));
            }
            let words = &mut probabilities[g / 2].0[half * 8..][..8];
            // SAFETY: half of a line.
            unsafe { _mm256_store_si256(words.as_mut_ptr().cast(), scaled) };
        }
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(plain[0]), plain[1]);
        sums = _mm512_dpbf16_ps(sums, pairs(both), pairs(_mm512_set1_epi32(ONES)));
    }
    // SAFETY: as where they were read.
    unsafe { _mm512_storeu_ps(sums_at, sums) };
    _mm512_cvtss_f32(alpha)
}

/// The lanes of group g among the tile's first `visible` positions.
fn lanes(visible: usize, g: usize) -> u16 {
    let lanes = visible.saturating_sub(g * GROUP_POSITIONS).min(GROUP_POSITIONS);
    ((1u32 << lanes) - 1) as u16
}

/// outs = outs · alpha + Σ probability · value, for D vectors of R rows.
///
/// # Safety
/// As [`one_part`], and `vector + D` is at most head_dim / 16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
unsafe fn add_values<const R: usize, const D: usize>(
    head_dim: usize,
    first: usize,
    vector: usize,
    tile: &Tile<'_>,
    part: &Part,
    state: &mut State<'_>,
) {
    let outs = state.outs.as_mut_ptr();
    let at = |r: usize, d: usize| (first + r) * head_dim + (vector + d) * 16;
    let mut sums = [[_mm512_setzero_ps(); D]; R];
    for r in 0..R {
        for d in 0..D {
            // SAFETY: 16 of the row's head_dim values.
            let old = unsafe { _mm512_loadu_ps(outs.add(at(r, d))) };
            sums[r][d] = _mm512_mul_ps(old, _mm512_set1_ps(part.alphas[r]));
        }
    }
    for g in 0..tile.groups {
        let values = tile.values[g][vector..].as_ptr();
        for pair in 0..GROUP_POSITIONS / 2 {
            let mut value = [_mm512_setzero_si512(); D];
            for d in 0..D {
                // SAFETY: a group's values have 8 · head_dim / 16 lines, and `vector + D` is at most head_dim / 16.
                value[d] = unsafe { _mm512_load_si512(values.add(pair * (head_dim / 16) + d).cast()) };
            }
            for r in 0..R {
                let probability = part.rows[r][TILE_GROUPS + g / 2].0[g % 2 * (GROUP_POSITIONS / 2) + pair];
                let probability = pairs(_mm512_set1_epi32(probability.cast_signed()));
                for d in 0..D {
                    sums[r][d] = _mm512_dpbf16_ps(sums[r][d], pairs(value[d]), probability);
                }
            }
        }
    }
    for r in 0..R {
        for d in 0..D {
            // SAFETY: as where they were read.
            unsafe { _mm512_storeu_ps(outs.add(at(r, d)), sums[r][d]) };
        }
    }
}

/// 2^x as `attention_tile::exp2`: floor, what is left of it, a polynomial of that, and the power of two.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2(x: __m512) -> __m512 {
    const DOWN: i32 = 0x09; // to whole numbers, towards -∞, without exceptions
    let f = _mm512_reduce_ps::<DOWN>(x);
    let mut sum = _mm512_set1_ps(EXP2[4]);
    for coefficient in [EXP2[3], EXP2[2], EXP2[1], EXP2[0], 1.0] {
        sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(coefficient));
    }
    _mm512_scalef_ps(sum, x)
}

/// 32 bf16 in a register.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: two names of the same 64 bytes.
    unsafe { std::mem::transmute(bits) }
}

/// The bits of 16 bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bits(values: __m256bh) -> __m256i {
    // SAFETY: two names of the same 32 bytes.
    unsafe { std::mem::transmute(values) }
}

/// Pairs of bf16, as many as fit: numbers too small to be normal are zero.
///
/// # Safety
/// The machine has what [`crate::isa::Level::Avx512Vnni`] promises.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
pub(crate) unsafe fn round_pairs(values: &[f32], to: &mut [u32]) {
    for (values, to) in values.as_chunks::<16>().0.iter().zip(to.as_chunks_mut::<8>().0) {
        // SAFETY: 16 values become 8 words.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), bits(_mm512_cvtneps_pbh(_mm512_loadu_ps(values.as_ptr()))))
        };
    }
}
