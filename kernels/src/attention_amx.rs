//! A step of the online softmax with AMX's bf16 tiles, of rows in sixteens. What is rounded is what `attention_tile` says, sums
//! have another order and so other bits: a score is the sum over 32 values of a head after the other, what probabilities
//! add to an output is that of 16 positions after the other, and in each of these the tile unit sums what even and odd ones
//! give apart, from zero, and adds both together to what is there. It takes numbers too small to be normal for zero.
//!
//! Invariance: a row of a tile meets no other row; which groups a row meets is its position's alone.
//!
//! Not here: which rows are computed this way (the runner's business), and what is between scores and probabilities, which is
//! that of `attention_bf16`.

use std::arch::asm;
use std::arch::x86_64::*;

use crate::amx_tiles::{TileShape, TileShapes, Tiles};
use crate::attention_bf16::{is_special, weigh};
use crate::attention_tile::{AMX_ROWS as ROWS, AMX_ROWS_AT_ONCE, Between, QueryRows, State, TILE_GROUPS, Tile};
use crate::isa::Amx;
use crate::paged::{GROUP_POSITIONS, Line};

/// Pairs in a row of a tile.
const PAIRS: usize = 16;
/// The same of half a tile: pairs of a group's positions, and what may be left of a head.
const HALF_PAIRS: usize = GROUP_POSITIONS / 2;
const BETWEEN_BYTES: usize = size_of::<Between>();

/// Four tiles of sums, two of 16 pairs that are multiplied (rows and columns), and two of 8.
static SHAPES: TileShapes = {
    let [rows, columns] =
        [TileShape { rows: 16, row_bytes: 4 * HALF_PAIRS as u16 }, TileShape { rows: HALF_PAIRS as u8, row_bytes: 64 }];
    let full = TileShape::FULL;
    TileShapes::new([full, full, full, full, full, full, rows, columns])
};

/// Takes a tile into the state of the rows. Memory of queries and state is for a multiple of [`ROWS`] rows.
pub(crate) fn tile_amx(amx: Amx, rows: QueryRows<'_>, tile: &Tile<'_>, state: &mut State<'_>, between: &mut [Between]) {
    let (pairs, memory_rows) = (rows.head_dim / 2, rows.count.next_multiple_of(ROWS));
    assert!(rows.head_dim.is_multiple_of(16) && rows.pairs.len() >= memory_rows * pairs);
    assert!(state.sums.len() >= memory_rows * 16 && state.maxima.len() >= memory_rows);
    assert!(state.outs.len() >= memory_rows * rows.head_dim && (1..=TILE_GROUPS).contains(&tile.groups));
    assert!(between.len() >= AMX_ROWS_AT_ONCE.min(memory_rows));
    for group in 0..tile.groups {
        assert!(tile.keys[group].len() >= pairs && tile.values[group].len() >= pairs);
    }
    let _tiles = Tiles::new(amx, &SHAPES);
    for first in (0..rows.count).step_by(AMX_ROWS_AT_ONCE) {
        let count = AMX_ROWS_AT_ONCE.min(rows.count - first);
        let parts = || (0..count).step_by(ROWS);
        // SAFETY: tiles are set up, which `Amx` says the machine has, and with them what the vectors need. The lengths were
        // asserted above, `first` and each part are multiples of 16 below a number of rows that the memory is for.
        unsafe {
            for part in parts() {
                add_scores(rows, first + part, tile, &mut between[part..part + ROWS]);
            }
            for part in parts() {
                let is_special = is_special(rows, first + part, tile);
                let between = &mut between[part..count.min(part + ROWS)];
                for (row, between) in (first + part..).zip(between) {
                    let alpha = weigh(rows, row, tile, is_special, state, between);
                    scale(&mut state.outs[row * rows.head_dim..][..rows.head_dim], alpha);
                }
            }
            for part in parts() {
                add_values(rows.head_dim, first + part, tile, &between[part..part + ROWS], state);
            }
        }
    }
}

