//! Who is asked for how often: Zipf's law, the n-th most popular of all with a share of 1/n. Not here: the requests.

use crate::adapters::split_mix;

/// Adapters by popularity.
pub(super) struct Popularity {
    /// The most popular one first.
    by_rank: Vec<usize>,
    /// Sums of the shares up to each rank.
    sums: Vec<f64>,
}

impl Popularity {
    /// Of adapters 0, 1, …; which of them are popular follows from the seed.
    pub(super) fn zipf(adapters: usize, seed: u64) -> Self {
        let (mut by_rank, mut state): (Vec<usize>, u64) = ((0..adapters).collect(), seed);
        // Fisher and Yates: popularity must say nothing of an adapter's rank or of when it was registered.
        for last in (1..adapters).rev() {
            by_rank.swap(last, split_mix(&mut state) as usize % (last + 1));
        }
        let sums = (1..=adapters).scan(0.0, |sum, rank| {
            *sum += 1.0 / rank as f64;
            Some(*sum)
        });
        Self { sums: sums.collect(), by_rank }
    }

    /// The next one who is asked for.
    pub(super) fn draw(&self, state: &mut u64) -> usize {
        let all = self.sums.last().copied().unwrap_or_default();
        // 53 bits, as a f64 has.
        let wanted = (split_mix(state) >> 11) as f64 / (1u64 << 53) as f64 * all;
        let rank = self.sums.partition_point(|sum| *sum <= wanted);
        self.by_rank.get(rank).or(self.by_rank.last()).copied().unwrap_or_default()
    }

    /// So many of the most popular ones, the most popular last: touched in this order, they are what a cache of that size
    /// holds after a long time.
    pub(super) fn top_ascending(&self, count: usize) -> Vec<usize> {
        self.by_rank.iter().take(count).rev().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_is_asked_for_a_nth_as_often() {
        let popularity = Popularity::zipf(100, 7);
        let mut counts = vec![0u32; 100];
        let mut state = 3;
        (0..100_000).for_each(|_| counts[popularity.draw(&mut state)] += 1);
        let of = |rank: usize| f64::from(counts[popularity.by_rank[rank - 1]]);
        // The sum of 1/n up to 100 is 5.187.
        assert!((of(1) / 100_000.0 - 1.0 / 5.187).abs() < 0.01, "{}", of(1));
        assert!((of(1) / of(2) - 2.0).abs() < 0.15 && (of(1) / of(10) - 10.0).abs() < 1.5, "{counts:?}");
        assert!(counts.iter().all(|count| *count > 50), "all are asked for");
    }

    #[test]
    fn a_seed_gives_one_order_and_all_adapters() {
        let (one, same, other) = (Popularity::zipf(50, 1), Popularity::zipf(50, 1), Popularity::zipf(50, 2));
        assert_eq!(one.by_rank, same.by_rank);
        assert_ne!(one.by_rank, other.by_rank);
        let mut all = one.by_rank.clone();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        let top = one.top_ascending(3);
        assert_eq!(top, [one.by_rank[2], one.by_rank[1], one.by_rank[0]]);
        assert_eq!(one.top_ascending(80).len(), 50);
    }
}
