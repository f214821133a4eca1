//! What is written to disk after it was packed, and whether it may stay there. Not here: the files (`disk`).

use std::sync::Arc;

use model::LoraAdapter;
use types::{Digest, TenantId};

use super::disk::{DiskTier, forget};
use super::loads::{LoadPermit, Loads};
use super::owners::Owners;
use crate::revocation::Revocations;

/// Where a packed adapter is kept, and who says that it still may be.
#[derive(Clone)]
pub(super) struct Keep {
    pub(super) disk: Arc<DiskTier>,
    pub(super) tenant: TenantId,
    /// Whether all tenants share the file.
    pub(super) is_shared: bool,
    pub(super) digest: Digest,
    pub(super) owners: Owners,
    pub(super) revocations: Revocations,
}

impl Keep {
    /// Writes it to disk, unless its owner gave it up meanwhile or it was revoked.
    pub(super) async fn keep(self, adapter: Arc<LoraAdapter>, loads: Loads, permit: LoadPermit) {
        let Self { disk, tenant, is_shared, digest, owners, revocations } = self;
        let whose = (!is_shared).then(|| tenant.clone());
        let kept = (Arc::clone(&disk), whose.clone());
        let write = move || {
            kept.0.keep(kept.1.as_ref(), digest, &adapter);
            Ok(())
        };
        let written = loads.compute(permit, write).await;
        // Looked for after it was written: who gives it up or revokes it later removes the file.
        let owned = owners.find_digest(&tenant, digest).await;
        let removed = match owned {
            Ok(Some(_)) if revocations.find(digest).is_none() => Ok(()),
            _ => forget(&disk, whose.as_ref(), digest).await,
        };
        if let Err(error) = written.and(removed) {
            tracing::warn!(%digest, %error, "a packed adapter was not kept on disk");
        }
    }
}
