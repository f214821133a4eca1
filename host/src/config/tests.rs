//! Tests of [`super`]: precedence, messages, limits.

use super::*;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("base.gguf"), b"GGUF").expect("base");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn flags(&self) -> RawConfig {
        RawConfig { base: Some(self.path("base.gguf")), ..RawConfig::default() }
    }

    fn load(&self, file: &str, environment: &[(&str, &str)], flags: &RawConfig) -> Result<Config, ConfigError> {
        let path = self.path("tenon.toml");
        std::fs::write(&path, file).expect("file");
        Config::load(Some(&path), environment.iter().copied(), flags)
    }

    /// The message for a configuration that must be refused.
    fn refused(&self, file: &str, environment: &[(&str, &str)]) -> String {
        let error = self.load(file, environment, &self.flags()).expect_err("must be refused");
        error.to_string().replace(&self.folder.path().display().to_string(), "DIR")
    }
}

#[test]
fn defaults() {
    let bench = Bench::new();
    let config = Config::load(None, [("PATH", "/bin"), ("HOME", "/")], &bench.flags()).expect("defaults");
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.precision, Precision::Quantised);
    assert_eq!((config.runner, config.device_memory_bytes_max), (RunnerChoice::Auto, None));
    assert_eq!(config.plan_limits, PlanLimits::default());
    assert_eq!(config.http_limits, HttpLimits::default());
    assert_eq!((config.plugin_limits, config.plugin_instances_max), (PluginLimits::default(), 256));
    assert_eq!(config.kv, KvSize::Bytes(512 << 20));
    assert!(config.threads >= 1 && !config.dev && config.adapters_root.is_none());
}

#[test]
fn flags_win_over_environment_over_file() {
    let bench = Bench::new();
    let file =
        "threads = 1\nblock_tokens = 8\nadapter_slots = 4\n[limits]\nlogprobs_max = 3\nplugin_log_lines_max = 5\n";
    let environment = [("TENON_THREADS", "2"), ("TENON_BLOCK_TOKENS", "32"), ("TENON_LIMITS__BODY_BYTES_MAX", "4096")];
    let flags = RawConfig { threads: Some(3), ..bench.flags() };
    let config = bench.load(file, &environment, &flags).expect("valid");
    assert_eq!((config.threads, config.block_tokens, config.adapter_slots), (3, 32, 4));
    assert_eq!((config.plan_limits.logprobs_max, config.http_limits.body_bytes_max), (3, 4096));
    assert_eq!(config.plugin_limits, PluginLimits { log_lines_max: 5, ..PluginLimits::default() });
}

#[test]
fn every_type_can_come_from_the_environment() {
    let bench = Bench::new();
    let base = bench.path("base.gguf").display().to_string();
    let environment = [
        ("TENON_BASE", base.as_str()),
        ("TENON_DATA", "123"),
        ("TENON_DEV", "true"),
        ("TENON_PRECISION", "f32"),
        ("TENON_LISTEN", "[::1]:9000"),
        ("TENON_LIMITS__ADAPTER_WEIGHT_ABS_MAX", "2.5"),
        ("TENON_LOG", "debug"),
        ("TENON_SHARED", "elsewhere"),
        ("TENON_KEY", "tk_x"),
        ("TENON_URL", "http://127.0.0.1:1"),
    ];
    let config = Config::load(None, environment, &RawConfig::default()).expect("valid");
    assert_eq!(config.data, PathBuf::from("123"));
    assert_eq!((config.dev, config.precision, config.log.as_str()), (true, Precision::F32, "debug"));
    assert_eq!(config.plan_limits.adapter_weight_abs_max, 2.5);
}

#[test]
fn paths_in_the_file_start_at_its_folder() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("adapters")).expect("folder");
    let file = "base = 'base.gguf'\ndata = 'state'\nadapters_root = './adapters'\n";
    let config = bench.load(file, &[], &RawConfig::default()).expect("valid");
    assert_eq!(config.base, bench.path("base.gguf"));
    assert_eq!(config.data, bench.path("state"));
    let root = bench.path("adapters").canonicalize().expect("there");
    assert_eq!(config.adapters_root, Some(root));
    let named = bench.path("tenon.toml").display().to_string();
    let again = Config::load(None, [("TENON_CONFIG", named.as_str())], &RawConfig::default()).expect("valid");
    assert_eq!(again, config);
}

