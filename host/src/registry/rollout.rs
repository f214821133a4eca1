//! Which version answers whom: `live`, or the canary for its share of the callers, always the same ones; and which version gets
//! copies. Not here: what becomes of copies (`shadows.rs`).
//!
//! A caller is known by its sticky key. The key's bucket is a hash over function, life, canary version and key, uniform in
//! 0 .. 2^64, and the canary has the buckets below its share: a larger share only adds callers. Another canary version has
//! other callers first.

use serde::{Deserialize, Serialize};
use types::{Digest, FunctionName, TenantId};

use super::head::Head;
use super::live::By;
use super::{ChangeKind, FunctionVersion, Registry, RegistryError, digest_text};

/// Basis points of all.
const ALL_BASIS_POINTS: u16 = 10_000;

/// A share of callers or of requests, in steps of 0.01 %: more than nothing, at most all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Share(u16);

/// A number that is no share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a percentage is more than 0 and at most 100, in steps of 0.01")]
pub struct ShareError;

impl Share {
    /// Everything.
    pub const ALL: Self = Self(ALL_BASIS_POINTS);

    /// So many percent.
    ///
    /// # Errors
    /// [`ShareError`] if it is not over 0, is over 100, or has a finer step than 0.01.
    pub fn of_percent(percent: f64) -> Result<Self, ShareError> {
        let points = percent * 100.0;
        let whole = points.round();
        // 0.07 * 100 is not 7: what f64 makes of a step of 0.01 is far closer to it than any finer step.
        if !points.is_finite() || (points - whole).abs() > 1e-6 || !(1.0..=f64::from(ALL_BASIS_POINTS)).contains(&whole)
        {
            return Err(ShareError);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number of 1 to 10,000")]
        Ok(Self(whole as u16))
    }

    /// In percent.
    #[must_use]
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// Whether a bucket, uniform in 0 .. 2^64, belongs to it. What belongs to a share belongs to every larger one.
    #[must_use]
    pub fn has(self, bucket: u64) -> bool {
        (u128::from(bucket) * u128::from(ALL_BASIS_POINTS)) >> 64 < u128::from(self.0)
    }
}

impl TryFrom<u16> for Share {
    type Error = ShareError;

    fn try_from(points: u16) -> Result<Self, ShareError> {
        if (1..=ALL_BASIS_POINTS).contains(&points) { Ok(Self(points)) } else { Err(ShareError) }
    }
}

impl From<Share> for u16 {
    fn from(share: Share) -> Self {
        share.0
    }
}

/// A version beside the live one: the canary, or the shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// The version.
    pub version: u32,
    /// Of the callers (a canary) or of the requests (a shadow), in basis points.
    #[serde(rename = "share_basis_points")]
    pub share: Share,
    /// The version's plugin, for the history.
    #[serde(with = "digest_text")]
    pub plugin: Digest,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Answers its share of the callers.
    Canary,
    /// Gets copies.
    Shadow,
}

impl Beside {
    pub(super) const fn set(self) -> ChangeKind {
        match self {
            Self::Canary => ChangeKind::CanarySet,
            Self::Shadow => ChangeKind::ShadowSet,
        }
    }

    pub(super) const fn ended(self) -> ChangeKind {
        match self {
            Self::Canary => ChangeKind::CanaryEnded,
            Self::Shadow => ChangeKind::ShadowEnded,
        }
    }
}

/// The versions that a request is for.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The one that answers.
    pub version: FunctionVersion,
    /// Whether that is the canary.
    pub is_canary: bool,
    /// The one that gets a copy.
    pub shadow: Option<FunctionVersion>,
}

/// The first eight bytes of a hash over these parts.
fn bucket<'a>(domain: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let digest = Digest::of_parts(domain, parts);
    digest.as_bytes().iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

