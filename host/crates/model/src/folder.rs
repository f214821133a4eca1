//! A base as a folder of the files that transformers saves: `config.json`, `tokenizer.json`, safetensors in one file or in
//! shards with an index, and where there are `generation_config.json`, `tokenizer_config.json` and `chat_template.jinja`.
//! Not here: the sizes in its configuration (`config.rs`), its tensors (`shards.rs`).
//!
//! The folder is the operator's own, yet a wrong one must be an error that says what to do, and no file outside it may be
//! named by one inside. Symbolic links are followed: the cache of Hugging Face is made of them.

mod config;
mod shards;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde_json::{Map, Value};
use types::Digest;

use crate::{Base, ChatTemplate, ModelError, Tokenizer};

/// Bytes of a JSON file or template; the largest tokenizers have about 35 MB.
const TEXT_BYTES_MAX: u64 = 128 << 20;
/// What the digest of a folder is made of begins with this, so that no other file has the same.
const MANIFEST: &str = "tenon base folder 1\n";

/// Opens a folder; the tensors' names and shapes are not compared with the sizes yet.
pub(crate) fn open(path: &Path) -> Result<Base, ModelError> {
    let mut folder = Folder { path, digests: Vec::new() };
    let stated = folder.object("config.json")?.ok_or_else(|| missing("config.json"))?;
    let generation = folder.object("generation_config.json")?.unwrap_or_default();
    let about_tokens = folder.object("tokenizer_config.json")?.unwrap_or_default();
    let tokenizer = folder.bytes("tokenizer.json")?.ok_or_else(|| missing("tokenizer.json"))?;
    let template = folder.text("chat_template.jinja")?;
    let tensors = shards::open(&mut folder)?;

    let (architecture, config) = config::of(&stated)?;
    let tokenizer = Tokenizer::from_json(&tokenizer)?;
    if tokenizer.tokens() > config.vocabulary {
        let (tokens, rows) = (tokenizer.tokens(), config.vocabulary);
        return Err(malformed(format!("the tokenizer has {tokens} tokens and the embedding {rows} rows")));
    }
    let eos_token = special_token(&about_tokens, "eos_token");
    let mut eos = ids(&generation, "eos_token_id")?;
    if eos.is_empty() {
        eos = ids(&stated, "eos_token_id")?;
    }
    eos.extend(eos_token.as_deref().and_then(|token| tokenizer.token_id(token)));
    let template = template.or_else(|| stated_template(&about_tokens));
    let bos_token = special_token(&about_tokens, "bos_token").unwrap_or_default();
    let chat_template = ChatTemplate::from_source(template.as_deref(), bos_token, eos_token.unwrap_or_default())?;
    Ok(Base {
        digest: folder.digest(),
        name: name(path),
        stated_names: Vec::new(),
        architecture,
        config,
        tokenizer,
        chat_template,
        eos,
        tensors,
    })
}

/// A folder that is being read, and the digests of what was read.
struct Folder<'a> {
    path: &'a Path,
    /// Name, bytes and BLAKE3 of each file.
    digests: Vec<(String, u64, Digest)>,
}

impl Folder<'_> {
    /// Opens a file of this plain name; `None` if there is none.
    fn file(&self, name: &str) -> Result<Option<File>, ModelError> {
        match File::open(self.path.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.unreadable(name, source)),
        }
    }

    fn unreadable(&self, name: &str, source: io::Error) -> ModelError {
        ModelError::Read { path: self.path.join(name), source }
    }

    fn bytes(&mut self, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|source| self.unreadable(name, source))?;
        if bytes.len() as u64 > TEXT_BYTES_MAX {
            return Err(malformed(format!("{name} has more than {TEXT_BYTES_MAX} bytes")));
        }
        self.digests.push((name.to_owned(), bytes.len() as u64, Digest::of(&bytes)));
        Ok(Some(bytes))
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, ModelError> {
        let text = self.bytes(name)?.map(String::from_utf8).transpose();
        text.map_err(|_| malformed(format!("{name} is not UTF-8")))
    }

    fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ModelError> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => Ok(Some(object)),
            Ok(_) => Err(malformed(format!("{name} is not a JSON object"))),
            Err(error) => Err(malformed(format!("{name} is not JSON: {error}"))),
        }
    }

    /// BLAKE3 of the files' names, lengths and digests in order of their names: the same wherever the folder lies and
    /// whatever else is in it.
    fn digest(mut self) -> Digest {
        self.digests.sort();
        let lines = self.digests.iter().map(|(name, bytes, digest)| format!("{digest} {bytes} {name}\n"));
        Digest::of([MANIFEST.to_owned()].into_iter().chain(lines).collect::<String>().as_bytes())
    }
}

