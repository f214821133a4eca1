//! `wasi:config`: the function's configuration, the same as `config`.

use crate::bindings::standard::wasi::config::store::{Error, Host};
use crate::state::InstanceState;

impl Host for InstanceState {
    async fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, Error>> {
        self.count_host_call()?;
        let found = self.session.config.iter().find(|(name, _)| *name == key);
        Ok(Ok(found.map(|(_, value)| value.clone())))
    }

    async fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, Error>> {
        self.count_host_call()?;
        Ok(Ok(self.session.config.clone()))
    }
}
