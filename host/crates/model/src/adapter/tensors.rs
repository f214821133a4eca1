//! The tensors of an adapter: the container's own rules, names, shapes and values. Used on a PEFT file and on canonical
//! bytes alike.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use types::Module;

use super::rejection::short;
use super::{AdapterLimits, AdapterRejection};
use crate::ModelConfig;

/// A module of a layer; the order is that of the canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    pub(super) layer: usize,
    pub(super) module: Module,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in layer {}", self.module.name(), self.layer)
    }
}

/// What a module's change is: B(A x) of this rank, times this scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Term {
    pub(super) rank: usize,
    pub(super) scale: f64,
}

/// The parts of a module's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Factor {
    /// `[rank, inputs]`
    A,
    /// `[outputs, rank]`
    B,
    /// `[outputs]`, DoRA's magnitude.
    M,
}

/// Where a tensor belongs; the order is that of the canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) site: Site,
    pub(super) factor: Factor,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}", self.factor, self.site)
    }
}

/// The part of a layer that a module lies in, by transformers' name.
pub(super) const fn block(module: Module) -> &'static str {
    match module {
        Module::Q | Module::K | Module::V | Module::O => "self_attn",
        Module::Gate | Module::Up | Module::Down => "mlp",
    }
}

pub(super) type Tensors<'a> = BTreeMap<Place, TensorView<'a>>;

/// Opens a safetensors file after the checks that its library leaves out: the size of the header, its first
/// byte, and names that are there twice, of which other readers would take another one.
pub(super) fn open<'a>(bytes: &'a [u8], limits: &AdapterLimits) -> Result<SafeTensors<'a>, AdapterRejection> {
    let (length, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or_else(|| AdapterRejection::Malformed("the weights are not a safetensors file".into()))?;
    let header_bytes = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if header_bytes > rest.len() {
        return Err(AdapterRejection::Malformed(format!(
            "the weights are not a safetensors file: a header of {header_bytes} bytes in a file of {}",
            bytes.len()
        )));
    }
    limits.check("its header in bytes", header_bytes, limits.header_bytes_max)?;
    if rest.first() != Some(&b'{') {
        return Err(AdapterRejection::Malformed("the header of the weights does not begin with `{`".into()));
    }
    let header = rest.get(..header_bytes).unwrap_or_default();
    let UniqueKeys = serde_json::from_slice(header)
        .map_err(|error| AdapterRejection::Malformed(format!("its header: {}", short(&error.to_string()))))?;
    let file =
        SafeTensors::deserialize(bytes).map_err(|error| AdapterRejection::Malformed(short(&error.to_string())))?;
    limits.check("its number of tensors", file.len(), limits.tensors_max)?;
    Ok(file)
}

/// An entry of the header's `__metadata__`.
pub(super) fn note(bytes: &[u8], key: &str) -> Option<String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    metadata.metadata().as_ref()?.get(key).cloned()
}

/// A JSON object without equal keys; what they hold is not looked at.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self, M::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            if keys.contains(&key) {
                return Err(M::Error::custom(format!("`{}` is there twice", short(&key))));
            }
            keys.insert(key);
        }
        Ok(self)
    }
}

/// Puts every tensor of the file in its place by `place_of`, which refuses names that have none.
pub(super) fn collect<'a>(
    file: &SafeTensors<'a>,
    place_of: impl Fn(&str) -> Result<Place, AdapterRejection>,
) -> Result<Tensors<'a>, AdapterRejection> {
    let mut tensors = Tensors::new();
    // The library gives them in no order: of two faults, the same one must be told each time.
    let mut named: Vec<_> = file.iter().collect();
    named.sort_unstable_by_key(|(name, _)| *name);
    for (name, tensor) in named {
        if tensors.insert(place_of(name)?, tensor).is_some() {
            return Err(AdapterRejection::Malformed(format!("two tensors for {}", short(name))));
        }
    }
    if tensors.is_empty() {
        return Err(AdapterRejection::Malformed("there are no tensors".into()));
    }
    Ok(tensors)
}

/// `base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight`, with `lora_B.weight` and `lora_magnitude_vector`, which
/// some versions of PEFT wrote with `.weight`.
pub(super) fn peft_place(name: &str) -> Result<Place, AdapterRejection> {
    let place = || {
        let (layer, rest) = name.strip_prefix("base_model.model.model.layers.")?.split_once('.')?;
        let (part, rest) = rest.split_once('.')?;
        let (module, factor) = rest.split_once('.')?;
        let factor = match factor {
            "lora_A.weight" => Factor::A,
            "lora_B.weight" => Factor::B,
            "lora_magnitude_vector" | "lora_magnitude_vector.weight" => Factor::M,
            _ => return None,
        };
        let module = Module::from_name(module)?;
        (part == block(module)).then_some(Place { site: Site { layer: layer_number(layer)?, module }, factor })
    };
    place().ok_or_else(|| {
        let name = short(name);
        AdapterRejection::Unsupported(format!("tensor `{name}` is no part of LoRA on a linear module of the base"))
    })
}

