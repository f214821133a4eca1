//! `hf://organisation/repository@revision`: files of a repository of the Hugging Face hub, or of a server that speaks like it,
//! by `ENDPOINT/ORGANISATION/REPOSITORY/resolve/REVISION/FILE`. Not here: requests.
//!
//! The hub sends large files by redirect from hosts of its own, which have to be listed too (`*.hf.co`); a token stays with the hub.

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::Url;
use reqwest::header::HeaderValue;
use types::Digest;

use super::download::Wanted;
use super::fetch::{RemoteFolder, Requests};
use super::guard::Guard;
use super::web::Target;
use super::{AdapterError, Credential, SourcesConfig};

const PUBLIC_HUB: &str = "https://huggingface.co";
const NAME_BYTES_MAX: usize = 96;
const REVISION_BYTES_MAX: usize = 256;
/// What the hub calls the newest.
const REVISION_DEFAULT: &str = "main";

#[derive(Debug)]
pub(super) struct Repository {
    name: String,
    /// Of the revision; ends with `/`.
    url: Url,
    authorization: Option<HeaderValue>,
    credential: Option<Digest>,
}

impl Repository {
    /// From what stands behind `hf://`.
    pub(super) fn parse(
        rest: &str,
        config: &SourcesConfig,
        guard: &Guard,
        credential: Option<&Credential>,
    ) -> Result<Self, AdapterError> {
        let bad = || AdapterError::BadSource("use hf://organisation/repository@revision");
        let (path, revision) = rest.split_once('@').unwrap_or((rest, REVISION_DEFAULT));
        let (organisation, repository) = path.trim_end_matches('/').split_once('/').ok_or_else(bad)?;
        if !is_name(organisation) || !is_name(repository) || !is_revision(revision) {
            return Err(bad());
        }
        let mut url = endpoint(config).ok_or_else(bad)?;
        // The hub takes a revision as one segment: a `/` in it is escaped.
        let segments = [organisation, repository, "resolve", revision, ""];
        url.path_segments_mut().map_err(|()| bad())?.pop_if_empty().extend(segments);
        let name = format!("hf://{organisation}/{repository}@{revision}");
        guard.check_named(&url, &name)?;
        let authorization = credential.map(|credential| credential.authorization(&url)).transpose()?;
        Ok(Self { name, url, authorization, credential: credential.map(Credential::digest) })
    }
}

/// Where repositories are asked for.
pub(super) fn endpoint(config: &SourcesConfig) -> Option<Url> {
    config.hugging_face_endpoint.clone().or_else(|| Url::parse(PUBLIC_HUB).ok())
}

fn is_name(text: &str) -> bool {
    let is_character = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && text.bytes().all(is_character)
        && !text.starts_with(['.', '-'])
        && !text.contains("..")
}

/// A commit, tag or branch; branches may have `/`, as in `refs/pr/1`.
fn is_revision(text: &str) -> bool {
    text.len() <= REVISION_BYTES_MAX && text.split('/').all(is_name)
}

#[async_trait]
impl RemoteFolder for Repository {
    fn name(&self) -> &str {
        &self.name
    }

    fn credential(&self) -> Option<Digest> {
        self.credential
    }

    async fn file(&self, from: &Requests, wanted: Wanted<'_>) -> Result<Bytes, AdapterError> {
        let url = self.url.join(wanted.name).map_err(|_| AdapterError::BadSource("it is no repository"))?;
        let target = Target { url, name: self.name.clone(), authorization: self.authorization.clone() };
        from.download(&target, wanted).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str, endpoint: &str) -> Result<Repository, AdapterError> {
        let guard = Guard::new(vec!["hub.example".parse().expect("an origin")], Vec::new());
        let endpoint = (!endpoint.is_empty()).then(|| Url::parse(endpoint).expect("a URL"));
        let config = SourcesConfig { hugging_face_endpoint: endpoint, ..SourcesConfig::default() };
        Repository::parse(rest, &config, &guard, None)
    }

    #[test]
    fn a_repository_and_revision_is_a_url() {
        for (rest, path) in [
            ("org/name", "/org/name/resolve/main/"),
            ("Org-1/na_me.v2@0123abc", "/Org-1/na_me.v2/resolve/0123abc/"),
            ("org/name@refs/pr/1", "/org/name/resolve/refs%2Fpr%2F1/"),
        ] {
            assert_eq!(parse(rest, "https://hub.example").expect(rest).url.path(), path);
            let below = parse(rest, "https://hub.example/mirror/").expect(rest);
            assert_eq!(below.url.path(), format!("/mirror{path}"));
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for bad in [
            "",
            "org",
            "/name",
            "org/",
            "org/name/more",
            "org/..",
            "../name",
            "org/name@",
            "org/name@..",
            "org/name@a/../b",
            "org/name@a//b",
            "org/na me",
            "org/name?x",
            "org/name#x",
            "org/%2e%2e",
            "org/name@main@x",
            "org/na\\me",
            "user:pass@org/name",
        ] {
            assert_eq!(parse(bad, "https://hub.example").expect_err(bad).code(), "invalid_source", "{bad}");
        }
        let error = parse("org/name", "").expect_err("the public hub is not listed");
        assert_eq!(error.code(), "source_not_allowed");
    }
}
