//! How adapters come onto the emulated device and leave it: prepared by other threads, sent without a copy, waited for by
//! whoever uses them and by nobody else, wiped when they go; and a device that is lost. Each test runs itself again in a
//! child process, as those of `cuda_conformance.rs` do.
//!
//! Not here: what a step computes (`cuda_conformance.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod cuda {
    #[allow(dead_code, reason = "the other tests of the runner use the rest")]
    pub(super) mod setup;
}

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::{
    Batch, EngineConfig, GenerationError, ModelRunner, RunnerError, Slot, Submission, SubmitError, TokenEvent,
};
use model::{AdapterKind, Base, CudaRunner, CudaRunnerConfig, LoraAdapter, Precision};
use types::{Digest, Grants, Plan, PlanLimits, Prompt, ValidPlan};

use self::cuda::setup::{
    batch, bits, canonical, config, fixture_adapter, fixtures, in_a_child, load, mixed_batch, packed, tiny, whole,
};

/// Every order of the streams.
const ORDERS: [&[(&str, &str)]; 4] =
    [&[("EMU_SEED", "0")], &[("EMU_SEED", "1")], &[("EMU_SEED", "2")], &[("EMU_SEED", "3")]];
/// Streams that do nothing before they must.
const LATE: [&[(&str, &str)]; 1] = [&[("EMU_SEED", "1")]];

fn adapters(base: &Base, count: usize) -> Vec<Arc<LoraAdapter>> {
    let kinds = [AdapterKind::Lora, AdapterKind::Dora];
    let of = |index: usize| canonical(base, kinds[index % 2]).nth(index).unwrap();
    (0..count).map(|index| packed(base, &of(index), Precision::Bf16)).collect()
}

/// What a few rows become under the adapter of slot 0 and of slot 1, in turn.
fn under(runner: &mut CudaRunner, slots: &[u32]) -> Vec<u32> {
    let step = |slot: u32| batch(&[(0, &[1, 2, 3, 4, 5])], vec![whole(0..5, slot, 1.0)]);
    slots.iter().flat_map(|slot| bits(&runner.step_logits(&step(*slot)).unwrap())).collect()
}

fn is_empty(runner: &CudaRunner, block: u32) -> bool {
    runner.read_block(block).unwrap().iter().all(|byte| *byte == 0)
}

/// The tests that need the emulated device.
mod emulated {
    use super::*;

    #[test]
    fn a_prepared_adapter_is_sent_and_not_copied() {
        in_a_child("a_prepared_adapter_is_sent_and_not_copied", &ORDERS, || {
            for name in ["qwen3", "llama"] {
                let base = Base::open(&fixtures().join(format!("{name}.gguf"))).unwrap();
                let adapter = fixture_adapter(&base, name, Precision::Bf16);
                let mut runner = CudaRunner::new(&base, &config()).unwrap();
                let staging = runner.staging().clone();
                let blocks = load(&mut runner, 0, &adapter, 32);
                let copied = runner.load_copied_bytes();
                assert!(copied > 0, "nobody prepared it");
                let content = |runner: &CudaRunner| blocks.iter().map(|one| runner.read_block(*one).unwrap()).collect();
                let expected = bits(&runner.step_logits(&mixed_batch()).unwrap());
                let as_copied: Vec<Vec<u8>> = content(&runner);
                assert!(!staging.is_wanted(&adapter), "it is there");
                runner.unload_adapter(Slot(0));
                assert!(staging.is_wanted(&adapter));
                // By another thread, as in a host.
                std::thread::scope(|scope| assert!(scope.spawn(|| staging.prepare(&adapter)).join().unwrap()));
                assert!(!staging.is_wanted(&adapter));
                load(&mut runner, 0, &adapter, 32);
                assert_eq!(runner.load_copied_bytes(), copied, "the loading thread copied nothing");
                assert!(bits(&runner.step_logits(&mixed_batch()).unwrap()) == expected);
                assert!(as_copied == content(&runner), "all of every block");
            }
        });
    }

