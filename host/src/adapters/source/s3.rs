//! `s3://bucket/prefix` on AWS or any server that speaks like it. `object_store` lays out and signs the URLs (SigV4 in the query);
//! the requests are those of every other source, so that one guard, one budget and one way to resume hold for all. Not here:
//! requests.
//!
//! Buckets are folders of the endpoint, which every server knows, and names with dots work under TLS. Without a secret nothing is
//! signed: the bucket is public, or refuses. The host's own credentials, if its environment has any, are never used.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::ClientOptions;
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::path::Path;
use object_store::signer::Signer as _;
use reqwest::{Method, Url};
use types::Digest;

use super::download::Wanted;
use super::fetch::{RemoteFolder, Requests};
use super::guard::Guard;
use super::web::Target;
use super::{AdapterError, Credential, SourceError, SourcesConfig};

/// What a signature is good for, beyond the time of a whole source.
const SIGNATURE_MARGIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Prefix {
    name: String,
    bucket: String,
    prefix: Path,
    endpoint: Url,
    region: String,
    signature: Duration,
    credential: Option<Credential>,
}

impl Prefix {
    /// From what stands behind `s3://`. The prefix is a key as it is, without percent-encoding.
    pub(super) fn parse(
        rest: &str,
        config: &SourcesConfig,
        guard: &Guard,
        credential: Option<&Credential>,
    ) -> Result<Self, AdapterError> {
        let bad = || AdapterError::BadSource("use s3://bucket/prefix, without a query");
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_bucket_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        let is_bucket = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(is_bucket_byte)
            && bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
            && !bucket.contains("..");
        if !is_bucket || prefix.starts_with('/') || prefix.contains(['?', '#', '\\', '%']) {
            return Err(bad());
        }
        if matches!(credential, Some(Credential::Bearer { .. })) {
            return Err(AdapterError::BadSource("the secret holds a token, and s3:// needs keys"));
        }
        let prefix = Path::parse(prefix).map_err(|_| bad())?;
        let name = format!("s3://{bucket}/{prefix}");
        let aws = || Url::parse(&format!("https://s3.{}.amazonaws.com", config.s3_region)).ok();
        let endpoint = config.s3_endpoint.clone().or_else(aws).ok_or_else(bad)?;
        guard.check_named(&endpoint, &name)?;
        Ok(Self {
            name,
            bucket: bucket.to_owned(),
            prefix,
            endpoint,
            region: config.s3_region.clone(),
            signature: config.total.saturating_add(SIGNATURE_MARGIN),
            credential: credential.cloned(),
        })
    }

    /// Where a file lies, with a signature if there is a credential.
    async fn url(&self, file: &str) -> object_store::Result<Url> {
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_region(&self.region)
            .with_endpoint(self.endpoint.as_str().trim_end_matches('/'))
            .with_allow_http(true)
            .with_virtual_hosted_style_request(false)
            .with_http_connector(NoTransport);
        builder = match &self.credential {
            Some(Credential::S3 { access_key_id, secret_access_key, session_token }) => {
                let keys = builder
                    .with_access_key_id(access_key_id.as_str())
                    .with_secret_access_key(secret_access_key.as_str());
                match session_token {
                    Some(token) => keys.with_token(token.as_str()),
                    None => keys,
                }
            }
            // Its signature is thrown away below.
            _ => builder.with_access_key_id("none").with_secret_access_key("none"),
        };
        let path = self.prefix.clone().join(file);
        let mut url = builder.build()?.signed_url(Method::GET, &path, self.signature).await?;
        if self.credential.is_none() {
            url.set_query(None);
        }
        Ok(url)
    }
}

#[async_trait]
impl RemoteFolder for Prefix {
    fn name(&self) -> &str {
        &self.name
    }

    fn credential(&self) -> Option<Digest> {
        self.credential.as_ref().map(Credential::digest)
    }

    async fn file(&self, from: &Requests, wanted: Wanted<'_>) -> Result<Bytes, AdapterError> {
        let url = self.url(wanted.name).await.map_err(|error| {
            tracing::warn!(source = self.name, %error, "no URL could be made for an object");
            SourceError::Failed { source_name: self.name.clone(), reason: "no URL could be signed for it".to_owned() }
        })?;
        let target = Target { url, name: self.name.clone(), authorization: None };
        from.download(&target, wanted).await
    }
}

