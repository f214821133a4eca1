//! What an owner says of an adapter: its digest, which is checked, and its licence; and which of several a derived one inherits. A
//! licence is a claim: no text of one is read, and nothing is permitted or refused by it. Not here: what an adapter is found to be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use types::Digest;

/// Bytes of an identifier.
const LICENSE_BYTES_MAX: usize = 64;
/// What a derived adapter has where nobody can say which licence is the strictest.
const UNKNOWN: &str = "unknown";

/// SPDX identifiers in the order of what they ask of those who pass the work on, the least first: nothing; a notice; a notice and a
/// statement of changes; the same licence for changed parts; for the whole; for a service on the network; no commercial use; no
/// changes. Those that are not here are taken for stricter than all of them.
const ORDER: [&str; 41] = [
    "CC0-1.0",
    "Unlicense",
    "0BSD",
    "MIT-0",
    "Zlib",
    "MIT",
    "ISC",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CDLA-Permissive-2.0",
    "Apache-2.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "MPL-2.0",
    "EPL-2.0",
    "LGPL-2.1-only",
    "LGPL-2.1-or-later",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "CDLA-Sharing-1.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "GPL-2.0",
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "GPL-3.0",
    "GPL-3.0-only",
    "GPL-3.0-or-later",
    "AGPL-3.0",
    "AGPL-3.0-only",
    "AGPL-3.0-or-later",
    "SSPL-1.0",
    "CC-BY-NC-3.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-3.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-ND-3.0",
    "CC-BY-ND-4.0",
    "CC-BY-NC-ND-3.0",
    "CC-BY-NC-ND-4.0",
    "LicenseRef-proprietary",
];

/// What its owner says of an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// What it must turn out to be.
    pub digest: Option<Digest>,
    /// What it is licensed under.
    pub license: Option<License>,
}

impl From<Option<Digest>> for Claims {
    fn from(digest: Option<Digest>) -> Self {
        Self { digest, license: None }
    }
}

/// An identifier as in SPDX: letters, digits, `.`, `-` and `+`, at most 64. Known ones are spelt as SPDX spells them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct License(String);

/// Text that is no identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a licence is one SPDX identifier, such as `Apache-2.0`: 1 to 64 of a-z A-Z 0-9 . - +, beginning with a letter or digit"
)]
pub struct LicenseError;

impl License {
    /// The identifier.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The strictest. One that is not said, or two that are not in the order, make it `unknown`.
    #[must_use]
    pub fn strictest<'a>(licenses: impl IntoIterator<Item = Option<&'a Self>>) -> Self {
        let unknown = || Self(UNKNOWN.to_owned());
        let mut strictest: Option<&Self> = None;
        for license in licenses {
            let Some(license) = license else { return unknown() };
            strictest = match strictest {
                None => Some(license),
                Some(other) if other == license => Some(other),
                Some(other) => match (place(&other.0), place(&license.0)) {
                    (Some(one), Some(next)) => Some(if next > one { license } else { other }),
                    (Some(_), None) => Some(license),
                    (None, Some(_)) => Some(other),
                    (None, None) => return unknown(),
                },
            };
        }
        strictest.cloned().unwrap_or_else(unknown)
    }
}

fn place(identifier: &str) -> Option<usize> {
    ORDER.iter().position(|known| known.eq_ignore_ascii_case(identifier))
}

impl FromStr for License {
    type Err = LicenseError;

    fn from_str(text: &str) -> Result<Self, LicenseError> {
        let first_ok = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let all_ok = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte));
        if !first_ok || !all_ok || text.len() > LICENSE_BYTES_MAX {
            return Err(LicenseError);
        }
        let known = place(text).and_then(|place| ORDER.get(place));
        Ok(Self(known.map_or_else(|| text.to_owned(), |known| (*known).to_owned())))
    }
}

impl TryFrom<String> for License {
    type Error = LicenseError;

    fn try_from(text: String) -> Result<Self, LicenseError> {
        text.parse()
    }
}

impl From<License> for String {
    fn from(license: License) -> Self {
        license.0
    }
}

impl fmt::Display for License {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strictest(texts: &[&str]) -> String {
        let licenses: Vec<Option<License>> = texts.iter().map(|text| text.parse().ok()).collect();
        let there = License::strictest(licenses.iter().map(Option::as_ref));
        let mut turned = licenses.clone();
        turned.reverse();
        assert_eq!(there, License::strictest(turned.iter().map(Option::as_ref)), "their order does not matter");
        there.to_string()
    }

    #[test]
    fn the_strictest_is_inherited() {
        assert_eq!(strictest(&["MIT", "Apache-2.0"]), "Apache-2.0");
        assert_eq!(strictest(&["AGPL-3.0-only", "MIT", "CC-BY-NC-4.0"]), "CC-BY-NC-4.0");
        assert_eq!(strictest(&["apache-2.0", "Apache-2.0"]), "Apache-2.0", "spelt as SPDX does");
        assert_eq!(strictest(&["MIT", "llama3.2"]), "llama3.2", "not in the order: stricter than all that are");
        assert_eq!(strictest(&["llama3.2", "MIT", "llama3.2"]), "llama3.2");
        assert_eq!(strictest(&["llama3.2", "gemma"]), "unknown", "nobody can say which");
        assert_eq!(strictest(&["MIT", ""]), "unknown", "one did not say");
        assert_eq!(strictest(&["MIT", "unknown"]), "unknown");
        assert_eq!(strictest(&[]), "unknown");
    }

    #[test]
    fn an_identifier_is_short_and_plain() {
        for bad in ["", "-MIT", "MIT OR Apache-2.0", "MIT\n", "ä", "a/b", &"x".repeat(65)] {
            assert_eq!(bad.parse::<License>(), Err(LicenseError), "{bad:?}");
        }
        for good in ["GPL-2.0+", "LicenseRef-mine", "0BSD", &"x".repeat(64)] {
            assert_eq!(good.parse::<License>().map(String::from).as_deref(), Ok(good));
        }
    }

    #[test]
    fn the_order_names_each_once() {
        for (at, known) in ORDER.iter().enumerate() {
            assert_eq!(place(known), Some(at), "{known}");
            assert_eq!(known.parse::<License>().map(String::from).as_deref(), Ok(*known));
        }
    }
}
