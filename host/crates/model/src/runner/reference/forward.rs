//! One step through the layers of a Llama-shaped base. The batch was checked; shapes are the base's.
//!
//! Rows are independent but for attention, which reads the KV memory: a row sees its own sequence's earlier rows of the
//! same batch because a layer writes all keys and values before it attends.

use std::sync::Arc;

use engine::{Batch, LoraSegment};
use kernels::{
    AttentionRow, DoraTerm, Isa, Matrix, RopeTable, attention, dora_add, lora_add, matmul, rms_norm, swiglu,
};
use types::Module;

use super::kv::KvMemory;
use super::weights::Weights;
use crate::adapter::PackedTerm;
use crate::{LoraAdapter, ModelConfig};

/// Activations, kept from step to step for their memory.
#[derive(Default)]
pub(super) struct Buffers {
    /// `[rows, hidden]`, the residual stream.
    stream: Vec<f32>,
    /// `[rows, hidden]`
    normed: Vec<f32>,
    /// `[rows, q + k + v]`, later `[rows, gate + up]`.
    wide: Vec<f32>,
    /// `[rows, heads, head_dim]`, later `[rows, intermediate]`.
    narrow: Vec<f32>,
    /// `[rows, heads, head_dim]`
    attended: Vec<f32>,
    /// `[rows, hidden]`, what a half layer adds to the stream.
    added: Vec<f32>,
    scratch: Scratch,
}

/// Memory for one linear layer.
#[derive(Default)]
struct Scratch {
    matmul: Vec<f32>,
    /// The layer's output before any adapter's change; filled only where DoRA needs it.
    plain: Vec<f32>,
}

/// A step in progress.
pub(super) struct Forward<'a> {
    pub(super) batch: &'a Batch,
    pub(super) config: &'a ModelConfig,
    pub(super) isa: Isa,
    pub(super) weights: &'a Weights,
    pub(super) rope: &'a RopeTable,
    pub(super) kv: &'a mut KvMemory,
    pub(super) slots: &'a [Option<Arc<LoraAdapter>>],
    pub(super) buffers: &'a mut Buffers,
}

