//! Rotary position embedding (Su et al., 2021) on neighbouring pairs: values 2i and 2i + 1 of a head are turned by
//! position · theta^(-2i / head_dim). GGUF's Llama files store the rows of q and k in the order that this wants.

/// The cosines and sines of every position.
pub struct RopeTable {
    pairs: usize,
    /// (cosine, sine), `[positions, pairs]`.
    turns: Vec<(f32, f32)>,
}

impl RopeTable {
    /// For positions `0 .. positions` and heads of `head_dim` values.
    #[must_use]
    pub fn new(positions: usize, head_dim: usize, theta: f32) -> Self {
        let pairs = head_dim / 2;
        let frequency = |pair: usize| f64::from(theta).powf(-2.0 * pair as f64 / head_dim as f64);
        let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
        let turn = |position: usize, frequency: f64| {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            (cosine as f32, sine as f32)
        };
        let turns = (0..positions).flat_map(|p| frequencies.iter().map(move |f| turn(p, *f))).collect();
        Self { pairs, turns }
    }

    /// Turns every head of one row, which is at this position.
    ///
    /// # Panics
    /// If the position is beyond the table or the row is not made of whole heads.
    pub fn apply(&self, position: usize, heads: &mut [f32]) {
        assert!(heads.len().is_multiple_of(2 * self.pairs));
        let turns = &self.turns[position * self.pairs..][..self.pairs];
        for head in heads.chunks_exact_mut(2 * self.pairs) {
            for (pair, (cosine, sine)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                let [x, y] = *pair;
                *pair = [x * cosine - y * sine, x * sine + y * cosine];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_keep_length_and_depend_on_distance_only() {
        let table = RopeTable::new(64, 4, 10_000.0);
        let dot = |p: usize, q: usize| {
            let (mut a, mut b) = ([1.0, 2.0, -0.5, 3.0], [0.3, -1.0, 2.0, 0.7]);
            table.apply(p, &mut a);
            table.apply(q, &mut b);
            a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>()
        };
        assert!((dot(3, 1) - dot(40, 38)).abs() < 1e-5);
        assert!((dot(3, 1) - dot(40, 39)).abs() > 1e-2);
        let mut first = [1.0, 2.0, 3.0, 4.0];
        table.apply(0, &mut first);
        assert_eq!(first, [1.0, 2.0, 3.0, 4.0]);
    }
}
