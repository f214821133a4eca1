//! The safetensors files of a folder: one, or shards with an index. Here their headers are read and held against each other;
//! values are read later, a tensor at a time. Not here: which tensors a base needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;
use types::Digest;

use super::{Folder, malformed};
use crate::tensor_files::{Place, TensorFiles};
use crate::{ModelError, TensorFormat, names};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Bytes of one header; a header of a thousand tensors has about 100 KB.
const HEADER_BYTES_MAX: u64 = 32 << 20;
const SHARDS_MAX: usize = 1024;
/// Left in the files of old versions; made of `rope_theta`, never trained.
const FREQUENCIES: &str = ".rotary_emb.inv_freq";

/// Opens the files and finds every tensor's place. As transformers does it, a single file is preferred to shards.
pub(super) fn open(folder: &mut Folder<'_>) -> Result<TensorFiles, ModelError> {
    let mut found = Found::default();
    if folder.file(SINGLE)?.is_some() {
        found.add(folder, SINGLE)?;
    } else {
        let index = folder.object(INDEX)?.ok_or_else(|| {
            malformed(format!("the folder has neither {SINGLE} nor {INDEX}: convert other weights to safetensors"))
        })?;
        let index = Index::of(index.get("weight_map").unwrap_or(&Value::Null))?;
        for name in &index.shards {
            found.add(folder, name)?;
        }
        found.agrees_with(&index)?;
    }
    let Found { files, places, .. } = found;
    TensorFiles::new(files, places)
}

/// Which shard has which tensor.
struct Index {
    /// By transformers' names.
    tensors: BTreeMap<String, String>,
    shards: BTreeSet<String>,
}

impl Index {
    fn of(weight_map: &Value) -> Result<Self, ModelError> {
        let map = weight_map.as_object().filter(|map| !map.is_empty());
        let map = map.ok_or_else(|| malformed(format!("{INDEX} has no `weight_map` of tensors")))?;
        let mut index = Self { tensors: BTreeMap::new(), shards: BTreeSet::new() };
        for (tensor, shard) in map {
            let shard = shard.as_str().filter(|name| is_plain_name(name)).ok_or_else(|| {
                let shard: String = shard.to_string().chars().take(80).collect();
                malformed(format!("{INDEX} names {shard}, which is not a safetensors file of the folder"))
            })?;
            index.tensors.insert(tensor.clone(), shard.to_owned());
            index.shards.insert(shard.to_owned());
        }
        if index.shards.len() > SHARDS_MAX {
            return Err(malformed(format!("{INDEX} names {} files, at most {SHARDS_MAX}", index.shards.len())));
        }
        Ok(index)
    }
}

/// A file of the folder itself: no separators, no way up, nothing hidden, nothing that would break a line.
fn is_plain_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    name.len() <= 255 && name.ends_with(".safetensors") && !name.starts_with('.') && name.bytes().all(is_plain)
}

/// The files opened so far.
#[derive(Default)]
struct Found {
    files: Vec<File>,
    places: BTreeMap<String, Place>,
    /// The shard of each tensor, by transformers' names.
    shards: BTreeMap<String, String>,
}

impl Found {
    /// Reads a file whole for its digest, and its header for the places.
    fn add(&mut self, folder: &mut Folder<'_>, shard: &str) -> Result<(), ModelError> {
        let file = folder.file(shard)?;
        let mut file = file.ok_or_else(|| malformed(format!("{shard} is missing: fetch the model again")))?;
        let unreadable = |source| folder.unreadable(shard, source);
        let (header_end, header) = header(&mut file, shard)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&mut file).map_err(unreadable)?;
        folder.digests.push((shard.to_owned(), bytes, Digest::from_bytes(*hasher.finalize().as_bytes())));
        // By name, so that of several faults the same one is told each time.
        for (name, info) in header.tensors().into_iter().collect::<BTreeMap<_, _>>() {
            self.place(shard, header_end, &name, info)?;
        }
        self.files.push(file);
        Ok(())
    }

    fn place(&mut self, shard: &str, data_start: u64, name: &str, info: &TensorInfo) -> Result<(), ModelError> {
        let told: String = name.chars().take(200).collect();
        if let Some(other) = self.shards.insert(name.to_owned(), shard.to_owned()) {
            return Err(malformed(format!("tensor {told} is in {other} and in {shard}")));
        }
        if name.ends_with(FREQUENCIES) {
            return Ok(());
        }
        let ours = names::from_transformers(name).ok_or_else(|| {
            ModelError::Unsupported(format!("its tensor `{told}` has no place in a model of its architecture"))
        })?;
        let format = match info.dtype {
            Dtype::F32 => TensorFormat::F32,
            Dtype::F16 => TensorFormat::F16,
            Dtype::BF16 => TensorFormat::Bf16,
            other => {
                let hint = "convert it to bf16, f16 or f32";
                return Err(ModelError::Unsupported(format!("tensor {told} holds {other:?}: {hint}")));
            }
        };
        let start = data_start.saturating_add(info.data_offsets.0 as u64);
        self.places.insert(ours, Place { file: self.files.len(), start, format, shape: info.shape.clone() });
        Ok(())
    }

    /// Every tensor lies where the index says, and there is no other.
    fn agrees_with(&self, index: &Index) -> Result<(), ModelError> {
        for (tensor, shard) in &index.tensors {
            if self.shards.get(tensor) != Some(shard) {
                let tensor: String = tensor.chars().take(200).collect();
                return Err(malformed(format!("{INDEX} says that {tensor} is in {shard}, and it is not")));
            }
        }
        match self.shards.iter().find(|(tensor, _)| !index.tensors.contains_key(*tensor)) {
            None => Ok(()),
            Some((tensor, shard)) => {
                let tensor: String = tensor.chars().take(200).collect();
                Err(malformed(format!("{shard} has {tensor}, which {INDEX} does not name")))
            }
        }
    }
}

/// The end of a file's header and what it says; its tensors fill the rest of the file without gaps or overlaps, which the
/// library checks.
fn header(file: &mut File, name: &str) -> Result<(u64, Metadata), ModelError> {
    let wrong = |reason: String| malformed(format!("{name}: {reason}"));
    let cut = |error: std::io::Error| wrong(format!("its header cannot be read: {error}"));
    let file_bytes = file.metadata().map_err(cut)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(cut)?;
    let length = u64::from_le_bytes(length);
    if length > HEADER_BYTES_MAX || length > file_bytes.saturating_sub(8) {
        return Err(wrong(format!("a header of {length} bytes is too long: it is not a safetensors file, or cut")));
    }
    let mut header = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact(&mut header).map_err(cut)?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|error| {
        let error: String = error.to_string().chars().take(200).collect();
        wrong(format!("its header is not sound: {error}"))
    })?;
    let header_end = 8 + length;
    let expected = header_end.saturating_add(header.data_len() as u64);
    if expected != file_bytes {
        return Err(wrong(format!("it has {file_bytes} bytes and its header speaks of {expected}: fetch it again")));
    }
    Ok((header_end, header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_folder_itself_are_shards() {
        for name in ["model-00001-of-00002.safetensors", "a.safetensors"] {
            assert!(is_plain_name(name), "{name}");
        }
        let long = format!("{}.safetensors", "a".repeat(255));
        let others = ["", "a.bin", ".safetensors", "../a.safetensors", "/a.safetensors", "b/a.safetensors"];
        for name in others.into_iter().chain(["a\\b.safetensors", "a\n.safetensors", "ä.safetensors", &long]) {
            assert!(!is_plain_name(name), "{name}");
        }
    }
}
