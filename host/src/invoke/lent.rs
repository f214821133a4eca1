//! What a manifest's grants come to for one request: buckets, secrets and hosts, each looked up by the names that are granted and no
//! others, and the base's tokenizer. Not here: the catalogue, the log and the clock (`function.rs`), and what stands behind these.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use plugin::{
    BucketAccess, CapabilityError, Expected, Functions, Generations, KeyPage, KeyValue, Outbound, OutboundBounds,
    OutboundError, Output, Secrets, Tokenizer, Tools, Versioned, Written,
};
use types::{FunctionName, SecretName, TenantId};

use crate::adapters::Credential;
use crate::host::Host;
use crate::keyvalue::{BucketPlace, KeyValueError};
use crate::outbound::HttpGrant;
use crate::registry::{FunctionVersion, ManifestAccess, ManifestGrants, ManifestScope};

use crate::secrets::SecretError;
use crate::tools::FunctionTools;

/// Characters of a name that a message quotes.
const QUOTED_CHARS_MAX: usize = 96;

/// The granted buckets of one request.
pub(super) struct FunctionBuckets {
    host: Arc<Host>,
    granted: HashMap<String, (BucketAccess, BucketPlace)>,
}

impl FunctionBuckets {
    pub(super) fn new(
        host: &Arc<Host>,
        tenant: &TenantId,
        function: &FunctionName,
        life: u32,
        grants: &ManifestGrants,
    ) -> Self {
        let place = |scope, bucket| match scope {
            ManifestScope::Function => BucketPlace::of_function(tenant.clone(), function, life, bucket),
            ManifestScope::Tenant => BucketPlace::of_tenant(tenant.clone(), bucket),
        };
        let granted = grants.kv.iter().filter_map(|entry| {
            let access = match entry.access {
                ManifestAccess::ReadOnly => BucketAccess::ReadOnly,
                ManifestAccess::ReadWrite => BucketAccess::ReadWrite,
            };
            let bucket = entry.bucket.parse().ok()?;
            Some((entry.bucket.clone(), (access, place(entry.scope, bucket))))
        });
        Self { host: Arc::clone(host), granted: granted.collect() }
    }

    fn place(&self, bucket: &str) -> Result<&BucketPlace, CapabilityError> {
        let granted = self.granted.get(bucket).map(|(_, place)| place);
        granted.ok_or_else(|| CapabilityError::Denied(shown(bucket)))
    }
}

#[async_trait]
impl KeyValue for FunctionBuckets {
    fn access(&self, bucket: &str) -> Option<BucketAccess> {
        self.granted.get(bucket).map(|(access, _)| *access)
    }

    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Versioned>, CapabilityError> {
        self.host.keyvalue.get(self.place(bucket)?, key).await.map_err(told)
    }

    async fn write(
        &self,
        bucket: &str,
        key: &str,
        expected: Expected,
        value: Option<Bytes>,
    ) -> Result<Written, CapabilityError> {
        self.host.keyvalue.write(self.place(bucket)?, key, expected, value).await.map_err(told)
    }

    async fn keys(&self, bucket: &str, after: Option<&str>) -> Result<KeyPage, CapabilityError> {
        self.host.keyvalue.keys(self.place(bucket)?, after, usize::MAX).await.map_err(told)
    }
}

fn told(error: KeyValueError) -> CapabilityError {
    match error {
        KeyValueError::OverLimit { what, limit, max } => CapabilityError::Limit(format!("{limit} of {max}: {what}")),
        // What the store says is for the host's log.
        KeyValueError::Store(error) => {
            tracing::error!(%error, "a plugin's key-value bucket");
            CapabilityError::Failed("the host's store failed".to_owned())
        }
        other => CapabilityError::Failed(other.to_string()),
    }
}

/// The granted secrets of one request.
pub(super) struct FunctionSecrets {
    pub(super) host: Arc<Host>,
    pub(super) tenant: TenantId,
    pub(super) granted: Vec<String>,
}

#[async_trait]
impl Secrets for FunctionSecrets {
    async fn get(&self, name: &str) -> Result<String, CapabilityError> {
        let shown = shown(name);
        let denied =
            || CapabilityError::Denied(format!("the secret `{shown}`: the manifest's grants.secrets does not name it"));
        if !self.granted.iter().any(|granted| granted == name) {
            return Err(denied());
        }
        let parsed: SecretName = name.parse().map_err(|_| denied())?;
        match self.host.secrets.read(&self.tenant, &parsed).await {
            Ok(Credential::Value { value }) => Ok(value.as_str().to_owned()),
            Ok(_) => Err(CapabilityError::Denied(format!(
                "the secret `{shown}` is for sources of adapters; set it as {{\"value\": …}}"
            ))),
            Err(SecretError::NotFound(_)) => {
                Err(CapabilityError::Failed(format!("there is no secret `{shown}`; set it first")))
            }
            Err(error) => {
                tracing::error!(%error, "a plugin's secret");
                Err(CapabilityError::Failed(format!("the secret `{shown}` cannot be opened")))
            }
        }
    }
}

