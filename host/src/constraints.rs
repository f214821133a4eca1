//! What outputs must match, read once for each tenant and kept for the next request: before a request has its place in the queue,
//! off the async threads, few at a time and of each tenant one, in bounded time. Not here: how it is read and what its masks are
//! (`model`), and when they are asked for (`engine`).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::{OutputConstraint, OutputState, TokenMask};
use model::{Base, CompiledConstraint, ConstraintCompiler, ConstraintError, MaskWorkers};
use moka::Entry;
use moka::future::Cache;
use moka::ops::compute::Op;
use plugin::Turns;
use tokio::runtime::Handle;
use types::{Constraint, Digest, TenantId};

use crate::error::Error;

/// Constraints that are read at the same time.
const READERS: usize = 2;
/// For being read, once it has its turn.
const READ_TIME_MAX: Duration = Duration::from_secs(10);
/// For its turn.
const TURN_TIME_MAX: Duration = Duration::from_secs(20);
/// Of all that is kept, as it was when it was last looked at.
const KEPT_BYTES_MAX: u64 = 128 << 20;
/// One that has grown by more since it was read is not kept: the next request has it read again.
const GROWN_BYTES_MAX: u64 = 4 << 20;
/// One that nobody asks for is not kept for longer.
const IDLE_TIME_MAX: Duration = Duration::from_secs(600);
/// What one takes beside its lexer, about.
const OVERHEAD_BYTES: u64 = 64 << 10;
/// Threads that find out masks while the engine's step runs.
const MASK_THREADS: usize = 2;

/// By tenant and content: that another tenant has read the same one must not show by time.
type Kept = Cache<Digest, Arc<CompiledConstraint>>;

/// Reads and keeps constraints. Cheap to ask twice.
pub(crate) struct Constraints {
    base: Arc<Base>,
    /// Made when it is first needed: most hosts read no constraint. Or why there is none.
    compiler: Arc<OnceLock<Result<Arc<ConstraintCompiler>, String>>>,
    workers: Arc<MaskWorkers>,
    kept: Kept,
    /// One of each tenant.
    turns: Turns,
}

/// One that was read, for as many outputs as a request has.
#[derive(Clone)]
pub(crate) struct ReadConstraint {
    used: Arc<Used>,
    workers: Arc<MaskWorkers>,
    by_caller: bool,
}

impl Constraints {
    pub(crate) fn new(base: Arc<Base>) -> Result<Self, Error> {
        let workers = MaskWorkers::start(MASK_THREADS).map_err(|error| Error::Internal(error.to_string()))?;
        let bytes = |_: &Digest, one: &Arc<CompiledConstraint>| -> u32 {
            u32::try_from(one.bytes().saturating_add(OVERHEAD_BYTES)).unwrap_or(u32::MAX)
        };
        let kept = Cache::builder().max_capacity(KEPT_BYTES_MAX).weigher(bytes).time_to_idle(IDLE_TIME_MAX);
        Ok(Self {
            base,
            compiler: Arc::new(OnceLock::new()),
            workers: Arc::new(workers),
            kept: kept.build(),
            turns: Turns::new(READERS, 1),
        })
    }

    /// Reads one, or finds it.
    ///
    /// # Errors
    /// What is wrong with it, where `by_caller` says who wrote it; or that there was no turn for it in time.
    pub(crate) async fn read(
        &self,
        tenant: &TenantId,
        constraint: &Constraint,
        by_caller: bool,
    ) -> Result<ReadConstraint, Error> {
        let key = key(tenant, constraint);
        if self.kept.get(&key).await.is_some_and(|kept| kept.is_broken()) {
            self.kept.invalidate(&key).await;
        }
        let compiled = self.kept.try_get_with(key, self.compile(tenant, constraint)).await;
        let compiled = compiled.map_err(|source| Error::Constraint { source, by_caller })?;
        let used = Used { compiled, key, kept: self.kept.clone(), runtime: Handle::current() };
        Ok(ReadConstraint { used: Arc::new(used), workers: Arc::clone(&self.workers), by_caller })
    }

