//! The host's one error: what went wrong, whose fault it is, and the stable word for programs. Each part of the host has
//! an enum of its own; they meet here. Not here: HTTP status codes, which `http/error.rs` derives from the blame.

use std::sync::Arc;
use std::time::Duration;

use types::{Blame, PlanError};

use crate::adapters::{AdapterError, PluginSignatureError};
use crate::artifacts::ArtifactError;
use crate::config::ConfigError;
use crate::invoke::HandOverError;
use crate::keyvalue::KeyValueError;
use crate::oci::OciError;
use crate::quotas::QuotaError;
use crate::receipt::ReceiptError;
use crate::registry::RegistryError;
use crate::revocation::RevocationError;
use crate::secrets::SecretError;
use crate::store::StoreError;
use crate::tenants::TenantError;

/// An error that may be shown to the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request that makes no sense.
    #[error("{message}")]
    Invalid {
        /// A stable word.
        code: &'static str,
        /// For people; says what to do.
        message: String,
        /// The field that is wrong.
        param: Option<String>,
    },
    /// No key, or one that does not hold.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// A key without the right.
    #[error("this key does not have the right `{0}`")]
    Forbidden(&'static str),
    /// Not there, or not the caller's: one answer for both.
    #[error("{0} not found")]
    NotFound(String),
    /// Too large.
    #[error("the body is larger than the limit {limit} of {max} bytes")]
    TooLarge {
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: usize,
    },
    /// A body that came byte by byte.
    #[error("the body came too slowly: send it at once, or in larger pieces")]
    TooSlow,
    /// The plugin said no.
    #[error("{reason}")]
    Rejected {
        /// The plugin's own word.
        code: String,
        /// The plugin's own reason.
        reason: String,
    },
    /// The base is still loading, or the host is draining.
    #[error("{0}")]
    Unavailable(&'static str),
    /// The device that computes failed for good.
    #[error("the device that computes has failed ({0}); restart the host")]
    DeviceLost(String),
    /// A plan that did not pass; `by_caller` if the caller wrote it and not a plugin.
    #[error("{source}")]
    Plan {
        /// What is wrong.
        source: PlanError,
        /// Who wrote it.
        by_caller: bool,
    },
    /// From one function to another.
    #[error(transparent)]
    HandOver(#[from] HandOverError),
    /// What an answer was to match; `by_caller` if the caller wrote it and not a plugin.
    #[error("{source}")]
    Constraint {
        /// What is wrong.
        source: Arc<model::ConstraintError>,
        /// Who wrote it.
        by_caller: bool,
    },
    /// The sandbox.
    #[error(transparent)]
    Plugin(#[from] plugin::PluginError),
    /// The engine.
    #[error(transparent)]
    Submit(#[from] engine::SubmitError),
    /// Nothing could be answered in time.
    #[error("the deadline passed before the adapters were there")]
    Deadline,
    /// Something that a plugin waited for, or the plugin, was not there in time.
    #[error("the deadline passed before {0}")]
    Late(&'static str),
    /// A cold policy: the adapters are not in memory, and nothing else is to be served.
    #[error("{adapters} of the adapters are not in memory yet; they are being loaded, try again")]
    Cold {
        /// How many.
        adapters: usize,
        /// When they should be there.
        retry_after: Duration,
    },
    /// The engine or the runner failed in mid-stream.
    #[error("generation failed: {0}")]
    Generation(#[from] engine::GenerationError),
    /// The base.
    #[error(transparent)]
    Model(#[from] model::ModelError),
    /// Adapters.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Blobs.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Functions.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What may not be used any more.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// Tenants and keys.
    #[error(transparent)]
    Tenant(#[from] TenantError),
    /// Quotas.
    #[error(transparent)]
    Quota(#[from] QuotaError),
    /// Secrets.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Key-value buckets.
    #[error(transparent)]
    KeyValue(#[from] KeyValueError),
    /// Signatures of plugins.
    #[error(transparent)]
    PluginSignature(#[from] PluginSignatureError),
    /// Registries of plugins.
    #[error(transparent)]
    Oci(#[from] OciError),
    /// Pointers.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Receipts.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Starting or running the host.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
    /// Any of the others, after a receipt was made.
    #[error("{source}")]
    WithReceipt {
        /// The receipt's identifier; of several receipts all, separated by `, `.
        receipt: String,
        /// What went wrong.
        source: Box<Error>,
    },
}

impl Error {
    /// A request that makes no sense, with the field that is wrong.
    pub fn invalid(code: &'static str, param: &str, message: impl Into<String>) -> Self {
        let param = (!param.is_empty()).then(|| param.to_owned());
        Self::Invalid { code, message: message.into(), param }
    }

    /// An I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// A stable word for programs.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Invalid { code, .. } => code,
            Self::Unauthorized(_) => "unauthorized",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound(_) => "not_found",
            Self::TooLarge { .. } => "body_too_large",
            Self::TooSlow => "body_timeout",
            Self::Rejected { code, .. } => code,
            Self::Unavailable(_) => "unavailable",
            Self::DeviceLost(_) => "device_lost",
            Self::Plan { source, .. } => source.code(),
            Self::HandOver(error) => error.code(),
            Self::Constraint { source, .. } => source.code(),
            Self::Plugin(error) => error.code(),
            Self::Submit(error) => error.code(),
            Self::Deadline | Self::Late(_) => "deadline_exceeded",
            Self::Cold { .. } => "adapter_cold",
            Self::Generation(error) => error.code(),
            Self::Model(error) => error.code(),
            Self::Adapter(error) => error.code(),
            Self::Artifact(error) => error.code(),
            Self::Registry(error) => error.code(),
            Self::Revocation(error) => error.code(),
            Self::Tenant(error) => error.code(),
            Self::Quota(error) => error.code(),
            Self::Secret(error) => error.code(),
            Self::KeyValue(error) => error.code(),
            Self::Oci(error) => error.code(),
            Self::PluginSignature(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Receipt(error) => error.code(),
            Self::Config(error) => error.code(),
            Self::Io { .. } | Self::Internal(_) => "internal",
            Self::WithReceipt { source, .. } => source.code(),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Invalid { .. }
            | Self::Unauthorized(_)
            | Self::Forbidden(_)
            | Self::NotFound(_)
            | Self::TooLarge { .. }
            | Self::TooSlow
            | Self::Rejected { .. } => Blame::Caller,
            Self::Unavailable(_) | Self::DeviceLost(_) | Self::Deadline | Self::Late(_) | Self::Cold { .. } => {
                Blame::Capacity
            }
            Self::Plan { by_caller: true, .. } => Blame::Caller,
            Self::Plan { source, .. } => source.blame(),
            Self::HandOver(error) => error.blame(),
            Self::Constraint { source, by_caller } => match source.blame() {
                Blame::Caller if !by_caller => Blame::Function,
                blame => blame,
            },
            Self::Plugin(error) => error.blame(),
            Self::Submit(error) => error.blame(),
            Self::Model(error) => error.blame(),
            Self::Adapter(error) => error.blame(),
            Self::Artifact(error) => error.blame(),
            Self::Registry(error) => error.blame(),
            Self::Revocation(error) => error.blame(),
            Self::Tenant(error) => error.blame(),
            Self::Quota(error) => error.blame(),
            Self::Secret(error) => error.blame(),
            Self::KeyValue(error) => error.blame(),
            Self::Oci(error) => error.blame(),
            Self::PluginSignature(error) => error.blame(),
            Self::Store(error) => error.blame(),
            Self::Receipt(error) => error.blame(),
            Self::Config(error) => error.blame(),
            Self::Generation(error) => error.blame(),
            Self::Io { .. } | Self::Internal(_) => Blame::Host,
            Self::WithReceipt { source, .. } => source.blame(),
        }
    }

    /// The field of the request that is wrong, if one is.
    #[must_use]
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::Plan { source, by_caller: true } => plan_field(source),
            Self::Model(model::ModelError::ChatTemplateLacks("tools")) => Some("tools"),
            Self::Model(model::ModelError::ChatTemplate(_) | model::ModelError::ChatTemplateLacks(_)) => {
                Some("messages")
            }
            Self::WithReceipt { source, .. } => source.param(),
            _ => None,
        }
    }

    /// How long to wait before trying again, where that may help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let known = match self {
            Self::Submit(error) => error.retry_after(),
            Self::Cold { retry_after, .. } | Self::Quota(QuotaError::UsedUp { retry_after, .. }) => Some(*retry_after),
            Self::WithReceipt { source, .. } => source.retry_after(),
            _ => None,
        };
        known.or_else(|| (self.blame() == Blame::Capacity).then_some(Duration::from_secs(1)))
    }

    /// The message as the caller may see it: a fault of the host is logged, not told.
    #[must_use]
    pub fn public_message(&self) -> String {
        match self.blame() {
            Blame::Host => "the host failed; its log has the reason under this request id".into(),
            _ => self.to_string(),
        }
    }
}

/// The field of OpenAI's bodies that a caller's own plan took a value from, where the error names it.
fn plan_field(error: &PlanError) -> Option<&'static str> {
    match error {
        PlanError::AdapterNotGranted(_) => Some("adapters"),
        PlanError::Unsupported(what) | PlanError::OutOfRange { what, .. } | PlanError::OverLimit { what, .. } => {
            FIELDS.into_iter().find(|(of_plan, _)| of_plan == what).map(|(_, field)| field)
        }
        PlanError::UnknownTemplate(_) => None,
    }
}

/// What a plan's check calls a value, and the field that it came from.
const FIELDS: [(&str, &str); 22] = [
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("repetition_penalty", "repetition_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
    ("logprobs", "logprobs"),
    ("the number of tokens in logit_bias", "logit_bias"),
    ("a token of logit_bias", "logit_bias"),
    ("a bias of logit_bias", "logit_bias"),
    ("max_tokens", "max_tokens"),
    ("the token budget", "max_tokens"),
    ("ignore_eos", "ignore_eos"),
    ("the number of stop conditions", "stop"),
    ("a stop string's length", "stop"),
    ("the number of composition entries", "adapters"),
    ("an adapter's weight", "adapters"),
    ("the messages' length in bytes", "messages"),
    ("the prompt's length", "prompt"),
    ("the prompt's length in bytes", "prompt"),
    ("the prompt's length in tokens", "prompt"),
    ("the input's length in bytes, as JSON,", "input"),
];
