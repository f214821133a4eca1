//! Adapters: from a PEFT folder to canonical bytes ([`canonical_adapter`]), and from those to the packed form that the
//! runner executes ([`LoraAdapter`]). Not here: where the bytes come from or are kept.
//!
//! What must hold: an adapter is executed exactly as it was trained, or refused with its reason. Nothing is left out,
//! nothing is guessed.

mod canonical;
mod packed;
mod peft_config;
mod rejection;
mod tensors;

pub use canonical::{CanonicalAdapter, canonical_adapter};
pub use packed::LoraAdapter;
pub use rejection::{AdapterLimits, AdapterRejection};
