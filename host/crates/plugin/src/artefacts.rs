//! Compiled components on disk, each with a mark that only this host can make: a keyed BLAKE3 hash over the component's
//! digest, the engine's fingerprint and the bytes. What does not carry the right mark is made again. Not here:
//! compiling, and the cache in memory.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use types::Digest;

use crate::deserialize::OwnArtefact;

const MAGIC: &[u8; 8] = b"tenoncw1";
const MARK_BYTES: usize = blake3::OUT_LEN;
const KEY_BYTES: usize = blake3::KEY_LEN;
const KEY_FILE: &str = "mark.key";
/// Free space that a cache leaves to what cannot be made again.
const FREE_BYTES_MIN: u64 = 16 << 20;
/// How a file begins that is being written; no process but ours writes into the folder.
const STAGED_PREFIX: &str = ".staged-";

/// The folder of compiled components. All of its calls block.
pub(crate) struct Artefacts {
    folder: PathBuf,
    key: [u8; KEY_BYTES],
    fingerprint: Digest,
    bytes_max: usize,
}

impl Artefacts {
    /// Opens the folder, or makes it; only its owner may enter it.
    pub(crate) fn open(folder: &Path, fingerprint: Digest, bytes_max: usize) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let metadata = fs::metadata(folder)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("the folder of compiled plugins belongs to another user; choose another"));
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(folder, Permissions::from_mode(0o700))?;
        }
        remove_staged(folder)?;
        Ok(Self { folder: folder.to_owned(), key: read_or_make_key(folder)?, fingerprint, bytes_max })
    }

    /// The artefact of a component for this engine, if there is one that is ours.
    pub(crate) fn read(&self, component: Digest) -> Option<OwnArtefact> {
        let path = self.path(component);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%component, %error, "a compiled plugin could not be opened; it is compiled again");
                return None;
            }
        };
        let artefact = self.read_marked(component, file);
        if artefact.is_none() {
            tracing::warn!(%component, "a compiled plugin does not carry our mark; it is compiled again");
        }
        artefact
    }

    fn read_marked(&self, component: Digest, file: File) -> Option<OwnArtefact> {
        let bytes_max = u64::try_from(MAGIC.len() + MARK_BYTES + self.bytes_max).unwrap_or(u64::MAX);
        let mut file = file.take(bytes_max);
        let (mut magic, mut mark, mut bytes) = ([0; MAGIC.len()], [0; MARK_BYTES], Vec::new());
        file.read_exact(&mut magic).ok()?;
        file.read_exact(&mut mark).ok()?;
        file.read_to_end(&mut bytes).ok()?;
        // `blake3::Hash` compares in constant time.
        let ours = magic == *MAGIC && self.mark(component, &bytes) == blake3::Hash::from_bytes(mark);
        ours.then(|| OwnArtefact::from_marked_file(bytes))
    }

    /// Keeps an artefact: all of it or nothing, also when the power fails.
    pub(crate) fn write(&self, component: Digest, artefact: &OwnArtefact) -> io::Result<()> {
        let bytes = artefact.bytes();
        let disk = rustix::fs::statvfs(&self.folder)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < FREE_BYTES_MIN.saturating_add(bytes.len() as u64) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut file = staged(&self.folder)?;
        file.write_all(MAGIC)?;
        file.write_all(self.mark(component, bytes).as_bytes())?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(self.path(component)).map_err(|error| error.error)?;
        File::open(&self.folder)?.sync_all()
    }

    /// Lets go of a component's artefact, if there is one.
    pub(crate) fn remove(&self, component: Digest) -> io::Result<()> {
        match fs::remove_file(self.path(component)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn mark(&self, component: Digest, bytes: &[u8]) -> blake3::Hash {
        // The parts before the last have fixed lengths, so no two inputs are the same bytes.
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(MAGIC).update(component.as_bytes()).update(self.fingerprint.as_bytes()).update(bytes);
        hasher.finalize()
    }

    fn path(&self, component: Digest) -> PathBuf {
        let fingerprint: String = self.fingerprint.to_string().chars().take(16).collect();
        self.folder.join(format!("{component}-{fingerprint}.cwasm"))
    }
}

/// A file of mode 0600 that goes with its handle, unless it is given its name.
fn staged(folder: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(STAGED_PREFIX).tempfile_in(folder)
}

/// What a process that was killed had begun to write.
fn remove_staged(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(STAGED_PREFIX) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Reads the key; makes a new one if there is none, or if it is not secret. A new key makes every old mark worthless.
fn read_or_make_key(folder: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let path = folder.join(KEY_FILE);
    if let Some(key) = read_key(&path)? {
        return Ok(key);
    }
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
    let mut file = staged(folder)?;
    file.write_all(&key)?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()?;
    Ok(key)
}

fn read_key(path: &Path) -> io::Result<Option<[u8; KEY_BYTES]>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    let secret = metadata.mode() & 0o077 == 0 && metadata.uid() == rustix::process::geteuid().as_raw();
    let mut key = [0; KEY_BYTES];
    let whole = metadata.len() == KEY_BYTES as u64 && file.read_exact(&mut key).is_ok();
    if !(secret && whole) {
        tracing::warn!("the key of the compiled plugins is damaged or not secret; a new one is made");
        return Ok(None);
    }
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Artefacts {
        Artefacts::open(folder, Digest::of(b"engine"), 1000).expect("a folder")
    }

    #[test]
    fn a_mark_fits_one_component_engine_and_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let artefacts = open(folder.path());
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        artefacts.write(one, &OwnArtefact::from_compiler(b"code".to_vec())).expect("written");
        assert_eq!(artefacts.read(one).expect("ours").bytes(), b"code");
        assert_eq!(open(folder.path()).read(one).expect("still ours after a restart").bytes(), b"code");

        fs::copy(artefacts.path(one), artefacts.path(two)).expect("copied");
        assert!(artefacts.read(two).is_none(), "another component's artefact");
        let newer = Artefacts::open(folder.path(), Digest::of(b"newer engine"), 1000).expect("a folder");
        fs::copy(artefacts.path(one), newer.path(one)).expect("copied");
        assert!(newer.read(one).is_none(), "another engine's artefact");
        fs::remove_file(folder.path().join(KEY_FILE)).expect("removed");
        assert!(open(folder.path()).read(one).is_none(), "marked with another key");
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let one = Digest::of(b"one");
        open(folder.path()).write(one, &OwnArtefact::from_compiler(b"code".to_vec())).expect("written");
        let left = staged(folder.path()).expect("begun").into_temp_path().keep().expect("and left");
        let artefacts = open(folder.path());
        assert!(!left.exists());
        assert!(artefacts.read(one).is_some(), "what is whole stays");
    }

    #[test]
    fn the_key_is_secret_and_a_public_one_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("set");
        let first = open(folder.path()).key;
        let key = folder.path().join(KEY_FILE);
        assert_eq!(fs::metadata(&key).expect("there").mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(folder.path()).expect("there").mode() & 0o777, 0o700);
        fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("set");
        assert_ne!(open(folder.path()).key, first);
        fs::write(&key, b"short").expect("written");
        assert_ne!(open(folder.path()).key[..5], *b"short");
    }
}
