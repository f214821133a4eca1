//! What is to be derived, as it was asked for ([`DeriveRecipe`]) and checked ([`ValidRecipe`]). Not here: how it is computed.

use serde::{Deserialize, Serialize};

use super::DeriveError;
use crate::adapter::AdapterLimits;

/// How parents become one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeriveMethod {
    /// The exact weighted sum; the ranks add up.
    Concatenate,
    /// The weighted sum, compressed to a rank.
    Svd,
    /// Trim the smallest, elect a sign, average what agrees with it.
    Ties,
    /// Drop at random, rescale, sum.
    DareLinear,
    /// Drop at random, rescale, elect a sign, average what agrees with it.
    DareTies,
    /// Trim the smallest, sum.
    MagnitudePrune,
}

impl DeriveMethod {
    /// Every method.
    pub const ALL: [Self; 6] =
        [Self::Concatenate, Self::Svd, Self::Ties, Self::DareLinear, Self::DareTies, Self::MagnitudePrune];

    /// `concatenate`, `svd`, …
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Concatenate => "concatenate",
            Self::Svd => "svd",
            Self::Ties => "ties",
            Self::DareLinear => "dare_linear",
            Self::DareTies => "dare_ties",
            Self::MagnitudePrune => "magnitude_prune",
        }
    }
}

/// By what an element's sign is elected. Weights have no vote, as in PEFT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MajoritySign {
    /// The sign of the sum.
    #[default]
    Total,
    /// The sign that more parents have.
    Frequency,
}

impl MajoritySign {
    /// `total` or `frequency`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Frequency => "frequency",
        }
    }
}

/// A method with its parameters, as asked for. A parameter that the method does not have must be absent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeriveRecipe {
    /// Which.
    pub method: DeriveMethod,
    /// The largest rank of the result; all but `concatenate` need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// The part of the elements that is kept, over 0 and at most 1; the element-wise methods need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub density: Option<f64>,
    /// For `ties` and `dare_ties`; `total` if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub majority_sign: Option<MajoritySign>,
    /// For `dare_linear` and `dare_ties`; 0 if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// What compression may lose of the delta's norm, between 0 and 1; all but `concatenate` may have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_max: Option<f64>,
}

impl DeriveRecipe {
    /// A method without parameters.
    #[must_use]
    pub const fn new(method: DeriveMethod) -> Self {
        Self { method, rank: None, density: None, majority_sign: None, seed: None, error_max: None }
    }
}

/// What one derivation may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeriveLimits {
    /// Parents.
    pub parents_max: usize,
    /// Absolute value of a parent's weight.
    pub weight_abs_max: f64,
    /// Bytes of all parents together, which are in memory at once.
    pub parent_bytes_max: u64,
    /// Values of a module's matrix that is merged element by element; about seven such matrices in f64 are in memory at once.
    pub dense_values_max: usize,
}

impl Default for DeriveLimits {
    fn default() -> Self {
        Self { parents_max: 16, weight_abs_max: 16.0, parent_bytes_max: 1 << 30, dense_values_max: 16 << 20 }
    }
}

/// What is kept of a delta before deltas are merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Keep {
    /// The largest elements, so many of all.
    Largest { density: f64 },
    /// Each with this chance, and then divided by it.
    Random { density: f64, seed: u32 },
}

/// How deltas become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// Σ wᵢ·τᵢ
    Sum,
    /// The mean of the wᵢ·τᵢ whose τᵢ has the elected sign.
    Elected(MajoritySign),
}

/// A method with exactly its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    Concatenate,
    Svd { rank: usize },
    Dense { rank: usize, keep: Keep, merge: Merge },
}

/// A recipe that was checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidRecipe {
    stated: DeriveRecipe,
    step: Step,
    limits: DeriveLimits,
}

