//! A tiny llama and a tiny qwen3 with an adapter each, against the logits that PyTorch and PEFT have for them
//! (`tests/fixtures/bases`); they travel within this program. Not here: bases that people use.

use std::sync::Arc;

use engine::{Batch, BatchSequence, LoraSegment, ModelRunner, SampleRequest, Slot};
use model::{AdapterLimits, Base, CudaRunner, CudaRunnerConfig, LoraAdapter, Precision, canonical_adapter};
use serde_json::{Value, json};
use types::{LayerRange, ModuleSet};

use crate::Outcome;
use crate::measure::rounded;
use crate::record::{Bound, Record};
use crate::rig::small;

/// Of the root mean square of the differences: activations in bf16, keys and values in f16. Logits are up to 10; the adapter
/// changes them by more than 0.5.
const TOLERANCE: f64 = 0.05;
const BLOCK_TOKENS: u32 = 32;
/// More than the longest prompt has.
const ROWS_MAX: u32 = 320;
/// Blocks of the sequence, and where the adapter lies.
const SEQUENCE_BLOCKS: u32 = 32;

struct Golden {
    name: &'static str,
    base: &'static [u8],
    adapter_config: &'static [u8],
    adapter_weights: &'static [u8],
    logits: &'static [u8],
}

macro_rules! golden {
    ($name:literal) => {
        Golden {
            name: $name,
            base: include_bytes!(concat!("../../fixtures/bases/", $name, ".gguf")),
            adapter_config: include_bytes!(concat!("../../fixtures/bases/", $name, "-adapter/adapter_config.json")),
            adapter_weights: include_bytes!(concat!(
                "../../fixtures/bases/",
                $name,
                "-adapter/adapter_model.safetensors"
            )),
            logits: include_bytes!(concat!("../../fixtures/bases/", $name, "-logits.safetensors")),
        }
    };
}

const GOLDENS: [Golden; 2] = [golden!("llama"), golden!("qwen3")];
const PROMPTS: &[u8] = include_bytes!("../../fixtures/bases/golden.json");

pub(crate) fn run(record: &mut Record) -> Outcome {
    let prompts: Value = serde_json::from_slice(PROMPTS)?;
    let (mut worst, mut compared) = (0.0f64, 0);
    for golden in &GOLDENS {
        let mut runner = runner(golden)?;
        let all = prompts[golden.name]["prompts"].as_object().ok_or("the goldens have no prompts")?;
        for (prompt, about) in all {
            let ids = about["ids"].as_array().ok_or("a prompt has no tokens")?;
            let ids: Vec<u32> = ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect();
            for (of, adapted) in [("base", false), ("adapter", true)] {
                let expected = logits(golden.logits, &format!("{of}/{prompt}"))?;
                let ours = runner.step_logits(&batch(&ids, adapted))?;
                if ours.len() != expected.len() {
                    return Err(format!("{} logits for {}", ours.len(), expected.len()).into());
                }
                let square = |(ours, theirs): (&f32, &f32)| f64::from(ours - theirs).powi(2);
                let rms = (ours.iter().zip(&expected).map(square).sum::<f64>() / ours.len() as f64).sqrt();
                // A NaN is no small difference.
                worst = if rms <= worst { worst } else { rms };
                compared += 1;
                let best = |logits: &[f32]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
                record.row(&json!({
                    "cell": format!("{} {of}/{prompt}", golden.name), "tokens": ids.len(), "rms": rounded(rms),
                    "same_best_token": best(&ours) == best(&expected), "ok": rms <= TOLERANCE,
                }));
            }
        }
    }
    if compared == 0 {
        return Err("nothing was compared".into());
    }
    record.verdict("goldens: rms of a prompt's logits from PyTorch's", Bound::AtMost(TOLERANCE), worst);
    Ok(())
}

fn runner(golden: &Golden) -> Outcome<CudaRunner> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), golden.base)?;
    let base = Base::open(file.path())?;
    let config = CudaRunnerConfig {
        block_tokens: BLOCK_TOKENS,
        kv_blocks_max: Some(2 * SEQUENCE_BLOCKS),
        context_tokens_max: 512,
        adapter_slots: 1,
        batch_rows_max: ROWS_MAX,
        sequences_max: 1,
        ..CudaRunnerConfig::default()
    };
    let mut runner = CudaRunner::new(&base, &config)?;
    let limits = AdapterLimits::default();
    let canonical = canonical_adapter(golden.adapter_config, golden.adapter_weights, &*base, &limits)?;
    let adapter = Arc::new(LoraAdapter::from_canonical(&canonical.bytes, &*base, &limits, Precision::Bf16)?);
    let blocks: Vec<u32> = (SEQUENCE_BLOCKS..SEQUENCE_BLOCKS + runner.adapter_blocks(&adapter)).collect();
    runner.load_adapter(Slot(0), &adapter, &blocks)?;
    Ok(runner)
}

/// A prompt from its start, of which the last row is wanted.
fn batch(ids: &[u32], adapted: bool) -> Batch {
    let rows = small(ids.len());
    let (modules, layers) = (ModuleSet::ALL, LayerRange::ALL);
    let segment = LoraSegment { rows: 0..rows, slot: Slot(0), weight: 1.0, modules, layers };
    let blocks = rows.div_ceil(BLOCK_TOKENS);
    Batch {
        tokens: ids.to_vec(),
        positions: (0..rows).collect(),
        sequences: vec![BatchSequence { rows: 0..rows, blocks: 0..blocks }],
        block_tables: (0..blocks).collect(),
        segments: adapted.then_some(segment).into_iter().collect(),
        samples: vec![SampleRequest::greedy(rows.saturating_sub(1))],
        ..Batch::default()
    }
}

/// An f32 tensor of a safetensors file.
fn logits(file: &[u8], name: &str) -> Outcome<Vec<f32>> {
    let (length, rest) = file.split_first_chunk::<8>().ok_or("the logits are cut off")?;
    let (header, data) = rest.split_at_checked(u64::from_le_bytes(*length) as usize).ok_or("the logits are cut off")?;
    let header: Value = serde_json::from_slice(header)?;
    let at = |end: usize| header[name]["data_offsets"][end].as_u64().map(|at| at as usize);
    let (first, end) = at(0).zip(at(1)).ok_or_else(|| format!("there are no logits for {name}"))?;
    let bytes = data.get(first..end).ok_or("the logits are cut off")?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_has_its_logits_with_and_without_the_adapter() {
        let prompts: Value = serde_json::from_slice(PROMPTS).expect("JSON");
        for golden in &GOLDENS {
            for prompt in prompts[golden.name]["prompts"].as_object().expect("prompts").keys() {
                let of = |of: &str| logits(golden.logits, &format!("{of}/{prompt}")).expect("logits");
                let (base, adapter) = (of("base"), of("adapter"));
                assert!(base.len() == adapter.len() && base.len() > 200 && base != adapter);
            }
            assert!(logits(golden.logits, "base/none").is_err() && logits(&golden.logits[..20], "base/one").is_err());
        }
    }
}
