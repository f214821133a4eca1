//! What a manifest grants beside adapters: outbound hosts, secrets, key-value buckets, tools. What it does not name is denied. Not here:
//! whether what it names exists, which is looked at when it is used.

use serde::{Deserialize, Serialize};
use types::{BucketName, FunctionName, SecretName, TenantId};
use utoipa::ToSchema;

use super::{MANIFEST_ENTRIES_MAX, ManifestError, at_most};
use crate::adapters::AdapterTag;
use crate::outbound::HttpGrant;

/// Characters of an entry that an error quotes.
const QUOTED_CHARS_MAX: usize = 96;

/// Bytes of a tool's name.
const TOOL_NAME_BYTES_MAX: usize = 128;

/// What the plugin may use beside adapters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ManifestGrants {
    /// Where it may send HTTP requests: `https://api.example.com`, `https://*.example.com:8443` for every name below it,
    /// `https://api.example.com/v1` for the paths `/v1` and below. `http://` must be written out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<String>,
    /// Names of the tenant's secrets of the kind `value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Key-value buckets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kv: Vec<ManifestBucket>,
    /// Functions of the tenant that it may call and read the answers of; looked up at each call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<String>,
    /// Adapters of the tenant's by their tags: those that have one of these, looked up at each request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapter_tags: Vec<String>,
    /// Adapters by whose they are: those that these tenants share, under the aliases that the tenant gave them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapter_owners: Vec<String>,
    /// Whether an agent may open generation sessions.
    #[serde(skip_serializing_if = "is_false")]
    pub generations: bool,
    /// Servers that speak MCP, and their tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<ManifestToolServer>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A key-value bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ManifestBucket {
    /// Its name.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    pub bucket: String,
    /// What may be done with it.
    #[serde(default)]
    pub access: ManifestAccess,
    /// Whose it is.
    #[serde(default)]
    pub scope: ManifestScope,
}

/// A server of tools, by streamable HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ManifestToolServer {
    /// What the plugin calls it.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    pub server: String,
    /// Where it is: `https://tools.example.com/mcp`. `http://` must be written out.
    pub url: String,
    /// The names of its tools that may be used; `*` is all that it has, now and later.
    pub tools: Vec<String>,
    /// The tenant's secret of the kind `value` that is sent as a bearer token. The plugin does not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

impl ManifestToolServer {
    /// Whether a tool may be used.
    #[must_use]
    pub fn allows(&self, tool: &str) -> bool {
        self.tools.iter().any(|name| name == "*" || name == tool)
    }

    fn texts(&self) -> impl Iterator<Item = &String> {
        [&self.server, &self.url].into_iter().chain(&self.tools).chain(&self.secret)
    }
}

/// What may be done with a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ManifestAccess {
    /// Read.
    ReadOnly,
    /// Read and write.
    #[default]
    ReadWrite,
}

/// Whose a bucket is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ManifestScope {
    /// The function's own, for all its versions; it goes with the function.
    #[default]
    Function,
    /// The tenant's: every function that names it with this scope has the same one.
    Tenant,
}

impl ManifestGrants {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Bytes of all its text.
    pub(super) fn text_bytes(&self) -> usize {
        let names = self
            .http
            .iter()
            .chain(&self.secrets)
            .chain(&self.calls)
            .chain(&self.adapter_tags)
            .chain(&self.adapter_owners)
            .chain(self.kv.iter().map(|entry| &entry.bucket))
            .chain(self.tools.iter().flat_map(ManifestToolServer::texts));
        names.map(String::len).sum()
    }

