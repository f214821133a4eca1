//! Machine code that we made becomes a component: with `pages.rs` the only file with `unsafe` code of this crate.
#![allow(unsafe_code, reason = "wasmtime cannot check machine code; the argument's type says that it is ours")]

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsRawFd as _;

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::pages::ImageFile;

/// Machine code that this host's own compiler child made just now, with this engine's configuration, and wrote to our pipe.
/// The field is private to this file, and the constructor is the only way in.
#[derive(Debug)]
pub(crate) struct OwnArtefact(Vec<u8>);

/// The same in a file of ours, whose mark was checked with a key that only this host can read. As private, and as much the
/// only way in.
#[derive(Debug)]
pub(crate) struct OwnFile {
    file: File,
    bytes: u64,
}

impl OwnArtefact {
    /// What the compiler child wrote to our pipe before it ended with success. Called by `compile.rs` alone.
    pub(crate) fn from_compiler(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Loads the code. An artefact of another wasmtime, another configuration or another processor is an error.
    pub(crate) fn load(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: `Component::deserialize` asks that the bytes were made by `Engine::precompile_component` and not changed
        // since. `self.0` is private to this file and is set by the constructor above only, which takes what the child
        // made with exactly that function (`child.rs`).
        unsafe { Component::deserialize(engine, &self.0) }
    }
}

impl OwnFile {
    /// A file whose mark was just checked, or is known not to have changed since it was: its first so many bytes are the code.
    /// Called by `artefacts.rs` alone.
    pub(crate) fn from_marked_file(file: File, bytes: u64) -> Self {
        Self { file, bytes }
    }

    /// What the memories of its instances begin with, if it is mapped and not copied.
    pub(crate) fn image(&self) -> Option<ImageFile> {
        ImageFile::of(&self.file)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Loads the code by mapping the file: only what is used of it is in memory, and the kernel may let go of that.
    pub(crate) fn load(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // The file that is open, whatever has its name by now.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        if std::fs::exists(&path).unwrap_or(false) {
            // SAFETY: `Component::deserialize_file` asks for what `Engine::precompile_component` made, and that the file does
            // not change while the component lives. The constructor above takes only files with our mark over their bytes,
            // which is set on what the child made with that function. They lie in a folder of mode 0700, are made under
            // another name and never written again: they are replaced or removed as a whole, which leaves mappings alone.
            return unsafe { Component::deserialize_file(engine, path) };
        }
        let (mut file, mut bytes) = (&self.file, Vec::new());
        file.rewind()?;
        file.take(self.bytes).read_to_end(&mut bytes)?;
        // SAFETY: as above, of the same bytes of the same file.
        unsafe { Component::deserialize(engine, &bytes) }
    }
}
