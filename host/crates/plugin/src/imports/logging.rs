//! `wasi:logging`: lines for the function's log, within the same limits as `log`.

use crate::LogLevel;
use crate::bindings::standard::wasi::logging::logging::{Host, Level};
use crate::state::InstanceState;

impl Host for InstanceState {
    async fn log(&mut self, level: Level, context: String, message: String) -> wasmtime::Result<()> {
        self.count_host_call()?;
        let level = match level {
            Level::Trace | Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error | Level::Critical => LogLevel::Error,
        };
        let line = if context.is_empty() { message } else { format!("{context}: {message}") };
        self.log_line(level, &line);
        Ok(())
    }
}
