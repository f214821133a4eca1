//! A new adapter out of others: concatenated, compressed, or merged element by element. Every method is defined on the deltas
//! ΔW = s·B·A of the parents, module by module, under the names of PEFT's `add_weighted_adapter`. Not here: where the
//! parents' bytes come from, what the result is called, and whose it is.
//!
//! | method | the delta of the result | PEFT |
//! |---|---|---|
//! | `concatenate` | Σ wᵢ·ΔWᵢ, exact, in the sum of the ranks | `cat` |
//! | `svd` | Σ wᵢ·ΔWᵢ, the nearest of the rank | `svd` |
//! | `magnitude_prune` | Σ wᵢ·largest(ΔWᵢ) | `magnitude_prune_svd` |
//! | `ties` | the elected mean of wᵢ·largest(ΔWᵢ) (Yadav et al. 2023, arXiv:2306.01708) | `ties_svd` |
//! | `dare_linear` | Σ wᵢ·random(ΔWᵢ) (Yu et al. 2023, arXiv:2311.03099) | `dare_linear_svd` |
//! | `dare_ties` | the elected mean of wᵢ·random(ΔWᵢ) | `dare_ties_svd` |
//!
//! Bounds: parents are taken in order of their digests, one module at a time, on one thread, so that the same parents, weights
//! and recipe give the same bytes. Of the dense methods a few matrices of one module are in memory, however many parents.

mod dense;
mod factors;
mod recipe;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use types::{Blame, Digest, Module};

use super::canonical::{self, Canonical};
use super::peft_config::PeftConfig;
use super::tensors::{self, Factor, Place, Site, Tensors, Term};
use super::{AdapterBase, AdapterKind, AdapterLimits, AdapterRejection, CanonicalAdapter, admission};
use crate::ModelConfig;
use factors::Factors;
use recipe::Step;

pub use recipe::{DeriveLimits, DeriveMethod, DeriveRecipe, MajoritySign, ValidRecipe};

/// An adapter that a derivation starts from.
#[derive(Clone, Copy, Debug)]
pub struct DeriveParent<'a> {
    /// Its canonical form.
    pub bytes: &'a [u8],
    /// BLAKE3 of `bytes`, which the caller checked.
    pub digest: Digest,
    /// What its delta is multiplied by.
    pub weight: f64,
}

/// What a derivation made.
#[derive(Clone, Debug)]
pub struct DerivedAdapter {
    /// An adapter like any other.
    pub adapter: CanonicalAdapter,
    /// What the compression to a rank lost of the whole delta: ‖lost‖ / ‖delta‖, Frobenius, over all modules.
    pub error: f64,
    /// The same by module.
    pub modules: Vec<ModuleError>,
}

/// What compression lost of one module's deltas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModuleError {
    /// The module.
    pub module: Module,
    /// ‖lost‖ / ‖delta‖, Frobenius, over its layers.
    pub error: f64,
    /// The layer that lost the largest part of its own delta.
    pub worst_layer: usize,
    /// That part.
    pub worst_error: f64,
}

/// Why nothing was derived.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeriveError {
    /// The recipe makes no sense.
    #[error("{message}")]
    Recipe {
        /// The field that is wrong.
        field: &'static str,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A parent is not what this base executes.
    #[error("parent {digest}: {reason}")]
    Parent {
        /// Which.
        digest: Digest,
        /// What is wrong with it.
        reason: AdapterRejection,
    },
    /// The ranks add up to too much.
    #[error(
        "the ranks of {module} in layer {layer} add up to {rank}, at most {max} is allowed: use `svd` with a `rank`"
    )]
    Rank {
        /// The module.
        module: &'static str,
        /// Its layer.
        layer: usize,
        /// The sum.
        rank: usize,
        /// How much may be.
        max: usize,
    },
    /// A module is too large to be looked at element by element.
    #[error("{module} has {values} values, at most {max} are merged element by element: use `concatenate` or `svd`")]
    Dense {
        /// The module.
        module: &'static str,
        /// Of its matrix.
        values: usize,
        /// How many may be.
        max: usize,
    },
    /// Compression to the rank loses more than was allowed.
    #[error(
        "{error:.4} of the delta's norm would be lost, at most {max} is allowed: take a larger `rank` or `error_max`"
    )]
    Loss {
        /// ‖lost‖ / ‖delta‖.
        error: f64,
        /// How much may be.
        max: f64,
    },
    /// The result did not pass admission.
    #[error("the result: {0}")]
    Result(AdapterRejection),
    /// The singular values of a module were not found.
    #[error("the decomposition of {module} in layer {layer} did not converge")]
    NotConverged {
        /// The module.
        module: &'static str,
        /// Its layer.
        layer: usize,
    },
    /// The caller of this function ended it.
    #[error("the derivation was stopped")]
    Stopped,
}

