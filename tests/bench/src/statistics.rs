//! Medians, spreads, ratios of interleaved sides, and what may be concluded from them. Not here: what is measured.
//!
//! Two sides of a ratio are measured in turn, round after round, so that what the machine does to one it does to the other;
//! the ratio of a round is the ratio of its two values, and the result their median. One side is measured twice in each
//! round: the ratio of those two (A/A) says how far a ratio may be from 1 for no reason at all.

/// The middle of some values; `None` of none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The value below which this share of the values lies, linear between neighbours; `None` of none.
pub(crate) fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let place = share.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
    Some(below + (above - below) * (place - place.floor()))
}

/// How sure a range about a median is to hold it.
const SURE: f64 = 0.95;

/// A median and a range about it: where four fifths of the values lie, or where the median itself does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Of some values; `None` of none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        Some(Self { median: median(values)?, low: quantile(values, 0.1)?, high: quantile(values, 0.9)? })
    }

    /// Of the ratios of values that were measured in the same rounds.
    pub(crate) fn of_ratios(above: &[f64], below: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = above.iter().zip(below).map(|(above, below)| above / below).collect();
        Self::of(&ratios)
    }

    /// The median and where it lies with a certainty of [`SURE`], whatever the values' distribution is: between the two
    /// that stand as far from the middle as a fair coin's heads may fall (the sign test's interval). Below six values that is
    /// all of them, and no certainty. Bars are judged by it: more rounds narrow it, as they do not the values' own spread.
    pub(crate) fn of_median(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let outside = values_outside(sorted.len());
        let (low, high) = (sorted.get(outside)?, sorted.get(sorted.len() - 1 - outside)?);
        Some(Self { median: median(values)?, low: *low, high: *high })
    }

    /// [`Self::of_median`] of the ratios of values that were measured in the same rounds.
    pub(crate) fn of_median_ratio(above: &[f64], below: &[f64]) -> Option<Self> {
        let ratios: Vec<f64> = above.iter().zip(below).map(|(above, below)| above / below).collect();
        Self::of_median(&ratios)
    }

    /// Of a value that was measured once, or follows from such.
    pub(crate) const fn exactly(value: f64) -> Self {
        Self { median: value, low: value, high: value }
    }

    /// As wide as a ratio of a side to itself was found to be, at least: what lies within that is noise.
    pub(crate) fn widened_by(self, control: Self) -> Self {
        let factor_low = (control.low / control.median).min(1.0 / control.high).min(control.low).min(1.0);
        let factor_high = (control.high / control.median).max(1.0 / control.low).max(control.high).max(1.0);
        Self {
            median: self.median,
            low: self.low.min(self.median * factor_low),
            high: self.high.max(self.median * factor_high),
        }
    }

    /// What a ratio of a side to itself says of the ratio of the geometric mean of both its values to something else: in
    /// logarithms that mean is off by half of what the two differ by.
    pub(crate) fn of_mean(self) -> Self {
        Self { median: self.median.sqrt(), low: self.low.sqrt(), high: self.high.sqrt() }
    }

    /// As wide as a difference of a side to itself was found to be, at least.
    pub(crate) fn widened_by_difference(self, control: Self) -> Self {
        let noise = control.low.abs().max(control.high.abs());
        Self { median: self.median, low: self.low.min(self.median - noise), high: self.high.max(self.median + noise) }
    }

    /// The same with every value multiplied.
    pub(crate) fn times(self, factor: f64) -> Self {
        Self { median: self.median * factor, low: self.low * factor, high: self.high * factor }
    }
}

/// How many of so many values may lie beyond each end of a range that holds their median with a certainty of [`SURE`].
fn values_outside(count: usize) -> usize {
    let mut outside = 0;
    // Chances that exactly so many, and that at most so many, fair coins show heads.
    let (mut exactly, mut at_most) = (0.5f64.powi(i32::try_from(count).unwrap_or(i32::MAX)), 0.0);
    loop {
        at_most += exactly;
        if 2.0 * at_most > 1.0 - SURE || 2 * outside + 1 >= count {
            return outside.saturating_sub(1);
        }
        exactly *= (count - outside) as f64 / (outside + 1) as f64;
        outside += 1;
    }
}

