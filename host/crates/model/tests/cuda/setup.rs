//! What the tests of the CUDA runner share: the child process with the emulated device, bases and adapters, batches.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use engine::{
    Batch, BatchSequence, ConformanceInput, LoraSegment, ModelRunner, SampleRequest, SeenToken, Slot, TokenMask,
    check_runner,
};
use generators::{Draw, Sizes, adapter, base_file, seeded_bytes};
use model::{
    AdapterKind, AdapterLimits, Base, CudaRunner, CudaRunnerConfig, KvFormat, LoraAdapter, Precision, canonical_adapter,
};
use types::{LayerRange, Module, ModuleSet};

/// Set in the child.
pub(crate) const CHILD: &str = "TENON_CUDA_EMULATION_CHILD";

/// Where the emulation lies, if it was built: `TENON_CUDA_EMULATION`, or beside the build's other results.
pub(crate) fn emulation() -> Option<PathBuf> {
    let built = || {
        let executable = std::env::current_exe().ok()?;
        Some(executable.ancestors().nth(3)?.join("cuda-emulation"))
    };
    let folder = std::env::var_os("TENON_CUDA_EMULATION").map(PathBuf::from).or_else(built)?;
    folder.join("libcuda.so.1").is_file().then_some(folder)
}

/// Runs `test` in a child process with the emulation, under each of the settings; in the child, runs `body`.
pub(crate) fn in_a_child(test: &str, settings: &[&[(&str, &str)]], body: impl Fn()) {
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
            .env("LD_LIBRARY_PATH", libraries(&folder, settings));
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

/// Where the child finds the driver, and cuBLASLt if its settings say something of that.
fn libraries(folder: &Path, settings: &[(&str, &str)]) -> OsString {
    let mut folders = folder.as_os_str().to_owned();
    if settings.iter().any(|(name, _)| *name == "EMU_CUBLASLT") {
        folders.push(":");
        folders.push(folder.join("cublaslt"));
    }
    folders
}

/// The suite counts what is written to this log.
pub(crate) fn skip(test: &str, why: &str) {
    println!("skipped: {test}: {why}");
    if let Some(log) = std::env::var_os("TENON_SKIP_LOG") {
        use std::io::Write;
        let mut log = std::fs::OpenOptions::new().append(true).create(true).open(log).expect("the log can be opened");
        writeln!(log, "{test}: {why}").expect("the log can be written");
    }
}

pub(crate) fn tiny() -> Arc<Base> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), base_file(&Sizes::TINY)).unwrap();
    Base::open(file.path()).unwrap()
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/fixtures/bases")
}

/// Random adapters for the tiny base of this kind, with their canonical bytes.
pub(crate) fn canonical(base: &Base, kind: AdapterKind) -> impl Iterator<Item = Vec<u8>> {
    let limits = AdapterLimits::default();
    (0..).filter_map(move |seed| {
        let files = adapter(&mut Draw::new(&seeded_bytes(seed, 200)), &Sizes::TINY);
        let canonical = canonical_adapter(&files.config, &files.weights, base, &limits).ok()?;
        (canonical.report.kind == kind).then_some(canonical.bytes)
    })
}

pub(crate) fn packed(base: &Base, canonical: &[u8], precision: Precision) -> Arc<LoraAdapter> {
    Arc::new(LoraAdapter::from_canonical(canonical, base, &AdapterLimits::default(), precision).unwrap())
}

