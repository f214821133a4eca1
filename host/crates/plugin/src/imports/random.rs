//! `random`: bytes from a generator that is seeded for each request.

use crate::bindings::tenon::plugin::random::{Host, HostError};
use crate::state::InstanceState;

impl Host for InstanceState {
    async fn bytes(&mut self, count: u32) -> wasmtime::Result<Result<Vec<u8>, HostError>> {
        self.count_host_call()?;
        let Some(left) = self.random_bytes_left.checked_sub(count) else {
            return Ok(Err(HostError::Limit("random_bytes_max".to_owned())));
        };
        self.random_bytes_left = left;
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
        self.random.fill(&mut bytes);
        Ok(Ok(bytes))
    }

    async fn next(&mut self) -> wasmtime::Result<u32> {
        self.count_host_call()?;
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }
}
