//! Where an adapter's two files come from, by the scheme of a URL, behind one small interface: [`Sources::parse`] says whether a
//! source may be asked, [`Sources::open`] brings it here. Not here: what the files mean, and who may add them.
//!
//! Reading order: `folder` (`file://`, below a root), then everything that is fetched: `origin` and `guard` (what may be asked),
//! `web` (one request), `download` (one file, whole), `fetch` (both files, once for all who ask at the same time), and one file for
//! each scheme, which only says which URL a file has: `http`, `hugging_face`, `s3`; `ipfs` also checks what it is given.

mod credential;
mod download;
mod error;
mod fetch;
mod folder;
mod guard;
mod http;
mod hugging_face;
mod ipfs;
mod origin;
mod s3;
mod web;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::AdapterLimits;
use reqwest::Url;
use types::TenantId;

use super::{AdapterError, AdapterFiles};
use fetch::{Fetcher, RemoteFolder};
use folder::AdaptersRoot;
pub(crate) use guard::{Guard, GuardedResolver, Lookup, Refusal, SystemLookup, on_behalf_of};
pub(crate) use web::{reason, refusal, tls};

pub use credential::Credential;
pub use error::SourceError;
pub use origin::{AllowedOrigin, OriginError};

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";
/// As `model_signing` calls it.
pub(crate) const SIGNATURE: &str = "model.sig";
/// Bytes of a source's URL.
const URL_BYTES_MAX: usize = 2048;

/// What may be fetched from elsewhere, and how patiently. By default nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct SourcesConfig {
    /// What may be asked; everything else is refused.
    pub hosts: Vec<AllowedOrigin>,
    /// Addresses that are not public, and may be connected to nevertheless.
    pub private_networks: Vec<IpNet>,
    /// Where `hf://` goes. `None` is the public hub.
    pub hugging_face_endpoint: Option<Url>,
    /// Where `s3://` goes: the server below which buckets are folders. `None` is AWS in the region.
    pub s3_endpoint: Option<Url>,
    /// Part of S3's signatures.
    pub s3_region: String,
    /// Where `ipfs://` goes, a trustless gateway. `None` refuses them.
    pub ipfs_gateway: Option<Url>,
    /// For a whole source, its wait for a turn included.
    pub total: Duration,
    /// Without a byte.
    pub stall: Duration,
    /// For a connection.
    pub connect: Duration,
    /// Requests for one file, redirects not counted.
    pub attempts_max: u32,
    /// Before the second of these; doubled before each one after.
    pub retry_wait: Duration,
    /// Redirects that one request may take.
    pub redirects_max: u32,
    /// Sources that are fetched at a time; bounds memory.
    pub fetches_max: usize,
}

impl Default for SourcesConfig {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            private_networks: Vec::new(),
            hugging_face_endpoint: None,
            s3_endpoint: None,
            s3_region: "us-east-1".to_owned(),
            ipfs_gateway: None,
            total: Duration::from_secs(600),
            stall: Duration::from_secs(30),
            connect: Duration::from_secs(10),
            attempts_max: 5,
            retry_wait: Duration::from_millis(200),
            redirects_max: 5,
            fetches_max: 4,
        }
    }
}

/// A source that was understood and may be asked. Nothing was asked yet.
#[derive(Debug)]
pub(super) struct Source(Place);

#[derive(Debug)]
enum Place {
    Folder(AdaptersRoot, PathBuf),
    Remote(Arc<dyn RemoteFolder>),
}

/// A source that can be read without waiting for anybody else.
#[derive(Debug)]
pub(super) struct Opened(Files);

#[derive(Debug)]
enum Files {
    Folder(AdaptersRoot, PathBuf),
    Here(AdapterFiles),
}

impl Opened {
    /// The files, each no larger than its limit. Blocking.
    pub(super) fn read(self, limits: &AdapterLimits) -> Result<AdapterFiles, AdapterError> {
        match self.0 {
            Files::Folder(root, path) => root.read_folder(&path, limits),
            Files::Here(files) => Ok(files),
        }
    }
}

