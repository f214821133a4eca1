//! Methods that look at each element of a delta: what is kept of it, and how several become one. All in f64, a matrix
//! `[outputs, inputs]` by rows in transformers' order. Not here: the compression of the result (`factors`).

use blake3::OutputReader;

use super::recipe::{Keep, MajoritySign, Merge};
use super::{Piece, Site, factors};

/// Domain of the masks; another number with each change of what they are.
const MASK_DOMAIN: &str = "tenon 2026 derive: dare mask 1";
/// Bytes of one draw.
const DRAW_BYTES: usize = size_of::<u32>();
/// Draws that are taken from the generator at once.
const DRAWS_AT_ONCE: usize = 1024;

/// The merged delta. Each parent's delta is made when it is needed, twice where signs are elected, so that memory does not
/// grow with the parents.
pub(super) fn merged(
    pieces: &[Piece<'_>],
    site: Site,
    inputs: usize,
    outputs: usize,
    keep: Keep,
    merge: Merge,
) -> Vec<f64> {
    let kept = |piece: &Piece<'_>| {
        let mut delta = factors::delta(piece, inputs, outputs);
        match keep {
            Keep::Largest { density } => keep_largest(&mut delta, density),
            Keep::Random { density, seed } => keep_random(&mut delta, density, mask(seed, piece, site)),
        }
        delta
    };
    match merge {
        Merge::Sum => {
            let mut sum = vec![0.0; inputs * outputs];
            for piece in pieces {
                sum.iter_mut().zip(kept(piece)).for_each(|(sum, value)| *sum += piece.weight * value);
            }
            sum
        }
        Merge::Elected(sign) => elected(pieces, inputs * outputs, sign, kept),
    }
}

/// The mean of what agrees with the elected sign; a vote that is even elects plus, as in PEFT.
fn elected(pieces: &[Piece<'_>], values: usize, sign: MajoritySign, kept: impl Fn(&Piece<'_>) -> Vec<f64>) -> Vec<f64> {
    let mut votes = vec![0.0; values];
    for piece in pieces {
        let vote = |value: f64| match sign {
            MajoritySign::Total => value,
            MajoritySign::Frequency if value == 0.0 => 0.0,
            MajoritySign::Frequency => value.signum(),
        };
        votes.iter_mut().zip(kept(piece)).for_each(|(votes, value)| *votes += vote(value));
    }
    let (mut sum, mut agreeing) = (vec![0.0; values], vec![0_u8; values]);
    for piece in pieces {
        let elements = sum.iter_mut().zip(&mut agreeing).zip(&votes).zip(kept(piece));
        for (((sum, agreeing), votes), value) in elements {
            let agrees = if *votes >= 0.0 { value > 0.0 } else { value < 0.0 };
            if agrees {
                *sum += piece.weight * value;
                *agreeing = agreeing.saturating_add(1);
            }
        }
    }
    sum.iter_mut().zip(agreeing).for_each(|(sum, agreeing)| *sum /= f64::from(agreeing.max(1)));
    sum
}

/// Keeps the ⌊density · n⌋ elements of largest size; of equal ones the first.
fn keep_largest(values: &mut [f64], density: f64) {
    let kept = (density * values.len() as f64) as usize;
    if kept >= values.len() {
        return;
    }
    let Some(last) = kept.checked_sub(1) else { return values.fill(0.0) };
    let mut sizes: Vec<f64> = values.iter().map(|value| value.abs()).collect();
    let (_, threshold, _) = sizes.select_nth_unstable_by(last, |one, other| other.total_cmp(one));
    let threshold = *threshold;
    let mut equal_kept = kept - values.iter().filter(|value| value.abs() > threshold).count();
    for value in values {
        let is_kept = if value.abs() == threshold && equal_kept > 0 {
            equal_kept -= 1;
            true
        } else {
            value.abs() > threshold
        };
        if !is_kept {
            *value = 0.0;
        }
    }
}

/// Draws of a module's mask. They follow from the seed, the parent and the module alone: the output of BLAKE3, which any part can
/// be taken of, so that neither the order of work nor the other parents matter.
fn mask(seed: u32, piece: &Piece<'_>, site: Site) -> OutputReader {
    let mut hasher = blake3::Hasher::new_derive_key(MASK_DOMAIN);
    hasher.update(&seed.to_le_bytes());
    hasher.update(piece.digest.as_bytes());
    hasher.update(&(site.layer as u64).to_le_bytes());
    hasher.update(site.module.name().as_bytes());
    hasher.finalize_xof()
}

/// Element n is kept if the draw n is below density · 2³², and is then divided by the density.
fn keep_random(values: &mut [f64], density: f64, mut mask: OutputReader) {
    let below = (density * (1_u64 << u32::BITS) as f64).ceil() as u64;
    let mut draws = [0; DRAWS_AT_ONCE * DRAW_BYTES];
    for values in values.chunks_mut(DRAWS_AT_ONCE) {
        mask.fill(&mut draws);
        for (value, draw) in values.iter_mut().zip(draws.as_chunks::<DRAW_BYTES>().0) {
            let is_kept = u64::from(u32::from_le_bytes(*draw)) < below;
            *value = if is_kept { *value / density } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_stay_and_of_equal_ones_the_first() {
        let kept = |values: &[f64], density| {
            let mut values = values.to_vec();
            keep_largest(&mut values, density);
            values
        };
        assert_eq!(kept(&[1.0, -4.0, 3.0, -2.0], 0.5), [0.0, -4.0, 3.0, 0.0]);
        assert_eq!(kept(&[2.0, -2.0, 2.0, 1.0], 0.5), [2.0, -2.0, 0.0, 0.0]);
        assert_eq!(kept(&[2.0, -2.0, 2.0, 1.0], 0.99), [2.0, -2.0, 2.0, 0.0], "rounded down");
        assert_eq!(kept(&[2.0, 1.0], 1.0), [2.0, 1.0]);
        assert_eq!(kept(&[2.0, 1.0], 0.4), [0.0, 0.0]);
        assert_eq!(kept(&[0.0, 0.0, 0.0], 0.4), [0.0; 3]);
        assert_eq!(kept(&[], 0.5), [0.0; 0]);
    }

    #[test]
    fn a_mask_keeps_its_share_and_the_mean() {
        let reader = |name: &[u8]| blake3::Hasher::new().update(name).finalize_xof();
        let mut values = vec![1.0; 100_000];
        keep_random(&mut values, 0.3, reader(b"one"));
        let kept = values.iter().filter(|value| **value != 0.0).count();
        assert!((29_500..30_500).contains(&kept), "{kept}");
        assert!(values.iter().all(|value| *value == 0.0 || *value == 1.0 / 0.3));
        let mut other = vec![1.0; 100_000];
        keep_random(&mut other, 0.3, reader(b"other"));
        assert_ne!(values, other);
        let mut part = vec![1.0; 1500];
        keep_random(&mut part, 0.3, reader(b"one"));
        assert_eq!(part, values[..1500], "a draw has its number, whatever is drawn after it");
        let mut all = vec![1.0; 5000];
        keep_random(&mut all, 1.0, reader(b"one"));
        assert!(all.iter().all(|value| *value == 1.0));
    }
}
