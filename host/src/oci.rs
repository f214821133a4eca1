//! Plugins in OCI registries, in the WASM artefact layout of CNCF's TAG Runtime: one component is one layer, and its config says what
//! it imports and exports (<https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>). It is what
//! `wkg oci` writes; the tests push and pull with `oras`.
//!
//! Reading order: `reference` (how an artefact is named), `layout` (its manifest and config), `doors` (what may be asked), `challenge`
//! (what a registry wants to see first), `session` (one request, with that), `pull`, `push`, `referrers` (the signatures beside an
//! artefact), `sources` (what the host pulls for its tenants). The registry is a stranger: every answer has a length before it is
//! read, and nothing is believed that has another digest. Not here: the command line (`cli/registry.rs`), and what a component is.

mod challenge;
mod doors;
mod error;
mod layout;
mod pull;
mod push;
mod reference;
mod referrers;
mod session;
mod sources;

pub(crate) use doors::{Doors, is_loopback};
pub use error::OciError;
pub(crate) use layout::WasmWorld;
pub use pull::Pulled;
pub(crate) use pull::pull;
pub(crate) use push::{NewArtefact, push};
pub use reference::{Reference, Sha256};
pub(crate) use session::{Login, Session};
pub(crate) use sources::PluginSources;
pub use sources::PluginSourcesConfig;

/// Bytes of a component: what a host takes.
pub(crate) const COMPONENT_BYTES_MAX: u64 = 32 << 20;
/// Bytes of a manifest, of an index of referrers and of a config. A manifest of one layer has less than a page.
const DOCUMENT_BYTES_MAX: u64 = 256 << 10;
/// Signatures beside one artefact that are looked at.
pub(crate) const SIGNATURES_MAX: usize = 8;

#[cfg(test)]
mod tests;
