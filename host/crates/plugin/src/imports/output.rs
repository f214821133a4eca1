//! `output`: the answer of an agent as it goes out.

use crate::bindings::agent::tenon::plugin::output::{Host, HostError};
use crate::convert::error_to_wit;
use crate::state::InstanceState;

impl Host for InstanceState {
    async fn write(&mut self, text: String) -> wasmtime::Result<Result<(), HostError>> {
        self.count_host_call()?;
        if text.is_empty() {
            return Ok(Ok(()));
        }
        Ok(self.session.output.write(text).await.map_err(error_to_wit))
    }
}
