//! What a key may do, as a set. Not here: which route needs which.

use serde::{Deserialize, Serialize};

/// One thing that a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Right {
    /// Call functions and models.
    Invoke,
    /// Upload plugins, deploy and delete functions.
    Deploy,
    /// Add and remove adapters.
    Adapters,
    /// Read receipts.
    Receipts,
    /// Make and revoke tenants and keys.
    Admin,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Invoke, Self::Deploy, Self::Adapters, Self::Receipts, Self::Admin];

    /// A stable word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Deploy => "deploy",
            Self::Adapters => "adapters",
            Self::Receipts => "receipts",
            Self::Admin => "admin",
        }
    }
}

/// A word that is not a right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a right: use invoke, deploy, adapters, receipts, admin or all, separated by commas")]
pub struct RightsError(String);

/// A set of rights; empty by default. As text, and in JSON, names separated by commas.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rights(u8);

impl Rights {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Everything.
    pub const ALL: Self = Self(0x1f);

    /// This set and one more.
    #[must_use]
    pub const fn with(self, right: Right) -> Self {
        Self(self.0 | 1 << right as u8)
    }

    /// Whether the right is in the set.
    #[must_use]
    pub const fn has(self, right: Right) -> bool {
        self.0 & (1 << right as u8) != 0
    }

    /// Whether all of another set is in this one.
    #[must_use]
    pub const fn has_all(self, rights: Self) -> bool {
        self.0 & rights.0 == rights.0
    }

    /// The rights, in order.
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.has(*right))
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        rights.into_iter().fold(Self::NONE, Self::with)
    }
}

impl std::fmt::Display for Rights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.iter().map(Right::name).collect();
        f.write_str(&names.join(","))
    }
}

impl std::fmt::Debug for Rights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rights({self})")
    }
}

impl std::str::FromStr for Rights {
    type Err = RightsError;

    fn from_str(text: &str) -> Result<Self, RightsError> {
        let mut rights = Self::NONE;
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let unknown = || RightsError(name.chars().take(32).collect());
            let right = Right::ALL.into_iter().find(|right| right.name() == name);
            rights = if name == "all" { Self::ALL } else { rights.with(right.ok_or_else(unknown)?) };
        }
        Ok(rights)
    }
}

impl TryFrom<String> for Rights {
    type Error = RightsError;

    fn try_from(text: String) -> Result<Self, RightsError> {
        text.parse()
    }
}

impl From<Rights> for String {
    fn from(rights: Rights) -> Self {
        rights.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        assert_eq!("invoke, receipts".parse(), Ok(Rights::NONE.with(Right::Invoke).with(Right::Receipts)));
        assert_eq!("all".parse(), Ok(Rights::ALL));
        assert_eq!("".parse(), Ok(Rights::NONE));
        assert_eq!(Rights::ALL.to_string().parse(), Ok(Rights::ALL));
        assert!("invoke,root".parse::<Rights>().is_err());
        assert_eq!(Rights::ALL.iter().collect::<Rights>(), Rights::ALL);
        assert!(Rights::ALL.has_all(Rights::NONE) && !Rights::NONE.has_all(Rights::ALL));
    }
}
