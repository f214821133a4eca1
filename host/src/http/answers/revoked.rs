//! A revocation as it is answered. Not here: what follows from one.

use serde::Serialize;
use types::Digest;
use utoipa::ToSchema;

use crate::revocation::Revocation;

/// A revocation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Revoked {
    /// Of an adapter or a plugin.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    digest: String,
    /// For people; may be empty.
    reason: String,
    /// The key's identifier.
    by_key: String,
    /// Milliseconds since 1970-01-01 UTC.
    revoked_unix_ms: u64,
}

impl Revoked {
    pub(crate) fn new(digest: Digest, revocation: Revocation) -> Self {
        let Revocation { reason, by_key, revoked_unix_ms } = revocation;
        Self { digest: digest.to_string(), reason, by_key, revoked_unix_ms }
    }
}