/// `object_store` signs here and sends nothing.
#[derive(Debug)]
struct NoTransport;

impl HttpConnector for NoTransport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Self))
    }
}

#[async_trait]
impl HttpService for NoTransport {
    async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
        let reason = std::io::Error::other("requests go through the guard, not through object_store");
        Err(HttpError::new(HttpErrorKind::Unknown, reason))
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn parse(rest: &str, credential: Option<&Credential>) -> Result<Prefix, AdapterError> {
        let hosts = ["s3.eu-west-1.amazonaws.com", "http://minio.internal:9000"];
        let guard = Guard::new(hosts.map(|host| host.parse().expect(host)).to_vec(), Vec::new());
        let config = SourcesConfig { s3_region: "eu-west-1".to_owned(), ..SourcesConfig::default() };
        Prefix::parse(rest, &config, &guard, credential)
    }

    fn keys(session: Option<&str>) -> Credential {
        let text = |text: &str| Zeroizing::new(text.to_owned());
        Credential::S3 {
            access_key_id: text("AKIDEXAMPLE"),
            secret_access_key: text("wJalrXUtnFEMI"),
            session_token: session.map(text),
        }
    }

    #[tokio::test]
    async fn objects_have_urls_signed_with_a_secret_and_plain_without() {
        for (rest, path) in [
            ("my-bucket/a/b/", "/my-bucket/a/b/adapter_config.json"),
            ("my.bucket", "/my.bucket/adapter_config.json"),
            ("my.bucket/a b+c", "/my.bucket/a%20b%2Bc/adapter_config.json"),
        ] {
            let plain = parse(rest, None).expect(rest).url(super::super::CONFIG).await.expect(rest);
            assert_eq!((plain.host_str(), plain.path()), (Some("s3.eu-west-1.amazonaws.com"), path));
            assert_eq!(plain.query(), None);
            let signed = parse(rest, Some(&keys(Some("session")))).expect(rest);
            let signed = signed.url(super::super::CONFIG).await.expect(rest);
            assert_eq!(signed.path(), path);
            let query: std::collections::HashMap<_, _> = signed.query_pairs().collect();
            assert!(query["X-Amz-Credential"].starts_with("AKIDEXAMPLE/"), "{signed}");
            assert!(query["X-Amz-Credential"].ends_with("/eu-west-1/s3/aws4_request"), "{signed}");
            assert_eq!((&*query["X-Amz-Security-Token"], &*query["X-Amz-Expires"]), ("session", "660"));
            assert!(!signed.as_str().contains("wJalrXUtnFEMI"));
        }
    }

    #[test]
    fn what_is_no_bucket_or_key_is_refused() {
        for bad in [
            "",
            "a",
            "Bucket/x",
            "bucket_x/y",
            "-bucket/x",
            "bu..cket/x",
            "bucket/../other",
            "bucket/a//b",
            "bucket//a",
            "bucket/a?versionId=1",
            "bucket/a#b",
            "bucket/%2e%2e/x",
            "bucket:9000/x",
            "key:secret@bucket/x",
            "bucket/./a",
        ] {
            assert_eq!(parse(bad, None).expect_err(bad).code(), "invalid_source", "{bad}");
        }
        let token = Credential::Bearer {
            origin: Url::parse("https://s3.eu-west-1.amazonaws.com").expect("a URL"),
            token: Zeroizing::new("t".to_owned()),
        };
        assert_eq!(parse("bucket/a", Some(&token)).expect_err("no keys").code(), "invalid_source");
    }

    #[test]
    fn an_endpoint_that_is_not_listed_is_not_asked_and_not_told() {
        let config = SourcesConfig {
            s3_endpoint: Some(Url::parse("http://10.1.2.3:9000").expect("a URL")),
            ..SourcesConfig::default()
        };
        let error = Prefix::parse("bucket/a", &config, &Guard::new(Vec::new(), Vec::new()), None).expect_err("closed");
        assert_eq!(error.code(), "source_not_allowed");
        assert!(!error.to_string().contains("10.1.2.3"), "{error}");
    }
}
