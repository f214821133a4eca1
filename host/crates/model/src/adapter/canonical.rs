//! The canonical form: one safetensors file that is the same for the same adapter, whatever its names, its order of
//! tensors or its training notes were. Its BLAKE3 is the adapter's name.
//!
//! Header: `__metadata__` with one entry `tenon.adapter` (JSON), then the tensors `layers.N.q_proj.A`, `layers.N.q_proj.B` and,
//! for DoRA, `layers.N.q_proj.M`, … in order of layer, module ([`Module::ALL`]) and factor, in their own dtype, one after the
//! other; padded with spaces to 8 bytes. Written by hand, so that no library's change can move a digest.
//!
//! The JSON says the form, the scales and the sizes of the base. Form 1 is for one rank and one scale without magnitudes, and
//! states both; form 2 is for everything else, and lists a scale for each module in order of the tensors; form 3 is form 2
//! without magnitudes for an activated adapter, with the tokens that invoke it. An adapter has one form only, chosen by what
//! it computes and not by how its configuration said it. Not here: what is admitted.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use safetensors::Dtype;
use serde_json::{Value, json};
use types::Module;

use super::peft_config::PeftConfig;
use super::tensors::{self, Factor, Place, Site, Tensors, Term};
use super::{AdapterLimits, AdapterRejection, Invocation, invocation};
use crate::ModelConfig;

const KEY: &str = "tenon.adapter";
/// One rank, one scale, no magnitudes.
const FORM_UNIFORM: u64 = 1;
/// A rank and a scale for each module, magnitudes.
const FORM_VARIED: u64 = 2;

/// As [`FORM_VARIED`], and what invokes it: a form of its own, so that no reader can overlook that.
const FORM_ACTIVATED: u64 = 3;

pub(super) fn has_magnitudes(tensors: &Tensors<'_>) -> bool {
    tensors.keys().any(|place| place.factor == Factor::M)
}

/// The canonical bytes of an adapter whose tensors are those of its terms.
pub(super) fn write(tensors: &Tensors<'_>, peft: &PeftConfig, config: &ModelConfig) -> Vec<u8> {
    let mut header =
        format!("{{\"__metadata__\":{{\"{KEY}\":{}}}", Value::String(about(tensors, peft, config).to_string()));
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

fn about(tensors: &Tensors<'_>, peft: &PeftConfig, config: &ModelConfig) -> Value {
    let terms = &peft.terms;
    let first = terms.values().next().filter(|first| terms.values().all(|term| term == *first));
    let scales = || terms.values().map(|term| term.scale).collect::<Vec<f64>>();
    match (&peft.invocation, first.filter(|_| !has_magnitudes(tensors))) {
        (Some(invocation), _) => {
            let (scales, base) = (scales(), base_sizes(config));
            json!({"form": FORM_ACTIVATED, "scales": scales, invocation::KEY: invocation.tokens(), "base": base})
        }
        (None, Some(Term { rank, scale })) => {
            json!({"form": FORM_UNIFORM, "rank": rank, "scale": scale, "base": base_sizes(config)})
        }
        (None, None) => json!({"form": FORM_VARIED, "scales": scales(), "base": base_sizes(config)}),
    }
}

/// What canonical bytes say.
pub(super) struct Canonical<'a> {
    pub(super) terms: BTreeMap<Site, Term>,
    pub(super) invocation: Option<Invocation>,
    pub(super) tensors: Tensors<'a>,
}

/// Reads canonical bytes. They are ours, but a wrong file in the store must still be an error.
pub(super) fn read<'a>(
    bytes: &'a [u8],
    config: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<Canonical<'a>, AdapterRejection> {
    let not_canonical = || AdapterRejection::Malformed("the bytes are not an adapter in canonical form".into());
    limits.check("its weights in bytes", bytes.len(), limits.file_bytes_max)?;
    let file = tensors::open(bytes, limits)?;
    let about = tensors::note(bytes, KEY).ok_or_else(not_canonical)?;
    let about: Value = serde_json::from_str(&about).map_err(|_| not_canonical())?;
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
        Some(FORM_ACTIVATED) if has_magnitudes(&tensors) => return Err(not_canonical()),
        Some(FORM_VARIED | FORM_ACTIVATED) => {
            about["scales"].as_array().into_iter().flatten().map(Value::as_f64).collect()
        }
        _ => return Err(not_canonical()),
    };
    if scales.len() != ranks.len() {
        return Err(not_canonical());
    }
    let mut terms = BTreeMap::new();
    for ((site, rank), scale) in ranks.into_iter().zip(scales) {
        let scale = scale.filter(|scale| (*scale as f32).is_finite() && rank > 0).ok_or_else(not_canonical)?;
        terms.insert(site, Term { rank, scale });
    }
    tensors::check(&tensors, &terms, config, limits)?;
    let is_activated = about["form"] == FORM_ACTIVATED;
    let invocation = is_activated.then(|| Invocation::read(&about[invocation::KEY], config, limits)).transpose()?;
    Ok(Canonical { terms, invocation, tensors })
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
