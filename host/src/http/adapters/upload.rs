//! The two files of a PEFT folder out of a `multipart/form-data` body, however its parts are named. Not here: what the
//! files mean.

use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use model::{CONTAINER_PREFIX_BYTES, refuse_container, refuse_container_name};

use super::{adapter_bytes_max, claims};
use crate::adapters::{AdapterError, AdapterFiles, CONFIG, Claims, SIGNATURE, SIGNATURE_BYTES_MAX, WEIGHTS};
use crate::error::Error;
use crate::http::{App, pace};

/// A PEFT configuration is a page of JSON.
const CONFIG_BYTES_MAX: usize = 1 << 20;
/// A digest is 64 digits, an identifier of a licence no longer.
const CLAIM_BYTES_MAX: usize = 1 << 10;
/// Files that trainers leave beside the two, and that say nothing about what the adapter computes. A tokenizer or a chat
/// template is not among them: an adapter that needs its own is another thing here than where it was trained.
const IGNORED: [&str; 11] = [
    ".gitattributes",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "README.md",
    "all_results.json",
    "train_results.json",
    "trainer_state.json",
    "training.json",
    "training_args.bin",
];

/// An adapter as it was sent.
pub(super) struct Upload {
    pub(super) files: AdapterFiles,
    /// What the caller says of it.
    pub(super) claims: Claims,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Config,
    Weights,
    Signature,
    Digest,
    License,
    Ignored,
}

impl Part {
    /// What a part is, by its file name where that tells, else by its field name.
    fn of(field: &str, file: &str) -> Result<Self, Error> {
        let file = file.rsplit(['/', '\\']).next().unwrap_or_default();
        let by_file = match file {
            CONFIG => Some(Self::Config),
            WEIGHTS => Some(Self::Weights),
            SIGNATURE => Some(Self::Signature),
            _ => None,
        };
        let by_field = match field {
            CONFIG | "adapter_config" | "config" => Some(Self::Config),
            WEIGHTS | "adapter_model" | "adapter_weights" | "model" | "weights" => Some(Self::Weights),
            SIGNATURE | "signature" => Some(Self::Signature),
            "digest" => Some(Self::Digest),
            "license" => Some(Self::License),
            _ => None,
        };
        match (by_file, by_field) {
            (Some(one), Some(other)) if one != other => {
                Err(refused(&format!("part `{}` holds a file that is named `{}`", short(field), short(file))))
            }
            (Some(part), _) | (None, Some(part)) => Ok(part),
            (None, None) if IGNORED.contains(&file) || IGNORED.contains(&field) => Ok(Self::Ignored),
            (None, None) => {
                let name = if file.is_empty() { field } else { file };
                Err(refused(&format!("no use is known for part `{}`", short(name))))
            }
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Config => CONFIG,
            Self::Weights => WEIGHTS,
            Self::Signature => SIGNATURE,
            Self::Digest => "digest",
            Self::License => "license",
            Self::Ignored => "",
        }
    }
}

fn short(name: &str) -> String {
    name.chars().take(96).collect()
}

fn refused(what: &str) -> Error {
    let message = format!(
        "{what}: send `{CONFIG}` and `{WEIGHTS}`, named so as parts or as files, and `{SIGNATURE}`, `digest` or `license` \
         if you like"
    );
    Error::invalid("invalid_request", "", message)
}

