//! Reading a GGUF file through candle, after the checks that candle leaves out. Not here: what the values mean
//! (`gguf_config.rs`).
//!
//! candle divides by `general.alignment` and multiplies a tensor's dimensions without looking; both are checked here
//! first. The file is the operator's own, yet a wrong one must be an error and not a crash.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};

use crate::tensor_files::{Place, TensorFiles};
use crate::{ModelError, TensorFormat};

/// Bytes of one metadata string that is only skipped.
const KEY_BYTES_MAX: u64 = 64 << 10;
/// Arrays within arrays.
const DEPTH_MAX: u32 = 4;
/// Entries of the metadata and tensors of the file.
const ENTRIES_MAX: u64 = 1 << 20;

/// The header of a sound file.
pub(crate) struct Gguf {
    content: Content,
}

impl Gguf {
    /// Reads the header from the start of the file.
    pub(crate) fn read<R: Read + Seek>(reader: &mut R) -> Result<Self, ModelError> {
        check_alignment(reader).map_err(|error| ModelError::Malformed(error.to_string()))?;
        reader.seek(SeekFrom::Start(0)).map_err(|error| ModelError::Malformed(error.to_string()))?;
        let content = Content::read(reader).map_err(malformed)?;
        for (name, tensor) in &content.tensor_infos {
            let elements = tensor.shape.dims().iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
            let bytes = elements.and_then(|elements| elements.checked_mul(tensor.ggml_dtype.type_size()));
            if bytes.is_none() {
                return Err(ModelError::Malformed(format!("tensor {name} has an impossible shape")));
            }
        }
        Ok(Self { content })
    }

    /// The file's tensors and where they lie. Those in formats that nothing is stored in are refused.
    pub(crate) fn tensors(&self, file: File) -> Result<TensorFiles, ModelError> {
        let start = self.content.tensor_data_offset;
        let place = |(name, info): (&String, &TensorInfo)| {
            let format = TensorFormat::from_ggml(info.ggml_dtype).ok_or_else(|| {
                let dtype = info.ggml_dtype;
                ModelError::Unsupported(format!("tensor {name} is in format {dtype:?}: convert it to another"))
            })?;
            let shape = info.shape.dims().to_vec();
            Ok((name.clone(), Place { file: 0, start: start.saturating_add(info.offset), format, shape }))
        };
        let places = self.content.tensor_infos.iter().map(place).collect::<Result<_, ModelError>>()?;
        TensorFiles::new(vec![file], places)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn need(&self, key: &str) -> Result<&Value, ModelError> {
        self.get(key).ok_or_else(|| ModelError::Malformed(format!("metadata has no {key}")))
    }

    pub(crate) fn string(&self, key: &str) -> Result<&str, ModelError> {
        self.need(key)?.to_string().map(String::as_str).map_err(malformed)
    }

    /// A number that must fit `usize` and lie in `1 ..= max`.
    pub(crate) fn size(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        let value = self.need(key)?.to_u64().map_err(malformed)?;
        match usize::try_from(value) {
            Ok(size) if (1..=max).contains(&size) => Ok(size),
            _ => Err(ModelError::Malformed(format!("{key} is {value}, expected 1 to {max}"))),
        }
    }

    pub(crate) fn float(&self, key: &str) -> Result<f32, ModelError> {
        self.need(key)?.to_f32().map_err(malformed)
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Vec<&str>, ModelError> {
        let values = self.need(key)?.to_vec().map_err(malformed)?;
        values.iter().map(|value| value.to_string().map(String::as_str).map_err(malformed)).collect()
    }

    pub(crate) fn token(&self, key: &str) -> Option<u32> {
        self.get(key)?.to_u64().ok().and_then(|id| u32::try_from(id).ok())
    }
}

pub(crate) fn malformed(error: candle_core::Error) -> ModelError {
    let text = error.to_string();
    ModelError::Malformed(text.lines().next().unwrap_or_default().to_owned())
}

/// Walks the metadata only to see that no `general.alignment` is zero.
fn check_alignment<R: Read>(reader: &mut R) -> std::io::Result<()> {
    let mut walk = Walk { reader };
    let (magic, version) = (walk.number(4)?, walk.number(4)?);
    if magic != 0x4655_4747 || !(2..=3).contains(&version) {
        return Err(std::io::Error::other("it does not begin with GGUF version 2 or 3"));
    }
    let (tensors, entries) = (walk.number(8)?, walk.number(8)?);
    if tensors > ENTRIES_MAX || entries > ENTRIES_MAX {
        return Err(std::io::Error::other(format!("{tensors} tensors and {entries} metadata entries are too many")));
    }
    for _ in 0..entries {
        let key_bytes = walk.number(8)?;
        if key_bytes > KEY_BYTES_MAX {
            return Err(std::io::Error::other("a metadata key is too long"));
        }
        let mut key = vec![0; key_bytes as usize];
        walk.reader.read_exact(&mut key)?;
        let kind = walk.number(4)?;
        // candle strips trailing zero bytes from keys.
        if key.trim_ascii_end().strip_suffix(b"\0").unwrap_or(&key).starts_with(b"general.alignment") {
            let bytes = fixed_bytes(kind).filter(|bytes| *bytes <= 4);
            let bytes = bytes.ok_or_else(|| std::io::Error::other("general.alignment is not a small number"))?;
            let alignment = walk.number(bytes)?;
            if !alignment.is_power_of_two() || alignment > 1 << 20 {
                return Err(std::io::Error::other(format!("general.alignment is {alignment}")));
            }
        } else {
            walk.skip_value(kind, 0)?;
        }
    }
    Ok(())
}

struct Walk<'a, R> {
    reader: &'a mut R,
}

impl<R: Read> Walk<'_, R> {
    /// A little-endian number of up to 8 bytes.
    fn number(&mut self, bytes: u64) -> std::io::Result<u64> {
        let mut buffer = [0; 8];
        for byte in buffer.iter_mut().take(bytes as usize) {
            self.reader.read_exact(std::slice::from_mut(byte))?;
        }
        Ok(u64::from_le_bytes(buffer))
    }

