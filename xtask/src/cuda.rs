//! The CUDA kernels without a GPU: fatbins against their sources, and the emulated device that kernels and runner are
//! tested on. Not here: the emulation (`kernels/emulation`) and the tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::shell::{self, Outcome};
use crate::suite::{Totals, checks, tests};

/// What the scripts exit with when nvcc and its headers are not there and cannot be fetched.
const NO_TOOLKIT: i32 = 3;
/// The instrumented runs take longer, and find what they find under any schedule that reaches it.
const SCHEDULES_OF_SANITIZERS: &str = "1 6";
/// Tests of the emulated device: of the kernels, the runner, the bench and a whole host.
const TESTS: [&str; 6] =
    ["cuda_emulation", "cuda_conformance", "cuda_loads", "cuda_streams", "cuda_bench_smoke", "cuda_host"];

/// The stage `cuda-emulation`.
///
/// # Errors
/// If a fatbin is stale, the emulation does not build, or a test or a planted bug says so.
pub(crate) fn emulation(base: &Path, totals: &mut Totals) -> Outcome {
    let compared =
        with_toolkit(&["kernels/build.sh", "--check"], "CUDA FATBINS WERE NOT COMPARED WITH THEIR SOURCES", totals);
    // The rest is worth knowing too: whoever changed a kernel sees whether it is right before building it for devices.
    on_the_cpu(base, totals).and(compared)
}

fn on_the_cpu(base: &Path, totals: &mut Totals) -> Outcome {
    if !can_run("g++") {
        totals.skip("CUDA emulation: there is no g++");
        return Ok(());
    }
    let or_else = "THE EMULATION'S CONVERSIONS WERE NOT COMPARED WITH NVIDIA'S";
    with_toolkit(&["kernels/emulation/conversions.sh"], or_else, totals)?;
    let plain = build("")?;
    // A whole host is the program beside the tests, which no test builds.
    shell::run(&mut shell::cargo(&["build", "--locked", "--workspace", "--bins"]))?;
    let mut arguments = vec!["test", "--locked", "--workspace", "--no-fail-fast"];
    arguments.extend(TESTS.iter().flat_map(|target| ["--test", *target]));
    let mut command = shell::cargo(&arguments);
    command.env("TENON_CUDA_EMULATION", &plain).env("TENON_BASE", base);
    tests(command, totals)?;
    sanitized("asan", totals)?;
    sanitized("tsan", totals)?;
    checks(&["kernels/emulation/mutate.py"], totals)
}

/// The stage `cuda-goldens`.
///
/// # Errors
/// If the emulation does not build, or a golden is missed.
pub(crate) fn goldens(base: &Path, totals: &mut Totals) -> Outcome {
    if !can_run("g++") {
        totals.skip("CUDA goldens: there is no g++");
        return Ok(());
    }
    let folder = build("")?;
    let mut command = shell::cargo(&["test", "--locked", "--workspace", "--test", "cuda_golden"]);
    command.args(["--", "--ignored", "--nocapture"]);
    command.env("TENON_CUDA_EMULATION", folder).env("TENON_BASE", base);
    tests(command, totals)
}

/// Runs a script that needs nvcc or its headers; says so, loudly, if they are not there and cannot be fetched.
fn with_toolkit(arguments: &[&str], or_else: &str, totals: &mut Totals) -> Outcome {
    let mut command = Command::new("bash");
    command.args(arguments).current_dir(shell::root()).stdin(Stdio::null());
    let line = shell::line_of(&command);
    println!("$ {line}");
    let status = command.status().map_err(|error| format!("cannot start `{line}`: {error}"))?;
    if status.success() {
        totals.pass();
        return Ok(());
    }
    if status.code() == Some(NO_TOOLKIT) {
        totals.skip(&format!("{or_else}: the compiler is not there, see above"));
        return Ok(());
    }
    Err(format!("`{line}` failed: {status}").into())
}

/// Builds the emulated driver, instrumented by `sanitizer` if that is not empty; returns its folder.
fn build(sanitizer: &str) -> Outcome<PathBuf> {
    let name = if sanitizer.is_empty() { "cuda-emulation".to_owned() } else { format!("cuda-emulation-{sanitizer}") };
    let folder = shell::target().join(name);
    let mut command = Command::new("bash");
    command.arg("kernels/emulation/build.sh").arg(&folder).env("SANITIZER", sanitizer).current_dir(shell::root());
    shell::run(&mut command)?;
    Ok(folder)
}

/// The self-test with instrumented kernels: reads and writes outside of arrays, and races between threads of a block.
fn sanitized(sanitizer: &str, totals: &mut Totals) -> Outcome {
    let library = format!("lib{sanitizer}.so");
    let found = shell::capture(Command::new("g++").arg(format!("-print-file-name={library}")))?;
    let runtime = PathBuf::from(found.trim());
    if !runtime.is_absolute() {
        totals.skip(&format!("CUDA emulation under {sanitizer}: g++ has no {library}"));
        return Ok(());
    }
    let folder = build(sanitizer)?;
    let suppressions = shell::root().join("kernels").join("emulation").join("tsan.supp");
    let mut command =
        shell::cargo(&["test", "--locked", "--workspace", "--test", "cuda_emulation", "--", "emulated::every_kernel"]);
    command.env("TENON_CUDA_EMULATION", folder).env("TENON_CUDA_PRELOAD", runtime);
    command.env("TENON_CUDA_SCHEDULES", SCHEDULES_OF_SANITIZERS);
    command.env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0");
    let tsan =
        format!("halt_on_error=1:report_thread_leaks=0:atexit_sleep_ms=0:suppressions={}", suppressions.display());
    command.env("TSAN_OPTIONS", tsan);
    tests(command, totals)
}

fn can_run(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
