//! A recorded sequence of launches that one call runs.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::Context;
use super::{CudaError, Stream};

/// An executable graph.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    exec: sys::CUgraphExec,
}

// SAFETY: a graph may be launched from any thread.
unsafe impl Send for Graph {}
// SAFETY: as above; launches of one graph are ordered by the driver.
unsafe impl Sync for Graph {}

impl Graph {
    pub(super) fn instantiate(context: &Arc<Context>, graph: sys::CUgraph) -> Result<Self, CudaError> {
        // SAFETY: `graph` came from the driver and is destroyed once, here: an executable graph does not need it.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            exec
        };
        let exec = exec.map_err(CudaError::driver("instantiate a graph"))?;
        Ok(Self { context: Arc::clone(context), exec })
    }

    /// Runs all of it on `stream`.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        self.context.make_current()?;
        // SAFETY: made by `instantiate`.
        unsafe { result::graph::launch(self.exec, stream.handle()) }.map_err(CudaError::driver("launch a graph"))
    }

    /// Sends the graph to the device ahead of its first launch.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn prepare(&self, stream: &Stream) -> Result<(), CudaError> {
        self.context.make_current()?;
        // SAFETY: made by `instantiate`.
        unsafe { result::graph::upload(self.exec, stream.handle()) }.map_err(CudaError::driver("upload a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: destroyed once; the driver lets a launch that is under way end.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}
