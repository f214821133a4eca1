//! The exponential function on vectors, with the same bits on every instruction set (after Cephes' `expf`, Moshier).
//! Not here: powers of two for attention (`attention_tile`), which need less.
//!
//! Error: at most 2 units in the last place where the result is a normal number (asserted by a test), half a unit of the
//! smallest number more below; 0 from -104 down, infinity from 88.723 up, NaN for NaN.

use crate::Isa;
use crate::isa::multiversion;

/// ln 2 in two parts; the first has few enough bits that its product with a whole number up to 150 is exact.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// Coefficients of r⁷ down to r² in e^r, |r| ≤ ln(2) / 2.
const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
/// Adding it rounds to whole numbers and leaves them in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Replaces each value by e to its power.
pub fn exp(isa: Isa, values: &mut [f32]) {
    exp_all(isa, values);
}

multiversion! {
    fn exp_all(values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value = exp_one(*value));
    }
}

/// e^x.
#[inline(always)]
pub(crate) fn exp_one(x: f32) -> f32 {
    // Comparisons that leave NaN as it is.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let whole = rounded - ROUND;
    let r = whole.mul_add(-LN2[1], whole.mul_add(-LN2[0], x));
    let mut sum = POLYNOMIAL[0];
    for coefficient in &POLYNOMIAL[1..] {
        sum = sum.mul_add(r, *coefficient);
    }
    let sum = sum.mul_add(r * r, r) + 1.0;
    // 2^whole in two factors, as it may be outside of the normal numbers.
    let power = rounded.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let scale = |power: i32| f32::from_bits((power.wrapping_add(127) << 23).cast_unsigned());
    sum * scale(power >> 1) * scale(power - (power >> 1))
}

/// Coefficients of f⁵ down to 1 in 2^f, |f| ≤ 1/2: relative error below 1e-7, before rounding.
const EXP2_NEAR: [f32; 6] = [1.326_472_7e-3, 9.671_513e-3, 5.550_733_7e-2, 0.240_222_42, 0.693_146_97, 1.0];

/// e^x in fewer steps, for a sum with something of order one: relative error below 5e-7 for x in -20 .. 20 and below 4e-6
/// elsewhere; 0 below -87, infinity above 88, NaN for NaN.
#[inline(always)]
pub(crate) fn exp_fast(x: f32) -> f32 {
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let f = x.mul_add(std::f32::consts::LOG2_E, ROUND - rounded);
    let mut sum = EXP2_NEAR[0];
    for coefficient in &EXP2_NEAR[1..] {
        sum = sum.mul_add(f, *coefficient);
    }
    // The whole number is in the low bits of `rounded`, whose other bits leave at the top.
    let power = f32::from_bits(sum.to_bits().wrapping_add(rounded.to_bits() << 23));
    // Comparisons that leave NaN as it is.
    let power = if x < -87.0 { 0.0 } else { power };
    if x > 88.0 { f32::INFINITY } else { power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_two_units_in_the_last_place() {
        for isa in Isa::available() {
            let inputs: Vec<f32> = (0..1_000_003).map(|step| -104.5 + step as f32 * 1.945e-4).collect();
            let mut out = inputs.clone();
            exp(isa, &mut out);
            for (x, out) in inputs.iter().zip(out) {
                let exact = f64::from(*x).exp();
                if exact > f64::from(f32::MAX) {
                    assert!(out == f32::INFINITY || *x < 88.7229, "{x}: {out}");
                    continue;
                }
                let unit = f64::from((exact as f32).next_up() - exact as f32).max(1.5e-45);
                assert!((f64::from(out) - exact).abs() <= 2.0 * unit, "{isa:?} {x}: {out} {exact}");
            }
        }
    }

    #[test]
    fn the_fast_one_is_close() {
        for step in 0..1_000_003 {
            let x = -89.0 + step as f32 * 1.78e-4;
            let (out, exact) = (f64::from(exp_fast(x)), f64::from(x).exp());
            let bound = if x.abs() <= 20.0 { 5e-7 } else { 4e-6 };
            let close = (out - exact).abs() <= bound * exact;
            assert!(close || x < -87.0 && out == 0.0 || x > 88.0 && out == f64::INFINITY, "{x}: {out} {exact}");
        }
        assert!(exp_fast(f32::NAN).is_nan());
        let ends = [f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 0.0].map(exp_fast);
        assert_eq!(ends, [f32::INFINITY, 0.0, f32::INFINITY, 0.0, 1.0]);
    }

    #[test]
    fn the_same_bits_and_special_values() {
        let inputs =
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 88.72, 88.73, -87.5, -103.0, 1e30, -1e30, 1e-40];
        for isa in Isa::available() {
            let (mut out, mut plain) = (inputs, inputs);
            exp(isa, &mut out);
            exp(Isa::plain(), &mut plain);
            assert_eq!(out.map(f32::to_bits), plain.map(f32::to_bits));
            assert!(out[0].is_nan());
            assert_eq!(out[1..5], [f32::INFINITY, 0.0, 1.0, 1.0]);
            assert_eq!((out[6], out[9], out[10], out[11]), (f32::INFINITY, f32::INFINITY, 0.0, 1.0));
            assert!(out[5].is_finite() && out[7] > 0.0 && out[8] > 0.0);
        }
    }
}
