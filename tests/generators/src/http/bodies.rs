//! Bodies as OpenAI's clients, the command line and deployers write them, with every field that the host knows and some that
//! it does not; then, perhaps, changed. Not here: which route a body goes to.

use super::Kind;
use crate::{Draw, Json, Sizes, adapter};

const BOUNDARY: &str = "boundary";
/// What `model` may name.
const MODELS: &[&str] = &["base", "tiny", "echo", "one", "a/b", "", "BASE"];
/// Where a plugin may be said to lie.
const PLUGIN_SOURCES: &[&str] =
    &["oci://127.0.0.1:1/a:1", "oci://a.example/b@sha256:00", "oci://", "https://a.example/"];

/// Content type and body, if the route takes one.
pub(super) fn body(kind: Kind, draw: &mut Draw<'_>) -> Option<(Vec<u8>, Vec<u8>)> {
    let json = match kind {
        Kind::None => return None,
        Kind::Adapter if !draw.one_in(4) => return Some(multipart(draw)),
        Kind::PluginSource => Json::object([("source", draw.pick(PLUGIN_SOURCES).into())]),
        Kind::Plugin => return Some((b"application/wasm".to_vec(), plugin(draw))),
        Kind::Chat => chat(draw),
        Kind::Completion => completion(draw),
        Kind::Invoke => invoke(draw),
        Kind::Manifest => manifest(draw),
        Kind::Adapter => adapter_source(draw),
        Kind::Lorax => lorax(draw),
        Kind::LoadLora => load_lora(draw),
        Kind::UnloadLora => Json::object([("lora_name", draw.pick(&["two", "one", "", "a/b", "none"]).into())]),
        Kind::Derivation => derivation(draw),
        Kind::Readers => readers(draw),
        Kind::Tags => {
            let tags = (0..draw.below(4)).map(|_| draw.pick(&["dates", "a.b-c_d", "", "A", "a b"]));
            Json::object([("tags", Json::texts(tags))])
        }
        Kind::Promote => Json::object([("version", number(draw, &["1", "2"]))]),
        Kind::Rollout => rollout(draw),
        Kind::Tenant => Json::object([("name", draw.pick(&["one", "two", "A.b"]).into())]),
        // Large ones only: the requests that follow are to be answered, not refused.
        Kind::Quota => Json::object([
            ("requests_per_minute_max", number(draw, &["4294967295", "null"])),
            ("tokens_per_minute_max", number(draw, &["4294967295", "null"])),
            ("body_bytes_per_minute_max", number(draw, &["1099511627776", "null"])),
            ("concurrent_requests_max", number(draw, &["4294967295", "null"])),
        ]),
        Kind::Key => key(draw),
        Kind::Revocation => Json::object([("reason", Json::Text(draw.text()))]),
        Kind::Secret => Json::object([
            ("origin", draw.pick(&["https://example.org", "http://127.0.0.1", "ftp://x", ""]).into()),
            ("token", Json::Text(draw.text())),
        ]),
    };
    let mut json = json;
    if draw.one_in(4) {
        json.mutate(draw);
    }
    Some((b"application/json".to_vec(), json.into_bytes(draw)))
}

fn rollout(draw: &mut Draw<'_>) -> Json {
    let mut body = Json::object([("version", number(draw, &["1", "2", "0"]))]);
    if !draw.one_in(4) {
        body.set("percent", number(draw, &["10", "100", "0.01", "0", "100.01", "-1", "1e300", "0.001"]));
    }
    if draw.one_in(3) {
        body.set("expect", number(draw, &["1", "2"]));
    }
    body
}

fn readers(draw: &mut Draw<'_>) -> Json {
    let mut body = match draw.below(3) {
        0 => Json::object([("everyone", draw.pick(&[true, false]).into())]),
        _ => {
            let names = (0..draw.below(3)).map(|_| draw.pick(&["one", "dev", "A.b", ""]).into()).collect();
            Json::object([("tenants", Json::List(names))])
        }
    };
    if !draw.one_in(3) {
        body.set("license", draw.pick(&["MIT", "Apache-2.0", "", "a b"]).into());
    }
    body
}

