//! Reading an adapter folder below the configured root, and nothing else. Not here: what the files mean.
//!
//! A path is resolved first (symbolic links inside the root are fine: model caches are made of them), checked to lie below the root,
//! and then opened part by part without following any link, so that a link planted in between is not followed either.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use model::{AdapterLimits, CONTAINER_PREFIX_BYTES, refuse_container, refuse_container_name};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::super::{AdapterFiles, SIGNATURE_BYTES_MAX};
use super::{AdapterError, CONFIG, SIGNATURE, WEIGHTS};

/// Names of a folder that are looked at to say what it has instead of weights.
const NAMES_READ_MAX: usize = 256;

/// The path that a `file:///…` address names. It is absolute and has no `..`.
pub(super) fn file_path(url: &str) -> Result<PathBuf, AdapterError> {
    // The parser below folds `..` away; it is refused instead, because with links it would mean another folder.
    let dots_decoded = url.to_ascii_lowercase().replace("%2e", ".");
    if dots_decoded.split(['/', '\\']).any(|segment| segment == "..") {
        return Err(AdapterError::BadSource("a path must not contain `..`"));
    }
    let url = reqwest::Url::parse(url).map_err(|_| AdapterError::BadSource("it is not a URL; use file:///…"))?;
    if url.scheme() != "file" {
        return Err(AdapterError::BadSource("only file:///… is supported; upload the files instead"));
    }
    if url.host_str().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(AdapterError::BadSource("a file:// URL has no host, query or fragment; use file:///…"));
    }
    url.to_file_path().map_err(|()| AdapterError::BadSource("the path of the URL is not a file's path"))
}

/// The folder below which adapters may be read.
#[derive(Clone, Debug)]
pub(super) struct AdaptersRoot {
    /// Resolved.
    path: PathBuf,
}

impl AdaptersRoot {
    /// Blocking.
    pub(super) fn open(path: &Path) -> Result<Self, AdapterError> {
        let bad = |error| AdapterError::BadRoot { path: path.display().to_string(), source: Arc::new(error) };
        let resolved = path.canonicalize().map_err(bad)?;
        std::fs::read_dir(&resolved).map_err(bad)?;
        Ok(Self { path: resolved })
    }

    /// The `file:///…` address of a path, which is taken from the root on if it is not absolute. It may lead elsewhere:
    /// reading says so.
    pub(super) fn url(&self, path: &str) -> Result<String, AdapterError> {
        let url = reqwest::Url::from_file_path(self.path.join(path));
        url.map(String::from).map_err(|()| AdapterError::BadSource("it is not the path of a folder"))
    }

    /// The files of a folder, each no larger than its limit. Blocking.
    pub(super) fn read_folder(&self, folder: &Path, limits: &AdapterLimits) -> Result<AdapterFiles, AdapterError> {
        let resolved = folder.canonicalize().ok().filter(|folder| folder.starts_with(&self.path));
        let folder = resolved.ok_or(AdapterError::SourceNotFound)?;
        if !folder.is_dir() {
            self.refuse_container_file(&folder)?;
            return Err(AdapterError::SourceNotFound);
        }
        if !folder.join(WEIGHTS).exists() {
            refuse_container_names(&folder)?;
        }
        let config = self.read_file(&folder, CONFIG, "adapter_config_bytes_max", limits.config_bytes_max)?;
        let weights = self.read_file(&folder, WEIGHTS, "adapter_file_bytes_max", limits.file_bytes_max)?;
        // A link that leads nowhere is a signature that cannot be read, not none.
        let signature = match folder.join(SIGNATURE).symlink_metadata() {
            Ok(_) => Some(self.read_file(&folder, SIGNATURE, "adapter_signature_bytes_max", SIGNATURE_BYTES_MAX)?),
            Err(_) => None,
        };
        Ok(AdapterFiles { config, weights, signature })
    }

    /// Says of an archive that it is one, by its first bytes or its name; it is not opened.
    fn refuse_container_file(&self, path: &Path) -> Result<(), AdapterError> {
        let Some(file) = self.open_below(path) else { return Ok(()) };
        let Some(metadata) = file.metadata().ok().filter(std::fs::Metadata::is_file) else { return Ok(()) };
        let mut prefix = Vec::new();
        if file.take(CONTAINER_PREFIX_BYTES as u64).read_to_end(&mut prefix).is_ok() {
            refuse_container(&prefix, metadata.len())?;
        }
        Ok(refuse_container_name(&path.to_string_lossy())?)
    }

