//! What stands in for AMX where no machine has it.

use super::Beside;
use crate::isa::Amx;
use crate::packed::PackedMatrix;
use crate::quantised::BlockFormat;
use crate::tile_rows::TileRows;
use crate::{Isa, Team};

/// None is needed.
#[derive(Default)]
pub struct TileScratch(());

pub(super) fn takes(_: BlockFormat) -> bool {
    false
}

#[expect(clippy::too_many_arguments, reason = "as the one that computes")]
pub(crate) fn matmul_tiles_beside(
    _: &Team<'_>,
    _: Isa,
    amx: Amx,
    _: &[&PackedMatrix],
    _: &TileRows,
    _: &mut [f32],
    _: bool,
    _: &mut TileScratch,
    _: &impl Beside,
) {
    amx.never()
}
