//! What can go wrong on a device, by meaning.

use std::fmt;

use cudarc::driver::DriverError;

use super::{NoCublasLt, NoGpu};

/// Why a device could not do what was asked. None of them panics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaError {
    /// There is no device to ask.
    Absent(NoGpu),
    /// cuBLASLt was asked for and cannot be used.
    NoCublasLt(NoCublasLt),
    /// The driver, or a library above it, refused; after `CUDA_ERROR_ILLEGAL_ADDRESS` and its like the device is lost to this process.
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The driver's name of the error.
        name: String,
    },
    /// The device has not that much memory left.
    Memory {
        /// Bytes that were asked for.
        asked: usize,
        /// Bytes that were free.
        free: usize,
    },
    /// A part of a range that lies outside it, or a buffer that is too short for an operation.
    Range {
        /// Which buffer.
        what: &'static str,
        /// Where the part would end, or the bytes that are needed.
        needed: usize,
        /// Bytes that there are.
        bytes: usize,
    },
    /// An address or a length is not a multiple of what a kernel reads at once.
    Alignment {
        /// Which buffer.
        what: &'static str,
        /// The multiple, in bytes.
        multiple: usize,
    },
    /// A shape that a kernel was not built for.
    Shape {
        /// What is wrong with it.
        what: &'static str,
        /// The number that was given.
        value: usize,
    },
    /// A launch whose arguments are not those of the kernel: a bug of its operation.
    Arguments {
        /// The kernel's name.
        kernel: String,
        /// The argument that is wrong, or the number of them.
        argument: usize,
    },
    /// Something that a graph cannot hold was asked of a stream that is recording one.
    Recording(&'static str),
}

/// After these every later call of the process fails, whatever it asks: a bug of a kernel, or the device's own end.
const LOST: [&str; 20] = [
    "CUDA_ERROR_DEINITIALIZED",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED",
    "CUDA_ERROR_SYSTEM_NOT_READY",
    "CUDA_ERROR_UNKNOWN",
];

impl CudaError {
    /// Whether nothing can be done on the device any more by this process.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        // A launch's name has its kernel's before it.
        let is_lost = |name: &String| name.rsplit(": ").next().is_some_and(|name| LOST.contains(&name));
        matches!(self, Self::Driver { name, .. } if is_lost(name))
    }

    pub(crate) fn driver(doing: &'static str) -> impl Fn(DriverError) -> Self {
        move |error| Self::Driver { doing, name: name_of(error) }
    }
}

/// `cuGetErrorName` is among the symbols that [`super::gpus`] looks for before anything can fail.
pub(crate) fn name_of(error: DriverError) -> String {
    error.error_name().map_or_else(|_| format!("error {}", error.0 as u32), |name| name.to_string_lossy().into_owned())
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(reason) => reason.fmt(f),
            Self::NoCublasLt(reason) => reason.fmt(f),
            Self::Driver { doing, name } => write!(f, "{doing}: {name}"),
            Self::Memory { asked, free } => write!(f, "device memory: {asked} bytes were asked for, {free} are free"),
            Self::Range { what, needed, bytes } => write!(f, "{what}: {needed} bytes are needed, there are {bytes}"),
            Self::Alignment { what, multiple } => write!(f, "{what}: must be a multiple of {multiple} bytes"),
            Self::Shape { what, value } => write!(f, "{what}: {value}"),
            Self::Arguments { kernel, argument } => {
                write!(f, "kernel {kernel}: argument {argument} is not what it takes")
            }
            Self::Recording(what) => write!(f, "{what}: not while a graph is recorded"),
        }
    }
}

impl std::error::Error for CudaError {}

impl From<NoGpu> for CudaError {
    fn from(reason: NoGpu) -> Self {
        Self::Absent(reason)
    }
}
