//! Which runner this host has: the CUDA device if there is one that can hold the base, the CPU otherwise, or what is
//! configured. Not here: the runners.

use std::sync::Arc;

use model::{
    Base, CpuRunner, CpuRunnerConfig, CudaRunner, CudaRunnerConfig, KvFormat, Matmul, ModelConfig, ModelError,
    Precision, Runner, accelerator,
};

use crate::config::{Config, KvKind, KvSize, MatmulKind, RunnerChoice};

/// Opens the base and makes its runner. Takes seconds.
pub(crate) fn open(config: &Config) -> Result<(Arc<Base>, Runner), ModelError> {
    let base = Base::open(&config.base)?;
    let runner = choose(&base, config)?;
    Ok((base, runner))
}

fn choose(base: &Base, config: &Config) -> Result<Runner, ModelError> {
    match config.runner {
        RunnerChoice::Cpu => {}
        RunnerChoice::Cuda => return cuda(base, config),
        // The reference is of the CPU.
        RunnerChoice::Auto if config.precision == Precision::F32 => {}
        RunnerChoice::Auto => match accelerator::devices() {
            Err(reason) => tracing::info!(%reason, "the CPU computes"),
            Ok(_) => match cuda(base, config) {
                Ok(runner) => return Ok(runner),
                Err(reason) => tracing::warn!(%reason, "the CPU computes, though there is a device"),
            },
        },
    }
    let runner = CpuRunner::new(base, cpu_config(config, base.config()))?;
    let prompts = if engine::ModelRunner::separates_prompts(&runner) { "bf16 with AMX" } else { "as all tokens" };
    tracing::info!(prompts, "prompts are computed");
    Ok(Runner::Cpu(Box::new(runner)))
}

fn cuda(base: &Base, config: &Config) -> Result<Runner, ModelError> {
    let runner = CudaRunner::new(base, &cuda_config(config))?;
    let (bytes, blocks) = (runner.device_memory_bytes(), engine::ModelRunner::shape(&runner).kv_blocks);
    tracing::info!(bytes, blocks, "a CUDA device computes");
    Ok(Runner::Cuda(Box::new(runner)))
}

fn cuda_config(config: &Config) -> CudaRunnerConfig {
    CudaRunnerConfig {
        device_memory_bytes_max: config.device_memory_bytes_max,
        block_tokens: config.block_tokens,
        kv_blocks_max: match config.kv {
            KvSize::Blocks(blocks) => Some(blocks),
            KvSize::Bytes(_) => None,
        },
        // The default is a CPU's: a device that nobody said this of has all of its memory.
        kv_bytes_max: match config.kv {
            KvSize::Bytes(bytes) if config.kv_is_given => Some(bytes),
            KvSize::Bytes(_) | KvSize::Blocks(_) => None,
        },
        kv_format: match config.kv_format {
            KvKind::F16 => KvFormat::F16,
            KvKind::Int8 => KvFormat::Int8,
            KvKind::Fp8 => KvFormat::Fp8,
        },
        matmul: match config.matmul {
            MatmulKind::Own => Matmul::Own,
            MatmulKind::CublasLt => Matmul::CublasLt { rows_min: Matmul::CUBLASLT_ROWS_MIN },
        },
        adapter_slots: config.adapter_slots,
        batch_rows_max: u32::try_from(config.batch_rows_max).unwrap_or(u32::MAX),
        // As many as the engine runs at once.
        sequences_max: u32::try_from(engine::EngineConfig::default().running_sequences_max).unwrap_or(u32::MAX),
        staging_bytes_max: config.adapter_staging_bytes_max,
        row_adapters_max: u32::try_from(config.plan_limits.composition_entries_max).unwrap_or(u32::MAX),
        ..CudaRunnerConfig::default()
    }
}

fn cpu_config(config: &Config, base: &ModelConfig) -> CpuRunnerConfig {
    // Keys and values of one token over all layers, in f32.
    let token_bytes = 2 * base.layers * base.kv_heads * base.head_dim * size_of::<f32>();
    let block_bytes = token_bytes as u64 * u64::from(config.block_tokens);
    let kv_blocks = match config.kv {
        KvSize::Blocks(blocks) => blocks,
        KvSize::Bytes(bytes) => u32::try_from(bytes / block_bytes.max(1)).unwrap_or(u32::MAX),
    };
    CpuRunnerConfig {
        precision: config.precision,
        block_tokens: config.block_tokens,
        kv_blocks,
        adapter_slots: config.adapter_slots,
        batch_rows_max: u32::try_from(config.batch_rows_max).unwrap_or(u32::MAX),
        threads: config.threads,
        prompts: config.prompts,
    }
}