    #[test]
    fn pinned_memory_goes_from_one_adapter_to_the_next_after_its_copy() {
        in_a_child("pinned_memory_goes_from_one_adapter_to_the_next_after_its_copy", &ORDERS, || {
            let base = tiny();
            let [one, two] = adapters(&base, 2).try_into().unwrap_or_else(|_| panic!("two"));
            let mut plain = CudaRunner::new(&base, &config()).unwrap();
            let needed = [load(&mut plain, 0, &one, 32), load(&mut plain, 1, &two, 48)].map(|blocks| blocks.len());
            assert!(needed[0] > 0 && needed[1] > 0 && needed.iter().sum::<usize>() < 32);
            let expected = under(&mut plain, &[0, 1]);
            let content = |runner: &CudaRunner| {
                (48..48 + needed[1] as u32).map(|block| runner.read_block(block).unwrap()).collect::<Vec<_>>()
            };
            let alone = content(&plain);
            drop(plain);
            // A chunk for one of them.
            let mut runner =
                CudaRunner::new(&base, &CudaRunnerConfig { staging_bytes_max: 1 << 20, ..config() }).unwrap();
            let staging = runner.staging().clone();
            let held = Arc::clone(&one);
            assert!(staging.prepare(&one));
            assert!(!staging.prepare(&two), "somebody waits for the first");
            assert_eq!((staging.stats().prepared, staging.stats().refused, staging.stats().adapters), (1, 1, 1));
            load(&mut runner, 0, &one, 32);
            // Its copy may be to come: the next one waits for it before it writes there.
            assert!(staging.prepare(&two));
            load(&mut runner, 1, &two, 48);
            assert_eq!(runner.load_copied_bytes(), 0);
            drop((one, two, held));
            assert!(under(&mut runner, &[0, 1]) == expected);
            assert!(content(&runner) == alone, "nothing of the first one lies between the second one's matrices");
            let stats = staging.stats();
            assert!(stats.bytes > 0 && stats.bytes <= stats.bytes_max && stats.bytes_max <= 1 << 20, "{stats:?}");
        });
    }

    #[test]
    fn without_pinned_memory_adapters_are_loaded_all_the_same() {
        in_a_child("without_pinned_memory_adapters_are_loaded_all_the_same", &LATE, || {
            let base = tiny();
            let one = adapters(&base, 1).remove(0);
            let mut runner = CudaRunner::new(&base, &config()).unwrap();
            load(&mut runner, 0, &one, 32);
            let expected = under(&mut runner, &[0]);
            let mut runner = CudaRunner::new(&base, &CudaRunnerConfig { staging_bytes_max: 0, ..config() }).unwrap();
            assert!(!runner.staging().is_wanted(&one) && !runner.staging().prepare(&one));
            load(&mut runner, 0, &one, 32);
            assert!(under(&mut runner, &[0]) == expected && runner.load_copied_bytes() > 0);
        });
    }

    #[test]
    fn whoever_lets_go_while_a_copy_is_under_way_frees_nothing_that_it_reads() {
        in_a_child("whoever_lets_go_while_a_copy_is_under_way_frees_nothing_that_it_reads", &ORDERS, || {
            let base = tiny();
            for order in 0..4 {
                let [one, two] = adapters(&base, 2).try_into().unwrap_or_else(|_| panic!("two"));
                let mut runner = CudaRunner::new(&base, &config()).unwrap();
                let staging = runner.staging().clone();
                assert!(staging.prepare(&one) && staging.prepare(&two));
                let blocks = load(&mut runner, 0, &one, 32);
                load(&mut runner, 1, &two, 48);
                match order {
                    0 => drop((one, two)),
                    1 => drop(staging),
                    2 => {
                        drop(one);
                        // Its memory is another's before it has arrived.
                        runner.unload_adapter(Slot(0));
                        runner.load_adapter(Slot(0), &two, &blocks[..0]).unwrap_err();
                    }
                    _ => drop(runner),
                }
            }
        });
    }

    #[test]
    fn a_step_waits_for_no_adapter_that_it_does_not_use() {
        in_a_child("a_step_waits_for_no_adapter_that_it_does_not_use", &LATE, || {
            let base = tiny();
            let [one, two] = adapters(&base, 2).try_into().unwrap_or_else(|_| panic!("two"));
            let mut runner = CudaRunner::new(&base, &CudaRunnerConfig { graphs: false, ..config() }).unwrap();
            load(&mut runner, 0, &one, 32);
            let expected = under(&mut runner, &[0]);
            assert!(!runner.is_loading().unwrap(), "it was used");
            load(&mut runner, 1, &two, 48);
            assert!(under(&mut runner, &[0]) == expected);
            assert!(runner.is_loading().unwrap(), "the other one was waited for");
            under(&mut runner, &[1]);
            assert!(!runner.is_loading().unwrap());
            assert_eq!(runner.step_counts()[0], 0, "all of them were launched one by one");
        });
    }

