//! What a hostile guest is: a component, what it is granted, what it is asked, and the one thing that may come of it. Not
//! here: which there are.

use serde_json::{Value, json};

use crate::bombs::Bomb;
use crate::wat::{Encoding, component, repository};

/// What a guest is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the name of its class")]
pub enum Class {
    Cpu,
    Memory,
    Tables,
    Handles,
    Recursion,
    HostCalls,
    HeadersAndLists,
    Strings,
    Plans,
    PromptsAndLogs,
    Ssrf,
    Cancel,
    BulkMemory,
    CompileBombs,
    Canaries,
    Agents,
}

/// Where a component comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// `tests/fixtures/guests`, built of a crate in `plugins/`.
    Fixture(&'static str),
    /// `plugins/adversarial-wat`.
    Wat(&'static str, Encoding),
    /// Put together byte by byte.
    Bomb(Bomb),
}

/// Whose function it is: some look for what another tenant left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// Where most of them are.
    First,
    /// Another one.
    Second,
}

/// What is done with it.
#[derive(Clone, Debug)]
pub enum Act {
    /// A request with this body, whole.
    Invoke(Value),
    /// The same as a stream that is left after so many milliseconds.
    Leave(Value, u64),
    /// The component is uploaded, again and again, and invoked only if that is ever allowed.
    Upload,
}

/// What must come of it, each time.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// An error of the function's: status 502, this code, and this in its message.
    Fails(&'static str, &'static str),
    /// An answer with exactly this text.
    Answers(&'static str),
    /// An answer in whose text this is.
    Says(&'static str),
    /// An answer, whatever it is.
    Served,
    /// The upload is refused with one of these codes.
    Refused(&'static [&'static str]),
    /// The caller left: nothing is told to anyone.
    Left,
}

/// One hostile guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its own, and its function's.
    pub name: String,
    /// What it is after.
    pub class: Class,
    /// Its component.
    pub source: Source,
    /// Whose it is.
    pub tenant: Tenant,
    /// The manifest, but for the component.
    pub manifest: Value,
    /// What is done with it.
    pub act: Act,
    /// What must come of that.
    pub outcome: Outcome,
}

/// What came of a request or an upload.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// HTTP's.
    pub status: u16,
    /// The answer's JSON.
    pub body: &'a Value,
}

impl Source {
    /// The component's bytes.
    ///
    /// # Errors
    /// If it is missing or cannot be made.
    pub fn component(self) -> Result<Vec<u8>, String> {
        match self {
            Self::Fixture(name) => fixture(name),
            Self::Wat(name, encoding) => component(name, encoding),
            Self::Bomb(bomb) => bomb.component(&fixture("echo")?),
        }
    }
}

fn fixture(name: &str) -> Result<Vec<u8>, String> {
    let path = repository().join("tests/fixtures/guests").join(format!("{name}.wasm"));
    std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
}

impl Guest {
    /// A guest of the first tenant without grants, asked with a text.
    pub(crate) fn new(class: Class, name: impl Into<String>, source: Source, input: &str, outcome: Outcome) -> Self {
        let act = Act::Invoke(json!({"input": input, "max_tokens": 4}));
        Self { name: name.into(), class, source, tenant: Tenant::First, manifest: json!({}), act, outcome }
    }

    /// With these limits in its manifest: those that it is to meet, so that it meets no other before.
    pub(crate) fn limits(mut self, limits: Value) -> Self {
        self.manifest["limits"] = limits;
        self
    }

    /// With these grants in its manifest.
    pub(crate) fn grants(mut self, grants: Value) -> Self {
        self.manifest["grants"] = grants;
        self
    }

    /// With these adapters in its manifest.
    pub(crate) fn adapters(mut self, adapters: &[&str]) -> Self {
        self.manifest["adapters"] = json!(adapters);
        self
    }

    /// Asked for more tokens, or fewer.
    pub(crate) fn tokens(mut self, tokens: Option<u32>) -> Self {
        if let Act::Invoke(body) = &mut self.act {
            body["max_tokens"] = json!(tokens);
        }
        self
    }

    /// As another tenant's.
    pub(crate) fn of(mut self, tenant: Tenant) -> Self {
        self.tenant = tenant;
        self
    }

    /// Done so.
    pub(crate) fn act(mut self, act: Act) -> Self {
        self.act = act;
        self
    }

    /// Whether it keeps a compiler at work for as long as that may take.
    #[must_use]
    pub fn is_long(&self) -> bool {
        matches!(self.outcome, Outcome::Refused(codes) if codes.contains(&"plugin_compile_failed"))
    }

    /// Whether that is what must come of it; what else, if not.
    ///
    /// # Errors
    /// What was expected, and what was seen.
    pub fn judge(&self, seen: Seen<'_>) -> Result<(), String> {
        let Seen { status, body } = seen;
        let code = body.pointer("/error/code").and_then(Value::as_str).unwrap_or_default();
        let message = body.pointer("/error/message").and_then(Value::as_str).unwrap_or_default();
        let output = body.get("output").and_then(Value::as_str);
        let is_right = match &self.outcome {
            Outcome::Fails(expected, says) => status == 502 && code == *expected && message.contains(says),
            Outcome::Answers(text) => status == 200 && output == Some(*text),
            Outcome::Says(text) => status == 200 && output.is_some_and(|output| output.contains(text)),
            Outcome::Served => status == 200 && output.is_some(),
            Outcome::Refused(codes) => (400..504).contains(&status) && codes.contains(&code),
            Outcome::Left => true,
        };
        if is_right {
            return Ok(());
        }
        let shown: String = body.to_string().chars().take(400).collect();
        Err(format!("{}: {:?} was expected, {status} {shown} came", self.name, self.outcome))
    }
}
