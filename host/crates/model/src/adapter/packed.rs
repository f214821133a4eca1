//! The packed form: factors laid out for the kernels of a runner and in the base's order of rows, and for DoRA the growth
//! of each row, which needs the base's weights. Not here: the weight of an adapter in a composition, the packed form as a
//! file (`packed_file.rs`).

use std::sync::{Arc, Weak};

use kernels::{Floats, Isa, LoraGroup, LoraPair, LoraTermParts, Mapping, RopeLayout, dora_norms};
use types::{Module, ModuleSet};

use super::canonical::Canonical;
use super::device_form::DeviceFactors;
use super::tensors::{self, Factor, Place, Site, Tensors, Term};
use super::{AdapterBase, AdapterLimits, AdapterRejection, Invocation, canonical};
use crate::{ModelConfig, Precision};

/// Modules that read the same input: their terms are computed together. Indexed by [`Group`].
pub(crate) const GROUPS: [&[Module]; 4] =
    [&[Module::Q, Module::K, Module::V], &[Module::O], &[Module::Gate, Module::Up], &[Module::Down]];

/// Which of a layer's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    QueryKeyValue,
    Output,
    GateUp,
    Down,
}

impl Group {
    /// Its modules, in the order of the columns of their joint output.
    pub(crate) const fn modules(self) -> &'static [Module] {
        GROUPS[self as usize]
    }

    /// The layer and group that a step comes to next, the layer maybe one more than there are.
    pub(crate) const fn after(self, layer: usize) -> (usize, Self) {
        match self {
            Self::QueryKeyValue => (layer, Self::Output),
            Self::Output => (layer, Self::GateUp),
            Self::GateUp => (layer, Self::Down),
            Self::Down => (layer + 1, Self::QueryKeyValue),
        }
    }
}

/// An adapter packed for one base, in host memory.
pub struct LoraAdapter {
    rank: u32,
    modules: ModuleSet,
    invocation: Option<Invocation>,
    layers: Layers,
    base: ModelConfig,
    memory_bytes: usize,
    /// The file that the factors lie in, if they do.
    mapping: Option<Arc<Mapping>>,
}

/// What is known of an adapter beside its factors.
pub(super) struct Traits {
    pub(super) rank: u32,
    pub(super) modules: ModuleSet,
    pub(super) invocation: Option<Invocation>,
}

/// For which runner.
pub(super) enum Layers {
    /// By layer and [`Module::index`].
    Reference(Vec<[Option<PackedTerm>; 7]>),
    /// The groups in the order of execution, and the number of each by layer and [`Group`].
    Grouped(Vec<LoraGroup>, Vec<[Option<usize>; 4]>),
    /// For a CUDA device.
    Device(DeviceFactors),
}

/// The change of one module, in f32.
pub(crate) struct PackedTerm {
    pub(crate) pair: LoraPair,
    /// What B(A x) is multiplied by.
    pub(crate) scale: f32,
    /// For DoRA: g − 1 of each output, with g = m / ‖W + s·BA‖.
    pub(crate) growth: Option<Floats>,
}

impl LoraAdapter {
    /// Packs canonical bytes, which are checked again, for runners of this precision. For DoRA this reads the base's weights and takes as many
    /// multiplications as `A` and `B` have products with them: not for the engine's thread.
    ///
    /// # Errors
    /// If the bytes are not in canonical form or do not fit this base, or if a row of a DoRA module has no norm or a magnitude
    /// that cannot be used.
    pub fn from_canonical(
        bytes: &[u8],
        base: &dyn AdapterBase,
        limits: &AdapterLimits,
        precision: Precision,
    ) -> Result<Self, AdapterRejection> {
        let config = base.config();
        let Canonical { terms, invocation, tensors } = canonical::read(bytes, config, limits)?;
        let mut layers: Vec<[Option<PackedTerm>; 7]> = (0..config.layers).map(|_| Default::default()).collect();
        for (site, term) in &terms {
            let packed = pack(*site, *term, &tensors, base, limits)?;
            match layers.get_mut(site.layer).and_then(|modules| modules.get_mut(site.module.index())) {
                Some(slot) => *slot = Some(packed),
                None => return Err(AdapterRejection::ShapeMismatch(site.to_string())),
            }
        }
        let rank = terms.values().map(|term| term.rank).max().unwrap_or_default();
        let modules = terms.keys().map(|site| site.module).collect();
        let layers = match precision {
            Precision::F32 => Layers::Reference(layers),
            Precision::Quantised => grouped(layers)?,
            Precision::Bf16 => Layers::Device(DeviceFactors::pack(&layers)),
        };
        let rank = u32::try_from(rank).unwrap_or(u32::MAX);
        Ok(Self::new(Traits { rank, modules, invocation }, layers, config.clone(), None))
    }

