//! From asking for an adapter to having it, over a base of SmolLM2-135M's sizes: in memory, on disk (in the page cache), and
//! packed from the canonical form. `cargo run --release -p host --example bench_leases [rank] [adapters] [f32]`. Prints
//! milliseconds: the least, the median and the most. Not here: a step with the adapter (`bench_lora` of kernels).

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use half::bf16;
use host::adapters::{AdapterDisk, AdapterFiles, AdapterStore, AdapterStoreConfig};
use host::artifacts::Artifacts;
use host::revocation::Revocations;
use host::store::{EmbeddedStore, Store};
use model::{ModelConfig, Precision, RopeLayout};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use types::{Digest, Module, TenantId};

const SMOLLM2: ModelConfig = ModelConfig {
    layers: 30,
    hidden: 576,
    intermediate: 1536,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    vocabulary: 49152,
    context_tokens_max: 8192,
    rope_theta: 100_000.0,
    rope: RopeLayout::Neighbours,
    rope_divisors: Vec::new(),
    rms_epsilon: 1e-5,
    query_key_norm: false,
    tied_output: true,
};
/// Enough for one lease to hold, and for nothing to be kept.
const NOTHING: u64 = 1;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default| arguments.get(at).map_or(Ok(default), |text| text.parse::<usize>());
    let (rank, count) = (number(0, 16)?, number(1, 32)?);
    let precision =
        if arguments.get(2).is_some_and(|text| text == "f32") { Precision::F32 } else { Precision::default() };
    let folder = tempfile::tempdir()?;
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.path().join("data")).await?);
    let tenant: TenantId = "bench".parse()?;
    let packed = folder.path().join("packed");

    let writing = adapters(&store, &packed, precision, NOTHING).await?;
    let mut digests = Vec::new();
    for seed in 0..count {
        let alias = format!("adapter-{seed}").parse()?;
        let (config, weights) = peft(seed, rank)?;
        let files = AdapterFiles { config, weights, signature: None };
        digests.push(writing.add_bytes(&tenant, &alias, files, None).await?.digest);
    }
    let mut canonical = Vec::new();
    for digest in &digests {
        canonical.push(timed(&writing, &tenant, *digest).await?);
        // What is written after the lease is not part of the next one's time.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writing.close().await;
    let bytes = writing.disk_stats().bytes / count as u64;
    println!("rank {rank}, {precision}: {:.2} MB an adapter on disk, {count} adapters", bytes as f64 / 1e6);
    say("packed from the canonical form", &mut canonical);

    let reading = adapters(&store, &packed, precision, NOTHING).await?;
    let mut disk = Vec::new();
    for digest in &digests {
        disk.push(timed(&reading, &tenant, *digest).await?);
    }
    if reading.disk_stats().hits < count as u64 {
        return Err(format!("not all were on disk: {:?}", reading.disk_stats()).into());
    }
    say("on disk, in the page cache", &mut disk);

    let keeping = adapters(&store, &packed, precision, u64::MAX).await?;
    let mut memory = Vec::new();
    for digest in digests.iter().chain(&digests) {
        memory.push(timed(&keeping, &tenant, *digest).await?);
    }
    say("in memory", &mut memory[count..]);
    keeping.close().await;
    Ok(())
}

async fn adapters(
    store: &Arc<dyn Store>,
    folder: &Path,
    precision: Precision,
    host_bytes_max: u64,
) -> Outcome<AdapterStore> {
    let disk = AdapterDisk { folder: folder.to_owned(), bytes_max: 64 << 30, base: Digest::of(b"sizes") };
    let config = AdapterStoreConfig {
        precision,
        host_bytes_max,
        disk: Some(disk),
        ..AdapterStoreConfig::new(Arc::new(SMOLLM2))
    };
    let revocations = Revocations::open(Arc::clone(store)).await?;
    Ok(AdapterStore::new(Arc::clone(store), Artifacts::new(Arc::clone(store)), revocations, config).await?)
}

async fn timed(adapters: &AdapterStore, tenant: &TenantId, digest: Digest) -> Outcome<f64> {
    let asked = Instant::now();
    let lease = adapters.lease(tenant, digest).await?;
    let took = asked.elapsed();
    drop(lease);
    Ok(took.as_secs_f64() * 1e3)
}

fn say(what: &str, times: &mut [f64]) {
    times.sort_by(f64::total_cmp);
    if let [least, .., most] = &*times {
        println!("{what:32} {least:8.3} {:8.3} {most:8.3}", times[times.len() / 2]);
    }
}

/// A PEFT folder's files: all linear modules, in bf16.
fn peft(seed: usize, rank: usize) -> Outcome<(Bytes, Bytes)> {
    let config = serde_json::json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "bias": "none",
    });
    let value = |at: usize| bf16::from_f32(((at * 7 + seed) % 31) as f32 * 0.001 - 0.015).to_le_bytes();
    let mut tensors = Vec::new();
    for layer in 0..SMOLLM2.layers {
        for module in Module::ALL {
            let part = if module.index() < 4 { "self_attn" } else { "mlp" };
            let (inputs, outputs) = SMOLLM2.module_shape(module);
            for (factor, shape) in [("A", vec![rank, inputs]), ("B", vec![outputs, rank])] {
                let name =
                    format!("base_model.model.model.layers.{layer}.{part}.{}.lora_{factor}.weight", module.name());
                let data: Vec<u8> = (0..shape.iter().product()).flat_map(value).collect();
                tensors.push((name, shape, data));
            }
        }
    }
    let views =
        tensors.iter().map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::BF16, shape.clone(), data)?)));
    let weights = safetensors::serialize(views.collect::<Outcome<Vec<_>>>()?, None)?;
    Ok((config.to_string().into(), weights.into()))
}