/// Reads the parts to the end.
pub(super) async fn read(request: Request<Body>, app: &App) -> Result<Upload, Error> {
    let bytes_max = adapter_bytes_max(app.limits());
    let mut parts = Multipart::from_request(request, app)
        .await
        .map_err(|rejection| Error::invalid("invalid_request", "", rejection.body_text()))?;
    let (mut config, mut weights, mut signature) = (None, None, None);
    let (mut expected, mut license) = (None, None);
    while let Some(field) = parts.next_field().await.map_err(|error| broken(&error, bytes_max))? {
        let (name, file) = (field.name().unwrap_or_default(), field.file_name().unwrap_or_default());
        let part = match Part::of(name, file) {
            Ok(part) => part,
            // By its name or its first bytes it may be an archive or a pickle: then that is what is said of it.
            Err(unknown) => {
                refuse_container_name(if file.is_empty() { name } else { file }).map_err(AdapterError::from)?;
                refuse_container_part(field).await?;
                return Err(unknown);
            }
        };
        let (place, limit, max) = match part {
            Part::Config => (&mut config, "adapter_config_bytes_max", CONFIG_BYTES_MAX),
            Part::Weights => (&mut weights, "adapter_bytes_max", bytes_max),
            Part::Signature => (&mut signature, "adapter_signature_bytes_max", SIGNATURE_BYTES_MAX),
            Part::Digest => (&mut expected, "digest_bytes_max", CLAIM_BYTES_MAX),
            Part::License => (&mut license, "license_bytes_max", CLAIM_BYTES_MAX),
            // Ignored, but what is no text is not kept quiet about.
            Part::Ignored => {
                refuse_container_part(field).await?;
                continue;
            }
        };
        if place.replace(bounded(field, limit, max, bytes_max).await?).is_some() {
            return Err(refused(&format!("`{}` is there twice", part.name())));
        }
    }
    let missing = |name: &str| refused(&format!("`{name}` is missing"));
    let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).trim().to_owned();
    let claims = claims(expected.map(text).as_deref(), license.map(text).as_deref())?;
    Ok(Upload {
        files: AdapterFiles {
            config: config.ok_or_else(|| missing(CONFIG))?,
            weights: weights.ok_or_else(|| missing(WEIGHTS))?,
            signature,
        },
        claims,
    })
}

async fn refuse_container_part(mut field: Field<'_>) -> Result<(), Error> {
    let mut prefix = BytesMut::new();
    while let Ok(Some(chunk)) = field.chunk().await {
        prefix.extend_from_slice(&chunk);
        if prefix.len() >= CONTAINER_PREFIX_BYTES {
            break;
        }
    }
    Ok(refuse_container(&prefix, prefix.len() as u64).map_err(AdapterError::from)?)
}

async fn bounded(mut field: Field<'_>, limit: &'static str, max: usize, bytes_max: usize) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| broken(&error, bytes_max))? {
        if bytes.len() + chunk.len() > max {
            return Err(Error::TooLarge { limit, max });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

fn broken(error: &MultipartError, bytes_max: usize) -> Error {
    pace::refusal(error).unwrap_or_else(|| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge { limit: "adapter_bytes_max", max: bytes_max },
        _ => Error::invalid("invalid_request", "", format!("multipart body: {}", error.body_text())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_known_by_field_or_file_name() {
        let cases = [
            ("adapter_config.json", "", Part::Config),
            ("config", "c.json", Part::Config),
            ("file", "adapter_config.json", Part::Config),
            ("files[]", "iso-date/adapter_config.json", Part::Config),
            ("", "C:\\lora\\adapter_model.safetensors", Part::Weights),
            ("weights", "blob", Part::Weights),
            ("adapter_model.safetensors", "adapter_model.safetensors", Part::Weights),
            ("digest", "", Part::Digest),
            ("signature", "blob", Part::Signature),
            ("files[]", "iso-date/model.sig", Part::Signature),
            ("license", "", Part::License),
            ("LICENSE", "LICENSE", Part::Ignored),
            ("files", "README.md", Part::Ignored),
            ("training.json", "", Part::Ignored),
        ];
        for (field, file, part) in cases {
            assert_eq!(Part::of(field, file).expect("known"), part, "{field} {file}");
        }
    }

    #[test]
    fn what_is_ambiguous_or_would_matter_is_refused() {
        let cases = [
            ("config", "adapter_model.safetensors"),
            ("digest", "adapter_config.json"),
            ("weights", "model.sig"),
            ("file", "adapter_model.bin"),
            ("files", "chat_template.jinja"),
            ("file", ""),
            ("", ""),
        ];
        for (field, file) in cases {
            let error = Part::of(field, file).expect_err("refused").to_string();
            assert!(error.contains(CONFIG) && error.contains(WEIGHTS), "it says what to send: {error}");
        }
    }
}
