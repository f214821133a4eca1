//! Bodies of the routes for adapters, functions, tenants and keys.

use serde::Deserialize;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::or_default;
use crate::adapters::SignaturePolicy;

/// `PUT /v1/adapters/{alias}` with a JSON body.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdapterSource {
    /// A URL: `file://` below the host's `adapters_root`; `https://`, `http://`, `hf://`, `s3://` and `ipfs://` as far as its
    /// `adapter_sources` let it ask.
    pub(crate) source: String,
    /// The name of the tenant's secret that opens it.
    pub(crate) secret: Option<String>,
    /// What the adapter must turn out to be.
    #[schema(pattern = "^[0-9a-fA-F]{64}$")]
    pub(crate) digest: Option<String>,
}

/// `PUT /v1/secrets/{name}`: a token, or keys of S3.
#[derive(Deserialize, ToSchema)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "send `origin` and `token`, or `access_key_id` and `secret_access_key`"
)]
pub(crate) enum NewSecret {
    Bearer {
        /// Scheme, host and port that the token is sent to, and nowhere else.
        origin: String,
        #[schema(value_type = String)]
        token: Zeroizing<String>,
    },
    S3 {
        #[schema(value_type = String)]
        access_key_id: Zeroizing<String>,
        #[schema(value_type = String)]
        secret_access_key: Zeroizing<String>,
        /// Of temporary credentials.
        #[schema(value_type = Option<String>)]
        session_token: Option<Zeroizing<String>>,
    },
}

/// `POST /v1/functions/{name}/promote`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Promote {
    pub(crate) version: u32,
    /// The version that must be live now; whoever came first wins.
    #[serde(default)]
    pub(crate) expect: Option<u32>,
}

/// `POST /v1/tenants`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTenant {
    pub(crate) name: String,
}

/// `PUT /v1/tenants/{tenant}/signers`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSigners {
    /// Whether adapters must be signed.
    pub(crate) policy: SignaturePolicy,
    /// Public keys (ECDSA P-256) in PEM.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<Vec<String>>)]
    pub(crate) keys: Vec<String>,
    /// The revision that must be there now.
    #[serde(default)]
    pub(crate) expect: Option<u64>,
}

/// `POST /v1/keys`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    pub(crate) tenant: String,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<Vec<String>>)]
    pub(crate) rights: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<String>)]
    pub(crate) label: String,
}

/// `PUT /v1/revocations/{digest}`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevocationBody {
    /// For people.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<String>, max_length = 500)]
    pub(crate) reason: String,
}
