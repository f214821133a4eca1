//! `cargo xtask bench`: builds `tenon` and the benches in the release profile, fetches the base, and runs them. Not here: what
//! they measure and what they can be told, which is the program `bench` (`tests/bench`).

use std::ffi::OsString;
use std::process::Command;

use crate::shell::{self, Outcome};
use crate::{base, cuda_bench};

/// Builds and runs; the arguments go to the program as they are.
///
/// # Errors
/// If something cannot be built or measured. A missed bar is no error: it is in the report.
pub(crate) fn run(arguments: &[OsString]) -> Outcome {
    if let Some((bench, rest)) = arguments.split_first()
        && bench == "cuda"
    {
        return cuda_bench::run(rest);
    }
    // Not the whole workspace: the package `tests` would put a host in process into what is measured.
    let build = ["build", "--locked", "--release", "--package", "host", "--package", "bench", "--bins"];
    shell::run(&mut shell::cargo(&build))?;
    if arguments.first().is_some_and(|bench| bench == "plugin") {
        build_native()?;
    }
    let base = base::ensure()?;
    let mut bench = Command::new(shell::target().join("release").join("bench"));
    shell::run(bench.args(arguments).env("TENON_BASE", base))
}

/// The policy of the Rust example for this machine, which the same policy in the sandbox is compared with.
fn build_native() -> Outcome {
    let manifest = shell::root().join("plugins/Cargo.toml");
    let mut cargo =
        shell::cargo(&["build", "--locked", "--release", "--package", "skill-router", "--example", "native"]);
    cargo.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(shell::target().join("plugins-native"));
    shell::run(&mut cargo)
}
