//! What lies below a folder. Not here: what it is for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// All files below a folder with their sizes; none if it is not there.
///
/// # Errors
/// If a folder cannot be read.
pub(crate) fn files(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        match entry.metadata() {
            Ok(about) if about.is_dir() => found.extend(files(&entry.path())?),
            Ok(about) => found.push((entry.path(), about.len())),
            // It went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_inner_folders_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("one/two/three");
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(&path, vec![1; 5000]).expect("a file");
        assert_eq!(files(folder.path()).expect("read"), [(path, 5000)]);
        assert!(files(&folder.path().join("none")).expect("nothing").is_empty());
    }
}
