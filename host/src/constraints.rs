//! What outputs must match, read once for each tenant and kept for the next request: before a request has its place in the queue,
//! off the async threads, few at a time, in bounded time. Not here: how it is read and what its masks are (`model`), and when they
//! are asked for (`engine`).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::OutputConstraint;
use model::{Base, CompiledConstraint, ConstraintCompiler, ConstraintError, MaskWorkers};
use moka::future::Cache;
use tokio::sync::Semaphore;
use types::{Constraint, Digest, TenantId};

use crate::error::Error;

/// Constraints that are read at the same time.
const READERS: usize = 2;
/// For its turn and for being read.
const READ_TIME_MAX: Duration = Duration::from_secs(10);
/// Of all that is kept, as it was when it was last looked for.
const KEPT_BYTES_MAX: u64 = 128 << 20;
/// What one takes beside its lexer, about.
const OVERHEAD_BYTES: u64 = 64 << 10;
/// Threads that find out masks while the engine's step runs.
const MASK_THREADS: usize = 2;

/// Reads and keeps constraints. Cheap to ask twice.
pub(crate) struct Constraints {
    base: Arc<Base>,
    /// Made when it is first needed: most hosts read no constraint.
    compiler: Arc<OnceLock<ConstraintCompiler>>,
    workers: Arc<MaskWorkers>,
    /// By tenant and content: that another tenant has read the same one must not show by time.
    kept: Cache<Digest, Arc<CompiledConstraint>>,
    turns: Arc<Semaphore>,
}

/// One that was read, for as many outputs as a request has.
#[derive(Clone)]
pub(crate) struct ReadConstraint {
    compiled: Arc<CompiledConstraint>,
    workers: Arc<MaskWorkers>,
}

impl Constraints {
    pub(crate) fn new(base: Arc<Base>) -> Result<Self, Error> {
        let workers = MaskWorkers::start(MASK_THREADS).map_err(|error| Error::Internal(error.to_string()))?;
        let bytes = |_: &Digest, one: &Arc<CompiledConstraint>| -> u32 {
            u32::try_from(one.bytes().saturating_add(OVERHEAD_BYTES)).unwrap_or(u32::MAX)
        };
        Ok(Self {
            base,
            compiler: Arc::new(OnceLock::new()),
            workers: Arc::new(workers),
            kept: Cache::builder().max_capacity(KEPT_BYTES_MAX).weigher(bytes).build(),
            turns: Arc::new(Semaphore::new(READERS)),
        })
    }

    /// Reads one, or finds it.
    ///
    /// # Errors
    /// What is wrong with it; `by_caller` says who wrote it.
    pub(crate) async fn read(
        &self,
        tenant: &TenantId,
        constraint: &Constraint,
        by_caller: bool,
    ) -> Result<ReadConstraint, Error> {
        let key = key(tenant, constraint);
        match self.kept.get(&key).await {
            Some(kept) if kept.is_broken() => self.kept.invalidate(&key).await,
            // It is weighed again: it grows with what its lexer learns.
            Some(kept) => self.kept.insert(key, kept).await,
            None => {}
        }
        let compiled = self.kept.try_get_with(key, self.compile(constraint)).await;
        let compiled = compiled.map_err(|source| Error::Constraint { source, by_caller })?;
        Ok(ReadConstraint { compiled, workers: Arc::clone(&self.workers) })
    }

    async fn compile(&self, constraint: &Constraint) -> Result<Arc<CompiledConstraint>, ConstraintError> {
        let kind = constraint.kind();
        let invalid = |reason: String| ConstraintError::Invalid { kind, reason };
        let (base, compiler) = (Arc::clone(&self.base), Arc::clone(&self.compiler));
        let (turns, constraint) = (Arc::clone(&self.turns), constraint.clone());
        let reading = async {
            let turn = turns.acquire_owned().await.map_err(|_| invalid("the host stops".into()))?;
            let read = tokio::task::spawn_blocking(move || {
                let made;
                let compiler = match compiler.get() {
                    Some(compiler) => compiler,
                    None => {
                        made = ConstraintCompiler::new(&base)
                            .map_err(|error| ConstraintError::Invalid { kind, reason: error.to_string() })?;
                        compiler.get_or_init(|| made)
                    }
                };
                let compiled = compiler.compile(&constraint).map(Arc::new);
                // Kept until here, even if nobody waits any more: no more than these read at a time.
                drop(turn);
                compiled
            });
            read.await.map_err(|error| invalid(format!("it was not read: {error}")))?
        };
        let late = |_| invalid(format!("it was not read in {} s; make it simpler", READ_TIME_MAX.as_secs()));
        tokio::time::timeout(READ_TIME_MAX, reading).await.map_err(late)?
    }
}

impl ReadConstraint {
    /// For one output that has these tokens already.
    ///
    /// # Errors
    /// If they do not match.
    pub(crate) fn begin(&self, tokens: &[u32]) -> Result<Box<dyn OutputConstraint>, Error> {
        let begun = self.compiled.begin(tokens, &self.workers);
        begun.map_err(|source| Error::Constraint { source: Arc::new(source), by_caller: true })
    }
}

/// Of a tenant's constraint.
fn key(tenant: &TenantId, constraint: &Constraint) -> Digest {
    let parts = [tenant.as_str().as_bytes(), constraint.kind().as_bytes(), constraint.text().as_bytes()];
    Digest::of_parts("tenon 2026-11 constraint", parts)
}
