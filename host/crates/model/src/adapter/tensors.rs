//! The tensors of an adapter: the container's own rules, names, shapes and values. Used on a PEFT file and on canonical
//! bytes alike.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use types::{Module, ModuleSet};

use super::{AdapterLimits, AdapterRejection};
use crate::ModelConfig;

/// The two factors of a module's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Factor {
    /// `[rank, inputs]`
    A,
    /// `[outputs, rank]`
    B,
}

/// Where a tensor belongs; the order is that of the canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) layer: usize,
    pub(super) module: Module,
    pub(super) factor: Factor,
}

pub(super) type Tensors<'a> = BTreeMap<Place, TensorView<'a>>;

/// Opens a safetensors file after the checks that its library leaves out: the size of the header and its first byte.
pub(super) fn open<'a>(bytes: &'a [u8], limits: &AdapterLimits) -> Result<SafeTensors<'a>, AdapterRejection> {
    limits.check("its weights in bytes", bytes.len(), limits.file_bytes_max)?;
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
    let file = SafeTensors::deserialize(bytes).map_err(|error| AdapterRejection::Malformed(error.to_string()))?;
    limits.check("its number of tensors", file.len(), limits.tensors_max)?;
    Ok(file)
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

/// `base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight`
pub(super) fn peft_place(name: &str) -> Result<Place, AdapterRejection> {
    let place = || {
        let (layer, rest) = name.strip_prefix("base_model.model.model.layers.")?.split_once('.')?;
        let (block, rest) = rest.split_once('.')?;
        let (module, factor) = rest.split_once('.')?;
        let factor = match factor {
            "lora_A.weight" => Factor::A,
            "lora_B.weight" => Factor::B,
            _ => return None,
        };
        let module = Module::from_name(module)?;
        let expected = match module {
            Module::Q | Module::K | Module::V | Module::O => "self_attn",
            Module::Gate | Module::Up | Module::Down => "mlp",
        };
        (block == expected).then_some(Place { layer: layer_number(layer)?, module, factor })
    };
    place().ok_or_else(|| {
        AdapterRejection::Unsupported(format!("tensor `{}` is not A or B of a linear module of the base", short(name)))
    })
}

/// A decimal number in its one usual form.
pub(super) fn layer_number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|layer: &usize| layer.to_string() == text)
}

/// Checks that every A has its B, that shapes and layers are those of the base, that values are finite and not so large
/// that they could only break the output. Gives the modules.
pub(super) fn check(
    tensors: &Tensors<'_>,
    rank: usize,
    scale: f64,
    config: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<ModuleSet, AdapterRejection> {
    let mut modules = ModuleSet::EMPTY;
    for (place, tensor) in tensors {
        let at = describe(*place);
        if place.layer >= config.layers {
            return Err(AdapterRejection::ShapeMismatch(format!("{at}: the base has {} layers", config.layers)));
        }
        let (inputs, outputs) = config.module_shape(place.module);
        let (other, expected) = match place.factor {
            Factor::A => (Factor::B, [rank, inputs]),
            Factor::B => (Factor::A, [outputs, rank]),
        };
        if !tensors.contains_key(&Place { factor: other, ..*place }) {
            return Err(AdapterRejection::Malformed(format!("{at} has no {other:?}")));
        }
        if !matches!(tensor.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let dtype = tensor.dtype();
            return Err(AdapterRejection::Unsupported(format!("{at} is of type {dtype:?}, use f32, f16 or bf16")));
        }
        if tensor.shape() != expected {
            let shape = tensor.shape();
            return Err(AdapterRejection::ShapeMismatch(format!("{at} has shape {shape:?}, expected {expected:?}")));
        }
        modules = modules.with(place.module);
    }
    for (place, a) in tensors.iter().filter(|(place, _)| place.factor == Factor::A) {
        let Some(b) = tensors.get(&Place { factor: Factor::B, ..*place }) else { continue };
        let norm = norm(a) * norm(b) * scale.abs();
        if !norm.is_finite() {
            let module = place.module.name();
            return Err(AdapterRejection::NotFinite(format!("A or B of {module} in layer {}", place.layer)));
        }
        let max = u64::from(limits.delta_norm_max);
        if norm > max as f64 {
            return Err(AdapterRejection::TooLarge { what: "the norm of a module's change", value: norm as u64, max });
        }
    }
    Ok(modules)
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

pub(super) fn describe(place: Place) -> String {
    format!("{:?} of {} in layer {}", place.factor, place.module.name(), place.layer)
}

/// A name from the file, made safe to print.
pub(super) fn short(name: &str) -> String {
    name.chars().take(96).flat_map(char::escape_debug).collect()
}
