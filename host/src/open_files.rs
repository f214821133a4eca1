//! How many files the process may have open, and the kernel's table of them, which is made large before there are threads. Not here:
//! who opens files.

use std::io;
use std::os::fd::AsFd as _;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that the kernel's table has room for from the beginning: each compiled plugin at hand keeps one open (8,192 of them fill
/// their cache), and each connection has one. The table takes 8 bytes for each.
const ROOM: u64 = 1 << 14;

/// Files that the process may have open: as many as the system lets it, which is often more than it begins with.
pub(crate) fn most() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
    // None is without end.
    if raised.is_ok() { now.maximum } else { now.current }.unwrap_or(u64::MAX)
}

/// Has the kernel make its table of the process' open files large now. To be called while the process has one thread: once it has
/// more, each doubling of the table (at 256, 512, 1,024 files, ...) has whoever opens the next file wait until every core has passed
/// through the scheduler (`expand_fdtable` in Linux' `fs/file.c`, a grace period of RCU), 10 to 30 ms. The table never shrinks.
///
/// # Errors
/// If no file can be given a number so high. The host works without.
pub(crate) fn make_room() -> io::Result<()> {
    let last = most().min(ROOM).saturating_sub(1);
    // The table is as large as the highest number in it has asked for.
    let _closed_again = fcntl_dupfd_cloexec(io::stdin().as_fd(), i32::try_from(last).unwrap_or(i32::MAX))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_room() {
        make_room().expect("room");
        let status = std::fs::read_to_string("/proc/self/status").expect("a status");
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).expect("the size of the table");
        assert!(size.trim().parse::<u64>().expect("a number") >= most().min(ROOM));
    }
}
