//! The log of every function: what its plugin said, and one line for each invocation that failed, in bounded rings in
//! memory. Not here: who may read which log (`http/logs.rs`), and the host's own log.
//!
//! A ring forgets its oldest lines and says how many. It does not outlive the process, nor its function: a line of an
//! invocation that still runs when its function is deleted goes nowhere.

mod ring;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use types::{FunctionName, TenantId};

pub(crate) use ring::{Cursor, Page};
use ring::{Ring, Unread};

/// What is kept at most. A line counts with its text and [`ring::LINE_OVERHEAD_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogLimits {
    /// Bytes of one line; what is longer is cut.
    pub(crate) line_bytes_max: usize,
    /// Lines of one function.
    pub(crate) function_lines_max: usize,
    /// Bytes of one function's lines.
    pub(crate) function_bytes_max: usize,
    /// Bytes of all lines of a tenant.
    pub(crate) tenant_bytes_max: usize,
    /// Bytes of all lines.
    pub(crate) host_bytes_max: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            line_bytes_max: 8 << 10,
            function_lines_max: 4096,
            function_bytes_max: 1 << 20,
            tenant_bytes_max: 16 << 20,
            host_bytes_max: 256 << 20,
        }
    }
}

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// For whoever writes the plugin.
    Debug,
    /// What happened.
    Info,
    /// What should not.
    Warn,
    /// What failed.
    Error,
}

impl Level {
    /// A stable word.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// One line. The message is as the plugin wrote it: whoever prints it must mind control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Counts from 1 within the function's log.
    pub(crate) sequence: u64,
    /// Milliseconds since 1970-01-01 UTC.
    pub(crate) time_unix_ms: u64,
    pub(crate) level: Level,
    /// The function's version that was invoked.
    pub(crate) version: u32,
    /// The request that it is about.
    pub(crate) request_id: Arc<str>,
    pub(crate) message: String,
}

/// The logs of all functions. Cheap to clone; the clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct FunctionLogs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: LogLimits,
    tenants: Mutex<Tenants>,
}

#[derive(Debug, Default)]
struct Tenants {
    bytes: usize,
    logs: HashMap<TenantId, TenantLogs>,
    /// Names rings, so that a deleted function's is told from its successor's.
    epochs: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct TenantLogs {
    bytes: usize,
    rings: HashMap<FunctionName, Ring>,
}

/// Writes lines about one invocation. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct InvocationLog {
    shared: Arc<Shared>,
    tenant: TenantId,
    function: FunctionName,
    version: u32,
    request_id: Arc<str>,
    epoch: u64,
}

impl FunctionLogs {
    /// Empty logs within limits.
    pub(crate) fn new(limits: LogLimits) -> Self {
        // Not from 0: a cursor from before a restart must not fit a ring of after it.
        let tenants = Tenants { epochs: now_unix_ms().wrapping_mul(1 << 20), ..Tenants::default() };
        Self { shared: Arc::new(Shared { limits, tenants: Mutex::new(tenants) }) }
    }

    /// The log of one invocation of a function that exists.
    pub(crate) fn invocation(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        version: u32,
        request_id: &str,
    ) -> InvocationLog {
        let epoch = self.shared.lock().ring(tenant, function).epoch;
        InvocationLog {
            shared: Arc::clone(&self.shared),
            tenant: tenant.clone(),
            function: function.clone(),
            version,
            request_id: request_id.into(),
            epoch,
        }
    }

    /// Lines of a function that exists: with a cursor the oldest after it, without one the newest.
    pub(crate) fn read(&self, tenant: &TenantId, function: &FunctionName, from: Cursor, lines_max: usize) -> Page {
        self.shared.lock().ring(tenant, function).read(from, lines_max)
    }

