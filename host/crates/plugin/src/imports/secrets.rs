//! `secrets`: what the manifest grants, one by one.

use crate::bindings::tenon::plugin::secrets::{Host, HostError};
use crate::convert::error_to_wit;
use crate::state::InstanceState;

impl Host for InstanceState {
    async fn get(&mut self, name: String) -> wasmtime::Result<Result<String, HostError>> {
        self.count_host_call()?;
        Ok(self.session.secrets.get(&name).await.map_err(error_to_wit))
    }
}
