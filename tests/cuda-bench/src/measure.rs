//! Times and what is said of them: medians, quantiles, seeded draws. Not here: what is timed.

use std::time::{Duration, Instant};

use kernels::cuda::{CudaError, Device, Event, Stream};
use serde_json::{Value, json};

use crate::Outcome;

/// The value below which this share of the values lies, linear between neighbours; 0 of none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let place = share.clamp(0.0, 1.0) * sorted.len().saturating_sub(1) as f64;
    let at = |place: f64| sorted.get(place as usize).copied().unwrap_or_default();
    at(place.floor()) + (at(place.ceil()) - at(place.floor())) * (place - place.floor())
}

/// The middle of some values.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Four digits that count: more are noise.
pub(crate) fn rounded(value: f64) -> Value {
    if value == 0.0 || !value.is_finite() {
        return json!(if value == 0.0 { Some(0.0) } else { None });
    }
    let factor = 10f64.powf((3.0 - value.abs().log10().floor()).clamp(-300.0, 300.0));
    json!((value * factor).round() / factor)
}

/// Median and the range of four fifths, in milliseconds.
pub(crate) fn spread_ms(seconds: &[f64]) -> Value {
    let ms = |share| rounded(1e3 * quantile(seconds, share));
    json!({"median": ms(0.5), "low": ms(0.1), "high": ms(0.9), "count": seconds.len()})
}

/// Until when something may go on, and how often at least and at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    pub(crate) seconds: f64,
    pub(crate) least: usize,
    pub(crate) most: usize,
}

impl Rounds {
    /// Does it once for warmth and then counts, `seconds` long; each call says how long it took.
    pub(crate) fn run(self, mut work: impl FnMut() -> Outcome<f64>) -> Outcome<Vec<f64>> {
        work()?;
        let end = Instant::now() + Duration::from_secs_f64(self.seconds.max(0.0));
        let mut times = Vec::new();
        while times.len() < self.least || (times.len() < self.most && Instant::now() < end) {
            times.push(work()?);
        }
        Ok(times)
    }
}

/// How long the device works on this, in seconds.
pub(crate) fn device_seconds(
    device: &Device,
    stream: &Stream,
    work: impl FnOnce() -> Result<(), CudaError>,
) -> Outcome<f64> {
    let (start, end) = (Event::timed(device)?, Event::timed(device)?);
    stream.record(&start)?;
    work()?;
    stream.record(&end)?;
    end.synchronize()?;
    Ok(f64::from(end.ms_since(&start)?) / 1e3)
}

/// Seeded draws (splitmix64): the same load in every run.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() % end.max(1) as u64) as usize
    }
}

/// Numbers 0.. of which the one of rank r is drawn with weight 1 / r^exponent.
#[derive(Clone, Debug)]
pub(crate) struct Zipf(Vec<f64>);

impl Zipf {
    pub(crate) fn new(count: usize, exponent: f64) -> Self {
        let weights = (1..=count).map(|rank| (rank as f64).powf(-exponent));
        let sums: Vec<f64> = weights
            .scan(0.0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            })
            .collect();
        Self(sums)
    }

    pub(crate) fn draw(&self, random: &mut Random) -> usize {
        let point = random.unit() * self.0.last().copied().unwrap_or_default();
        self.0.partition_point(|sum| *sum <= point).min(self.0.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0], 0.5), 2.5);
        assert_eq!(quantile(&[5.0], 0.99), 5.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(rounded(12345.678), json!(12350.0));
        assert_eq!(rounded(f64::INFINITY), Value::Null);
    }

    #[test]
    fn the_popular_are_drawn_more_often() {
        let (zipf, mut random) = (Zipf::new(100, 1.0), Random::new(1));
        let mut counts = [0; 100];
        (0..10_000).for_each(|_| counts[zipf.draw(&mut random)] += 1);
        // 1 / (1 + 1/2 + ... + 1/100) is 0.193.
        assert!((1800..2060).contains(&counts[0]), "{}", counts[0]);
        assert!(counts[0] > counts[1] && counts[1] > counts[9] && counts.iter().sum::<i32>() == 10_000);
    }
}
