//! Where a base's tensors lie in its files, and reading them one at a time. Not here: how a file's header is read.
//!
//! What must hold: every place was checked against its file's length before any memory is taken for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::{BaseTensor, ModelError, TensorFormat};

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of its file.
    pub(crate) file: usize,
    /// Its first byte in the file.
    pub(crate) start: u64,
    pub(crate) format: TensorFormat,
    pub(crate) shape: Vec<usize>,
}

/// The opened files of a base and its tensors in them, by our names.
pub(crate) struct TensorFiles {
    files: Vec<File>,
    places: BTreeMap<String, Place>,
}

impl TensorFiles {
    /// Refuses places that are not made of whole blocks or end behind their file's end.
    pub(crate) fn new(files: Vec<File>, places: BTreeMap<String, Place>) -> Result<Self, ModelError> {
        let lengths = files.iter().map(|file| Ok(file.metadata()?.len())).collect::<io::Result<Vec<u64>>>();
        let lengths = lengths.map_err(|error| malformed(format!("its length is not known: {error}")))?;
        for (name, place) in &places {
            let bytes = place.format.tensor_bytes(&place.shape).and_then(|bytes| u64::try_from(bytes).ok());
            let bytes = bytes.ok_or_else(|| {
                malformed(format!("tensor {name} of shape {:?} is not made of whole blocks", place.shape))
            })?;
            let end = place.start.checked_add(bytes);
            if end.zip(lengths.get(place.file)).is_none_or(|(end, length)| end > *length) {
                return Err(malformed(format!("tensor {name} ends behind the end of its file: fetch it again")));
            }
        }
        Ok(Self { files, places })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// In order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Sees that a tensor is there and has exactly this shape.
    pub(crate) fn find(&self, name: &str, shape: &[usize]) -> Result<&Place, ModelError> {
        let place = self.places.get(name).ok_or_else(|| malformed(format!("tensor {name} is missing")))?;
        if place.shape != shape {
            let found = &place.shape;
            return Err(malformed(format!("tensor {name} has shape {found:?}, expected {shape:?}")));
        }
        Ok(place)
    }

    /// Reads a tensor of exactly this shape.
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<BaseTensor, ModelError> {
        let place = self.find(name, shape)?;
        let wrong = || malformed(format!("tensor {name} has the wrong size"));
        let file = self.files.get(place.file).ok_or_else(wrong)?;
        let mut bytes = vec![0; place.format.tensor_bytes(shape).ok_or_else(wrong)?];
        let cut = |error: io::Error| malformed(format!("tensor {name} cannot be read any more: {error}"));
        file.read_exact_at(&mut bytes, place.start).map_err(cut)?;
        BaseTensor::new(place.format, shape, bytes).ok_or_else(wrong)
    }
}

fn malformed(reason: String) -> ModelError {
    ModelError::Malformed(reason)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn files(places: &[(&str, Place)]) -> Result<TensorFiles, ModelError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1u8; 40]).unwrap();
        let places = places.iter().map(|(name, place)| ((*name).to_owned(), place.clone())).collect();
        TensorFiles::new(vec![file], places)
    }

    #[test]
    fn tensors_are_read_from_their_place_and_never_from_beyond_the_file() {
        let place = Place { file: 0, start: 8, format: TensorFormat::F32, shape: vec![2, 4] };
        let found = files(&[("a", place.clone())]).unwrap();
        assert_eq!(found.read("a", &[2, 4]).unwrap().bytes(), [1; 32]);
        assert!(found.has("a") && !found.has("b"));
        let told = |error: ModelError| error.to_string();
        assert!(told(found.read("a", &[4, 2]).unwrap_err()).contains("[2, 4], expected [4, 2]"));
        assert!(told(found.read("b", &[4, 2]).unwrap_err()).contains("b is missing"));
        for (broken, reason) in [
            (Place { start: 9, ..place.clone() }, "behind the end"),
            (Place { start: u64::MAX, ..place.clone() }, "behind the end"),
            (Place { file: 1, ..place.clone() }, "behind the end"),
            (Place { shape: vec![usize::MAX, 4], ..place.clone() }, "whole blocks"),
            (Place { format: TensorFormat::Q4_0, ..place }, "whole blocks"),
        ] {
            let error = told(files(&[("a", broken)]).err().unwrap());
            assert!(error.contains(reason), "{error}");
        }
    }
}
