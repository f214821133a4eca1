//! What lies in a registry: the manifest of an artefact, the config of a WebAssembly component, the index of what refers to something.
//! Not here: how it comes from there (`pull`) and gets there (`push`).
//!
//! The same component has the same manifest, byte for byte, whoever pushes it and whenever: its `created` is a constant, so that a
//! tag which was pushed twice did not move, and a signature beside the first is beside the second too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{COMPONENT_BYTES_MAX, DOCUMENT_BYTES_MAX, Sha256};

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// What else may lie under a name; asked for, so that it can be said what it is.
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const CONFIG: &str = "application/vnd.wasm.config.v0+json";
pub(super) const LAYER: &str = "application/wasm";
pub(super) const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The config of what has none.
pub(super) const EMPTY_BYTES: &[u8] = b"{}";
/// A Sigstore bundle, as cosign attaches it too.
pub(super) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

const ARCHITECTURE: &str = "wasm";
/// A component, by the specification; `wasip1` is a core module.
const OS: &str = "wasip2";
const CREATED: &str = "1970-01-01T00:00:00Z";
/// Characters of what a stranger wrote that a message quotes.
const QUOTED_CHARS_MAX: usize = 96;

/// What a component imports and exports, by the names of the interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WasmWorld {
    #[serde(default)]
    pub(crate) exports: Vec<String>,
    #[serde(default)]
    pub(crate) imports: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    /// Elsewhere than in the registry; never asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) urls: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(super) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Sha256::of(bytes).to_string(),
            size: bytes.len() as u64,
            artifact_type: None,
            urls: None,
            annotations: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artifact_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    created: Option<String>,
    architecture: String,
    os: String,
    #[serde(default)]
    layer_digests: Vec<String>,
    component: Option<WasmWorld>,
}

/// The two documents of a component: manifest and config.
pub(super) fn documents(
    component: &[u8],
    world: &WasmWorld,
    annotations: BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<u8>), serde_json::Error> {
    let layer = Descriptor::of(LAYER, component);
    let config = serde_json::to_vec(&Config {
        created: Some(CREATED.to_owned()),
        architecture: ARCHITECTURE.to_owned(),
        os: OS.to_owned(),
        layer_digests: vec![layer.digest.clone()],
        component: Some(world.clone()),
    })?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(MANIFEST.to_owned()),
        artifact_type: None,
        config: Descriptor::of(CONFIG, &config),
        layers: vec![layer],
        subject: None,
        annotations,
    };
    Ok((serde_json::to_vec(&manifest)?, config))
}

