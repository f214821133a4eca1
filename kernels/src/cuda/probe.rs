//! Is there a device that this program can use, and if not, why. Asked once at the start; never panics.

use std::fmt;

use cudarc::driver::{result, sys};

use super::error::name_of;

/// The oldest driver that loads the embedded kernels: they are built by a toolkit of this version.
pub const DRIVER_VERSION_MIN: i32 = 13_000;
/// The oldest compute capability that the kernels are built for.
const CAPABILITY_MIN: (i32, i32) = (8, 0);

/// Why no device can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoGpu {
    /// No libcuda is installed: a machine without NVIDIA's driver.
    NoLibrary,
    /// The library lacks a function: a driver that is too old, or not one.
    NoFunction(&'static str),
    /// The library is the toolkit's stub for linking.
    Stub,
    /// The driver is older than [`DRIVER_VERSION_MIN`].
    OldDriver(i32),
    /// The driver would not start.
    NoStart(String),
    /// The driver runs and has no device.
    NoDevice,
    /// The device's compute capability is too low.
    OldDevice {
        /// Its name.
        name: String,
        /// Major and minor.
        capability: (i32, i32),
    },
}

impl fmt::Display for NoGpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        match self {
            Self::NoLibrary => f.write_str("no libcuda: NVIDIA's driver is not installed"),
            Self::NoFunction(name) => write!(f, "libcuda lacks {name}: the driver is too old"),
            Self::Stub => f.write_str("libcuda is the toolkit's stub, not a driver"),
            Self::OldDriver(found) => {
                write!(f, "the driver is for CUDA {}, {} is needed", version(*found), version(DRIVER_VERSION_MIN))
            }
            Self::NoStart(name) => write!(f, "the CUDA driver does not start: {name}"),
            Self::NoDevice => f.write_str("the CUDA driver finds no device"),
            Self::OldDevice { name, capability: (major, minor) } => {
                let (major_min, minor_min) = CAPABILITY_MIN;
                write!(f, "{name} has compute capability {major}.{minor}, {major_min}.{minor_min} is needed")
            }
        }
    }
}

impl std::error::Error for NoGpu {}

/// The number of devices, at least one.
///
/// # Errors
/// Why there is none that can be used.
pub fn gpus() -> Result<usize, NoGpu> {
    // SAFETY: loads libcuda if there is one, which runs its constructors: the same trust as linking to it.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoGpu::NoLibrary);
    }
    if let Some(absent) = FUNCTIONS.iter().find(|name| !has(name)) {
        return Err(NoGpu::NoFunction(absent));
    }
    match result::init() {
        Ok(()) => {}
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_STUB_LIBRARY => return Err(NoGpu::Stub),
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Err(NoGpu::NoDevice),
        Err(error) => return Err(NoGpu::NoStart(name_of(error))),
    }
    let mut version = 0;
    // SAFETY: writes one integer to the address it is given.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(|error| NoGpu::NoStart(name_of(error)))?;
    if version < DRIVER_VERSION_MIN {
        return Err(NoGpu::OldDriver(version));
    }
    let count = result::device::get_count().map_err(|error| NoGpu::NoStart(name_of(error)))?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(NoGpu::NoDevice),
    }
}

/// Refuses a device that the kernels are not built for.
pub(super) fn is_new_enough(name: &str, capability: (i32, i32)) -> Result<(), NoGpu> {
    if capability >= CAPABILITY_MIN { Ok(()) } else { Err(NoGpu::OldDevice { name: name.to_owned(), capability }) }
}

/// `name` ends with a zero.
fn has(name: &str) -> bool {
    // SAFETY: only called when the library is there; the symbol is looked up and not called.
    unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()).is_ok() }
}

/// Every function of the driver that this crate calls. cudarc looks a symbol up at its first call and panics if it is
/// absent, so all of them are looked for before the first call.
const FUNCTIONS: &[&str] = &[
    "cuCtxGetCurrent\0",
    "cuCtxSetCurrent\0",
    "cuCtxSynchronize\0",
    "cuDeviceGet\0",
    "cuDeviceGetAttribute\0",
    "cuDeviceGetCount\0",
    "cuDeviceGetName\0",
    "cuDevicePrimaryCtxRelease_v2\0",
    "cuDevicePrimaryCtxRetain\0",
    "cuDeviceTotalMem_v2\0",
    "cuDriverGetVersion\0",
    "cuEventCreate\0",
    "cuEventDestroy_v2\0",
    "cuEventElapsedTime_v2\0",
    "cuEventQuery\0",
    "cuEventRecord\0",
    "cuEventSynchronize\0",
    "cuFuncGetParamInfo\0",
    "cuFuncLoad\0",
    "cuFuncSetAttribute\0",
    "cuGetErrorName\0",
    "cuGetErrorString\0",
    "cuGraphDestroy\0",
    "cuGraphExecDestroy\0",
    "cuGraphInstantiateWithFlags\0",
    "cuGraphLaunch\0",
    "cuGraphUpload\0",
    "cuInit\0",
    "cuLaunchKernel\0",
    "cuMemAlloc_v2\0",
    "cuMemFreeHost\0",
    "cuMemFree_v2\0",
    "cuMemGetInfo_v2\0",
    "cuMemHostAlloc\0",
    "cuMemcpyDtoDAsync_v2\0",
    "cuMemcpyDtoHAsync_v2\0",
    "cuMemcpyHtoDAsync_v2\0",
    "cuMemsetD8Async\0",
    "cuModuleGetFunction\0",
    "cuModuleLoadData\0",
    "cuModuleUnload\0",
    "cuStreamBeginCapture_v2\0",
    "cuStreamCreate\0",
    "cuStreamDestroy_v2\0",
    "cuStreamEndCapture\0",
    "cuStreamIsCapturing\0",
    "cuStreamSynchronize\0",
    "cuStreamWaitEvent\0",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The emulated driver has what is called and nothing else: a call of anything more would panic in its tests.
    #[test]
    fn every_function_of_the_emulated_driver_is_looked_for() {
        let source = include_str!("../../emulation/fake_libcuda.cpp");
        let names = source.lines().filter_map(|line| line.strip_prefix("API ")?.split('(').next());
        let mut emulated: Vec<String> = names.map(|name| format!("{name}\0")).collect();
        emulated.sort();
        let mut looked_for = FUNCTIONS.to_vec();
        looked_for.sort_unstable();
        assert_eq!(emulated, looked_for);
    }

    #[test]
    fn versions_are_said_as_nvidia_says_them() {
        assert_eq!(NoGpu::OldDriver(12_080).to_string(), "the driver is for CUDA 12.8, 13.0 is needed");
    }
}
