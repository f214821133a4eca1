//! The one file with `unsafe` code of this crate: machine code that we made becomes a component.
#![allow(unsafe_code, reason = "wasmtime cannot check machine code; the argument's type says that it is ours")]

use wasmtime::Engine;
use wasmtime::component::Component;

/// Machine code that this host's own compiler child made, with this engine's configuration: either it came through the
/// pipe from that child just now, or from a file whose mark was checked with a key that only this host can read. The
/// field is private to this file, and the two constructors are the only ways in.
#[derive(Debug)]
pub(crate) struct OwnArtefact(Vec<u8>);

impl OwnArtefact {
    /// What the compiler child wrote to our pipe before it ended with success. Called by `compile.rs` alone.
    pub(crate) fn from_compiler(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// What a file holds whose mark was just checked. Called by `artefacts.rs` alone.
    pub(crate) fn from_marked_file(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Loads the code. An artefact of another wasmtime, another configuration or another processor is an error.
    pub(crate) fn load(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: `Component::deserialize` asks that the bytes were made by `Engine::precompile_component` and not changed
        // since. `self.0` is private to this file and is set by the two constructors above only, which take what the
        // child made with exactly that function (`child.rs`) or what a keyed mark proves to be such a result.
        unsafe { Component::deserialize(engine, &self.0) }
    }
}
