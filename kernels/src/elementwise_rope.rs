//! Rotary position embedding (Su et al., 2021) of the query and key heads of rows, with the norm of each head before it
//! where the base has one (Qwen3). The same bits as the reference, [`crate::RopeTable`], on every instruction set.

use crate::elementwise::each_part;
use crate::isa::multiversion;
use crate::norm_rows::norm_factor;
use crate::pool::SharedMut;
use crate::{Isa, RopeLayout, Team};

/// Cosines and sines of every position.
pub struct RopeRows {
    pairs: usize,
    /// `[positions, 2, pairs]`: a position's cosines, then its sines.
    turns: Vec<f32>,
}

/// Weights of the norm of each head.
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    /// For the first `query_heads` heads, `[head_dim]`.
    pub query: &'a [f32],
    /// For the others, `[head_dim]`.
    pub key: &'a [f32],
    /// Heads that are queries.
    pub query_heads: usize,
    /// What is added to the mean of squares.
    pub epsilon: f32,
}

impl RopeRows {
    /// For positions `0 .. positions` and heads of `head_dim` values; pair i turns by position · theta^(-2i / head_dim) /
    /// divisor i. `divisors` `[head_dim / 2]` is empty where the base is not scaled.
    ///
    /// # Panics
    /// If there are divisors, but not one for each pair.
    #[must_use]
    pub fn new(positions: usize, head_dim: usize, theta: f32, divisors: &[f32]) -> Self {
        let pairs = head_dim / 2;
        assert!(divisors.is_empty() || divisors.len() == pairs);
        let frequency = |pair: usize| {
            let divisor = divisors.get(pair).map_or(1.0, |divisor| f64::from(*divisor));
            f64::from(theta).powf(-2.0 * pair as f64 / head_dim as f64) / divisor
        };
        let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
        let mut turns = Vec::with_capacity(positions * 2 * pairs);
        for position in 0..positions {
            turns.extend(frequencies.iter().map(|frequency| (position as f64 * frequency).cos() as f32));
            turns.extend(frequencies.iter().map(|frequency| (position as f64 * frequency).sin() as f32));
        }
        Self { pairs, turns }
    }
}

/// Where the heads of a row lie.
#[derive(Clone, Copy)]
struct Heads {
    stride: usize,
    first: usize,
    count: usize,
    dim: usize,
}

/// Turns in place `heads` heads of each row of `projected`, from `row * stride + heads_first` on, to the row's position;
/// norms each of them before, where `norms` are given.
///
/// # Panics
/// If a shape is wrong or a position is beyond the table.
#[expect(clippy::too_many_arguments, reason = "an operation on slices")]
pub fn rope_rows(
    team: &Team<'_>,
    isa: Isa,
    table: &RopeRows,
    layout: RopeLayout,
    positions: &[u32],
    projected: &mut [f32],
    stride: usize,
    heads_first: usize,
    heads: usize,
    head_dim: usize,
    norms: Option<HeadNorms<'_>>,
) {
    assert!(head_dim > 0 && head_dim == 2 * table.pairs && heads_first + heads * head_dim <= stride);
    assert!(projected.len() >= positions.len() * stride);
    if let Some(norms) = norms {
        assert!(norms.query.len() == head_dim && norms.key.len() == head_dim && norms.query_heads <= heads);
    }
    let heads = Heads { stride, first: heads_first, count: heads, dim: head_dim };
    let projected = SharedMut::new(projected);
    each_part(team, positions.len(), heads.count * head_dim, |rows| {
        // SAFETY: parts have different rows.
        let part = unsafe { projected.slice(rows.start * stride..rows.end * stride) };
        match layout {
            RopeLayout::Neighbours => turn_neighbours(isa, &table.turns, &positions[rows], part, heads, norms),
            RopeLayout::Halves => turn_halves(isa, &table.turns, &positions[rows], part, heads, norms),
        }
    });
}

multiversion! {
    fn turn_neighbours(
        turns: &[f32],
        positions: &[u32],
        rows: &mut [f32],
        heads: Heads,
        norms: Option<HeadNorms<'_>>,
    ) {
        each_head(turns, positions, rows, heads, norms, |head, cosines, sines| {
            for (([x, y], cosine), sine) in head.as_chunks_mut::<2>().0.iter_mut().zip(cosines).zip(sines) {
                (*x, *y) = (*x * cosine - *y * sine, *x * sine + *y * cosine);
            }
        });
    }
}

