//! Takes away from the compiler child what it does not need, where the kernel can: with Landlock every file and every connection,
//! with seccomp every system call but those that compute, read and write what is open. Compilers are large and their inputs
//! hostile; whoever takes one over is to find nothing. Not here: limits on CPU and memory (`child.rs`).

use std::collections::BTreeMap;
use std::fmt;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetStatus,
    Scope,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// What is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Confinement {
    /// No file, folder or port can be opened.
    pub(crate) landlock: bool,
    /// Most system calls fail.
    pub(crate) seccomp: bool,
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.landlock, self.seccomp) {
            (true, true) => "confined by Landlock and seccomp",
            (true, false) => "confined by Landlock, without seccomp",
            (false, true) => "confined by seccomp, without Landlock",
            (false, false) => "limited, but this kernel has neither Landlock nor seccomp",
        })
    }
}

/// What the compiler does once it runs: memory, its pipes, its clocks, its end. On top of these its abort, so that a failure
/// looks like one, and nothing that opens, connects, starts or signals.
const SYSTEM_CALLS: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_ppoll,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrusage,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Confines the calling thread and those that it starts, for good. A kernel that cannot is no error: the limits of `child.rs`
/// hold anyhow, and what is in force is said.
pub(crate) fn confine() -> Confinement {
    // Landlock first: it needs system calls that seccomp takes away.
    Confinement { landlock: without_files().unwrap_or(false), seccomp: without_calls().is_some() }
}

/// Every right that this kernel knows is handled, and none is given.
fn without_files() -> Result<bool, landlock::RulesetError> {
    let abi = ABI::V6;
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let ruleset = ruleset.handle_access(AccessFs::from_all(abi))?.handle_access(AccessNet::from_all(abi))?;
    let status = ruleset.scope(Scope::from_all(abi))?.create()?.restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// What is not listed fails with `EPERM`, so that a library that asks for more than it needs can go on without.
fn without_calls() -> Option<()> {
    let rules: BTreeMap<i64, Vec<_>> = SYSTEM_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, std::env::consts::ARCH.try_into().ok()?);
    let program: BpfProgram = filter.ok()?.try_into().ok()?;
    seccompiler::apply_filter(&program).ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::process::{Command, Stdio};

    use super::*;

    /// Set for the process that confines itself and tries.
    const CONFINED: &str = "TENON_TEST_CONFINED";

    /// What a confined process could still do.
    fn tried(port: u16, parent: Option<rustix::process::Pid>) -> Vec<&'static str> {
        let mut done = Vec::new();
        let mut note = |what, did: bool| {
            if did {
                done.push(what);
            }
        };
        note("read a file", std::fs::File::open("/proc/self/status").is_ok());
        note("list a folder", std::fs::read_dir("/").is_ok());
        note("write a file", std::fs::File::create(std::env::temp_dir().join("tenon-confined")).is_ok());
        note("make a folder", std::fs::create_dir(std::env::temp_dir().join("tenon-confined-dir")).is_ok());
        note("connect", TcpStream::connect(("127.0.0.1", port)).is_ok());
        note("listen", TcpListener::bind("127.0.0.1:0").is_ok());
        note("send a datagram", UdpSocket::bind("127.0.0.1:0").is_ok());
        note("start a program", Command::new("/bin/true").stdout(Stdio::null()).status().is_ok());
        note("change its limits", rustix::process::nice(-1).is_ok());
        note("signal its parent", parent.is_some_and(|parent| rustix::process::test_kill_process(parent).is_ok()));
        done
    }

    /// Runs in a process of its own: a confined thread stays confined.
    #[test]
    fn a_confined_process_computes_and_does_nothing_else() {
        if let Ok(port) = std::env::var(CONFINED) {
            let port = port.parse().expect("a port");
            let parent = rustix::process::getppid();
            let free = tried(port, parent).len();
            let confinement = confine();
            let memory = vec![1_u8; 64 << 20];
            let sum: u64 = memory.iter().map(|byte| u64::from(*byte)).sum();
            let done = tried(port, parent);
            println!(
                "free {free} sum {sum} landlock {} seccomp {} done {done:?}",
                confinement.landlock, confinement.seccomp
            );
            std::io::stdout().flush().expect("written");
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let name = "confine::tests::a_confined_process_computes_and_does_nothing_else";
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--nocapture"])
            .env(CONFINED, port.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut said = String::new();
        child.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
        assert!(child.wait().expect("ended").success(), "{said}");
        let line = said.lines().find(|line| line.contains("free ")).expect(&said);
        assert!(line.contains("sum 67108864"), "{line}");
        assert!(!line.contains("free 0"), "the attempts must be able to succeed: {line}");
        if line.contains("landlock false seccomp false") {
            println!(
                "SKIPPED a_confined_process_computes_and_does_nothing_else: this kernel has neither Landlock nor seccomp"
            );
            return;
        }
        if line.contains("seccomp true") {
            assert!(line.ends_with("done []"), "{line}");
        } else {
            assert!(!line.contains("file") && !line.contains("folder"), "{line}");
        }
    }
}
