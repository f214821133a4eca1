//! Safetensors files as they should be, and every way in which their header can lie. Not here: which tensors an adapter has.

use crate::{Draw, Json};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) data: Vec<u8>,
}

/// What the header says of a tensor.
struct Entry {
    name: String,
    dtype: Json,
    shape: Json,
    begin: String,
    end: String,
}

impl Entry {
    fn json(&self) -> Json {
        let offsets = [&self.begin, &self.end].map(|offset| Json::Number(offset.clone())).to_vec();
        Json::object([
            ("dtype", self.dtype.clone()),
            ("shape", self.shape.clone()),
            ("data_offsets", Json::List(offsets)),
        ])
    }
}

/// A sound file.
pub(crate) fn file(tensors: &[Tensor], metadata: Option<Json>) -> Vec<u8> {
    let entries = entries(tensors);
    container(&header(&entries, metadata), &data(tensors), None)
}

/// A file with something wrong in its container.
pub(crate) fn broken_file(tensors: &[Tensor], metadata: Option<Json>, draw: &mut Draw<'_>) -> Vec<u8> {
    let mut entries = entries(tensors);
    let mut data = data(tensors);
    let at = draw.below(entries.len());
    let other = draw.below(entries.len());
    let (Some(from), Some(last)) =
        (entries.get(other).map(|from| (from.begin.clone(), from.end.clone())), entries.last())
    else {
        return draw.bytes(64);
    };
    let (from_begin, from_end) = from;
    let last_end = last.end.clone();
    let mut length = None;
    let entry = &mut entries[at];
    match draw.below(16) {
        // Two tensors on the same bytes.
        0 => (entry.begin, entry.end) = (from_begin, from_end),
        1 => entry.begin = draw.number(),
        2 => entry.end = draw.number(),
        3 => std::mem::swap(&mut entry.begin, &mut entry.end),
        4 => (entry.begin, entry.end) = (last_end.clone(), last_end),
        5 => {
            entry.dtype = Json::from(draw.pick(&["F64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "I64", "C64", "f32", ""]))
        }
        6 => entry.dtype = Json::any(draw),
        7 => entry.shape = Json::any(draw),
        8 => {
            let shapes =
                ["[]", "[0]", "[1,0]", "[4294967296,4294967296]", "[18446744073709551615,2]", "[-1,-1]", "[1.5,2]"];
            entry.shape = Json::Raw(draw.pick(&shapes).into());
        }
        9 => entry.name = draw.text(),
        10 => length = Some(draw.bits()),
        11 => length = Some(draw.pick(&[0, 1, 7, 8, u64::MAX, 1 << 63, 100_000_000, 1 << 32])),
        12 => data.extend(draw.bytes(16)),
        13 => data.truncate(draw.below(data.len() + 1)),
        _ => {}
    }
    let mut text = header(&entries, metadata);
    match draw.below(10) {
        0 => {
            let mut bytes = text.into_bytes();
            draw.damage(&mut bytes);
            return container_of_bytes(&bytes, &data, length);
        }
        1 => text.insert_str(0, draw.pick(&[" ", "\u{feff}", "[", "\n", "{"])),
        2 => text.push_str(draw.pick(&[" ", "\0", "}", "{}", "\n\n\n"])),
        3 => text = Json::any(draw).to_string(),
        _ => {}
    }
    let mut bytes = container(&text, &data, length);
    if draw.one_in(4) {
        draw.damage(&mut bytes);
    }
    bytes
}

fn entries(tensors: &[Tensor]) -> Vec<Entry> {
    let mut at = 0;
    let entry = |tensor: &Tensor| {
        let begin = at;
        at += tensor.data.len();
        Entry {
            name: tensor.name.clone(),
            dtype: Json::from(tensor.dtype.as_str()),
            shape: Json::List(tensor.shape.iter().map(|size| Json::Number(size.to_string())).collect()),
            begin: begin.to_string(),
            end: at.to_string(),
        }
    };
    tensors.iter().map(entry).collect()
}

fn header(entries: &[Entry], metadata: Option<Json>) -> String {
    let metadata = metadata.map(|metadata| ("__metadata__".to_owned(), metadata));
    let tensors = entries.iter().map(|entry| (entry.name.clone(), entry.json()));
    Json::Object(metadata.into_iter().chain(tensors).collect()).to_string()
}

fn data(tensors: &[Tensor]) -> Vec<u8> {
    tensors.iter().flat_map(|tensor| tensor.data.iter().copied()).collect()
}

fn container(header: &str, data: &[u8], length: Option<u64>) -> Vec<u8> {
    container_of_bytes(header.as_bytes(), data, length)
}

fn container_of_bytes(header: &[u8], data: &[u8], length: Option<u64>) -> Vec<u8> {
    let length = length.unwrap_or(header.len() as u64).to_le_bytes();
    [&length, header, data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_file_is_length_header_data() {
        let tensor = Tensor { name: "a".into(), dtype: "F32".into(), shape: vec![2], data: vec![7; 8] };
        let file = file(&[tensor], None);
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert_eq!(file, [&(header.len() as u64).to_le_bytes(), header.as_slice(), &[7; 8]].concat());
    }
}