    #[test]
    fn what_is_unloaded_is_wiped_without_another_step() {
        in_a_child("what_is_unloaded_is_wiped_without_another_step", &ORDERS, || {
            let base = Base::open(&fixtures().join("llama.gguf")).unwrap();
            let adapter = fixture_adapter(&base, "llama", Precision::Bf16);
            let mut runner = CudaRunner::new(&base, &config()).unwrap();
            let mut blocks = load(&mut runner, 0, &adapter, 32);
            let expected = bits(&runner.step_logits(&mixed_batch()).unwrap());
            assert!(blocks.len() > 1 && blocks.iter().all(|block| !is_empty(&runner, *block)));
            runner.unload_adapter(Slot(0));
            assert!(blocks.iter().all(|block| is_empty(&runner, *block)), "after its use");
            for prepared in [false, true] {
                assert!(!prepared || runner.staging().prepare(&adapter));
                load(&mut runner, 0, &adapter, 32);
                runner.unload_adapter(Slot(0));
                assert!(blocks.iter().all(|block| is_empty(&runner, *block)), "before it has arrived");
            }
            // In any order, not neighbours; and what is loaded next into the same blocks is not wiped with them.
            blocks.reverse();
            runner.load_adapter(Slot(0), &adapter, &blocks).unwrap();
            runner.unload_adapter(Slot(0));
            runner.load_adapter(Slot(0), &adapter, &blocks).unwrap();
            assert!(bits(&runner.step_logits(&mixed_batch()).unwrap()) == expected);
        });
    }

    #[test]
    fn what_comes_into_wiped_blocks_comes_after_the_wipe() {
        in_a_child("what_comes_into_wiped_blocks_comes_after_the_wipe", &ORDERS, || {
            let base = tiny();
            let [one, two, three] = adapters(&base, 3).try_into().unwrap_or_else(|_| panic!("three"));
            let mut runner =
                CudaRunner::new(&base, &CudaRunnerConfig { staging_bytes_max: 1 << 20, ..config() }).unwrap();
            let staging = runner.staging().clone();
            load(&mut runner, 0, &two, 32);
            let expected = under(&mut runner, &[0]);
            runner.unload_adapter(Slot(0));
            load(&mut runner, 0, &one, 32);
            under(&mut runner, &[0]);
            assert!(staging.prepare(&two));
            runner.unload_adapter(Slot(0));
            load(&mut runner, 0, &two, 32);
            // Has the copy run to its end, which the wipe before it need not have done.
            assert!(staging.prepare(&three));
            assert!(under(&mut runner, &[0]) == expected);
        });
    }

