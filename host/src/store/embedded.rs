//! The store of one machine: blobs as files, pointers in one redb file. Nothing to install.
//!
//! Layout of the data directory: `state.redb` (mode 0600) and `blobs/…` (mode 0700). The lock that redb takes on its file makes
//! this process the only one that writes either.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{BlobWrite, Pointer, SCAN_ENTRIES_MAX, StateDatabase, Store, StoreError, Version};

/// Key to (version, value).
const POINTERS: TableDefinition<'static, &str, (u64, &[u8])> = TableDefinition::new("pointers");
/// The last version given out, under `COUNTER`.
const VERSIONS: TableDefinition<'static, &str, u64> = TableDefinition::new("pointer_versions");
const COUNTER: &str = "last";

/// Local files and redb.
pub struct EmbeddedStore {
    directory: PathBuf,
    blobs: LocalFileSystem,
    database: Arc<StateDatabase>,
}

impl std::fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedStore").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store below `directory`, and makes both if they are not there. Files that an interrupted write left behind are
    /// removed.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it open; [`StoreError::Backend`].
    pub async fn open(directory: &Path) -> Result<Self, StoreError> {
        let directory = directory.to_owned();
        blocking("open the data directory", move || Self::open_blocking(directory)).await
    }

    fn open_blocking(directory: PathBuf) -> Result<Self, StoreError> {
        make_private(&directory, directory.join("state.redb").exists())?;
        let database = open_database(&directory)?;
        let blobs = directory.join("blobs");
        make_private(&blobs, true)?;
        sync_directory(&directory).map_err(|error| StoreError::backend("make the data directory durable", error))?;
        // The database's lock is held from here on: no other process is in the middle of a write.
        remove_leftovers(&blobs, 0).map_err(|error| StoreError::backend("clean the blob directory", error))?;
        let blobs = LocalFileSystem::new_with_prefix(&blobs)
            .map_err(|error| StoreError::backend("open the blob directory", error))?
            .with_fsync(true);
        let path = directory.join("state.redb");
        let database = Arc::new(StateDatabase::of_file(database, &directory, path)?);
        Ok(Self { directory, blobs, database })
    }

    /// The database, for the receipt log: it has tables of its own in the same file.
    #[must_use]
    pub fn database(&self) -> Arc<StateDatabase> {
        Arc::clone(&self.database)
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    async fn with_database<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&StateDatabase) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = self.database();
        blocking(doing, move || work(&database)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl Fn(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        let read = move |database: &StateDatabase| database.read(work).map_err(|error| failed(doing, error));
        self.with_database(doing, read).await
    }
}

/// An error of our own may have passed through redb's type.
fn failed(doing: &'static str, error: redb::Error) -> StoreError {
    if let redb::Error::Io(inner) = &error
        && let Some(ours) = inner.get_ref().and_then(|inner| inner.downcast_ref::<StoreError>())
    {
        return ours.clone();
    }
    StoreError::backend(doing, error)
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.with_database("look for room", move |database| {
            database.space().map_or(Ok(()), |space| space.check_room(bytes))
        })
        .await
    }

    async fn put_blob(&self, name: &str, bytes: Bytes, write: BlobWrite) -> Result<(), StoreError> {
        super::check_blob_bytes(bytes.len() as u64)?;
        let mode = match write {
            BlobWrite::Keep => PutMode::Create,
            BlobWrite::Replace => PutMode::Overwrite,
        };
        let path = blob_path(name)?;
        let _room = self.database.space().map(|space| space.claim(bytes.len() as u64)).transpose()?;
        match self.blobs.put_opts(&path, bytes.into(), PutOptions::from(mode)).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) if write == BlobWrite::Keep => Ok(()),
            Err(error) => Err(StoreError::backend("write a blob", error)),
        }
    }

    async fn get_blob(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let found = match self.blobs.get(&blob_path(name)?).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(StoreError::backend("read a blob", error)),
        };
        super::check_blob_bytes(found.meta.size)?;
        found.bytes().await.map(Some).map_err(|error| StoreError::backend("read a blob", error))
    }

    async fn get(&self, key: &str) -> Result<Option<(Bytes, Version)>, StoreError> {
        let key = key.to_owned();
        self.read("read a record", move |database| get(database, &key)).await
    }

    async fn swap(&self, key: &str, expected: Option<Version>, new: Option<Bytes>) -> Result<Version, StoreError> {
        super::check_pointer(key, new.as_ref())?;
        let key = key.to_owned();
        self.with_database("write a record", move |database| {
            // What changes or removes a record may use the reserve: the database does not grow by it, and a key must be
            // revoked on a full disk too.
            if expected.is_none() {
                database.check_room()?;
            }
            let swapped = database.write(|database| swap(database, &key, expected, new.as_deref()));
            swapped.map_err(|error| failed("write a record", error))?.ok_or(StoreError::Conflict { key })
        })
        .await
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<Pointer>, StoreError> {
        let prefix = prefix.to_owned();
        let found = self.read("list records", move |database| scan(database, &prefix)).await?;
        super::check_scan(found.len()).map(|()| found)
    }
}

