//! The accelerator of this machine, for whoever sets a host up: what there is, or why none, and whether its kernels are
//! right. Not here: the runner that uses it.

use std::io::Write;

pub use kernels::cuda::selftest::CaseResult;
pub use kernels::cuda::{CudaError, DeviceInfo, NoGpu};
use kernels::cuda::{Device, selftest};

/// The devices of this machine, without taking any of them into use.
///
/// # Errors
/// Why there is none.
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    DeviceInfo::all()
}

/// Runs every kernel against its reference on the first device, `seeds` times each, and writes a line for each case whose
/// name contains `filter` to `table` as it is known.
///
/// # Errors
/// If there is no device; the inner one if the table cannot be written.
pub fn cuda_selftest(
    seeds: u64,
    filter: &str,
    table: &mut dyn Write,
) -> Result<std::io::Result<(DeviceInfo, Vec<CaseResult>)>, CudaError> {
    let device = Device::open(0)?;
    let results = selftest::run(&device, 0..seeds, filter, table);
    Ok(results.map(|results| (device.info().clone(), results)))
}
