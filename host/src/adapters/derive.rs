//! Adapters out of others: which parents a tenant may take, the work, and the lineage that is kept with the result. Not here: the
//! numerics (`model::derive_adapter`).
//!
//! A derivation may take minutes. It has permits of its own, so that it never stands in the way of a load, ends between two
//! modules when whoever asked has left or the host closes, and has a time limit.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use model::{
    DeriveError, DeriveLimits, DeriveParent, DeriveRecipe, DerivedAdapter, ModuleError, ValidRecipe, derive_adapter,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use types::{AdapterAlias, Digest, TenantId};

use super::loads::{Loads, lost};
use super::owners::AliasRecord;
use super::{
    AdapterError, AdapterInfo, AdapterStore, License, SignatureError, SignaturePolicy, SignatureState, Signers, WHAT,
};
use crate::artifacts::ArtifactKind;
use crate::registry::digest_text;

/// What derivations may take.
#[derive(Clone, Debug, PartialEq)]
pub struct DeriveConfig {
    /// Limits on one.
    pub limits: DeriveLimits,
    /// Those that are computed at a time; bounds memory.
    pub derivations_max: usize,
    /// Those of one tenant that are computed or wait for it.
    pub derivations_per_tenant_max: usize,
    /// How long one may compute.
    pub time_max: Duration,
}

impl Default for DeriveConfig {
    fn default() -> Self {
        Self {
            limits: DeriveLimits::default(),
            derivations_max: 1,
            derivations_per_tenant_max: 8,
            time_max: Duration::from_secs(300),
        }
    }
}

/// Derivations that wait or are computed. A tenant's wait for each other first, so that another tenant's waits behind one of them
/// and not behind all.
#[derive(Debug)]
pub(super) struct Derivations {
    config: DeriveConfig,
    work: Loads,
    lines: Lines,
}

/// Of each tenant that has any: how many, and the turn that they take.
type Lines = Arc<Mutex<HashMap<TenantId, (usize, Arc<Semaphore>)>>>;

/// A place in a tenant's line.
#[derive(Debug)]
struct Place {
    tenant: TenantId,
    lines: Lines,
    turn: Arc<Semaphore>,
}

impl Derivations {
    pub(super) fn new(config: DeriveConfig) -> Self {
        Self { work: Loads::new(config.derivations_max), config, lines: Lines::default() }
    }

    /// Ends what is computed at its next module; no other begins.
    pub(super) async fn close(&self) {
        self.work.close().await;
    }

    fn place(&self, tenant: &TenantId) -> Result<Place, AdapterError> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (places, turn) = lines.entry(tenant.clone()).or_insert_with(|| (0, Arc::new(Semaphore::new(1))));
        let max = self.config.derivations_per_tenant_max.max(1);
        if *places >= max {
            return Err(AdapterError::ManyDerivations { max });
        }
        *places += 1;
        Ok(Place { tenant: tenant.clone(), lines: Arc::clone(&self.lines), turn: Arc::clone(turn) })
    }
}

impl Place {
    /// First come, first served.
    async fn turn(&self) -> Result<SemaphorePermit<'_>, AdapterError> {
        self.turn.acquire().await.map_err(lost)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((places, _)) = lines.get_mut(&self.tenant) else { return };
        *places -= 1;
        if *places == 0 {
            lines.remove(&self.tenant);
        }
    }
}

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
    /// The keys that it was signed under; of a derived one those of all that it was made of. None if something was not
    /// signed, or nobody looked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<String>,
}

impl Lineage {
    /// The keys that all of it was signed under; none if something was not.
    fn signers(&self) -> Vec<String> {
        if self.parents.iter().any(|parent| parent.signers.is_empty()) {
            return Vec::new();
        }
        let signers: BTreeSet<&String> = self.parents.iter().flat_map(|parent| &parent.signers).collect();
        signers.into_iter().cloned().collect()
    }
}