fn chat(draw: &mut Draw<'_>) -> Json {
    let mut body = Json::object([("model", draw.pick(MODELS).into()), ("messages", messages(draw))]);
    generation_fields(&mut body, draw);
    if draw.one_in(6) {
        let tool = |draw: &mut Draw<'_>| {
            let name = draw.pick(&["f", "get_weather", "", "a b"]);
            let function = Json::object([("name", name.into()), ("parameters", Json::any(draw))]);
            Json::object([("type", "function".into()), ("function", function)])
        };
        let tools = (0..draw.below(3)).map(|_| tool(draw)).collect();
        body.set("tools", Json::List(tools));
    }
    if draw.one_in(4) {
        body.set("logprobs", draw.pick(&[true, false]).into());
    }
    if draw.one_in(4) {
        body.set("top_logprobs", number(draw, &["0", "2", "20", "21"]));
    }
    body
}

fn completion(draw: &mut Draw<'_>) -> Json {
    let prompt = match draw.below(6) {
        0 | 1 => Json::Text(draw.text()),
        2 => Json::List((0..draw.below(5)).map(|_| number(draw, &["5", "1", "261", "262"])).collect()),
        3 => Json::texts((0..draw.below(4)).map(|_| draw.text())),
        4 => {
            let list =
                |draw: &mut Draw<'_>| Json::List((0..draw.below(3)).map(|_| Json::from(4 + draw.below(250))).collect());
            Json::List((0..draw.below(3)).map(|_| list(draw)).collect())
        }
        _ => Json::any(draw),
    };
    let mut body = Json::object([("model", draw.pick(MODELS).into()), ("prompt", prompt)]);
    generation_fields(&mut body, draw);
    if draw.one_in(4) {
        body.set("logprobs", number(draw, &["0", "2", "5", "21"]));
    }
    body
}

/// Fields of LoRAX's parameters, each with values that pass and values that do not.
const LORAX_FIELDS: &[(&str, &[&str])] = &[
    (
        "adapter_id",
        &["\"tiny\"", "\"none\"", "\"a/b\"", "\"\"", "null", "\"s3://a/b\"", "\"/a\"", "\"__base_model__\"", "1"],
    ),
    ("adapter_source", &["\"local\"", "\"hub\"", "\"s3\"", "\"file\"", "\"pbase\"", "\"x\"", "null"]),
    (
        "merged_adapters",
        &[
            "{\"ids\":[\"tiny\"],\"weights\":[0.5],\"density\":0}",
            "{\"ids\":[\"tiny\",\"tiny\"],\"weights\":[1,-1],\"merge_strategy\":\"linear\"}",
            "{\"ids\":[\"tiny\"],\"weights\":[1e39]}",
            "{\"ids\":[\"tiny\"],\"weights\":[1],\"merge_strategy\":\"ties\",\"density\":0.5}",
            "{\"ids\":[],\"weights\":[]}",
            "{\"ids\":[\"a\",\"b\"],\"weights\":[1]}",
            "null",
            "{}",
        ],
    ),
    ("api_token", &["\"hf_x\"", "\"secret:one\"", "\"secret:a/b\"", "\"\"", "null", "1", "[\"a\"]", "\"a\\nb\""]),
    ("do_sample", &["true", "false", "null", "1"]),
    ("temperature", &["0", "1", "0.7", "-1", "101", "1e39", "null"]),
    ("top_k", &["1", "5", "0", "-1", "4294967296", "null"]),
    ("top_p", &["0.5", "1", "0", "1.1", "null"]),
    ("typical_p", &["0.5", "1", "null"]),
    ("repetition_penalty", &["1.2", "0", "-1", "null"]),
    ("frequency_penalty", &["0.5", "2.1", "null"]),
    ("presence_penalty", &["-0.5", "-2.1", "null"]),
    ("seed", &["1", "0", "18446744073709551615", "-1", "null"]),
    ("stop", &["[\"a\"]", "[]", "[\"\"]", "null", "\"a\"", "[\" \",\"e\",\"a\"]"]),
    ("max_new_tokens", &["1", "4", "8", "9", "0", "-1", "null", "4294967296"]),
    ("ignore_eos_token", &["true", "false", "null"]),
    ("best_of", &["1", "2", "8", "9", "0", "null"]),
    ("truncate", &["1", "3", "0", "-1", "1000000", "null"]),
    ("watermark", &["true", "false", "null"]),
    ("return_full_text", &["true", "false", "null"]),
    ("details", &["true", "false", "null"]),
    ("decoder_input_details", &["true", "false", "null"]),
    ("return_k_alternatives", &["1", "3", "20", "21", "0", "null"]),
    ("apply_chat_template", &["true", "false", "null"]),
    ("response_format", &["{\"type\":\"json_object\",\"schema\":{}}", "{\"type\":\"text\"}", "null", "{}"]),
];

