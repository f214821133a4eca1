//! One device: its context, its two streams, what it is.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{CudaError, DeviceMemory, NoGpu, Pinned, Plain, Stream, gpus, probe};

/// The device's primary context, released when the last user of it goes.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

// SAFETY: a context may be used from any thread, one call after another or at once; the driver locks.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn open(ordinal: usize) -> Result<Self, CudaError> {
        let failed = CudaError::driver("open the device");
        let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX)).map_err(&failed)?;
        // SAFETY: `device` is what the driver just gave us; released once, by `drop`.
        let handle = unsafe { result::primary_ctx::retain(device) }.map_err(&failed)?;
        Ok(Self { device, handle })
    }

    /// Calls of this thread go to this device from now on.
    pub(super) fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.handle) }.map_err(CudaError::driver("use the device"))
    }
}

/// Where pinned memory comes from, for threads that have no device. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PinnedMemory {
    context: Arc<Context>,
}

impl PinnedMemory {
    /// As [`Device::pinned`].
    ///
    /// # Errors
    /// If there is not so much.
    pub fn take<T: Plain>(&self, count: usize) -> Result<Pinned<T>, CudaError> {
        Pinned::allocate(&self.context, count)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// All of its memory.
    pub memory_bytes: usize,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Shared memory that a block can have when its kernel asks for it.
    pub shared_bytes_max: usize,
}

impl DeviceInfo {
    fn of(ordinal: usize) -> Result<Self, CudaError> {
        use sys::CUdevice_attribute as Attribute;
        let failed = CudaError::driver("ask what the device is");
        let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX)).map_err(&failed)?;
        // SAFETY: the device is one that the driver just gave us.
        let ask = |attribute| unsafe { result::device::get_attribute(device, attribute) }.map_err(&failed);
        let size = |attribute| Ok::<_, CudaError>(usize::try_from(ask(attribute)?).unwrap_or(0));
        Ok(Self {
            name: result::device::get_name(device).map_err(&failed)?,
            capability: (
                ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            // SAFETY: as above.
            memory_bytes: unsafe { result::device::total_mem(device) }.map_err(&failed)?,
            multiprocessors: size(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes_max: size(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    }

    /// What every device of this machine is, without taking any of them into use.
    ///
    /// # Errors
    /// Why there is none.
    pub fn all() -> Result<Vec<Self>, CudaError> {
        (0..gpus()?).map(Self::of).collect()
    }

    /// Whether the kernels are built for it.
    ///
    /// # Errors
    /// If it is too old.
    pub fn is_usable(&self) -> Result<(), NoGpu> {
        probe::is_new_enough(&self.name, self.capability)
    }
}

/// A device with its compute stream, on which kernels run, and its copy stream, on which adapters arrive.
#[derive(Debug)]
pub struct Device {
    context: Arc<Context>,
    compute: Stream,
    copy: Stream,
    info: DeviceInfo,
}

impl Device {
    /// Opens the device of that number, from 0.
    ///
    /// # Errors
    /// If there is none that can be used.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let count = gpus()?;
        if ordinal >= count {
            return Err(CudaError::Shape { what: "no device of this number", value: ordinal });
        }
        let info = DeviceInfo::of(ordinal)?;
        info.is_usable()?;
        let context = Arc::new(Context::open(ordinal)?);
        Ok(Self { compute: Stream::new(&context)?, copy: Stream::new(&context)?, info, context })
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Where kernels run, in order.
    #[must_use]
    pub fn compute(&self) -> &Stream {
        &self.compute
    }

    /// Where copies run beside them. Only events order the two.
    #[must_use]
    pub fn copy(&self) -> &Stream {
        &self.copy
    }

    /// Free and total bytes, as the driver counts: other programs' use included.
    ///
    /// # Errors
    /// If the driver cannot say.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.context.make_current()?;
        result::mem_get_info().map_err(CudaError::driver("ask for free memory"))
    }

    /// Takes memory. Slow, and it waits for the device: only at the start.
    ///
    /// # Errors
    /// If there is not so much.
    pub fn allocate(&self, bytes: usize) -> Result<DeviceMemory, CudaError> {
        DeviceMemory::allocate(&self.context, bytes)
    }

    /// Host memory that copies use without the driver's own staging; zeroed. Slow: only at the start.
    ///
    /// # Errors
    /// If there is not so much.
    pub fn pinned<T: Plain>(&self, count: usize) -> Result<Pinned<T>, CudaError> {
        Pinned::allocate(&self.context, count)
    }

    /// [`Self::pinned`] for other threads.
    #[must_use]
    pub fn pinned_memory(&self) -> PinnedMemory {
        PinnedMemory { context: Arc::clone(&self.context) }
    }

    /// Waits for all streams, and says what went wrong on the device since the last time.
    ///
    /// # Errors
    /// What a launch did.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.context.make_current()?;
        result::ctx::synchronize().map_err(CudaError::driver("wait for the device"))
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }
}