fn get(database: &Database, key: &str) -> Result<Option<(Bytes, Version)>, redb::Error> {
    // Owned: a plain guard does not keep its transaction, and the page under it could be freed.
    let found = database.begin_read()?.open_table(POINTERS)?.get_owned(key)?;
    Ok(found.map(|found| {
        let (version, value) = found.value();
        (Bytes::copy_from_slice(value), Version(version))
    }))
}

/// `None`: the pointer is not as expected, and nothing was changed (a transaction that is dropped is aborted).
fn swap(
    database: &Database,
    key: &str,
    expected: Option<Version>,
    new: Option<&[u8]>,
) -> Result<Option<Version>, redb::Error> {
    let write = database.begin_write()?;
    let version = {
        let mut pointers = write.open_table(POINTERS)?;
        let found = pointers.get(key)?.map(|found| Version(found.value().0));
        if found != expected {
            return Ok(None);
        }
        let mut versions = write.open_table(VERSIONS)?;
        let version = versions.get(COUNTER)?.map_or(0, |last| last.value()) + 1;
        versions.insert(COUNTER, version)?;
        match new {
            Some(value) => drop(pointers.insert(key, (version, value))?),
            None => drop(pointers.remove(key)?),
        }
        version
    };
    write.commit()?;
    Ok(Some(Version(version)))
}

/// One more than a scan may have says that there are too many.
fn scan(database: &Database, prefix: &str) -> Result<Vec<Pointer>, redb::Error> {
    let table = database.begin_read()?.open_table(POINTERS)?;
    let mut pointers = Vec::new();
    for entry in table.range(prefix..)?.take(SCAN_ENTRIES_MAX + 1) {
        let (key, entry) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        let (version, value) = entry.value();
        let value = Bytes::copy_from_slice(value);
        pointers.push(Pointer { key: key.value().to_owned(), value, version: Version(version) });
    }
    Ok(pointers)
}

fn blob_path(name: &str) -> Result<object_store::path::Path, StoreError> {
    super::check_key(name)?;
    object_store::path::Path::parse(name).map_err(|_| StoreError::BadKey(name.to_owned()))
}

fn open_database(directory: &Path) -> Result<Database, StoreError> {
    let path = directory.join("state.redb");
    let failed = |error: redb::Error| StoreError::backend("open state.redb", error);
    let damaged = |reason: String| StoreError::Damaged { file: path.display().to_string(), reason };
    let bytes = fs::metadata(&path).map_or(0, |found| found.len());
    if bytes == 0 && has_artifacts(directory) {
        return Err(damaged("it holds nothing, and there are blobs beside it".to_owned()));
    }
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| StoreError::backend("open state.redb", error))?;
    let database = match super::database::builder().create(&path) {
        Ok(database) => database,
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
            return Err(StoreError::InUse(directory.display().to_string()));
        }
        Err(error) => {
            let error = redb::Error::from(error);
            return Err(if is_damage(&error) { damaged(error.to_string()) } else { failed(error) });
        }
    };
    make_tables(&database).map_err(failed)?;
    Ok(database)
}