fn lorax(draw: &mut Draw<'_>) -> Json {
    let mut body = Json::object([("inputs", Json::Text(draw.text()))]);
    if draw.one_in(4) {
        body.set("stream", draw.pick(&[true, false]).into());
    }
    if !draw.one_in(8) {
        let mut parameters = Json::Object(Vec::new());
        fields(&mut parameters, LORAX_FIELDS, draw);
        body.set("parameters", parameters);
    }
    body
}

fn load_lora(draw: &mut Draw<'_>) -> Json {
    let paths = ["file:///tiny", "tiny", "/tiny", "../tiny", "s3://a/b", "", "hf://a/b", "\u{0}", "a\nb"];
    let mut body = Json::object([
        ("lora_name", draw.pick(&["two", "tiny", "base", "", "a/b"]).into()),
        ("lora_path", draw.pick(&paths).into()),
    ]);
    if draw.one_in(3) {
        body.set("load_inplace", draw.pick(&[true, false]).into());
    }
    body
}

fn invoke(draw: &mut Draw<'_>) -> Json {
    let mut body = Json::Object(Vec::new());
    if !draw.one_in(4) {
        let object =
            |draw: &mut Draw<'_>| Json::Object((0..draw.below(4)).map(|_| (draw.text(), Json::any(draw))).collect());
        body.set("input", if draw.one_in(2) { object(draw) } else { Json::Text(draw.text()) });
    } else {
        body.set("messages", messages(draw));
    }
    if draw.one_in(2) {
        body.set("stream", draw.pick(&[true, false]).into());
    }
    if draw.one_in(3) {
        body.set(draw.pick(&["max_tokens", "max_completion_tokens"]), number(draw, &["1", "3", "0"]));
    }
    if draw.one_in(4) {
        body.set("priority", number(draw, &["0", "7", "100", "101", "-1"]));
        body.set("speculation", draw.pick(&[true, false]).into());
    }
    if draw.one_in(6) {
        body.set("sticky", Json::Text(draw.text()));
    }
    body
}

fn messages(draw: &mut Draw<'_>) -> Json {
    Json::List((0..=draw.below(3)).map(|_| message(draw)).collect())
}

fn message(draw: &mut Draw<'_>) -> Json {
    let role = draw.pick(&["user", "system", "assistant", "tool", "developer", "function", "root"]);
    let content = match draw.below(6) {
        0..=2 => Json::Text(draw.text()),
        3 => Json::Null,
        4 => {
            let part = |draw: &mut Draw<'_>| match draw.below(4) {
                3 => Json::object([("type", "image_url".into()), ("image_url", Json::any(draw))]),
                _ => Json::object([("type", "text".into()), ("text", draw.text().as_str().into())]),
            };
            Json::List((0..draw.below(4)).map(|_| part(draw)).collect())
        }
        _ => Json::any(draw),
    };
    let mut message = Json::object([("role", role.into()), ("content", content)]);
    if draw.one_in(6) {
        let arguments = draw.pick(&["{}", "{\"a\":1}", "", "[", "null"]);
        let function = Json::object([("name", draw.text().as_str().into()), ("arguments", arguments.into())]);
        let call = Json::object([("id", "call_1".into()), ("type", "function".into()), ("function", function)]);
        message.set("tool_calls", Json::List(vec![call; draw.below(3)]));
    }
    if draw.one_in(6) {
        message.set(draw.pick(&["tool_call_id", "name", "refusal"]), Json::Text(draw.text()));
    }
    message
}