    pub(super) fn new(traits: Traits, layers: Layers, base: ModelConfig, mapping: Option<Arc<Mapping>>) -> Self {
        let memory_bytes = layers.memory_bytes();
        let Traits { rank, modules, invocation } = traits;
        Self { rank, modules, invocation, layers, base, memory_bytes, mapping }
    }

    /// The largest rank of a module.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// The modules that it acts on.
    #[must_use]
    pub fn modules(&self) -> ModuleSet {
        self.modules
    }

    /// What it is invoked by; `None` if it acts on every token.
    #[must_use]
    pub fn invocation(&self) -> Option<&Invocation> {
        self.invocation.as_ref()
    }

    /// What it takes in host memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The mapped file that the factors lie in, for as long as anyone has this adapter. Of one that was packed just now there
    /// is none.
    #[must_use]
    pub fn mapping(&self) -> Weak<Mapping> {
        self.mapping.as_ref().map(Arc::downgrade).unwrap_or_default()
    }

    pub(super) fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Whether it was packed for a runner of this precision over a base of these sizes.
    pub(crate) fn fits(&self, config: &ModelConfig, precision: Precision) -> bool {
        let packed_for = match &self.layers {
            Layers::Reference(_) => Precision::F32,
            Layers::Grouped(..) => Precision::Quantised,
            Layers::Device(_) => Precision::Bf16,
        };
        self.base == *config && packed_for == precision
    }

    /// A module's term, for the reference.
    pub(crate) fn term(&self, layer: usize, module: Module) -> Option<&PackedTerm> {
        match &self.layers {
            Layers::Reference(layers) => layers.get(layer)?.get(module.index())?.as_ref(),
            Layers::Grouped(..) | Layers::Device(_) => None,
        }
    }

    /// What a CUDA device is given.
    pub(crate) fn device_factors(&self) -> Option<&DeviceFactors> {
        match &self.layers {
            Layers::Device(factors) => Some(factors),
            Layers::Reference(_) | Layers::Grouped(..) => None,
        }
    }

    /// The terms of modules that share an input, for the fast runner.
    pub(crate) fn group(&self, layer: usize, group: Group) -> Option<&LoraGroup> {
        match &self.layers {
            Layers::Reference(_) | Layers::Device(_) => None,
            Layers::Grouped(groups, layers) => groups.get((*layers.get(layer)?.get(group as usize)?)?),
        }
    }
}

impl Layers {
    fn memory_bytes(&self) -> usize {
        let growth = |term: &PackedTerm| term.growth.as_ref().map_or(0, |growth| size_of_val(&**growth));
        match self {
            Self::Reference(layers) => {
                layers.iter().flatten().flatten().map(|term| term.pair.memory_bytes() + growth(term)).sum()
            }
            Self::Grouped(groups, _) => groups.iter().map(LoraGroup::memory_bytes).sum(),
            Self::Device(factors) => factors.bytes().len(),
        }
    }
}

/// All terms by layer and by the input that they read, in one piece of memory.
pub(super) fn grouped(layers: Vec<[Option<PackedTerm>; 7]>) -> Result<Layers, AdapterRejection> {
    let (mut groups, mut numbers) = (Vec::new(), Vec::new());
    for mut terms in layers {
        let mut layer = [None; 4];
        for (number, modules) in layer.iter_mut().zip(GROUPS) {
            let mut inputs = 0;
            let mut parts = Vec::new();
            for (module_slot, module) in modules.iter().enumerate() {
                let Some(term) = terms.get_mut(module.index()).and_then(Option::take) else { continue };
                let PackedTerm { pair, scale, growth } = term;
                let (rank, outputs) = (pair.rank(), pair.outputs());
                inputs = pair.inputs();
                let (a, b) = pair.into_parts();
                let growth = growth.map(Floats::into_vec);
                parts.push(LoraTermParts { module_slot, rank, outputs, a, b, scale, growth });
            }
            if !parts.is_empty() {
                *number = Some(groups.len());
                let group = LoraGroup::pack(inputs, &parts);
                groups.push(group.ok_or_else(|| AdapterRejection::ShapeMismatch("the terms of one input".into()))?);
            }
        }
        numbers.push(layer);
    }
    LoraGroup::gather(&mut groups);
    Ok(Layers::Grouped(groups, numbers))
}

