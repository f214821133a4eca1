//! Packed adapters on disk, in a private folder under a budget of bytes: written once, then mapped where they lie. Not here:
//! what is in such a file (`model`), and who may have one.
//!
//! A file is named by the beginning of its adapter's digest, which finds all that must go when it is revoked, and a hash of
//! tenant and adapter: were files shared, one tenant could tell by time whether another uses the same adapter. It is written under another name, read-only, durable and marked with a key of this folder before it
//! has its own, and never opened for writing again. What does not carry the right mark is removed and packed again.
//!
//! Over the budget the least recently used files go, but none that is mapped: its adapter is in memory and so in use, and
//! its bytes would not come free. (Removing a mapped file does no harm on Unix: it lives until the last mapping ends.)
//! Nothing here fails a request: a file that cannot be written is not kept, and one that cannot be read is packed again.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use model::{LoraAdapter, Mapping, ModelConfig, PackedFileError};
use tempfile::NamedTempFile;
use types::{Digest, TenantId};
use zeroize::Zeroizing;

use super::AdapterError;
use super::loads::lost;
use crate::store::STORAGE_RESERVE_BYTES;

const KEY_FILE: &str = "mark.key";
const KEY_BYTES: usize = 32;
/// How a file begins that is being written; no process but ours writes into the folder.
const STAGED_PREFIX: &str = ".staged-";
const SUFFIX: &str = ".packed";
/// Hexadecimal digits of an adapter and of a layout in a name; all of them are in the mark.
const SHORT_DIGITS: usize = 16;
/// A sealed file: nobody may write it.
const MODE: u32 = 0o400;

/// Where packed adapters are kept.
#[derive(Clone, Debug)]
pub struct AdapterDisk {
    /// A folder of its own; made if it is not there.
    pub folder: PathBuf,
    /// Of all files.
    pub bytes_max: u64,
    /// The content of the base that adapters are packed for.
    pub base: Digest,
}

/// What the disk has done, and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterDiskStats {
    /// Of all files.
    pub bytes: u64,
    /// How many they are.
    pub files: usize,
    /// Adapters that were there.
    pub hits: u64,
    /// Adapters that were not.
    pub misses: u64,
    /// Files that were not what they should be, and were removed.
    pub refused: u64,
    /// Files that gave way to others.
    pub evicted: u64,
    /// Adapters that could not be written.
    pub unkept: u64,
}

/// The folder. All of its calls block.
#[derive(Debug)]
pub(super) struct DiskTier {
    folder: PathBuf,
    key: Key,
    layout: Digest,
    base: ModelConfig,
    bytes_max: u64,
    /// Space of the disk that is left to what cannot be made again.
    pub(super) free_bytes_min: u64,
    files: Mutex<Files>,
    hits: AtomicU64,
    misses: AtomicU64,
    refused: AtomicU64,
    unkept: AtomicU64,
}

