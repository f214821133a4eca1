//! The canonical form: one safetensors file that is the same for the same adapter, whatever its names, its order of
//! tensors or its training notes were. Its BLAKE3 is the adapter's name.
//!
//! Header: `__metadata__` with one entry `tenon.adapter` (JSON: form, rank, scale, sizes of the base), then the tensors
//! `layers.N.q_proj.A`, `layers.N.q_proj.B`, … in order of layer, module ([`Module::ALL`]) and factor, in their own dtype,
//! one after the other; padded with spaces to 8 bytes. Written by hand, so that no library's change can move a digest.

use std::fmt::Write as _;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use types::{Digest, Module, ModuleSet};

use super::peft_config::PeftConfig;
use super::tensors::{self, Factor, Place, Tensors};
use super::{AdapterLimits, AdapterRejection};
use crate::ModelConfig;

const KEY: &str = "tenon.adapter";
const FORM: u64 = 1;

/// An adapter that passed admission, in canonical form.
#[derive(Clone, Debug)]
pub struct CanonicalAdapter {
    /// One safetensors file, the same for the same adapter.
    pub bytes: Vec<u8>,
    /// BLAKE3 of `bytes`: the adapter's name.
    pub digest: Digest,
    /// Its rank.
    pub rank: u32,
    /// What B(A x) is multiplied by: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    pub scale: f64,
    /// The modules that it acts on.
    pub modules: ModuleSet,
    /// The base that its configuration claims, for people to read; at most 256 bytes, never used.
    pub base_model_name: Option<String>,
}

/// Checks a PEFT folder's two files against the base and puts them into canonical form.
///
/// # Errors
/// If anything is malformed, unsupported, too large, not finite or does not fit the base. Nothing is half-loaded.
pub fn canonical_adapter(
    config_json: &[u8],
    weights: &[u8],
    config: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<CanonicalAdapter, AdapterRejection> {
    let peft = PeftConfig::parse(config_json, limits)?;
    let file = tensors::open(weights, limits)?;
    let tensors = tensors::collect(&file, tensors::peft_place)?;
    let modules = tensors::check(&tensors, peft.rank as usize, peft.scale, config, limits)?;
    check_complete(&tensors, &peft, config)?;
    let bytes = write(&tensors, peft.rank, peft.scale, config);
    let digest = Digest::of(&bytes);
    let PeftConfig { rank, scale, base_model_name, .. } = peft;
    Ok(CanonicalAdapter { bytes, digest, rank, scale, modules, base_model_name })
}

/// The tensors must be exactly those that the configuration targets.
fn check_complete(tensors: &Tensors<'_>, peft: &PeftConfig, config: &ModelConfig) -> Result<(), AdapterRejection> {
    let all: Vec<usize> = (0..config.layers).collect();
    let layers = peft.layers.as_ref().unwrap_or(&all);
    for layer in layers {
        for module in peft.modules.iter() {
            let place = Place { layer: *layer, module, factor: Factor::A };
            if !tensors.contains_key(&place) {
                return Err(AdapterRejection::Malformed(format!(
                    "{} is targeted but missing",
                    tensors::describe(place)
                )));
            }
        }
    }
    let untargeted =
        tensors.keys().find(|place| !layers.contains(&place.layer) || !peft.modules.contains(place.module));
    match untargeted {
        Some(place) => Err(AdapterRejection::Malformed(format!("{} is not targeted", tensors::describe(*place)))),
        None => Ok(()),
    }
}

fn write(tensors: &Tensors<'_>, rank: u32, scale: f64, config: &ModelConfig) -> Vec<u8> {
    let about = json!({"form": FORM, "rank": rank, "scale": scale, "base": base_sizes(config)}).to_string();
    let mut header = format!("{{\"__metadata__\":{{\"{KEY}\":{}}}", Value::String(about));
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

/// Reads canonical bytes. They are ours, but a wrong file in the store must still be an error.
pub(super) fn read<'a>(
    bytes: &'a [u8],
    config: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<(u32, f64, Tensors<'a>), AdapterRejection> {
    let not_canonical = || AdapterRejection::Malformed("the bytes are not an adapter in canonical form".into());
    let file = tensors::open(bytes, limits)?;
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|_| not_canonical())?;
    let about = metadata.metadata().as_ref().and_then(|entries| entries.get(KEY)).ok_or_else(not_canonical)?;
    let about: Value = serde_json::from_str(about).map_err(|_| not_canonical())?;
    if about["form"] != FORM {
        return Err(not_canonical());
    }
    if about["base"] != base_sizes(config) {
        return Err(AdapterRejection::ShapeMismatch("it was made for a base of other sizes".into()));
    }
    let rank = about["rank"].as_u64().and_then(|rank| u32::try_from(rank).ok()).filter(|rank| *rank > 0);
    let (rank, scale) = rank.zip(about["scale"].as_f64()).ok_or_else(not_canonical)?;
    limits.check("its rank", rank as usize, limits.rank_max as usize)?;
    let tensors = tensors::collect(&file, |name| place(name).ok_or_else(not_canonical))?;
    Ok((rank, scale, tensors))
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
    format!("layers.{}.{}.{:?}", place.layer, place.module.name(), place.factor)
}

fn place(name: &str) -> Option<Place> {
    let mut parts = name.strip_prefix("layers.")?.split('.');
    let (layer, module) = (tensors::layer_number(parts.next()?)?, Module::from_name(parts.next()?)?);
    let factor = match (parts.next()?, parts.next()) {
        ("A", None) => Factor::A,
        ("B", None) => Factor::B,
        _ => return None,
    };
    Some(Place { layer, module, factor })
}