/// Whether there is a blob: then there was a database too.
fn has_artifacts(directory: &Path) -> bool {
    fs::read_dir(directory.join("blobs")).is_ok_and(|mut kinds| kinds.next().is_some())
}

fn is_damage(error: &redb::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => true,
        redb::Error::Io(error) => matches!(error.kind(), InvalidData | UnexpectedEof),
        _ => false,
    }
}

/// So that a reader never finds a table missing.
fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    write.open_table(POINTERS)?;
    write.open_table(VERSIONS)?;
    write.commit()?;
    Ok(())
}

/// Makes the directory, for its owner alone. One that is there already is narrowed only if it is empty or ours: `--data /tmp` must
/// not take `/tmp` away from the others.
fn make_private(directory: &Path, ours: bool) -> Result<(), StoreError> {
    let make = || -> std::io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let empty = fs::read_dir(directory)?.next().is_none();
        if empty || ours {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
    };
    make().map_err(|error| StoreError::backend("make the data directory", error))
}

/// The names in it, and its own in its parent, are on the disk.
fn sync_directory(directory: &Path) -> std::io::Result<()> {
    let directory = directory.canonicalize()?;
    fs::File::open(&directory)?.sync_all()?;
    // A parent that cannot be read was not made by us.
    if let Some(parent) = directory.parent().and_then(|parent| fs::File::open(parent).ok()) {
        parent.sync_all()?;
    }
    Ok(())
}

/// Folders below `blobs`: kind, fan-out.
const BLOB_FOLDERS_DEEP_MAX: u32 = 4;