    fn read_file(
        &self,
        folder: &Path,
        name: &'static str,
        limit: &'static str,
        bytes_max: usize,
    ) -> Result<Bytes, AdapterError> {
        let file = self.open_below(&folder.join(name)).ok_or(AdapterError::SourceFile(name))?;
        let bytes_max = bytes_max as u64;
        let too_large = || AdapterError::OverLimit { what: name, limit, max: bytes_max };
        let metadata = file.metadata().map_err(|_| AdapterError::SourceFile(name))?;
        if !metadata.is_file() {
            return Err(AdapterError::SourceFile(name));
        }
        if metadata.len() > bytes_max {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        // The file may grow while it is read.
        file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|_| AdapterError::SourceFile(name))?;
        if bytes.len() as u64 > bytes_max { Err(too_large()) } else { Ok(bytes.into()) }
    }

    fn open_below(&self, path: &Path) -> Option<File> {
        let resolved = path.canonicalize().ok()?;
        let below = resolved.strip_prefix(&self.path).ok()?;
        let mut names = Vec::new();
        for part in below.components() {
            let Component::Normal(name) = part else { return None };
            names.push(name);
        }
        let (file, folders) = names.split_last()?;
        open_parts(&self.path, folders, file).ok().map(File::from)
    }
}

/// Says of a folder without our weights that it has others: `adapter_model.bin`, an archive.
fn refuse_container_names(folder: &Path) -> Result<(), AdapterError> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().take(NAMES_READ_MAX).filter_map(Result::ok);
    for name in entries.map(|entry| entry.file_name()).filter(|name| name != "training_args.bin") {
        refuse_container_name(&name.to_string_lossy())?;
    }
    Ok(())
}

