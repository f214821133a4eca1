//! The CUDA runner on the emulated device, under the suite that every runner must pass and beside the CPU's reference. Each test
//! runs itself again in a child process whose libcuda is the one that `kernels/emulation/build.sh` makes; without it the
//! tests are skipped and say so.
//!
//! Not here: the kernels by themselves (`kernels/tests/cuda_emulation.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod cuda {
    pub(super) mod setup;
}

use std::collections::BTreeSet;
use std::path::Path;

use engine::{Batch, BlockCopy, LoraSegment, ModelRunner, SampleRequest, SampledToken, Slot, UnseenToken};
use model::{
    AdapterKind, AdapterLimits, Base, CpuRunner, CpuRunnerConfig, CudaRunner, CudaRunnerConfig, KvFormat, Matmul,
    Precision, Prompts, canonical_adapter, draw,
};

use self::cuda::setup::{
    asked, batch, bits, canonical, config, conforms, demo_base, differences, fixture_adapter, fixtures, in_a_child,
    load, mixed_batch, packed, skip, tiny, whole,
};

/// The tests that need the emulated device: the suite runs them in a stage of their own.
mod emulated {
    use super::*;

    #[test]
    fn it_conforms_with_much_memory() {
        let kinds = [AdapterKind::Lora, AdapterKind::Lora];
        conforms("it_conforms_with_much_memory", &["0", "1"], KvFormat::F16, kinds, 400);
    }

    #[test]
    fn it_conforms_with_little_memory_that_adapters_and_kv_share() {
        let kinds = [AdapterKind::Lora, AdapterKind::Dora];
        conforms("it_conforms_with_little_memory_that_adapters_and_kv_share", &["2"], KvFormat::F16, kinds, 40);
    }

    #[test]
    fn it_conforms_with_kv_in_int8() {
        let kinds = [AdapterKind::Dora, AdapterKind::Lora];
        conforms("it_conforms_with_kv_in_int8", &["3"], KvFormat::Int8, kinds, 400);
    }

    #[test]
    fn it_conforms_with_kv_in_fp8() {
        let kinds = [AdapterKind::Lora, AdapterKind::Dora];
        conforms("it_conforms_with_kv_in_fp8", &["6"], KvFormat::Fp8, kinds, 400);
    }

    /// The CPU runner in plain f32.
    fn f32_reference(base: &Base) -> CpuRunner {
        let config = CpuRunnerConfig {
            precision: Precision::F32,
            block_tokens: 16,
            kv_blocks: 64,
            adapter_slots: 2,
            batch_rows_max: 64,
            threads: 1,
            prompts: Prompts::Auto,
        };
        CpuRunner::new(base, config).unwrap()
    }

    #[test]
    fn logits_are_those_of_the_f32_reference() {
        in_a_child("logits_are_those_of_the_f32_reference", &[&[("EMU_SEED", "5")]], || {
            for (name, form) in [("llama", "gguf"), ("qwen3", "gguf"), ("qwen3", "folder")] {
                let path = if form == "gguf" { fixtures().join(format!("{name}.gguf")) } else { fixtures().join(name) };
                let base = Base::open(&path).unwrap();
                let mut reference = f32_reference(&base);
                let exact = fixture_adapter(&base, name, Precision::F32);
                reference.load_adapter(Slot(0), &exact, &[]).unwrap();
                let batch = mixed_batch();
                let expected = reference.step_logits(&batch).unwrap();
                // What is compared is not all rounding: one adapter too few would be seen.
                let bare = reference.step_logits(&Batch { segments: Vec::new(), ..batch.clone() }).unwrap();
                assert!(differences(&bare, &expected).0 > 0.5);
                let largest = expected.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
                for (kv_format, tolerance) in [(KvFormat::F16, 0.05), (KvFormat::Int8, 0.08), (KvFormat::Fp8, 0.3)] {
                    let mut runner =
                        CudaRunner::new(&base, &CudaRunnerConfig { kv_format, block_tokens: 32, ..config() }).unwrap();
                    load(&mut runner, 0, &fixture_adapter(&base, name, Precision::Bf16), 32);
                    let (square, most) = differences(&runner.step_logits(&batch).unwrap(), &expected);
                    println!("  {name} {form} {kv_format:?}: rms {square:.4}, largest {most:.4} of {largest:.1}");
                    assert!(square < tolerance, "{name} {kv_format:?}: {square}");
                }
            }
        });
    }

