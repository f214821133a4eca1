//! The CUDA runner's two streams: blocks that go from an adapter to another, or to KV, while a step or an upload that was given
//! before is still under way. On the emulated device each stream runs as late as it may, so that a wait that is missing shows.
//! Not here: that the results are right (`cuda_conformance.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod cuda {
    #[allow(dead_code, reason = "it is what several tests share")]
    pub(super) mod setup;
}

use std::sync::Arc;

use engine::{Batch, ModelRunner, Slot};
use model::{AdapterKind, Base, CudaRunner, CudaRunnerConfig, LoraAdapter, Precision};

use self::cuda::setup::{batch, bits, canonical, config, in_a_child, load, packed, tiny, whole};

/// As late as may be, and twice at random.
const LATE: [&[(&str, &str)]; 3] = [&[("EMU_SEED", "1")], &[("EMU_SEED", "2")], &[("EMU_SEED", "3")]];
const PROMPT: [u32; 9] = [5, 3, 9, 2, 7, 1, 8, 4, 6];

fn adapters(base: &Base) -> Vec<Arc<LoraAdapter>> {
    canonical(base, AdapterKind::Lora).take(3).map(|bytes| packed(base, &bytes, Precision::Bf16)).collect()
}

fn runner(base: &Base) -> CudaRunner {
    CudaRunner::new(base, &CudaRunnerConfig { adapter_slots: 4, kv_blocks_max: Some(400), ..config() }).unwrap()
}

/// The prompt under the adapter of this slot, if any; nobody waits for it.
fn prompt(runner: &mut CudaRunner, slot: Option<u32>) {
    let segments = slot.map(|slot| whole(0..PROMPT.len() as u32, slot, 1.0));
    let step = Batch { samples: Vec::new(), ..batch(&[(0, &PROMPT)], segments.into_iter().collect()) };
    runner.step(&step, &mut Vec::new()).unwrap();
}

/// What follows the prompt: it reads the prompt's KV.
fn next(runner: &mut CudaRunner) -> Vec<u32> {
    bits(&runner.step_logits(&batch(&[(PROMPT.len() as u32, &[3])], Vec::new())).unwrap())
}

/// Two loads into slots and blocks that nothing else has: the host waits for what was sent to the copy stream before.
fn push_the_copy_stream(runner: &mut CudaRunner, adapter: &Arc<LoraAdapter>) {
    for (slot, first) in [(2, 200), (3, 300)] {
        load(runner, slot, adapter, first);
    }
    runner.unload_adapter(Slot(2));
    load(runner, 2, adapter, 200);
}

mod emulated {
    use super::*;

    #[test]
    fn an_adapter_does_not_overwrite_one_that_a_step_still_reads() {
        in_a_child("an_adapter_does_not_overwrite_one_that_a_step_still_reads", &LATE, || {
            let base = &tiny();
            let adapters = adapters(base);
            let follow = |reuse: bool| {
                let mut runner = runner(base);
                load(&mut runner, 0, &adapters[0], 32);
                prompt(&mut runner, Some(0));
                if reuse {
                    runner.unload_adapter(Slot(0));
                    load(&mut runner, 1, &adapters[1], 32);
                    push_the_copy_stream(&mut runner, &adapters[2]);
                }
                next(&mut runner)
            };
            let expected = follow(false);
            assert!(follow(true) == expected);
            // What is compared depends on the adapter.
            let mut bare = runner(base);
            prompt(&mut bare, None);
            assert!(next(&mut bare) != expected);
        });
    }

    #[test]
    fn an_upload_that_nobody_needs_any_more_does_not_overwrite_kv() {
        in_a_child("an_upload_that_nobody_needs_any_more_does_not_overwrite_kv", &LATE, || {
            let base = &tiny();
            let adapters = adapters(base);
            let follow = |reuse: bool| {
                let mut runner = runner(base);
                if reuse {
                    let blocks = load(&mut runner, 0, &adapters[0], 0);
                    assert!(blocks.len() > 1, "the sequence's first block is among them");
                    runner.unload_adapter(Slot(0));
                }
                prompt(&mut runner, None);
                let first = next(&mut runner);
                push_the_copy_stream(&mut runner, &adapters[2]);
                let again = next(&mut runner);
                assert!(first == again);
                again
            };
            assert!(follow(true) == follow(false));
        });
    }
}