struct Key(Zeroizing<[u8; KEY_BYTES]>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// What is in the folder.
#[derive(Debug, Default)]
struct Files {
    by_name: HashMap<String, Entry>,
    /// Names by [`Entry::used`], the least recent first.
    by_use: BTreeMap<u64, String>,
    /// Of all files, and of those that are being written.
    bytes: u64,
    uses: u64,
    evicted: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
    mapping: Weak<Mapping>,
}

impl DiskTier {
    /// Opens the folder, or makes it; only its owner may enter it. What a process that was killed had begun to write is
    /// removed, and so are files of another layout.
    pub(super) fn open(disk: &AdapterDisk, layout: Digest, base: ModelConfig) -> io::Result<Self> {
        let folder = disk.folder.clone();
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let metadata = fs::metadata(&folder)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("it belongs to another user"));
        }
        fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        let tier = Self {
            key: Key(key_of(&folder)?),
            folder,
            layout,
            base,
            bytes_max: disk.bytes_max,
            free_bytes_min: STORAGE_RESERVE_BYTES,
            files: Mutex::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unkept: AtomicU64::new(0),
        };
        tier.scan()?;
        Ok(tier)
    }

    /// Takes in what is there, the least recently used first, and removes what is of no use.
    fn scan(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let metadata = entry.metadata()?;
            if self.is_current(&name) && metadata.is_file() {
                found.push((metadata.modified()?, name, metadata.len()));
            } else if name.starts_with(STAGED_PREFIX) || name.ends_with(SUFFIX) {
                self.remove_file(&name);
            } else if name != KEY_FILE {
                tracing::warn!(name, "a file that is not ours lies in the folder of packed adapters");
            }
        }
        found.sort();
        let mut files = self.files();
        for (_, name, bytes) in found {
            files.insert(name, bytes, Weak::new());
        }
        self.make_room(&mut files, 0);
        Ok(())
    }

    /// The adapter, mapped, if it is there; and how long it took to check it.
    pub(super) fn read(&self, tenant: Option<&TenantId>, digest: Digest) -> Option<(LoraAdapter, Duration)> {
        let name = self.name(tenant, digest);
        if !self.files().by_name.contains_key(&name) {
            self.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        match self.map(&name, self.is(tenant, digest)) {
            Ok((adapter, checked)) => {
                self.hits.fetch_add(1, Ordering::Relaxed);
                self.files().touch(&name, adapter.mapping());
                Some((adapter, checked))
            }
            Err(error) => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                self.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%digest, %error, "a packed adapter on disk cannot be used; it is packed again");
                let mut files = self.files();
                files.remove(&name);
                self.remove_file(&name);
                None
            }
        }
    }

    fn map(&self, name: &str, is: Digest) -> Result<(LoraAdapter, Duration), PackedFileError> {
        // No link is followed, and a pipe does not hang.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let path = self.folder.join(name);
        let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
        let mapped = LoraAdapter::map(&file, &self.key.0, is, &self.base)?;
        // The order of use, for the next start. Nothing is lost without it.
        let _kept = file.set_modified(SystemTime::now());
        Ok(mapped)
    }

    /// Keeps an adapter for later, if there is room.
    pub(super) fn keep(&self, tenant: Option<&TenantId>, digest: Digest, adapter: &LoraAdapter) {
        if let Err(error) = self.write(&self.name(tenant, digest), self.is(tenant, digest), adapter) {
            self.unkept.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%digest, %error, "a packed adapter is not kept on disk");
        }
    }

    fn write(&self, name: &str, is: Digest, adapter: &LoraAdapter) -> Result<(), PackedFileError> {
        let image = adapter.image()?;
        let bytes = image.bytes();
        let disk = rustix::fs::statvfs(&self.folder).map_err(io::Error::from)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < self.free_bytes_min.saturating_add(bytes) {
            return Err(io::Error::from(ErrorKind::StorageFull).into());
        }
        {
            let mut files = self.files();
            if !self.make_room(&mut files, bytes) {
                return Err(io::Error::new(ErrorKind::QuotaExceeded, "adapter_disk_bytes_max is in use").into());
            }
            files.bytes += bytes;
        }
        let staged = self.staged(&image, is);
        let mut files = self.files();
        files.bytes -= bytes;
        // Named while it is entered: the folder and what is known of it do not part.
        staged?.persist(self.folder.join(name)).map_err(|error| error.error)?;
        files.insert(name.to_owned(), bytes, Weak::new());
        drop(files);
        Ok(File::open(&self.folder)?.sync_all()?)
    }

    /// All of the file, sealed and durable, but for its name. It goes with its handle.
    fn staged(&self, image: &model::PackedImage<'_>, is: Digest) -> io::Result<NamedTempFile> {
        let mut file = staged(&self.folder)?;
        let mut out = io::BufWriter::with_capacity(1 << 20, file.as_file_mut());
        image.write(&mut out, &self.key.0, is)?;
        out.flush()?;
        drop(out);
        file.as_file().set_permissions(Permissions::from_mode(MODE))?;
        file.as_file().sync_all()?;
        Ok(file)
    }

    /// Removes what a tenant has no right to any more.
    pub(super) fn forget(&self, tenant: Option<&TenantId>, digest: Digest) {
        let name = self.name(tenant, digest);
        let mut files = self.files();
        if files.remove(&name) {
            self.remove_file(&name);
        }
    }

    /// Removes what every tenant has of an adapter.
    pub(super) fn forget_everywhere(&self, digest: Digest) {
        let beginning = format!("{}-", short(digest));
        let mut files = self.files();
        let found: Vec<String> = files.by_name.keys().filter(|name| name.starts_with(&beginning)).cloned().collect();
        for name in found {
            files.remove(&name);
            self.remove_file(&name);
        }
    }

    pub(super) fn stats(&self) -> AdapterDiskStats {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let files = self.files();
        AdapterDiskStats {
            bytes: files.bytes,
            files: files.by_name.len(),
            hits: count(&self.hits),
            misses: count(&self.misses),
            refused: count(&self.refused),
            evicted: files.evicted,
            unkept: count(&self.unkept),
        }
    }

    /// Removes the least recently used files that are not mapped until so many bytes more are within the budget. `false` if
    /// they cannot be; then nothing more than needed was removed, but maybe something.
    fn make_room(&self, files: &mut Files, bytes: u64) -> bool {
        // Those that are mapped become the most recent ones, so each is looked at once.
        for _ in 0..files.by_name.len() {
            if files.bytes.saturating_add(bytes) <= self.bytes_max || bytes > self.bytes_max {
                break;
            }
            let Some(name) = files.by_use.values().next().cloned() else { break };
            let mapping = files.by_name.get(&name).map(|entry| entry.mapping.clone()).unwrap_or_default();
            if mapping.strong_count() > 0 {
                files.touch(&name, mapping);
                continue;
            }
            files.remove(&name);
            files.evicted += 1;
            self.remove_file(&name);
        }
        files.bytes.saturating_add(bytes) <= self.bytes_max
    }

    fn remove_file(&self, name: &str) {
        match fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(name, %error, "a packed adapter cannot be removed from disk");
            }
            _ => {}
        }
    }

    fn is_current(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.strip_suffix(SUFFIX).unwrap_or_default().split('-').collect();
        let [adapter, of, layout] = parts[..] else { return false };
        adapter.len() == SHORT_DIGITS && of.parse::<Digest>().is_ok() && layout == short(self.layout)
    }

    fn name(&self, tenant: Option<&TenantId>, digest: Digest) -> String {
        format!("{}-{}-{}{SUFFIX}", short(digest), self.is(tenant, digest), short(self.layout))
    }

    /// What a file is.
    fn is(&self, tenant: Option<&TenantId>, digest: Digest) -> Digest {
        let whose = tenant.map_or(&b""[..], |tenant| tenant.as_str().as_bytes());
        let parts = [whose, digest.as_bytes(), self.layout.as_bytes()];
        Digest::of_parts("tenon 2026-11 packed adapter", parts)
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    /// As the most recently used one.
    fn insert(&mut self, name: String, bytes: u64, mapping: Weak<Mapping>) {
        self.remove(&name);
        self.uses += 1;
        self.bytes += bytes;
        self.by_use.insert(self.uses, name.clone());
        self.by_name.insert(name, Entry { bytes, used: self.uses, mapping });
    }

    fn remove(&mut self, name: &str) -> bool {
        let Some(Entry { bytes, used, .. }) = self.by_name.remove(name) else { return false };
        self.by_use.remove(&used);
        self.bytes -= bytes;
        true
    }

    /// Notes a use, if it is there still.
    fn touch(&mut self, name: &str, mapping: Weak<Mapping>) {
        if let Some(bytes) = self.by_name.get(name).map(|entry| entry.bytes) {
            self.insert(name.to_owned(), bytes, mapping);
        }
    }
}

