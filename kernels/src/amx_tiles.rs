//! How AMX's tiles are set up for a thread and let go. Not here: what is done with them (`gemm/amx.rs`, `attention_amx.rs`).

use std::arch::asm;
use std::marker::PhantomData;

use crate::isa::Amx;
use crate::tile_rows::TILE_ROWS;

/// Rows, and bytes of each.
#[derive(Clone, Copy)]
pub(crate) struct TileShape {
    pub(crate) rows: u8,
    pub(crate) row_bytes: u16,
}

impl TileShape {
    /// 16 rows of 64 bytes.
    pub(crate) const FULL: Self = Self { rows: TILE_ROWS as u8, row_bytes: 64 };
}

/// Of the eight tiles, as LDTILECFG reads them.
#[repr(C, align(64))]
pub(crate) struct TileShapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileShapes {
    pub(crate) const fn new(shapes: [TileShape; 8]) -> Self {
        let mut all = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < 8 {
            (all.rows[tile], all.row_bytes[tile]) = (shapes[tile].rows, shapes[tile].row_bytes);
            tile += 1;
        }
        all
    }
}

/// Tiles of this thread that are set up; let go at the end, so that no switch of threads has to save them.
pub(crate) struct Tiles(PhantomData<*const ()>);

impl Tiles {
    pub(crate) fn new(_: Amx, shapes: &'static TileShapes) -> Self {
        // SAFETY: `Amx` says that the machine has tiles and the process may use them.
        unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, preserves_flags, readonly)) };
        Self(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: whoever made it had an `Amx`.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}