/// All that adapters may come from.
#[derive(Debug)]
pub(super) struct Sources {
    root: Option<AdaptersRoot>,
    config: SourcesConfig,
    fetcher: Arc<Fetcher>,
}

impl Sources {
    /// Blocking: it looks at the root and at the system's certificate authorities.
    pub(super) fn new(root: Option<&Path>, config: SourcesConfig) -> Result<Self, AdapterError> {
        Self::with_lookup(root, config, Arc::new(SystemLookup))
    }

    fn with_lookup(root: Option<&Path>, config: SourcesConfig, lookup: Arc<dyn Lookup>) -> Result<Self, AdapterError> {
        let root = root.map(AdaptersRoot::open).transpose()?;
        let fetcher = Arc::new(Fetcher::new(&config, lookup)?);
        Ok(Self { root, config, fetcher })
    }

    /// Understands a URL, and refuses what this host does not ask.
    pub(super) fn parse(&self, url: &str, credential: Option<&Credential>) -> Result<Source, AdapterError> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let scheme = scheme.to_ascii_lowercase();
        let is_remote = matches!(scheme.as_str(), "http" | "https" | "hf" | "s3" | "ipfs");
        if !is_remote {
            if credential.is_some() {
                return Err(AdapterError::BadSource("a secret is of no use for this source; leave it out"));
            }
            let root = self.root.clone().ok_or(AdapterError::NoRoot)?;
            return Ok(Source(Place::Folder(root, folder::file_path(url)?)));
        }
        if url.len() > URL_BYTES_MAX || url.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(AdapterError::BadSource("a URL has at most 2048 bytes, and no spaces or control characters"));
        }
        let guard = self.fetcher.guard();
        let remote: Arc<dyn RemoteFolder> = match scheme.as_str() {
            "hf" => Arc::new(hugging_face::Repository::parse(rest, &self.config, guard, credential)?),
            "s3" => Arc::new(s3::Prefix::parse(rest, &self.config, guard, credential)?),
            "ipfs" => Arc::new(ipfs::Folder::parse(rest, &self.config, guard, credential)?),
            _ => Arc::new(http::Folder::parse(url, guard, credential)?),
        };
        Ok(Source(Place::Remote(remote)))
    }

    /// The URL of a folder that is named by its path: absolute, or from the root on.
    pub(super) fn folder_url(&self, path: &str) -> Result<String, AdapterError> {
        self.root.as_ref().ok_or(AdapterError::NoRoot)?.url(path)
    }

    /// Where a token for this source goes.
    pub(super) fn token_origin(&self, url: &str) -> Result<Url, AdapterError> {
        let scheme = url.split_once("://").unwrap_or_default().0.to_ascii_lowercase();
        let origin = match scheme.as_str() {
            "hf" => hugging_face::endpoint(&self.config),
            "http" | "https" => Url::parse(url).ok(),
            "s3" => return Err(AdapterError::BadSource("s3:// takes keys and no token: keep them as a secret")),
            _ => return Err(AdapterError::BadSource("a token is of no use for this source; leave it out")),
        };
        origin.ok_or(AdapterError::BadSource("it is not a URL"))
    }

    /// Brings the files here, once for all of the tenant who ask for them at the same time with the same credentials.
    pub(super) async fn open(
        &self,
        tenant: &TenantId,
        source: Source,
        limits: &AdapterLimits,
        with_signature: bool,
    ) -> Result<Opened, AdapterError> {
        Ok(Opened(match source.0 {
            Place::Folder(root, path) => Files::Folder(root, path),
            Place::Remote(remote) => Files::Here(self.fetcher.fetch(tenant, remote, limits, with_signature).await?),
        }))
    }

    /// No fetch begins any more.
    pub(super) fn close(&self) {
        self.fetcher.close();
    }
}

#[cfg(test)]
pub(crate) mod fault_server;
#[cfg(test)]
mod tests;
