//! What the weights come from: an opened base, or a generated one. Not here: where they go (`weights.rs`).

use kernels::BlockFormat;
use kernels::cuda::{DeviceRange, PANEL, Stream, WeightFormat, repack};
use types::Digest;

use super::failed;
use crate::{Base, GeneratedBase, ModelConfig, ModelError, TensorFormat};

/// Panels of a generated matrix that are made on the host; the others repeat them.
const MADE_PANELS: usize = 64;

/// Where a runner's weights come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Files(&'a Base),
    Seed(&'a GeneratedBase),
}

impl<'a> Source<'a> {
    pub(super) fn config(self) -> &'a ModelConfig {
        match self {
            Self::Files(base) => base.config(),
            Self::Seed(base) => &base.config,
        }
    }

    pub(super) fn digest(self) -> Digest {
        match self {
            Self::Files(base) => base.digest(),
            Self::Seed(base) => base.digest(),
        }
    }

    /// As [`Base::tensor_format`].
    pub(super) fn tensor_format(self, name: &str, shape: &[usize]) -> Result<TensorFormat, ModelError> {
        match self {
            Self::Files(base) => base.tensor_format(name, shape),
            Self::Seed(base) => Ok(base.format),
        }
    }
}

/// Fills a matrix with generated weights: its first panels from the host, the others with copies of them.
pub(super) fn generate(
    base: &GeneratedBase,
    source: BlockFormat,
    format: WeightFormat,
    [outputs, inputs]: [usize; 2],
    stream: &Stream,
    matrix: DeviceRange,
) -> Result<(), ModelError> {
    let panels = outputs.div_ceil(PANEL);
    let made = panels.min(MADE_PANELS) * PANEL;
    let bytes = |outputs: usize| format.packed_bytes(outputs, inputs).unwrap_or(0);
    let mut packed = vec![0; bytes(made)];
    repack(source, made, inputs, &base.blocks(source, made, inputs)?, &mut packed).map_err(failed)?;
    stream.upload_now(&packed, matrix).map_err(failed)?;
    let (mut filled, all) = (packed.len(), bytes(outputs));
    while filled < all {
        let more = filled.min(all - filled);
        let part = |offset| matrix.part(offset, more).map_err(failed);
        stream.copy(part(0)?, part(filled)?).map_err(failed)?;
        filled += more;
    }
    Ok(())
}