/// Removes what `LocalFileSystem` stages as `NAME#NUMBER` and could not rename before the process died.
fn remove_leftovers(directory: &Path, depth: u32) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && depth < BLOB_FOLDERS_DEEP_MAX {
            remove_leftovers(&entry.path(), depth + 1)?;
        } else if entry.file_name().to_string_lossy().contains('#') {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::backend(doing, error))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    fn files(directory: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
        }
        found.sort();
        found
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn conforms() {
        let folder = tempfile::tempdir().expect("a folder");
        conformance::run(Arc::new(EmbeddedStore::open(folder.path()).await.expect("open"))).await;
    }

    #[tokio::test]
    async fn a_reopened_store_has_everything() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = folder.path().join("new").join("data");
        let store = EmbeddedStore::open(&directory).await.expect("open");
        let version = store.swap("a/b", None, Some(Bytes::from_static(b"1"))).await.expect("swap");
        store.put_blob("plugin/ab/cd", Bytes::from_static(b"blob"), BlobWrite::Keep).await.expect("put");
        drop(store);
        let store = EmbeddedStore::open(&directory).await.expect("open again");
        assert_eq!(store.get("a/b").await.expect("get"), Some((Bytes::from_static(b"1"), version)));
        assert_eq!(store.get_blob("plugin/ab/cd").await.expect("get"), Some(Bytes::from_static(b"blob")));
        assert_ne!(store.swap("c", None, Some(Bytes::new())).await.expect("swap"), version);
        let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join("blobs")), 0o700);
        assert_eq!(mode(&directory.join("state.redb")), 0o600);
    }

    #[tokio::test]
    async fn a_database_that_went_missing_is_not_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path()).await.expect("open");
        store.put_blob("plugin/ab/cd", Bytes::from_static(b"blob"), BlobWrite::Keep).await.expect("put");
        drop(store);
        fs::remove_file(folder.path().join("state.redb")).expect("removed");
        let error = EmbeddedStore::open(folder.path()).await.expect_err("its blobs would be nobody's");
        assert_eq!(error.code(), "store_damaged");
        assert!(!folder.path().join("state.redb").exists());
    }

    /// Readers hold no page that a writer may free: redb's own assertions see it.
    #[test]
    fn readers_and_a_writer_of_one_record_do_not_meet() {
        let backend = redb::backends::InMemoryBackend::new();
        let database = Database::builder().create_with_backend(backend).expect("a database");
        make_tables(&database).expect("tables");
        let mut version = swap(&database, "a", None, Some(b"0")).expect("swap");
        std::thread::scope(|scope| {
            let reader = || (0..20_000).for_each(|_| assert!(get(&database, "a").expect("get").is_some()));
            let readers = [scope.spawn(reader), scope.spawn(reader)];
            while readers.iter().any(|reader| !reader.is_finished()) {
                version = swap(&database, "a", version, Some(b"1")).expect("swap");
                assert!(version.is_some());
            }
        });
    }

    #[tokio::test]
    async fn a_second_opener_is_told_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let _held = EmbeddedStore::open(folder.path()).await.expect("open");
        let error = EmbeddedStore::open(folder.path()).await.expect_err("in use");
        assert_eq!(error.code(), "data_directory_in_use");
    }

    #[tokio::test]
    async fn a_failed_put_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = EmbeddedStore::open(folder.path()).await.expect("open");
        let blobs = folder.path().join("blobs");
        // The name is taken by a folder, so the last step of the write fails.
        fs::create_dir_all(blobs.join("plugin/name/inner")).expect("folders");
        let put = store.put_blob("plugin/name", Bytes::from_static(b"x"), BlobWrite::Replace).await;
        assert_eq!(put.expect_err("a folder is there").code(), "store_failed");
        // The folder that it belongs to is a file.
        fs::write(blobs.join("adapter"), b"").expect("a file");
        let put = store.put_blob("adapter/ab/cd", Bytes::from_static(b"x"), BlobWrite::Keep).await;
        assert_eq!(put.expect_err("a file is there").code(), "store_failed");
        // What is there stays.
        store.put_blob("plugin/kept", Bytes::from_static(b"1"), BlobWrite::Keep).await.expect("put");
        store.put_blob("plugin/kept", Bytes::from_static(b"2"), BlobWrite::Keep).await.expect("put again");
        assert_eq!(files(&blobs), [blobs.join("adapter"), blobs.join("plugin/kept")]);
    }

    #[tokio::test]
    async fn a_folder_that_was_removed_takes_nothing_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = folder.path().join("data");
        let store = EmbeddedStore::open(&directory).await.expect("open");
        store.swap("a/b", None, Some(Bytes::from_static(b"1"))).await.expect("swap");
        fs::rename(&directory, folder.path().join("elsewhere")).expect("moved");
        let swap = store.swap("a/c", None, Some(Bytes::new())).await;
        assert_eq!(swap.expect_err("it would be lost").code(), "data_directory_lost");
        let put = store.put_blob("plugin/ab/cd", Bytes::new(), BlobWrite::Keep).await;
        assert_eq!(put.expect_err("it would be lost").code(), "data_directory_lost");
        assert!(!directory.exists(), "nothing is made anew in its place");
        assert!(store.get("a/b").await.expect("what is open can be read").is_some());
        EmbeddedStore::open(&directory).await.expect("another one in its place");
        assert!(store.swap("a/c", None, Some(Bytes::new())).await.is_err(), "is another one");
        drop(fs::remove_dir_all(&directory));
        fs::rename(folder.path().join("elsewhere"), &directory).expect("moved back");
        store.swap("a/c", None, Some(Bytes::new())).await.expect("and all is well");
    }

    #[tokio::test]
    async fn leftovers_of_a_crash_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let kind = folder.path().join("blobs/adapter/ab");
        drop(EmbeddedStore::open(folder.path()).await.expect("open"));
        fs::create_dir_all(&kind).expect("folders");
        fs::write(kind.join("cd#1"), b"half").expect("a leftover");
        fs::write(kind.join("cd"), b"whole").expect("a blob");
        let store = EmbeddedStore::open(folder.path()).await.expect("open");
        assert_eq!(files(&kind), [kind.join("cd")]);
        assert_eq!(store.get_blob("adapter/ab/cd").await.expect("get"), Some(Bytes::from_static(b"whole")));
    }

    #[tokio::test]
    async fn a_shared_directory_keeps_its_mode() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("foreign"), b"").expect("a file");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        make_private(folder.path(), false).expect("nothing to do");
        let mode = fs::metadata(folder.path()).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }
}
