//! What drawing a token takes of a row of logits that is dear: an exponential of each, in f64. Here they are computed many
//! at a time, with the same bits for every instruction set. Not here: the draw.

use crate::Isa;
use crate::isa::multiversion;

/// Logits that are summed together, whoever computes them: the order of a sum is part of its bits.
pub const SUM_BLOCK: usize = 32;
/// Sums that go side by side.
const LANES: usize = 8;
/// Below this an exponential is nothing beside 1: 3e-308.
const LEAST: f64 = -708.0;

/// The exponentials of one row of logits; keeps its memory from row to row.
#[derive(Default)]
pub struct TokenWeights {
    weights: Vec<f64>,
    /// Of each block of weights.
    sums: Vec<f64>,
    parts: Vec<SumPart>,
}

impl TokenWeights {
    /// Nothing kept yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Computes exp((logit − max) / temperature) of each, 0 where that is not finite or the logit is not a number. No logit
    /// may be above `max`. Within 2 units in the last place of the exact exponential; below e^−708 it is 0.
    pub fn fill(&mut self, isa: Isa, logits: &[f32], max: f32, temperature: f32) {
        self.weights.resize(logits.len(), 0.0);
        self.sums.resize(logits.len().div_ceil(SUM_BLOCK), 0.0);
        scaled_weights(isa, logits, max, 1.0 / f64::from(temperature), &mut self.weights, &mut self.sums);
    }

    /// The weights of the last row.
    #[must_use]
    pub fn all(&self) -> &[f64] {
        &self.weights
    }

    /// Their sum.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.sums.iter().sum()
    }

    /// The first with which the sum of the weights, in order, is above `target`; the last above 0 if none is, and `None` if
    /// no weight is above 0.
    #[must_use]
    pub fn pick(&self, target: f64) -> Option<usize> {
        let mut before = 0.0;
        for (weights, (block, sum)) in self.weights.chunks(SUM_BLOCK).zip(self.sums.iter().enumerate()) {
            if before + sum > target {
                let mut reached = before;
                let within = weights.iter().position(|weight| {
                    reached += weight;
                    reached > target
                });
                if let Some(within) = within {
                    return Some(block * SUM_BLOCK + within);
                }
            }
            before += sum;
        }
        self.weights.iter().rposition(|weight| *weight > 0.0)
    }

    /// ln Σ exp(logit), in f64: a logit minus this is its log-probability. Not a number if a logit is not, or if the largest
    /// is infinite.
    #[must_use]
    pub fn log_sum_exp(&mut self, isa: Isa, logits: &[f32]) -> f64 {
        self.parts.clear();
        self.parts.extend(logits.chunks(SUM_BLOCK).map(|block| SumPart::of(isa, block)));
        SumPart::merge(isa, &self.parts)
    }
}

/// What a block of logits adds to the sum of their exponentials.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct SumPart {
    max: f32,
    /// Σ exp(logit − max).
    sum: f64,
}

impl SumPart {
    /// Of at most [`SUM_BLOCK`] logits.
    pub(crate) fn of(isa: Isa, logits: &[f32]) -> Self {
        let mut part = Self::default();
        if let Ok(block) = <&[f32; SUM_BLOCK]>::try_from(logits) {
            sum_block(isa, block, &mut part);
        } else {
            let mut block = [f32::NEG_INFINITY; SUM_BLOCK];
            block[..logits.len()].copy_from_slice(logits);
            sum_block(isa, &block, &mut part);
        }
        part
    }

    /// The logarithm of all, block after block.
    pub(crate) fn merge(isa: Isa, parts: &[Self]) -> f64 {
        let mut merged = 0.0;
        merge_parts(isa, parts, &mut merged);
        merged
    }
}

multiversion! {
    fn scaled_weights(logits: &[f32], max: f32, factor: f64, weights: &mut [f64], block_sums: &mut [f64]) {
        let weight = |logit: f32| {
            let weight = exp(f64::from(logit - max) * factor);
            if weight < f64::INFINITY { weight } else { 0.0 }
        };
        let blocks = logits.chunks(SUM_BLOCK).zip(weights.chunks_mut(SUM_BLOCK));
        for ((logits, weights), block_sum) in blocks.zip(block_sums) {
            let (vectors, rest) = logits.as_chunks::<LANES>();
            let (out, out_rest) = weights.as_chunks_mut::<LANES>();
            let mut sums = [0.0; LANES];
            for (logits, out) in vectors.iter().zip(out) {
                for lane in 0..LANES {
                    out[lane] = weight(logits[lane]);
                    sums[lane] += out[lane];
                }
            }
            for (lane, (out, logit)) in out_rest.iter_mut().zip(rest).enumerate() {
                *out = weight(*logit);
                sums[lane] += *out;
            }
            *block_sum = add(sums);
        }
    }
}

multiversion! {
    fn sum_block(logits: &[f32; SUM_BLOCK], part: &mut SumPart) {
        let blocks = logits.as_chunks::<LANES>().0;
        let mut maxima = [f32::NEG_INFINITY; LANES];
        for logits in blocks {
            for lane in 0..LANES {
                maxima[lane] = if logits[lane] > maxima[lane] { logits[lane] } else { maxima[lane] };
            }
        }
        let max = maxima.iter().fold(f32::NEG_INFINITY, |max, lane| if *lane > max { *lane } else { max });
        // Of a block of nothing the exponentials are 0, not of 0 / 0.
        let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sums = [0.0; LANES];
        for logits in blocks {
            for lane in 0..LANES {
                sums[lane] += exp(f64::from(logits[lane] - base));
            }
        }
        *part = SumPart { max, sum: add(sums) };
    }
}

