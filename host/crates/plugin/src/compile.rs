//! Starts the compiler child, feeds it an upload and reads what it made. Compilation is outside wasmtime's promises about
//! hostile input, so it happens in a process of its own that is limited before it reads a byte. Not here: what the
//! child does (`child.rs`).

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use crate::child::{self, EXIT_INVALID, EXIT_TOO_LARGE};
use crate::deserialize::OwnArtefact;
use crate::{CompilerCommand, PluginError, PluginLimits};

/// Uploads that may be compiled at once; each child has one thread.
const CHILDREN_MAX: usize = 1;
/// Uploads that may wait for their turn, the one at work included.
const QUEUE_MAX: usize = 16;
/// How a core module begins: what `cargo build` leaves, before it is made a component.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";
/// Bytes of what the child says about a failure.
const MESSAGE_BYTES_MAX: usize = 2048;

#[derive(Debug)]
pub(crate) struct Compiler {
    command: CompilerCommand,
    limits: Arc<PluginLimits>,
    queue: Semaphore,
    children: Semaphore,
}

impl Compiler {
    pub(crate) fn new(command: CompilerCommand, limits: Arc<PluginLimits>) -> Self {
        Self { command, limits, queue: Semaphore::new(QUEUE_MAX), children: Semaphore::new(CHILDREN_MAX) }
    }

    /// Compiles one component; with it, what confined the child. Dropping the future kills the child.
    pub(crate) async fn compile(&self, component: &[u8]) -> Result<(OwnArtefact, String), PluginError> {
        if component.starts_with(CORE_MODULE) {
            let message = "it is a core module; make a component of it with `wasm-tools component new`";
            return Err(PluginError::Invalid(message.to_owned()));
        }
        let busy = PluginError::Busy { limit: "the compiler's queue" };
        let _place = self.queue.try_acquire().map_err(|_| busy)?;
        let _turn = self.children.acquire().await.map_err(|error| PluginError::Internal(error.to_string()))?;
        let wall_max = Duration::from_millis(self.limits.compile_wall_ms_max);
        match tokio::time::timeout(wall_max, self.run_child(component)).await {
            Ok(result) => result,
            Err(_) => {
                let max_ms = self.limits.compile_wall_ms_max;
                Err(PluginError::CompileFailed(format!("it took longer than compile_wall_ms_max, {max_ms} ms")))
            }
        }
    }

    async fn run_child(&self, component: &[u8]) -> Result<(OwnArtefact, String), PluginError> {
        let mut child = self.spawn().map_err(|error| {
            let program = self.command.program.display();
            PluginError::Internal(format!("the compiler {program} could not be started: {error}"))
        })?;
        let (input, output, message) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut input) = input {
                // A child that ends early closes the pipe; its exit status says why.
                let _ = input.write_all(component).await;
            }
        };
        let (_, output, message) = tokio::join!(
            feed,
            read_at_most(output, self.limits.compiled_bytes_max),
            read_at_most(message, MESSAGE_BYTES_MAX)
        );
        let output = output?;
        let status = child.wait().await.map_err(|error| PluginError::Internal(error.to_string()))?;
        let message = String::from_utf8_lossy(&message.unwrap_or_default()).into_owned();
        if status.success() {
            return Ok((OwnArtefact::from_compiler(output), message));
        }
        Err(self.failure(status, &message))
    }

    fn spawn(&self) -> std::io::Result<Child> {
        Command::new(&self.command.program)
            .args(&self.command.arguments)
            .env_clear()
            .envs(child::environment(&self.limits))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }

    fn failure(&self, status: ExitStatus, message: &str) -> PluginError {
        match status.code() {
            Some(EXIT_INVALID) => {
                let words: Vec<_> = message.split_whitespace().collect();
                return PluginError::Invalid(words.join(" "));
            }
            Some(EXIT_TOO_LARGE) => {
                return PluginError::CompileFailed("the compiled form is over compiled_bytes_max".to_owned());
            }
            _ => {}
        }
        tracing::warn!(%status, message, "the plugin compiler failed");
        let limits = &self.limits;
        PluginError::CompileFailed(match status.signal() {
            // SIGKILL or SIGXCPU.
            Some(9 | 24) => format!("it needs more than compile_cpu_seconds_max, {} s", limits.compile_cpu_seconds_max),
            // SIGABRT, which is what a Rust program does when memory runs out, or SIGSEGV or SIGBUS.
            Some(6 | 7 | 11) => {
                format!("it needs more than compile_memory_bytes_max, {} bytes", limits.compile_memory_bytes_max)
            }
            _ => "the compiler failed on it".to_owned(),
        })
    }
}

/// Reads to the end; what is over the limit is an error, and the dropped pipe ends the child.
async fn read_at_most(pipe: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> Result<Vec<u8>, PluginError> {
    let mut bytes = Vec::new();
    let Some(pipe) = pipe else { return Ok(bytes) };
    let one_more = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    let read = pipe.take(one_more).read_to_end(&mut bytes).await;
    read.map_err(|error| PluginError::Internal(format!("the compiler's answer could not be read: {error}")))?;
    if bytes.len() > bytes_max {
        return Err(PluginError::CompileFailed("the compiled form is over compiled_bytes_max".to_owned()));
    }
    Ok(bytes)
}
