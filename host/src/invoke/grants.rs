//! The names that a plan may use, resolved for one request. Not here: who granted them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use types::{Digest, Grants, TenantId};

use crate::adapters::ResolvedAdapters;
use crate::error::Error;
use crate::host::Host;

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
