//! Some of an adapter's blocks in host memory, and what is written there. Not here: whose memory that is (`staging.rs`,
//! `adapters.rs`).

use super::pieces::{Piece, Place, Placement};
use crate::adapter::DeviceFactors;

/// The blocks of an adapter that are in the host buffer now.
pub(super) struct Window<'a> {
    pub(super) bytes: &'a mut [u8],
    pub(super) block_bytes: usize,
    /// The first of the adapter's blocks in it.
    pub(super) first: usize,
    /// The one after the last.
    pub(super) end: usize,
}

impl Window<'_> {
    /// The bytes at a place, if it is in one of these blocks.
    fn at(&mut self, place: Place, bytes: usize) -> Option<&mut [u8]> {
        let start = place.block.checked_sub(self.first)? * self.block_bytes + place.offset;
        self.bytes.get_mut(start..start + bytes)
    }
}

/// Writes what lies in these blocks. Pieces that begin in a later block stay for the next window; one that ends there too.
pub(super) fn fill<'a>(
    mut window: Window<'_>,
    factors: &DeviceFactors,
    placement: &'a Placement,
    pieces: &mut std::iter::Peekable<std::slice::Iter<'a, Piece>>,
) {
    debug_assert!(window.end <= placement.blocks, "a window is of the adapter's blocks");
    while let Some(piece) = pieces.peek() {
        let mut ends_later = false;
        let mut a_at = piece.a;
        for own in piece.modules.iter().flatten() {
            let Some(term) = factors.terms().get(own.term) else { continue };
            let a = factors.a_rows(term, own.ranks.start, own.ranks.len());
            if let Some(to) = window.at(a_at, a.len()) {
                to.copy_from_slice(a);
            }
            a_at.offset += a.len();
            let columns = own.ranks.len();
            if let Some(to) = window.at(own.b, term.outputs * columns * size_of::<u16>()) {
                factors.copy_b_columns(term, own.ranks.start, columns, to);
            }
            if let Some((place, growth)) = own.growth.zip(factors.growth(term))
                && let Some(to) = window.at(place, growth.len())
            {
                to.copy_from_slice(growth);
            }
            let places = [Some(piece.a), Some(own.b), own.growth];
            ends_later |= places.into_iter().flatten().any(|place| place.block >= window.end);
        }
        if ends_later {
            return;
        }
        pieces.next();
    }
}