    #[test]
    fn recorded_steps_and_launched_ones_give_equal_bits() {
        in_a_child(
            "recorded_steps_and_launched_ones_give_equal_bits",
            &[&[("EMU_SEED", "0")], &[("EMU_SEED", "7")]],
            || {
                let base = Base::open(&fixtures().join("llama.gguf")).unwrap();
                let adapter = fixture_adapter(&base, "llama", Precision::Bf16);
                let runs = [true, false].map(|graphs| {
                    let mut runner = CudaRunner::new(&base, &CudaRunnerConfig { graphs, ..config() }).unwrap();
                    load(&mut runner, 0, &adapter, 32);
                    let mut logits = bits(&runner.step_logits(&mixed_batch()).unwrap());
                    let mut tokens: Vec<SampledToken> = Vec::new();
                    for (position, segments) in
                        [(30, vec![whole(0..1, 0, 1.0)]), (31, Vec::new()), (32, vec![whole(1..2, 0, 0.5)])]
                    {
                        // The second sequence goes on beyond what it has: its KV is undefined there but the same.
                        let step = batch(&[(position - 9, &[60]), (position - 21, &[61, 62])], segments);
                        logits.extend(bits(&runner.step_logits(&step).unwrap()));
                        let mut drawn = step.clone();
                        for (place, sample) in drawn.samples.iter_mut().enumerate() {
                            *sample = SampleRequest {
                                temperature: 0.8,
                                seed: 3,
                                step: place as u32,
                                logprobs: Some(3),
                                ..sample.clone()
                            };
                        }
                        runner.step(&drawn, &mut tokens).unwrap();
                    }
                    (logits, tokens, runner.step_counts())
                });
                let [(recorded, drawn, counts), (launched, others, plain)] = runs;
                assert!(recorded == launched && drawn == others);
                assert!(counts[0] >= 5 && plain[0] == 0, "{counts:?} {plain:?}");
            },
        );
    }

    #[test]
    fn a_long_prompt_at_once_and_in_pieces_gives_equal_bits() {
        in_a_child("a_long_prompt_at_once_and_in_pieces_gives_equal_bits", &[&[("EMU_SEED", "4")]], || {
            let base = Base::open(&fixtures().join("llama.gguf")).unwrap();
            let adapter = fixture_adapter(&base, "llama", Precision::Bf16);
            let config = CudaRunnerConfig { batch_rows_max: 400, ..config() };
            let tokens: Vec<u32> = (0..330).map(|id| 40 + id * 11 % 97).collect();
            // Another sequence that ends in the middle of a tile, and an adapter that begins inside both.
            let pieces = |lengths: &[usize]| {
                let mut runner = CudaRunner::new(&base, &config).unwrap();
                load(&mut runner, 0, &adapter, 50);
                let (mut logits, mut first) = (Vec::new(), 0);
                for length in lengths {
                    let rows = &tokens[first..first + length];
                    let (at, end) = (first as u32, (first + length) as u32);
                    let adapted = 40.max(at)..end;
                    let segments = (!adapted.is_empty()).then(|| whole(adapted.start - at..adapted.end - at, 0, 1.0));
                    let mut step = batch(&[(at, rows)], segments.into_iter().collect());
                    step.sequences[0].blocks = 0..24;
                    step.block_tables = (0..24).map(|block| (block * 5 + 1) % 24).collect();
                    logits.extend(bits(&runner.step_logits(&step).unwrap()));
                    first += length;
                }
                (logits, runner.step_counts())
            };
            let (at_once, counts) = pieces(&[330]);
            assert_eq!(counts, [0, 1], "more rows than are recorded");
            let (in_pieces, counts) = pieces(&[1, 7, 33, 128, 129, 32]);
            assert!(counts[0] >= 4 && counts[1] >= 1, "{counts:?}");
            assert!(at_once == in_pieces);
        });
    }

