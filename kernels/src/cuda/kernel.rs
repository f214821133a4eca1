//! Kernels out of embedded fatbins, and what a launch of one is given.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{DriverError, result, sys};

use super::device::Context;
use super::error::name_of;
use super::{CudaError, Device, DevicePtr};

/// The most arguments that a kernel may take.
pub(super) const ARGUMENTS_MAX: usize = 32;
/// Shared memory that a launch gets without asking.
const SHARED_BYTES: u32 = 48 * 1024;

/// Something that a kernel takes by value.
///
/// # Safety
/// It must be laid out as the kernel's parameter is in C: a number, an address, or a `#[repr(C)]` struct without padding.
pub unsafe trait Argument {
    /// Where it lies.
    fn address(&self) -> *const c_void;
    /// Its size.
    fn bytes(&self) -> usize;
}

/// Makes `#[repr(C)]` types arguments of kernels; they must be `Copy`.
macro_rules! argument {
    ($($value:ty),*) => { $(
        // SAFETY: a number, an address, or a `#[repr(C)]` struct without padding, by the macro's contract.
        unsafe impl $crate::cuda::Argument for $value {
            fn address(&self) -> *const std::ffi::c_void {
                std::ptr::from_ref(self).cast()
            }

            fn bytes(&self) -> usize {
                size_of::<Self>()
            }
        }
    )* };
}
#[allow(unused_imports)] // for operations that pass structs
pub(crate) use argument;
argument!(DevicePtr, u32, i32, u64, f32, f64);

/// How many threads a kernel runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks: x up to 2^31 - 1, y and z up to 65,535. If one is 0 there is nothing to run.
    pub grid: [u32; 3],
    /// Threads of a block, at most 1,024 in all.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

#[derive(Debug)]
struct Loaded {
    context: Arc<Context>,
    handle: sys::CUmodule,
}

// SAFETY: a module may be used from any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: loaded once by `Module::load`, and no kernel of it is left: each holds this.
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

/// The kernels of one fatbin on one device.
#[derive(Clone, Debug)]
pub struct Module(Arc<Loaded>);

impl Module {
    /// Loads an embedded fatbin (see `kernels/build.sh`); the driver takes the code for its device out of it.
    ///
    /// # Errors
    /// If there is none for this device.
    pub(crate) fn load(device: &Device, fatbin: &'static [u8]) -> Result<Self, CudaError> {
        let context = Arc::clone(device.context());
        context.make_current()?;
        // SAFETY: our own build's fatbin, whole and embedded; its header says its length.
        let handle =
            unsafe { result::module::load_data(fatbin.as_ptr().cast()) }.map_err(CudaError::driver("load kernels"))?;
        Ok(Self(Arc::new(Loaded { context, handle })))
    }

    /// A kernel by its name. It may have up to `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// If the fatbin has no such kernel, or the device not so much shared memory.
    pub(crate) fn kernel(&self, name: &str, shared_bytes: u32) -> Result<Kernel, CudaError> {
        self.0.context.make_current()?;
        let failed = |error| CudaError::Driver { doing: "find a kernel", name: format!("{name}: {}", name_of(error)) };
        let c_name =
            CString::new(name).map_err(|_| CudaError::Shape { what: "a zero in a kernel's name", value: 0 })?;
        // SAFETY: the module is loaded as long as the kernel, which holds it.
        let handle = unsafe { result::module::get_function(self.0.handle, c_name) }.map_err(failed)?;
        if shared_bytes > SHARED_BYTES {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: `handle` was found above.
            unsafe { result::function::set_function_attribute(handle, attribute, shared_bytes.cast_signed()) }
                .map_err(failed)?;
        }
        // Else the driver loads it at its first launch, which may be one that a graph is recording.
        // SAFETY: `handle` was found above.
        unsafe { sys::cuFuncLoad(handle) }.result().map_err(failed)?;
        Ok(Kernel { module: self.clone(), handle, name: name.to_owned(), parameters: parameters(handle) })
    }
}

/// A function that runs on the device.
#[derive(Clone, Debug)]
pub struct Kernel {
    module: Module,
    handle: sys::CUfunction,
    name: String,
    parameters: Vec<usize>,
}

// SAFETY: a kernel may be launched from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the arguments have the number and the sizes of its parameters.
    pub(super) fn takes(&self, args: &[&dyn Argument]) -> Result<(), CudaError> {
        let wrong = |argument| CudaError::Arguments { kernel: self.name.clone(), argument };
        if args.len() != self.parameters.len() || args.len() > ARGUMENTS_MAX {
            return Err(wrong(args.len()));
        }
        match args.iter().zip(&self.parameters).position(|(arg, bytes)| arg.bytes() != *bytes) {
            Some(index) => Err(wrong(index)),
            None => Ok(()),
        }
    }

    pub(super) fn handle(&self) -> sys::CUfunction {
        debug_assert!(!self.module.0.handle.is_null());
        self.handle
    }

    pub(super) fn says(&self, error: DriverError) -> String {
        format!("{}: {}", self.name, name_of(error))
    }
}

/// The sizes of a kernel's parameters.
fn parameters(kernel: sys::CUfunction) -> Vec<usize> {
    let (mut offset, mut bytes, mut sizes) = (0, 0, Vec::new());
    // SAFETY: writes two integers; past the last parameter it says so.
    while unsafe { sys::cuFuncGetParamInfo(kernel, sizes.len(), &raw mut offset, &raw mut bytes) }.result().is_ok() {
        sizes.push(bytes);
    }
    sizes
}

/// An embedded fatbin of `kernels/prebuilt`, by the name of its operation; aligned as the driver likes its images.
macro_rules! fatbin {
    ($name:literal) => {{
        #[repr(C, align(64))]
        struct Aligned<T: ?Sized>(T);
        static FATBIN: &Aligned<[u8]> =
            &Aligned(*include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/prebuilt/", $name, ".fatbin")));
        &FATBIN.0
    }};
}
pub(crate) use fatbin;
