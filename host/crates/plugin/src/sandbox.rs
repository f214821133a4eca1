//! The engine: which WebAssembly is accepted, how much is reserved, what a guest may link to. Not here: limits of one
//! call or one instance.

use std::hash::{Hash, Hasher};

use types::Digest;
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::bindings::Policy;
use crate::bindings::agent::tenon::plugin as agent;
use crate::bindings::standard::Standard;
use crate::state::InstanceState;
use crate::{PluginError, PluginLimits};

/// Native stack for host functions below the guest's own stack, in bytes.
const HOST_STACK_BYTES: usize = 1 << 20;
/// Largest description of one component instance, or one core instance, in bytes.
const INSTANCE_BYTES_MAX: usize = 1 << 20;

/// The first bytes of a memory, which are set back in place whether they were written or not: the stack, the data and the first of
/// the heap of a guest in Rust that is linked as our template does it.
///
/// Asking the kernel which were written (`pagemap_scan`) would save the wiping, and cannot be trusted with other tenants' data: what was
/// written and then swapped out is not told, and would be there for the next instance (wasmtime's pull request 14357).
const MEMORY_WIPED_BYTES: usize = 128 << 10;
/// The same of a table, and the top of a stack.
const TABLE_KEPT_BYTES: usize = 64 << 10;
const STACK_KEPT_BYTES: usize = 32 << 10;

/// What the compiler child and the serving process have in common. Artefacts fit only engines whose configuration agrees.
fn common(limits: &PluginLimits) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(limits.stack_bytes_max)
        .async_stack_size(limits.stack_bytes_max.saturating_add(HOST_STACK_BYTES))
        .async_stack_zeroing(true)
        // The same request and seed give the same decision on every machine.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .wasm_memory64(false)
        .concurrency_support(false);
    config
}

/// The engine of the compiler child: one thread, nothing reserved.
pub(crate) fn compiling_engine(limits: &PluginLimits) -> wasmtime::Result<Engine> {
    let mut config = common(limits);
    config.parallel_compilation(false);
    Engine::new(&config)
}

/// The engine of the serving process.
pub(crate) fn serving_engine(limits: &PluginLimits, instances_max: u32) -> wasmtime::Result<Engine> {
    // What an instance wrote is set back to what it was before the next one gets it, in place; what is over these sizes is
    // given back to the kernel, and comes anew. Faults on fresh pages cost a small guest more than its calls.
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances_max)
        .total_core_instances(instances_max.saturating_mul(limits.core_instances_max))
        .total_memories(instances_max.saturating_mul(limits.memories_max))
        .total_tables(instances_max.saturating_mul(limits.tables_max))
        .total_stacks(instances_max)
        .max_component_instance_size(INSTANCE_BYTES_MAX)
        .max_core_instance_size(INSTANCE_BYTES_MAX)
        .max_core_instances_per_component(limits.core_instances_max)
        .max_memories_per_component(limits.memories_max)
        .max_memories_per_module(limits.memories_max)
        .max_tables_per_component(limits.tables_max)
        .max_tables_per_module(limits.tables_max)
        .max_memory_size(limits.memory_bytes_max)
        .table_elements(limits.table_elements_max)
        .linear_memory_keep_resident(MEMORY_WIPED_BYTES)
        .table_keep_resident(TABLE_KEPT_BYTES)
        .async_stack_keep_resident(STACK_KEPT_BYTES)
        .pagemap_scan(Enabled::No);
    let mut config = common(limits);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// Our interfaces, the standard ones that are granted, and an inert WASI for components whose toolchain linked it.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<InstanceState>> {
    let mut linker = Linker::new(engine);
    Policy::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    agent::sessions::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    agent::output::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    Standard::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    Ok(linker)
}

/// Names everything that compiled code depends on: wasmtime's version, its configuration, the processor.
pub(crate) fn fingerprint(engine: &Engine) -> Digest {
    let mut hasher = Fingerprint(blake3::Hasher::new_derive_key("tenon plugin engine fingerprint v1"));
    engine.precompile_compatibility_hash().hash(&mut hasher);
    Digest::from_bytes(*hasher.0.finalize().as_bytes())
}

struct Fingerprint(blake3::Hasher);

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let mut first = [0; 8];
        self.0.finalize_xof().fill(&mut first);
        u64::from_le_bytes(first)
    }
}

pub(crate) fn internal(error: &wasmtime::Error) -> PluginError {
    PluginError::Internal(format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_compiles_for_the_serving_engine() {
        // The child is told only the limits on compiling.
        let compiling = compiling_engine(&PluginLimits::default()).expect("an engine");
        let limits = PluginLimits { stack_bytes_max: 64 << 10, memory_bytes_max: 1 << 20, ..PluginLimits::default() };
        let serving = serving_engine(&limits, 4).expect("an engine");
        assert_eq!(fingerprint(&compiling), fingerprint(&serving));
    }
}