/// The layer and the config of a component's manifest. `Err` says what it is instead.
pub(super) fn component_of(media_type: &str, bytes: &[u8]) -> Result<(Descriptor, Descriptor), String> {
    let kind = |media_type: &str| {
        matches!(media_type, INDEX | DOCKER_LIST)
            .then(|| "it is an index of several manifests; name the one that is meant by its digest".to_owned())
    };
    if let Some(reason) = kind(media_type) {
        return Err(reason);
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Said {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let broken = |error: serde_json::Error| format!("its manifest cannot be read ({})", quoted(&error.to_string()));
    let said: Said = serde_json::from_slice(bytes).map_err(broken)?;
    let is_index = said.manifests.map(|_| INDEX);
    let inner = is_index.or(said.media_type.as_deref()).unwrap_or(MANIFEST);
    if let Some(reason) = kind(inner) {
        return Err(reason);
    }
    if inner != MANIFEST {
        return Err(format!("its manifest is of type `{}`", quoted(inner)));
    }
    let Manifest { schema_version, config, layers, .. } = serde_json::from_slice(bytes).map_err(broken)?;
    if schema_version != 2 {
        return Err(format!("its manifest has version {schema_version}, and 2 is known"));
    }
    if config.media_type != CONFIG {
        return Err(format!("its config is of type `{}`, not `{CONFIG}`", quoted(&config.media_type)));
    }
    let count = layers.len();
    let Ok([layer]) = <[Descriptor; 1]>::try_from(layers) else {
        return Err(format!("it has {count} layers, not one"));
    };
    if layer.media_type != LAYER {
        return Err(format!("its layer is of type `{}`, not `{LAYER}`", quoted(&layer.media_type)));
    }
    if [&layer, &config].iter().any(|part| part.urls.as_ref().is_some_and(|urls| !urls.is_empty())) {
        return Err("it lies elsewhere than in the registry (`urls`)".to_owned());
    }
    Ok((layer, config))
}

/// Whether a config is that of a component with this layer. `Err` says why not.
pub(super) fn check_config(bytes: &[u8], layer: &str) -> Result<WasmWorld, String> {
    let config: Config = serde_json::from_slice(bytes)
        .map_err(|error| format!("its config cannot be read ({})", quoted(&error.to_string())))?;
    if config.architecture != ARCHITECTURE || config.os != OS {
        let (architecture, os) = (quoted(&config.architecture), quoted(&config.os));
        return Err(format!("it is for `{architecture}/{os}`, and a component is for `{ARCHITECTURE}/{OS}`"));
    }
    if config.layer_digests != [layer] {
        return Err("its config is of another layer".to_owned());
    }
    Ok(config.component.unwrap_or_default())
}

/// Sizes that are believed before anything is asked for: of a component, and of a document.
pub(super) const fn size_max(media_type_is_layer: bool) -> (&'static str, u64) {
    if media_type_is_layer {
        ("upload_bytes_max", COMPONENT_BYTES_MAX)
    } else {
        ("document_bytes_max", DOCUMENT_BYTES_MAX)
    }
}

/// As a message may hold it.
pub(super) fn quoted(text: &str) -> String {
    text.chars().take(QUOTED_CHARS_MAX).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn world() -> WasmWorld {
        WasmWorld { exports: vec!["tenon:plugin/hooks@0.1.0".into()], imports: vec!["tenon:plugin/log@0.1.0".into()] }
    }

    #[test]
    fn the_documents_are_those_of_the_specification_and_always_the_same() {
        let (manifest, config) = documents(b"component", &world(), BTreeMap::new()).expect("documents");
        assert_eq!(
            documents(b"component", &world(), BTreeMap::new()).expect("again"),
            (manifest.clone(), config.clone())
        );
        let digest = Sha256::of(b"component").to_string();
        let expected = json!({
            "created": "1970-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip2", "layerDigests": [digest],
            "component": {"exports": world().exports, "imports": world().imports},
        });
        assert_eq!(serde_json::from_slice::<Value>(&config).expect("JSON"), expected);
        let expected = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.wasm.config.v0+json", "digest": Sha256::of(&config).to_string(),
                "size": config.len(),
            },
            "layers": [{"mediaType": "application/wasm", "digest": digest, "size": 9}],
        });
        assert_eq!(serde_json::from_slice::<Value>(&manifest).expect("JSON"), expected);
        let (layer, of_config) = component_of(MANIFEST, &manifest).expect("a component");
        assert_eq!((layer.digest.as_str(), of_config.size), (digest.as_str(), config.len() as u64));
        assert_eq!(check_config(&config, &digest), Ok(world()));
    }

    #[test]
    fn what_is_something_else_is_said() {
        let (manifest, config) = documents(b"component", &world(), BTreeMap::new()).expect("documents");
        let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
        let with = |pointer: &str, value: Value| {
            let mut changed = manifest.clone();
            *changed.pointer_mut(pointer).expect(pointer) = value;
            component_of(MANIFEST, changed.to_string().as_bytes()).expect_err(pointer)
        };
        let layer = manifest["layers"][0].clone();
        for (reason, said) in [
            (with("/config/mediaType", json!("application/vnd.oci.image.config.v1+json")), "its config is of type"),
            (with("/layers/0/mediaType", json!("application/vnd.oci.image.layer.v1.tar+gzip")), "its layer is of type"),
            (with("/layers", json!([layer, layer])), "it has 2 layers"),
            (with("/layers", json!([])), "it has 0 layers"),
            (with("/schemaVersion", json!(1)), "version 1"),
            (with("/mediaType", json!("application/vnd.docker.distribution.manifest.v2+json")), "is of type"),
            (with("/mediaType", json!(INDEX)), "index of several"),
            (with("/layers/0/size", json!(-1)), "cannot be read"),
            (component_of(INDEX, b"{}").expect_err("an index"), "index of several"),
            (component_of(MANIFEST, br#"{"manifests": []}"#).expect_err("an index"), "index of several"),
            (component_of(MANIFEST, b"<html>").expect_err("a page"), "cannot be read"),
        ] {
            assert!(reason.contains(said), "{reason}");
        }
        let mut foreign = manifest.clone();
        foreign["layers"][0]["urls"] = json!(["http://169.254.169.254/"]);
        assert!(component_of(MANIFEST, foreign.to_string().as_bytes()).expect_err("foreign").contains("elsewhere"));
        let digest = Sha256::of(b"component").to_string();
        let other = Sha256::of(b"other").to_string();
        assert!(check_config(&config, &other).expect_err("another layer").contains("another layer"));
        let text = String::from_utf8(config).expect("UTF-8").replace("wasip2", "linux");
        assert!(check_config(text.as_bytes(), &digest).expect_err("an image").contains("wasm/linux"));
        assert!(check_config(b"{}", &digest).is_err());
    }
}
