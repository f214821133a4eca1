//! Words that a tenant gives its aliases, so that a function may be granted all adapters of one. A tag is the alias's: it stays when other
//! content is put under the name, and goes with the name. Not here: what a function does with it (`invoke/grants.rs`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use types::{AdapterAlias, TenantId};

use super::{AdapterError, AdapterInfo, AdapterStore};

/// Bytes of a tag.
const TAG_BYTES_MAX: usize = 64;
/// Tags of one alias.
const TAGS_MAX: usize = 16;

/// 1 to 64 lower-case letters, digits, `-`, `_` and `.`; the first one a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AdapterTag(String);

/// Text that is no tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tag is 1 to 64 lower-case letters, digits, `-`, `_` and `.`, and begins with a letter or a digit")]
pub struct AdapterTagError;

impl fmt::Display for AdapterTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<AdapterTag> for String {
    fn from(tag: AdapterTag) -> Self {
        tag.0
    }
}

impl TryFrom<String> for AdapterTag {
    type Error = AdapterTagError;

    fn try_from(text: String) -> Result<Self, AdapterTagError> {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_inner = |byte: u8| is_word(byte) || b"-_.".contains(&byte);
        let begins = text.bytes().next().is_some_and(is_word);
        let holds = begins && text.len() <= TAG_BYTES_MAX && text.bytes().all(is_inner);
        if holds { Ok(Self(text)) } else { Err(AdapterTagError) }
    }
}

impl FromStr for AdapterTag {
    type Err = AdapterTagError;

    fn from_str(text: &str) -> Result<Self, AdapterTagError> {
        text.to_owned().try_into()
    }
}

impl AdapterStore {
    /// Gives an alias these tags, in place of those that it has.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`]; [`AdapterError::OverLimit`] for more than 16.
    pub async fn set_tags(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        tags: BTreeSet<AdapterTag>,
    ) -> Result<AdapterInfo, AdapterError> {
        if tags.len() > TAGS_MAX {
            let what = "the number of tags";
            return Err(AdapterError::OverLimit { what, limit: "adapter_tags_max", max: TAGS_MAX as u64 });
        }
        let record = self.owners.set_tags(tenant, alias, tags).await?;
        let record = record.ok_or_else(|| AdapterError::NotFound(alias.to_string()))?;
        let is_usable = self.owners.is_usable(tenant, &record).await?;
        Ok(self.described(tenant, alias.clone(), record, is_usable))
    }

    /// The tenant's aliases that have one of these tags, or that name what one of these tenants shares; in order.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn named_by(
        &self,
        tenant: &TenantId,
        tags: &[AdapterTag],
        owners: &[TenantId],
    ) -> Result<Vec<AdapterAlias>, AdapterError> {
        if tags.is_empty() && owners.is_empty() {
            return Ok(Vec::new());
        }
        let all = self.owners.list(tenant).await?.into_iter();
        let named = all.filter(|(_, record)| {
            let is_owners = record.shared_by.as_ref().is_some_and(|by| owners.contains(&by.owner));
            is_owners || tags.iter().any(|tag| record.tags.contains(tag))
        });
        Ok(named.map(|(alias, _)| alias).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_words() {
        for good in ["a", "0", "dates-2.x_y", &"a".repeat(64)] {
            assert_eq!(good.parse::<AdapterTag>().map(String::from), Ok(good.to_owned()));
        }
        for bad in ["", "-a", "A", "a b", "a/b", "é", &"a".repeat(65)] {
            assert_eq!(bad.parse::<AdapterTag>(), Err(AdapterTagError), "{bad}");
        }
    }
}
