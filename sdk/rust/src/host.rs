//! What the host lends to a plugin. Natively the calls go to the harness of [`crate::testing`].

#[cfg(not(target_arch = "wasm32"))]
use crate::testing::fake as wit;

#[cfg(target_arch = "wasm32")]
use crate::bindings::tenon::plugin as wit;

/// The adapters that this function may use.
pub mod catalog {
    use super::wit;
    use crate::{Adapter, Result};

    /// Every adapter that is granted to this function.
    pub fn adapters() -> Result<Vec<Adapter>> {
        Ok(wit::catalog::adapters()?)
    }

    /// Whether an adapter of this alias is granted.
    pub fn has(alias: &str) -> Result<bool> {
        Ok(adapters()?.iter().any(|adapter| adapter.alias == alias))
    }

    /// Says that these will be needed soon. A hint: nothing waits for it.
    pub fn prefetch(adapters: &[String]) -> Result<()> {
        Ok(wit::catalog::prefetch(adapters)?)
    }
}

/// Lines for the function's log; what goes over the limit on bytes is dropped.
pub mod log {
    use super::wit;
    use crate::bindings::tenon::plugin::log::Level;

    /// For the plugin's author.
    pub fn debug(message: &str) {
        wit::log::write(Level::Debug, message);
    }

    /// Ordinary.
    pub fn info(message: &str) {
        wit::log::write(Level::Info, message);
    }

    /// Worth a look.
    pub fn warn(message: &str) {
        wit::log::write(Level::Warn, message);
    }

    /// Something failed.
    pub fn error(message: &str) {
        wit::log::write(Level::Error, message);
    }
}

/// A coarse clock.
pub mod clock {
    use super::wit;

    /// Milliseconds since this request began, in steps of 10.
    pub fn elapsed_ms() -> u32 {
        wit::clock::elapsed_ms()
    }

    /// Seconds since 1970-01-01 UTC.
    pub fn unix_seconds() -> f64 {
        wit::clock::unix_seconds()
    }
}

/// Random numbers, repeatable from the seed in the receipt.
pub mod random {
    use super::wit;
    use crate::Result;

    /// Random bytes.
    pub fn bytes(count: u32) -> Result<Vec<u8>> {
        Ok(wit::random::bytes(count)?)
    }

    /// Uniform over all values.
    pub fn next() -> u32 {
        wit::random::next()
    }
}

/// The function's configuration, from its manifest.
pub mod config {
    use super::wit;
    use crate::{Error, Result};

    /// The value of this name, if there is one.
    pub fn get(name: &str) -> Option<String> {
        wit::config::get(name)
    }

    /// The value of this name, or an error that names it.
    pub fn require(name: &str) -> Result<String> {
        get(name).ok_or_else(|| Error(format!("the function's configuration has no `{name}`; set it in the manifest")))
    }

    /// Every name and value.
    pub fn all() -> Vec<(String, String)> {
        wit::config::all()
    }
}

/// The tenant's secrets that the manifest grants (`grants.secrets`).
pub mod secrets {
    use super::wit;
    use crate::Result;

    /// What the secret of this name holds.
    pub fn get(name: &str) -> Result<String> {
        Ok(wit::secrets::get(name)?)
    }
}

/// Tools of MCP servers that the manifest grants (`grants.tools`). The host holds the addresses and the credentials.
pub mod tools {
    use super::wit;
    use crate::{Result, Tool, ToolOutcome};

    /// The granted tools of a server, by the name that the manifest gives it.
    pub fn list(server: &str) -> Result<Vec<Tool>> {
        Ok(wit::tools::list(server)?)
    }

    /// Calls one. `arguments` is a JSON object, or empty for none. That a tool fails is an outcome, no error.
    pub fn call(server: &str, tool: &str, arguments: &str) -> Result<ToolOutcome> {
        Ok(wit::tools::call(server, tool, arguments)?)
    }
}

/// The base's tokenizer.
pub mod tokenizer {
    use super::wit;
    use crate::Result;

    /// The tokens of a text.
    pub fn encode(text: &str) -> Result<Vec<u32>> {
        Ok(wit::tokenizer::encode(text)?)
    }

    /// The text of tokens.
    pub fn decode(tokens: &[u32]) -> Result<String> {
        Ok(wit::tokenizer::decode(tokens)?)
    }

    /// How many tokens a text has.
    pub fn count(text: &str) -> Result<u32> {
        Ok(wit::tokenizer::count(text)?)
    }
}
