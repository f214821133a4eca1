//! Bodies that are read as bytes and so have no type of their own: what the document says of them. Not here: bodies in
//! JSON, whose types are in `wire/` and `answers.rs`.
#![expect(dead_code, reason = "only their schemas are used")]

use utoipa::ToSchema;

/// A WebAssembly component as it is.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub(crate) struct Bytes(Vec<u8>);

/// A component with its signatures.
#[derive(ToSchema)]
pub(crate) struct PluginUpload {
    #[schema(value_type = String, format = Binary)]
    plugin: Vec<u8>,
    /// A Sigstore bundle over the component; the part may be there up to eight times.
    #[schema(value_type = Option<String>, format = Binary)]
    signature: Option<Vec<u8>>,
}

/// The files of a PEFT folder. The names of parts or of files say what they are.
#[derive(ToSchema)]
pub(crate) struct AdapterUpload {
    #[serde(rename = "adapter_config.json")]
    #[schema(value_type = String, format = Binary)]
    config: Vec<u8>,
    #[serde(rename = "adapter_model.safetensors")]
    #[schema(value_type = String, format = Binary)]
    weights: Vec<u8>,
    /// The bundle of OpenSSF Model Signing over the other two.
    #[serde(rename = "model.sig")]
    #[schema(value_type = Option<String>, format = Binary)]
    signature: Option<Vec<u8>>,
    /// What the adapter must turn out to be.
    digest: Option<String>,
    /// An SPDX identifier, such as `Apache-2.0`.
    license: Option<String>,
}

/// A server-sent event.
#[derive(ToSchema)]
pub(crate) struct Event {
    /// An object in JSON; the last event's is `[DONE]`, but on LoRAX's routes. An error in mid-stream is the error object.
    data: String,
}
