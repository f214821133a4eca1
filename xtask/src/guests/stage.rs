//! The workspace that guests are built in: a copy under `target/` whose root holds the SDK and the contract too. Cargo
//! names a package by its place below the root of its workspace, and by its absolute path when it lies outside, as the SDK
//! does for `plugins/`; these names decide the order of functions. Built from the copy, a guest has the same bytes
//! wherever the checkout lies. Not here: the build.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use super::Result;

/// What is copied, and where to.
const FOLDERS: [(&str, &str); 3] = [("plugins", ""), ("sdk/rust", "sdk/rust"), ("wit", "wit")];

/// Makes the copy anew. Files keep their times, so that cargo builds only what changed.
///
/// # Errors
/// If a file cannot be read or written.
pub(super) fn make(root: &Path, stage: &Path) -> Result<()> {
    match fs::remove_dir_all(stage) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    for (from, to) in FOLDERS {
        copy(&root.join(from), &stage.join(to))?;
    }
    rewrite(&stage.join("Cargo.toml"), |text| text.replace("\"../sdk/rust\"", "\"sdk/rust\""))?;
    rewrite(&stage.join("sdk/rust/Cargo.toml"), |text| text.replace("workspace = \"../../plugins\"\n", ""))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let entries = fs::read_dir(from).map_err(|error| format!("{}: {error}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        if kind.is_dir() && name != "target" {
            copy(&entry.path(), &to.join(&name))?;
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(&name))?;
            let times = fs::FileTimes::new().set_modified(entry.metadata()?.modified()?);
            File::options().write(true).open(to.join(&name))?.set_times(times)?;
        }
    }
    Ok(())
}

fn rewrite(path: &Path, change: impl Fn(&str) -> String) -> Result<()> {
    let (before, modified) = (fs::read_to_string(path)?, fs::metadata(path)?.modified()?);
    let after = change(&before);
    if after == before {
        return Err(format!("{} has not the line that the copy of it does without", path.display()).into());
    }
    fs::write(path, after)?;
    File::options().write(true).open(path)?.set_times(fs::FileTimes::new().set_modified(modified))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_one_workspace() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = crate::shell::root();
        make(&root, folder.path()).expect("copied");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("a file");
        assert!(read("Cargo.toml").contains("\"sdk/rust\"") && !read("Cargo.toml").contains("../sdk"));
        assert!(!read("sdk/rust/Cargo.toml").contains("workspace ="));
        let time = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).expect("a time");
        assert_eq!(time(&folder.path().join("wit/types.wit")), time(&root.join("wit/types.wit")));
        fs::write(folder.path().join("stale"), "").expect("written");
        make(&root, folder.path()).expect("copied again");
        assert!(!folder.path().join("stale").exists());
    }
}