/// Small, so that it is made quickly.
pub(crate) fn config() -> CudaRunnerConfig {
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
pub(crate) fn batch(prompts: &[(u32, &[u32])], segments: Vec<LoraSegment>) -> Batch {
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

pub(crate) fn whole(rows: std::ops::Range<u32>, slot: u32, weight: f32) -> LoraSegment {
    LoraSegment { rows, slot: Slot(slot), weight, modules: ModuleSet::ALL, layers: LayerRange::ALL }
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Puts an adapter into the blocks from `first` on.
pub(crate) fn load(runner: &mut CudaRunner, slot: u32, adapter: &Arc<LoraAdapter>, first: u32) -> Vec<u32> {
    let blocks: Vec<u32> = (first..first + runner.adapter_blocks(adapter)).collect();
    runner.load_adapter(Slot(slot), adapter, &blocks).unwrap();
    blocks
}

pub(crate) fn conforms(test: &str, seeds: &[&str], kv_format: KvFormat, kinds: [AdapterKind; 2], kv_blocks: u32) {
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

/// Root mean square and largest difference.
pub(crate) fn differences(ours: &[f32], theirs: &[f32]) -> (f32, f32) {
    assert_eq!(ours.len(), theirs.len());
    let apart = || ours.iter().zip(theirs).map(|(one, other)| (one - other).abs());
    let square = apart().map(|difference| difference * difference).sum::<f32>() / ours.len() as f32;
    (square.sqrt(), apart().fold(0.0, f32::max))
}

/// The adapter of a fixture, of rank 8 on all modules, in the form for a runner.
pub(crate) fn fixture_adapter(base: &Base, name: &str, precision: Precision) -> Arc<LoraAdapter> {
    let read = |file| std::fs::read(fixtures().join(format!("{name}-adapter")).join(file)).unwrap();
    let (config, weights) = (read("adapter_config.json"), read("adapter_model.safetensors"));
    let canonical = canonical_adapter(&config, &weights, base, &AdapterLimits::default()).unwrap();
    packed(base, &canonical.bytes, precision)
}

/// Rows under the base, the adapter, and both halves of it by layer, at two weights.
pub(crate) fn mixed_batch() -> Batch {
    let first: Vec<u32> = (0..21).map(|id| 40 + id * 5 % 60).collect();
    let parts = [whole(5..30, 0, 1.0), whole(25..31, 0, -0.5)];
    let narrow = ModuleSet::EMPTY.with(Module::Q).with(Module::Down).with(Module::Up);
    let narrow = LoraSegment { modules: narrow, layers: LayerRange { first: 1, end: 2 }, ..whole(0..3, 0, 2.0) };
    let segments = [parts.to_vec(), vec![narrow]].concat();
    batch(&[(0, &first), (0, &first[..9]), (0, &[50])], segments)
}

/// The demo base, where it was fetched to.
pub(crate) fn demo_base() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let path = std::env::var_os("TENON_BASE").map(PathBuf::from);
    let path = path.or_else(|| cache.map(|cache| cache.join("tenon/base/SmolLM2-135M-Instruct.Q4_1.gguf")));
    path.filter(|path| path.exists())
}

/// Every way to ask for a draw, and masks, biases and penalties of its own for each.
pub(crate) fn asked(base: &Base, round: u64) -> Batch {
    let vocabulary = base.config().vocabulary as u32;
    let mut batch = mixed_batch();
    let count = batch.samples.len();
    for (place, sample) in (0u32..).zip(&mut batch.samples) {
        let of = |choices: &[f32]| choices[(place as usize + round as usize * 5) % choices.len()];
        let (seen, biases) = (batch.seen_tokens.len() as u32, batch.logit_biases.len() as u32);
        if place % 3 > 0 {
            batch
                .seen_tokens
                .extend((0..place % 7).map(|id| SeenToken { id: id * 11 % vocabulary, output_count: id % 3 }));
        }
        if place % 4 == 1 {
            batch.logit_biases.extend([(place, 3.0), (vocabulary - 1 - place, -1.5), (7, f32::NEG_INFINITY)]);
        }
        if place % 5 == 2 {
            // Fewer words than the vocabulary has: what is beyond is not allowed.
            let words = (0..vocabulary / 32).map(|word| 0x1111_1111u32.rotate_left(word + place)).collect();
            sample.mask = Some(batch.masks.len() as u32);
            batch.masks.push(Arc::new(TokenMask::known(words)));
        }
        *sample = SampleRequest {
            temperature: of(&[0.0, 0.7, 1.0, 1.3]),
            top_k: of(&[0.0, 0.0, 5.0, 40.0, 1.0]) as u32,
            top_p: of(&[1.0, 0.9, 0.5]),
            min_p: of(&[0.0, 0.0, 0.02]),
            repetition_penalty: of(&[1.0, 1.3]),
            presence_penalty: of(&[0.0, 0.4, -0.2]),
            frequency_penalty: of(&[0.0, 0.3]),
            seen: seen..batch.seen_tokens.len() as u32,
            biases: biases..batch.logit_biases.len() as u32,
            seed: round * 100 + u64::from(place) % 3,
            step: place,
            logprobs: (place % 3 == 0).then_some(place % 6),
            ..sample.clone()
        };
    }
    assert_eq!(count, 31);
    batch
}