#[test]
fn unknown_keys_are_errors_that_say_where() {
    let bench = Bench::new();
    let message = bench.refused("threads = 1\n\nthread = 2\n", &[]);
    assert!(
        message.starts_with("`thread` (DIR/tenon.toml:3): unknown field `thread`, expected one of `base`"),
        "{message}"
    );
    let message = bench.refused("[limits]\nbody = 1\n", &[]);
    assert!(message.starts_with("`limits.body` (DIR/tenon.toml:2): unknown field"), "{message}");
    let message = bench.refused("[other]\n", &[]);
    assert!(message.starts_with("`other` (DIR/tenon.toml:1): unknown field"), "{message}");
    let message = bench.refused("", &[("TENON_THREAD", "1")]);
    assert!(message.starts_with("`thread` (environment variable TENON_THREAD): unknown field"), "{message}");
    let message = bench.refused("", &[("TENON_threads", "1")]);
    assert!(message.contains("in capitals"), "{message}");
    let message = bench.refused("threads = \n", &[]);
    assert!(message.starts_with("DIR/tenon.toml:1: "), "{message}");
}

#[test]
fn wrong_values_are_errors_that_say_what_is_allowed() {
    let bench = Bench::new();
    for (file, expected) in [
        ("threads = 0", "`threads` (DIR/tenon.toml:1): 0 is not allowed, use 1 to 1024"),
        ("threads = -1", "`threads` (DIR/tenon.toml:1): invalid value: integer `-1`, expected u64"),
        ("threads = '2'", "`threads` (DIR/tenon.toml:1): invalid type: string \"2\", expected u64"),
        ("precision = 'f16'", "`precision` (DIR/tenon.toml:1): unknown variant `f16`, expected `f32` or `quantised`"),
        ("precision = 'bf16'", "`precision` (DIR/tenon.toml:1): unknown variant `bf16`, expected `f32` or `quantised`"),
        ("runner = 'gpu'", "`runner` (DIR/tenon.toml:1): unknown variant `gpu`, expected one of `auto`, `cpu`, `cuda`"),
        ("runner = 'cuda'\nprecision = 'f32'", "`precision` (DIR/tenon.toml:2): the CUDA runner computes in bf16"),
        ("device_memory_bytes_max = 1", "`device_memory_bytes_max` (DIR/tenon.toml:1): 1 is not allowed, use 1048576"),
        ("kv_format = 'q4'", "`kv_format` (DIR/tenon.toml:1): unknown variant `q4`, expected one of `f16`, `int8`"),
        ("matmul = 'blas'", "`matmul` (DIR/tenon.toml:1): unknown variant `blas`, expected `own` or `cublaslt`"),
        ("matmul = 'cublaslt'", "`matmul` (DIR/tenon.toml:1): `cublaslt` needs `runner = \"cuda\"`"),
        ("prompts = 'bf16'", "`prompts` (DIR/tenon.toml:1): unknown variant `bf16`, expected `auto` or `int8`"),
        (
            "runner = 'cuda'\nprompts = 'int8'",
            "`prompts` (DIR/tenon.toml:2): the CUDA runner computes all tokens alike",
        ),
        ("block_tokens = 12", "`block_tokens` (DIR/tenon.toml:1): 12 is not allowed, use a power of two up to 256"),
        ("limits = 3", "`limits` (DIR/tenon.toml:1): invalid type: integer `3`"),
        ("limits.body_bytes_max = 1", "`limits.body_bytes_max` (DIR/tenon.toml:1): 1 is not allowed, use 1024 to"),
        ("limits.adapter_weight_abs_max = nan", "`limits.adapter_weight_abs_max` (DIR/tenon.toml:1): NaN is not"),
        ("limits.adapter_spectral_norm_max = -1.0", "`limits.adapter_spectral_norm_max` (DIR/tenon.toml:1): -1 is not"),
        ("limits.adapter_frobenius_norm_max = nan", "`limits.adapter_frobenius_norm_max` (DIR/tenon.toml:1): NaN is"),
        ("limits.output_tokens_default = 9999", "`limits.output_tokens_default` (DIR/tenon.toml:1): 9999 is more than"),
        ("listen = 'localhost:1'", "`listen` (DIR/tenon.toml:1): `localhost:1` is not an IP address and port"),
        ("dev = true\nlisten = '0.0.0.0:1'", "`listen` (DIR/tenon.toml:2): 0.0.0.0:1 can be reached from other"),
        ("kv_blocks = 1\nkv_bytes_max = 1", "`kv_blocks` (DIR/tenon.toml:1): set this or `kv_bytes_max`, not both"),
        ("adapters_root = 'none'", "`adapters_root` (DIR/tenon.toml:1): there is no folder DIR/none; make it"),
        ("data = 'base.gguf'", "`data` (DIR/tenon.toml:1): `DIR/base.gguf` is not a folder"),
        ("log = 'a=b=c'", "`log` (DIR/tenon.toml:1): "),
    ] {
        let message = bench.refused(file, &[]);
        assert!(message.starts_with(expected), "{file}: {message}");
    }
    let message = bench.refused("", &[("TENON_DRAIN_MS_MAX", "soon")]);
    let expected = "`drain_ms_max` (environment variable TENON_DRAIN_MS_MAX): invalid type: string \"soon\"";
    assert!(message.starts_with(expected), "{message}");
    let flags = RawConfig { threads: Some(5000), ..bench.flags() };
    let message = bench.load("", &[], &flags).expect_err("too many").to_string();
    assert_eq!(message, "`threads` (flag --threads): 5000 is not allowed, use 1 to 1024");
}