/// A decimal number in its one usual form.
pub(super) fn layer_number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|layer: &usize| layer.to_string() == text)
}

/// All checks that need no configuration, in their order.
pub(super) fn check(
    tensors: &Tensors<'_>,
    terms: &BTreeMap<Site, Term>,
    config: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<(), AdapterRejection> {
    check_places(tensors, terms, config)?;
    check_shapes(tensors, terms, config)?;
    check_sizes(terms, config, limits)?;
    check_values(tensors, terms, limits)
}

/// Checks that the tensors are exactly those of the terms, in layers that the base has.
pub(super) fn check_places(
    tensors: &Tensors<'_>,
    terms: &BTreeMap<Site, Term>,
    config: &ModelConfig,
) -> Result<(), AdapterRejection> {
    for site in tensors.keys().map(|place| place.site) {
        if site.layer >= config.layers {
            return Err(AdapterRejection::ShapeMismatch(format!("{site}: the base has {} layers", config.layers)));
        }
        if !terms.contains_key(&site) {
            return Err(AdapterRejection::Malformed(format!("{site} has tensors but is not targeted")));
        }
    }
    let is_dora = tensors.keys().any(|place| place.factor == Factor::M);
    for &site in terms.keys() {
        for factor in [Factor::A, Factor::B, Factor::M].into_iter().take(if is_dora { 3 } else { 2 }) {
            let place = Place { site, factor };
            if !tensors.contains_key(&place) {
                return Err(AdapterRejection::Malformed(format!("{place} is targeted but missing")));
            }
        }
    }
    Ok(())
}

/// Checks types and shapes against those that the terms and the base give.
pub(super) fn check_shapes(
    tensors: &Tensors<'_>,
    terms: &BTreeMap<Site, Term>,
    config: &ModelConfig,
) -> Result<(), AdapterRejection> {
    for (&place, tensor) in tensors {
        let (inputs, outputs) = config.module_shape(place.site.module);
        let rank = terms.get(&place.site).map_or(0, |term| term.rank);
        let expected: &[usize] = match place.factor {
            Factor::A => &[rank, inputs],
            Factor::B => &[outputs, rank],
            Factor::M => &[outputs],
        };
        check_tensor(place, tensor, expected)?;
    }
    Ok(())
}

/// Checks ranks, and what the factors would take in memory.
pub(super) fn check_sizes(
    terms: &BTreeMap<Site, Term>,
    config: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<(), AdapterRejection> {
    let mut bytes = 0usize;
    for (site, term) in terms {
        limits.check("its rank", term.rank, limits.rank_max as usize)?;
        let (inputs, outputs) = config.module_shape(site.module);
        bytes = bytes.saturating_add(term.rank.saturating_mul(inputs + outputs).saturating_mul(size_of::<f32>()));
    }
    limits.check("its factors as f32 in bytes", bytes, limits.memory_bytes_max)
}

/// Checks that values are finite and not so large that they could only break the output.
pub(super) fn check_values(
    tensors: &Tensors<'_>,
    terms: &BTreeMap<Site, Term>,
    limits: &AdapterLimits,
) -> Result<(), AdapterRejection> {
    for (&site, term) in terms {
        let part = |factor| {
            let place = Place { site, factor };
            let norm = tensors.get(&place).map_or(0.0, norm);
            if norm.is_finite() { Ok(norm) } else { Err(AdapterRejection::NotFinite(place.to_string())) }
        };
        let norm = part(Factor::A)? * part(Factor::B)? * term.scale.abs();
        part(Factor::M)?;
        if !norm.is_finite() {
            return Err(AdapterRejection::NotFinite(format!("the change of {site}")));
        }
        let max = u64::from(limits.delta_norm_max);
        if norm > max as f64 {
            return Err(AdapterRejection::TooLarge { what: "the norm of a module's change", value: norm as u64, max });
        }
    }
    Ok(())
}

fn check_tensor(place: Place, tensor: &TensorView<'_>, expected: &[usize]) -> Result<(), AdapterRejection> {
    if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        let dtype = tensor.dtype();
        return Err(AdapterRejection::Unsupported(format!("{place} is of type {dtype:?}, use f32, f16 or bf16")));
    }
    if tensor.shape() != expected {
        let shape = tensor.shape();
        return Err(AdapterRejection::ShapeMismatch(format!("{place} has shape {shape:?}, expected {expected:?}")));
    }
    Ok(())
}

/// Frobenius norm in f64; not finite exactly if a value is not.
fn norm(tensor: &TensorView<'_>) -> f64 {
    values(tensor).into_iter().map(|value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
}

/// The values as f32, in the file's order; exact for all three types.
pub(super) fn values(tensor: &TensorView<'_>) -> Vec<f32> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        _ => Vec::new(),
    }
}