/// Fields that chat and completions share, each with values that pass and values that do not.
const FIELDS: &[(&str, &[&str])] = &[
    ("max_tokens", &["1", "4", "0", "-1", "1.5", "null", "4294967296"]),
    ("max_completion_tokens", &["2", "0", "null", "\"1\""]),
    ("stream", &["true", "false", "null", "1"]),
    ("stream_options", &["{\"include_usage\":true}", "{}", "null", "{\"include_usage\":null}", "[]", "{\"x\":1}"]),
    ("temperature", &["0", "1", "0.7", "-1", "101", "1e39", "null"]),
    ("top_p", &["1", "0.5", "0", "1.1", "1e-45", "null"]),
    ("top_k", &["0", "5", "-1", "4294967296", "9223372036854775807", "9223372036854775808"]),
    ("min_p", &["0", "0.1", "1", "-0.1", "1.1"]),
    ("repetition_penalty", &["1", "1.2", "0", "-1", "1e30"]),
    ("presence_penalty", &["0", "0.5", "-2", "2.1"]),
    ("frequency_penalty", &["0", "0.5", "2", "-2.1"]),
    ("seed", &["1", "-1", "0", "9223372036854775807", "18446744073709551615", "null"]),
    ("stop", &["\"a\"", "[\"a\",\"b\"]", "\"\"", "[]", "[\"\"]", "null", "[1]", "[\"a\",\"b\",\"c\",\"d\",\"e\"]"]),
    ("stop_token_ids", &["[2]", "[]", "[4294967295]", "[-1]", "null"]),
    ("n", &["1", "2", "0", "8", "9", "-1", "null", "4294967295"]),
    ("best_of", &["1", "2", "null"]),
    ("ignore_eos", &["true", "false", "null"]),
    ("return_token_ids", &["true", "false"]),
    (
        "adapters",
        &[
            "[]",
            "[{\"name\":\"tiny\",\"weight\":0.5}]",
            "[{\"name\":\"tiny\"}]",
            "[{\"name\":\"none\"}]",
            "[{\"name\":\"tiny\",\"weight\":1e39}]",
            "[{\"name\":\"tiny\",\"weight\":-16}]",
            "[{\"name\":\"tiny\",\"x\":1}]",
            "[{\"name\":\"tiny\",\"modules\":[\"q_proj\"],\"layers\":[0,1]}]",
            "[{\"name\":\"tiny\",\"modules\":[\"lm_head\"]},{\"name\":\"tiny\",\"layers\":[1,0]}]",
            "[{\"name\":\"tiny\"},{\"name\":\"one\",\"weight\":2}]",
            "null",
            "[{\"name\":\"tiny\",\"weight\":null}]",
        ],
    ),
    ("response_format", &["{\"type\":\"text\"}", "{\"type\":\"json_object\"}", "{}", "null", "\"text\""]),
    (
        "tools",
        &[
            "[]",
            "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}]",
            "[{}]",
            "null",
            "[1]",
            "[{\"type\":\"function\",\"function\":{\"name\":\"\"}}]",
        ],
    ),
    (
        "tool_choice",
        &["\"auto\"", "\"none\"", "\"required\"", "{\"type\":\"function\",\"function\":{\"name\":\"f\"}}", "1"],
    ),
    ("parallel_tool_calls", &["true", "false", "1"]),
    ("echo", &["true", "false", "null"]),
    ("suffix", &["\"\"", "\"a\"", "null"]),
    (
        "logit_bias",
        &[
            "{}",
            "{\"5\":1}",
            "{\"5\":-100}",
            "{\"999999\":1}",
            "{\"a\":1}",
            "{\"5\":1e39}",
            "{\"5\":\"1\"}",
            "null",
            "[]",
        ],
    ),
    ("user", &["\"a\"", "1", "null"]),
    ("modalities", &["[\"text\"]", "[\"audio\"]"]),
    ("functions", &["[]", "[{}]"]),
    ("function_call", &["\"none\"", "{}"]),
    ("reasoning_effort", &["\"low\"", "null"]),
    ("prediction", &["{}", "null"]),
    ("metadata", &["{}", "{\"a\":\"b\"}"]),
    ("store", &["false", "true"]),
];

