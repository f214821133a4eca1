//! Host memory that a device copies from and to while the host goes on. It cannot be read before a download into it has
//! ended, nor written before an upload from it has: its accessors wait.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::Context;
use super::{CudaError, Event, Plain};

/// What the device does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It reads.
    Upload,
    /// It writes.
    Download,
}

/// A pinned buffer of `T`, zeroed at first. Cached on the host (flags 0), so that reading back is fast.
#[derive(Debug)]
pub struct Pinned<T: Plain> {
    context: Arc<Context>,
    start: *mut T,
    count: usize,
    /// Reached when the last copy has ended, and with it those before it on the same stream.
    last: Event,
    /// What may still be under way, and where.
    pending: Option<(Use, sys::CUstream)>,
}

// SAFETY: the memory is owned, and `T: Plain` is `Send`.
unsafe impl<T: Plain> Send for Pinned<T> {}
// SAFETY: shared access only reads, after waiting for a download; copies into it need `&mut`.
unsafe impl<T: Plain> Sync for Pinned<T> {}

impl<T: Plain> Pinned<T> {
    pub(super) fn allocate(context: &Arc<Context>, count: usize) -> Result<Self, CudaError> {
        context.make_current()?;
        let bytes = count.saturating_mul(size_of::<T>()).max(1);
        let failed = CudaError::driver("allocate pinned host memory");
        // SAFETY: allocates page-aligned host memory, which is aligned for any `T`.
        let start = unsafe { result::malloc_host(bytes, 0) }.map_err(&failed)?.cast::<T>();
        // SAFETY: just allocated, `bytes` long. Zeroes are a value of `T: Plain`.
        unsafe { std::ptr::write_bytes(start.cast::<u8>(), 0, bytes) };
        match Event::create(context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING) {
            Ok(last) => Ok(Self { context: Arc::clone(context), start, count, last, pending: None }),
            Err(error) => {
                // SAFETY: allocated above, and given to nobody.
                let _ = unsafe { result::free_host(start.cast()) };
                Err(error)
            }
        }
    }

    /// Values in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The values, once a download has ended.
    ///
    /// # Errors
    /// What went wrong on the device before that.
    pub fn as_slice(&self) -> Result<&[T], CudaError> {
        if matches!(self.pending, Some((Use::Download, _))) {
            self.last.synchronize()?;
        }
        // SAFETY: allocated with this count and initialised; the device does not write it, and no `&mut` is out.
        Ok(unsafe { std::slice::from_raw_parts(self.start, self.count) })
    }

    /// The values, once every copy has ended.
    ///
    /// # Errors
    /// What went wrong on the device before that.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], CudaError> {
        self.wait()?;
        // SAFETY: as above, and the device does not read it either.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start, self.count) })
    }

    /// Whether a copy still uses it, so that an accessor would wait.
    ///
    /// # Errors
    /// What went wrong on the device.
    pub fn is_busy(&self) -> Result<bool, CudaError> {
        Ok(self.pending.is_some() && !self.last.is_reached()?)
    }

    fn wait(&mut self) -> Result<(), CudaError> {
        if self.pending.is_some() {
            self.last.synchronize()?;
            self.pending = None;
        }
        Ok(())
    }

    /// The start, for a copy on `stream` that is about to be issued. One event stands for several copies only if they
    /// are in order and do not write over each other: uploads on one stream. All else waits for what went before.
    pub(super) fn begin(&mut self, kind: Use, stream: sys::CUstream) -> Result<*mut T, CudaError> {
        if self.pending != Some((Use::Upload, stream)) || kind == Use::Download {
            self.wait()?;
        }
        self.pending = Some((kind, stream));
        Ok(self.start)
    }

    pub(super) fn last(&self) -> &Event {
        &self.last
    }
}

impl<T: Plain> Drop for Pinned<T> {
    fn drop(&mut self) {
        // If the device cannot be waited for it may still write here: then the memory is leaked, not freed.
        if self.wait().is_ok() && self.context.make_current().is_ok() {
            // SAFETY: allocated by `allocate`, and no copy uses it any more.
            let _ = unsafe { result::free_host(self.start.cast()) };
        }
    }
}