/// The granted hosts of one request.
pub(super) struct FunctionWeb {
    host: Arc<Host>,
    tenant: TenantId,
    granted: Vec<HttpGrant>,
}

impl FunctionWeb {
    pub(super) fn new(host: &Arc<Host>, tenant: &TenantId, grants: &ManifestGrants) -> Self {
        let granted = grants.http.iter().filter_map(|text| text.parse().ok()).collect();
        Self { host: Arc::clone(host), tenant: tenant.clone(), granted }
    }
}

#[async_trait]
impl Outbound for FunctionWeb {
    async fn send(
        &self,
        request: ::http::Request<Bytes>,
        bounds: OutboundBounds,
    ) -> Result<::http::Response<Bytes>, OutboundError> {
        self.host.outbound.send(&self.tenant, &self.granted, request, bounds).await
    }
}

/// The base's tokenizer.
pub(super) struct BaseTokenizer(pub(super) Arc<Host>);

#[async_trait]
impl Tokenizer for BaseTokenizer {
    async fn encode(&self, text: String) -> Result<Vec<u32>, CapabilityError> {
        let base = Arc::clone(&self.0.base);
        let encoded = tokio::task::spawn_blocking(move || base.tokenizer().encode(&text));
        let encoded = encoded.await.map_err(|error| CapabilityError::Failed(error.to_string()))?;
        encoded.map_err(|error| CapabilityError::Failed(error.to_string()))
    }

    async fn decode(&self, tokens: Vec<u32>, bytes_max: usize) -> Result<String, CapabilityError> {
        let vocabulary = self.0.plan_limits.vocabulary;
        if let Some(token) = tokens.iter().find(|token| **token >= vocabulary) {
            return Err(CapabilityError::Failed(format!("the token {token} is none of the base's {vocabulary}")));
        }
        let base = Arc::clone(&self.0.base);
        let token = |id: &u32| base.tokenizer().token_bytes(*id).map_or(0, <[u8]>::len);
        let bytes: usize = tokens.iter().map(token).sum();
        if bytes > bytes_max {
            return Err(CapabilityError::Limit(format!("tokenizer_bytes_max: the tokens have {bytes} bytes")));
        }
        let decoded = tokio::task::spawn_blocking(move || base.tokenizer().decode(&tokens));
        let text = decoded.await.map_err(|error| CapabilityError::Failed(error.to_string()))?;
        if text.len() > bytes_max {
            return Err(CapabilityError::Limit(format!("tokenizer_bytes_max: the text has {} bytes", text.len())));
        }
        Ok(text)
    }
}

/// All of them, for one version of a function.
pub(super) struct Lent {
    pub(super) keyvalue: Arc<dyn KeyValue>,
    pub(super) secrets: Arc<dyn Secrets>,
    pub(super) outbound: Arc<dyn Outbound>,
    pub(super) tools: Arc<dyn Tools>,
    pub(super) tokenizer: Arc<dyn Tokenizer>,
    pub(super) nested: LentNested,
}

/// What its plugin may make requests of its own with.
pub(super) struct LentNested {
    pub(super) functions: Arc<dyn Functions>,
    pub(super) generations: Arc<dyn Generations>,
    pub(super) output: Arc<dyn Output>,
}

/// What a version is granted; a copy of a request must not do again what was done: it may only read, and asks nobody.
pub(super) fn lent(
    host: &Arc<Host>,
    tenant: &TenantId,
    version: &FunctionVersion,
    is_copy: bool,
    nested: LentNested,
) -> Lent {
    let mut grants = version.manifest.grants.clone();
    if is_copy {
        grants.http.clear();
        grants.tools.clear();
        grants.kv.iter_mut().for_each(|entry| entry.access = ManifestAccess::ReadOnly);
    }
    let grants = &grants;
    let secrets = |granted| FunctionSecrets { host: Arc::clone(host), tenant: tenant.clone(), granted };
    // The credentials of tools are the host's to use: a plugin reads none that grants.secrets does not name.
    let credentials = secrets(grants.tools.iter().filter_map(|server| server.secret.clone()).collect());
    Lent {
        keyvalue: Arc::new(FunctionBuckets::new(host, tenant, &version.function, version.life, grants)),
        secrets: Arc::new(secrets(grants.secrets.clone())),
        outbound: Arc::new(FunctionWeb::new(host, tenant, grants)),
        tools: Arc::new(FunctionTools::new(host, tenant, Arc::new(credentials), grants)),
        tokenizer: Arc::new(BaseTokenizer(Arc::clone(host))),
        nested,
    }
}

fn shown(name: &str) -> String {
    name.chars().take(QUOTED_CHARS_MAX).collect()
}