multiversion! {
    fn merge_parts(parts: &[SumPart], merged: &mut f64) {
        let max = parts.iter().fold(f32::NEG_INFINITY, |max, part| if part.max > max { part.max } else { max });
        let (blocks, rest) = parts.as_chunks::<LANES>();
        let term = |part: &SumPart| part.sum * exp(f64::from(part.max - max));
        let mut sums = [0.0; LANES];
        for parts in blocks {
            for lane in 0..LANES {
                sums[lane] += term(&parts[lane]);
            }
        }
        let sum = add(sums) + rest.iter().map(term).sum::<f64>();
        *merged = if max.is_finite() { f64::from(max) + sum.ln() } else { f64::NAN };
    }
}

#[inline(always)]
fn add(sums: [f64; LANES]) -> f64 {
    ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))
}

/// e^x for x up to 700: 2^n · e^r with |r| at most half of ln 2, and e^r by its series to the 13th power.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// Added to a number below 2^51 it leaves its integer in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// ln 2 in two parts, the first with zeros at its end so that its multiples are exact.
    const LN2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
    const SERIES: [f64; 14] = {
        let mut series = [1.0; 14];
        let mut power = 1;
        while power < 14 {
            series[power] = series[power - 1] / power as f64;
            power += 1;
        }
        series
    };
    let rounded = x.mul_add(std::f64::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2[1], n.mul_add(-LN2[0], x));
    let mut sum = SERIES[13];
    let mut power = 13;
    while power > 0 {
        power -= 1;
        sum = sum.mul_add(r, SERIES[power]);
    }
    let scale = f64::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(1023) << 52);
    let result = sum * scale;
    if x >= LEAST {
        result
    } else if x < LEAST {
        0.0
    } else {
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::values;
    use crate::log_sum_exp;

    /// Relative, of the exponential: 2 units in the last place.
    const TOLERANCE_EXP: f64 = 4.5e-16;
    /// Absolute, of the logarithm of the sum.
    const TOLERANCE_LOG_SUM: f64 = 1e-12;

    #[test]
    fn exponentials_are_those_of_the_library_and_of_every_instruction_set() {
        let logits: Vec<f32> = values(1, 20_003).iter().map(|value| (value - 1.0) * 360.0).collect();
        for temperature in [1.0f32, 0.3, 7.0, 1e-30] {
            let mut expected = TokenWeights::new();
            expected.fill(Isa::plain(), &logits, 0.0, temperature);
            for (logit, weight) in logits.iter().zip(expected.all()) {
                let scaled = f64::from(*logit) * (1.0 / f64::from(temperature));
                let exact = if scaled < LEAST { 0.0 } else { scaled.exp() };
                assert!((weight - exact).abs() <= TOLERANCE_EXP * exact, "{logit} {weight} {exact}");
            }
            for isa in Isa::available() {
                let mut weights = TokenWeights::new();
                weights.fill(isa, &logits, 0.0, temperature);
                assert_eq!((&weights.weights, &weights.sums), (&expected.weights, &expected.sums), "{isa:?}");
            }
        }
        let mut weights = TokenWeights::new();
        weights.fill(Isa::detect(), &[0.0, f32::NAN, f32::NEG_INFINITY, -1.0], 0.0, 1.0);
        assert_eq!(weights.all()[..3], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_pick_is_where_the_running_sum_passes() {
        let mut weights = TokenWeights::new();
        for count in [1, 5, 32, 40, 1000] {
            // Powers of two: every sum is exact.
            let logits: Vec<f32> = (0..count).map(|at| if at % 3 == 1 { f32::NEG_INFINITY } else { 0.0 }).collect();
            weights.fill(Isa::detect(), &logits, 0.0, 1.0);
            let alive: Vec<usize> = (0..count).filter(|at| at % 3 != 1).collect();
            assert_eq!(weights.total(), alive.len() as f64);
            for (place, at) in alive.iter().enumerate() {
                assert_eq!(weights.pick(place as f64), Some(*at));
                assert_eq!(weights.pick(place as f64 + 0.5), Some(*at));
            }
            assert_eq!(weights.pick(f64::INFINITY), alive.last().copied());
        }
        weights.fill(Isa::detect(), &[f32::NAN; 3], 0.0, 1.0);
        assert_eq!(weights.pick(0.0), None);
    }

    #[test]
    fn the_log_sum_is_the_plain_one() {
        for count in [1, 31, 32, 33, 1000, 49_152] {
            let mut logits: Vec<f32> = values(count as u64, count).iter().map(|value| value * 30.0 + 100.0).collect();
            if count > 40 {
                logits[..32].fill(f32::NEG_INFINITY);
                logits[35] = -2e9;
            }
            let mut weights = TokenWeights::new();
            let expected = weights.log_sum_exp(Isa::plain(), &logits);
            assert!((expected - log_sum_exp(&logits)).abs() < TOLERANCE_LOG_SUM, "{count}");
            for isa in Isa::available() {
                assert_eq!(weights.log_sum_exp(isa, &logits).to_bits(), expected.to_bits(), "{isa:?} {count}");
            }
        }
        for broken in [f32::NAN, f32::INFINITY] {
            assert!(TokenWeights::new().log_sum_exp(Isa::detect(), &[1.0, broken, 2.0]).is_nan());
        }
        assert!(TokenWeights::new().log_sum_exp(Isa::detect(), &[f32::NEG_INFINITY; 40]).is_nan());
    }
}
