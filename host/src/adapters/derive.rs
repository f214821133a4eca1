//! Adapters out of others: which parents a tenant may take, the work, and the lineage that is kept with the result. Not here: the
//! numerics (`model::derive_adapter`).
//!
//! A derivation may take minutes. It has permits of its own, so that it never stands in the way of a load, ends between two
//! modules when whoever asked has left or the host closes, and has a time limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use model::{DeriveError, DeriveParent, DeriveRecipe, DerivedAdapter, ModuleError, ValidRecipe, derive_adapter};
use serde::{Deserialize, Serialize};
use types::{AdapterAlias, Digest, TenantId};

use super::owners::AliasRecord;
use super::{AdapterError, AdapterInfo, AdapterStore, License};
use crate::artifacts::ArtifactKind;
use crate::registry::digest_text;

/// Where a derived adapter comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// The method with its parameters.
    pub recipe: DeriveRecipe,
    /// What it was made of, in order of the digests.
    pub parents: Vec<LineageParent>,
    /// What compression lost: ‖lost‖ / ‖delta‖, Frobenius.
    pub error: f64,
    /// The same by module.
    pub modules: Vec<LineageModule>,
}

/// A parent as it was when the adapter was derived.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineageParent {
    /// What it was called.
    pub alias: String,
    /// Its content.
    #[serde(with = "digest_text")]
    pub digest: Digest,
    /// What its delta was multiplied by.
    pub weight: f64,
    /// What it was said to be licensed under.
    pub license: Option<License>,
}

/// What compression lost of a module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineageModule {
    /// `q_proj`, …
    pub module: String,
    /// ‖lost‖ / ‖delta‖ over its layers.
    pub error: f64,
    /// The layer that lost the largest part of its own delta.
    pub worst_layer: usize,
    /// That part.
    pub worst_error: f64,
}

impl From<&ModuleError> for LineageModule {
    fn from(module: &ModuleError) -> Self {
        let ModuleError { module, error, worst_layer, worst_error } = *module;
        Self { module: module.name().to_owned(), error, worst_layer, worst_error }
    }
}

/// A parent by name, as a caller gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedParent {
    /// Alias or digest.
    pub adapter: String,
    /// What its delta is multiplied by.
    pub weight: f64,
}

impl AdapterStore {
    /// Derives an adapter and names it. The alias is set as for an upload: it moves if it is there.
    ///
    /// # Errors
    /// [`AdapterError::Derive`]; [`AdapterError::NotFound`] for a parent that the tenant does not own;
    /// [`AdapterError::ParentIsResult`]; [`AdapterError::OverLimit`].
    pub async fn derive(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        recipe: DeriveRecipe,
        parents: &[NamedParent],
    ) -> Result<AdapterInfo, AdapterError> {
        let weights: Vec<f64> = parents.iter().map(|parent| parent.weight).collect();
        let recipe = ValidRecipe::check(recipe, &weights, &self.limits, &self.derive_limits)?;
        self.check_room(tenant, alias).await?;
        let parents = self.parents(tenant, alias, parents).await?;
        let license = License::strictest(parents.iter().map(|parent| parent.license.as_ref()));
        let permit = self.derivations.permit().await?;
        let mut bytes = Vec::with_capacity(parents.len());
        for parent in &parents {
            bytes.push(self.artifacts.get(ArtifactKind::Adapter, parent.digest).await?);
        }
        let left = Left::default();
        let work = self.work(recipe, &parents, bytes, &left);
        let (DerivedAdapter { adapter, error, modules }, _permit) = self.derivations.compute(permit, work).await?;
        let modules = modules.iter().map(LineageModule::from).collect();
        let lineage = Lineage { recipe: *recipe.stated(), parents, error, modules };
        let record = AliasRecord { license: Some(license), lineage: Some(lineage), ..AliasRecord::of(&adapter) };
        self.keep(tenant, alias, adapter.bytes.into(), record).await
    }

    /// The parents that have a say, by digest. Not there and not this tenant's are one answer, also for those of no weight.
    async fn parents(
        &self,
        tenant: &TenantId,
        result: &AdapterAlias,
        named: &[NamedParent],
    ) -> Result<Vec<LineageParent>, AdapterError> {
        let mut parents = Vec::with_capacity(named.len());
        let mut bytes = 0_u64;
        for NamedParent { adapter, weight } in named {
            let found = self.owners.find(tenant, adapter).await?;
            let (alias, record) = found.ok_or_else(|| AdapterError::NotFound(adapter.clone()))?;
            if alias == *result {
                return Err(AdapterError::ParentIsResult(alias.to_string()));
            }
            if *weight == 0.0 {
                continue;
            }
            bytes = bytes.saturating_add(record.bytes);
            let AliasRecord { digest, license, .. } = record;
            parents.push(LineageParent { alias: alias.to_string(), digest, weight: *weight, license });
        }
        let max = self.derive_limits.parent_bytes_max;
        if bytes > max {
            let (what, limit) = ("the size of all parents in bytes", "parent_bytes_max");
            return Err(AdapterError::OverLimit { what, limit, max });
        }
        parents.sort_by_key(|parent| parent.digest);
        Ok(parents)
    }

    fn work(
        &self,
        recipe: ValidRecipe,
        parents: &[LineageParent],
        bytes: Vec<Bytes>,
        left: &Left,
    ) -> impl FnOnce() -> Result<DerivedAdapter, AdapterError> + Send + use<> {
        let (base, limits, time_max) = (Arc::clone(&self.base), self.limits.clone(), self.derive_time_max);
        let weights: Vec<(Digest, f64)> = parents.iter().map(|parent| (parent.digest, parent.weight)).collect();
        let (has_left, derivations) = (Arc::clone(&left.0), self.derivations.clone());
        move || {
            let started = Instant::now();
            let is_over =
                || has_left.load(Ordering::Relaxed) || derivations.is_closed() || started.elapsed() >= time_max;
            let go_on = || !is_over();
            let named = bytes.iter().zip(weights);
            let parents: Vec<_> =
                named.map(|(bytes, (digest, weight))| DeriveParent { bytes, digest, weight }).collect();
            Ok(derive_adapter(&recipe, &parents, base.config(), &limits, &go_on)?)
        }
    }
}

/// Set when whoever asked is gone, so that the work may end.
#[derive(Debug, Default)]
struct Left(Arc<AtomicBool>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl From<DeriveError> for AdapterError {
    fn from(error: DeriveError) -> Self {
        Self::Derive(Box::new(error))
    }
}

#[cfg(test)]
mod tests;
