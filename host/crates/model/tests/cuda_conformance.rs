//! The CUDA runner on the emulated device, under the suite that every runner must pass and beside the CPU's reference. Each test
//! runs itself again in a child process whose libcuda is the one that `kernels/emulation/build.sh` makes; without it the
//! tests are skipped and say so.
//!
//! Not here: the kernels by themselves (`kernels/tests/cuda_emulation.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use engine::{
    Batch, BatchSequence, BlockCopy, ConformanceInput, LoraSegment, ModelRunner, SampleRequest, SampledToken, Slot,
    check_runner,
};
use generators::{Draw, Sizes, adapter, base_file, seeded_bytes};
use model::{
    AdapterKind, AdapterLimits, Base, CpuRunner, CpuRunnerConfig, CudaRunner, CudaRunnerConfig, KvFormat, LoraAdapter,
    Precision, canonical_adapter,
};
use types::{LayerRange, Module, ModuleSet};

/// Set in the child.
const CHILD: &str = "TENON_CUDA_EMULATION_CHILD";

/// Where the emulation lies, if it was built: `TENON_CUDA_EMULATION`, or beside the build's other results.
fn emulation() -> Option<PathBuf> {
    let built = || {
        let executable = std::env::current_exe().ok()?;
        Some(executable.ancestors().nth(3)?.join("cuda-emulation"))
    };
    let folder = std::env::var_os("TENON_CUDA_EMULATION").map(PathBuf::from).or_else(built)?;
    folder.join("libcuda.so.1").is_file().then_some(folder)
}

/// Runs `test` in a child process with the emulation, under each of the settings; in the child, runs `body`.
fn in_a_child(test: &str, settings: &[&[(&str, &str)]], body: impl Fn()) {
    if std::env::var_os(CHILD).is_some() {
        // What is measured stands in lines of its own.
        println!();
        return body();
    }
    let Some(folder) = emulation() else {
        return skip(test, "there is no emulation: run kernels/emulation/build.sh");
    };
    for settings in settings {
        let mut child = Command::new(std::env::current_exe().expect("a test has a path"));
        child
            .args([
                format!("emulated::{test}").as_str(),
                "--exact",
                "--nocapture",
                "--include-ignored",
                "--test-threads=1",
            ])
            .env(CHILD, "1")
            .env("LD_LIBRARY_PATH", &folder);
        child.envs(settings.iter().copied());
        // A sanitizer's runtime, which must be loaded before everything else.
        if let Some(runtime) = std::env::var_os("TENON_CUDA_PRELOAD") {
            child.env("LD_PRELOAD", runtime);
        }
        let output = child.output().expect("a test can be run again");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{test} under {settings:?}: {}\n{stdout}\n{stderr}", output.status);
        assert!(stdout.contains("1 passed"), "{test} did not run in the child:\n{stdout}");
        print!(
            "{}",
            stdout.lines().filter(|line| line.starts_with("  ")).map(|line| format!("{line}\n")).collect::<String>()
        );
    }
}

/// The suite counts what is written to this log.
fn skip(test: &str, why: &str) {
    println!("skipped: {test}: {why}");
    if let Some(log) = std::env::var_os("TENON_SKIP_LOG") {
        use std::io::Write;
        let mut log = std::fs::OpenOptions::new().append(true).create(true).open(log).expect("the log can be opened");
        writeln!(log, "{test}: {why}").expect("the log can be written");
    }
}

fn tiny() -> Arc<Base> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), base_file(&Sizes::TINY)).unwrap();
    Base::open(file.path()).unwrap()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures/bases")
}

/// Random adapters for the tiny base of this kind, with their canonical bytes.
fn canonical(base: &Base, kind: AdapterKind) -> impl Iterator<Item = Vec<u8>> {
    let limits = AdapterLimits::default();
    (0..).filter_map(move |seed| {
        let files = adapter(&mut Draw::new(&seeded_bytes(seed, 200)), &Sizes::TINY);
        let canonical = canonical_adapter(&files.config, &files.weights, base, &limits).ok()?;
        (canonical.report.kind == kind).then_some(canonical.bytes)
    })
}