#[test]
fn the_base_is_needed_and_must_be_there() {
    let bench = Bench::new();
    let error = bench.load("", &[], &RawConfig::default()).expect_err("no base");
    assert_eq!(error.code(), "config_incomplete");
    assert!(error.to_string().starts_with("`base` is not set: give --base, TENON_BASE or"), "{error}");
    let flags = RawConfig { base: Some(bench.path("none.gguf")), ..RawConfig::default() };
    let error = bench.load("", &[], &flags).expect_err("no file");
    assert!(error.to_string().starts_with("`base` (flag --base): there is no file or folder"), "{error}");
    let folder = RawConfig { base: Some(bench.path("")), ..RawConfig::default() };
    assert!(bench.load("", &[], &folder).is_ok(), "a folder of safetensors files");
    let none = Config::load(Some(&bench.path("none.toml")), [("A", "b")], &bench.flags()).expect_err("no file");
    assert_eq!(none.code(), "config_unreadable");
}

#[test]
fn the_stronger_source_chooses_how_kv_memory_is_given() {
    let bench = Bench::new();
    let config = bench.load("kv_bytes_max = 1048576", &[("TENON_KV_BLOCKS", "7")], &bench.flags()).expect("valid");
    assert_eq!(config.kv, KvSize::Blocks(7));
    let flags = RawConfig { kv_bytes_max: Some(2 << 20), ..bench.flags() };
    let config = bench.load("", &[("TENON_KV_BLOCKS", "7")], &flags).expect("valid");
    assert_eq!(config.kv, KvSize::Bytes(2 << 20));
}