    fn skip(&mut self, bytes: u64) -> std::io::Result<()> {
        let skipped = std::io::copy(&mut self.reader.by_ref().take(bytes), &mut std::io::sink())?;
        if skipped == bytes { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    }

    fn skip_value(&mut self, kind: u64, depth: u32) -> std::io::Result<()> {
        match (kind, fixed_bytes(kind)) {
            (_, Some(bytes)) => self.skip(bytes),
            (8, _) => {
                let bytes = self.number(8)?;
                self.skip(bytes)
            }
            (9, _) if depth < DEPTH_MAX => {
                let (kind, count) = (self.number(4)?, self.number(8)?);
                match fixed_bytes(kind) {
                    Some(bytes) => self.skip(bytes.saturating_mul(count)),
                    None => (0..count).try_for_each(|_| self.skip_value(kind, depth + 1)),
                }
            }
            _ => Err(std::io::Error::other(format!("metadata of unknown kind {kind} or too deeply nested"))),
        }
    }
}

/// Bytes of a metadata value of this kind, if it has a fixed size.
const fn fixed_bytes(kind: u64) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    /// A file with one metadata entry and, optionally, one tensor of these dimensions.
    fn file(key: &str, kind: u32, value: &[u8], dims: &[u64]) -> Vec<u8> {
        let mut bytes = [&b"GGUF"[..], &3u32.to_le_bytes(), &u64::from(!dims.is_empty()).to_le_bytes()].concat();
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(text(key));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
        if !dims.is_empty() {
            bytes.extend(text("t"));
            bytes.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
            bytes.extend(0u32.to_le_bytes());
            bytes.extend(0u64.to_le_bytes());
        }
        bytes.extend([0; 64]);
        bytes
    }

    fn reason(bytes: Vec<u8>) -> String {
        Gguf::read(&mut Cursor::new(bytes)).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_sound_file_is_read() {
        let gguf = Gguf::read(&mut Cursor::new(file("a.b", 8, &text("c"), &[4, 4]))).unwrap();
        assert_eq!(gguf.string("a.b").unwrap(), "c");
        assert!(gguf.size("a.b", 9).is_err());
        assert!(gguf.string("absent").is_err());
    }

    #[test]
    fn hostile_headers_are_errors() {
        assert!(reason(file("general.alignment", 4, &0u32.to_le_bytes(), &[])).contains("alignment is 0"));
        assert!(reason(file("general.alignment\0", 4, &0u32.to_le_bytes(), &[])).contains("alignment is 0"));
        assert!(reason(file("general.alignment", 4, &u32::MAX.to_le_bytes(), &[])).contains("alignment"));
        assert!(reason(file("a", 8, &text("c"), &[1 << 33, 1 << 33])).contains("impossible shape"));
        assert!(!reason(file("a", 8, &u64::MAX.to_le_bytes(), &[])).is_empty());
        let strings = [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
        assert!(!reason(file("a", 9, &strings, &[])).is_empty());
        let nested = 9u32.to_le_bytes().into_iter().chain(1u64.to_le_bytes()).collect::<Vec<_>>().repeat(40);
        assert!(reason(file("a", 9, &nested, &[])).contains("nested"));
        assert!(!reason(b"GGUF".to_vec()).is_empty());
        assert!(!reason(Vec::new()).is_empty());
        assert!(reason(b"PK\x03\x04 not a model at all".to_vec()).contains("GGUF"));
    }
}
