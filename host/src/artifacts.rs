//! Content-addressed blobs: plugins and adapters, named by the BLAKE3 digest of their bytes and checked on every read.
//!
//! Not here: who may use one. A digest is not a permission; `registry` and `adapters` keep the owners.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use types::{Blame, Digest};

use crate::store::{BlobWrite, Store, StoreError};

/// What a blob holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArtifactKind {
    /// A WebAssembly component as uploaded.
    Plugin,
    /// An adapter in canonical form.
    Adapter,
}

impl ArtifactKind {
    /// A stable word; also the folder.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::Adapter => "adapter",
        }
    }
}

/// Why a blob could not be kept or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Not in the store.
    #[error("there is no {} {digest} in the store", kind.name())]
    NotFound {
        /// What it should be.
        kind: ArtifactKind,
        /// Its name.
        digest: Digest,
    },
    /// The store has other bytes than were put there.
    #[error("the stored {} {digest} is corrupt: its bytes have the digest {found}; upload it again to repair it", kind.name())]
    Corrupt {
        /// What it should be.
        kind: ArtifactKind,
        /// Its name.
        digest: Digest,
        /// The digest of the bytes that are there.
        found: Digest,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArtifactError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "artifact_not_found",
            Self::Corrupt { .. } => "artifact_corrupt",
            Self::Store(error) => error.code(),
        }
    }

    /// Whose fault it is. Whoever asks for a blob was found to own it before, so a missing one is the host's.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::NotFound { .. } | Self::Corrupt { .. } => Blame::Host,
            Self::Store(error) => error.blame(),
        }
    }
}

/// The blobs.
#[derive(Clone, Debug)]
pub struct Artifacts {
    store: Arc<dyn Store>,
}

impl Artifacts {
    /// Over a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Whether so many bytes could be kept now.
    ///
    /// # Errors
    /// [`ArtifactError::Store`].
    pub async fn check_room(&self, bytes: usize) -> Result<(), ArtifactError> {
        Ok(self.store.check_room(bytes as u64).await?)
    }

    /// Keeps the bytes and names them. The work is the same whether or not they were there: another tenant's upload must not be
    /// observable. Bytes that rotted are replaced.
    ///
    /// # Errors
    /// [`ArtifactError::Store`]; [`ArtifactError::Corrupt`] if what was written cannot be read back.
    pub async fn put(&self, kind: ArtifactKind, bytes: Bytes) -> Result<Digest, ArtifactError> {
        let digest = digest_of(bytes.clone()).await?;
        let name = blob_name(kind, digest);
        self.store.put_blob(&name, bytes.clone(), BlobWrite::Keep).await?;
        match self.get(kind, digest).await {
            Ok(_) => return Ok(digest),
            Err(ArtifactError::Corrupt { .. }) => self.store.put_blob(&name, bytes, BlobWrite::Replace).await?,
            Err(error) => return Err(error),
        }
        self.get(kind, digest).await.map(|_| digest)
    }

    /// The bytes, whose digest was checked.
    ///
    /// # Errors
    /// [`ArtifactError::NotFound`], [`ArtifactError::Corrupt`], [`ArtifactError::Store`].
    pub async fn get(&self, kind: ArtifactKind, digest: Digest) -> Result<Bytes, ArtifactError> {
        Ok(self.get_timed(kind, digest).await?.0)
    }

    /// The same, and how long it took to read the bytes and to check them.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub async fn get_timed(
        &self,
        kind: ArtifactKind,
        digest: Digest,
    ) -> Result<(Bytes, Duration, Duration), ArtifactError> {
        let begun = Instant::now();
        let found = self.store.get_blob(&blob_name(kind, digest)).await?;
        let bytes = found.ok_or(ArtifactError::NotFound { kind, digest })?;
        let read = begun.elapsed();
        let found = digest_of(bytes.clone()).await?;
        if found != digest {
            return Err(ArtifactError::Corrupt { kind, digest, found });
        }
        Ok((bytes, read, begun.elapsed().saturating_sub(read)))
    }
}

fn blob_name(kind: ArtifactKind, digest: Digest) -> String {
    let digest = digest.to_string();
    // Two digits of fan-out keep a folder small at a million blobs.
    let fan_out: String = digest.chars().take(2).collect();
    format!("{}/{fan_out}/{digest}", kind.name())
}

/// Off the async threads: an adapter may have hundreds of megabytes.
async fn digest_of(bytes: Bytes) -> Result<Digest, ArtifactError> {
    let digest = tokio::task::spawn_blocking(move || Digest::of(&bytes)).await;
    digest.map_err(|error| StoreError::backend("compute a digest", error).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::EmbeddedStore;

    #[tokio::test]
    async fn what_was_put_is_read() {
        let artifacts = Artifacts::new(Arc::new(crate::store::memory::MemoryStore::default()));
        let bytes = Bytes::from_static(b"component");
        let digest = artifacts.put(ArtifactKind::Plugin, bytes.clone()).await.expect("put");
        assert_eq!(digest, Digest::of(b"component"));
        assert_eq!(artifacts.put(ArtifactKind::Plugin, bytes.clone()).await.expect("put again"), digest);
        assert_eq!(artifacts.get(ArtifactKind::Plugin, digest).await.expect("get"), bytes);
        let error = artifacts.get(ArtifactKind::Adapter, digest).await.expect_err("another kind");
        assert_eq!(error.code(), "artifact_not_found");
    }

    #[tokio::test]
    async fn corruption_is_found_and_repaired() {
        let folder = tempfile::tempdir().expect("a folder");
        let artifacts = Artifacts::new(Arc::new(EmbeddedStore::open(folder.path()).await.expect("open")));
        let bytes = Bytes::from_static(b"weights");
        let digest = artifacts.put(ArtifactKind::Adapter, bytes.clone()).await.expect("put");
        let path = folder.path().join("blobs").join(blob_name(ArtifactKind::Adapter, digest));
        for rotten in [b"weighty".as_slice(), b"", b"weights and more"] {
            std::fs::write(&path, rotten).expect("rot");
            let error = artifacts.get(ArtifactKind::Adapter, digest).await.expect_err("rotten");
            assert_eq!((error.code(), error.blame()), ("artifact_corrupt", Blame::Host));
            artifacts.put(ArtifactKind::Adapter, bytes.clone()).await.expect("put again");
            assert_eq!(artifacts.get(ArtifactKind::Adapter, digest).await.expect("repaired"), bytes);
        }
    }
}
