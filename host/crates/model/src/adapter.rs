//! Adapters: from a PEFT folder to canonical bytes (`admission`: [`canonical_adapter`]), and from those to the packed form that the
//! runner executes ([`LoraAdapter`]), which can be a file that is mapped ([`PackedImage`]); and new ones out of others
//! ([`derive_adapter`]). Not here: where the bytes come from or are kept.
//!
//! What must hold: an adapter is executed exactly as it was trained, or refused with its reason. Nothing is left out,
//! nothing is guessed.

mod admission;
mod base;
mod canonical;
mod container;
mod derive;
mod device_form;
mod fingerprint;
mod generated;
mod invocation;
mod norms;
mod packed;
mod packed_file;
mod pattern;
mod peft_config;
mod rejection;
mod report;
mod targets;
mod tensors;

pub use admission::{CanonicalAdapter, canonical_adapter};
pub use base::AdapterBase;
pub use container::{CONTAINER_PREFIX_BYTES, refuse_container, refuse_container_name};
pub use derive::{
    DeriveError, DeriveLimits, DeriveMethod, DeriveParent, DeriveRecipe, DerivedAdapter, MajoritySign, ModuleError,
    ValidRecipe, derive_adapter,
};
pub(crate) use device_form::{DeviceFactors, DeviceTerm, RANK_MULTIPLE};
pub use invocation::Invocation;
pub use packed::LoraAdapter;
pub(crate) use packed::PackedTerm;
pub(crate) use packed::{GROUPS, Group};
pub use packed_file::{PackedFileError, PackedImage, packed_layout};
pub use rejection::{AdapterLimits, AdapterRejection, NormLimits};
pub use report::{AdapterKind, AdapterReport, ModuleReport};

/// The sizes of a base for unit tests.
#[cfg(test)]
pub(crate) fn tiny_config(layers: usize) -> crate::ModelConfig {
    crate::ModelConfig {
        layers,
        hidden: 64,
        intermediate: 64,
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        vocabulary: 32,
        context_tokens_max: 64,
        rope_theta: 10_000.0,
        rope: crate::RopeLayout::Neighbours,
        rope_divisors: Vec::new(),
        rms_epsilon: 1e-5,
        query_key_norm: false,
        tied_output: true,
    }
}
