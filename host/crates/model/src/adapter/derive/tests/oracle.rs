//! What the methods mean, in plain loops: no linear algebra of a library, no sharing with what is tested but the reading of
//! canonical bytes.

use std::collections::BTreeMap;

use types::Digest;

use crate::ModelConfig;
use crate::adapter::tensors::{self, Factor, Place, Site};
use crate::adapter::{AdapterLimits, CanonicalAdapter, canonical};

/// Dense `[outputs, inputs]` by rows.
pub(super) type Deltas = BTreeMap<Site, Vec<f64>>;

/// Values between -1 and 1 (splitmix64).
pub(super) fn seeded(seed: u64) -> impl Iterator<Item = f32> {
    (1u64..).map(move |step| {
        let mut word = (seed << 32).wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    })
}

/// s·B·A of every module.
pub(super) fn deltas(bytes: &[u8], config: &ModelConfig) -> Deltas {
    let read = canonical::read(bytes, config, &AdapterLimits::default()).expect("canonical bytes");
    let (terms, tensors) = (read.terms, read.tensors);
    let factor = |site, factor| tensors::values(&tensors[&Place { site, factor }]);
    let delta = |(&site, term): (&Site, &tensors::Term)| {
        let (inputs, outputs) = config.module_shape(site.module);
        let (a, b) = (factor(site, Factor::A), factor(site, Factor::B));
        let mut delta = vec![0.0; inputs * outputs];
        for (at, value) in delta.iter_mut().enumerate() {
            let (row, column) = (at / inputs, at % inputs);
            let product = |rank| f64::from(b[row * term.rank + rank]) * f64::from(a[rank * inputs + column]);
            *value = term.scale * (0..term.rank).map(product).sum::<f64>();
        }
        (site, delta)
    };
    terms.iter().map(delta).collect()
}

