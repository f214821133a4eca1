//! Where results go in the output of a whole product. Not here: how they are computed.

use super::Results;
use crate::elementwise::gated;
use crate::isa::multiversion;
use crate::packed::PANEL;
use crate::pool::SharedMut;

/// Where a piece goes: rows of `outputs` values, `stride` apart.
pub(super) struct Place {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) outputs: usize,
    pub(super) stride: usize,
}

/// Asks for the cache lines of a place: they come while its values are computed.
pub(super) fn fetch(place: &Place, out: &SharedMut<'_, f32>) {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (place, out);
    #[cfg(target_arch = "x86_64")]
    for row in 0..place.rows {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        let at = place.first + row * place.stride;
        // SAFETY: each row of each panel of outputs is in one piece, and the columns of panels are disjoint.
        let out = unsafe { out.slice(at..at + place.outputs) };
        for line in out.chunks(16) {
            // SAFETY: fetching reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
        }
    }
}

multiversion! {
    /// Writes a piece to its place, or adds it to what is there.
    pub(super) fn write(results: &[[f32; PANEL]], place: &Place, accumulate: bool, out: &SharedMut<'_, f32>) {
        for (row, results) in results[..place.rows].iter().enumerate() {
            let at = place.first + row * place.stride;
            // SAFETY: each row of each panel of outputs is in one piece, and the columns of panels are disjoint.
            let out = unsafe { out.slice(at..at + place.outputs) };
            match (out.first_chunk_mut::<PANEL>(), accumulate) {
                // The sums are made before any is written: the compiler does not see that the two places are apart.
                (Some(out), true) => *out = std::array::from_fn(|at| out[at] + results[at]),
                (Some(out), false) => *out = *results,
                (None, true) => out.iter_mut().zip(results).for_each(|(out, result)| *out += result),
                (None, false) => out.iter_mut().zip(results).for_each(|(out, result)| *out = *result),
            }
        }
    }
}

multiversion! {
    /// Replaces the gates' values by what they let through.
    pub(super) fn pass_gates(both: &mut [Results; 2], rows: usize) {
        let [gates, ups] = both;
        for (gates, ups) in gates.iter_mut().zip(ups).take(rows) {
            *gates = std::array::from_fn(|at| gated(gates[at], ups[at]));
        }
    }
}
