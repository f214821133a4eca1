//! The keys and values of all blocks, in f32. Which block belongs to whom is the scheduler's business.

use kernels::KvLayer;

use crate::{ModelConfig, ModelError};

/// Keys and values, each `[layers, blocks, block_tokens, kv_heads, head_dim]`.
pub(super) struct KvMemory {
    keys: Vec<f32>,
    values: Vec<f32>,
    block_tokens: usize,
    kv_heads: usize,
    head_dim: usize,
    layer_values: usize,
}

impl KvMemory {
    pub(super) fn new(config: &ModelConfig, blocks: usize, block_tokens: usize) -> Result<Self, ModelError> {
        let token_values = config.kv_heads * config.head_dim;
        let layer_values = blocks.checked_mul(block_tokens).and_then(|tokens| tokens.checked_mul(token_values));
        let values = layer_values.and_then(|values| values.checked_mul(config.layers));
        let (Some(layer_values), Some(values)) =
            (layer_values, values.filter(|values| *values < isize::MAX as usize / 8))
        else {
            return Err(ModelError::Configuration(format!("{blocks} KV blocks are more than any memory holds")));
        };
        Ok(Self {
            keys: vec![0.0; values],
            values: vec![0.0; values],
            block_tokens,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            layer_values,
        })
    }

    /// Stores one position's key and value, `[kv_heads, head_dim]` each.
    pub(super) fn write(&mut self, layer: usize, table: &[u32], position: usize, key: &[f32], value: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        let token = table[position / self.block_tokens] as usize * self.block_tokens + position % self.block_tokens;
        let at = layer * self.layer_values + token * width;
        self.keys[at..][..width].copy_from_slice(key);
        self.values[at..][..width].copy_from_slice(value);
    }

    /// Makes the content of one block, in every layer, that of another.
    pub(super) fn copy_block(&mut self, from: usize, to: usize) {
        let block_values = self.block_tokens * self.kv_heads * self.head_dim;
        for values in [&mut self.keys, &mut self.values] {
            for layer in values.chunks_exact_mut(self.layer_values) {
                layer.copy_within(from * block_values..(from + 1) * block_values, to * block_values);
            }
        }
    }

    /// Zeroes one block in every layer.
    pub(super) fn wipe_block(&mut self, block: usize) {
        let block_values = self.block_tokens * self.kv_heads * self.head_dim;
        for values in [&mut self.keys, &mut self.values] {
            for layer in values.chunks_exact_mut(self.layer_values) {
                layer[block * block_values..(block + 1) * block_values].fill(0.0);
            }
        }
    }

    pub(super) fn layer(&self, layer: usize) -> KvLayer<'_> {
        let range = layer * self.layer_values..(layer + 1) * self.layer_values;
        KvLayer {
            keys: &self.keys[range.clone()],
            values: &self.values[range],
            block_tokens: self.block_tokens,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }
}
