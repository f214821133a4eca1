//! Bodies of the routes for adapters, functions, tenants and keys.

use serde::Deserialize;

use super::or_default;

/// `PUT /v1/adapters/{alias}` with a JSON body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdapterSource {
    pub(crate) source: String,
    pub(crate) digest: Option<String>,
}

/// `POST /v1/functions/{name}/promote`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Promote {
    pub(crate) version: u32,
    /// The version that must be live now; whoever came first wins.
    #[serde(default)]
    pub(crate) expect: Option<u32>,
}

/// `POST /v1/tenants`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTenant {
    pub(crate) name: String,
}

/// `POST /v1/keys`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    pub(crate) tenant: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) rights: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) label: String,
}
