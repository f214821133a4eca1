//! Signatures beside an artefact: manifests of type `application/vnd.dev.sigstore.bundle.v0.3+json` whose `subject` is the artefact's
//! manifest, found by the referrers API of the OCI distribution 1.1, or by the tag `sha256-…` where a registry does not have that. Not
//! here: whether a signature holds, which a host finds out (`adapters/signature`).

use std::collections::BTreeMap;

use bytes::Bytes;
use reqwest::StatusCode;

use super::layout::{BUNDLE, Descriptor, EMPTY, EMPTY_BYTES, INDEX, Index, MANIFEST, Manifest, size_max};
use super::pull::{blob, manifest};
use super::push::{push_blob, push_manifest};
use super::session::{Ask, Session, Wanted};
use super::{OciError, SIGNATURES_MAX, Sha256};
use crate::adapters::SIGNATURE_BYTES_MAX;

/// Entries of an index that is written back; a registry that is asked by tag keeps them in one document.
const REFERRERS_MAX: usize = 512;

/// The bundles that refer to a manifest, at most [`SIGNATURES_MAX`]. What is no bundle is passed over: anybody who may push may
/// attach whatever he likes.
pub(super) async fn signatures(session: &mut Session, subject: Sha256) -> Result<Vec<Bytes>, OciError> {
    let mut found = Vec::new();
    for descriptor in listed(session, subject).await?.into_iter().filter(is_bundle).take(SIGNATURES_MAX) {
        match bundle(session, &descriptor, subject).await {
            Ok(Some(bundle)) => found.push(bundle),
            Ok(None) => {}
            Err(error) if may_pass(&error) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(found)
}

/// Whether asking again may help. All else means that there is no signature to be had: some registries send those who ask for
/// referrers to a page, and what must be signed is refused then, with that reason.
const fn may_pass(error: &OciError) -> bool {
    matches!(error, OciError::Unavailable { .. } | OciError::TooSlow { .. } | OciError::NoClient(_))
}

fn is_bundle(descriptor: &Descriptor) -> bool {
    descriptor.artifact_type.as_deref() == Some(BUNDLE)
}

/// What the registry says refers to a manifest.
async fn listed(session: &mut Session, subject: Sha256) -> Result<Vec<Descriptor>, OciError> {
    let mut url = session.url(&format!("referrers/{subject}"))?;
    url.query_pairs_mut().append_pair("artifactType", BUNDLE);
    let (limit, max) = size_max(false);
    let wanted = Wanted { what: "list of referrers", limit, max };
    let read = match session.ask(&Ask::get(url)).await {
        Ok(answer) if answer.status() == StatusCode::OK => session.read(answer, wanted, &|_| ()).await.map(Some),
        Ok(_) => Ok(None),
        Err(error) => Err(error),
    };
    let index = |bytes: Bytes| serde_json::from_slice::<Index>(&bytes).ok();
    let found = match read {
        Ok(bytes) => bytes.and_then(index),
        Err(error) if may_pass(&error) => return Err(error),
        Err(_) => None,
    };
    if let Some(index) = found {
        return Ok(index.manifests);
    }
    match tagged(session, subject).await {
        Err(error) if may_pass(&error) => Err(error),
        found => Ok(found.ok().flatten().and_then(index).map(|index| index.manifests).unwrap_or_default()),
    }
}

/// The index under the tag that stands for the referrers API.
async fn tagged(session: &mut Session, subject: Sha256) -> Result<Option<Bytes>, OciError> {
    match manifest(session, &tag(subject)).await {
        Ok((_, bytes)) => Ok(Some(bytes)),
        Err(OciError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn tag(subject: Sha256) -> String {
    format!("sha256-{}", subject.digits())
}

async fn bundle(session: &mut Session, descriptor: &Descriptor, subject: Sha256) -> Result<Option<Bytes>, OciError> {
    let Ok(digest) = descriptor.digest.parse::<Sha256>() else { return Ok(None) };
    let (_, bytes) = manifest(session, &digest.to_string()).await?;
    if Sha256::of(&bytes) != digest {
        return Err(session.unverified("signature"));
    }
    let Ok(Manifest { layers, subject: of, .. }) = serde_json::from_slice(&bytes) else { return Ok(None) };
    let is_of = of.is_some_and(|of| of.digest == subject.to_string());
    let Some(layer) = layers.first().filter(|layer| is_of && layer.media_type == BUNDLE) else { return Ok(None) };
    if layer.size > SIGNATURE_BYTES_MAX as u64 {
        return Ok(None);
    }
    blob(session, layer, "signature", &|_| ()).await.map(Some)
}

/// Attaches a bundle to the manifest with these bytes.
pub(super) async fn attach(session: &mut Session, of: &[u8], bundle: &Bytes) -> Result<(), OciError> {
    let plain = |bytes: Bytes| reqwest::Body::from(bytes);
    push_blob(session, &Bytes::from_static(EMPTY_BYTES), &plain).await?;
    push_blob(session, bundle, &plain).await?;
    let subject = Descriptor::of(MANIFEST, of);
    let written = Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        artifact_type: Some(BUNDLE.to_owned()),
        config: Descriptor::of(EMPTY, EMPTY_BYTES),
        layers: vec![Descriptor::of(BUNDLE, bundle)],
        subject: Some(subject),
        annotations: BTreeMap::new(),
    };
    let bytes = Bytes::from(encoded(session, &written)?);
    let is_indexed = push_manifest(session, &Sha256::of(&bytes).to_string(), MANIFEST, bytes.clone()).await?;
    if is_indexed {
        return Ok(());
    }
    // The registry knows of no referrers: the index is the client's to keep, whoever writes last.
    let subject = Sha256::of(of);
    let found = tagged(session, subject).await?;
    // One that is not understood is somebody else's, and is left as it is.
    let unread = |_| session.failed("its index of referrers cannot be read; it is left as it is".to_owned());
    let index: Option<Index> = found.map(|bytes| serde_json::from_slice(&bytes)).transpose().map_err(unread)?;
    let mut manifests = index.map(|index| index.manifests).unwrap_or_default();
    let entry = Descriptor { artifact_type: Some(BUNDLE.to_owned()), ..Descriptor::of(MANIFEST, &bytes) };
    if manifests.iter().any(|other| other.digest == entry.digest) {
        return Ok(());
    }
    if manifests.len() >= REFERRERS_MAX {
        return Err(session.failed(format!("{REFERRERS_MAX} artefacts refer to this one already")));
    }
    manifests.push(entry);
    let index = Index { schema_version: 2, media_type: Some(INDEX.to_owned()), manifests };
    let index = encoded(session, &index)?;
    push_manifest(session, &tag(subject), INDEX, index.into()).await.map(drop)
}

fn encoded(session: &Session, document: &impl serde::Serialize) -> Result<Vec<u8>, OciError> {
    serde_json::to_vec(document).map_err(|error| session.failed(format!("a manifest cannot be written: {error}")))
}
