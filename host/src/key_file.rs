//! Files that hold a secret of 32 bytes as hexadecimal digits, mode 0600, and how a file is written whole or not at all. Not here:
//! what a secret is for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

const KEY_FILE_BYTES_MAX: u64 = 1 << 10;

/// The secret in this file; made, random, if there is no file.
pub(crate) fn open_or_make(path: &Path) -> io::Result<Zeroizing<[u8; 32]>> {
    remove_if_there(&staged(path))?;
    match read_secret(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut secret = Zeroizing::new([0; 32]);
            getrandom::fill(secret.as_mut_slice()).map_err(io::Error::other)?;
            replace_file(path, to_hex(&secret).as_bytes(), 0o600)?;
            Ok(secret)
        }
        read => read,
    }
}

fn read_secret(path: &Path) -> io::Result<Zeroizing<[u8; 32]>> {
    let file = File::open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        return Err(io::Error::other("others may read it; run `chmod 600` on it"));
    }
    // Room for the whole file at once: a buffer that grows would leave copies of the secret behind.
    let mut hex = Zeroizing::new(String::with_capacity(KEY_FILE_BYTES_MAX as usize));
    file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut hex)?;
    from_hex(hex.trim_ascii_end())
        .ok_or_else(|| io::Error::other("it is damaged; restore it, or move it away for a fresh one"))
}

/// By hand, so that no copy of the secret stays in memory.
fn to_hex(secret: &[u8; 32]) -> Zeroizing<String> {
    let mut hex = Zeroizing::new(String::with_capacity(65));
    let digits = secret.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    hex.extend(digits.filter_map(|digit| char::from_digit(digit.into(), 16)));
    hex.push('\n');
    hex
}

fn from_hex(hex: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut secret = Zeroizing::new([0; 32]);
    if hex.len() != 64 {
        return None;
    }
    for (byte, digits) in secret.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        for digit in digits {
            *byte = *byte << 4 | u8::try_from(char::from(*digit).to_digit(16)?).ok()?;
        }
    }
    Some(secret)
}

/// Where a file is written first.
pub(crate) fn staged(path: &Path) -> PathBuf {
    path.with_extension("new")
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file whole or not at all, durably. The data folder has one owner (the database's lock), so that nobody races.
pub(crate) fn replace_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let new = staged(path);
    remove_if_there(&new)?;
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    if let Err(error) = write() {
        let _ = remove_if_there(&new);
        return Err(error);
    }
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
