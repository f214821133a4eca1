//! What opens a private source. Not here: where it is kept (`secrets.rs` of the host).

use std::fmt;

use reqwest::Url;
use reqwest::header::HeaderValue;
use types::Digest;
use zeroize::Zeroizing;

use super::origin::is_same_origin;
use crate::adapters::AdapterError;

/// A credential of a tenant. Wiped from memory when dropped; its text shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// For `https://`, `http://` and `hf://`.
    Bearer {
        /// Scheme, host and port that it is for: it is sent nowhere else, whoever asks.
        origin: Url,
        /// Sent as `Authorization: Bearer …`.
        token: Zeroizing<String>,
    },
    /// For `s3://`. It signs and is never sent.
    S3 {
        /// Names the key.
        access_key_id: Zeroizing<String>,
        /// The key.
        secret_access_key: Zeroizing<String>,
        /// Of temporary credentials.
        session_token: Option<Zeroizing<String>>,
    },
    /// For plugins that were granted it; no source takes it.
    Value {
        /// Any text.
        value: Zeroizing<String>,
    },
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bearer { .. } => "Credential::Bearer",
            Self::S3 { .. } => "Credential::S3",
            Self::Value { .. } => "Credential::Value",
        })
    }
}

impl Credential {
    /// Tells credentials apart without keeping them.
    pub(in crate::adapters) fn digest(&self) -> Digest {
        let (kind, parts) = match self {
            Self::Bearer { origin, token } => ("bearer", [origin.as_str(), token.as_str(), ""]),
            Self::S3 { access_key_id, secret_access_key, session_token } => {
                let session = session_token.as_ref().map_or("", |token| token.as_str());
                ("s3", [access_key_id.as_str(), secret_access_key.as_str(), session])
            }
            Self::Value { value } => ("value", [value.as_str(), "", ""]),
        };
        let parts = [kind].into_iter().chain(parts).map(str::as_bytes);
        Digest::of_parts("tenon 2026 credential of a fetch", parts)
    }

    /// The header for a URL, if the credential is for its origin.
    pub(super) fn authorization(&self, url: &Url) -> Result<HeaderValue, AdapterError> {
        let (origin, token) = match self {
            Self::Bearer { origin, token } => (origin, token),
            Self::S3 { .. } => {
                return Err(AdapterError::BadSource("the secret holds S3 keys, and this source needs a token"));
            }
            Self::Value { .. } => {
                return Err(AdapterError::BadSource(
                    "the secret is a value for plugins, and this source needs a token",
                ));
            }
        };
        if !is_same_origin(origin, url) {
            return Err(AdapterError::BadSource("the secret's token is for another origin than this source's"));
        }
        let text = Zeroizing::new(format!("Bearer {}", token.as_str()));
        let mut header = HeaderValue::from_str(&text)
            .map_err(|_| AdapterError::BadSource("the secret's token has characters that cannot be sent"))?;
        header.set_sensitive(true);
        Ok(header)
    }
}
