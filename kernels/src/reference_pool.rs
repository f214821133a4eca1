//! The threads that the f32 reference operations run on. Not here: the pool of the fast ones (`pool.rs`).

/// A pool of its own, so that nothing process-global decides the number of threads.
pub struct ReferencePool(rayon::ThreadPool);

impl ReferencePool {
    /// A pool of this many threads; at least one.
    ///
    /// # Errors
    /// If the system refuses the threads.
    pub fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1));
        Ok(Self(builder.thread_name(|index| format!("engine-{index}")).build()?))
    }

    /// Runs the work in the pool and waits for it.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.install(work)
    }
}
