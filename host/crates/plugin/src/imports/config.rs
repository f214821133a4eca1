//! `config`: the function's configuration, from its manifest.

use crate::bindings::tenon::plugin::config::Host;
use crate::state::InstanceState;

impl Host for InstanceState {
    async fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        self.count_host_call()?;
        let found = self.session.config.iter().find(|(key, _)| *key == name);
        Ok(found.map(|(_, value)| value.clone()))
    }

    async fn all(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        self.count_host_call()?;
        Ok(self.session.config.clone())
    }
}
