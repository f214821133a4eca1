//! What a file is by its first bytes, where it is something other than safetensors or JSON: archives, pickles, other
//! weights. Such files are refused by what they are and never opened. Not here: what is wrong with a safetensors file.

use super::AdapterRejection;

/// Bytes at the beginning of a file that decide.
pub const CONTAINER_PREFIX_BYTES: usize = 512;

/// File endings of archives, pickles and other weights.
const ENDINGS: [&str; 25] = [
    "7z", "bin", "bz2", "ckpt", "gguf", "gz", "h5", "joblib", "lz4", "msgpack", "npy", "npz", "onnx", "pickle", "pkl",
    "pt", "pth", "rar", "tar", "tbz2", "tgz", "txz", "xz", "zip", "zst",
];

const MAGIC: [(&[u8], &str); 18] = [
    (b"PK\x03\x04", "a zip archive, or a pickle that torch wrapped in one"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"PK\x07\x08", "a zip archive in parts"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x1f\x9d", "a compress archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x04\x22\x4d\x18", "an lz4 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"!<arch>\n", "an ar archive"),
    (b"070701", "a cpio archive"),
    (b"070707", "a cpio archive"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy file"),
    (b"\x37\xa4\x30\xec", "a zstd dictionary"),
];

/// Refuses what is no adapter file by its kind: an archive, a pickle, other weights. `bytes` is the file, or its first
/// [`CONTAINER_PREFIX_BYTES`] with its length.
///
/// # Errors
/// [`AdapterRejection::MediaType`].
pub fn refuse_container(bytes: &[u8], file_bytes: u64) -> Result<(), AdapterRejection> {
    match kind(bytes, file_bytes) {
        Some(kind) => Err(AdapterRejection::MediaType(kind)),
        None => Ok(()),
    }
}

/// Refuses a file by its name, before it is read.
///
/// # Errors
/// [`AdapterRejection::MediaType`].
pub fn refuse_container_name(name: &str) -> Result<(), AdapterRejection> {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    match ending.filter(|ending| ENDINGS.contains(&ending.as_str())) {
        Some(_) => Err(AdapterRejection::MediaType("a file of another kind by its name")),
        None => Ok(()),
    }
}

fn kind(bytes: &[u8], file_bytes: u64) -> Option<&'static str> {
    if begins_as_safetensors(bytes, file_bytes) {
        return None;
    }
    if let Some((_, kind)) = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(kind);
    }
    match bytes {
        // zstd and lz4 allow 16 marks for frames to be skipped.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some("a zstd or lz4 archive"),
        [0x80, 2..=5, ..] => Some("a pickle"),
        _ if is_tar(bytes) => Some("a tar archive"),
        _ => None,
    }
}

/// Its eight bytes of length may look like anything: `80 02 00 …` is a header of 640 bytes, and the start of a pickle.
fn begins_as_safetensors(bytes: &[u8], file_bytes: u64) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= file_bytes.saturating_sub(8)
}

/// By the sum of its first header, which every tar has, with `ustar` or without.
fn is_tar(bytes: &[u8]) -> bool {
    let Some(header) = bytes.get(..512) else { return false };
    let stated = header.get(148..156).unwrap_or_default();
    let digits: String = stated.iter().map(|byte| char::from(*byte)).filter(char::is_ascii_digit).collect();
    let Ok(stated) = u32::from_str_radix(&digits, 8) else { return false };
    let blank = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
    let sum: u32 = header.iter().enumerate().map(|(at, byte)| u32::from(blank(at, *byte))).sum();
    header.first() != Some(&0) && sum == stated
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(bytes: &[u8]) -> &'static str {
        refuse_container(bytes, bytes.len() as u64).err().map_or("read on", |rejection| rejection.code())
    }

    fn tar(magic: &[u8]) -> Vec<u8> {
        let mut header = vec![0u8; 512];
        header[..19].copy_from_slice(b"adapter_config.json");
        header[257..257 + magic.len()].copy_from_slice(magic);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    #[test]
    fn archives_and_pickles_are_known_by_their_first_bytes() {
        for (magic, kind) in MAGIC {
            assert_eq!(code(&[magic, b"some more bytes than that"].concat()), "unsupported_media_type", "{kind}");
        }
        for pickle in [&b"\x80\x02}q\x00."[..], b"\x80\x04\x95\x1b\0\0\0\0\0\0\0\x8c\x05posix", b"\x80\x05N."] {
            assert_eq!(code(pickle), "unsupported_media_type", "{pickle:?}");
        }
        assert_eq!(code(&tar(b"ustar\0")), "unsupported_media_type");
        assert_eq!(code(&tar(b"")), "unsupported_media_type", "a tar older than `ustar`");
        let mut no_tar = tar(b"");
        no_tar[0] ^= 1;
        assert_eq!(code(&no_tar), "read on");
    }

    #[test]
    fn a_safetensors_file_is_one_whatever_its_length_looks_like() {
        let pickle_like = [&0x0280u64.to_le_bytes()[..], b"{", &[b' '; 0x27f]].concat();
        assert_eq!(code(&pickle_like), "read on");
        assert_eq!(code(&pickle_like[..100]), "unsupported_media_type", "no room for such a header");
        assert_eq!(refuse_container(&pickle_like[..100], 10_000), Ok(()), "only the beginning is looked at");
        for other in [&b""[..], b"{}", b"PK", b"version https://git-lfs.github.com/spec/v1\n", &[0; 600]] {
            assert_eq!(code(other), "read on", "{other:?}");
        }
    }

    #[test]
    fn names_are_known_by_their_endings() {
        for name in ["adapter_model.bin", "a.tar.gz", "A.ZIP", "x.pt", "lora.gguf"] {
            assert!(refuse_container_name(name).is_err(), "{name}");
        }
        for name in ["adapter_model.safetensors", "adapter_config.json", "zip", "README.md", ""] {
            assert!(refuse_container_name(name).is_ok(), "{name}");
        }
    }
}