fn generation_fields(body: &mut Json, draw: &mut Draw<'_>) {
    fields(body, FIELDS, draw);
}

/// Sets some of these.
fn fields(body: &mut Json, of: &[(&'static str, &'static [&'static str])], draw: &mut Draw<'_>) {
    for _ in 0..draw.below(6) {
        let (field, values) = draw.pick(of);
        let value = match draw.below(12) {
            10 => Json::Number(draw.number()),
            11 => Json::any(draw),
            _ => Json::Raw(draw.pick(values).into()),
        };
        body.set(field, value);
    }
}

fn manifest(draw: &mut Draw<'_>) -> Json {
    // `PLUGIN` is filled in by who sends it.
    let plugin = draw.pick(&["PLUGIN", "PLUGIN", "PLUGIN", "", "0000"]);
    let mut body = Json::object([("plugin", plugin.into())]);
    if draw.one_in(3) {
        body.set("adapters", Json::texts((0..draw.below(3)).map(|_| draw.pick(&["tiny", "one", "", "none"]))));
    }
    if draw.one_in(6) {
        body.set("functions", Json::texts((0..draw.below(3)).map(|_| draw.pick(&["echo", "one", "", "a/b"]))));
    }
    if draw.one_in(6) {
        let calls = Json::texts((0..draw.below(3)).map(|_| draw.pick(&["echo", "one", "", "a/b"])));
        let tags = Json::texts((0..draw.below(3)).map(|_| draw.pick(&["dates", "", "A"])));
        let generations = Json::Raw(draw.pick(&["true", "false", "1"]).into());
        body.set("grants", Json::object([("calls", calls), ("generations", generations), ("adapter_tags", tags)]));
    }
    if draw.one_in(3) {
        let templates = (0..draw.below(3)).map(|_| {
            let source = ["Hello {{ name }}", "{{ a }}{{ b }}", "{%", "{{", "{{ 1 }}", "}}", "{{ name", "{# #}"];
            (draw.text(), Json::from(draw.pick(&source)))
        });
        let templates = templates.collect();
        body.set("templates", Json::Object(templates));
    }
    if draw.one_in(3) {
        let config = (0..draw.below(4)).map(|_| (draw.text(), Json::any(draw))).collect();
        body.set("config", Json::Object(config));
    }
    if draw.one_in(3) {
        let names = [
            "output_tokens_max",
            "composition_entries_max",
            "prompt_bytes_max",
            "deadline_ms_max",
            "x",
            "memory_bytes_max",
            "host_calls_max",
            "kv_blocks_max",
        ];
        let limits =
            (0..draw.below(3)).map(|_| (draw.pick(&names).to_owned(), number(draw, &["1", "4", "0", "1000000"])));
        let limits = limits.collect();
        body.set("limits", Json::Object(limits));
    }
    if draw.one_in(4) {
        let names = ["http", "secrets", "kv", "x"];
        let grants = (0..draw.below(3)).map(|_| (draw.pick(&names).to_owned(), grant(draw))).collect();
        body.set("grants", Json::Object(grants));
    }
    if draw.one_in(4) {
        let names = ["percent", "recordings_max", "x"];
        let record = (0..draw.below(3))
            .map(|_| (draw.pick(&names).to_owned(), number(draw, &["1", "100", "0", "0.5", "-1", "1000000"])));
        let record = record.collect();
        body.set("record", Json::Object(record));
    }
    body
}

fn grant(draw: &mut Draw<'_>) -> Json {
    let names =
        ["https://a.example", "http://127.0.0.1", "*", "https://*.a.example:8443/v1", "https://a/../b", "key", ""];
    let entries = (0..draw.below(3)).map(|_| match draw.below(3) {
        0 => Json::Object(vec![("bucket".to_owned(), draw.pick(&names).into())]),
        1 => Json::any(draw),
        _ => draw.pick(&names).into(),
    });
    Json::List(entries.collect())
}

fn adapter_source(draw: &mut Draw<'_>) -> Json {
    let sources = [
        "file:///tiny",
        "file:///../tiny",
        "file://host/tiny",
        "file:///%2e%2e/x",
        "https://example.invalid/a",
        "s3://a/b",
        "",
        "file:///tiny/adapter_config.json",
        "file:tiny",
        "hf://a/b",
        "file:///\u{0}",
    ];
    let mut body = Json::object([("source", draw.pick(&sources).into())]);
    if draw.one_in(3) {
        body.set("digest", Json::Text(draw.pick(&["00", "zz"]).repeat(draw.pick(&[32, 1, 31, 33]))));
    }
    body
}

fn derivation(draw: &mut Draw<'_>) -> Json {
    let methods = ["concatenate", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune", "linear", ""];
    let parent = |draw: &mut Draw<'_>| {
        let mut parent = Json::object([("adapter", draw.pick(&["tiny", "one", "none", ""]).into())]);
        if draw.one_in(2) {
            parent.set("weight", number(draw, &["1", "-0.5", "0", "16", "1e30"]));
        }
        parent
    };
    let mut body = Json::object([("method", draw.pick(&methods).into())]);
    body.set("parents", Json::List((0..draw.below(4)).map(|_| parent(draw)).collect()));
    for (field, usual) in [
        ("rank", &["1", "2", "0", "300"][..]),
        ("density", &["0.5", "1", "0", "1.5"]),
        ("seed", &["0", "7"]),
        ("error_max", &["1", "0.01"]),
    ] {
        if draw.one_in(2) {
            body.set(field, number(draw, usual));
        }
    }
    if draw.one_in(4) {
        body.set("majority_sign", draw.pick(&["total", "frequency", "none"]).into());
    }
    body
}

fn key(draw: &mut Draw<'_>) -> Json {
    let rights = ["invoke", "deploy", "adapters", "receipts", "admin", "root", "", "invoke,admin"];
    let mut body = Json::object([("tenant", draw.pick(&["one", "dev", "none", ""]).into())]);
    body.set("rights", Json::texts((0..draw.below(4)).map(|_| draw.pick(&rights))));
    if draw.one_in(3) {
        body.set("label", Json::Text(draw.text()));
    }
    body
}

/// A whole adapter as a form, or a form with its parts doubled, left out, renamed or cut.
fn multipart(draw: &mut Draw<'_>) -> (Vec<u8>, Vec<u8>) {
    let files = adapter(draw, &Sizes::TINY);
    let mut parts = vec![
        ("adapter_config.json", "adapter_config.json", files.config),
        ("adapter_model.safetensors", "adapter_model.safetensors", files.weights),
    ];
    match draw.below(16) {
        10 => drop(parts.remove(draw.below(2))),
        11 => parts.push(parts[draw.below(2)].clone()),
        12 => parts.push((
            draw.pick(&["digest", "license", "file", "README.md", ""]),
            draw.pick(&["", "LICENSE", "a/../b"]),
            draw.bytes(80),
        )),
        13 => parts.swap(0, 1),
        14 => parts[0].0 = draw.pick(&["config", "weights", "digest", "\u{e9}", "a\"b", ""]),
        15 => parts[1].1 = draw.pick(&["adapter_model.bin", "../adapter_config.json", "a.zip", "", "blob"]),
        _ => {}
    }
    let mut body = Vec::new();
    for (name, file, content) in parts {
        let head =
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\r\n");
        body.extend([head.as_bytes(), &content, b"\r\n"].concat());
    }
    body.extend(format!("--{BOUNDARY}--\r\n").into_bytes());
    if draw.one_in(16) {
        draw.damage(&mut body);
    }
    (format!("multipart/form-data; boundary={BOUNDARY}").into_bytes(), body)
}

fn plugin(draw: &mut Draw<'_>) -> Vec<u8> {
    let mut bytes = draw.pick(&[&b"\0asm\x0d\0\x01\0"[..], b"\0asm\x01\0\0\0", b"", b"PK\x03\x04"]).to_vec();
    bytes.extend(draw.bytes(64));
    bytes
}

/// One of these, or any number.
fn number(draw: &mut Draw<'_>, usual: &[&str]) -> Json {
    Json::Number(if draw.one_in(6) { draw.number() } else { draw.pick(usual).to_owned() })
}
