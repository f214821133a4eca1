//! The names that a plan may use, resolved for one request. Not here: who granted them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use types::{Digest, Grants, PlanError, TenantId};

use crate::adapters::{AdapterTag, ResolvedAdapters};
use crate::error::Error;
use crate::host::Host;
use crate::registry::{Manifest, ManifestGrants};

/// Adapters that one function may use: as many as a manifest may list.
const GRANTED_ADAPTERS_MAX: usize = 1024;

/// Adapters and templates that may be used. A digest may be used if one of the names stands for it.
#[derive(Clone, Debug)]
pub(crate) struct ResolvedGrants {
    adapters: ResolvedAdapters,
    templates: HashSet<String>,
}

impl ResolvedGrants {
    /// Those of `names` that the tenant owns.
    pub(crate) async fn of_tenant(host: &Arc<Host>, tenant: &TenantId, names: &[String]) -> Result<Self, Error> {
        let adapters = host.adapters.resolve_all(tenant, names).await?;
        Ok(Self { adapters, templates: HashSet::new() })
    }

    /// The names that a manifest grants: those that it lists, those with its tags and those of its owners. The catalogue and the check of
    /// plans go by them.
    pub(crate) async fn names(host: &Arc<Host>, tenant: &TenantId, manifest: &Manifest) -> Result<Vec<String>, Error> {
        let ManifestGrants { adapter_tags, adapter_owners, .. } = &manifest.grants;
        let tags: Vec<AdapterTag> = adapter_tags.iter().filter_map(|tag| tag.parse().ok()).collect();
        let owners: Vec<TenantId> = adapter_owners.iter().filter_map(|owner| owner.parse().ok()).collect();
        let mut names = manifest.adapters.clone();
        let named = host.adapters.named_by(tenant, &tags, &owners).await?;
        for alias in named.into_iter().map(|alias| alias.to_string()) {
            if !names.contains(&alias) {
                names.push(alias);
            }
        }
        if names.len() > GRANTED_ADAPTERS_MAX {
            let (what, limit) =
                ("the number of adapters that the manifest grants by tags and owners", "granted_adapters_max");
            let (value, max) = (names.len().to_string(), GRANTED_ADAPTERS_MAX.to_string());
            let source = PlanError::OverLimit { what, value, limit, max };
            return Err(Error::Plan { source, by_caller: false });
        }
        Ok(names)
    }

    /// The same with these prompt templates.
    pub(crate) fn with_templates(mut self, templates: &BTreeMap<String, String>) -> Self {
        self.templates.extend(templates.keys().cloned());
        self
    }

    /// What was resolved, which the leases are taken on.
    pub(crate) const fn adapters(&self) -> &ResolvedAdapters {
        &self.adapters
    }

    /// Each content with an alias for it, where it has one; the first in alphabetical order where it has several.
    pub(crate) fn aliases(&self) -> HashMap<Digest, String> {
        let is_alias = |(name, _): &(&str, Digest)| name.parse::<Digest>().is_err();
        let mut named: Vec<_> = self.adapters.iter().filter(is_alias).collect();
        named.sort_unstable_by(|one, other| other.cmp(one));
        named.into_iter().map(|(name, digest)| (digest, name.to_owned())).collect()
    }
}

impl Grants for ResolvedGrants {
    fn adapter(&self, alias_or_digest: &str) -> Option<Digest> {
        self.adapters.get(alias_or_digest).or_else(|| {
            let digest = alias_or_digest.parse().ok()?;
            self.adapters.iter().any(|(_, granted)| granted == digest).then_some(digest)
        })
    }

    fn has_template(&self, name: &str) -> bool {
        self.templates.contains(name)
    }
}
