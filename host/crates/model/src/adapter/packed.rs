//! The packed form: f32 factors, laid out for the kernels and for GGUF's order of rows.

use kernels::LoraPair;
use types::{Module, ModuleSet};

use super::tensors::{self, Factor, Place};
use super::{AdapterLimits, AdapterRejection, canonical};
use crate::ModelConfig;

/// An adapter packed for one base, in host memory.
pub struct LoraAdapter {
    rank: u32,
    scale: f32,
    modules: ModuleSet,
    /// By layer and [`Module::index`].
    layers: Vec<[Option<LoraPair>; 7]>,
    base: ModelConfig,
    memory_bytes: usize,
}

impl LoraAdapter {
    /// Packs canonical bytes, which are checked again.
    ///
    /// # Errors
    /// If the bytes are not in canonical form or do not fit this base.
    pub fn from_canonical(
        bytes: &[u8],
        config: &ModelConfig,
        limits: &AdapterLimits,
    ) -> Result<Self, AdapterRejection> {
        let (rank, scale, tensors) = canonical::read(bytes, config, limits)?;
        let modules = tensors::check(&tensors, rank as usize, scale, config, limits)?;
        let mut layers: Vec<[Option<LoraPair>; 7]> = (0..config.layers).map(|_| Default::default()).collect();
        let mut memory_bytes = 0;
        for (place, a) in tensors.iter().filter(|(place, _)| place.factor == Factor::A) {
            let Some(b) = tensors.get(&Place { factor: Factor::B, ..*place }) else { continue };
            let (inputs, outputs) = config.module_shape(place.module);
            let b = packed_b(&tensors::values(b), rank as usize, outputs, place.module, config.head_dim);
            let pair = LoraPair::new(rank as usize, inputs, outputs, tensors::values(a), b);
            memory_bytes += pair.as_ref().map_or(0, LoraPair::memory_bytes);
            let slot = layers.get_mut(place.layer).and_then(|modules| modules.get_mut(place.module.index()));
            match slot.filter(|_| pair.is_some()) {
                Some(slot) => *slot = pair,
                None => return Err(AdapterRejection::ShapeMismatch(tensors::describe(*place))),
            }
        }
        Ok(Self { rank, scale: scale as f32, modules, layers, base: config.clone(), memory_bytes })
    }

    /// Its rank.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// What B(A x) is multiplied by.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The modules that it acts on.
    #[must_use]
    pub fn modules(&self) -> ModuleSet {
        self.modules
    }

    /// What it takes in host memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Whether it was packed for a base of these sizes.
    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        self.base == *config
    }

    pub(crate) fn pair(&self, layer: usize, module: Module) -> Option<&LoraPair> {
        self.layers.get(layer)?.get(module.index())?.as_ref()
    }
}

/// B `[outputs, rank]` transposed to `[rank, outputs]`. The rows of q and k move to where GGUF has them: within each head,
/// transformers' row j · half + i becomes row 2i + j (llama.cpp's `convert_hf_to_gguf.py`).
fn packed_b(b: &[f32], rank: usize, outputs: usize, module: Module, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let mut packed = vec![0.0; b.len()];
    for (row, values) in b.chunks_exact(rank).enumerate() {
        let (head, within) = (row / head_dim, row % head_dim);
        let to = match module {
            Module::Q | Module::K => head * head_dim + 2 * (within % half) + within / half,
            _ => row,
        };
        for (column, value) in values.iter().enumerate() {
            packed[column * outputs + to] = *value;
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_q_and_k_move_within_their_head() {
        // Two heads of 4 rows, rank 1.
        let b: Vec<f32> = (0..8u8).map(f32::from).collect();
        assert_eq!(packed_b(&b, 1, 8, Module::K, 4), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(packed_b(&b, 1, 8, Module::V, 4), b);
        assert_eq!(packed_b(&b, 2, 4, Module::V, 4), [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
    }
}
