//! Adapters: from a PEFT folder to canonical bytes ([`canonical_adapter`]), and from those to the packed form that the
//! runner executes ([`LoraAdapter`]). Not here: where the bytes come from or are kept.

mod rejection;

pub use rejection::{AdapterLimits, AdapterRejection};

use types::{Digest, ModuleSet};

use crate::ModelConfig;

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
    pub scale: f32,
    /// The modules that it acts on, in one layer or more.
    pub modules: ModuleSet,
}

/// Checks a PEFT folder's two files against the base and puts them into canonical form.
///
/// # Errors
/// If anything is malformed, unsupported, too large, not finite or does not fit the base. Nothing is half-loaded.
pub fn canonical_adapter(
    _config_json: &[u8],
    _weights: &[u8],
    _config: &ModelConfig,
    _limits: &AdapterLimits,
) -> Result<CanonicalAdapter, AdapterRejection> {
    Err(AdapterRejection::Unsupported("not written yet".into()))
}

/// An adapter packed for one base, in host memory.
pub struct LoraAdapter {
    rank: u32,
    modules: ModuleSet,
    memory_bytes: usize,
}

impl LoraAdapter {
    /// Packs canonical bytes, which are checked again.
    ///
    /// # Errors
    /// If the bytes are not in canonical form or do not fit this base.
    pub fn from_canonical(
        _bytes: &[u8],
        _config: &ModelConfig,
        _limits: &AdapterLimits,
    ) -> Result<Self, AdapterRejection> {
        Err(AdapterRejection::Unsupported("not written yet".into()))
    }

    pub(crate) fn check_fits(&self, _config: &ModelConfig) -> Result<(), AdapterRejection> {
        Ok(())
    }
    pub(crate) fn scale(&self) -> f32 {
        1.0
    }
    pub(crate) fn pair(&self, _layer: usize, _module: types::Module) -> Option<&kernels::LoraPair> {
        None
    }
    /// Its rank.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// The modules that it acts on.
    #[must_use]
    pub fn modules(&self) -> ModuleSet {
        self.modules
    }

    /// What it takes in host memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }
}
