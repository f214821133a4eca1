//! The imports as the harness answers them, in the shape of the generated ones. Not here: agents, buckets and the web, which have
//! files of their own.

pub(crate) mod catalog {
    use crate::testing::STATE;
    use crate::{Adapter, HostError};

    pub(crate) fn adapters() -> Result<Vec<Adapter>, HostError> {
        Ok(STATE.with_borrow(|state| state.adapters.clone()))
    }

    pub(crate) fn prefetch(adapters: &[String]) -> Result<(), HostError> {
        STATE.with_borrow_mut(|state| {
            let is_granted = |name: &&String| {
                state.adapters.iter().any(|adapter| adapter.alias == **name || adapter.digest == **name)
            };
            if let Some(name) = adapters.iter().find(|name| !is_granted(name)) {
                return Err(HostError::Denied(name.clone()));
            }
            state.prefetched.extend_from_slice(adapters);
            Ok(())
        })
    }
}

pub(crate) mod log {
    use crate::bindings::tenon::plugin::log::Level;
    use crate::testing::STATE;

    pub(crate) fn write(level: Level, message: &str) {
        STATE.with_borrow_mut(|state| state.lines.push((level, message.to_owned())));
    }
}

pub(crate) mod clock {
    use crate::testing::STATE;

    pub(crate) fn elapsed_ms() -> u32 {
        STATE.with_borrow(|state| state.elapsed_ms / 10 * 10)
    }

    pub(crate) fn unix_seconds() -> f64 {
        1_767_225_600.0 + f64::from(elapsed_ms()) / 1000.0
    }
}

pub(crate) mod random {
    use crate::HostError;
    use crate::testing::STATE;

    pub(crate) fn bytes(count: u32) -> Result<Vec<u8>, HostError> {
        if count > 65_536 {
            return Err(HostError::Limit("random_bytes_max".to_owned()));
        }
        Ok((0..count).map(|_| next().to_le_bytes()[3]).collect())
    }

    pub(crate) fn next() -> u32 {
        STATE.with_borrow_mut(|state| {
            state.random = state.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.random
        })
    }
}

pub(crate) mod secrets {
    use crate::HostError;
    use crate::testing::STATE;

    pub(crate) fn get(name: &str) -> Result<String, HostError> {
        let found = STATE.with_borrow(|state| state.secrets.iter().find(|(key, _)| key == name).cloned());
        found.map(|(_, value)| value).ok_or_else(|| HostError::Denied(format!("the secret `{name}`")))
    }
}

pub(crate) mod tools {
    use crate::testing::{STATE, ToolCall};
    use crate::{HostError, Tool, ToolOutcome};

    pub(crate) fn list(server: &str) -> Result<Vec<Tool>, HostError> {
        let tools = STATE.with_borrow(|state| state.tools.clone());
        let found: Vec<Tool> = tools.into_iter().filter(|(of, ..)| of == server).map(|(_, tool, _)| tool).collect();
        if found.is_empty() { Err(HostError::Denied(format!("the tool server `{server}`"))) } else { Ok(found) }
    }

    pub(crate) fn call(server: &str, tool: &str, arguments: &str) -> Result<ToolOutcome, HostError> {
        STATE.with_borrow_mut(|state| {
            let found = state.tools.iter().find(|(of, granted, _)| of == server && granted.name == tool).cloned();
            let (.., outcome) = found.ok_or_else(|| HostError::Denied(format!("the tool `{tool}` of `{server}`")))?;
            let (server, tool, arguments) = (server.to_owned(), tool.to_owned(), arguments.to_owned());
            state.tool_calls.push(ToolCall { server, tool, arguments });
            Ok(outcome)
        })
    }
}

/// A stand-in: one token for each byte.
pub(crate) mod tokenizer {
    use crate::HostError;

    pub(crate) fn encode(text: &str) -> Result<Vec<u32>, HostError> {
        Ok(text.bytes().map(u32::from).collect())
    }

    pub(crate) fn decode(tokens: &[u32]) -> Result<String, HostError> {
        let byte = |token: &u32| u8::try_from(*token).map_err(|_| HostError::Failed(format!("the token {token}")));
        let bytes = tokens.iter().map(byte).collect::<Result<Vec<_>, _>>()?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn count(text: &str) -> Result<u32, HostError> {
        Ok(u32::try_from(text.len()).unwrap_or(u32::MAX))
    }
}

pub(crate) mod config {
    use crate::testing::STATE;

    pub(crate) fn get(name: &str) -> Option<String> {
        all().into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub(crate) fn all() -> Vec<(String, String)> {
        STATE.with_borrow(|state| state.config.clone())
    }
}