#[test]
fn what_kubernetes_sets_for_a_service_named_tenon_is_ignored() {
    let bench = Bench::new();
    let set = [
        ("TENON_SERVICE_HOST", "10.0.0.1"),
        ("TENON_SERVICE_PORT", "8080"),
        ("TENON_SERVICE_PORT_HTTP", "8080"),
        ("TENON_PORT", "tcp://10.0.0.1:8080"),
        ("TENON_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("TENON_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("TENON_PORT_8080_TCP_PORT", "8080"),
        ("TENON_PORT_8080_TCP_PROTO", "tcp"),
    ];
    let config = bench.load("", &set, &bench.flags()).expect("valid");
    assert_eq!(config.listen.port(), 8080);
    for name in ["TENON_PORTS", "TENON_PORT_HTTP", "TENON_PORT_8080_TLS", "TENON_SERVICE", "TENON_SERVICE_PORT_"] {
        let message = bench.refused("", &[(name, "1")]);
        assert!(message.contains("unknown field"), "{name}: {message}");
    }
}

#[test]
fn what_adapters_may_be_fetched_from_is_checked() {
    let bench = Bench::new();
    let sources = bench.load("", &[], &bench.flags()).expect("valid").adapter_sources;
    assert_eq!((sources.clone(), sources.hosts.len()), (SourcesConfig::default(), 0));
    let file = "[adapter_sources]\nhosts = ['a.example', 'http://minio.internal:9000']\n\
        private_networks = ['10.0.0.0/8']\ns3_endpoint = 'http://minio.internal:9000'\nattempts_max = 2\n";
    let sources = bench.load(file, &[], &bench.flags()).expect("valid").adapter_sources;
    assert_eq!((sources.hosts.len(), sources.private_networks.len(), sources.attempts_max), (2, 1, 2));
    assert!(sources.s3_endpoint.is_some());
    let environment = [("TENON_ADAPTER_SOURCES__HOSTS", "a.example, *.b.example")];
    let sources = bench.load(file, &environment, &bench.flags());
    assert!(sources.expect_err("the endpoint is no longer listed").to_string().contains("is not in"));
    let hosts = bench.load("", &environment, &bench.flags()).expect("valid").adapter_sources.hosts;
    assert_eq!(
        hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["https://a.example:443", "https://*.b.example:443"]
    );
    for (line, expected) in [
        ("hosts = ['a/b']", "`adapter_sources.hosts` (DIR/tenon.toml:2): `a/b`: write a host such as"),
        ("hosts = 7", "`adapter_sources.hosts` (DIR/tenon.toml:2): a list of texts, or a text with commas"),
        ("private_networks = ['10.0.0.0/33']", "`adapter_sources.private_networks` (DIR/tenon.toml:2): `10.0.0.0/33`:"),
        ("ipfs_gateway = 'ipfs.io'", "`adapter_sources.ipfs_gateway` (DIR/tenon.toml:2): `ipfs.io` is not an address"),
        (
            "ipfs_gateway = 'https://ipfs.io'",
            "`adapter_sources.ipfs_gateway` (DIR/tenon.toml:2): `https://ipfs.io` is not in",
        ),
        (
            "s3_endpoint = 'https://u@a'",
            "`adapter_sources.s3_endpoint` (DIR/tenon.toml:2): `https://u@a` is not an address",
        ),
        ("s3_region = 'a.b'", "`adapter_sources.s3_region` (DIR/tenon.toml:2): `a.b` is not a region"),
        ("attempts_max = 0", "`adapter_sources.attempts_max` (DIR/tenon.toml:2): 0 is not allowed, use 1 to 100"),
        ("total_ms = 1", "`adapter_sources.total_ms` (DIR/tenon.toml:2): unknown field"),
    ] {
        let message = bench.refused(&format!("[adapter_sources]\n{line}\n"), &[]);
        assert!(message.starts_with(expected), "{line}: {message}");
    }
}

#[test]
fn tls_needs_both_files() {
    let bench = Bench::new();
    std::fs::write(bench.path("chain.pem"), b"").expect("file");
    std::fs::write(bench.path("key.pem"), b"").expect("file");
    let file = "[tls]\ncertificate_file = 'chain.pem'\nprivate_key_file = 'key.pem'\n";
    let tls = bench.load(file, &[], &bench.flags()).expect("valid").tls.expect("TLS");
    assert_eq!((tls.certificate_file, tls.private_key_file), (bench.path("chain.pem"), bench.path("key.pem")));
    let message = bench.refused("tls.certificate_file = 'chain.pem'", &[]);
    assert_eq!(message, "`tls.certificate_file` (DIR/tenon.toml:1): set `tls.private_key_file` too, or neither");
    let message = bench.refused("", &[("TENON_TLS__PRIVATE_KEY_FILE", "key.pem")]);
    assert!(message.starts_with("`tls.private_key_file` (environment variable TENON_TLS__PRIVATE_KEY_FILE): set"));
    let message = bench.refused("tls.certificate_file = 'a.pem'\ntls.private_key_file = 'key.pem'", &[]);
    assert!(message.contains("there is no file DIR/a.pem"), "{message}");
    let message = bench.refused("tls.certificate = 'a.pem'", &[]);
    assert!(message.starts_with("`tls.certificate` (DIR/tenon.toml:1): unknown field"), "{message}");
}