    /// Waits until there are lines after the cursor, the log ends, or the time is up.
    pub(crate) async fn wait(&self, tenant: &TenantId, function: &FunctionName, after: Cursor, wait_max: Duration) {
        let written = {
            let mut tenants = self.shared.lock();
            if tenants.closed {
                return;
            }
            match tenants.ring(tenant, function).unread(after) {
                Unread::Some => return,
                Unread::None(written) => written,
            }
        };
        let mut written: watch::Receiver<()> = written;
        // Out of time, or the ring is gone: either way whoever waits looks again.
        drop(tokio::time::timeout(wait_max, written.changed()).await);
    }

    /// Forgets a function that was deleted.
    pub(crate) fn remove(&self, tenant: &TenantId, function: &FunctionName) {
        let mut tenants = self.shared.lock();
        let Some(logs) = tenants.logs.get_mut(tenant) else { return };
        let bytes = logs.rings.remove(function).map_or(0, |ring| ring.bytes());
        logs.bytes -= bytes;
        if logs.rings.is_empty() {
            tenants.logs.remove(tenant);
        }
        tenants.bytes -= bytes;
    }

    /// Ends all waiting, for good: the host drains.
    pub(crate) fn close(&self) {
        let mut tenants = self.shared.lock();
        tenants.closed = true;
        for ring in tenants.logs.values().flat_map(|logs| logs.rings.values()) {
            ring.wake();
        }
    }
}

impl InvocationLog {
    /// Adds a line, unless the function was deleted since.
    pub(crate) fn write(&self, level: Level, message: &str) {
        let limits = &self.shared.limits;
        let line = Line {
            sequence: 0,
            time_unix_ms: now_unix_ms(),
            level,
            version: self.version,
            request_id: Arc::clone(&self.request_id),
            message: cut(message, limits.line_bytes_max),
        };
        self.shared.lock().write(self, line, limits);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tenants> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tenants {
    fn ring(&mut self, tenant: &TenantId, function: &FunctionName) -> &mut Ring {
        let epochs = &mut self.epochs;
        let rings = &mut self.logs.entry(tenant.clone()).or_default().rings;
        rings.entry(function.clone()).or_insert_with(|| {
            *epochs = epochs.wrapping_add(1);
            Ring::new(*epochs)
        })
    }

    fn write(&mut self, log: &InvocationLog, line: Line, limits: &LogLimits) {
        let Some(logs) = self.logs.get_mut(&log.tenant) else { return };
        let Some(ring) = logs.rings.get_mut(&log.function).filter(|ring| ring.epoch == log.epoch) else { return };
        let before = ring.bytes();
        ring.push(line, limits.function_lines_max, limits.function_bytes_max);
        let (after, tenant_bytes) = (ring.bytes(), logs.bytes);
        logs.bytes = tenant_bytes - before + after;
        self.bytes = self.bytes - before + after;
        if logs.bytes > limits.tenant_bytes_max {
            self.bytes -= logs.shrink(limits.tenant_bytes_max);
        }
        while self.bytes > limits.host_bytes_max {
            // Whoever has most gives first: one tenant's flood does not cost another its lines.
            let Some(largest) = self.logs.values_mut().max_by_key(|logs| logs.bytes) else { return };
            let room = largest.bytes.saturating_sub(self.bytes - limits.host_bytes_max);
            self.bytes -= largest.shrink(room);
        }
    }
}

impl TenantLogs {
    /// Drops the oldest lines of the largest logs until a sixteenth below so many bytes, so that it need not be done for
    /// every line; how many bytes went.
    fn shrink(&mut self, bytes_max: usize) -> usize {
        let (before, goal) = (self.bytes, bytes_max - bytes_max / 16);
        while self.bytes > goal {
            let Some(ring) = self.rings.values_mut().max_by_key(|ring| ring.bytes()) else { break };
            let freed = ring.drop_oldest();
            self.bytes -= freed;
            if freed == 0 {
                break;
            }
        }
        before - self.bytes
    }
}

/// The first so many bytes, and a mark if there were more.
fn cut(message: &str, bytes_max: usize) -> String {
    if message.len() <= bytes_max {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(bytes_max);
    format!("{} … ({} bytes were cut)", message.get(..end).unwrap_or_default(), message.len() - end)
}

fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