/// [`DiskTier::forget`] off the async threads.
pub(super) async fn forget(
    disk: &Arc<DiskTier>,
    tenant: Option<&TenantId>,
    digest: Digest,
) -> Result<(), AdapterError> {
    let (disk, tenant) = (Arc::clone(disk), tenant.cloned());
    tokio::task::spawn_blocking(move || disk.forget(tenant.as_ref(), digest)).await.map_err(lost)
}

/// [`DiskTier::forget_everywhere`] off the async threads.
pub(super) async fn forget_everywhere(disk: &Arc<DiskTier>, digest: Digest) -> Result<(), AdapterError> {
    let disk = Arc::clone(disk);
    tokio::task::spawn_blocking(move || disk.forget_everywhere(digest)).await.map_err(lost)
}

/// How a digest begins.
fn short(digest: Digest) -> String {
    digest.to_string().chars().take(SHORT_DIGITS).collect()
}

fn staged(folder: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(STAGED_PREFIX).tempfile_in(folder)
}

/// The folder's key. One that is not there, damaged or not secret is replaced, and every file with it loses its mark.
fn key_of(folder: &Path) -> io::Result<Zeroizing<[u8; KEY_BYTES]>> {
    let (path, mut key) = (folder.join(KEY_FILE), Zeroizing::new([0; KEY_BYTES]));
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let open = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(&path);
    let read = open.and_then(|mut file| {
        let metadata = file.metadata()?;
        let own = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
        file.read_exact(key.as_mut_slice())?;
        Ok(own && metadata.len() == KEY_BYTES as u64)
    });
    match read {
        Ok(true) => return Ok(key),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Ok(false) | Err(_) => tracing::warn!("the key of the packed adapters cannot be used; a new one is made"),
    }
    getrandom::fill(key.as_mut_slice()).map_err(|error| io::Error::other(error.to_string()))?;
    let mut file = staged(folder)?;
    file.write_all(key.as_slice())?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()?;
    Ok(key)
}
