//! Admission: what a PEFT folder's two files must pass, in one order, each step cheap before dear. Not here: how each step is
//! done, and the last one, whether the files are signed by someone whom their tenant trusts, which is the host's.

use types::{Digest, ModuleSet};

use super::fingerprint::{self, BASE_DIGEST_KEY};
use super::norms::{self, Norms};
use super::peft_config::PeftConfig;
use super::rejection::short;
use super::tensors::{self, Factor, Place, Tensors};
use super::{
    AdapterBase, AdapterKind, AdapterLimits, AdapterRejection, AdapterReport, LoraAdapter, canonical, refuse_container,
    report,
};
use crate::Precision;

/// An adapter that passed admission, in canonical form.
#[derive(Clone, Debug)]
pub struct CanonicalAdapter {
    /// One safetensors file, the same for the same adapter.
    pub bytes: Vec<u8>,
    /// BLAKE3 of `bytes`: the adapter's name.
    pub digest: Digest,
    /// The largest rank of a module.
    pub rank: u32,
    /// The modules that it acts on.
    pub modules: ModuleSet,
    /// What it was found to be.
    pub report: AdapterReport,
}

/// Checks a PEFT folder's two files against the base and puts them into canonical form. What is admitted can be packed. Of
/// several faults the first in this order is told.
///
/// # Errors
/// If anything is malformed, unsupported, too large, not finite or does not fit the base. Nothing is half-loaded.
pub fn canonical_adapter(
    config_json: &[u8],
    weights: &[u8],
    base: &dyn AdapterBase,
    limits: &AdapterLimits,
) -> Result<CanonicalAdapter, AdapterRejection> {
    // 1. Sizes.
    limits.check("adapter_config.json in bytes", config_json.len(), limits.config_bytes_max)?;
    limits.check("its weights in bytes", weights.len(), limits.file_bytes_max)?;
    // 2. No archive and no pickle, by their first bytes: before the header, which none of them has.
    refuse_container(config_json, config_json.len() as u64)?;
    refuse_container(weights, weights.len() as u64)?;
    // 3. The header of the weights.
    let file = tensors::open(weights, limits)?;
    // 4. The configuration.
    let peft = PeftConfig::parse(config_json, base.config(), limits)?;
    // 5. The base, where the files name one.
    let noted = tensors::note(weights, BASE_DIGEST_KEY);
    let base_is_named = fingerprint::check(peft.base_digest.iter().chain(&noted).map(String::as_str), base)?;
    // 6. The names of the tensors: those that the configuration targets, all of them and no others.
    let tensors = tensors::collect(&file, tensors::peft_place)?;
    admitted(peft, &tensors, base, base_is_named, limits)
}

/// What is left of the steps once there are tensors with places: the same for those that were made here (`derive`).
pub(super) fn admitted(
    peft: PeftConfig,
    tensors: &Tensors<'_>,
    base: &dyn AdapterBase,
    base_is_named: bool,
    limits: &AdapterLimits,
) -> Result<CanonicalAdapter, AdapterRejection> {
    // Still 6.
    check_magnitudes(&peft, tensors)?;
    tensors::check_places(tensors, &peft.terms, base.config())?;
    // 7. Types and shapes.
    tensors::check_shapes(tensors, &peft.terms, base.config())?;
    // 8. Rank and bytes.
    tensors::check_sizes(&peft.terms, base.config(), limits)?;
    // 9. Every value: NaN, infinity, norms that could only break the output.
    tensors::check_values(tensors, &peft.terms, limits)?;
    // 10. Norms of what the factors do together. DoRA's rows have norms only with the base's weights.
    let bytes = canonical::write(tensors, &peft, base.config());
    let digest = Digest::of(&bytes);
    let norms = check_norms(&peft, tensors, &digest, limits)?;
    if peft.kind == AdapterKind::Dora {
        LoraAdapter::from_canonical(&bytes, base, limits, Precision::F32)?;
    }
    // 11. Signatures: the host's, which has the keys.
    let rank = peft.terms.values().map(|term| term.rank).max().unwrap_or_default();
    Ok(CanonicalAdapter {
        digest,
        bytes,
        rank: u32::try_from(rank).unwrap_or(u32::MAX),
        modules: peft.terms.keys().map(|site| site.module).collect(),
        report: reported(peft, tensors, &norms, base, base_is_named),
    })
}

fn check_magnitudes(peft: &PeftConfig, tensors: &Tensors<'_>) -> Result<(), AdapterRejection> {
    let (is_dora, has_magnitudes) = (peft.kind == AdapterKind::Dora, canonical::has_magnitudes(tensors));
    if is_dora == has_magnitudes {
        return Ok(());
    }
    let (set, found) = if is_dora { ("set", "there are no") } else { ("not set", "there are") };
    Err(AdapterRejection::Malformed(format!("`use_dora` is {set} but {found} magnitude vectors")))
}

/// The norms of every term, in their order; the first that is over a limit of the operator's is told.
fn check_norms(
    peft: &PeftConfig,
    tensors: &Tensors<'_>,
    digest: &Digest,
    limits: &AdapterLimits,
) -> Result<Vec<Norms>, AdapterRejection> {
    let mut found = Vec::with_capacity(peft.terms.len());
    for (number, (&site, term)) in peft.terms.iter().enumerate() {
        let part = |factor| tensors.get(&Place { site, factor }).map(tensors::values).unwrap_or_default();
        let seed = norms::seed(digest, number);
        let norms = norms::norms(&part(Factor::A), &part(Factor::B), term.rank, term.scale, seed);
        for (norm, value, limit, max) in [
            ("Frobenius", norms.frobenius, "adapter_frobenius_norm_max", limits.norms.frobenius_max),
            ("spectral", norms.spectral, "adapter_spectral_norm_max", limits.norms.spectral_max),
        ] {
            if let Some(max) = max.filter(|max| value > *max) {
                return Err(AdapterRejection::OverNorm { norm, module: site.to_string(), value, limit, max });
            }
        }
        found.push(norms);
    }
    Ok(found)
}

fn reported(
    peft: PeftConfig,
    tensors: &Tensors<'_>,
    norms: &[Norms],
    base: &dyn AdapterBase,
    base_is_named: bool,
) -> AdapterReport {
    let PeftConfig { kind, invocation, terms, base_model_name, base_digest: _, mut warnings } = peft;
    if let Some(name) = base_model_name.as_ref().filter(|name| !base_is_named && !base.may_be_called(name)) {
        let name = short(name);
        warnings.push(format!("it says that it was trained on `{name}`, another base by its name; the shapes fit"));
    }
    let (dtypes, parameters) = report::sizes(tensors);
    let invocation_tokens = invocation.map(|invocation| invocation.tokens().to_vec()).unwrap_or_default();
    let modules = report::modules(&terms, norms);
    AdapterReport { kind, invocation_tokens, modules, dtypes, parameters, base_model_name, base_is_named, warnings }
}
