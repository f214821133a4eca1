//! Names that people choose, checked once. Not here: identifiers that the host makes.

use std::fmt;
use std::str::FromStr;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} `{name}` is not allowed: use 1 to {length_max} of a-z A-Z 0-9 . _ -, beginning with a letter or digit")]
pub struct NameError {
    kind: &'static str,
    name: String,
    length_max: usize,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $length_max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                if is_name(name, $length_max) {
                    Ok(Self(name.to_owned()))
                } else {
                    let name = name.chars().take($length_max).collect();
                    Err(NameError { kind: $kind, name, length_max: $length_max })
                }
            }
        }
    };
}

name!(
    /// The owner of functions, adapters, keys and receipts.
    TenantId, "tenant", 64
);
name!(
    /// A function's name, unique within its tenant.
    FunctionName, "function name", 64
);
name!(
    /// A movable name for an adapter, unique within its tenant. Never a digest: 64 hexadecimal digits are refused by length.
    AdapterAlias, "adapter alias", 63
);
name!(
    /// A secret's name, unique within its tenant.
    SecretName, "secret name", 64
);
name!(
    /// A key-value bucket's name, unique within its tenant or within its function.
    BucketName, "bucket name", 64
);

fn is_name(name: &str, length_max: usize) -> bool {
    let first_ok = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let all_ok = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    first_ok && all_ok && name.len() <= length_max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "all-caps", "v1.2_x", "0"] {
            assert!(good.parse::<FunctionName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "..", "a/b", "a,b", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(bad.parse::<FunctionName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_alias_is_never_a_digest() {
        assert!("a".repeat(64).parse::<AdapterAlias>().is_err());
        assert!("a".repeat(63).parse::<AdapterAlias>().is_ok());
    }
}
