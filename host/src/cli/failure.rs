//! Why a command failed: as a line for people, as JSON for programs, as an exit code. Not here: the host's own errors.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::error::Error;

/// Exit code of a command that failed, and of a host that refused.
pub(crate) const FAILED: u8 = 1;
/// Exit code for arguments that make no sense.
pub(crate) const USAGE: u8 = 2;
/// Exit code for a host that could not be reached, or broke off.
pub(crate) const UNREACHABLE: u8 = 3;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Here.
    Local(Error),
    /// The host answered with an error.
    Remote(Box<Refusal>),
    /// The host did not answer, or not to the end.
    Unreachable(String),
    /// `tenon doctor` or `tenon replay` found something, and has said what.
    Unsound,
    /// Whoever read the output stopped.
    NobodyReads,
}

/// The host's error object.
#[derive(Debug, Default)]
pub(crate) struct Refusal {
    /// The HTTP status; `None` if the error came in mid-stream.
    pub(crate) status: Option<u16>,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    /// The request's id, which the host's log has too.
    pub(crate) request: Option<String>,
    pub(crate) receipt: Option<String>,
}

impl Refusal {
    /// Reads the error object of an answer.
    pub(crate) fn read(status: Option<u16>, body: &Value) -> Self {
        let field = |name: &str| body.pointer(&format!("/error/{name}")).and_then(Value::as_str).map(str::to_owned);
        Self {
            status,
            code: field("code").unwrap_or_else(|| "unknown".into()),
            message: field("message").unwrap_or_else(|| "no reason given".into()),
            param: field("param"),
            ..Self::default()
        }
    }
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Local(error.into())
    }
}

impl Failure {
    /// The exit code.
    pub(crate) fn exit(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Local(_) | Self::Remote(_) | Self::Unsound => FAILED,
            Self::Unreachable(_) => UNREACHABLE,
            Self::NobodyReads => 0,
        })
    }

    /// Says it on standard error.
    pub(crate) fn say(&self, as_json: bool) {
        if matches!(self, Self::Unsound | Self::NobodyReads) {
            return;
        }
        if as_json {
            eprintln!("{}", self.json());
        } else {
            eprintln!("tenon: {}", super::output::printable(&self.line()));
        }
    }

    fn line(&self) -> String {
        match self {
            Self::Local(error) => chain(error),
            Self::Remote(refusal) => {
                let status = refusal.status.map(|status| format!("{status} ")).unwrap_or_default();
                let request = refusal.request.as_ref().map(|id| format!(" ({id})")).unwrap_or_default();
                format!("the host answered {status}{}: {}{request}", refusal.code, refusal.message)
            }
            Self::Unreachable(reason) => reason.clone(),
            Self::Unsound | Self::NobodyReads => String::new(),
        }
    }

    fn json(&self) -> Value {
        let error = match self {
            Self::Local(error) => json!({"message": chain(error), "code": error.code(), "param": error.param()}),
            Self::Remote(refusal) => json!({
                "message": refusal.message, "code": refusal.code, "param": refusal.param, "status": refusal.status,
                "request": refusal.request, "receipt": refusal.receipt,
            }),
            Self::Unreachable(reason) => json!({"message": reason, "code": "unreachable", "param": null}),
            Self::Unsound | Self::NobodyReads => Value::Null,
        };
        json!({ "error": error })
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
