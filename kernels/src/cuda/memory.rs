//! Device memory: one allocation, and ranges of it that carry their length.

use std::sync::Arc;

use cudarc::driver::result;

use super::CudaError;
use super::device::Context;

/// An address on a device: what kernels are given. Nothing on the host follows it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePtr(pub(crate) u64);

impl DevicePtr {
    /// For an optional argument of a kernel.
    pub const NULL: Self = Self(0);

    /// The address as a number, for tables that kernels read.
    #[must_use]
    pub fn address(self) -> u64 {
        self.0
    }
}

/// A part of an allocation. It does not keep the allocation: a copy or a launch over memory that was freed fails on the
/// device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRange {
    start: DevicePtr,
    bytes: usize,
}

impl DeviceRange {
    /// Where it starts.
    #[must_use]
    pub fn start(self) -> DevicePtr {
        self.start
    }

    /// Its length.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// `bytes` from `offset` on.
    ///
    /// # Errors
    /// If they are not all inside.
    pub fn part(self, offset: usize, bytes: usize) -> Result<Self, CudaError> {
        let end = offset.saturating_add(bytes);
        if end > self.bytes {
            return Err(CudaError::Range { what: "a part of device memory", needed: end, bytes: self.bytes });
        }
        Ok(Self { start: DevicePtr(self.start.0 + offset as u64), bytes })
    }

    /// The start, for a kernel that will touch up to `needed` bytes and reads `multiple` of them at once.
    ///
    /// # Errors
    /// If the range is shorter or starts elsewhere.
    pub fn for_kernel(self, what: &'static str, needed: usize, multiple: usize) -> Result<DevicePtr, CudaError> {
        if self.bytes < needed {
            return Err(CudaError::Range { what, needed, bytes: self.bytes });
        }
        if !self.start.0.is_multiple_of(multiple as u64) {
            return Err(CudaError::Alignment { what, multiple });
        }
        Ok(self.start)
    }
}

/// One allocation, freed when dropped. What it holds at first is not defined.
#[derive(Debug)]
pub struct DeviceMemory {
    context: Arc<Context>,
    range: DeviceRange,
}

impl DeviceMemory {
    pub(super) fn allocate(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        context.make_current()?;
        // SAFETY: allocates; an allocation of no bytes is refused by the driver, so there is at least one.
        let start = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|error| match error.0 {
            cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                CudaError::Memory { asked: bytes, free: result::mem_get_info().map_or(0, |(free, _)| free) }
            }
            _ => CudaError::driver("allocate device memory")(error),
        })?;
        Ok(Self { context: Arc::clone(context), range: DeviceRange { start: DevicePtr(start), bytes } })
    }

    /// All of it.
    #[must_use]
    pub fn range(&self) -> DeviceRange {
        self.range
    }

    /// `bytes` from `offset` on.
    ///
    /// # Errors
    /// If they are not all inside.
    pub fn part(&self, offset: usize, bytes: usize) -> Result<DeviceRange, CudaError> {
        self.range.part(offset, bytes)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // An error here has nobody to go to, and the process is giving the memory up anyway.
        if self.context.make_current().is_ok() {
            // SAFETY: allocated by `allocate` and freed once; the driver waits for work that still uses it.
            let _ = unsafe { result::free_sync(self.range.start.0) };
        }
    }
}
