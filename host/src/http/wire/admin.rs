//! Bodies of the routes for adapters, functions, tenants and keys.

use model::{DeriveMethod, DeriveRecipe, MajoritySign};
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
    /// `adapter_sources` let it ask; `tenon://OWNER/ALIAS` for what another tenant shares.
    pub(crate) source: String,
    /// The name of the tenant's secret that opens it.
    pub(crate) secret: Option<String>,
    /// What the adapter must turn out to be.
    #[schema(pattern = "^[0-9a-fA-F]{64}$")]
    pub(crate) digest: Option<String>,
    /// An SPDX identifier, such as `Apache-2.0`.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$")]
    pub(crate) license: Option<String>,
    /// Its tags, in place of those that the alias has; they stay if this is left out. At most 16.
    #[schema(max_items = 16)]
    pub(crate) tags: Option<Vec<String>>,
}

/// `PUT /v1/adapters/{alias}/tags`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTags {
    /// At most 16; none takes all away.
    #[schema(max_items = 16)]
    pub(crate) tags: Vec<String>,
}

/// `POST /v1/plugins` with a JSON body.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PluginSource {
    /// `oci://REGISTRY/REPOSITORY:TAG`, with or without `@sha256:…`, as far as the host's `plugin_sources` let it ask.
    #[schema(pattern = "^oci://")]
    pub(crate) source: String,
}

/// `PUT /v1/adapters/{alias}/readers`: either `everyone` or `tenants`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewReaders {
    /// All tenants of this host.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) everyone: bool,
    /// These tenants, 1 to 100.
    #[schema(min_items = 1, max_items = 100)]
    pub(crate) tenants: Option<Vec<String>>,
    /// What the adapter is licensed under, where that was not said before: an SPDX identifier, such as `Apache-2.0`.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9.+-]{0,63}$")]
    pub(crate) license: Option<String>,
}

/// `POST /v1/adapters/{alias}/derive`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Derivation {
    /// `concatenate`, `svd`, `ties`, `dare_linear`, `dare_ties` or `magnitude_prune`.
    #[schema(value_type = String, pattern = "^(concatenate|svd|ties|dare_linear|dare_ties|magnitude_prune)$")]
    method: DeriveMethod,
    /// 1 to 16, each once.
    #[schema(min_items = 1, max_items = 16)]
    pub(crate) parents: Vec<DerivationParent>,
    /// The largest rank of the result; for all but `concatenate`, which need it.
    #[schema(minimum = 1, maximum = 256)]
    rank: Option<u32>,
    /// The part of the elements that is kept, over 0; for `ties`, `dare_linear`, `dare_ties` and `magnitude_prune`, which need it.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    density: Option<f64>,
    /// By what a sign is elected; for `ties` and `dare_ties`, `total` if left out.
    #[schema(value_type = Option<String>, pattern = "^(total|frequency)$")]
    majority_sign: Option<MajoritySign>,
    /// Of what is drawn; for `dare_linear` and `dare_ties`, 0 if left out.
    seed: Option<u32>,
    /// What compression may lose of the delta's norm; for all but `concatenate`. More is refused.
    #[schema(minimum = 0.0, maximum = 1.0)]
    error_max: Option<f64>,
}

/// An adapter that another is derived from.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DerivationParent {
    /// Alias or digest.
    pub(crate) adapter: String,
    /// 1 if left out; may be negative.
    #[schema(minimum = -16.0, maximum = 16.0)]
    pub(crate) weight: Option<f64>,
}

impl Derivation {
    /// Without the parents.
    pub(crate) fn recipe(&self) -> DeriveRecipe {
        let Self { method, parents: _, rank, density, majority_sign, seed, error_max } = *self;
        DeriveRecipe { method, rank, density, majority_sign, seed, error_max }
    }
}

/// `PUT /v1/secrets/{name}`: a token, or keys of S3.
#[derive(Deserialize, ToSchema)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "send `origin` and `token`, `access_key_id` and `secret_access_key`, or `value`"
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
    Value {
        /// For plugins that are granted it; no source of adapters takes it.
        #[schema(value_type = String, min_length = 1, max_length = 4096)]
        value: Zeroizing<String>,
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
    /// Whether plugins must be; left out, that stays as it is.
    pub(crate) plugins: Option<SignaturePolicy>,
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