/// What a value must reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

/// Whether it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Yes,
    No,
    /// The bar lies within the spread.
    Undecided,
}

impl Bound {
    /// Whether a value with this spread keeps the bound, for all of its spread.
    pub(crate) fn judge(self, spread: Spread) -> Verdict {
        let keeps = |value: f64| match self {
            Self::AtLeast(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
            Self::Below(bar) => value < bar,
        };
        match (keeps(spread.low), keeps(spread.high)) {
            (true, true) => Verdict::Yes,
            (false, false) => Verdict::No,
            _ => Verdict::Undecided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_two_values_is_off_by_half_of_what_they_differ_by() {
        let control = Spread { median: 1.0, low: 0.81, high: 1.21 };
        let spread = Spread::exactly(10.0).widened_by(control.of_mean());
        assert!((spread.low - 10.0 / 1.1).abs() < 0.1 && spread.low >= 9.0 && spread.high <= 11.2, "{spread:?}");
        assert!(Spread::exactly(10.0).widened_by(control).low < 8.3);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[f64::NAN, 5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(quantile(&[0.0, 10.0], 0.9), Some(9.0));
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 7.0), Some(3.0));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine halves its speed in the last rounds: the ratio does not notice.
        let (ours, theirs) = ([100.0, 100.0, 50.0, 50.0], [50.0, 50.0, 25.0, 25.0]);
        assert_eq!(Spread::of_ratios(&ours, &theirs), Some(Spread::exactly(2.0)));
    }

    #[test]
    fn a_median_is_surer_of_more_values() {
        // Of a table of the sign test's intervals: ranks 1, 1, 2, 3, 6, 10 from each end.
        assert_eq!([1, 5, 6, 8, 9, 12, 20, 30].map(values_outside), [0, 0, 0, 0, 1, 2, 5, 9]);
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert_eq!(Spread::of_median(&values), Some(Spread { median: 10.5, low: 6.0, high: 15.0 }));
        assert_eq!(Spread::of_median(&[2.0, 9.0]), Some(Spread { median: 5.5, low: 2.0, high: 9.0 }));
        assert_eq!(Spread::of_median(&[]), None);
        assert_eq!(Spread::of_median_ratio(&[4.0], &[2.0]), Some(Spread::exactly(2.0)));
    }

    #[test]
    fn a_bar_within_the_spread_is_undecided() {
        let spread = Spread { median: 2.1, low: 1.9, high: 2.3 };
        assert_eq!(Bound::AtLeast(1.8).judge(spread), Verdict::Yes);
        assert_eq!(Bound::AtLeast(2.0).judge(spread), Verdict::Undecided);
        assert_eq!(Bound::AtLeast(2.4).judge(spread), Verdict::No);
        assert_eq!(Bound::AtMost(2.3).judge(spread), Verdict::Yes);
        assert_eq!(Bound::Below(2.3).judge(spread), Verdict::Undecided);
        assert_eq!(Bound::AtMost(1.0).judge(spread), Verdict::No);
    }

    #[test]
    fn a_noisy_control_widens_a_ratio_and_a_quiet_one_does_not() {
        let ratio = Spread { median: 2.0, low: 1.98, high: 2.02 };
        let noisy = ratio.widened_by(Spread { median: 1.0, low: 0.9, high: 1.1 });
        assert!(noisy.low <= 1.81 && noisy.high >= 2.2 && noisy.median == 2.0, "{noisy:?}");
        assert_eq!(ratio.widened_by(Spread::exactly(1.0)), ratio);
        let difference = Spread { median: 5.0, low: 4.9, high: 5.2 };
        let wide = difference.widened_by_difference(Spread { median: 0.1, low: -0.5, high: 0.2 });
        assert_eq!(wide, Spread { median: 5.0, low: 4.5, high: 5.5 });
        assert_eq!(difference.widened_by_difference(Spread::exactly(0.0)), difference);
        // A control that is off to one side is noise to both.
        let aside = ratio.widened_by(Spread { median: 1.2, low: 1.15, high: 1.25 });
        assert!(aside.low <= 1.61 && aside.high >= 2.5, "{aside:?}");
    }
}
