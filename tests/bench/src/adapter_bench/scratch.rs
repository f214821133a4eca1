//! The folder that holds a server's data for a while, and what the page cache has of it. Not here: what is in it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Advice, fadvise, statvfs};

use crate::Outcome;
use crate::files::files;

/// Disk for one adapter: its files as they were sent, its packed form, its records, and some more.
const ADAPTER_BYTES: u64 = 2_500_000;
/// What is left to everybody else.
const SPARE_BYTES: u64 = 2 << 30;

/// A folder that is removed when it is dropped, or when this program dies, however it does.
pub(super) struct Scratch {
    folder: tempfile::TempDir,
    guard: Child,
}

impl Scratch {
    /// Below `parent`, or among the system's temporary folders.
    ///
    /// # Errors
    /// If there is no room for so many adapters.
    pub(super) fn new(parent: Option<&Path>, adapters: usize) -> Outcome<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let disk = statvfs(&parent).map_err(|error| format!("{}: {error}", parent.display()))?;
        let (free, needed) =
            (disk.f_bavail.saturating_mul(disk.f_frsize), ADAPTER_BYTES * adapters as u64 + SPARE_BYTES);
        if free < needed {
            let [free, needed] = [free, needed].map(|bytes| bytes / 1_000_000_000);
            return Err(format!(
                "{} has {free} GB free, and {adapters} adapters need {needed} GB: name another folder with --data, or take \
                 fewer with --adapters",
                parent.display()
            )
            .into());
        }
        let folder = tempfile::Builder::new().prefix("tenon-bench-adapters-").tempdir_in(parent)?;
        // Its input ends when this program does. The server has a guard of its own, and a second to end.
        let mut guard = Command::new("sh");
        guard.args(["-c", "trap '' INT TERM HUP; cat >/dev/null; sleep 1; rm -rf \"$1\"", "guard"]).arg(folder.path());
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { guard: guard.spawn()?, folder })
    }

    /// The server's data folder.
    pub(super) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Killed, the guard does not wait; the folder removes itself next.
        drop(self.guard.kill());
        drop(self.guard.wait());
    }
}

/// Asks the system to forget what it has in memory of the adapters' files: the next use reads the disk. What is mapped
/// stays. The bytes by which the page cache became smaller, which others' files take part in.
///
/// # Errors
/// If a file cannot be opened.
pub(super) fn drop_page_cache(data: &Path) -> Outcome<f64> {
    let before = page_cache_bytes();
    for folder in ["packed-adapters", "blobs"] {
        for (path, _) in files(&data.join(folder))? {
            match File::open(&path) {
                Ok(file) => fadvise(&file, 0, None, Advice::DontNeed)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok((before - page_cache_bytes()).max(0.0))
}

/// Zero where the system does not say.
fn page_cache_bytes() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Cached:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kilobytes.unwrap_or_default() * 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_goes_with_its_owner() {
        let scratch = Scratch::new(None, 0).expect("room for nothing");
        let data = scratch.data();
        fs::create_dir_all(data.join("packed-adapters/ab")).expect("a folder");
        fs::write(data.join("packed-adapters/ab/one.packed"), vec![1; 5000]).expect("a file");
        assert!(drop_page_cache(&data).is_ok());
        drop(scratch);
        assert!(!data.exists());
    }

    #[test]
    fn too_many_adapters_find_no_room() {
        let error = Scratch::new(None, 1 << 40).err().expect("an exabyte").to_string();
        assert!(error.contains("--data"), "{error}");
    }
}
