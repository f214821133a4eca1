//! Rotary position embedding (Su et al., 2021): each pair of values of a head is turned by position · frequency, where
//! pair i has frequency theta^(-2i / head_dim), divided by a factor of its own where the base was scaled to longer contexts.
//! Which values make a pair is the [`RopeLayout`].

/// Which values of a head are turned together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// 2i and 2i + 1. GGUF's files of architecture `llama` store the rows of q and k in the order that this wants.
    #[default]
    Neighbours,
    /// i and i + head_dim / 2: transformers' order (`rotate_half`), and that of GGUF's other architectures.
    Halves,
}

/// The cosines and sines of every position.
pub struct RopeTable {
    layout: RopeLayout,
    pairs: usize,
    /// (cosine, sine), `[positions, pairs]`.
    turns: Vec<(f32, f32)>,
}

impl RopeTable {
    /// For positions `0 .. positions` and heads of `head_dim` values, in neighbours, not scaled.
    #[must_use]
    pub fn new(positions: usize, head_dim: usize, theta: f32) -> Self {
        Self::with_layout(positions, head_dim, theta, RopeLayout::Neighbours, &[])
    }

    /// For positions `0 .. positions` and heads of `head_dim` values. `divisors` `[head_dim / 2]` divide the frequencies;
    /// there are none where the base is not scaled.
    ///
    /// # Panics
    /// If there are divisors, but not one for each pair.
    #[must_use]
    pub fn with_layout(positions: usize, head_dim: usize, theta: f32, layout: RopeLayout, divisors: &[f32]) -> Self {
        let pairs = head_dim / 2;
        assert!(divisors.is_empty() || divisors.len() == pairs);
        let frequency = |pair: usize| {
            let divisor = divisors.get(pair).map_or(1.0, |divisor| f64::from(*divisor));
            f64::from(theta).powf(-2.0 * pair as f64 / head_dim as f64) / divisor
        };
        let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
        let turn = |position: usize, frequency: f64| {
            let (sine, cosine) = (position as f64 * frequency).sin_cos();
            (cosine as f32, sine as f32)
        };
        let turns = (0..positions).flat_map(|p| frequencies.iter().map(move |f| turn(p, *f))).collect();
        Self { layout, pairs, turns }
    }

    /// Turns every head of one row, which is at this position.
    ///
    /// # Panics
    /// If the position is beyond the table or the row is not made of whole heads.
    pub fn apply(&self, position: usize, heads: &mut [f32]) {
        assert!(heads.len().is_multiple_of(2 * self.pairs));
        let turns = &self.turns[position * self.pairs..][..self.pairs];
        for head in heads.chunks_exact_mut(2 * self.pairs) {
            match self.layout {
                RopeLayout::Neighbours => {
                    for ([x, y], turn) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                        (*x, *y) = turned(*x, *y, *turn);
                    }
                }
                RopeLayout::Halves => {
                    let (first, second) = head.split_at_mut(self.pairs);
                    for ((x, y), turn) in first.iter_mut().zip(second).zip(turns) {
                        (*x, *y) = turned(*x, *y, *turn);
                    }
                }
            }
        }
    }
}

fn turned(x: f32, y: f32, (cosine, sine): (f32, f32)) -> (f32, f32) {
    (x * cosine - y * sine, x * sine + y * cosine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_keep_length_and_depend_on_distance_only() {
        for layout in [RopeLayout::Neighbours, RopeLayout::Halves] {
            let table = RopeTable::with_layout(64, 4, 10_000.0, layout, &[]);
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

    #[test]
    fn halves_are_neighbours_in_another_order() {
        let (head_dim, heads) = (32, 3);
        let values: Vec<f32> = (0..head_dim * heads).map(|at| ((at * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let neighbour = |at: usize| at / head_dim * head_dim + 2 * (at % 16) + at % head_dim / 16;
        let mut halves = values.clone();
        let mut neighbours = vec![0.0; values.len()];
        values.iter().enumerate().for_each(|(at, value)| neighbours[neighbour(at)] = *value);
        RopeTable::with_layout(9, head_dim, 500_000.0, RopeLayout::Halves, &[]).apply(7, &mut halves);
        RopeTable::new(9, head_dim, 500_000.0).apply(7, &mut neighbours);
        assert!(halves != values);
        halves.iter().enumerate().for_each(|(at, value)| assert_eq!(*value, neighbours[neighbour(at)], "{at}"));
    }

    #[test]
    fn a_divisor_slows_its_own_pair() {
        let plain = RopeTable::new(16, 4, 10_000.0);
        let scaled = RopeTable::with_layout(16, 4, 10_000.0, RopeLayout::Neighbours, &[4.0, 1.0]);
        let (mut at_three, mut at_twelve) = ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]);
        plain.apply(3, &mut at_three);
        scaled.apply(12, &mut at_twelve);
        assert_eq!(at_three[..2], at_twelve[..2]);
        let mut again = [1.0, 2.0, 3.0, 4.0];
        plain.apply(12, &mut again);
        assert_eq!(again[2..], at_twelve[2..]);
    }
}