impl ValidRecipe {
    /// Checks the parameters against the method, and the weights of the parents.
    ///
    /// # Errors
    /// [`DeriveError::Recipe`].
    pub fn check(
        recipe: DeriveRecipe,
        weights: &[f64],
        adapters: &AdapterLimits,
        limits: &DeriveLimits,
    ) -> Result<Self, DeriveError> {
        let DeriveRecipe { method, rank, density, majority_sign, seed, error_max } = recipe;
        let (is_dense, is_random, is_elected) = match method {
            DeriveMethod::Concatenate | DeriveMethod::Svd => (false, false, false),
            DeriveMethod::MagnitudePrune => (true, false, false),
            DeriveMethod::Ties => (true, false, true),
            DeriveMethod::DareLinear => (true, true, false),
            DeriveMethod::DareTies => (true, true, true),
        };
        let is_compressed = method != DeriveMethod::Concatenate;
        for (field, is_there, belongs) in [
            ("rank", rank.is_some(), is_compressed),
            ("error_max", error_max.is_some(), is_compressed),
            ("density", density.is_some(), is_dense),
            ("majority_sign", majority_sign.is_some(), is_elected),
            ("seed", seed.is_some(), is_random),
        ] {
            if is_there && !belongs {
                return Err(wrong(field, format!("`{}` has no `{field}`: leave it out", method.name())));
            }
        }
        if error_max.is_some_and(|max| !(0.0..=1.0).contains(&max)) {
            return Err(wrong("error_max", "`error_max` must be between 0 and 1".into()));
        }
        let rank = if is_compressed { checked_rank(method, rank, adapters.rank_max)? } else { 0 };
        let density = if is_dense { checked_density(method, density)? } else { 1.0 };
        let (seed, sign) = (seed.unwrap_or_default(), majority_sign.unwrap_or_default());
        let keep = if is_random { Keep::Random { density, seed } } else { Keep::Largest { density } };
        let merge = if is_elected { Merge::Elected(sign) } else { Merge::Sum };
        let step = match method {
            DeriveMethod::Concatenate => Step::Concatenate,
            DeriveMethod::Svd => Step::Svd { rank },
            _ => Step::Dense { rank, keep, merge },
        };
        let stated =
            DeriveRecipe { majority_sign: is_elected.then_some(sign), seed: is_random.then_some(seed), ..recipe };
        let checked = Self { stated, step, limits: *limits };
        checked.check_weights(weights)?;
        Ok(checked)
    }

    pub(super) fn check_weights(&self, weights: &[f64]) -> Result<(), DeriveError> {
        let DeriveLimits { parents_max, weight_abs_max, .. } = self.limits;
        if weights.is_empty() || weights.len() > parents_max {
            let message = format!("name 1 to {parents_max} parents, not {}", weights.len());
            return Err(wrong("parents", message));
        }
        // NaN is in no range.
        if let Some(weight) = weights.iter().find(|weight| !(-weight_abs_max..=weight_abs_max).contains(*weight)) {
            let message = format!("a weight is {weight}: use a number between -{weight_abs_max} and {weight_abs_max}");
            return Err(wrong("parents", message));
        }
        if weights.iter().all(|weight| *weight == 0.0) {
            return Err(wrong("parents", "every weight is 0: nothing is left to derive from".into()));
        }
        Ok(())
    }

    /// With what was left to a default.
    #[must_use]
    pub const fn stated(&self) -> &DeriveRecipe {
        &self.stated
    }

    /// What a derivation may take.
    #[must_use]
    pub const fn limits(&self) -> &DeriveLimits {
        &self.limits
    }

    pub(super) const fn step(&self) -> &Step {
        &self.step
    }

    pub(super) const fn error_max(&self) -> Option<f64> {
        self.stated.error_max
    }
}

fn checked_rank(method: DeriveMethod, rank: Option<u32>, max: u32) -> Result<usize, DeriveError> {
    match rank {
        Some(rank) if (1..=max).contains(&rank) => Ok(rank as usize),
        Some(rank) => Err(wrong("rank", format!("`rank` is {rank}: use 1 to {max}"))),
        None => Err(wrong("rank", format!("`{}` needs a `rank` for its result", method.name()))),
    }
}

fn checked_density(method: DeriveMethod, density: Option<f64>) -> Result<f64, DeriveError> {
    match density {
        Some(density) if density > 0.0 && density <= 1.0 => Ok(density),
        Some(density) => Err(wrong("density", format!("`density` is {density}: use a number over 0 and at most 1"))),
        None => Err(wrong("density", format!("`{}` needs a `density`, over 0 and at most 1", method.name()))),
    }
}

fn wrong(field: &'static str, message: String) -> DeriveError {
    DeriveError::Recipe { field, message }
}
