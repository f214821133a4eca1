//! `tenon selftest --cuda`: every kernel of the accelerator against its reference, on the device of this machine. Not
//! here: the cases, which lie beside the kernels.

use clap::Args;
use model::accelerator::{CaseResult, DeviceInfo, cuda_selftest};
use serde_json::{Value, json};

use super::doctor::mib;
use super::failure::Failure;
use super::output::{Printer, put};
use crate::error::Error;

/// What to test, and how thoroughly.
#[derive(Debug, Args)]
pub(crate) struct SelftestArgs {
    /// The kernels of the CUDA device
    #[arg(long, required = true)]
    cuda: bool,
    /// Inputs of each case
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000), value_name = "COUNT")]
    seeds: u64,
    /// Only cases whose line contains this
    #[arg(long, default_value = "", value_name = "TEXT")]
    case: String,
}

/// Runs it, a line for each case as it is known. A case that misses is a failure.
pub(crate) fn run(arguments: &SelftestArgs, printer: Printer) -> Result<(), Failure> {
    let mut kept = Vec::new();
    let mut stdout = std::io::stdout();
    let table: &mut dyn std::io::Write = if printer.json { &mut kept } else { &mut stdout };
    let (device, results) = cuda_selftest(arguments.seeds, &arguments.case, table)
        .map_err(|error| Error::invalid("no_accelerator", "", format!("no kernel can be tested here: {error}")))?
        .map_err(Error::io("cannot write the table"))?;
    if results.is_empty() {
        let message = format!("no case contains `{}`", arguments.case);
        return Err(Error::invalid("unknown_case", "case", message).into());
    }
    let missed = results.iter().filter(|result| !result.is_ok()).count();
    if printer.json {
        put(&format!("{:#}\n", to_json(&device, &results)))?;
    } else {
        put(&format!("{} cases on {}: {missed} missed\n", results.len(), named(&device)))?;
    }
    if missed == 0 { Ok(()) } else { Err(Failure::Unsound) }
}

/// A device in words.
pub(super) fn named(device: &DeviceInfo) -> String {
    let (major, minor) = device.capability;
    let memory = mib(u64::try_from(device.memory_bytes).unwrap_or(u64::MAX));
    format!("{} (compute capability {major}.{minor}, {memory})", device.name)
}

fn to_json(device: &DeviceInfo, results: &[CaseResult]) -> Value {
    let one = |result: &CaseResult| {
        let failure = result.error.as_ref().err().map(ToString::to_string);
        // JSON has no infinity: an error that is no number is absent, and the case is not ok.
        let error = result.error.as_ref().ok().filter(|error| error.is_finite());
        json!({"op": result.op, "case": result.case, "ok": result.is_ok(), "error": error, "tolerance": result.tolerance,
            "failure": failure})
    };
    let (major, minor) = device.capability;
    json!({
        "object": "list",
        "device": {"name": device.name, "capability": format!("{major}.{minor}"), "memory_bytes": device.memory_bytes},
        "ok": results.iter().all(CaseResult::is_ok),
        "data": results.iter().map(one).collect::<Vec<_>>(),
    })
}
