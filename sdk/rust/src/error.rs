//! The one error of a plugin: text that the caller sees with status 502. To refuse a request, return
//! `Decision::Reject` from `route` instead.

use crate::HostError;

/// What a plugin's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// A fault of the function, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub(crate) String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<String> for Error {
    fn from(message: String) -> Self {
        Self(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Self {
        Self(message.to_owned())
    }
}

impl From<HostError> for Error {
    fn from(error: HostError) -> Self {
        Self(match error {
            HostError::Denied(what) => format!("denied: {what}"),
            HostError::Unsupported(what) => format!("unsupported: {what}"),
            HostError::Limit(what) => format!("over the limit {what}"),
            HostError::Failed(what) => format!("failed: {what}"),
        })
    }
}
