//! `log`: lines for the function's log, up to limits on bytes and on lines.

use std::sync::atomic::Ordering;

use crate::LogLevel;
use crate::bindings::tenon::plugin::log::{Host, Level};
use crate::convert::level_from_wit;
use crate::state::InstanceState;

impl Host for InstanceState {
    async fn write(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        self.count_host_call()?;
        self.log_line(level_from_wit(level), &message);
        Ok(())
    }
}

impl InstanceState {
    /// A line of the guest's, or of the host's about what the guest did, within the limits.
    pub(crate) fn log_line(&mut self, level: LogLevel, message: &str) {
        // A line that holds nothing costs the host a line all the same.
        let left = (self.log_bytes_left.checked_sub(message.len()), self.log_lines_left.checked_sub(1));
        match left {
            (Some(bytes), Some(lines)) => {
                (self.log_bytes_left, self.log_lines_left) = (bytes, lines);
                self.session.log.write(level, message);
            }
            (None, _) => self.drop_line(&format!("log_bytes_max is {} bytes", self.limits.log_bytes_max)),
            (_, None) => self.drop_line(&format!("log_lines_max is {} lines", self.limits.log_lines_max)),
        }
    }

    fn drop_line(&mut self, limit: &str) {
        self.log_lines_dropped_ever.fetch_add(1, Ordering::Relaxed);
        if self.log_lines_dropped == 0 {
            let notice = format!("lines are dropped: the limit {limit} a request");
            self.session.log.write(LogLevel::Warn, &notice);
        }
        self.log_lines_dropped = self.log_lines_dropped.saturating_add(1);
    }
}