multiversion! {
    fn turn_halves(turns: &[f32], positions: &[u32], rows: &mut [f32], heads: Heads, norms: Option<HeadNorms<'_>>) {
        each_head(turns, positions, rows, heads, norms, |head, cosines, sines| {
            let (first, second) = head.split_at_mut(cosines.len());
            for (((x, y), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                (*x, *y) = (*x * cosine - *y * sine, *x * sine + *y * cosine);
            }
        });
    }
}

/// Norms each head and hands it on with its cosines and sines.
#[inline(always)]
fn each_head(
    turns: &[f32],
    positions: &[u32],
    rows: &mut [f32],
    heads: Heads,
    norms: Option<HeadNorms<'_>>,
    turn: impl Fn(&mut [f32], &[f32], &[f32]),
) {
    for (row, position) in rows.chunks_exact_mut(heads.stride).zip(positions) {
        let turns = &turns[*position as usize * heads.dim..][..heads.dim];
        let (cosines, sines) = turns.split_at(heads.dim / 2);
        let row = &mut row[heads.first..][..heads.count * heads.dim];
        for (index, head) in row.chunks_exact_mut(heads.dim).enumerate() {
            if let Some(norms) = norms {
                let weight = if index < norms.query_heads { norms.query } else { norms.key };
                let factor = norm_factor(head, norms.epsilon);
                head.iter_mut().zip(weight).for_each(|(value, weight)| *value = *value * factor * weight);
            }
            turn(head, cosines, sines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::values;
    use crate::{Pool, RopeTable, rms_norm_rows};

    #[test]
    fn has_the_bits_of_the_reference() {
        let pool = Pool::new(3).unwrap();
        let divisors: Vec<f32> = (0..40).map(|pair| 1.0 + pair as f32).collect();
        for (rows, heads, head_dim) in [(1, 12, 64), (37, 12, 64), (5, 3, 128), (4, 2, 80), (3, 1, 16)] {
            for layout in [RopeLayout::Neighbours, RopeLayout::Halves] {
                for divisors in
                    [&[][..], &divisors[..head_dim.min(80) / 2]].into_iter().filter(|d| d.len() != 40 || head_dim == 80)
                {
                    let (first, stride) = (5, heads * head_dim + 9);
                    let table = RopeRows::new(300, head_dim, 10_000.0, divisors);
                    let reference = RopeTable::with_layout(300, head_dim, 10_000.0, layout, divisors);
                    let positions: Vec<u32> = (0..rows as u32).map(|row| row * 89 % 300).collect();
                    let x = values(3, rows * stride);
                    let mut expected = x.clone();
                    for (row, position) in expected.chunks_mut(stride).zip(&positions) {
                        reference.apply(*position as usize, &mut row[first..][..heads * head_dim]);
                    }
                    for isa in Isa::available() {
                        let mut out = x.clone();
                        pool.step(|team| {
                            rope_rows(
                                team, isa, &table, layout, &positions, &mut out, stride, first, heads, head_dim, None,
                            );
                        });
                        assert_eq!(out, expected, "{isa:?} {layout:?} {rows} {heads} {head_dim}");
                    }
                }
            }
        }
    }

    #[test]
    fn heads_are_normed_by_their_own_weights_before() {
        let (rows, heads, head_dim) = (6, 5, 32);
        let (query, key) = (values(1, head_dim), values(2, head_dim));
        let norms = HeadNorms { query: &query, key: &key, query_heads: 3, epsilon: 1e-6 };
        let table = RopeRows::new(8, head_dim, 10_000.0, &[]);
        let positions = [0, 1, 2, 3, 7, 5];
        let x = values(3, rows * heads * head_dim);
        for isa in Isa::available() {
            let mut expected = x.clone();
            for (index, head) in expected.chunks_mut(head_dim).enumerate() {
                let weight = if index % heads < 3 { &query } else { &key };
                let before = head.to_vec();
                rms_norm_rows(&Team::alone(), isa, &before, weight, 1e-6, head);
            }
            let mut out = x.clone();
            for (out, norms) in [(&mut expected, None), (&mut out, Some(norms))] {
                let (layout, stride) = (RopeLayout::Halves, heads * head_dim);
                rope_rows(&Team::alone(), isa, &table, layout, &positions, out, stride, 0, heads, head_dim, norms);
            }
            assert_eq!(out, expected);
        }
    }
}
