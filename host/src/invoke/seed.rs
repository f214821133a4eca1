//! The seed of a draw: asked for or random, and another one for each further choice. Not here: the draw.

use types::Digest;

use crate::error::Error;

/// The seed of one of the choices of a request. The first has the one that was asked for; the others have one that
/// follows from it, so that asking for that one gives the same choice alone.
pub(super) fn of_choice(asked: Option<u64>, choice: u32) -> Result<u64, Error> {
    match (asked, choice) {
        (None, _) => random(),
        (Some(seed), 0) => Ok(seed),
        (Some(seed), choice) => Ok(derived(seed, choice)),
    }
}

/// Below 2^63, which every client can write.
fn derived(seed: u64, choice: u32) -> u64 {
    let digest = Digest::of_parts("tenon 2026 choice seed", [&seed.to_le_bytes()[..], &choice.to_le_bytes()[..]]);
    digest.as_bytes().iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte)) >> 1
}

pub(super) fn random() -> Result<u64, Error> {
    getrandom::u64().map(|seed| seed >> 1).map_err(|error| Error::Internal(format!("no randomness: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_have_seeds_of_their_own() {
        let seeds: Vec<u64> = (0..8).map(|choice| of_choice(Some(7), choice).expect("a seed")).collect();
        assert_eq!(seeds[0], 7);
        let distinct: std::collections::HashSet<_> = seeds.iter().collect();
        assert_eq!(distinct.len(), seeds.len());
        assert_eq!(of_choice(Some(7), 3).expect("a seed"), seeds[3], "it follows from the asked one");
        assert_ne!(of_choice(Some(8), 3).expect("a seed"), seeds[3]);
        assert_eq!(of_choice(Some(u64::MAX), 0).expect("a seed"), u64::MAX);
        assert!(seeds.iter().all(|seed| i64::try_from(*seed).is_ok()));
        assert_ne!(of_choice(None, 0).expect("a seed"), of_choice(None, 0).expect("a seed"));
    }
}