impl LineageParent {
    fn new(alias: &AdapterAlias, record: AliasRecord, weight: f64) -> Self {
        let AliasRecord { digest, license, signature, lineage, .. } = record;
        let signers = match signature {
            SignatureState::Signed { key } => vec![key],
            SignatureState::Unsigned | SignatureState::Unchecked => {
                lineage.map(|lineage| lineage.signers()).unwrap_or_default()
            }
        };
        Self { alias: alias.to_string(), digest, weight, license, signers }
    }
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
    /// Derives an adapter and names it. The alias is set as for an upload: it moves if it is there. Where the tenant's adapters
    /// must be signed, all that it is made of must be, under keys that are trusted now.
    ///
    /// # Errors
    /// [`AdapterError::Derive`]; [`AdapterError::NotFound`] for a parent that the tenant does not own;
    /// [`AdapterError::Revocation`] for one that was revoked; [`AdapterError::Signature`]; [`AdapterError::ParentIsResult`];
    /// [`AdapterError::ManyDerivations`]; [`AdapterError::OverLimit`].
    pub async fn derive(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        recipe: DeriveRecipe,
        parents: &[NamedParent],
    ) -> Result<AdapterInfo, AdapterError> {
        let weights: Vec<f64> = parents.iter().map(|parent| parent.weight).collect();
        let recipe = ValidRecipe::check(recipe, &weights, &self.limits, &self.derivations.config.limits)?;
        self.check_room(tenant, alias).await?;
        let parents = self.parents(tenant, alias, parents).await?;
        self.check_trust(tenant, &parents).await?;
        let license = License::strictest(parents.iter().map(|parent| parent.license.as_ref()));
        let place = self.derivations.place(tenant)?;
        let _turn = place.turn().await?;
        let permit = self.derivations.work.permit().await?;
        let mut bytes = Vec::with_capacity(parents.len());
        for parent in &parents {
            bytes.push(self.artifacts.get(ArtifactKind::Adapter, parent.digest).await?);
        }
        let left = Left::default();
        let work = self.work(recipe, &parents, bytes, &left);
        let (DerivedAdapter { adapter, error, modules }, _permit) = self.derivations.work.compute(permit, work).await?;
        // Minutes later.
        self.check_trust(tenant, &parents).await?;
        let modules = modules.iter().map(LineageModule::from).collect();
        let lineage = Lineage { recipe: *recipe.stated(), parents, error, modules };
        let record = AliasRecord { license: Some(license), lineage: Some(lineage), ..AliasRecord::of(&adapter) };
        self.put(tenant, alias, adapter.bytes.into(), record).await
    }

    /// The parents that have a say, by digest. Not there and not this tenant's are one answer, also for those of no weight; nor
    /// may those be revoked.
    async fn parents(
        &self,
        tenant: &TenantId,
        result: &AdapterAlias,
        named: &[NamedParent],
    ) -> Result<Vec<LineageParent>, AdapterError> {
        let mut parents = Vec::with_capacity(named.len());
        let mut bytes = 0_u64;
        for NamedParent { adapter, weight } in named {
            let found = self.owners.find_usable(tenant, adapter).await?;
            let (alias, record) = found.ok_or_else(|| AdapterError::NotFound(adapter.clone()))?;
            if alias == *result {
                return Err(AdapterError::ParentIsResult(alias.to_string()));
            }
            self.revocations.check(WHAT, record.digest)?;
            if *weight == 0.0 {
                continue;
            }
            bytes = bytes.saturating_add(record.bytes);
            parents.push(LineageParent::new(&alias, record, *weight));
        }
        let max = self.derivations.config.limits.parent_bytes_max;
        if bytes > max {
            let (what, limit) = ("the size of all parents in bytes", "parent_bytes_max");
            return Err(AdapterError::OverLimit { what, limit, max });
        }
        parents.sort_by_key(|parent| parent.digest);
        Ok(parents)
    }

    /// What was revoked is not derived from; where adapters must be signed, only from what was.
    async fn check_trust(&self, tenant: &TenantId, parents: &[LineageParent]) -> Result<(), AdapterError> {
        for parent in parents {
            self.revocations.check(WHAT, parent.digest)?;
        }
        let Signers { policy, keys, .. } = self.signers.of(tenant).await?;
        let is_trusted = |signer: &String| keys.iter().any(|key| key.id() == signer);
        let is_signed = |parent: &&LineageParent| !parent.signers.is_empty() && parent.signers.iter().all(is_trusted);
        match parents.iter().find(|parent| policy == SignaturePolicy::Required && !is_signed(parent)) {
            Some(unsigned) => Err(SignatureError::Parent(unsigned.alias.clone()).into()),
            None => Ok(()),
        }
    }

    fn work(
        &self,
        recipe: ValidRecipe,
        parents: &[LineageParent],
        bytes: Vec<Bytes>,
        left: &Left,
    ) -> impl FnOnce() -> Result<DerivedAdapter, AdapterError> + Send + use<> {
        let (base, limits, time_max) = (Arc::clone(&self.base), self.limits.clone(), self.derivations.config.time_max);
        let weights: Vec<(Digest, f64)> = parents.iter().map(|parent| (parent.digest, parent.weight)).collect();
        let (has_left, derivations) = (Arc::clone(&left.0), self.derivations.work.clone());
        move || {
            let started = Instant::now();
            let is_over =
                || has_left.load(Ordering::Relaxed) || derivations.is_closed() || started.elapsed() >= time_max;
            let go_on = || !is_over();
            let named = bytes.iter().zip(weights);
            let parents: Vec<_> =
                named.map(|(bytes, (digest, weight))| DeriveParent { bytes, digest, weight }).collect();
            Ok(derive_adapter(&recipe, &parents, &*base, &limits, &go_on)?)
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