/// The folder's own name; in the cache of Hugging Face (`models--ORGANISATION--NAME/snapshots/COMMIT`), the repository's.
fn name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let part = |path: Option<&Path>| path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let snapshots = path.parent();
    let repository = part(snapshots.and_then(Path::parent));
    match repository.strip_prefix("models--").and_then(|name| name.rsplit("--").next()) {
        Some(name) if part(snapshots) == "snapshots" => name.to_owned(),
        _ => part(Some(&path)),
    }
}

/// One id or a list of them.
fn ids(object: &Map<String, Value>, key: &str) -> Result<Vec<u32>, ModelError> {
    let wrong = || malformed(format!("{key} must be a token or a list of tokens"));
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    match object.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(value) => Ok(vec![id(value)?]),
    }
}

/// A token's text, plain or as transformers writes an `AddedToken`.
fn special_token(about: &Map<String, Value>, key: &str) -> Option<String> {
    let token = about.get(key)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// The template of older folders: text, or a list of named ones of which `default` is taken.
fn stated_template(about: &Map<String, Value>) -> Option<String> {
    let template = about.get("chat_template")?;
    let named = || {
        let mut named = template.as_array()?.iter();
        named.find(|entry| entry.get("name").is_some_and(|name| name == "default"))?.get("template")?.as_str()
    };
    template.as_str().or_else(named).map(str::to_owned)
}

fn missing(name: &str) -> ModelError {
    malformed(format!("the folder has no {name}: fetch the model again, in the form that transformers saves"))
}

fn malformed(reason: String) -> ModelError {
    ModelError::Malformed(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn tokens_and_templates_are_found_in_each_of_their_forms() {
        assert_eq!(ids(&object(r#"{"a": 3}"#), "a").unwrap(), [3]);
        assert_eq!(ids(&object(r#"{"a": [3, 4]}"#), "a").unwrap(), [3, 4]);
        assert_eq!(ids(&object(r#"{"a": null}"#), "a").unwrap(), [0u32; 0]);
        for wrong in [r#"{"a": "3"}"#, r#"{"a": [-1]}"#, r#"{"a": 4294967296}"#] {
            assert!(ids(&object(wrong), "a").is_err(), "{wrong}");
        }
        let about = object(r#"{"a": "<s>", "b": {"content": "</s>"}, "c": null}"#);
        assert_eq!(
            ["a", "b", "c", "d"].map(|key| special_token(&about, key).unwrap_or_default()),
            ["<s>", "</s>", "", ""]
        );
        assert_eq!(stated_template(&object(r#"{"chat_template": "x"}"#)).unwrap(), "x");
        let named = r#"{"chat_template": [{"name": "rag", "template": "y"}, {"name": "default", "template": "x"}]}"#;
        assert_eq!(stated_template(&object(named)).unwrap(), "x");
        assert_eq!(stated_template(&object(r#"{"chat_template": [{"name": "rag", "template": "y"}]}"#)), None);
    }

    #[test]
    fn a_folder_is_called_by_its_repository() {
        let root = tempfile::tempdir().unwrap();
        let snapshot = root.path().join("models--them--tiny-llama/snapshots/0123abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        assert_eq!(name(&snapshot), "tiny-llama");
        let plain = root.path().join("plain");
        std::fs::create_dir_all(plain.join("below")).unwrap();
        assert_eq!(name(&plain.join("below").join("..")), "plain");
    }
}