    #[test]
    fn draws_are_those_of_the_cpu_from_the_same_logits() {
        in_a_child("draws_are_those_of_the_cpu_from_the_same_logits", &[&[("EMU_SEED", "2")]], || {
            let base = Base::open(&fixtures().join("llama.gguf")).unwrap();
            let mut runner = CudaRunner::new(&base, &config()).unwrap();
            load(&mut runner, 0, &fixture_adapter(&base, "llama", Precision::Bf16), 32);
            let mut distinct = BTreeSet::new();
            for round in 0..6 {
                let batch = asked(&base, round);
                let mut logits = runner.step_logits(&batch).unwrap();
                let expected = draw(&mut logits, &batch);
                let mut found = Vec::new();
                runner.step(&batch, &mut found).unwrap();
                for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let what = format!("{place} of round {round}: {:?}: {found:?}, {expected:?}", batch.samples[place]);
                    assert_eq!(found.id, expected.id, "{what}");
                    distinct.insert(found.id);
                    let near = |one: f32, other: f32| (one - other).abs() < 1e-4 || one == other;
                    assert!(near(found.logprob.unwrap_or(0.0), expected.logprob.unwrap_or(0.0)), "{what}");
                    assert!(
                        found.logprob.is_some() == expected.logprob.is_some() && found.top.len() == expected.top.len()
                    );
                    let tops = found.top.iter().zip(&expected.top);
                    assert!(tops.into_iter().all(|(one, other)| one.0 == other.0 && near(one.1, other.1)), "{what}");
                }
                assert_eq!(found.len(), expected.len());
            }
            assert!(distinct.len() > 30, "{} tokens", distinct.len());
        });
    }

    #[test]
    fn a_step_that_decodes_allocates_nothing() {
        in_a_child("a_step_that_decodes_allocates_nothing", &[&[("EMU_SEED", "0")]], || {
            let base = Base::open(&fixtures().join("qwen3.gguf")).unwrap();
            let mut runner = CudaRunner::new(&base, &config()).unwrap();
            load(&mut runner, 0, &fixture_adapter(&base, "qwen3", Precision::Bf16), 32);
            let mut sampled = Vec::with_capacity(16);
            for position in 0..12 {
                let mut step =
                    batch(&[(position, &[50]), (position, &[60]), (position, &[70])], vec![whole(1..3, 0, 1.0)]);
                step.samples.iter_mut().step_by(2).for_each(|sample| (sample.temperature, sample.top_k) = (1.0, 20));
                sampled.clear();
                let counted = allocation_counter::measure(|| runner.step(&step, &mut sampled).unwrap());
                assert_eq!(sampled.len(), 3);
                // The first steps make the room that later ones use.
                assert!(position < 4 || counted.count_total == 0, "position {position}: {counted:?}");
            }
            assert!(runner.step_counts()[0] > 6, "they were recorded");
        });
    }

    #[test]
    fn steps_that_overlap_draw_what_they_draw_one_by_one() {
        let seeds: [&[(&str, &str)]; 4] =
            [&[("EMU_SEED", "0")], &[("EMU_SEED", "1")], &[("EMU_SEED", "2")], &[("EMU_SEED", "3")]];
        in_a_child("steps_that_overlap_draw_what_they_draw_one_by_one", &seeds, || {
            let base = Base::open(&fixtures().join("qwen3.gguf")).unwrap();
            let adapter = fixture_adapter(&base, "qwen3", Precision::Bf16);
            for graphs in [true, false] {
                let new = || {
                    let mut runner = CudaRunner::new(&base, &CudaRunnerConfig { graphs, ..config() }).unwrap();
                    load(&mut runner, 0, &adapter, 32);
                    runner
                };
                // Which of the draws before each row follows: not always in order, nor all of them.
                let follows = [[0, 1, 2], [2, 0, 1], [1, 1, 0]];
                let step = |position: u32, tokens: [u32; 3]| {
                    let rows = tokens.each_ref().map(|token| (position, std::slice::from_ref(token)));
                    let mut step = batch(&rows, vec![whole(1..3, 0, 1.0)]);
                    for (place, sample) in step.samples.iter_mut().enumerate() {
                        (sample.temperature, sample.seed, sample.step) = (1.0, place as u64, position);
                        sample.logprobs = Some(place as u32 + position % 2);
                    }
                    step
                };
                let (mut runner, mut expected, mut tokens) = (new(), Vec::new(), [50, 60, 70]);
                for position in 0..8 {
                    runner.step(&step(position, tokens), &mut expected).unwrap();
                    let drawn = &expected[position as usize * 3..];
                    tokens = follows[position as usize % 3].map(|place| drawn[place].id);
                }
                let (mut runner, mut found, mut last) = (new(), Vec::new(), step(0, [50, 60, 70]));
                runner.submit(&last).unwrap();
                for position in 1..8u32 {
                    let mut next = step(position, [0, 0, 0]);
                    let follows = (0..).zip(follows[(position - 1) as usize % 3]);
                    let unseen = follows.map(|(row, place)| UnseenToken { row, sample: place as u32 });
                    next.unseen = unseen.collect();
                    runner.submit(&next).unwrap();
                    assert!(runner.submit(&next).is_err(), "two are under way");
                    runner.collect(&last, &mut found).unwrap();
                    last = next;
                }
                runner.collect(&last, &mut found).unwrap();
                assert!(runner.collect(&last, &mut found).is_err(), "none is under way");
                assert_eq!(found, expected);
                let distinct: BTreeSet<u32> = found.iter().map(|token| token.id).collect();
                assert!(distinct.len() > 12, "{distinct:?}");
                assert_eq!(runner.step_counts()[0] > 0, graphs);
                last.unseen[0].sample = 3;
                assert!(runner.submit(&last).is_err(), "nobody drew that");
            }
        });
    }

    #[test]
    fn a_step_over_an_adapter_that_is_still_arriving_waits_for_it() {
        let late: [&[(&str, &str)]; 3] = [&[("EMU_SEED", "1")], &[("EMU_SEED", "2")], &[("EMU_SEED", "3")]];
        in_a_child("a_step_over_an_adapter_that_is_still_arriving_waits_for_it", &late, || {
            let base = Base::open(&fixtures().join("qwen3.gguf")).unwrap();
            let adapter = fixture_adapter(&base, "qwen3", Precision::Bf16);
            let mut runner = CudaRunner::new(&base, &config()).unwrap();
            let blocks = load(&mut runner, 0, &adapter, 32);
            let first = bits(&runner.step_logits(&mixed_batch()).unwrap());
            let again = bits(&runner.step_logits(&mixed_batch()).unwrap());
            assert!(first == again);
            // Out of its blocks and into others, while nothing was computed with it there.
            runner.unload_adapter(Slot(0));
            load(&mut runner, 1, &adapter, 40);
            runner.unload_adapter(Slot(1));
            runner.load_adapter(Slot(0), &adapter, &blocks).unwrap();
            assert!(bits(&runner.step_logits(&mixed_batch()).unwrap()) == first);
        });
    }

    #[test]
    fn nothing_of_an_adapter_is_left_in_blocks_that_are_wiped() {
        in_a_child("nothing_of_an_adapter_is_left_in_blocks_that_are_wiped", &[&[("EMU_SEED", "3")]], || {
            let base = Base::open(&fixtures().join("llama.gguf")).unwrap();
            let adapter = fixture_adapter(&base, "llama", Precision::Bf16);
            let mut runner = CudaRunner::new(&base, &config()).unwrap();
            let blocks = load(&mut runner, 0, &adapter, 32);
            runner.step_logits(&mixed_batch()).unwrap();
            let is_empty = |runner: &CudaRunner, block| runner.read_block(block).unwrap().iter().all(|byte| *byte == 0);
            assert!(blocks.len() > 1 && blocks.iter().all(|block| !is_empty(&runner, *block)));
            // Copies come first, in order; wipes need no rows.
            let copies = vec![BlockCopy { from: blocks[0], to: 60 }, BlockCopy { from: 60, to: 61 }];
            let content = runner.read_block(blocks[0]).unwrap();
            runner.step(&Batch { copies, wipes: blocks.clone(), ..Batch::default() }, &mut Vec::new()).unwrap();
            assert!(blocks.iter().all(|block| is_empty(&runner, *block)));
            assert!(runner.read_block(60).unwrap() == content && runner.read_block(61).unwrap() == content);
        });
    }

    /// Recorded and launched, and for as many rows as are asked for: where it gives twice what is right, the logits say so.
    #[test]
    fn products_by_cublaslt_are_those_of_the_f32_reference() {
        let name = "products_by_cublaslt_are_those_of_the_f32_reference";
        let settings: [&[(&str, &str)]; 3] = [
            &[("EMU_SEED", "0"), ("EMU_CUBLASLT", "130000")],
            &[("EMU_SEED", "3"), ("EMU_CUBLASLT", "130000")],
            &[("EMU_SEED", "1"), ("EMU_CUBLASLT", "double")],
        ];
        in_a_child(name, &settings, || {
            for name in ["llama", "qwen3"] {
                let base = Base::open(&fixtures().join(name)).unwrap();
                let mut reference = f32_reference(&base);
                reference.load_adapter(Slot(0), &fixture_adapter(&base, name, Precision::F32), &[]).unwrap();
                let expected = reference.step_logits(&mixed_batch()).unwrap();
                let logits = |matmul, graphs| {
                    let mut runner = CudaRunner::new(&base, &CudaRunnerConfig { matmul, graphs, ..config() }).unwrap();
                    load(&mut runner, 0, &fixture_adapter(&base, name, Precision::Bf16), 32);
                    let few = bits(&runner.step_logits(&batch(&[(0, &[50, 51, 52])], Vec::new())).unwrap());
                    (runner.step_logits(&mixed_batch()).unwrap(), few, runner.fingerprint())
                };
                let by_library = Matmul::CublasLt { rows_min: 20 };
                let (_, few, fingerprint) = logits(Matmul::Own, false);
                for graphs in [false, true] {
                    let (found, few_by_library, other) = logits(by_library, graphs);
                    let (square, most) = differences(&found, &expected);
                    println!("  {name}: rms {square:.4}, largest {most:.4}");
                    let is_right = !std::env::var("EMU_CUBLASLT").is_ok_and(|how| how == "double");
                    assert!((square < 0.05) == is_right && (square > 0.3) != is_right, "{name}: {square}");
                    assert!(few_by_library == few, "{name}: fewer rows are computed by our own kernels");
                    assert!(other != fingerprint, "{name}");
                }
            }
        });
    }

    /// DoRA beside the f32 reference: what a row's growth adds is more than rounding.
    #[test]
    fn dora_is_that_of_the_f32_reference() {
        in_a_child("dora_is_that_of_the_f32_reference", &[&[("EMU_SEED", "4")]], || {
            let base = &tiny();
            let rows = batch(&[(0, &[5, 3, 9, 2, 7, 1, 8])], vec![whole(0..7, 0, 1.0)]);
            for bytes in canonical(base, AdapterKind::Dora).take(6) {
                let mut reference = f32_reference(base);
                let bare = reference.step_logits(&Batch { segments: Vec::new(), ..rows.clone() }).unwrap();
                reference.load_adapter(Slot(0), &packed(base, &bytes, Precision::F32), &[]).unwrap();
                let expected = reference.step_logits(&rows).unwrap();
                let mut runner =
                    CudaRunner::new(base, &CudaRunnerConfig { kv_blocks_max: Some(400), ..config() }).unwrap();
                load(&mut runner, 0, &packed(base, &bytes, Precision::Bf16), 32);
                let (square, _) = differences(&runner.step_logits(&rows).unwrap(), &expected);
                let (changed, _) = differences(&bare, &expected);
                println!("  rms {square:.4}, of {changed:.4} that the adapter changes");
                assert!(square < 0.06 * changed, "{square} of {changed}");
            }
        });
    }

    #[test]
    fn cublaslt_is_refused_where_it_cannot_be_used() {
        let name = "cublaslt_is_refused_where_it_cannot_be_used";
        let settings: [&[(&str, &str)]; 4] = [
            &[],
            &[("EMU_CUBLASLT", "120805")],
            &[("EMU_CUBLASLT", "refuse")],
            &[("EMU_CUBLASLT", "130000"), ("EMU_MEMORY_BYTES", "25165824")],
        ];
        in_a_child(name, &settings, || {
            let base = Base::open(&fixtures().join("llama")).unwrap();
            let refused = |rows_min| {
                let config = CudaRunnerConfig { matmul: Matmul::CublasLt { rows_min }, ..config() };
                CudaRunner::new(&base, &config).err().unwrap().to_string()
            };
            let error = refused(20);
            println!("  {error}");
            let expected = match std::env::var("EMU_CUBLASLT").as_deref() {
                Err(_) => "no libcublasLt",
                Ok("120805") => "version 120805, 130000 is needed",
                Ok("refuse") => "CUBLAS_STATUS_NOT_SUPPORTED",
                // What it works in is under the ceiling too.
                Ok(_) => "raise device_memory_bytes_max",
            };
            assert!(error.contains(expected), "{error}");
            assert!(refused(65).contains("raise batch_rows_max"), "{}", refused(65));
        });
    }

    #[test]
    fn all_memory_is_taken_at_the_start_and_never_more_than_is_allowed() {
        let name = "all_memory_is_taken_at_the_start_and_never_more_than_is_allowed";
        in_a_child(name, &[&[("EMU_MEMORY_BYTES", "16777216")]], || {
            let base = &tiny();
            let free = || kernels::cuda::Device::open(0).unwrap().memory().unwrap().0;
            let all = free();
            let unlimited = CudaRunnerConfig { kv_blocks_max: None, ..config() };
            let mut runner = CudaRunner::new(base, &unlimited).unwrap();
            let taken = all - free();
            assert!(taken >= runner.device_memory_bytes() && taken <= all / 10 * 9, "{taken} of {all}");
            let bytes = canonical(base, AdapterKind::Lora).next().unwrap();
            load(&mut runner, 0, &packed(base, &bytes, Precision::Bf16), 32);
            for _ in 0..3 {
                runner.step_logits(&batch(&[(0, &[1, 2, 3])], vec![whole(0..3, 0, 1.0)])).unwrap();
            }
            assert_eq!(all - free(), taken, "nothing is allocated afterwards");
            let most = runner.shape().kv_blocks;
            drop(runner);
            assert_eq!(free(), all, "and all of it is given back");

            let ceiling = taken as u64 / 2;
            let limited = |ceiling| CudaRunnerConfig { device_memory_bytes_max: Some(ceiling), ..unlimited.clone() };
            let runner = CudaRunner::new(base, &limited(ceiling)).unwrap();
            assert!(runner.device_memory_bytes() as u64 <= ceiling && runner.shape().kv_blocks < most);
            let (blocks, block) = (runner.shape().kv_blocks, runner.read_block(0).unwrap().len() as u64);
            drop(runner);
            let asked = |bytes| CudaRunnerConfig { kv_bytes_max: Some(bytes), ..limited(ceiling) };
            let given = |bytes| CudaRunner::new(base, &asked(bytes)).map(|runner| runner.shape().kv_blocks);
            assert_eq!(given(9 * block + block / 2).unwrap(), 9, "whole blocks, no more bytes than were asked for");
            assert_eq!(given(u64::MAX).unwrap(), blocks, "and no more than there is room for");
            assert!(given(block - 1).unwrap_err().to_string().contains("kv_bytes_max"));
            let error = CudaRunner::new(base, &limited(100_000)).err().unwrap().to_string();
            assert!(error.contains("100000 are allowed") && error.contains("device_memory_bytes_max"), "{error}");
            println!("  {error}");
        });
    }

    /// Two adapters on one prompt of the demo base, as torch and PEFT compute them: twenty seconds of emulation. The other goldens
    /// are in `cuda_golden.rs`.
    #[test]
    fn one_golden_prompt_with_one_composition() {
        let test = "one_golden_prompt_with_one_composition";
        let Some(path) = demo_base() else { return skip(test, "the demo base is not in the cache") };
        in_a_child(test, &[&[("EMU_SEED", "0"), ("EMU_MEMORY_BYTES", "1073741824")]], || {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures/lora");
            let golden: serde_json::Value =
                serde_json::from_slice(&std::fs::read(folder.join("golden/golden.json")).unwrap()).unwrap();
            let ids = |value: &serde_json::Value| -> Vec<u32> {
                value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
            };
            let entry = &golden["configs"]["combo2-caps+sentiment"];
            let (prompt, expected) =
                (ids(&golden["prompts"]["own-all-caps"]["ids"]), &entry["results"]["own-all-caps"]);
            let base = Base::open(&path).unwrap();
            let config = CudaRunnerConfig { context_tokens_max: 256, batch_rows_max: 32, ..config() };
            let mut runner = CudaRunner::new(&base, &config).unwrap();
            let (mut first, mut segments) = (8, Vec::new());
            for (slot, adapter) in (0u32..).zip(entry["adapters"].as_array().unwrap()) {
                let folder = folder.join(adapter["name"].as_str().unwrap());
                let read = |name| std::fs::read(folder.join(name)).unwrap();
                let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
                let canonical = canonical_adapter(&config, &weights, &*base, &AdapterLimits::default()).unwrap();
                let blocks = load(&mut runner, slot, &packed(&base, &canonical.bytes, Precision::Bf16), first);
                first += blocks.len() as u32;
                segments.push(whole(0..1, slot, adapter["weight"].as_f64().unwrap() as f32));
            }
            let mut step = |at: usize, tokens: &[u32]| {
                let rows = tokens.len() as u32;
                let segments = segments.iter().map(|one| LoraSegment { rows: 0..rows, ..one.clone() });
                let mut step = batch(&[(at as u32, tokens)], segments.collect());
                step.samples.drain(..tokens.len() - 1);
                runner.step_logits(&step).unwrap()
            };
            let best = |logits: &[f32]| {
                (0..logits.len()).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
            };
            let logits = step(0, &prompt);
            let normaliser = kernels::log_sum_exp(&logits) - expected["logsumexp"].as_f64().unwrap();
            let top = expected["top20"].as_array().unwrap().iter();
            let apart = top.map(|top| {
                let (id, logit) = (top[0].as_u64().unwrap() as usize, top[1].as_f64().unwrap());
                (f64::from(logits[id]) - logit - normaliser).abs()
            });
            let apart = apart.fold(0.0, f64::max);
            println!("  the best 20 log-probabilities differ by at most {apart:.4}");
            assert!(apart < 0.25, "{apart}");
            let mut output = vec![best(&logits)];
            for at in 0..3 {
                output.push(best(&step(prompt.len() + at, &output[at..=at])));
            }
            assert_eq!(output, ids(&expected["greedy_ids"])[..4]);
        });
    }
}