fn packed(base: &Base, canonical: &[u8], precision: Precision) -> Arc<LoraAdapter> {
    Arc::new(LoraAdapter::from_canonical(canonical, base, &AdapterLimits::default(), precision).unwrap())
}

/// Small, so that it is made quickly.
fn config() -> CudaRunnerConfig {
    CudaRunnerConfig {
        block_tokens: 16,
        kv_blocks_max: Some(64),
        context_tokens_max: 512,
        adapter_slots: 2,
        batch_rows_max: 64,
        sequences_max: 64,
        ..CudaRunnerConfig::default()
    }
}

/// A batch under which every row is sampled, of sequences that begin at these positions; each has 8 blocks of its own.
fn batch(prompts: &[(u32, &[u32])], segments: Vec<LoraSegment>) -> Batch {
    let mut batch = Batch { segments, ..Batch::default() };
    for (index, (first, tokens)) in (0u32..).zip(prompts) {
        let rows = batch.tokens.len() as u32;
        let count = tokens.len() as u32;
        batch.tokens.extend_from_slice(tokens);
        batch.positions.extend(*first..*first + count);
        batch.sequences.push(BatchSequence { rows: rows..rows + count, blocks: index * 8..index * 8 + 8 });
        batch.block_tables.extend((0..8).map(|block| index * 8 + (block * 3 + 1) % 8));
        batch.samples.extend((rows..rows + count).map(SampleRequest::greedy));
    }
    batch
}

