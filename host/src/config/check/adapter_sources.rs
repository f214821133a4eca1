//! The table `adapter_sources`: what the host may fetch adapters from. Not here: what is done with it (`adapters/source`).

use reqwest::Url;

use super::Checks;
use crate::adapters::{AllowedOrigin, SourcesConfig};
use crate::config::ConfigError;
use crate::config::raw::RawAdapterSources;

/// Entries of a list.
const ENTRIES_MAX: usize = 1024;

impl Checks<'_> {
    pub(super) fn adapter_sources(&self, raw: &RawAdapterSources) -> Result<SourcesConfig, ConfigError> {
        let default = SourcesConfig::default();
        let hosts: Vec<AllowedOrigin> = self.list("adapter_sources.hosts", raw.hosts.as_deref())?;
        let endpoint =
            |key: &str, text: &Option<String>| text.as_deref().map(|text| self.endpoint(key, text, &hosts)).transpose();
        Ok(SourcesConfig {
            private_networks: self.list("adapter_sources.private_networks", raw.private_networks.as_deref())?,
            hugging_face_endpoint: endpoint("adapter_sources.hugging_face_endpoint", &raw.hugging_face_endpoint)?,
            s3_endpoint: endpoint("adapter_sources.s3_endpoint", &raw.s3_endpoint)?,
            ipfs_gateway: endpoint("adapter_sources.ipfs_gateway", &raw.ipfs_gateway)?,
            s3_region: self.region(raw.s3_region.clone().unwrap_or(default.s3_region))?,
            total: self.milliseconds("adapter_sources.total_ms_max", raw.total_ms_max, default.total, 1)?,
            stall: self.milliseconds("adapter_sources.stall_ms_max", raw.stall_ms_max, default.stall, 1)?,
            connect: self.milliseconds("adapter_sources.connect_ms_max", raw.connect_ms_max, default.connect, 1)?,
            retry_wait: self.milliseconds("adapter_sources.retry_wait_ms", raw.retry_wait_ms, default.retry_wait, 1)?,
            attempts_max: self.number(
                "adapter_sources.attempts_max",
                raw.attempts_max,
                default.attempts_max.into(),
                1..=100,
            )?,
            redirects_max: self.number(
                "adapter_sources.redirects_max",
                raw.redirects_max,
                default.redirects_max.into(),
                0..=20,
            )?,
            fetches_max: self.number(
                "adapter_sources.fetches_max",
                raw.fetches_max,
                default.fetches_max as u64,
                1..=1024,
            )?,
            hosts,
        })
    }

    pub(super) fn list<T: std::str::FromStr>(
        &self,
        key: &str,
        entries: Option<&[String]>,
    ) -> Result<Vec<T>, ConfigError>
    where
        T::Err: std::fmt::Display,
    {
        let entries = entries.unwrap_or_default();
        if entries.len() > ENTRIES_MAX {
            return Err(self.refuse(key, format!("it has more than {ENTRIES_MAX} entries")));
        }
        let parse = |text: &String| text.parse().map_err(|error| self.refuse(key, format!("`{text}`: {error}")));
        entries.iter().map(parse).collect()
    }

    /// One rule for all that is asked: an endpoint that the list does not have could never be used.
    fn endpoint(&self, key: &str, text: &str, hosts: &[AllowedOrigin]) -> Result<Url, ConfigError> {
        let is_plain = |url: &Url| {
            let is_web = matches!(url.scheme(), "http" | "https");
            let has_user = !url.username().is_empty() || url.password().is_some();
            is_web && !has_user && url.query().is_none() && url.fragment().is_none()
        };
        let url = Url::parse(text).ok().filter(is_plain);
        let url =
            url.ok_or_else(|| self.refuse(key, format!("`{text}` is not an address such as https://example.org")))?;
        if hosts.iter().any(|origin| origin.allows(&url)) {
            return Ok(url);
        }
        Err(self.refuse(
            key,
            format!("`{text}` is not in `adapter_sources.hosts`; add it there (plain HTTP as `http://…`)"),
        ))
    }

    fn region(&self, region: String) -> Result<String, ConfigError> {
        let is_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !region.is_empty() && region.len() <= 64 && region.bytes().all(is_byte) {
            return Ok(region);
        }
        Err(self.refuse("adapter_sources.s3_region", format!("`{region}` is not a region such as eu-west-1")))
    }
}
