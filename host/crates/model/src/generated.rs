//! Bases and adapters of numbers out of a seed, in the shapes of real ones: for benches, whose speed does not depend on what
//! the numbers are, on machines that no files of gigabytes travel to. Not here: anything that a host serves.

use kernels::BlockFormat;
use types::Digest;

use crate::{ModelConfig, ModelError, TensorFormat};

/// A base of these sizes with every matrix in one format. Norms are 1, other weights small.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedBase {
    /// Its sizes.
    pub config: ModelConfig,
    /// Of its matrices: one that the CUDA kernels have.
    pub format: TensorFormat,
    /// Equal seeds give equal weights.
    pub seed: u64,
}

impl GeneratedBase {
    /// Stands in for the digest of its files.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of_parts("tenon 2026-11 generated base", [format!("{self:?}").as_bytes()])
    }

    /// What the kernels would find in a file, `outputs` rows of it.
    pub(crate) fn blocks(&self, format: BlockFormat, outputs: usize, inputs: usize) -> Result<Vec<u8>, ModelError> {
        let unsupported = || ModelError::Unsupported(format!("no weights in {format:?} are generated"));
        let row_bytes = format.row_bytes(inputs).ok_or_else(unsupported)?;
        let bytes = row_bytes.checked_mul(outputs).ok_or_else(unsupported)?;
        // Scales, as f16, where the formats have them: such that weights are some hundredths.
        let scales: &[(usize, u16)] = match format {
            BlockFormat::Bf16 => return Ok(small_bf16(self.seed, bytes)),
            BlockFormat::Q4_0 => &[(0, 0x2000)],
            BlockFormat::Q4_1 => &[(0, 0x1c00), (2, 0xa800)],
            BlockFormat::Q8_0 => &[(0, 0x1000)],
            BlockFormat::Q4_K => &[(0, 0x0800), (2, 0x1400)],
            BlockFormat::Q5_K => &[(0, 0x0400), (2, 0x1400)],
            BlockFormat::Q6_K => &[(208, 0x0400)],
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::Q5_0 | BlockFormat::Q5_1 => return Err(unsupported()),
        };
        let mut blocks = noise(self.seed, bytes, u64::MAX, 0);
        for block in blocks.chunks_exact_mut(format.block_bytes()) {
            for (at, scale) in scales {
                block[*at..*at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        Ok(blocks)
    }
}

/// Values of bf16 between 2^-7 and 2^-5, of both signs.
pub(crate) fn small_bf16(seed: u64, bytes: usize) -> Vec<u8> {
    noise(seed, bytes, 0x80ff_80ff_80ff_80ff, 0x3c00_3c00_3c00_3c00)
}

/// Words of splitmix64 (Steele et al., 2014) with some bits kept and some set.
fn noise(seed: u64, bytes: usize, keep: u64, set: u64) -> Vec<u8> {
    let mut state = seed;
    let mut noise = Vec::with_capacity(bytes.next_multiple_of(8));
    while noise.len() < bytes {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        noise.extend_from_slice(&(((word ^ (word >> 31)) & keep) | set).to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

#[cfg(test)]
mod tests {
    use kernels::{Isa, dequantise};

    use super::*;

    #[test]
    fn every_format_is_small_finite_and_repeats() {
        for format in [
            BlockFormat::Bf16,
            BlockFormat::Q4_0,
            BlockFormat::Q4_1,
            BlockFormat::Q8_0,
            BlockFormat::Q4_K,
            BlockFormat::Q5_K,
            BlockFormat::Q6_K,
        ] {
            let of = |seed| {
                let config = crate::adapter::tiny_config(1);
                let base = GeneratedBase { config, format: TensorFormat::Bf16, seed };
                base.blocks(format, 3, 512).unwrap()
            };
            let blocks = of(7);
            assert!(blocks == of(7) && blocks != of(8));
            let mut values = vec![0.0; 3 * 512];
            dequantise(Isa::detect(), format, &blocks, &mut values);
            let square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
            assert!((0.001..0.3).contains(&square.sqrt()), "{format:?}: {}", square.sqrt());
        }
        let config = crate::adapter::tiny_config(1);
        let base = GeneratedBase { config, format: TensorFormat::Bf16, seed: 0 };
        assert!(base.blocks(BlockFormat::Q5_0, 1, 64).is_err() && base.blocks(BlockFormat::Q4_K, 1, 64).is_err());
    }
}
