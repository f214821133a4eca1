//! `https://host/folder/`, and `http://` where the operator listed it so: the two files lie below the URL by their names. Not
//! here: requests.

use async_trait::async_trait;
use bytes::Bytes;
use model::refuse_container_name;
use reqwest::Url;
use reqwest::header::HeaderValue;
use types::Digest;

use super::download::Wanted;
use super::fetch::{RemoteFolder, Requests};
use super::guard::Guard;
use super::web::Target;
use super::{AdapterError, Credential};

#[derive(Debug)]
pub(super) struct Folder {
    /// Ends with `/`.
    url: Url,
    authorization: Option<HeaderValue>,
    credential: Option<Digest>,
}

impl Folder {
    pub(super) fn parse(text: &str, guard: &Guard, credential: Option<&Credential>) -> Result<Self, AdapterError> {
        let mut url =
            Url::parse(text).map_err(|_| AdapterError::BadSource("it is not a URL; use https://host/folder/"))?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(AdapterError::BadSource("a folder's URL has no query or fragment; use https://host/folder/"));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        let last = path.rsplit('/').next().unwrap_or_default();
        refuse_container_name(last)?;
        if [super::CONFIG, super::WEIGHTS].contains(&last) {
            return Err(AdapterError::BadSource("name the folder that holds the files, not one of them"));
        }
        url.set_path(&format!("{path}/"));
        guard.check_named(&url, url.as_str())?;
        let authorization = credential.map(|credential| credential.authorization(&url)).transpose()?;
        Ok(Self { url, authorization, credential: credential.map(Credential::digest) })
    }
}

#[async_trait]
impl RemoteFolder for Folder {
    fn name(&self) -> &str {
        self.url.as_str()
    }

    fn credential(&self) -> Option<Digest> {
        self.credential
    }

    async fn file(&self, from: &Requests, wanted: Wanted<'_>) -> Result<Bytes, AdapterError> {
        let url = self.url.join(wanted.name).map_err(|_| AdapterError::BadSource("it is not a folder's URL"))?;
        let target = Target { url, name: self.name().to_owned(), authorization: self.authorization.clone() };
        from.download(&target, wanted).await
    }
}
