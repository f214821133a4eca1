//! A file of our own, mapped to be read: packed adapters that are used where they lie. Not here: what is in the file, and
//! whether it is what we wrote (whoever maps it checks that before anything else).
//!
//! A mapping is a slice, so its bytes must neither go away (a shorter file is a SIGBUS) nor change. The program writes such
//! a file under another name, takes away everyone's right to write it, its own too, and only then gives it its name; from
//! then on it is removed or replaced by another file, never opened for writing. Both leave a mapping as it is: the file
//! lives until its last mapping ends. [`Mapping::of`] refuses every file that is not of that kind. What remains is our own
//! user (and root), who may change the memory of this process as well.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::MetadataExt as _;
use std::ptr::NonNull;
use std::sync::Arc;
use std::{fmt, ptr};

use crate::memory::wipe;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The mode of a file that may be mapped: its owner may read it, and nobody may write it.
const MODE: u32 = 0o400;

/// A whole file, mapped to be read, until the last part of it is dropped.
pub struct Mapping {
    first: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns the mapping, which can be read and unmapped from any thread.
unsafe impl Send for Mapping {}
// SAFETY: as above: a shared reference only reads.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the file and makes its pages present, so that no step waits for one.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] if it is not a regular file of this process' user with the mode 0400;
    /// [`io::ErrorKind::InvalidData`] if it is empty; and what the system says.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let own = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_file() || !own || metadata.mode() & 0o7777 != MODE {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let len = usize::try_from(metadata.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        if len == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: a new mapping at an address of the system's choice touches no memory that anyone has.
        let first = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ, flags(), file, 0)? };
        let first = NonNull::new(first.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { first, len })
    }

    /// All of the file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped with this length in `of` and until `drop`, and the file neither shrinks nor changes: see the top.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `of` with this length, and nobody has a part of it any more.
        let unmapped = unsafe { munmap(self.first.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} bytes)", self.len)
    }
}

#[cfg(target_os = "linux")]
fn flags() -> MapFlags {
    MapFlags::PRIVATE | MapFlags::POPULATE
}

#[cfg(not(target_os = "linux"))]
fn flags() -> MapFlags {
    MapFlags::PRIVATE
}

/// A part of a mapped file, which stays mapped for it.
#[derive(Clone, Debug)]
pub struct MappedPart {
    mapping: Arc<Mapping>,
    own: Range<usize>,
}

impl MappedPart {
    /// These bytes of the file; `None` if it has fewer.
    #[must_use]
    pub fn new(mapping: &Arc<Mapping>, own: Range<usize>) -> Option<Self> {
        mapping.bytes().get(own.clone())?;
        Some(Self { mapping: Arc::clone(mapping), own })
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.mapping.bytes()[self.own.clone()]
    }
}

/// Numbers that are only read: in memory of their own, or in a mapped file.
#[derive(Clone)]
pub struct Floats(Place);

#[derive(Clone)]
enum Place {
    Own(Wiped<f32>),
    /// Aligned for, and as long as, a number of `f32`.
    Mapped(MappedPart),
}

/// Overwritten when it goes.
#[derive(Clone)]
struct Wiped<T: Copy + Default>(Vec<T>);

impl<T: Copy + Default> Drop for Wiped<T> {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl Floats {
    /// The part's bytes as numbers of this machine; `None` if it does not begin at one, or ends within one.
    #[must_use]
    pub fn mapped(part: MappedPart) -> Option<Self> {
        let bytes = part.bytes();
        let fits = bytes.as_ptr().cast::<f32>().is_aligned() && bytes.len().is_multiple_of(size_of::<f32>());
        fits.then_some(Self(Place::Mapped(part)))
    }

    /// The numbers, in memory that the caller may write.
    #[must_use]
    pub fn into_vec(self) -> Vec<f32> {
        match self.0 {
            Place::Own(mut values) => std::mem::take(&mut values.0),
            Place::Mapped(part) => Self(Place::Mapped(part)).to_vec(),
        }
    }
}

impl From<Vec<f32>> for Floats {
    fn from(values: Vec<f32>) -> Self {
        Self(Place::Own(Wiped(values)))
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            Place::Own(values) => &values.0,
            Place::Mapped(part) => {
                let bytes = part.bytes();
                // SAFETY: `mapped`, the only way to make this, has checked the alignment; the length is rounded down to
                // whole numbers; any bits are an `f32`.
                unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<f32>()) }
            }
        }
    }
}

/// Bytes that are only read: in memory of their own, which is overwritten when they go, or in a mapped file.
#[derive(Clone)]
pub struct Bytes(BytesPlace);

#[derive(Clone)]
enum BytesPlace {
    Own(Wiped<u8>),
    Mapped(MappedPart),
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(BytesPlace::Own(Wiped(bytes)))
    }
}

impl From<MappedPart> for Bytes {
    fn from(part: MappedPart) -> Self {
        Self(BytesPlace::Mapped(part))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            BytesPlace::Own(bytes) => &bytes.0,
            BytesPlace::Mapped(part) => part.bytes(),
        }
    }
}

impl fmt::Debug for Floats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// These bytes, mapped from a file that has no name any more.
    pub(crate) fn mapped(bytes: &[u8]) -> Arc<Mapping> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, bytes).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(MODE)).expect("sealed");
        Arc::new(Mapping::of(&File::open(&path).expect("opened")).expect("mapped"))
    }

    #[test]
    fn a_part_keeps_the_file_though_its_name_is_gone() {
        let mapping = mapped(&[1, 2, 3, 4, 5]);
        let part = MappedPart::new(&mapping, 1..4).expect("a part");
        drop(mapping);
        assert_eq!(part.bytes(), [2, 3, 4]);
        let mapping = mapped(&[0; 5]);
        assert!(MappedPart::new(&mapping, 0..6).is_none());
        assert!(MappedPart::new(&mapping, 6..6).is_none());
        assert!(MappedPart::new(&mapping, 5..5).is_some());
    }

    #[test]
    fn a_file_that_somebody_may_write_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, b"bytes").expect("written");
        let code = |mode: u32| {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
            Mapping::of(&File::open(&path).expect("opened")).err().map(|error| error.kind())
        };
        for mode in [0o600, 0o420, 0o402, 0o644, 0o440, 0o4400] {
            assert_eq!(code(mode), Some(io::ErrorKind::PermissionDenied), "{mode:o}");
        }
        assert_eq!(code(MODE), None);
        let empty = folder.path().join("empty");
        fs::write(&empty, b"").expect("written");
        fs::set_permissions(&empty, Permissions::from_mode(MODE)).expect("set");
        let error = Mapping::of(&File::open(&empty).expect("opened")).expect_err("empty");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = Mapping::of(&File::open(folder.path()).expect("opened")).expect_err("a folder");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn numbers_are_the_same_in_memory_and_in_a_file() {
        let values = vec![1.5f32, -0.0, f32::MAX, f32::from_bits(1)];
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        let mapping = mapped(&bytes);
        let part = |range| MappedPart::new(&mapping, range).expect("a part");
        let floats = Floats::mapped(part(0..16)).expect("numbers");
        assert_eq!(floats.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), {
            values.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
        });
        assert_eq!(floats.into_vec(), *Floats::from(values));
        assert!(Floats::mapped(part(1..5)).is_none(), "not aligned");
        assert!(Floats::mapped(part(0..6)).is_none(), "not whole");
    }
}
