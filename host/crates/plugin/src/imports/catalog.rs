//! `catalog`: the adapters that the function may use.

use crate::bindings::tenon::plugin::catalog::{Adapter, Host, HostError};
use crate::convert::{entry_to_wit, error_to_wit};
use crate::state::InstanceState;

impl Host for InstanceState {
    async fn adapters(&mut self) -> wasmtime::Result<Result<Vec<Adapter>, HostError>> {
        self.count_host_call()?;
        let entries = self.session.catalog.adapters().await;
        Ok(entries.map(|entries| entries.into_iter().map(entry_to_wit).collect()).map_err(error_to_wit))
    }

    async fn prefetch(&mut self, adapters: Vec<String>) -> wasmtime::Result<Result<(), HostError>> {
        self.count_host_call()?;
        Ok(self.session.catalog.prefetch(&adapters).await.map_err(error_to_wit))
    }
}
