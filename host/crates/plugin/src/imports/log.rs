//! `log`: lines for the function's log, up to a limit on bytes.

use crate::LogLevel;
use crate::bindings::tenon::plugin::log::{Host, Level};
use crate::convert::level_from_wit;
use crate::state::InstanceState;

impl Host for InstanceState {
    async fn write(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        self.count_host_call()?;
        match self.log_bytes_left.checked_sub(message.len()) {
            Some(left) => {
                self.log_bytes_left = left;
                self.session.log.write(level_from_wit(level), &message);
            }
            None => self.drop_line(),
        }
        Ok(())
    }
}

impl InstanceState {
    fn drop_line(&mut self) {
        if self.log_lines_dropped == 0 {
            let max_bytes = self.limits.log_bytes_max;
            let notice = format!("lines are dropped: the limit log_bytes_max is {max_bytes} bytes a request");
            self.session.log.write(LogLevel::Warn, &notice);
        }
        self.log_lines_dropped = self.log_lines_dropped.saturating_add(1);
    }
}
