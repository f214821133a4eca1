//! Configuration: [`RawConfig`] as it was written (file, environment, flags), checked into a [`Config`]. A flag wins over
//! the environment, the environment over the file, the file over the defaults; a key that nobody knows is an error.
//!
//! Not here: the command line's syntax (clap, in `cli.rs`) and what the values do.

mod check;
mod raw;
mod sources;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::NormLimits;
use plugin::PluginLimits;
use serde::{Deserialize, Serialize};
use types::{Blame, PlanLimits};

use crate::adapters::SourcesConfig;
use crate::keyvalue::KeyValueLimits;
use crate::oci::PluginSourcesConfig;
use crate::outbound::OutboundConfig;
use crate::quotas::Quota;

pub use model::{Precision, Prompts};
pub use raw::{RawAdapterSources, RawConfig, RawLimits, RawPluginHttp, RawTls};
pub use sources::Source;

/// What the host is to do, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The base model's file or folder; it exists.
    pub base: PathBuf,
    /// The folder of all state; made at the first start.
    pub data: PathBuf,
    /// Where to listen; loopback when `dev`.
    pub listen: SocketAddr,
    /// For one developer on one machine: loopback only, a key in `DATA/dev.key`.
    pub dev: bool,
    /// How the base is computed.
    pub precision: Precision,
    /// How the CPU computes prompts.
    pub prompts: Prompts,
    /// What computes.
    pub runner: RunnerChoice,
    /// Memory of the CUDA device that may be taken; most of what is free if not given.
    pub device_memory_bytes_max: Option<u64>,
    /// How it keeps keys and values.
    pub kv_format: KvKind,
    /// What it multiplies many rows with.
    pub matmul: MatmulKind,
    /// Threads of the engine.
    pub threads: usize,
    /// Memory for keys and values.
    pub kv: KvSize,
    /// Whether somebody said so.
    pub kv_is_given: bool,
    /// Tokens of one block of it.
    pub block_tokens: u32,
    /// Adapters that one batch can use.
    pub adapter_slots: u32,
    /// Tokens of one step.
    pub batch_rows_max: usize,
    /// Where `file://` adapters may lie; none are allowed without it. Canonical.
    pub adapters_root: Option<PathBuf>,
    /// What adapters may be fetched from; nothing by default.
    pub adapter_sources: SourcesConfig,
    /// Memory for adapters that are loaded.
    pub adapter_cache_bytes_max: u64,
    /// How large the change of one module of an adapter may be.
    pub adapter_norms: NormLimits,
    /// Of these, memory for those that are pinned.
    pub adapter_pinned_bytes_max: u64,
    /// Page-locked memory for those that are ready to be copied to a CUDA device.
    pub adapter_staging_bytes_max: u64,
    /// Whether tenants with the same adapter share its packed form, and can tell by time that they do.
    pub share_adapters_across_tenants: bool,
    /// Disk for packed adapters; 0 keeps none.
    pub adapter_disk_bytes_max: u64,
    /// Requests that may wait for the engine.
    pub queue_requests_max: usize,
    /// Of these, requests of one tenant.
    pub queue_tenant_requests_max: usize,
    /// Whether KV is kept for later requests of the same tenant that begin alike.
    pub prefix_cache: bool,
    /// Tokens of a request that are guessed in one step; 0 guesses none.
    pub speculation_tokens_max: u32,
    /// How long running requests may take to end when the host stops.
    pub drain: Duration,
    /// What one plan may ask for. `layers` and `vocabulary` are the base's to say.
    pub plan_limits: PlanLimits,
    /// What one plugin, its instance and each call of it may use.
    pub plugin_limits: PluginLimits,
    /// Plugin instances at once.
    pub plugin_instances_max: u32,
    /// What every tenant may use that has no quota of its own.
    pub tenant_quota: Quota,
    /// Which registries plugins may be pulled from by this host.
    pub plugin_sources: PluginSourcesConfig,
    /// Where plugins may send requests, as far as manifests grant it.
    pub plugin_http: OutboundConfig,
    /// What key-value buckets may hold.
    pub keyvalue_limits: KeyValueLimits,
    /// What one connection may do.
    pub http_limits: HttpLimits,
    /// TLS of the listener; plain HTTP without it.
    pub tls: Option<TlsFiles>,
    /// What is logged, as `tracing` filter directives.
    pub log: String,
}

/// Where the listener's certificate and its key are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those up to the authority.
    pub certificate_file: PathBuf,
    /// Its private key, unencrypted.
    pub private_key_file: PathBuf,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunnerChoice {
    /// A CUDA device if there is one that can hold the base, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device, or the host does not start.
    Cuda,
}

/// How a CUDA device keeps keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvKind {
    /// 16-bit floats.
    #[default]
    F16,
    /// Whole numbers of 8 bits, and a scale for each position and head.
    Int8,
    /// Floats of 8 bits (e4m3), likewise.
    Fp8,
}

/// What multiplies the rows of long prompts with bf16 weights on a CUDA device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatmulKind {
    /// Our own kernels: an answer does not depend, to the last bit, on what else is computed.
    #[default]
    Own,
    /// NVIDIA's library: an answer may depend on that, in its last places.
    CublasLt,
}

/// Size of the memory for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSize {
    /// As many blocks as fit.
    Bytes(u64),
    /// So many blocks.
    Blocks(u32),
}

/// Limits of the HTTP surface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Bytes of a body that is not an upload.
    pub body_bytes_max: usize,
    /// Bytes of an uploaded plugin.
    pub upload_bytes_max: usize,
    /// Bytes of an uploaded adapter, all its files.
    pub adapter_bytes_max: u64,
    /// Time for a request's headers.
    pub header_timeout: Duration,
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// Connections at once.
    pub connections_max: usize,
    /// Answers that one request may ask for: its prompts times its `n`.
    pub choices_max: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            body_bytes_max: 10 << 20,
            upload_bytes_max: 32 << 20,
            adapter_bytes_max: 1 << 30,
            header_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            connections_max: 1024,
            choices_max: 8,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {path} cannot be read", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{origin}: {reason}")]
    Syntax {
        /// Where.
        origin: Source,
        /// What the parser says.
        reason: String,
    },
    /// A key or its value is not allowed.
    #[error("`{key}` ({origin}): {reason}")]
    Value {
        /// The key, dotted.
        key: String,
        /// Who set it.
        origin: Source,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// A key without a default was not set.
    #[error("`{key}` is not set: give {flag}, {variable} or `{key} = …` in the configuration file", flag = sources::flag_name(key), variable = sources::variable_name(key))]
    Missing {
        /// The key, dotted.
        key: &'static str,
    },
}

impl ConfigError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::File { .. } => "config_unreadable",
            Self::Syntax { .. } | Self::Value { .. } => "config_invalid",
            Self::Missing { .. } => "config_incomplete",
        }
    }

    /// The operator's, and so the host's.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        Blame::Host
    }
}

impl Config {
    /// Reads all sources and checks what comes out. `file` is the flag `--config`; without it `TENON_CONFIG` may name one.
    /// `environment` is usually [`std::env::vars_os`].
    ///
    /// # Errors
    /// The first key that is unknown, of the wrong type, out of range or missing.
    pub fn load<N, V>(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (N, V)>,
        flags: &RawConfig,
    ) -> Result<Self, ConfigError>
    where
        N: Into<std::ffi::OsString>,
        V: Into<std::ffi::OsString>,
    {
        let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let settings = sources::read(file, environment, flags)?;
        check::check(&settings)
    }
}

#[cfg(test)]
mod tests;
