//! The canonical form: one safetensors file that is the same for the same adapter, whatever its names, its order of
//! tensors or its training notes were. Its BLAKE3 is the adapter's name.
//!
//! Header: `__metadata__` with one entry `tenon.adapter` (JSON), then the tensors `layers.N.q_proj.A`, `layers.N.q_proj.B` and,
//! for DoRA, `layers.N.q_proj.M`, … in order of layer, module ([`Module::ALL`]) and factor, in their own dtype, one after the
//! other; padded with spaces to 8 bytes. Written by hand, so that no library's change can move a digest.
//!
//! The JSON says the form, the scales and the sizes of the base. Form 1 is for one rank and one scale without magnitudes, and
//! states both; form 2 is for everything else, and lists a scale for each module in order of the tensors. An adapter has one
//! form only, chosen by what it computes and not by how its configuration said it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use types::{Digest, Module, ModuleSet};

use super::peft_config::PeftConfig;
use super::rejection::short;
use super::tensors::{self, Factor, Place, Site, Tensors, Term};
use super::{
    AdapterBase, AdapterKind, AdapterLimits, AdapterRejection, AdapterReport, LoraAdapter, refuse_container, report,
};
use crate::{ModelConfig, Precision};

const KEY: &str = "tenon.adapter";
/// One rank, one scale, no magnitudes.
const FORM_UNIFORM: u64 = 1;
/// A rank and a scale for each module, magnitudes.
const FORM_VARIED: u64 = 2;

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

/// Checks a PEFT folder's two files against the base and puts them into canonical form. What is admitted can be packed.
///
/// # Errors
/// If anything is malformed, unsupported, too large, not finite or does not fit the base. Nothing is half-loaded.
pub fn canonical_adapter(
    config_json: &[u8],
    weights: &[u8],
    base: &dyn AdapterBase,
    limits: &AdapterLimits,
) -> Result<CanonicalAdapter, AdapterRejection> {
    refuse_container(config_json, config_json.len() as u64)?;
    refuse_container(weights, weights.len() as u64)?;
    let peft = PeftConfig::parse(config_json, base.config(), limits)?;
    let file = tensors::open(weights, limits)?;
    let tensors = tensors::collect(&file, tensors::peft_place)?;
    tensors::check(&tensors, &peft.terms, base.config(), limits)?;
    let (is_dora, has_magnitudes) = (peft.kind == AdapterKind::Dora, has_magnitudes(&tensors));
    if is_dora != has_magnitudes {
        let (set, found) = if is_dora { ("set", "there are no") } else { ("not set", "there are") };
        return Err(AdapterRejection::Malformed(format!("`use_dora` is {set} but {found} magnitude vectors")));
    }
    let bytes = write(&tensors, &peft.terms, base.config());
    if is_dora {
        // The norms that the magnitudes are divided by are known only with the base's weights.
        LoraAdapter::from_canonical(&bytes, base, limits, Precision::F32)?;
    }
    let rank = peft.terms.values().map(|term| term.rank).max().unwrap_or_default();
    Ok(CanonicalAdapter {
        digest: Digest::of(&bytes),
        bytes,
        rank: u32::try_from(rank).unwrap_or(u32::MAX),
        modules: peft.terms.keys().map(|site| site.module).collect(),
        report: reported(peft, &tensors, base),
    })
}

/// Puts terms that were made here into canonical form, by the checks that every adapter passes.
pub(super) fn made(
    tensors: &Tensors<'_>,
    terms: &BTreeMap<Site, Term>,
    kind: AdapterKind,
    config: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<CanonicalAdapter, AdapterRejection> {
    let bytes = write(tensors, terms, config);
    read(&bytes, config, limits)?;
    let rank = terms.values().map(|term| term.rank).max().unwrap_or_default();
    let (dtypes, parameters) = report::sizes(tensors);
    let (modules, warnings) = (report::modules(terms), Vec::new());
    Ok(CanonicalAdapter {
        digest: Digest::of(&bytes),
        bytes,
        rank: u32::try_from(rank).unwrap_or(u32::MAX),
        modules: terms.keys().map(|site| site.module).collect(),
        report: AdapterReport { kind, modules, dtypes, parameters, base_model_name: None, warnings },
    })
}

fn reported(peft: PeftConfig, tensors: &Tensors<'_>, base: &dyn AdapterBase) -> AdapterReport {
    let PeftConfig { kind, terms, base_model_name, mut warnings } = peft;
    if let Some(name) = base_model_name.as_ref().filter(|name| !base.may_be_called(name)) {
        let name = short(name);
        warnings.push(format!("it says that it was trained on `{name}`, another base by its name; the shapes fit"));
    }
    let (dtypes, parameters) = report::sizes(tensors);
    AdapterReport { kind, modules: report::modules(&terms), dtypes, parameters, base_model_name, warnings }
}

fn has_magnitudes(tensors: &Tensors<'_>) -> bool {
    tensors.keys().any(|place| place.factor == Factor::M)
}

fn write(tensors: &Tensors<'_>, terms: &BTreeMap<Site, Term>, config: &ModelConfig) -> Vec<u8> {
    let mut header =
        format!("{{\"__metadata__\":{{\"{KEY}\":{}}}", Value::String(about(tensors, terms, config).to_string()));
    let mut at = 0;
    for (place, tensor) in tensors {
        let end = at + tensor.data().len();
        let dtype = match tensor.dtype() {
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            _ => "F32",
        };
        let shape = tensor.shape().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let name = name(*place);
        let entry =
            write!(header, ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"data_offsets\":[{at},{end}]}}");
        debug_assert!(entry.is_ok(), "writing to a string does not fail");
        at = end;
    }
    header.push('}');
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut bytes = Vec::with_capacity(8 + header.len() + at);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header.as_bytes());
    tensors.values().for_each(|tensor| bytes.extend(tensor.data()));
    bytes
}

