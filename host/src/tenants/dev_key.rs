//! The key of `tenon serve --dev`: one file, readable by its owner alone. Not here: keys that people make.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use types::TenantId;
use zeroize::Zeroizing;

use super::{KEY_TEXT_BYTES, Rights, TenantError, Tenants};

const DEV_TENANT: &str = "dev";
const DEV_LABEL: &str = "dev.key";

impl Tenants {
    /// A key with every right for the tenant `dev`, written to `path` (mode 0600). The key that is there is used again if it still
    /// opens the door; else it is replaced, and earlier ones of this kind are revoked.
    ///
    /// # Errors
    /// [`TenantError::DevKeyFile`], [`TenantError::Store`].
    pub async fn create_dev_key(&self, path: &Path) -> Result<Zeroizing<String>, TenantError> {
        let tenant: TenantId = DEV_TENANT.parse().map_err(|_| TenantError::BadRecord(DEV_TENANT.to_owned()))?;
        on_file("clean up beside", path, |path| remove_if_there(&staged(path))).await?;
        if let Some(text) = on_file("read", path, read_private).await? {
            let principal = self.authenticate(&text).await?;
            if principal.is_some_and(|found| found.tenant == tenant && found.rights == Rights::ALL) {
                return Ok(text);
            }
        }
        match self.create_tenant(&tenant).await {
            Ok(()) | Err(TenantError::TenantExists(_)) => {}
            Err(error) => return Err(error),
        }
        for earlier in self.list_keys(Some(&tenant)).await? {
            if earlier.label == DEV_LABEL && earlier.revoked_unix_ms.is_none() {
                self.revoke_key(Some(&tenant), &earlier.id).await?;
            }
        }
        let key = self.create_key(&tenant, Rights::ALL, DEV_LABEL).await?;
        let text = key.text.clone();
        on_file("write", path, move |path| write_private(path, &text)).await?;
        Ok(key.text)
    }
}

async fn on_file<T: Send + 'static>(
    doing: &'static str,
    path: &Path,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, TenantError> {
    let shown = path.display().to_string();
    let path: PathBuf = path.to_owned();
    let done =
        tokio::task::spawn_blocking(move || work(&path)).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|error| TenantError::DevKeyFile { doing, path: shown, source: Arc::new(error) })
}

/// The first line, if there is a file; its mode is narrowed on the way.
fn read_private(path: &Path) -> io::Result<Option<Zeroizing<String>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(KEY_TEXT_BYTES as u64 + 2).read_to_end(&mut bytes)?;
    Ok(std::str::from_utf8(&bytes).ok().map(|text| Zeroizing::new(text.trim_end().to_owned())))
}

/// Where the file is written first. The data folder has one owner (the database's lock), so that nobody races.
fn staged(path: &Path) -> PathBuf {
    path.with_extension("key.new")
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whole or not at all: a reader never sees half a key.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = staged(path);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        fs::rename(&staged, path)?;
        fs::File::open(folder)?.sync_all()
    };
    let written = write();
    if written.is_err() {
        let _ = remove_if_there(&staged);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn it_is_private_used_again_and_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dev.key");
        let tenants = Tenants::new(Arc::new(MemoryStore::default()));
        let first = tenants.create_dev_key(&path).await.expect("a key");
        assert_eq!(fs::read_to_string(&path).expect("the file").trim_end(), first.as_str());
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert_eq!(tenants.create_dev_key(&path).await.expect("a key"), first);
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);

        fs::write(&path, b"\xff not a key").expect("scribble");
        let second = tenants.create_dev_key(&path).await.expect("a key");
        assert_ne!(second, first);
        assert_eq!(tenants.authenticate(&first).await.expect("authenticate"), None);
        assert!(tenants.authenticate(&second).await.expect("authenticate").is_some());
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
    }

    #[tokio::test]
    async fn what_a_killed_writer_left_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dev.key");
        let tenants = Tenants::new(Arc::new(MemoryStore::default()));
        let key = tenants.create_dev_key(&path).await.expect("a key");
        fs::write(staged(&path), b"tk_half").expect("a leftover");
        assert_eq!(tenants.create_dev_key(&path).await.expect("the same key"), key);
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let tenants = Tenants::new(Arc::new(MemoryStore::default()));
        let error = tenants.create_dev_key(&folder.path().join("none/dev.key")).await.expect_err("no folder");
        assert_eq!(error.code(), "internal");
    }
}
