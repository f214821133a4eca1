//! Counts the memory of one instance: the sum over all linear memories, and over all tables. wasmtime's own limits are
//! for each memory alone. Not here: limits on time, which are in `meter.rs`.

use wasmtime::ResourceLimiter;

use crate::PluginLimits;

/// What an instance asked too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Memory,
    Table,
}

/// Refuses growth past the sums. A guest sees `memory.grow` fail; what it asked too much is remembered, so that the trap
/// that usually follows can be explained.
#[derive(Debug)]
pub(crate) struct SumLimiter {
    memory_bytes: usize,
    memory_bytes_max: usize,
    refused: Option<Refused>,
    table_elements: usize,
    table_elements_max: usize,
    core_instances_max: usize,
    memories_max: usize,
    tables_max: usize,
}

impl SumLimiter {
    pub(crate) fn new(limits: &PluginLimits) -> Self {
        let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        Self {
            memory_bytes: 0,
            memory_bytes_max: limits.memory_bytes_max,
            refused: None,
            table_elements: 0,
            table_elements_max: limits.table_elements_max,
            core_instances_max: count(limits.core_instances_max),
            memories_max: count(limits.memories_max),
            tables_max: count(limits.tables_max),
        }
    }

    /// Of all memories, touched or not.
    pub(crate) const fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// What was refused last since the last call of this.
    pub(crate) fn take_refused(&mut self) -> Option<Refused> {
        self.refused.take()
    }
}

/// The sum after one part of it grows from `current` to `desired`, if that is within the limit.
fn grown(sum: usize, current: usize, desired: usize, max: usize) -> Option<usize> {
    let sum = sum.checked_add(desired.checked_sub(current)?)?;
    (sum <= max).then_some(sum)
}

impl ResourceLimiter for SumLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let within_own = maximum.is_none_or(|maximum| desired <= maximum);
        let sum = grown(self.memory_bytes, current, desired, self.memory_bytes_max);
        match sum.filter(|_| within_own) {
            Some(sum) => {
                self.memory_bytes = sum;
                Ok(true)
            }
            None => {
                self.refused = Some(Refused::Memory);
                Ok(false)
            }
        }
    }

    // A growth that was counted and then failed stays counted: the sum may be too high, never too low.
    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let within_own = maximum.is_none_or(|maximum| desired <= maximum);
        let sum = grown(self.table_elements, current, desired, self.table_elements_max).filter(|_| within_own);
        match sum {
            Some(sum) => self.table_elements = sum,
            None => self.refused = Some(Refused::Table),
        }
        Ok(sum.is_some())
    }

    fn instances(&self) -> usize {
        self.core_instances_max
    }

    fn tables(&self) -> usize {
        self.tables_max
    }

    fn memories(&self) -> usize {
        self.memories_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_counts_not_each_memory() {
        let limits = PluginLimits { memory_bytes_max: 100, table_elements_max: 10, ..PluginLimits::default() };
        let mut limiter = SumLimiter::new(&limits);
        assert!(limiter.memory_growing(0, 60, None).expect("no trap"));
        assert!(!limiter.memory_growing(0, 60, None).expect("no trap"));
        assert_eq!((limiter.take_refused(), limiter.take_refused()), (Some(Refused::Memory), None));
        assert!(limiter.memory_growing(0, 40, None).expect("no trap"));
        assert!(!limiter.memory_growing(60, 61, None).expect("no trap"));
        assert!(!limiter.memory_growing(60, usize::MAX, None).expect("no trap"));
        assert!(limiter.table_growing(0, 10, None).expect("no trap"));
        assert!(!limiter.table_growing(0, 1, None).expect("no trap"));
        assert_eq!(limiter.take_refused(), Some(Refused::Table));
    }

    #[test]
    fn a_memory_has_its_own_maximum_too() {
        let mut limiter = SumLimiter::new(&PluginLimits::default());
        assert!(!limiter.memory_growing(0, 20, Some(10)).expect("no trap"));
        assert!(!limiter.table_growing(0, 20, Some(10)).expect("no trap"));
    }
}