    pub(super) fn check(&self) -> Result<(), ManifestError> {
        for (what, value) in [
            ("the number of hosts in grants.http", self.http.len()),
            ("the number of names in grants.secrets", self.secrets.len()),
            ("the number of buckets in grants.kv", self.kv.len()),
            ("the number of functions in grants.calls", self.calls.len()),
            ("the number of tags in grants.adapter_tags", self.adapter_tags.len()),
            ("the number of tenants in grants.adapter_owners", self.adapter_owners.len()),
            ("the number of servers in grants.tools", self.tools.len()),
            ("the number of tools in grants.tools", self.tools.iter().map(|server| server.tools.len()).sum()),
        ] {
            at_most(what, value, "manifest_entries_max", MANIFEST_ENTRIES_MAX)?;
        }
        let bad = |grant, value: &str, reason: String| ManifestError::BadGrant {
            grant,
            value: value.chars().take(QUOTED_CHARS_MAX).collect(),
            reason,
        };
        for text in &self.http {
            text.parse::<HttpGrant>().map_err(|error| bad("http", text, error.to_string()))?;
        }
        for name in &self.secrets {
            name.parse::<SecretName>().map_err(|error| bad("secrets", name, error.to_string()))?;
        }
        for tag in &self.adapter_tags {
            tag.parse::<AdapterTag>().map_err(|error| bad("adapter_tags", tag, error.to_string()))?;
        }
        for owner in &self.adapter_owners {
            owner.parse::<TenantId>().map_err(|error| bad("adapter_owners", owner, error.to_string()))?;
        }
        for name in &self.calls {
            name.parse::<FunctionName>().map_err(|error| bad("calls", name, error.to_string()))?;
        }
        for (place, entry) in self.kv.iter().enumerate() {
            entry.bucket.parse::<BucketName>().map_err(|error| bad("kv", &entry.bucket, error.to_string()))?;
            if self.kv.iter().take(place).any(|other| other.bucket == entry.bucket) {
                return Err(bad("kv", &entry.bucket, "it is there twice; a plugin opens it by its name alone".into()));
            }
        }
        for (place, entry) in self.tools.iter().enumerate() {
            let bad = |value: &str, reason: &str| bad("tools", value, reason.to_owned());
            entry.server.parse::<BucketName>().map_err(|error| bad(&entry.server, &error.to_string()))?;
            entry.url.parse::<HttpGrant>().map_err(|error| bad(&entry.url, &error.to_string()))?;
            if let Some(secret) = &entry.secret {
                secret.parse::<SecretName>().map_err(|error| bad(secret, &error.to_string()))?;
            }
            if self.tools.iter().take(place).any(|other| other.server == entry.server) {
                return Err(bad(&entry.server, "it is there twice; a plugin calls it by this name alone"));
            }
            if entry.tools.is_empty() {
                return Err(bad(&entry.server, "it grants no tool: name them in its `tools`, or `*` for all"));
            }
            let is_name =
                |name: &str| !name.is_empty() && name.len() <= TOOL_NAME_BYTES_MAX && !name.contains(char::is_control);
            if let Some(name) = entry.tools.iter().find(|name| !is_name(name)) {
                return Err(bad(name, "a tool's name has 1 to 128 bytes and no control characters"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ManifestGrants, String> {
        let grants: ManifestGrants = serde_json::from_str(text).map_err(|error| error.to_string())?;
        grants.check().map_err(|error| error.to_string())?;
        Ok(grants)
    }

    #[test]
    fn grants_are_read_and_written() {
        let text = r#"{"http":["https://api.example.com/v1"],"secrets":["weather"],"kv":[{"bucket":"seen"},
            {"bucket":"shared","access":"read_only","scope":"tenant"}],"calls":["other-one"],"adapter_tags":["dates"],"adapter_owners":["them"],"generations":true}"#;
        let grants = read(text).expect("good");
        assert_eq!((grants.kv[0].access, grants.kv[0].scope), (ManifestAccess::ReadWrite, ManifestScope::Function));
        assert_eq!((grants.kv[1].access, grants.kv[1].scope), (ManifestAccess::ReadOnly, ManifestScope::Tenant));
        let written = serde_json::to_string(&grants).expect("written");
        assert_eq!(read(&written), Ok(grants));
        assert!(read("{}").expect("nothing").is_empty());
    }

    #[test]
    fn what_cannot_be_granted_is_named() {
        for (text, said) in [
            (r#"{"http":["api.example.com"]}"#, "grants.http has `api.example.com`"),
            (r#"{"http":["*"]}"#, "grants.http has `*`"),
            (r#"{"http":["https://*"]}"#, "grants.http"),
            (r#"{"http":["https://user@a.example"]}"#, "grants.http"),
            (r#"{"http":["https://a.example/a/../b"]}"#, "grants.http"),
            (r#"{"http":["https://a.example/?q"]}"#, "grants.http"),
            (r#"{"secrets":["../x"]}"#, "grants.secrets has `../x`"),
            (r#"{"secrets":["*"]}"#, "grants.secrets"),
            (r#"{"kv":[{"bucket":""}]}"#, "grants.kv"),
            (r#"{"kv":[{"bucket":"a/b"}]}"#, "grants.kv has `a/b`"),
            (r#"{"kv":[{"bucket":"a"},{"bucket":"a","scope":"tenant"}]}"#, "twice"),
            (r#"{"kv":[{"bucket":"a","access":"write"}]}"#, "unknown variant"),
            (r#"{"calls":["../x"]}"#, "grants.calls has `../x`"),
            (r#"{"calls":["*"]}"#, "grants.calls"),
            (r#"{"adapter_tags":["A B"]}"#, "grants.adapter_tags has `A B`"),
            (r#"{"adapter_tags":["*"]}"#, "grants.adapter_tags"),
            (r#"{"adapter_owners":["*"]}"#, "grants.adapter_owners"),
            (r#"{"generations":"all"}"#, "invalid type"),
            (r#"{"files":["/"]}"#, "unknown field `files`"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        let many = format!(r#"{{"secrets":[{}]}}"#, vec![r#""a""#; 1025].join(","));
        assert!(read(&many).expect_err("many").contains("manifest_entries_max"));
    }
}
