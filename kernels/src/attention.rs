//! Causal attention over paged keys and values, with grouped query heads (Ainslie et al., 2023; pages as in vLLM).

use rayon::prelude::*;

use crate::Isa;
use crate::dot::{Rows, dots};
use crate::isa::multiversion;
use crate::softmax::softmax;

/// One layer's keys and values, each `[blocks, block_tokens, kv_heads, head_dim]`.
#[derive(Clone, Copy)]
pub struct KvLayer<'a> {
    /// Keys, rotated.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
    /// Positions in one block.
    pub block_tokens: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a head; a multiple of 16.
    pub head_dim: usize,
}

/// What one row sees: positions `0 ..= position` of its sequence, of which position p lies in block `blocks[p /
/// block_tokens]`.
#[derive(Clone, Copy)]
pub struct AttentionRow<'a> {
    /// The sequence's block table.
    pub blocks: &'a [u32],
    /// The row's own position; its key and value are in place.
    pub position: usize,
}

/// Attention of every row: `queries` and `out` are `[rows, heads, head_dim]`. Scores are scaled by 1 / sqrt(head_dim).
///
/// # Panics
/// If a shape is wrong or a block table is too short.
pub fn attention(isa: Isa, rows: &[AttentionRow<'_>], queries: &[f32], kv: KvLayer<'_>, heads: usize, out: &mut [f32]) {
    assert!(queries.len() == out.len() && out.len() == rows.len() * heads * kv.head_dim);
    assert!(heads.is_multiple_of(kv.kv_heads));
    let group = heads / kv.kv_heads;
    let work = out.par_chunks_mut(kv.head_dim).zip(queries.par_chunks(kv.head_dim)).enumerate();
    work.with_min_len(3).for_each_init(Vec::new, |scores, (index, (out, query))| {
        attend(isa, rows[index / heads], query, kv, index % heads / group, scores, out);
    });
}

fn attend(
    isa: Isa,
    row: AttentionRow<'_>,
    query: &[f32],
    kv: KvLayer<'_>,
    kv_head: usize,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let token_stride = kv.kv_heads * kv.head_dim;
    let block_stride = kv.block_tokens * token_stride;
    let tokens = row.position + 1;
    let start = |block: u32| block as usize * block_stride + kv_head * kv.head_dim;
    scores.clear();
    scores.resize(tokens, 0.0);
    for (scores, block) in scores.chunks_mut(kv.block_tokens).zip(row.blocks) {
        let keys = Rows::new(&kv.keys[start(*block)..], token_stride, scores.len(), kv.head_dim);
        dots(isa, keys, Rows::one(query), scores, 1);
    }
    assert!(row.blocks.len() * kv.block_tokens >= tokens, "block table too short");
    let scale = 1.0 / (kv.head_dim as f32).sqrt();
    scores.iter_mut().for_each(|score| *score *= scale);
    softmax(scores);
    out.fill(0.0);
    for (scores, block) in scores.chunks(kv.block_tokens).zip(row.blocks) {
        add_values(isa, scores, &kv.values[start(*block)..], token_stride, out);
    }
}

multiversion! {
    fn add_values(weights: &[f32], values: &[f32], stride: usize, out: &mut [f32]) {
        for (weight, values) in weights.iter().zip(values.chunks(stride)) {
            for (out, value) in out.iter_mut().zip(values) {
                *out += weight * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::values;

    /// f64, no blocks.
    fn reference(query: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f64> {
        let dot = |key: &[f32]| query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
        let scores: Vec<f64> = keys.iter().map(|key| (dot(key) / (query.len() as f64).sqrt()).exp()).collect();
        let sum: f64 = scores.iter().sum();
        let value = |d: usize| values.iter().zip(&scores).map(|(v, s)| f64::from(v[d]) * s / sum).sum();
        (0..query.len()).map(value).collect()
    }

    #[test]
    fn equals_the_reference_in_any_batch_and_on_any_machine() {
        let (blocks, block_tokens, kv_heads, heads, head_dim) = (9, 4, 2, 6, 32);
        let size = blocks * block_tokens * kv_heads * head_dim;
        let (keys, vals) = (values(1, size), values(2, size));
        let kv = KvLayer { keys: &keys, values: &vals, block_tokens, kv_heads, head_dim };
        let (first, second) = ([7u32, 2, 5], [0u32, 8]);
        let rows = [
            AttentionRow { blocks: &first, position: 10 },
            AttentionRow { blocks: &second, position: 3 },
            AttentionRow { blocks: &second, position: 4 },
        ];
        let queries = values(3, rows.len() * heads * head_dim);
        for isa in Isa::available() {
            let mut out = vec![0.0; queries.len()];
            attention(isa, &rows, &queries, kv, heads, &mut out);
            for (r, row) in rows.iter().enumerate() {
                let width = heads * head_dim;
                let mut alone = vec![0.0; width];
                attention(isa, &rows[r..=r], &queries[r * width..][..width], kv, heads, &mut alone);
                assert_eq!(alone, out[r * width..][..width]);
                for head in 0..heads {
                    let place = |p: usize| {
                        let token = row.blocks[p / block_tokens] as usize * block_tokens + p % block_tokens;
                        (token * kv_heads + head / 3) * head_dim
                    };
                    let slices = |data: &'_ [f32]| -> Vec<Vec<f32>> {
                        (0..=row.position).map(|p| data[place(p)..][..head_dim].to_vec()).collect()
                    };
                    let (k, v) = (slices(&keys), slices(&vals));
                    let (k, v): (Vec<&[f32]>, Vec<&[f32]>) =
                        (k.iter().map(Vec::as_slice).collect(), v.iter().map(Vec::as_slice).collect());
                    let at = r * width + head * head_dim;
                    for (d, expected) in reference(&queries[at..][..head_dim], &k, &v).into_iter().enumerate() {
                        assert!((f64::from(out[at + d]) - expected).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