fn open_parts(root: &Path, folders: &[&OsStr], file: &OsStr) -> rustix::io::Result<OwnedFd> {
    let folder_flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(CWD, root, folder_flags, Mode::empty())?;
    for folder in folders {
        at = openat(&at, *folder, folder_flags, Mode::empty())?;
    }
    // Not to hang on a pipe.
    let file_flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(&at, file, file_flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn limits() -> AdapterLimits {
        AdapterLimits { config_bytes_max: 4, file_bytes_max: 8, ..AdapterLimits::default() }
    }

    fn folder_with(path: &Path, config: &[u8], weights: &[u8]) {
        fs::create_dir_all(path).expect("a folder");
        fs::write(path.join(CONFIG), config).expect("a file");
        fs::write(path.join(WEIGHTS), weights).expect("a file");
    }

    fn code(read: Result<AdapterFiles, AdapterError>) -> &'static str {
        read.map_or_else(|error| error.code(), |_| "read")
    }

    #[test]
    fn addresses() {
        assert_eq!(file_path("file:///a/b%20c").expect("a path"), PathBuf::from("/a/b c"));
        assert_eq!(file_path("file://localhost/a").expect("a path"), PathBuf::from("/a"));
        for bad in [
            "",
            "/a/b",
            "file://elsewhere/a",
            "https://example.org/a",
            "file:///a?x=1",
            "file:///a#x",
            "file:///a/../b",
            "file:///a/..",
            "file:///a/%2e%2E/b",
            "file:///a/.%2e/b",
            "file:///a/..\\b",
            "file://../a",
        ] {
            let error = file_path(bad).expect_err(bad);
            assert_eq!(error.code(), "invalid_source", "{bad}");
        }
    }

    #[test]
    fn only_what_lies_below_the_root_is_read() {
        let outer = tempfile::tempdir().expect("a folder");
        let path = outer.path().join("root");
        folder_with(&path.join("good"), b"{}", b"weights");
        folder_with(&outer.path().join("outside"), b"{}", b"secret");
        folder_with(&outer.path().join("root-twin"), b"{}", b"secret");
        symlink(outer.path().join("outside"), path.join("escape")).expect("a link");
        symlink(path.join("good"), path.join("inside")).expect("a link");
        folder_with(&path.join("half"), b"{}", b"");
        fs::remove_file(path.join("half").join(WEIGHTS)).expect("remove");
        symlink(outer.path().join("outside").join(WEIGHTS), path.join("half").join(WEIGHTS)).expect("a link");

        let root = AdaptersRoot::open(&path).expect("a root");
        let read = |folder: PathBuf| root.read_folder(&folder, &limits());
        let good = read(path.join("good")).expect("read");
        assert_eq!((&good.config[..], &good.weights[..], good.signature), (&b"{}"[..], &b"weights"[..], None));
        fs::write(path.join("good").join(SIGNATURE), b"bundle").expect("a file");
        assert_eq!(read(path.join("good")).expect("read").signature.as_deref(), Some(&b"bundle"[..]));
        let large = vec![b' '; SIGNATURE_BYTES_MAX + 1];
        fs::write(path.join("good").join(SIGNATURE), large).expect("a file");
        assert_eq!(code(read(path.join("good"))), "limit_exceeded");
        // A signature that cannot be read is not none.
        fs::remove_file(path.join("good").join(SIGNATURE)).expect("removed");
        symlink(outer.path().join("outside").join(CONFIG), path.join("good").join(SIGNATURE)).expect("a link");
        assert_eq!(code(read(path.join("good"))), "source_not_found");
        fs::remove_file(path.join("good").join(SIGNATURE)).expect("removed");
        assert_eq!(code(read(path.join("inside"))), "read");
        // A link out, a twin by name, another folder, none at all: one answer.
        let elsewhere = [path.join("escape"), outer.path().join("root-twin"), outer.path().join("outside")];
        for folder in elsewhere.into_iter().chain([path.join("none"), path.join("good").join(CONFIG)]) {
            let error = read(folder.clone()).expect_err("refused");
            assert!(matches!(error, AdapterError::SourceNotFound), "{folder:?}: {error:?}");
        }
        let error = read(path.join("half")).expect_err("a file that is a link out");
        assert!(matches!(error, AdapterError::SourceFile(WEIGHTS)), "{error:?}");
        assert!(AdaptersRoot::open(&path.join("none")).is_err());
    }

    #[test]
    fn archives_and_pickles_are_named_and_not_opened() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = AdaptersRoot::open(folder.path()).expect("a root");
        let read = |name: &str| code(root.read_folder(&folder.path().join(name), &limits()));
        fs::write(folder.path().join("a.zip"), b"not even one").expect("a file");
        fs::write(folder.path().join("plain"), b"\x1f\x8b\x08 with gzip's first bytes").expect("a file");
        fs::write(folder.path().join("text"), b"neither").expect("a file");
        assert_eq!(
            ["a.zip", "plain", "text"].map(read),
            ["unsupported_media_type", "unsupported_media_type", "source_not_found"]
        );
        folder_with(&folder.path().join("pickle"), b"{}", b"");
        let rename =
            |from: &str, to: &str| fs::rename(folder.path().join(from), folder.path().join(to)).expect("renamed");
        rename("pickle/adapter_model.safetensors", "pickle/training_args.bin");
        assert_eq!(read("pickle"), "source_not_found");
        rename("pickle/training_args.bin", "pickle/adapter_model.bin");
        assert_eq!(read("pickle"), "unsupported_media_type");
    }

    #[test]
    fn sizes_and_kinds_are_checked_before_reading() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = AdaptersRoot::open(folder.path()).expect("a root");
        let read = |name: &str| code(root.read_folder(&folder.path().join(name), &limits()));
        folder_with(&folder.path().join("config"), b"{   }", b"");
        assert_eq!(read("config"), "limit_exceeded");
        folder_with(&folder.path().join("weights"), b"{}", b"123456789");
        assert_eq!(read("weights"), "limit_exceeded");
        let sparse = folder.path().join("sparse");
        folder_with(&sparse, b"{}", b"");
        fs::File::create(sparse.join(WEIGHTS)).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
        assert_eq!(read("sparse"), "limit_exceeded");
        let nested = folder.path().join("nested");
        fs::create_dir_all(nested.join(CONFIG)).expect("a folder");
        assert_eq!(read("nested"), "source_not_found");
        let pipe = folder.path().join("pipe");
        fs::create_dir_all(&pipe).expect("a folder");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(CWD, pipe.join(CONFIG), rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");
        assert_eq!(read("pipe"), "source_not_found");
    }
}
