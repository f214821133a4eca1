//! Compiled components on disk, each with a mark that only this host can make: a keyed BLAKE3 hash over the component's
//! digest, the engine's fingerprint and the bytes. What does not carry the right mark is made again. The mark stands behind the
//! code, so that the file can be mapped as it is; it is checked once for each file in a process's life. Not here: compiling, and
//! the cache in memory.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::NamedTempFile;
use types::Digest;

use crate::deserialize::{OwnArtefact, OwnFile};

const MAGIC: &[u8; 8] = b"tenoncw2";
const MARK_BYTES: usize = blake3::OUT_LEN;
const KEY_BYTES: usize = blake3::KEY_LEN;
const KEY_FILE: &str = "mark.key";
/// Files that are remembered to have been checked; the memory of it is some megabytes.
const CHECKED_MAX: usize = 1 << 16;
/// Bytes that are read at once while a mark is checked.
const PIECE_BYTES: usize = 256 << 10;
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
    /// Components whose files were found to carry our mark, and how these files looked then.
    checked: Mutex<HashMap<Digest, Look>>,
}

/// What changes with a file's content. The time of the last change cannot be set by who writes the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    bytes: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl Look {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            written: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
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
        let (folder, key) = (folder.to_owned(), read_or_make_key(folder)?);
        Ok(Self { folder, key, fingerprint, bytes_max, checked: Mutex::default() })
    }

    /// The artefact of a component for this engine, if there is one that is ours.
    pub(crate) fn read(&self, component: Digest) -> Option<OwnFile> {
        let path = self.path(component);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%component, %error, "a compiled plugin could not be opened; it is compiled again");
                return None;
            }
        };
        let artefact = self.checked(component, file);
        if artefact.is_none() {
            tracing::warn!(%component, "a compiled plugin does not carry our mark; it is compiled again");
        }
        artefact
    }

    fn checked(&self, component: Digest, file: File) -> Option<OwnFile> {
        let look = Look::of(&file.metadata().ok()?);
        let trailer_bytes = u64::try_from(MAGIC.len() + MARK_BYTES).ok()?;
        let bytes = look.bytes.checked_sub(trailer_bytes)?;
        if bytes > u64::try_from(self.bytes_max).unwrap_or(u64::MAX) {
            return None;
        }
        let is_known = self.lock().get(&component) == Some(&look);
        if !is_known {
            let is_ours = self.carries_our_mark(component, &file, bytes).unwrap_or(false);
            // Nor may it have changed while it was read.
            if !is_ours || Look::of(&file.metadata().ok()?) != look {
                return None;
            }
            self.remember(component, look);
        }
        Some(OwnFile::from_marked_file(file, bytes))
    }

    fn carries_our_mark(&self, component: Digest, mut file: &File, bytes: u64) -> io::Result<bool> {
        let mut hasher = self.hasher(component);
        let (mut piece, mut left) = (vec![0; PIECE_BYTES], bytes);
        while left > 0 {
            let wanted = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let Some(piece) = piece.get_mut(..wanted) else { break };
            file.read_exact(piece)?;
            hasher.update(piece);
            left = left.saturating_sub(wanted as u64);
        }
        let (mut magic, mut mark) = ([0; MAGIC.len()], [0; MARK_BYTES]);
        file.read_exact(&mut magic)?;
        file.read_exact(&mut mark)?;
        // `blake3::Hash` compares in constant time.
        Ok(magic == *MAGIC && hasher.finalize() == blake3::Hash::from_bytes(mark))
    }

    fn remember(&self, component: Digest, look: Look) {
        let mut checked = self.lock();
        if checked.len() >= CHECKED_MAX {
            checked.clear();
        }
        checked.insert(component, look);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Look>> {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an artefact: all of it or nothing, also when the power fails.
    pub(crate) fn write(&self, component: Digest, artefact: &OwnArtefact) -> io::Result<()> {
        let bytes = artefact.bytes();
        let disk = rustix::fs::statvfs(&self.folder)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < FREE_BYTES_MIN.saturating_add(bytes.len() as u64) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut file = staged(&self.folder)?;
        file.write_all(bytes)?;
        file.write_all(MAGIC)?;
        file.write_all(self.hasher(component).update(bytes).finalize().as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(self.path(component)).map_err(|error| error.error)?;
        File::open(&self.folder)?.sync_all()
    }

    /// Lets go of a component's artefact, if there is one.
    pub(crate) fn remove(&self, component: Digest) -> io::Result<()> {
        self.lock().remove(&component);
        match fs::remove_file(self.path(component)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// To be given the code.
    fn hasher(&self, component: Digest) -> blake3::Hasher {
        // The parts before the last have fixed lengths, so no two inputs are the same bytes.
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(MAGIC).update(component.as_bytes()).update(self.fingerprint.as_bytes());
        hasher
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
        assert_eq!(artefacts.read(one).expect("ours").bytes(), 4);
        assert!(
            fs::read(artefacts.path(one)).expect("a file").starts_with(b"code"),
            "the code is mapped from the beginning"
        );
        assert_eq!(open(folder.path()).read(one).expect("still ours after a restart").bytes(), 4);

        fs::copy(artefacts.path(one), artefacts.path(two)).expect("copied");
        assert!(artefacts.read(two).is_none(), "another component's artefact");
        let newer = Artefacts::open(folder.path(), Digest::of(b"newer engine"), 1000).expect("a folder");
        fs::copy(artefacts.path(one), newer.path(one)).expect("copied");
        assert!(newer.read(one).is_none(), "another engine's artefact");
        fs::remove_file(folder.path().join(KEY_FILE)).expect("removed");
        assert!(open(folder.path()).read(one).is_none(), "marked with another key");
    }

    #[test]
    fn a_file_that_was_checked_is_checked_again_when_it_has_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (artefacts, one) = (open(folder.path()), Digest::of(b"one"));
        artefacts.write(one, &OwnArtefact::from_compiler(b"code".to_vec())).expect("written");
        let is_remembered = || artefacts.lock().contains_key(&one);
        assert!(!is_remembered() && artefacts.read(one).is_some() && is_remembered());
        let whole = fs::read(artefacts.path(one)).expect("a file");
        for place in [0, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            // In place, as no writer of ours does it, and as a file of the same name.
            fs::write(artefacts.path(one), &damaged).expect("written");
            assert!(artefacts.read(one).is_none(), "byte {place}");
            fs::remove_file(artefacts.path(one)).expect("removed");
            fs::write(artefacts.path(one), &damaged).expect("written");
            assert!(artefacts.read(one).is_none(), "byte {place} of a new file");
        }
        for bytes in [whole.len() - 1, MAGIC.len() + MARK_BYTES, 3, 0] {
            fs::write(artefacts.path(one), &whole[..bytes]).expect("written");
            assert!(artefacts.read(one).is_none(), "the first {bytes} bytes");
        }
        fs::write(artefacts.path(one), [&whole[..], b"more"].concat()).expect("written");
        assert!(artefacts.read(one).is_none(), "something behind the mark");
        fs::write(artefacts.path(one), &whole).expect("written");
        assert_eq!(artefacts.read(one).expect("as it was").bytes(), 4);
        artefacts.remove(one).expect("removed");
        assert!(artefacts.read(one).is_none() && !is_remembered());
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
