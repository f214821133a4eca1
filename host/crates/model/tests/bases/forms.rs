//! The same base as other files: other dtypes, other shards, older words. Not here: files that are wrong.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::{Value, json};

/// Shape and values by name.
pub(crate) type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The weights of a folder of bf16 files, and beside them its other files.
pub(crate) struct Form {
    pub(crate) weights: Weights,
    others: BTreeMap<String, Vec<u8>>,
}

pub(crate) fn read(folder: &Path) -> Form {
    let (mut weights, mut others) = (Weights::new(), BTreeMap::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let (name, bytes) = (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap());
        if name.ends_with(".safetensors") {
            for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                assert_eq!(tensor.dtype(), Dtype::BF16);
                let values = tensor.data().as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32());
                weights.insert(name, (tensor.shape().to_vec(), values.collect()));
            }
        } else if name != INDEX {
            others.insert(name, bytes);
        }
    }
    Form { weights, others }
}

/// Writes the base in a dtype that holds its weights exactly, in one file or in shards.
pub(crate) fn write(folder: &Path, form: &Form, dtype: Dtype, shards: usize) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, bytes) in &form.others {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let encoded: Vec<(&String, &Vec<usize>, Vec<u8>)> = form
        .weights
        .iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(|value| encode(*value, dtype)).collect()))
        .collect();
    let mut map = serde_json::Map::new();
    for shard in 0..shards {
        let file = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("part-{shard}.safetensors"),
        };
        let own = encoded.iter().skip(shard).step_by(shards);
        let views = own.map(|(name, shape, bytes)| {
            map.insert((*name).clone(), Value::from(file.clone()));
            (name.as_str(), TensorView::new(dtype, (*shape).clone(), bytes).unwrap())
        });
        let bytes = serialize(views.collect::<Vec<_>>(), None).unwrap();
        std::fs::write(folder.join(&file), bytes).unwrap();
    }
    if shards > 1 {
        std::fs::write(folder.join(INDEX), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    }
}

fn encode(value: f32, dtype: Dtype) -> Vec<u8> {
    let (bytes, back) = match dtype {
        Dtype::F32 => (value.to_le_bytes().to_vec(), value),
        Dtype::F16 => (f16::from_f32(value).to_le_bytes().to_vec(), f16::from_f32(value).to_f32()),
        Dtype::BF16 => (bf16::from_f32(value).to_le_bytes().to_vec(), bf16::from_f32(value).to_f32()),
        other => panic!("{other:?}"),
    };
    assert_eq!(value, back, "held exactly");
    bytes
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Changes members of a JSON file; null takes one away.
pub(crate) fn change(path: &Path, members: &Value) {
    let mut object: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for (key, value) in members.as_object().unwrap() {
        object[key] = value.clone();
    }
    object.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    std::fs::write(path, object.to_string()).unwrap();
}

/// As transformers 4 wrote it: `rope_theta` beside `rope_scaling`, tokens as objects, the template within the tokenizer's
/// configuration, no list of tokens that end.
pub(crate) fn as_transformers_4(folder: &Path) {
    let parse = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap() };
    let (config, tokens) = (parse("config.json"), parse("tokenizer_config.json"));
    let mut scaling = config["rope_parameters"].clone();
    let theta = scaling.as_object_mut().unwrap().remove("rope_theta");
    let scaling = if scaling["rope_type"] == "default" { Value::Null } else { scaling };
    let changed = json!({"rope_parameters": null, "rope_scaling": scaling, "rope_theta": theta, "layer_types": null});
    change(&folder.join("config.json"), &changed);
    std::fs::remove_file(folder.join("generation_config.json")).unwrap();
    let template = match std::fs::read_to_string(folder.join("chat_template.jinja")) {
        Ok(template) => {
            std::fs::remove_file(folder.join("chat_template.jinja")).unwrap();
            Value::from(template)
        }
        Err(_) => tokens["chat_template"].clone(),
    };
    let mut changed = json!({"chat_template": [{"name": "default", "template": template}]});
    for key in ["bos_token", "eos_token"] {
        if let Some(text) = tokens[key].as_str() {
            changed[key] = json!({"__type": "AddedToken", "content": text, "special": true});
        }
    }
    change(&folder.join("tokenizer_config.json"), &changed);
}