/// Σ wᵢ·τᵢ
pub(super) fn weighted(parts: &[Deltas], weights: &[f64]) -> Deltas {
    let mut sum = Deltas::new();
    for (part, weight) in parts.iter().zip(weights) {
        for (site, delta) in part {
            let into = sum.entry(*site).or_insert_with(|| vec![0.0; delta.len()]);
            into.iter_mut().zip(delta).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    sum
}

pub(super) fn sum(adapters: &[CanonicalAdapter], weights: &[f64], config: &ModelConfig) -> Deltas {
    let parts: Vec<Deltas> = adapters.iter().map(|one| deltas(&one.bytes, config)).collect();
    weighted(&parts, weights)
}

/// By sorting.
pub(super) fn largest(deltas: &Deltas, density: f64) -> Deltas {
    let pruned = |delta: &Vec<f64>| {
        let mut order: Vec<usize> = (0..delta.len()).collect();
        order.sort_by(|one, other| delta[*other].abs().total_cmp(&delta[*one].abs()));
        let mut kept = vec![0.0; delta.len()];
        for at in &order[..(density * delta.len() as f64) as usize] {
            kept[*at] = delta[*at];
        }
        kept
    };
    deltas.iter().map(|(site, delta)| (*site, pruned(delta))).collect()
}

/// Element by element: elect, then average what agrees.
pub(super) fn elected(parts: &[Deltas], weights: &[f64], by_count: bool) -> Deltas {
    let mut merged = weighted(parts, weights);
    for (site, delta) in &mut merged {
        let own: Vec<(f64, &Vec<f64>)> =
            parts.iter().zip(weights).filter_map(|(part, weight)| Some((*weight, part.get(site)?))).collect();
        for (at, value) in delta.iter_mut().enumerate() {
            let column: Vec<(f64, f64)> = own.iter().map(|(weight, part)| (*weight, part[at])).collect();
            let count = |sign: f64| column.iter().filter(|(_, value)| value * sign > 0.0).count();
            let total: f64 = column.iter().map(|(_, value)| value).sum();
            let is_positive = if by_count { count(1.0) >= count(-1.0) } else { total >= 0.0 };
            let sign = if is_positive { 1.0 } else { -1.0 };
            let agreeing: Vec<f64> =
                column.iter().filter(|(_, value)| value * sign > 0.0).map(|(weight, value)| weight * value).collect();
            *value = agreeing.iter().sum::<f64>() / agreeing.len().max(1) as f64;
        }
    }
    merged
}

/// What a mask leaves, as the documentation of masks says it: draw n is the n-th little-endian u32 of BLAKE3's output.
pub(super) fn mask(adapter: &CanonicalAdapter, seed: u32, density: f64, config: &ModelConfig) -> Deltas {
    let mut deltas = deltas(&adapter.bytes, config);
    for (site, delta) in &mut deltas {
        let parts: [&[u8]; 4] = [
            &seed.to_le_bytes(),
            adapter.digest.as_bytes(),
            &(site.layer as u64).to_le_bytes(),
            site.module.name().as_bytes(),
        ];
        let mut hasher = blake3::Hasher::new_derive_key("tenon 2026 derive: dare mask 1");
        hasher.update(&parts.concat());
        let mut draws = vec![0; delta.len() * 4];
        hasher.finalize_xof().fill(&mut draws);
        for (value, draw) in delta.iter_mut().zip(draws.chunks(4)) {
            let chance = f64::from(u32::from_le_bytes(draw.try_into().expect("four bytes"))) / 2_f64.powi(32);
            *value = if chance < density { *value / density } else { 0.0 };
        }
    }
    assert_eq!(Digest::of(&adapter.bytes), adapter.digest);
    deltas
}

pub(super) fn norm(deltas: &Deltas) -> f64 {
    deltas.values().flatten().map(|value| value * value).sum::<f64>().sqrt()
}

pub(super) fn distance(one: &Deltas, other: &Deltas) -> f64 {
    let squares = |(site, delta): (&Site, &Vec<f64>)| {
        delta.iter().zip(&other[site]).map(|(one, other)| (one - other) * (one - other)).sum::<f64>()
    };
    one.iter().map(squares).sum::<f64>().sqrt()
}

/// The part of the norm that no factors of this rank have, by Eckart and Young.
pub(super) fn best_error(deltas: &Deltas, rank: usize, config: &ModelConfig) -> f64 {
    let lost = |(site, delta): (&Site, &Vec<f64>)| {
        let mut squares = squared_singular_values(delta, config.module_shape(site.module).0);
        squares.sort_by(|one, other| other.total_cmp(one));
        squares.iter().skip(rank).sum::<f64>()
    };
    deltas.iter().map(lost).sum::<f64>().sqrt() / norm(deltas)
}

/// One-sided Jacobi (Hestenes): rows are turned until they are orthogonal.
fn squared_singular_values(delta: &[f64], inputs: usize) -> Vec<f64> {
    let mut rows: Vec<Vec<f64>> = delta.chunks(inputs).map(<[f64]>::to_vec).collect();
    let dot = |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(one, other)| one * other).sum::<f64>();
    for _ in 0..60 {
        for first in 0..rows.len() {
            for second in first + 1..rows.len() {
                let (alpha, beta) = (dot(&rows[first], &rows[first]), dot(&rows[second], &rows[second]));
                let gamma = dot(&rows[first], &rows[second]);
                if gamma.abs() <= 1e-15 * (alpha * beta).sqrt() {
                    continue;
                }
                let zeta = (beta - alpha) / (2.0 * gamma);
                let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                let sine = cosine * tangent;
                let (before, after) = rows.split_at_mut(second);
                for (one, other) in before[first].iter_mut().zip(&mut after[0]) {
                    (*one, *other) = (cosine * *one - sine * *other, sine * *one + cosine * *other);
                }
            }
        }
    }
    rows.iter().map(|row| dot(row, row)).collect()
}