fn pack(
    site: Site,
    term: Term,
    tensors: &Tensors<'_>,
    base: &dyn AdapterBase,
    limits: &AdapterLimits,
) -> Result<PackedTerm, AdapterRejection> {
    let (inputs, outputs) = base.config().module_shape(site.module);
    let mismatch = || AdapterRejection::ShapeMismatch(site.to_string());
    let part = |factor| tensors.get(&Place { site, factor }).map(tensors::values);
    let (a, b) = part(Factor::A).zip(part(Factor::B)).ok_or_else(mismatch)?;
    let b = packed_b(&b, term.rank, site.module, base.config());
    let pair = LoraPair::new(term.rank, inputs, outputs, a, b).ok_or_else(mismatch)?;
    let scale = term.scale as f32;
    let growth = match part(Factor::M) {
        Some(magnitude) => {
            // As a B of rank 1: its rows move where B's do.
            let magnitude = packed_b(&magnitude, 1, site.module, base.config());
            Some(growth(site, &pair, scale, &magnitude, base, limits)?.into())
        }
        None => None,
    };
    Ok(PackedTerm { pair, scale, growth })
}

/// m / ‖W + s·BA‖ − 1 of each row, both in the packed order.
fn growth(
    site: Site,
    pair: &LoraPair,
    scale: f32,
    magnitude: &[f32],
    base: &dyn AdapterBase,
    limits: &AdapterLimits,
) -> Result<Vec<f32>, AdapterRejection> {
    let zero = magnitude.iter().filter(|magnitude| **magnitude == 0.0).count();
    if zero > 0 {
        return Err(AdapterRejection::Unsupported(format!(
            "the magnitude of {site} is 0 in {zero} rows: it erases them"
        )));
    }
    let weight = base.dense(site.layer, site.module).map_err(|error| AdapterRejection::Base(error.to_string()))?;
    if weight.len() != pair.inputs() * pair.outputs() {
        return Err(AdapterRejection::Base(format!("{site} has {} weights", weight.len())));
    }
    let norms = dora_norms(Isa::detect(), pair, scale, &weight);
    let gains = norms.iter().zip(magnitude).map(|(norm, magnitude)| f64::from(*magnitude) / norm);
    let max = f64::from(limits.dora_gain_max);
    gains
        .map(|gain| match gain.abs() {
            // A norm of zero gives infinity: the magnitude is not zero.
            size if !size.is_finite() => {
                Err(AdapterRejection::NotFinite(format!("W + BA of {site} has a row without a norm")))
            }
            size if size > max => {
                let what = "a magnitude in norms of its row";
                Err(AdapterRejection::TooLarge { what, value: size as u64, max: max as u64 })
            }
            _ => Ok((gain - 1.0) as f32),
        })
        .collect()
}

/// B `[outputs, rank]` transposed to `[rank, outputs]`. The rows of q and k move to where the base has them: for neighbours,
/// within each head, transformers' row j · half + i becomes row 2i + j (llama.cpp's `convert_hf_to_gguf.py`).
fn packed_b(b: &[f32], rank: usize, module: Module, config: &ModelConfig) -> Vec<f32> {
    let (head_dim, half, outputs) = (config.head_dim, config.head_dim / 2, b.len() / rank);
    let moves = config.rope == RopeLayout::Neighbours && matches!(module, Module::Q | Module::K);
    let mut packed = vec![0.0; b.len()];
    for (row, values) in b.chunks_exact(rank).enumerate() {
        let (head, within) = (row / head_dim, row % head_dim);
        let to = if moves { head * head_dim + 2 * (within % half) + within / half } else { row };
        for (column, value) in values.iter().enumerate() {
            packed[column * outputs + to] = *value;
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_q_and_k_move_within_their_head() {
        let neighbours = ModelConfig { head_dim: 4, ..crate::adapter::tiny_config(1) };
        let halves = ModelConfig { rope: RopeLayout::Halves, ..neighbours.clone() };
        // Two heads of 4 rows, rank 1.
        let b: Vec<f32> = (0..8u8).map(f32::from).collect();
        assert_eq!(packed_b(&b, 1, Module::K, &neighbours), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(packed_b(&b, 1, Module::V, &neighbours), b);
        assert_eq!(packed_b(&b, 1, Module::K, &halves), b);
        assert_eq!(packed_b(&b, 2, Module::V, &neighbours), [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]);
    }
}