/// Where a caller stands in the line of those that a canary gets.
fn caller_bucket(tenant: &TenantId, function: &FunctionName, life: u32, version: u32, sticky: &str) -> u64 {
    let (life, version) = (life.to_le_bytes(), version.to_le_bytes());
    let name = (tenant.as_str().as_bytes(), function.as_str().as_bytes());
    bucket("tenon 2026-11 canary bucket", [name.0, name.1, &life[..], &version[..], sticky.as_bytes()])
}

impl Head {
    /// The version for a caller, and whether it is the canary.
    fn version_for(&self, tenant: &TenantId, function: &FunctionName, live: u32, sticky: &str) -> (u32, bool) {
        let canary = self
            .canary
            .filter(|canary| canary.share.has(caller_bucket(tenant, function, self.first, canary.version, sticky)));
        canary.map_or((live, false), |canary| (canary.version, true))
    }
}

impl Registry {
    /// The version that answers a caller with this sticky key, and the one that gets a copy of this request.
    ///
    /// # Errors
    /// [`RegistryError::UnknownFunction`].
    pub async fn choose(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        sticky: &str,
        request_id: &str,
    ) -> Result<Chosen, RegistryError> {
        let head = self.existing_head(tenant, function).await?;
        let live = head.live.ok_or_else(|| RegistryError::UnknownFunction(function.clone()))?;
        let (number, is_canary) = head.version_for(tenant, function, live, sticky);
        let shadow = head.shadow.filter(|shadow| {
            let of_request = bucket("tenon 2026-11 shadow bucket", [request_id.as_bytes()]);
            shadow.version != number && shadow.share.has(of_request)
        });
        // A version whose record is gone since: the function was deleted.
        let gone = |error| match error {
            RegistryError::UnknownVersion { function, .. } => RegistryError::UnknownFunction(function),
            other => other,
        };
        let version = self.read_version(tenant, function, number, head.first).await.map_err(gone)?;
        let shadow = match shadow {
            // A copy is nothing to fail for.
            Some(shadow) => self.read_version(tenant, function, shadow.version, head.first).await.ok(),
            None => None,
        };
        Ok(Chosen { version, is_canary, shadow })
    }

    /// Points the canary or the shadow at a version, on behalf of the key `by`; with `expect`, only if that version is live.
    ///
    /// # Errors
    /// [`RegistryError::UnknownFunction`], [`RegistryError::UnknownVersion`], [`RegistryError::IsLive`],
    /// [`RegistryError::LiveChanged`].
    #[expect(clippy::too_many_arguments, reason = "a pointer, where it goes, on what condition and for whom")]
    pub async fn set_beside(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        beside: Beside,
        version: u32,
        share: Share,
        expect: Option<u32>,
        by: &str,
    ) -> Result<Rollout, RegistryError> {
        let plugin = self.get_version(tenant, function, version).await?.manifest.plugin;
        let rollout = Rollout { version, share, plugin };
        self.change_head(tenant, function, |head| {
            head.expect(function, version, expect)?;
            if head.live == Some(version) {
                return Err(RegistryError::IsLive { function: function.clone(), version });
            }
            head.set_beside(beside, rollout, By { key: by, plugin });
            Ok(())
        })
        .await?;
        Ok(rollout)
    }

    /// Takes the canary or the shadow away; what it was. Without one, nothing is changed.
    ///
    /// # Errors
    /// [`RegistryError::UnknownFunction`].
    pub async fn end_beside(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        beside: Beside,
        by: &str,
    ) -> Result<Option<Rollout>, RegistryError> {
        let head = self.existing_head(tenant, function).await?;
        if head.beside(beside).is_none() {
            return Ok(None);
        }
        let mut ended = None;
        self.change_head(tenant, function, |head| {
            if head.live.is_none() {
                return Err(RegistryError::UnknownFunction(function.clone()));
            }
            ended = head.end_beside(beside, by);
            Ok(())
        })
        .await?;
        Ok(ended)
    }
}

#[cfg(test)]
mod tests;
