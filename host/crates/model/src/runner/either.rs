//! Whichever runner a host has. Not here: which one that is.

use std::sync::Arc;

use engine::{Batch, ModelRunner, RunnerError, RunnerShape, SampledToken, Slot};
use types::Digest;

use super::{AdapterStaging, CpuRunner, CudaRunner, Precision};
use crate::LoraAdapter;

/// One of the runners.
pub enum Runner {
    /// On the CPU.
    Cpu(Box<CpuRunner>),
    /// On a CUDA device.
    Cuda(Box<CudaRunner>),
}

impl Runner {
    /// As receipts and metrics call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            // Whoever computes it again must know: the bits are others.
            Self::Cpu(runner) if runner.separates_prompts() => "cpu-amx",
            Self::Cpu(_) => "cpu",
            Self::Cuda(runner) => runner.name(),
        }
    }

    /// How it computes, and what adapters must be packed for.
    #[must_use]
    pub fn precision(&self) -> Precision {
        match self {
            Self::Cpu(runner) => runner.precision(),
            Self::Cuda(runner) => runner.precision(),
        }
    }
}

impl Runner {
    /// Where adapters are made ready for it, if they can be.
    #[must_use]
    pub fn staging(&self) -> Option<&AdapterStaging> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(runner) => Some(runner.staging()),
        }
    }
}

impl ModelRunner for Runner {
    type Adapter = LoraAdapter;

    fn shape(&self) -> RunnerShape {
        match self {
            Self::Cpu(runner) => runner.shape(),
            Self::Cuda(runner) => runner.shape(),
        }
    }

    fn fingerprint(&self) -> Digest {
        match self {
            Self::Cpu(runner) => runner.fingerprint(),
            Self::Cuda(runner) => runner.fingerprint(),
        }
    }

    fn separates_prompts(&self) -> bool {
        match self {
            Self::Cpu(runner) => runner.separates_prompts(),
            Self::Cuda(runner) => runner.separates_prompts(),
        }
    }

    fn adapter_blocks(&self, adapter: &LoraAdapter) -> u32 {
        match self {
            Self::Cpu(runner) => runner.adapter_blocks(adapter),
            Self::Cuda(runner) => runner.adapter_blocks(adapter),
        }
    }

    fn load_adapter(&mut self, slot: Slot, adapter: &Arc<LoraAdapter>, blocks: &[u32]) -> Result<(), RunnerError> {
        match self {
            Self::Cpu(runner) => runner.load_adapter(slot, adapter, blocks),
            Self::Cuda(runner) => runner.load_adapter(slot, adapter, blocks),
        }
    }

    fn unload_adapter(&mut self, slot: Slot) {
        match self {
            Self::Cpu(runner) => runner.unload_adapter(slot),
            Self::Cuda(runner) => runner.unload_adapter(slot),
        }
    }

    fn step(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        match self {
            Self::Cpu(runner) => runner.step(batch, sampled),
            Self::Cuda(runner) => runner.step(batch, sampled),
        }
    }

    fn overlaps(&self) -> bool {
        match self {
            Self::Cpu(runner) => runner.overlaps(),
            Self::Cuda(runner) => runner.overlaps(),
        }
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        match self {
            Self::Cpu(runner) => runner.submit(batch),
            Self::Cuda(runner) => runner.submit(batch),
        }
    }

    fn collect(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        match self {
            Self::Cpu(runner) => runner.collect(batch, sampled),
            Self::Cuda(runner) => runner.collect(batch, sampled),
        }
    }
}
