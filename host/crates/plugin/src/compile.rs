//! Starts the compiler child, feeds it an upload and reads what it made. Compilation is outside wasmtime's promises about
//! hostile input, so it happens in a process of its own that is limited before it reads a byte. Not here: what the
//! child does (`child.rs`).

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use types::{Digest, TenantId};

use crate::child::{self, EXIT_INVALID, EXIT_TOO_LARGE};
use crate::deserialize::OwnArtefact;
use crate::{CompilerCommand, ComponentSource, PluginError, PluginLimits, Turns};

/// Uploads that are compiled at once, where there are cores and memory for it; each child has one thread.
const CHILDREN_MAX: usize = 2;
/// Of one tenant: what takes all of its time is waited for by whoever sent it, and nobody else.
const TENANT_CHILDREN_MAX: usize = 1;
/// Uploads that may wait for their turn, those at work included.
const QUEUE_MAX: usize = 16;
/// Of one tenant.
const TENANT_QUEUE_MAX: usize = 8;
/// How a core module begins: what `cargo build` leaves, before it is made a component.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";
/// Bytes of what the child says about a failure.
const MESSAGE_BYTES_MAX: usize = 2048;

#[derive(Debug)]
pub(crate) struct Compiler {
    command: CompilerCommand,
    limits: Arc<PluginLimits>,
    queue: Turns,
    children: Turns,
}

impl Compiler {
    pub(crate) fn new(command: CompilerCommand, limits: Arc<PluginLimits>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let children = children_for(cores, memory_bytes(), limits.compile_memory_bytes_max);
        Self::with_children(command, limits, children)
    }

    fn with_children(command: CompilerCommand, limits: Arc<PluginLimits>, children: usize) -> Self {
        let queue = Turns::new(QUEUE_MAX, TENANT_QUEUE_MAX);
        Self { command, limits, queue, children: Turns::new(children, TENANT_CHILDREN_MAX) }
    }

    /// Compiles one component, in its uploader's turn; with it, what confined the child. Dropping the future kills the child.
    pub(crate) async fn compile(
        &self,
        component: &[u8],
        tenant: Option<&TenantId>,
    ) -> Result<(OwnArtefact, String), PluginError> {
        if component.starts_with(CORE_MODULE) {
            let message = "it is a core module; make a component of it with `wasm-tools component new`";
            return Err(PluginError::Invalid(message.to_owned()));
        }
        let busy = PluginError::Busy { limit: "the compiler's queue" };
        let _place = self.queue.try_take(tenant).ok_or(busy)?;
        let _turn = self.children.take(tenant).await.map_err(|error| PluginError::Internal(error.to_string()))?;
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

/// The source of a component that is just being uploaded.
pub(crate) struct Uploaded(pub(crate) Bytes, pub(crate) Option<TenantId>);

#[async_trait]
impl ComponentSource for Uploaded {
    async fn component(&self, _: Digest) -> Result<Bytes, PluginError> {
        Ok(self.0.clone())
    }

    fn tenant(&self) -> Option<&TenantId> {
        self.1.as_ref()
    }
}

/// As many children as have a core each, and whose limits on memory are half of the machine's at most together; one in any case.
fn children_for(cores: usize, memory_bytes: u64, child_bytes_max: u64) -> usize {
    let by_memory = usize::try_from(memory_bytes / 2 / child_bytes_max.max(1)).unwrap_or(usize::MAX);
    CHILDREN_MAX.min(cores).min(by_memory).max(1)
}

/// Of the machine, or what a container's limit leaves of it.
fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    let all = info.totalram.saturating_mul(u64::from(info.mem_unit));
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    limit.and_then(|limit| limit.trim().parse().ok()).map_or(all, |limit: u64| limit.min(all))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an upload; makes something of it, if its first byte is not an `s`: that is never done.
    const CHILD: &str = "upload=$(cat); case $upload in s*) exec sleep 600;; esac; printf made";

    fn compiler(children: usize) -> Arc<Compiler> {
        let command = CompilerCommand {
            program: "/bin/sh".into(),
            arguments: ["-c", CHILD].map(std::ffi::OsString::from).into(),
        };
        Arc::new(Compiler::with_children(command, Arc::new(PluginLimits::default()), children))
    }

    async fn compile(compiler: Arc<Compiler>, tenant: &str, upload: &str) -> Result<Vec<u8>, PluginError> {
        let tenant: TenantId = tenant.parse().expect("a name");
        let made = compiler.compile(upload.as_bytes(), Some(&tenant)).await;
        made.map(|(artefact, _)| artefact.bytes().to_vec())
    }

    #[tokio::test]
    async fn a_slow_upload_is_waited_for_by_its_own_tenant_alone() {
        let compiler = compiler(2);
        let flood: Vec<_> =
            (0..TENANT_QUEUE_MAX).map(|_| tokio::spawn(compile(Arc::clone(&compiler), "flood", "slow"))).collect();
        let name: TenantId = "flood".parse().expect("a name");
        while compiler.queue.try_take(Some(&name)).is_some() {
            tokio::task::yield_now().await;
        }
        let refused = compile(Arc::clone(&compiler), "flood", "quick").await;
        assert_eq!(refused, Err(PluginError::Busy { limit: "the compiler's queue" }), "its part of the queue is full");
        let other = tokio::time::timeout(Duration::from_secs(60), compile(compiler, "other", "quick")).await;
        assert_eq!(other.expect("it has a child of its own"), Ok(b"made".to_vec()));
        flood.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[test]
    fn children_fit_the_machine() {
        let gib = |count: u64| count << 30;
        assert_eq!(children_for(8, gib(64), gib(4)), CHILDREN_MAX);
        assert_eq!(children_for(1, gib(64), gib(4)), 1, "one core");
        assert_eq!(children_for(8, gib(15), gib(4)), 1, "two of 4 GiB are more than half");
        assert_eq!(children_for(8, gib(2), gib(4)), 1);
        assert!(memory_bytes() > 0);
    }
}