fn whole(rows: std::ops::Range<u32>, slot: u32, weight: f32) -> LoraSegment {
    LoraSegment { rows, slot: Slot(slot), weight, modules: ModuleSet::ALL, layers: LayerRange::ALL }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Puts an adapter into the blocks from `first` on.
fn load(runner: &mut CudaRunner, slot: u32, adapter: &Arc<LoraAdapter>, first: u32) -> Vec<u32> {
    let blocks: Vec<u32> = (first..first + runner.adapter_blocks(adapter)).collect();
    runner.load_adapter(Slot(slot), adapter, &blocks).unwrap();
    blocks
}

fn conforms(test: &str, seeds: &[&str], kv_format: KvFormat, kinds: [AdapterKind; 2], kv_blocks: u32) {
    let settings: Vec<[(&str, &str); 1]> = seeds.iter().map(|seed| [("EMU_SEED", *seed)]).collect();
    let settings: Vec<&[(&str, &str)]> = settings.iter().map(|setting| &setting[..]).collect();
    in_a_child(test, &settings, || {
        let base = &tiny();
        let adapters = kinds.into_iter().enumerate().map(|(index, kind)| {
            let bytes = canonical(base, kind).nth(index).unwrap();
            (types::Digest::of(&bytes), packed(base, &bytes, Precision::Bf16))
        });
        let vocabulary = base.config().vocabulary as u32;
        let prompts = vec![vec![1], (0..40).map(|id| id * 7 % vocabulary).collect(), vec![5; 9]];
        let input = ConformanceInput { prompts, adapters: adapters.collect(), output_tokens: 8 };
        // A block of half as many bytes would be too small for these adapters.
        let block_tokens = if kv_format == KvFormat::F16 { 16 } else { 32 };
        let config = CudaRunnerConfig { kv_format, block_tokens, kv_blocks_max: Some(kv_blocks), ..config() };
        let make = || CudaRunner::new(base, &config).unwrap();
        let needed: Vec<u32> = input.adapters.iter().map(|(_, adapter)| make().adapter_blocks(adapter)).collect();
        println!("  adapters of {needed:?} blocks beside KV in {kv_blocks}");
        check_runner(make, &input).unwrap();
    });
}

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

    /// Root mean square and largest difference.
    fn differences(ours: &[f32], theirs: &[f32]) -> (f32, f32) {
        assert_eq!(ours.len(), theirs.len());
        let apart = || ours.iter().zip(theirs).map(|(one, other)| (one - other).abs());
        let square = apart().map(|difference| difference * difference).sum::<f32>() / ours.len() as f32;
        (square.sqrt(), apart().fold(0.0, f32::max))
    }

    /// The adapter of a fixture, of rank 8 on all modules, in the form for a runner.
    fn fixture_adapter(base: &Base, name: &str, precision: Precision) -> Arc<LoraAdapter> {
        let read = |file| std::fs::read(fixtures().join(format!("{name}-adapter")).join(file)).unwrap();
        let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
        let canonical = canonical_adapter(&config, &weights, base, &AdapterLimits::default()).unwrap();
        packed(base, &canonical.bytes, precision)
    }

    /// Rows under the base, the adapter, and both halves of it by layer, at two weights.
    fn mixed_batch() -> Batch {
        let first: Vec<u32> = (0..21).map(|id| 40 + id * 5 % 60).collect();
        let parts = [whole(5..30, 0, 1.0), whole(25..31, 0, -0.5)];
        let narrow = ModuleSet::EMPTY.with(Module::Q).with(Module::Down).with(Module::Up);
        let narrow = LoraSegment { modules: narrow, layers: LayerRange { first: 1, end: 2 }, ..whole(0..3, 0, 2.0) };
        let segments = [parts.to_vec(), vec![narrow]].concat();
        batch(&[(0, &first), (0, &first[..9]), (0, &[50])], segments)
    }

    #[test]
    fn logits_are_those_of_the_f32_reference() {
        in_a_child("logits_are_those_of_the_f32_reference", &[&[("EMU_SEED", "5")]], || {
            for (name, form) in [("llama", "gguf"), ("qwen3", "gguf"), ("qwen3", "folder")] {
                let path = if form == "gguf" { fixtures().join(format!("{name}.gguf")) } else { fixtures().join(name) };
                let base = Base::open(&path).unwrap();
                let cpu = CpuRunnerConfig {
                    precision: Precision::F32,
                    block_tokens: 16,
                    kv_blocks: 64,
                    adapter_slots: 2,
                    batch_rows_max: 64,
                    threads: 1,
                };
                let mut reference = CpuRunner::new(&base, cpu).unwrap();
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
            runner.unload_adapter(Slot(0));
            // Copies come first, in order; wipes need no rows.
            let copies = vec![BlockCopy { from: blocks[0], to: 60 }, BlockCopy { from: 60, to: 61 }];
            let content = runner.read_block(blocks[0]).unwrap();
            runner.step(&Batch { copies, wipes: blocks.clone(), ..Batch::default() }, &mut Vec::new()).unwrap();
            assert!(blocks.iter().all(|block| is_empty(&runner, *block)));
            assert!(runner.read_block(60).unwrap() == content && runner.read_block(61).unwrap() == content);
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
            drop(runner);
            let error = CudaRunner::new(base, &limited(100_000)).err().unwrap().to_string();
            assert!(error.contains("100000 are allowed") && error.contains("device_memory_bytes_max"), "{error}");
            println!("  {error}");
        });
    }

    /// The demo base, where it was fetched to.
    fn demo_base() -> Option<PathBuf> {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
        let path = std::env::var_os("TENON_BASE").map(PathBuf::from);
        let path = path.or_else(|| cache.map(|cache| cache.join("tenon/base/SmolLM2-135M-Instruct.Q4_1.gguf")));
        path.filter(|path| path.exists())
    }

    /// Two adapters on one prompt of the demo base, as torch and PEFT compute them: a minute of emulation.
    #[test]
    #[ignore = "a minute of emulation: `cargo test -p model --test cuda_conformance -- --ignored`"]
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
