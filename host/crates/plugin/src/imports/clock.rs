//! `clock`: time in coarse steps.

use std::sync::Arc;

use crate::bindings::tenon::plugin::clock::Host;
use crate::state::{CoarseClock, InstanceState};

impl Host for InstanceState {
    async fn elapsed_ms(&mut self) -> wasmtime::Result<u32> {
        self.count_host_call()?;
        let elapsed = CoarseClock(Arc::clone(&self.session.clock)).elapsed();
        Ok(u32::try_from(elapsed.as_millis()).unwrap_or(u32::MAX))
    }

    async fn unix_seconds(&mut self) -> wasmtime::Result<f64> {
        self.count_host_call()?;
        Ok(CoarseClock(Arc::clone(&self.session.clock)).unix_time().as_secs_f64())
    }
}
