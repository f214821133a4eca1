//! The names that a plan may use, resolved for one request. Not here: who granted them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use types::{Digest, Grants, TenantId};

use crate::error::Error;
use crate::host::Host;

/// Names and digests that may be used, each with its content.
#[derive(Debug, Default)]
pub(crate) struct ResolvedGrants {
    adapters: HashMap<String, Digest>,
    templates: HashSet<String>,
}

impl ResolvedGrants {
    /// Those of `names` that the tenant owns.
    pub(crate) async fn of_tenant(
        host: &Arc<Host>,
        tenant: &TenantId,
        names: Vec<String>,
    ) -> Result<Self, Error> {
        let mut grants = Self::default();
        for name in names {
            if let Some(digest) = host.adapters.resolve(tenant, &name).await? {
                grants.adapters.insert(digest.to_string(), digest);
                grants.adapters.insert(name, digest);
            }
        }
        Ok(grants)
    }

    /// The same with these prompt templates.
    pub(crate) fn with_templates<'a>(mut self, names: impl IntoIterator<Item = &'a String>) -> Self {
        self.templates.extend(names.into_iter().cloned());
        self
    }

    /// Each content with an alias for it, where it has one.
    pub(crate) fn aliases(&self) -> HashMap<Digest, String> {
        let is_alias = |name: &&String| name.parse::<Digest>().is_err();
        let mut names: Vec<_> = self.adapters.keys().filter(is_alias).collect();
        names.sort_unstable();
        names.iter().rev().filter_map(|name| Some((*self.adapters.get(*name)?, (*name).clone()))).collect()
    }
}

impl Grants for ResolvedGrants {
    fn adapter(&self, alias_or_digest: &str) -> Option<Digest> {
        self.adapters.get(alias_or_digest).copied()
    }

    fn has_template(&self, name: &str) -> bool {
        self.templates.contains(name)
    }
}