    async fn compile(
        &self,
        tenant: &TenantId,
        constraint: &Constraint,
    ) -> Result<Arc<CompiledConstraint>, ConstraintError> {
        // First, and in no caller's time.
        let compiler = self.compiler().await?;
        let taken = tokio::time::timeout(TURN_TIME_MAX, self.turns.take(tenant)).await;
        let turn = taken.map_err(|_| ConstraintError::Busy)?;
        let turn = turn.map_err(|error| ConstraintError::Internal(error.to_string()))?;
        let (kind, constraint) = (constraint.kind(), constraint.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let compiled = compiler.compile(&constraint).map(Arc::new);
            // Kept until here, even if nobody waits any more: no more than these read at a time.
            drop(turn);
            compiled
        });
        let late = |_| ConstraintError::Invalid {
            kind,
            reason: format!("it was not read in {} s; make it simpler", READ_TIME_MAX.as_secs()),
        };
        let read = tokio::time::timeout(READ_TIME_MAX, reading).await.map_err(late)?;
        read.map_err(|error| ConstraintError::Internal(error.to_string()))?
    }

    async fn compiler(&self) -> Result<Arc<ConstraintCompiler>, ConstraintError> {
        let made = match self.compiler.get() {
            Some(made) => made.clone(),
            None => {
                let (base, compiler) = (Arc::clone(&self.base), Arc::clone(&self.compiler));
                let make = move || ConstraintCompiler::new(&base).map(Arc::new).map_err(|error| error.to_string());
                let made = tokio::task::spawn_blocking(move || compiler.get_or_init(make).clone()).await;
                made.map_err(|error| ConstraintError::Internal(error.to_string()))?
            }
        };
        made.map_err(ConstraintError::Internal)
    }
}

impl ReadConstraint {
    /// For one output that has these tokens already.
    ///
    /// # Errors
    /// If they do not match.
    pub(crate) fn begin(&self, tokens: &[u32]) -> Result<Box<dyn OutputConstraint>, Error> {
        let begun = self.used.compiled.begin(tokens, &self.workers).map_err(|source| self.error(source))?;
        Ok(Box::new(WatchedOutput { output: begun, _used: Arc::clone(&self.used) }))
    }

    /// Of an output that could not be kept to it.
    pub(crate) fn failed(&self, why: String) -> Error {
        self.error(ConstraintError::Failed(why))
    }

    fn error(&self, source: ConstraintError) -> Error {
        Error::Constraint { source: Arc::new(source), by_caller: self.by_caller }
    }
}

/// What a request uses, until the last of its outputs has ended: it is looked at then, for it grows with what its lexer learns.
struct Used {
    compiled: Arc<CompiledConstraint>,
    key: Digest,
    kept: Kept,
    /// Outputs end on the engine's thread, which has none.
    runtime: Handle,
}

impl Drop for Used {
    fn drop(&mut self) {
        let looking = look_again(self.kept.clone(), self.key, Arc::clone(&self.compiled));
        // Detached: it ends by itself, and is of no use when the host stops.
        drop(self.runtime.spawn(looking));
    }
}

/// Weighs it again, or keeps it no longer.
async fn look_again(kept: Kept, key: Digest, compiled: Arc<CompiledConstraint>) {
    let is_over = compiled.is_broken() || compiled.grown_bytes() > GROWN_BYTES_MAX;
    let look = |found: Option<Entry<Digest, Arc<CompiledConstraint>>>| {
        std::future::ready(match found {
            Some(entry) if !Arc::ptr_eq(entry.value(), &compiled) => Op::Nop,
            Some(_) if is_over => Op::Remove,
            Some(entry) => Op::Put(entry.into_value()),
            None => Op::Nop,
        })
    };
    let _ = kept.entry(key).and_compute_with(look).await;
    // What has become too much goes now, not with the next request.
    kept.run_pending_tasks().await;
}

/// An output, and what is to be looked at when it has ended.
#[derive(Debug)]
struct WatchedOutput {
    // Dropped first.
    output: Box<dyn OutputConstraint>,
    _used: Arc<Used>,
}

impl OutputConstraint for WatchedOutput {
    fn mask(&mut self) -> Arc<TokenMask> {
        self.output.mask()
    }

    fn push(&mut self, id: u32) -> Result<OutputState, String> {
        self.output.push(id)
    }
}

impl std::fmt::Debug for Used {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Used").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Of a tenant's constraint.
fn key(tenant: &TenantId, constraint: &Constraint) -> Digest {
    let parts = [tenant.as_str().as_bytes(), constraint.kind().as_bytes(), constraint.text().as_bytes()];
    Digest::of_parts("tenon 2026-11 constraint", parts)
}

#[cfg(test)]
mod tests {
    use types::Blame;

    use super::*;

    #[test]
    fn the_fault_is_the_authors_unless_it_is_the_hosts() {
        let blame = |source: ConstraintError, by_caller| {
            let error = Error::Constraint { source: Arc::new(source), by_caller };
            (error.blame(), error.retry_after().is_some())
        };
        assert_eq!(blame(ConstraintError::Failed("too much".into()), true), (Blame::Caller, false));
        assert_eq!(blame(ConstraintError::Failed("too much".into()), false), (Blame::Function, false));
        for by_caller in [true, false] {
            assert_eq!(blame(ConstraintError::Busy, by_caller), (Blame::Capacity, true));
            assert_eq!(blame(ConstraintError::Internal("lost".into()), by_caller), (Blame::Host, false));
        }
    }
}