impl DeriveError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Recipe { .. } => "invalid_request",
            Self::Parent { reason, .. } | Self::Result(reason) => reason.code(),
            Self::Rank { .. } | Self::Dense { .. } => "limit_exceeded",
            Self::Loss { .. } => "derivation_loses_too_much",
            Self::NotConverged { .. } => "internal",
            Self::Stopped => "deadline_exceeded",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Recipe { .. } | Self::Rank { .. } | Self::Dense { .. } | Self::Loss { .. } => Blame::Caller,
            Self::Parent { reason, .. } | Self::Result(reason) => reason.blame(),
            Self::NotConverged { .. } => Blame::Host,
            Self::Stopped => Blame::Capacity,
        }
    }
}

/// A parent that was read.
struct Parent<'a> {
    digest: Digest,
    weight: f64,
    terms: BTreeMap<Site, Term>,
    tensors: Tensors<'a>,
}

/// What a parent has of one module.
struct Piece<'a> {
    digest: Digest,
    weight: f64,
    term: Term,
    /// `[rank, inputs]`
    a: &'a TensorView<'a>,
    /// `[outputs, rank]`
    b: &'a TensorView<'a>,
}

/// A module of the result, in the bytes of its tensors.
struct Made {
    term: Term,
    a: (Dtype, Vec<u8>),
    b: (Dtype, Vec<u8>),
}

/// Derives. `go_on` is asked before each module; the work of one module is at most the decomposition of its matrix.
///
/// # Errors
/// [`DeriveError`]; nothing is half-made.
pub fn derive_adapter(
    recipe: &ValidRecipe,
    parents: &[DeriveParent<'_>],
    base: &dyn AdapterBase,
    limits: &AdapterLimits,
    go_on: &dyn Fn() -> bool,
) -> Result<DerivedAdapter, DeriveError> {
    let config = base.config();
    let parents = read(recipe, parents, config, limits)?;
    let sites: BTreeSet<Site> = parents.iter().flat_map(|parent| parent.terms.keys().copied()).collect();
    check_sizes(recipe, &parents, &sites, config, limits)?;
    let (mut made, mut losses) = (BTreeMap::new(), Vec::new());
    for site in sites {
        if !go_on() {
            return Err(DeriveError::Stopped);
        }
        let (module, norm, lost) = derive_module(recipe.step(), site, &pieces(&parents, site), config)?;
        made.insert(site, module);
        losses.push(Loss { site, norm, lost });
    }
    let (error, modules) = errors(&losses);
    if let Some(max) = recipe.error_max().filter(|max| error > *max) {
        return Err(DeriveError::Loss { error, max });
    }
    let adapter = admit(&made, base, limits).map_err(DeriveError::Result)?;
    Ok(DerivedAdapter { adapter, error, modules })
}

/// In order of their digests, zero weights dropped, as in a composition.
fn read<'a>(
    recipe: &ValidRecipe,
    parents: &[DeriveParent<'a>],
    config: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<Vec<Parent<'a>>, DeriveError> {
    let weights: Vec<f64> = parents.iter().map(|parent| parent.weight).collect();
    recipe.check_weights(&weights)?;
    let mut sorted: Vec<_> = parents.iter().filter(|parent| parent.weight != 0.0).collect();
    sorted.sort_by_key(|parent| parent.digest);
    if let Some([twice, _]) = sorted.array_windows().find(|[one, next]| one.digest == next.digest) {
        let message = format!("{} is there twice: name it once, with the sum of the weights", twice.digest);
        return Err(DeriveError::Recipe { field: "parents", message });
    }
    let read = |parent: &DeriveParent<'a>| {
        let DeriveParent { bytes, digest, weight } = *parent;
        let refused = |reason| DeriveError::Parent { digest, reason };
        let Canonical { terms, invocation, tensors } = canonical::read(bytes, config, limits).map_err(refused)?;
        let unsupported = |reason: &str| Err(refused(AdapterRejection::Unsupported(reason.into())));
        if canonical::has_magnitudes(&tensors) {
            return unsupported(
                "it is a DoRA adapter, whose delta is no product of its factors: it depends on the base's weights",
            );
        }
        if invocation.is_some() {
            return unsupported(
                "it is an activated adapter (aLoRA), which acts from its own invocation on: use it in a composition",
            );
        }
        Ok(Parent { digest, weight, terms, tensors })
    };
    sorted.into_iter().map(read).collect()
}

