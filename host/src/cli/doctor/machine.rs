//! What the machine has: a clock, a processor, memory, a GPU, the tools of a checkout.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::Precision;
use model::accelerator::{self, CudaError, NoGpu};

use super::super::selftest::named;
use super::Check;
use crate::config::{Config, KvSize, RunnerChoice};
use crate::http::Tls;

/// 2026-01-01 UTC: this program is younger.
const PAST: Duration = Duration::from_secs(1_767_225_600);
/// 2100-01-01 UTC.
const FUTURE: Duration = Duration::from_secs(4_102_444_800);

/// Receipts and usage carry this machine's time.
pub(super) fn clock() -> Check {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = super::super::output::time(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    if (PAST..FUTURE).contains(&now) {
        return Check::ok("clock", text);
    }
    Check::fail("clock", text, "set the machine's clock; receipts and usage carry its time")
}

/// The kernels choose by these.
pub(super) fn processor() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let features = features();
    let found = format!("{cores} cores, {} ({})", std::env::consts::ARCH, features.join(", "));
    if features.is_empty() {
        let advice = "plain code is used, which is slow; choose a machine with AVX2 or NEON";
        return Check::warn("processor", format!("{cores} cores, no vector unit that is used"), advice);
    }
    Check::ok("processor", found)
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let all = [
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("FMA", std::is_x86_feature_detected!("fma")),
        ("F16C", std::is_x86_feature_detected!("f16c")),
        ("AVX-512F", std::is_x86_feature_detected!("avx512f")),
        ("AVX-512 VNNI", std::is_x86_feature_detected!("avx512vnni")),
    ];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    if cfg!(target_arch = "aarch64") { vec!["NEON"] } else { Vec::new() }
}

/// The accelerators, or why there is none. Whether a host uses one is for its configuration to say.
pub(super) fn gpu() -> Check {
    let devices = match accelerator::devices() {
        Ok(devices) => devices,
        Err(CudaError::Absent(reason)) => return no_gpu(&reason),
        Err(error) => {
            return Check::warn("GPU", format!("{error}; the CPU is used"), "see whether `nvidia-smi` works");
        }
    };
    let usable = devices.iter().find_map(|device| device.is_usable().err());
    match usable {
        Some(reason) => no_gpu(&reason),
        None => Check::ok("GPU", devices.iter().map(named).collect::<Vec<_>>().join(", ")),
    }
}

/// A machine without one is as it should be; one whose driver is not usable may be meant to have one.
fn no_gpu(reason: &NoGpu) -> Check {
    let found = format!("{reason}; the CPU is used");
    match reason {
        NoGpu::NoLibrary | NoGpu::NoDevice => Check::ok("GPU", found),
        NoGpu::OldDevice { .. } => Check::warn("GPU", found, "use a newer device, or none"),
        _ => Check::warn("GPU", found, "install NVIDIA's driver for CUDA 13.0 or later if this machine has a GPU"),
    }
}

/// Certificate and key, if TLS is configured.
pub(super) fn tls(config: &Config) -> Option<Check> {
    let files = config.tls.as_ref()?;
    Some(match Tls::open(files) {
        Ok(_) => Check::ok("TLS", format!("{} fits its key", files.certificate_file.display())),
        Err(error) => Check::fail("TLS", error.to_string(), "give a PEM certificate chain and its unencrypted key"),
    })
}

/// What the host keeps page-locked if it computes on a device, for the adapters that wait for it.
fn pinned_bytes_max(config: &Config) -> u64 {
    let is_usable = || {
        let devices = accelerator::devices().unwrap_or_default();
        !devices.is_empty() && devices.iter().all(|device| device.is_usable().is_ok())
    };
    let may_be_used = match config.runner {
        RunnerChoice::Cpu => false,
        RunnerChoice::Cuda => true,
        RunnerChoice::Auto => config.precision != Precision::F32 && is_usable(),
    };
    if may_be_used { config.adapter_staging_bytes_max } else { 0 }
}

/// Whether base, KV and adapters fit, those included that wait for a device.
pub(super) fn memory(config: &Config) -> Check {
    let base = std::fs::metadata(&config.base).map_or(0, |file| file.len());
    // As f32 a weight is at most eight times what it is in the file.
    let base = if config.precision.to_string() == "f32" { base.saturating_mul(8) } else { base.saturating_mul(2) };
    let kv = match config.kv {
        KvSize::Bytes(bytes) => bytes,
        KvSize::Blocks(_) => 0,
    };
    let pinned = pinned_bytes_max(config);
    let wanted = base.saturating_add(kv).saturating_add(config.adapter_cache_bytes_max).saturating_add(pinned);
    let used = match pinned {
        0 => format!("up to {} may be used", mib(wanted)),
        _ => format!("up to {} may be used, of which {} page-locked for a device", mib(wanted), mib(pinned)),
    };
    let Some(available) = available_bytes() else {
        return Check::ok("memory", format!("{used}; what is free is not known here"));
    };
    let found = format!("{} free, {used}", mib(available));
    if available < base.saturating_add(kv) {
        return Check::fail("memory", found, "free some, or lower kv_bytes_max, or use a smaller base");
    }
    if available < wanted {
        let advice = match pinned {
            0 => "lower adapter_cache_bytes_max or kv_bytes_max",
            _ => "lower adapter_cache_bytes_max, adapter_staging_bytes_max or kv_bytes_max",
        };
        return Check::warn("memory", found, advice);
    }
    Check::ok("memory", found)
}

/// What the kernel, or a container's limit, leaves.
fn available_bytes() -> Option<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.split_whitespace().next()?.parse::<u64>().ok()?.saturating_mul(1024);
    let read = |name: &str| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok()?.trim().parse().ok();
    let (limit, used): (Option<u64>, Option<u64>) = (read("memory.max"), read("memory.current"));
    Some(limit.map_or(free, |limit| free.min(limit.saturating_sub(used.unwrap_or(0)))))
}

/// Bytes for people.
pub(in super::super) fn mib(bytes: u64) -> String {
    if bytes >= 10 << 30 { format!("{} GiB", bytes >> 30) } else { format!("{} MiB", bytes >> 20) }
}

/// What the repository's own commands fetch, if this is run in a checkout.
pub(super) fn checkout() -> Vec<Check> {
    let here = std::env::current_dir().unwrap_or_default();
    let is_checkout = |folder: &&Path| folder.join("wit").is_dir() && folder.join("xtask/Cargo.toml").is_file();
    if here.ancestors().find(is_checkout).is_none() {
        return Vec::new();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache"))).unwrap_or_default();
    let fetched = |name, folder: &str, command: &str| {
        let folder = cache.join("tenon").join(folder);
        if folder.is_dir() {
            return Check::ok(name, folder.display().to_string());
        }
        Check::warn(name, format!("{} is not there", folder.display()), format!("run `{command}`"))
    };
    vec![
        fetched("demo base", "base", "cargo xtask base"),
        fetched("guest toolchain", "guest-toolchain", "cargo xtask guests"),
    ]
}
