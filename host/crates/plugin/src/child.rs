//! The compiler child: limits and confines itself, reads a component, writes its compiled form. Not here: who starts it
//! (`compile.rs`), and what it gives up (`confine.rs`).

use std::io::{self, Read, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, nice, setrlimit};

use crate::confine::{Confinement, confine};
use crate::{PluginLimits, sandbox};

/// The upload is not a component that this engine accepts; standard error says why.
pub(crate) const EXIT_INVALID: i32 = 65;
/// The compiled form is over its limit.
pub(crate) const EXIT_TOO_LARGE: i32 = 66;
/// Something else.
const EXIT_FAILED: i32 = 70;

const CPU_SECONDS: &str = "TENON_COMPILE_CPU_SECONDS_MAX";
const MEMORY_BYTES: &str = "TENON_COMPILE_MEMORY_BYTES_MAX";
const UPLOAD_BYTES: &str = "TENON_UPLOAD_BYTES_MAX";
const COMPILED_BYTES: &str = "TENON_COMPILED_BYTES_MAX";

/// Files that the child may have open; it needs its three pipes.
const OPEN_FILES_MAX: u64 = 16;
/// The child gives way to the serving process.
const NICE: i32 = 10;

/// The limits as the child's whole environment.
pub(crate) fn environment(limits: &PluginLimits) -> [(&'static str, String); 4] {
    [
        (CPU_SECONDS, limits.compile_cpu_seconds_max.to_string()),
        (MEMORY_BYTES, limits.compile_memory_bytes_max.to_string()),
        (UPLOAD_BYTES, limits.upload_bytes_max.to_string()),
        (COMPILED_BYTES, limits.compiled_bytes_max.to_string()),
    ]
}

/// The child process that compiles: sets limits on itself, reads a component from standard input and writes the
/// compiled form to standard output. The host's binary calls it for a hidden sub-command, before it starts a thread or
/// opens a file. The limits come in the environment; what is missing there has its default.
pub fn compiler_main() -> ExitCode {
    let code = match compile() {
        Ok(confinement) => {
            eprint!("{confinement}");
            return ExitCode::SUCCESS;
        }
        Err(Failure::Invalid(message)) => {
            eprintln!("{message}");
            EXIT_INVALID
        }
        Err(Failure::TooLarge) => EXIT_TOO_LARGE,
        Err(Failure::Other(message)) => {
            eprintln!("{message}");
            EXIT_FAILED
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

enum Failure {
    Invalid(String),
    TooLarge,
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

fn compile() -> Result<Confinement, Failure> {
    let limits = limits_from_environment();
    limit_this_process(&limits)?;
    let confinement = confine();
    let engine = sandbox::compiling_engine(&limits).map_err(|error| Failure::Other(format!("{error:#}")))?;
    let mut component = Vec::new();
    let upload_bytes_max = u64::try_from(limits.upload_bytes_max).unwrap_or(u64::MAX);
    io::stdin().lock().take(upload_bytes_max).read_to_end(&mut component)?;
    let compiled = engine.precompile_component(&component).map_err(|error| failure(&error))?;
    if compiled.len() > limits.compiled_bytes_max {
        return Err(Failure::TooLarge);
    }
    let mut output = io::stdout().lock();
    output.write_all(&compiled)?;
    output.flush()?;
    Ok(confinement)
}

fn failure(error: &wasmtime::Error) -> Failure {
    let io_error = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    match io_error {
        Some(cause) => Failure::Other(cause.to_string()),
        None => Failure::Invalid(format!("{error:#}")),
    }
}

fn limits_from_environment() -> PluginLimits {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let size = |name: &str| usize::try_from(number(name)?).ok();
    let default = PluginLimits::default();
    PluginLimits {
        compile_cpu_seconds_max: number(CPU_SECONDS).unwrap_or(default.compile_cpu_seconds_max),
        compile_memory_bytes_max: number(MEMORY_BYTES).unwrap_or(default.compile_memory_bytes_max),
        upload_bytes_max: size(UPLOAD_BYTES).unwrap_or(default.upload_bytes_max),
        compiled_bytes_max: size(COMPILED_BYTES).unwrap_or(default.compiled_bytes_max),
        ..default
    }
}

fn limit_this_process(limits: &PluginLimits) -> io::Result<()> {
    let set = |resource, max: u64| setrlimit(resource, Rlimit { current: Some(max), maximum: Some(max) });
    set(Resource::Cpu, limits.compile_cpu_seconds_max)?;
    set(Resource::As, limits.compile_memory_bytes_max)?;
    set(Resource::Fsize, 0)?;
    set(Resource::Core, 0)?;
    set(Resource::Nofile, OPEN_FILES_MAX)?;
    nice(NICE)?;
    Ok(())
}