/// Refuses what would be refused in the end, before any work.
fn check_sizes(
    recipe: &ValidRecipe,
    parents: &[Parent<'_>],
    sites: &BTreeSet<Site>,
    config: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<(), DeriveError> {
    let mut bytes = 0_usize;
    for site in sites {
        let (inputs, outputs) = config.module_shape(site.module);
        let sum: usize = parents.iter().filter_map(|parent| parent.terms.get(site)).map(|term| term.rank).sum();
        let (module, max) = (site.module.name(), limits.rank_max as usize);
        let rank = match recipe.step() {
            Step::Concatenate if sum > max => {
                return Err(DeriveError::Rank { module, layer: site.layer, rank: sum, max });
            }
            Step::Concatenate => sum,
            Step::Svd { rank } => (*rank).min(sum).min(inputs).min(outputs),
            Step::Dense { rank, .. } => (*rank).min(inputs).min(outputs),
        };
        let (values, values_max) = (inputs.saturating_mul(outputs), recipe.limits().dense_values_max);
        if matches!(recipe.step(), Step::Dense { .. }) && values > values_max {
            return Err(DeriveError::Dense { module, values, max: values_max });
        }
        bytes = bytes.saturating_add(rank.saturating_mul(inputs + outputs).saturating_mul(size_of::<f32>()));
    }
    limits.check("its factors as f32 in bytes", bytes, limits.memory_bytes_max).map_err(DeriveError::Result)?;
    // A concatenation keeps its parents' types; that it is small enough is seen in the end, and costs no decomposition.
    let stored = if matches!(recipe.step(), Step::Concatenate) { 0 } else { bytes };
    limits.check("its weights in bytes", stored, limits.file_bytes_max).map_err(DeriveError::Result)
}

fn pieces<'a>(parents: &'a [Parent<'a>], site: Site) -> Vec<Piece<'a>> {
    let piece = |parent: &'a Parent<'a>| {
        let factor = |factor| parent.tensors.get(&Place { site, factor });
        let (term, a, b) = (*parent.terms.get(&site)?, factor(Factor::A)?, factor(Factor::B)?);
        Some(Piece { digest: parent.digest, weight: parent.weight, term, a, b })
    };
    parents.iter().filter_map(piece).collect()
}

/// The module, ‖delta‖² and ‖lost‖².
fn derive_module(
    step: &Step,
    site: Site,
    pieces: &[Piece<'_>],
    config: &ModelConfig,
) -> Result<(Made, f64, f64), DeriveError> {
    let (inputs, outputs) = config.module_shape(site.module);
    let not_converged = || DeriveError::NotConverged { module: site.module.name(), layer: site.layer };
    let found = match step {
        Step::Concatenate => return Ok((concatenate(pieces, outputs), 0.0, 0.0)),
        Step::Svd { rank } => factors::of_sum(pieces, inputs, outputs, *rank),
        Step::Dense { rank, keep, merge } => {
            let merged = dense::merged(pieces, site, inputs, outputs, *keep, *merge);
            factors::of_dense(&merged, inputs, outputs, *rank)
        }
    };
    let Factors { rank, a, b, norm_squared, lost_squared } = found.ok_or_else(not_converged)?;
    let made = Made { term: Term { rank, scale: 1.0 }, a: (Dtype::F32, bytes(&a)), b: (Dtype::F32, bytes(&b)) };
    Ok((made, norm_squared, lost_squared))
}

/// A below A, B beside B. wᵢ·sᵢ becomes the scale where it is the same for all, so that the factors stay as they are; else it goes
/// into B.
fn concatenate(pieces: &[Piece<'_>], outputs: usize) -> Made {
    let coefficient = |piece: &Piece<'_>| piece.weight * piece.term.scale;
    let shared =
        pieces.first().map(coefficient).filter(|first| pieces.iter().all(|piece| coefficient(piece) == *first));
    let rank = pieces.iter().map(|piece| piece.term.rank).sum();
    let dtype_of = |factor: for<'a> fn(&'a Piece<'_>) -> &'a TensorView<'a>| {
        let first = pieces.first().map_or(Dtype::F32, |piece| factor(piece).dtype());
        if pieces.iter().all(|piece| factor(piece).dtype() == first) { first } else { Dtype::F32 }
    };
    let a_dtype = dtype_of(|piece| piece.a);
    let b_dtype = if shared.is_some() { dtype_of(|piece| piece.b) } else { Dtype::F32 };
    let as_dtype = |tensor: &TensorView<'_>, dtype: Dtype, by: f64| {
        if tensor.dtype() == dtype && by == 1.0 {
            return tensor.data().to_vec();
        }
        // In f64, so that a weight that f32 does not have is not rounded by itself.
        bytes(&tensors::values(tensor).into_iter().map(|value| (f64::from(value) * by) as f32).collect::<Vec<_>>())
    };
    let a = pieces.iter().flat_map(|piece| as_dtype(piece.a, a_dtype, 1.0)).collect();
    let columns: Vec<Vec<u8>> = pieces
        .iter()
        .map(|piece| as_dtype(piece.b, b_dtype, if shared.is_some() { 1.0 } else { coefficient(piece) }))
        .collect();
    let mut b = Vec::with_capacity(columns.iter().map(Vec::len).sum());
    for row in 0..outputs {
        for column in &columns {
            let width = column.len() / outputs;
            b.extend(column.get(row * width..(row + 1) * width).unwrap_or_default());
        }
    }
    Made { term: Term { rank, scale: shared.unwrap_or(1.0) }, a: (a_dtype, a), b: (b_dtype, b) }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// What one module lost.
struct Loss {
    site: Site,
    /// ‖delta‖²
    norm: f64,
    /// ‖lost‖²
    lost: f64,
}

fn errors(losses: &[Loss]) -> (f64, Vec<ModuleError>) {
    // A sum of nothing is -0.
    let relative = |lost: f64, norm: f64| if norm > 0.0 && lost > 0.0 { (lost / norm).sqrt() } else { 0.0 };
    let of = |losses: &[&Loss]| {
        let sum = |of: fn(&Loss) -> f64| losses.iter().map(|loss| of(loss)).sum::<f64>();
        relative(sum(|loss| loss.lost), sum(|loss| loss.norm))
    };
    let of_module = |module: Module| {
        let losses: Vec<&Loss> = losses.iter().filter(|loss| loss.site.module == module).collect();
        let own = |loss: &Loss| relative(loss.lost, loss.norm);
        let worst = losses.iter().copied().reduce(|worst, next| if own(next) > own(worst) { next } else { worst })?;
        let (worst_layer, worst_error) = (worst.site.layer, own(worst));
        Some(ModuleError { module, error: of(&losses), worst_layer, worst_error })
    };
    (of(&losses.iter().collect::<Vec<_>>()), Module::ALL.into_iter().filter_map(of_module).collect())
}

/// By the checks that every adapter passes, and with the report that each of them gets.
fn admit(
    made: &BTreeMap<Site, Made>,
    base: &dyn AdapterBase,
    limits: &AdapterLimits,
) -> Result<CanonicalAdapter, AdapterRejection> {
    let config = base.config();
    let malformed = |error: safetensors::SafeTensorError| AdapterRejection::Malformed(error.to_string());
    let (mut terms, mut tensors) = (BTreeMap::new(), Tensors::new());
    for (site, Made { term, a, b }) in made {
        let (inputs, outputs) = config.module_shape(site.module);
        for (factor, (dtype, data), shape) in
            [(Factor::A, a, vec![term.rank, inputs]), (Factor::B, b, vec![outputs, term.rank])]
        {
            let view = TensorView::new(*dtype, shape, data).map_err(malformed)?;
            tensors.insert(Place { site: *site, factor }, view);
        }
        terms.insert(*site, *term);
    }
    let peft = PeftConfig {
        kind: AdapterKind::Lora,
        invocation: None,
        terms,
        base_model_name: None,
        base_digest: None,
        warnings: Vec::new(),
    };
    let adapter = admission::admitted(peft, &tensors, base, false, limits)?;
    // The limits on a file, as it will be read.
    canonical::read(&adapter.bytes, config, limits)?;
    Ok(adapter)
}