impl Forward<'_> {
    /// Writes the KV of every row and gives the logits of the sampled ones, `[samples, vocabulary]`.
    pub(super) fn logits(&mut self) -> Vec<f32> {
        let mut buffers = std::mem::take(self.buffers);
        self.embed(&mut buffers.stream);
        for layer in 0..self.config.layers {
            self.attend(layer, &mut buffers);
            self.feed_forward(layer, &mut buffers);
        }
        let logits = self.output(&mut buffers);
        *self.buffers = buffers;
        logits
    }

    fn rows(&self) -> usize {
        self.batch.tokens.len()
    }

    fn embed(&self, stream: &mut Vec<f32>) {
        let hidden = self.config.hidden;
        stream.resize(self.rows() * hidden, 0.0);
        for (row, token) in stream.chunks_exact_mut(hidden).zip(&self.batch.tokens) {
            self.weights.embedding.copy_row(self.isa, *token as usize, row);
        }
    }

    fn attend(&mut self, layer: usize, buffers: &mut Buffers) {
        let (config, weights) = (self.config, &self.weights.layers[layer]);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let Buffers { stream, normed, wide, narrow, attended, added, scratch } = buffers;
        normed.resize(stream.len(), 0.0);
        rms_norm(stream, &weights.attention_norm, config.rms_epsilon, normed);
        self.linear(layer, &[Module::Q, Module::K, Module::V], normed, wide, scratch);

        narrow.resize(self.rows() * queries, 0.0);
        let mut attention_rows = Vec::with_capacity(self.rows());
        for sequence in &self.batch.sequences {
            let table = &self.batch.block_tables[sequence.blocks.start as usize..sequence.blocks.end as usize];
            for row in sequence.rows.start as usize..sequence.rows.end as usize {
                let position = self.batch.positions[row] as usize;
                let projected = &mut wide[row * (queries + 2 * keys)..][..queries + 2 * keys];
                if let Some(norms) = &weights.query_key_norms {
                    norm_heads(norms, queries, config.rms_epsilon, &mut projected[..queries + keys]);
                }
                self.rope.apply(position, &mut projected[..queries + keys]);
                let (query, rest) = projected.split_at(queries);
                let (key, value) = rest.split_at(keys);
                narrow[row * queries..][..queries].copy_from_slice(query);
                self.kv.write(layer, table, position, key, value);
                attention_rows.push(AttentionRow { blocks: table, position });
            }
        }
        attended.resize(narrow.len(), 0.0);
        attention(self.isa, &attention_rows, narrow, self.kv.layer(layer), config.heads, attended);
        self.linear(layer, &[Module::O], attended, added, scratch);
        add(stream, added);
    }

    fn feed_forward(&self, layer: usize, buffers: &mut Buffers) {
        let (config, weights) = (self.config, &self.weights.layers[layer]);
        let Buffers { stream, normed, wide, narrow, added, scratch, .. } = buffers;
        rms_norm(stream, &weights.feed_forward_norm, config.rms_epsilon, normed);
        self.linear(layer, &[Module::Gate, Module::Up], normed, wide, scratch);
        narrow.resize(self.rows() * config.intermediate, 0.0);
        swiglu(wide, config.intermediate, narrow);
        self.linear(layer, &[Module::Down], narrow, added, scratch);
        add(stream, added);
    }

    fn output(&self, buffers: &mut Buffers) -> Vec<f32> {
        let (hidden, samples) = (self.config.hidden, &self.batch.samples);
        let Buffers { stream, normed, added, scratch, .. } = buffers;
        added.clear();
        samples.iter().for_each(|sample| added.extend_from_slice(&stream[sample.row as usize * hidden..][..hidden]));
        normed.resize(added.len(), 0.0);
        rms_norm(added, &self.weights.output_norm, self.config.rms_epsilon, normed);
        let mut logits = vec![0.0; samples.len() * self.config.vocabulary];
        matmul(self.isa, &[self.weights.output()], normed, samples.len(), &mut logits, &mut scratch.matmul);
        logits
    }

    /// y = Wx + Σᵢ δᵢ(x) for modules of equal input; their outputs lie one after the other in each row of `y`. δᵢ is
    /// wᵢ·sᵢ·Bᵢ(Aᵢx), or what DoRA makes of it and of the plain Wx: no δ sees another's.
    fn linear(&self, layer: usize, modules: &[Module], x: &[f32], y: &mut Vec<f32>, scratch: &mut Scratch) {
        let weights = &self.weights.layers[layer];
        let matrices: Vec<&Matrix> = modules.iter().map(|module| weights.module(*module)).collect();
        let stride: usize = matrices.iter().map(|matrix| matrix.outputs()).sum();
        y.resize(self.rows() * stride, 0.0);
        matmul(self.isa, &matrices, x, self.rows(), y, &mut scratch.matmul);

        if self.has_dora(layer, modules) {
            scratch.plain.clear();
            scratch.plain.extend_from_slice(y);
        }
        for segment in self.batch.segments.iter().filter(|segment| is_in(segment, layer)) {
            let rows = segment.rows.start as usize..segment.rows.end as usize;
            let mut first = 0;
            for (module, matrix) in modules.iter().zip(&matrices) {
                if let Some(term) = self.term(segment, layer, *module) {
                    let x = &x[rows.start * matrix.inputs()..rows.end * matrix.inputs()];
                    let all = rows.start * stride..rows.end * stride;
                    let (pair, scale, weight) = (&term.pair, term.scale, segment.weight);
                    match &term.growth {
                        None => lora_add(self.isa, pair, weight * scale, x, &mut y[all], stride, first),
                        Some(growth) => {
                            let term = DoraTerm { pair, growth, weight, scale };
                            dora_add(self.isa, &term, x, &scratch.plain[all.clone()], &mut y[all], stride, first);
                        }
                    }
                }
                first += matrix.outputs();
            }
        }
    }

    /// The change that a segment's adapter makes to a module, if it makes one.
    fn term(&self, segment: &LoraSegment, layer: usize, module: Module) -> Option<&PackedTerm> {
        let adapter = self.slots[segment.slot.0 as usize].as_ref()?;
        adapter.term(layer, module).filter(|_| segment.modules.contains(module))
    }

    /// Whether some change of these modules is made of the plain Wx.
    fn has_dora(&self, layer: usize, modules: &[Module]) -> bool {
        let is_dora = |segment, module| self.term(segment, layer, module).is_some_and(|term| term.growth.is_some());
        let mut segments = self.batch.segments.iter().filter(|segment| is_in(segment, layer));
        segments.any(|segment| modules.iter().any(|module| is_dora(segment, *module)))
    }
}

fn is_in(segment: &LoraSegment, layer: usize) -> bool {
    segment.layers.contains(u32::try_from(layer).unwrap_or(u32::MAX))
}

/// Norms every head of one row's q and k, `queries` values of q first.
fn norm_heads([query_norm, key_norm]: &[Vec<f32>; 2], queries: usize, epsilon: f32, heads: &mut [f32]) {
    let plain = heads.to_vec();
    rms_norm(&plain[..queries], query_norm, epsilon, &mut heads[..queries]);
    rms_norm(&plain[queries..], key_norm, epsilon, &mut heads[queries..]);
}

fn add(stream: &mut [f32], added: &[f32]) {
    stream.iter_mut().zip(added).for_each(|(stream, added)| *stream += added);
}
