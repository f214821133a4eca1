//! The log of every function: what its plugin said, and one line for each invocation that failed, in bounded rings in
//! memory. Not here: who may read which log (`http/logs.rs`), and the host's own log.
//!
//! A ring forgets its oldest lines and says how many. It does not outlive the process, nor its function: a line of an
//! invocation that still runs when its function is deleted goes nowhere, and a function that takes the name of a deleted
//! one has a ring of its own, whatever became of the other.

mod ring;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
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

/// A function from its first deployment to its deletion: whose log it is.
#[derive(Clone, Debug)]
pub(crate) struct LogOwner {
    tenant: TenantId,
    function: FunctionName,
    /// Tells it from those that had the name before (smaller) and will have it (larger).
    life: u32,
}

impl LogOwner {
    /// The function that the registry knows by this name, in this life.
    pub(crate) fn new(tenant: &TenantId, function: &FunctionName, life: u32) -> Self {
        Self { tenant: tenant.clone(), function: function.clone(), life }
    }
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
    /// Rings made so far.
    rings: u64,
    /// Names rings by a keyed hash of that count: tenants see the names, and learn nothing from them. The key is another one
    /// after a restart, so that a cursor from before fits no ring.
    epochs: RandomState,
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
    owner: LogOwner,
    version: u32,
    request_id: Arc<str>,
}

impl FunctionLogs {
    /// Empty logs within limits.
    pub(crate) fn new(limits: LogLimits) -> Self {
        Self { shared: Arc::new(Shared { limits, tenants: Mutex::default() }) }
    }

    /// The log of one invocation of a function that exists.
    pub(crate) fn invocation(&self, owner: LogOwner, version: u32, request_id: &str) -> InvocationLog {
        self.shared.lock().ring(&owner);
        InvocationLog { shared: Arc::clone(&self.shared), owner, version, request_id: request_id.into() }
    }

    /// Lines of a function that exists: with a cursor the oldest after it, without one the newest.
    pub(crate) fn read(&self, owner: &LogOwner, from: Cursor, lines_max: usize) -> Page {
        match self.shared.lock().ring(owner) {
            Some(ring) => ring.read(from, lines_max),
            None => Page { lines: Vec::new(), dropped: 0, next: from },
        }
    }

    /// Waits until there are lines after the cursor, the log ends, or the time is up.
    pub(crate) async fn wait(&self, owner: &LogOwner, after: Cursor, wait_max: Duration) {
        let written = {
            let mut tenants = self.shared.lock();
            if tenants.closed {
                return;
            }
            match tenants.ring(owner).map(|ring| ring.unread(after)) {
                None | Some(Unread::Some) => return,
                Some(Unread::None(written)) => written,
            }
        };
        let mut written: watch::Receiver<()> = written;
        // Out of time, or the ring is gone: either way whoever waits looks again.
        drop(tokio::time::timeout(wait_max, written.changed()).await);
    }

    /// Forgets a function that was deleted, but not a `successor` that took its name since.
    pub(crate) fn remove(&self, tenant: &TenantId, function: &FunctionName, successor: u32) {
        let mut tenants = self.shared.lock();
        let Some(logs) = tenants.logs.get_mut(tenant) else { return };
        if logs.rings.get(function).is_none_or(|ring| ring.life >= successor) {
            return;
        }
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
    /// The ring of a function, in place of one that a predecessor left; none if it has a successor.
    fn ring(&mut self, owner: &LogOwner) -> Option<&mut Ring> {
        let logs = self.logs.entry(owner.tenant.clone()).or_default();
        let before = logs.rings.get(&owner.function);
        if before.is_none_or(|ring| ring.life < owner.life) {
            let bytes = before.map_or(0, Ring::bytes);
            logs.bytes -= bytes;
            self.bytes -= bytes;
            self.rings = self.rings.wrapping_add(1);
            let epoch = self.epochs.hash_one(self.rings);
            logs.rings.insert(owner.function.clone(), Ring::new(owner.life, epoch));
        }
        logs.rings.get_mut(&owner.function).filter(|ring| ring.life == owner.life)
    }

    fn write(&mut self, log: &InvocationLog, line: Line, limits: &LogLimits) {
        let LogOwner { tenant, function, life } = &log.owner;
        let Some(logs) = self.logs.get_mut(tenant) else { return };
        let Some(ring) = logs.rings.get_mut(function).filter(|ring| ring.life == *life) else { return };
        let before = ring.bytes();
        ring.push(line, limits.function_lines_max, limits.function_bytes_max);
        let (after, tenant_bytes) = (ring.bytes(), logs.bytes);
        logs.bytes = tenant_bytes - before + after;
        self.bytes = self.bytes - before + after;
        // Everybody waits meanwhile, so that it must be rare and short: each time it makes room for many lines, not for all.
        if logs.bytes > limits.tenant_bytes_max {
            self.bytes -= logs.shrink(limits.tenant_bytes_max - limits.tenant_bytes_max / 64);
        }
        if self.bytes > limits.host_bytes_max {
            self.shrink(limits.host_bytes_max - limits.host_bytes_max / 64);
        }
    }

    /// Whoever has most gives first: one tenant's flood does not cost another its lines.
    fn shrink(&mut self, goal: usize) {
        let level = level(self.logs.values().map(|logs| logs.bytes).collect(), goal);
        for logs in self.logs.values_mut().filter(|logs| logs.bytes > level) {
            self.bytes -= logs.shrink(level);
        }
    }
}

impl TenantLogs {
    /// Drops the oldest lines of the largest logs until there are at most so many bytes; how many went.
    fn shrink(&mut self, goal: usize) -> usize {
        let before = self.bytes;
        let level = level(self.rings.values().map(Ring::bytes).collect(), goal);
        for ring in self.rings.values_mut() {
            while ring.bytes() > level {
                self.bytes -= ring.drop_oldest();
            }
        }
        before - self.bytes
    }
}

/// What the largest may keep, if those below it keep all, so that the sum is at most the goal.
fn level(mut sizes: Vec<usize>, goal: usize) -> usize {
    sizes.sort_unstable();
    let (mut rest, mut left) = (goal, sizes.len());
    for size in sizes {
        let share = rest / left.max(1);
        if size > share {
            return share;
        }
        (rest, left) = (rest - size, left - 1);
    }
    usize::MAX
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
