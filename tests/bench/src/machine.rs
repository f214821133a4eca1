//! What the bench runs on, for who reads its numbers later. Not here: what the machine can do (`limits`).

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// The flags that decide which kernels run.
const FLAGS: [&str; 8] = ["avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx_vnni"];

/// A machine, and the commit that was measured on it.
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    flags: Vec<&'static str>,
    memory_bytes: u64,
    system: String,
    /// Of the checkout, with `+changes` if it has any.
    pub(crate) commit: String,
    /// Programs that wanted a core over the last minute: others' work disturbs.
    load: Option<f64>,
}

impl Machine {
    /// What can be found out; what cannot stays empty.
    pub(crate) fn read() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let flags = field("flags");
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cpu: field("model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            flags: FLAGS.into_iter().filter(|flag| flags.split_whitespace().any(|found| found == *flag)).collect(),
            memory_bytes: kilobytes(&memory, "MemTotal:").unwrap_or_default(),
            system: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            commit: commit(),
            load: load.split_whitespace().next().and_then(|load| load.parse().ok()),
        }
    }

    /// For the report.
    pub(crate) fn json(&self) -> Value {
        json!({
            "cpu": self.cpu, "cores": self.cores, "flags": self.flags, "memory_bytes": self.memory_bytes,
            "system": self.system, "load_at_start": self.load,
        })
    }

    /// In one line, with a warning where others use the machine.
    pub(crate) fn line(&self) -> String {
        let load = self.load.filter(|load| *load > 0.5);
        let busy = load.map_or(String::new(), |load| format!("; WARNING: load {load} at the start, others disturb"));
        format!("{}, {} cores, {}; commit {}{busy}", self.cpu, self.cores, self.flags.join(" "), self.commit)
    }
}

/// The most memory that a process had resident, in bytes.
pub(crate) fn peak_resident_bytes(pid: u32) -> Option<u64> {
    kilobytes(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmHWM:")
}

/// What a process has resident now, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    kilobytes(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

/// `NAME   123 kB` of a file in /proc, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// The root of the checkout that this was built from.
pub(crate) fn repository() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest)
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).current_dir(repository()).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return String::new() };
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
    if is_clean { commit } else { commit + "+changes" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_proc() {
        assert_eq!(kilobytes("VmPeak:\t 9 kB\nVmHWM:\t  123 kB\n", "VmHWM:"), Some(123 << 10));
        assert_eq!(kilobytes("VmPeak:\t 9 kB\n", "VmHWM:"), None);
        if cfg!(target_os = "linux") {
            let pid = std::process::id();
            assert!(peak_resident_bytes(pid) >= resident_bytes(pid).map(|bytes| bytes / 2));
            assert!(resident_bytes(pid).is_some_and(|bytes| bytes > 1 << 20));
        }
    }
}