/// Scores of 16 rows from `first` on with all groups.
///
/// # Safety
/// As [`tile_amx`]: tiles are set up, lengths asserted.
unsafe fn add_scores(rows: QueryRows<'_>, first: usize, tile: &Tile<'_>, between: &mut [Between]) {
    let pairs = rows.head_dim / 2;
    let queries = rows.pairs[first * pairs..][..ROWS * pairs].as_ptr();
    let row_bytes = pairs * size_of::<u32>();
    let to: *mut Line = between[..ROWS].as_mut_ptr().cast();
    let mut at = 0;
    while at < tile.groups {
        let four = tile.groups - at >= 4;
        let keys = |group: usize| tile.keys[at + group].as_ptr();
        // SAFETY: 16 rows of `pairs` words, of which each step takes 16, or the 8 that are left; as many lines of keys in
        // each group. The sums go to the scores of these groups, in 16 rows.
        unsafe {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, preserves_flags));
            let mut pair = 0;
            while pair < pairs {
                let query = queries.add(pair);
                // Tiles 4 and 5 are of 16 pairs, 6 and 7 of 8.
                macro_rules! add {
                    ($queries:literal, $keys:literal: $($sum:literal = $group:literal)*) => {
                        asm!(
                            concat!("tileloadd ", $queries, ", [{query} + {row}]"),
                            query = in(reg) query, row = in(reg) row_bytes, options(nostack, preserves_flags, readonly),
                        );
                        $(asm!(
                            concat!("tileloadd ", $keys, ", [{key} + {line}]"),
                            concat!("tdpbf16ps ", $sum, ", ", $queries, ", ", $keys),
                            key = in(reg) keys($group).add(pair), line = in(reg) size_of::<Line>(),
                            options(nostack, preserves_flags, readonly),
                        );)*
                    };
                }
                match (four, pairs - pair >= PAIRS) {
                    (true, true) => {
                        add!("tmm4", "tmm5": "tmm0" = 0 "tmm1" = 1 "tmm2" = 2 "tmm3" = 3);
                    }
                    (true, false) => {
                        add!("tmm6", "tmm7": "tmm0" = 0 "tmm1" = 1 "tmm2" = 2 "tmm3" = 3);
                    }
                    (false, true) => {
                        add!("tmm4", "tmm5": "tmm0" = 0);
                    }
                    (false, false) => {
                        add!("tmm6", "tmm7": "tmm0" = 0);
                    }
                }
                pair += PAIRS;
            }
            asm!(
                "tilestored [{to} + {row}], tmm0", to = in(reg) to.add(at), row = in(reg) BETWEEN_BYTES,
                options(nostack, preserves_flags),
            );
            if four {
                asm!(
                    "tilestored [{to} + {row} + 64], tmm1",
                    "tilestored [{to} + {row} + 128], tmm2",
                    "tilestored [{to} + {row} + 192], tmm3",
                    to = in(reg) to.add(at), row = in(reg) BETWEEN_BYTES, options(nostack, preserves_flags),
                );
            }
        }
        at += if four { 4 } else { 1 };
    }
}

/// outs = outs · alpha.
#[target_feature(enable = "avx512f")]
fn scale(outs: &mut [f32], alpha: f32) {
    let alpha = _mm512_set1_ps(alpha);
    for outs in outs.as_chunks_mut::<16>().0 {
        // SAFETY: 16 values.
        unsafe { _mm512_storeu_ps(outs.as_mut_ptr(), _mm512_mul_ps(_mm512_loadu_ps(outs.as_ptr()), alpha)) };
    }
}

/// outs += Σ probability · value, for 16 rows from `first` on.
///
/// # Safety
/// As [`tile_amx`]: tiles are set up, lengths asserted.
unsafe fn add_values(head_dim: usize, first: usize, tile: &Tile<'_>, between: &[Between], state: &mut State<'_>) {
    let vectors = head_dim / 16;
    let (outs_bytes, values_bytes) = (head_dim * size_of::<f32>(), vectors * size_of::<Line>());
    let outs = state.outs[first * head_dim..][..ROWS * head_dim].as_mut_ptr();
    let between: *const Line = between[..ROWS].as_ptr().cast();
    // SAFETY: a group's probabilities are half a line, behind the scores.
    let probabilities = |group: usize| unsafe { between.add(TILE_GROUPS).cast::<u32>().add(group * HALF_PAIRS) };
    let mut vector = 0;
    while vector < vectors {
        let four = vectors - vector >= 4;
        // SAFETY: 16 rows of outputs, of which each step takes 64 or 16; 8 rows of `vectors` lines of values in each group.
        unsafe {
            let outs = outs.add(vector * 16);
            asm!(
                "tileloadd tmm0, [{outs} + {row}]", outs = in(reg) outs, row = in(reg) outs_bytes,
                options(nostack, preserves_flags, readonly),
            );
            if four {
                asm!(
                    "tileloadd tmm1, [{outs} + {row} + 64]",
                    "tileloadd tmm2, [{outs} + {row} + 128]",
                    "tileloadd tmm3, [{outs} + {row} + 192]",
                    outs = in(reg) outs, row = in(reg) outs_bytes, options(nostack, preserves_flags, readonly),
                );
            }
            for group in 0..tile.groups {
                let values = tile.values[group].as_ptr().add(vector);
                asm!(
                    "tileloadd tmm6, [{p} + {between}]",
                    "tileloadd tmm7, [{v} + {line}]", "tdpbf16ps tmm0, tmm6, tmm7",
                    p = in(reg) probabilities(group), between = in(reg) BETWEEN_BYTES,
                    v = in(reg) values, line = in(reg) values_bytes,
                    options(nostack, preserves_flags, readonly),
                );
                if four {
                    asm!(
                        "tileloadd tmm7, [{v} + {line} + 64]", "tdpbf16ps tmm1, tmm6, tmm7",
                        "tileloadd tmm7, [{v} + {line} + 128]", "tdpbf16ps tmm2, tmm6, tmm7",
                        "tileloadd tmm7, [{v} + {line} + 192]", "tdpbf16ps tmm3, tmm6, tmm7",
                        v = in(reg) values, line = in(reg) values_bytes,
                        options(nostack, preserves_flags, readonly),
                    );
                }
            }
            asm!(
                "tilestored [{outs} + {row}], tmm0", outs = in(reg) outs, row = in(reg) outs_bytes,
                options(nostack, preserves_flags),
            );
            if four {
                asm!(
                    "tilestored [{outs} + {row} + 64], tmm1",
                    "tilestored [{outs} + {row} + 128], tmm2",
                    "tilestored [{outs} + {row} + 192], tmm3",
                    outs = in(reg) outs, row = in(reg) outs_bytes, options(nostack, preserves_flags),
                );
            }
        }
        vector += if four { 4 } else { 1 };
    }
}
