//! Looks at a project's files until they change. Not here: what is done then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::Error;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);
/// Files of a project: more than these are not one's own.
const WATCHED_FILES_MAX: usize = 10_000;
/// What tools make, beside hidden files.
const MADE: [&str; 7] = ["target", "node_modules", "dist", "build", "__pycache__", "venv", "plugin.wasm"];

/// A project's files as they were seen last.
pub(super) struct Watched {
    folder: PathBuf,
    seen: BTreeMap<PathBuf, (Option<SystemTime>, u64)>,
}

impl Watched {
    /// As they are now.
    pub(super) fn look(folder: &Path) -> Result<Self, Error> {
        let mut watched = Self { folder: folder.to_path_buf(), seen: BTreeMap::new() };
        watched.seen = watched.now()?;
        Ok(watched)
    }

    pub(super) fn files(&self) -> usize {
        self.seen.len()
    }

    /// Waits until they are others than were seen last, and have stayed so for a moment: an editor writes several.
    pub(super) async fn changed(&mut self) -> Result<(), Error> {
        let mut before: Option<BTreeMap<_, _>> = None;
        loop {
            tokio::time::sleep(PAUSE).await;
            let now = self.now()?;
            if before.as_ref() == Some(&now) {
                self.seen = now;
                return Ok(());
            }
            before = (now != self.seen).then_some(now);
        }
    }

    fn now(&self) -> Result<BTreeMap<PathBuf, (Option<SystemTime>, u64)>, Error> {
        let (mut found, mut folders) = (BTreeMap::new(), vec![self.folder.clone()]);
        while let Some(folder) = folders.pop() {
            // What disappears while it is looked at is not there.
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let is_made = name.to_str().is_none_or(|name| name.starts_with('.') || MADE.contains(&name));
                let Ok(metadata) = entry.metadata() else { continue };
                if is_made || metadata.is_symlink() {
                    continue;
                }
                if metadata.is_dir() {
                    folders.push(entry.path());
                } else {
                    found.insert(entry.path(), (metadata.modified().ok(), metadata.len()));
                }
                if found.len().max(folders.len()) > WATCHED_FILES_MAX {
                    let folder = self.folder.display();
                    let message = format!(
                        "{folder} has over {WATCHED_FILES_MAX} files (watched_files_max): name a project's own folder"
                    );
                    return Err(Error::invalid("limit_exceeded", "folder", message));
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_people_write_is_seen_and_what_tools_make_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("written");
        };
        write("src/lib.rs", "one");
        write("target/debug/x", "x");
        let mut watched = Watched::look(folder.path()).expect("a look");
        assert_eq!(watched.files(), 1);
        for made in ["target/debug/y", "node_modules/a/b.js", ".venv/z", "plugin.wasm", ".hidden"] {
            write(made, "x");
        }
        assert_eq!(watched.now().expect("a look"), watched.seen);
        write("src/lib.rs", "other");
        write("src/new.rs", "x");
        watched.changed().await.expect("seen");
        assert_eq!(watched.files(), 2);
        std::fs::remove_file(folder.path().join("src/new.rs")).expect("removed");
        watched.changed().await.expect("seen");
        assert_eq!(watched.files(), 1);
    }
}