fn about(tensors: &Tensors<'_>, terms: &BTreeMap<Site, Term>, config: &ModelConfig) -> Value {
    let first = terms.values().next().filter(|first| terms.values().all(|term| term == *first));
    match first.filter(|_| !has_magnitudes(tensors)) {
        Some(Term { rank, scale }) => {
            json!({"form": FORM_UNIFORM, "rank": rank, "scale": scale, "base": base_sizes(config)})
        }
        None => {
            let scales: Vec<f64> = terms.values().map(|term| term.scale).collect();
            json!({"form": FORM_VARIED, "scales": scales, "base": base_sizes(config)})
        }
    }
}

/// Reads canonical bytes. They are ours, but a wrong file in the store must still be an error.
pub(super) fn read<'a>(
    bytes: &'a [u8],
    config: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<(BTreeMap<Site, Term>, Tensors<'a>), AdapterRejection> {
    let not_canonical = || AdapterRejection::Malformed("the bytes are not an adapter in canonical form".into());
    let file = tensors::open(bytes, limits)?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|_| not_canonical())?;
    let about = metadata.metadata().as_ref().and_then(|entries| entries.get(KEY)).ok_or_else(not_canonical)?;
    let about: Value = serde_json::from_str(about).map_err(|_| not_canonical())?;
    if about["base"] != base_sizes(config) {
        return Err(AdapterRejection::ShapeMismatch("it was made for a base of other sizes".into()));
    }
    let tensors = tensors::collect(&file, |name| place(name).ok_or_else(not_canonical))?;
    let factors = tensors.iter().filter(|(place, _)| place.factor == Factor::A);
    let ranks: Vec<(Site, usize)> =
        factors.map(|(place, a)| (place.site, a.shape().first().copied().unwrap_or_default())).collect();
    let scales: Vec<Option<f64>> = match about["form"].as_u64() {
        Some(FORM_UNIFORM) => {
            let rank = about["rank"].as_u64().ok_or_else(not_canonical)?;
            if has_magnitudes(&tensors) || ranks.iter().any(|(_, found)| *found as u64 != rank) {
                return Err(not_canonical());
            }
            vec![about["scale"].as_f64(); ranks.len()]
        }
        Some(FORM_VARIED) => about["scales"].as_array().into_iter().flatten().map(Value::as_f64).collect(),
        _ => return Err(not_canonical()),
    };
    if scales.len() != ranks.len() {
        return Err(not_canonical());
    }
    let mut terms = BTreeMap::new();
    for ((site, rank), scale) in ranks.into_iter().zip(scales) {
        let scale = scale.filter(|scale| (*scale as f32).is_finite() && rank > 0).ok_or_else(not_canonical)?;
        limits.check("its rank", rank, limits.rank_max as usize)?;
        terms.insert(site, Term { rank, scale });
    }
    tensors::check(&tensors, &terms, config, limits)?;
    Ok((terms, tensors))
}

fn base_sizes(config: &ModelConfig) -> Value {
    json!({
        "layers": config.layers,
        "hidden": config.hidden,
        "intermediate": config.intermediate,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
    })
}

fn name(place: Place) -> String {
    format!("layers.{}.{}.{:?}", place.site.layer, place.site.module.name(), place.factor)
}

fn place(name: &str) -> Option<Place> {
    let mut parts = name.strip_prefix("layers.")?.split('.');
    let (layer, module) = (tensors::layer_number(parts.next()?)?, Module::from_name(parts.next()?)?);
    let factor = match (parts.next()?, parts.next()) {
        ("A", None) => Factor::A,
        ("B", None) => Factor::B,
        ("M", None) => Factor::M,
        _ => return None,
    };
    Some(Place { site: Site { layer, module }, factor })
}
