//! From a registry: the manifest, checked against what names it, then config and component, each against what the manifest says, then
//! the signatures beside it. Not here: whether the component is a plugin, which a host finds out when it is uploaded.

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderValue};

use super::layout::{
    CONFIG, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, INDEX, LAYER, MANIFEST, check_config, component_of, quoted,
    size_max,
};
use super::session::{Ask, Session, Wanted};
use super::{OciError, Sha256, WasmWorld, referrers};

/// The registry's own word for the digest of what it answers with.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// An artefact that was pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The component.
    pub component: Bytes,
    /// What names it for good: the digest of its manifest.
    pub digest: Sha256,
    /// What its config says of it.
    pub(crate) world: WasmWorld,
    /// Sigstore bundles that refer to it, as they are.
    pub signatures: Vec<Bytes>,
}

/// Pulls an artefact. `came` is told how much of how much of the component is here.
pub(crate) async fn pull(session: &mut Session, came: &(dyn Fn(u64, u64) + Sync)) -> Result<Pulled, OciError> {
    let reference = session.reference().clone();
    let (media_type, bytes) = manifest(session, &reference.wanted()).await?;
    let digest = Sha256::of(&bytes);
    if reference.digest().is_some_and(|wanted| wanted != digest) {
        return Err(session.unverified("manifest"));
    }
    let (layer, config) = component_of(&media_type, &bytes).map_err(|reason| session.not_plugin(reason))?;
    let config_bytes = blob(session, &config, "config", &|_| ()).await?;
    let world = check_config(&config_bytes, &layer.digest).map_err(|reason| session.not_plugin(reason))?;
    let size = layer.size;
    let component = blob(session, &layer, "component", &|piece| came(piece, size)).await?;
    let signatures = referrers::signatures(session, digest).await?;
    Ok(Pulled { component, digest, world, signatures })
}

/// A manifest's type and bytes. They have the digest that the registry says they have, if it says one.
pub(super) async fn manifest(session: &mut Session, wanted: &str) -> Result<(String, Bytes), OciError> {
    let accept = [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ");
    let accept = HeaderValue::from_str(&accept).ok();
    let ask = Ask { accept, ..Ask::get(session.url(&format!("manifests/{wanted}"))?) };
    let answer = session.good(&ask).await?;
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let media_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
    // Of another algorithm it says nothing here.
    let said: Option<Sha256> = header(CONTENT_DIGEST).and_then(|digest| digest.parse().ok());
    let (limit, max) = size_max(false);
    let bytes = session.read(answer, Wanted { what: "manifest", limit, max }, &|_| ()).await?;
    if said.is_some_and(|said| said != Sha256::of(&bytes)) {
        return Err(session.unverified("manifest"));
    }
    Ok((media_type, bytes))
}

/// A blob as its descriptor says it is: of this length and digest, and no longer than its kind may be.
pub(super) async fn blob(
    session: &mut Session,
    descriptor: &Descriptor,
    what: &'static str,
    came: &(dyn Fn(u64) + Sync),
) -> Result<Bytes, OciError> {
    let (limit, max) = size_max(descriptor.media_type == LAYER);
    if descriptor.size > max {
        return Err(session.too_large(Wanted { what, limit, max }));
    }
    let Ok(digest) = descriptor.digest.parse::<Sha256>() else {
        let reason = format!("its {what} has a digest that is not sha256: `{}`", quoted(&descriptor.digest));
        return Err(session.not_plugin(reason));
    };
    let answer = session.good(&Ask::get(session.url(&format!("blobs/{digest}"))?)).await?;
    // What the manifest said is the limit: not one byte more is kept.
    let wanted = Wanted { what, limit: "size", max: descriptor.size };
    let bytes = session.read(answer, wanted, came).await?;
    if bytes.len() as u64 != descriptor.size || Sha256::of(&bytes) != digest {
        return Err(session.unverified(if descriptor.media_type == CONFIG { "config" } else { what }));
    }
    Ok(bytes)
}
