//! A point in the order of a stream, for another stream or the host to wait for.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::Context;
use super::{CudaError, Device};

/// An event. Until it is recorded first, waiting for it is no wait.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    handle: sys::CUevent,
}

// SAFETY: an event may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// One for ordering alone, the cheap kind.
    ///
    /// # Errors
    /// If the driver has none.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        Self::create(device.context(), sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// One that knows when it was reached, for measuring.
    ///
    /// # Errors
    /// If the driver has none.
    pub fn timed(device: &Device) -> Result<Self, CudaError> {
        Self::create(device.context(), sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    pub(super) fn create(context: &Arc<Context>, flags: sys::CUevent_flags) -> Result<Self, CudaError> {
        context.make_current()?;
        let handle = result::event::create(flags).map_err(CudaError::driver("make an event"))?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    /// Waits until the device has reached it.
    ///
    /// # Errors
    /// What went wrong on the device before that point.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.context.make_current()?;
        // SAFETY: made by `create`, destroyed only by `drop`.
        unsafe { result::event::synchronize(self.handle) }.map_err(CudaError::driver("wait for an event"))
    }

    /// Whether the device has reached it.
    ///
    /// # Errors
    /// What went wrong on the device before that point.
    pub fn is_reached(&self) -> Result<bool, CudaError> {
        self.context.make_current()?;
        // SAFETY: as above.
        match unsafe { result::event::query(self.handle) } {
            Ok(()) => Ok(true),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(CudaError::driver("ask for an event")(error)),
        }
    }

    /// Milliseconds from `earlier` to this, both timed and reached.
    ///
    /// # Errors
    /// If they are not.
    pub fn ms_since(&self, earlier: &Self) -> Result<f32, CudaError> {
        self.context.make_current()?;
        // SAFETY: both were made by `create`.
        unsafe { result::event::elapsed(earlier.handle, self.handle) }.map_err(CudaError::driver("read two events"))
    }

    pub(super) fn handle(&self) -> sys::CUevent {
        self.handle
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: destroyed once; work that still waits for it keeps the driver's own copy.
            let _ = unsafe { result::event::destroy(self.handle) };
        }
    }
}
