//! To a registry: the blobs that it does not have yet, then the manifest that names them, then the signatures that refer to it. Each
//! blob goes in one piece (`POST`, then `PUT`), which every registry takes. Not here: what a component imports, which the caller says.

use std::collections::BTreeMap;

use bytes::Bytes;
use reqwest::header::LOCATION;
use reqwest::{Body, Method, StatusCode, Url};

use super::layout::{MANIFEST, documents};
use super::session::{Ask, Content, Session};
use super::{OciError, Sha256, WasmWorld, referrers};

/// What is pushed.
pub(crate) struct NewArtefact {
    pub(crate) component: Bytes,
    pub(crate) world: WasmWorld,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Sigstore bundles.
    pub(crate) signatures: Vec<Bytes>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// Of the manifest.
    pub(crate) digest: Sha256,
    /// Of the component.
    pub(crate) component: Sha256,
    /// Whether the registry had the component already.
    pub(crate) was_there: bool,
}

/// Makes the body of an upload, with whatever shows its progress.
pub(super) type BodyOf<'a> = &'a (dyn Fn(Bytes) -> Body + Sync);

/// Pushes an artefact under the reference's tag.
pub(crate) async fn push(
    session: &mut Session,
    artefact: &NewArtefact,
    body_of: BodyOf<'_>,
) -> Result<Pushed, OciError> {
    let NewArtefact { component, world, annotations, signatures } = artefact;
    let (manifest, config) = documents(component, world, annotations.clone())
        .map_err(|error| session.failed(format!("the manifest cannot be written: {error}")))?;
    let digest = Sha256::of(&manifest);
    if session.reference().digest().is_some_and(|wanted| wanted != digest) {
        return Err(session.unverified("manifest"));
    }
    let plain = |bytes: Bytes| Body::from(bytes);
    push_blob(session, &config.into(), &plain).await?;
    let was_there = push_blob(session, component, body_of).await?;
    let name = session.reference().tag().map_or_else(|| digest.to_string(), str::to_owned);
    push_manifest(session, &name, MANIFEST, manifest.clone().into()).await?;
    for signature in signatures {
        referrers::attach(session, &manifest, signature).await?;
    }
    Ok(Pushed { digest, component: Sha256::of(component), was_there })
}

/// Whether the registry had the blob already.
pub(super) async fn push_blob(session: &mut Session, bytes: &Bytes, body_of: BodyOf<'_>) -> Result<bool, OciError> {
    let digest = Sha256::of(bytes);
    let url = session.url(&format!("blobs/{digest}"))?;
    let ask = Ask { method: Method::HEAD, ..Ask::get(url) };
    let answer = session.ask(&ask).await?;
    if answer.status().is_success() {
        return Ok(true);
    }
    if answer.status() != StatusCode::NOT_FOUND {
        return Err(session.complaint(answer).await);
    }
    let begin = session.url("blobs/uploads/")?;
    let answer = session.good(&Ask { method: Method::POST, ..Ask::get(begin.clone()) }).await?;
    let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let upload = location.and_then(|location| begin.join(location).ok());
    let mut upload: Url = upload.ok_or_else(|| session.failed("it does not say where an upload goes"))?;
    upload.query_pairs_mut().append_pair("digest", &digest.to_string());
    let content =
        Content { media_type: "application/octet-stream", bytes: bytes.len(), body: &|| body_of(bytes.clone()) };
    session.good(&Ask { method: Method::PUT, content: Some(content), ..Ask::get(upload) }).await?;
    Ok(false)
}

/// Puts a manifest or an index; whether the registry indexed what it refers to.
pub(super) async fn push_manifest(
    session: &mut Session,
    name: &str,
    media_type: &'static str,
    bytes: Bytes,
) -> Result<bool, OciError> {
    let url = session.url(&format!("manifests/{name}"))?;
    let content = Content { media_type, bytes: bytes.len(), body: &|| Body::from(bytes.clone()) };
    let answer = session.good(&Ask { method: Method::PUT, content: Some(content), ..Ask::get(url) }).await?;
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let kept: Option<Sha256> = header("docker-content-digest").and_then(|digest| digest.parse().ok());
    if kept.is_some_and(|kept| kept != Sha256::of(&bytes)) {
        return Err(session.failed("it kept another manifest than it was sent"));
    }
    Ok(header("oci-subject").is_some())
}