    #[test]
    fn threads_prepare_and_the_runner_loads_in_any_order() {
        in_a_child("threads_prepare_and_the_runner_loads_in_any_order", &ORDERS[2..], || {
            let base = tiny();
            let all = adapters(&base, 5);
            let mut plain = CudaRunner::new(&base, &config()).unwrap();
            let expected: Vec<_> = all
                .iter()
                .map(|adapter| {
                    load(&mut plain, 0, adapter, 32);
                    let found = under(&mut plain, &[0]);
                    plain.unload_adapter(Slot(0));
                    found
                })
                .collect();
            drop(plain);
            let mut runner =
                CudaRunner::new(&base, &CudaRunnerConfig { staging_bytes_max: 2 << 20, ..config() }).unwrap();
            let (staging, ended) = (runner.staging().clone(), AtomicBool::new(false));
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let (staging, ended, all) = (&staging, &ended, &all);
                    scope.spawn(move || {
                        let mut turn = thread;
                        while !ended.load(Ordering::Relaxed) {
                            turn = (turn * 7 + 3) % 31;
                            staging.prepare(&all[turn % all.len()]);
                        }
                    });
                }
                for turn in 0..12 {
                    let (slot, index) = (turn % 2, turn as usize * 3 % all.len());
                    load(&mut runner, slot, &all[index], 32 + 16 * slot);
                    assert!(under(&mut runner, &[slot]) == expected[index], "turn {turn}");
                    runner.unload_adapter(Slot(slot));
                }
                ended.store(true, Ordering::Relaxed);
            });
            let stats = staging.stats();
            assert!(stats.prepared > 2 && stats.bytes <= 2 << 20, "{stats:?}");
            println!("  {stats:?}, {} bytes copied by the runner", runner.load_copied_bytes());
        });
    }

    #[test]
    fn a_lost_device_is_told_from_a_failed_step() {
        let settings: [&[(&str, &str)]; 3] = [
            &[("EMU_LOST", "2"), ("EMU_SEED", "1")],
            &[("EMU_LOST", "2"), ("EMU_LOST_CODE", "702")],
            &[("EMU_LOST", "2"), ("EMU_LOST_CODE", "214"), ("EMU_SEED", "3")],
        ];
        in_a_child("a_lost_device_is_told_from_a_failed_step", &settings, || {
            let base = tiny();
            let one = adapters(&base, 1).remove(0);
            let mut runner = CudaRunner::new(&base, &config()).unwrap();
            let step = batch(&[(0, &[1, 2, 3])], Vec::new());
            let mut sampled = Vec::new();
            runner.step(&step, &mut sampled).unwrap();
            let is_lost = |error| matches!(error, RunnerError::Lost(why) if why.contains("CUDA_ERROR_"));
            assert!(is_lost(runner.step(&step, &mut sampled).unwrap_err()));
            assert!(is_lost(runner.step(&step, &mut sampled).unwrap_err()), "and stays so");
            let blocks: Vec<u32> = (32..32 + runner.adapter_blocks(&one)).collect();
            assert!(is_lost(runner.load_adapter(Slot(0), &one, &blocks).unwrap_err()));
            // What cannot be asked of any device is no loss.
            let nonsense = Batch { wipes: vec![1 << 20], ..Batch::default() };
            assert!(matches!(runner.step(&nonsense, &mut sampled), Err(RunnerError::Malformed(_))));
        });
    }

    #[test]
    fn the_engine_over_a_lost_device_ends_everything_and_says_so() {
        struct Nothing;
        impl Grants for Nothing {
            fn adapter(&self, _: &str) -> Option<Digest> {
                None
            }

            fn has_template(&self, _: &str) -> bool {
                false
            }
        }
        let test = "the_engine_over_a_lost_device_ends_everything_and_says_so";
        in_a_child(test, &[&[("EMU_LOST", "4"), ("EMU_SEED", "3")]], || {
            let runner = CudaRunner::new(&tiny(), &config()).unwrap();
            let config = EngineConfig { running_sequences_max: 2, ..EngineConfig::default() };
            let begun = std::time::Instant::now();
            let (handle, thread) = engine::start(runner, config, move || begun.elapsed()).unwrap();
            let submission = || {
                let mut plan = Plan::new(Prompt::Tokens(vec![1, 2, 3]));
                plan.token_budget = Some(40);
                plan.stop.ignore_eos = true;
                Submission {
                    plan: ValidPlan::check(plan, &Nothing, &PlanLimits::default()).unwrap(),
                    prompt: vec![1, 2, 3],
                    adapters: Vec::new(),
                    activations: Vec::new(),
                    continues: engine::Continuation::default(),
                    constraint: None,
                    seed: 0,
                    terms: engine::Terms::default(),
                }
            };
            let streams: Vec<_> = (0..4).map(|_| handle.submit(submission())).collect();
            for mut stream in streams.into_iter().flatten() {
                let last = std::iter::from_fn(|| stream.blocking_recv()).last();
                assert_eq!(last, Some(TokenEvent::Failed(GenerationError::DeviceLost)));
            }
            assert!(handle.lost().unwrap().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{:?}", handle.lost());
            assert_eq!(handle.submit(submission()).err(), Some(SubmitError::DeviceLost));
            assert!(!thread.is_finished());
            thread.stop().unwrap();
            assert!(begun.elapsed() < Duration::from_secs(60));
        });
    }
}
