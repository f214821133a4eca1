//! Components out of core modules that are written as text: a file of `plugins/adversarial-wat` says what its guest does
//! otherwise than a plain one, and what it does not say is added here. Not here: what comes of them.
//!
//! In such a file `(;request;)` stands for the parameters and the result of a function that takes a request. `$new` makes a
//! handle of a post-processor, `$answer` a decision to answer with a text. Bytes 16 to 1023 are for answers to the host, the
//! file's own data may lie from 1024 on, and what the host passes lies from 65536 on.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, WorldId};

/// How a guest has its texts. Toolchains make UTF-8 of nearly all, JavaScript's and Java's may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// UTF-8.
    Utf8,
    /// UTF-16.
    Utf16,
    /// Latin-1, or UTF-16 where that does not do, each text marked.
    Compact,
}

/// The world that has all imports.
const WORLD: &str = "policy-wasi";
const PREFIX: &str = "(import \"[export]tenon:plugin/hooks@0.1.0\" \"[resource-new]post-processor\" \
    (func $new (param i32) (result i32)))\n";
const REQUEST: &str = "(param $id i32) (param $id_len i32) (param $function i32) (param $function_len i32) \
    (param $version i32) (param $text i32) (param $text_len i32) (param $input i32) (param $input_len i32) \
    (param $messages i32) (param $messages_len i32) (param $parameters i32) (param $parameters_len i32) \
    (param $stream i32) (param $has_max i32) (param $max i32) (result i32)";

/// What a file may say itself: how that is seen, and what is added if it does not.
const PARTS: [(&str, &str); 7] = [
    ("(memory ", "(memory (export \"memory\") 4)"),
    ("$post ", "(global $post i32 (i32.const 0))"),
    (
        "\"cabi_realloc\"",
        "(global $free (mut i32) (i32.const 65536))
        (func (export \"cabi_realloc\") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
          (local $place i32)
          (local.set $place (i32.and
            (i32.add (global.get $free) (i32.sub (local.get $align) (i32.const 1)))
            (i32.sub (i32.const 0) (local.get $align))))
          (global.set $free (i32.add (local.get $place) (local.get $size)))
          (if (i32.gt_u (global.get $free) (i32.mul (memory.size) (i32.const 65536)))
            (then (drop (memory.grow (i32.add (i32.shr_u (local.get $size) (i32.const 16)) (i32.const 1))))))
          (if (i32.lt_u (local.get $size) (local.get $old_size))
            (then (local.set $old_size (local.get $size))))
          (memory.copy (local.get $place) (local.get $old) (local.get $old_size))
          (local.get $place))",
    ),
    (
        "hooks@0.1.0#route\") (;",
        "(func (export \"tenon:plugin/hooks@0.1.0#route\") (;request;)
          (i32.store (i32.const 20) (i32.const 0))
          (i32.const 16))",
    ),
    (
        "hooks@0.1.0#compose\"",
        "(func (export \"tenon:plugin/hooks@0.1.0#compose\") (;request;)
          (i32.store (i32.const 264) (local.get $text))
          (i32.store (i32.const 268) (local.get $text_len))
          (f32.store (i32.const 296) (f32.const 1))
          (f32.store (i32.const 304) (f32.const 1))
          (i32.store (i32.const 392) (local.get $has_max))
          (i32.store (i32.const 396) (local.get $max))
          (i32.store8 (i32.const 408) (global.get $post))
          (i32.const 256))",
    ),
    (
        "hooks@0.1.0#[constructor]",
        "(func (export \"tenon:plugin/hooks@0.1.0#[constructor]post-processor\") (;request;)
          (call $new (i32.const 7)))",
    ),
    (
        "hooks@0.1.0#[method]post-processor.chunk\"",
        "(func (export \"tenon:plugin/hooks@0.1.0#[method]post-processor.chunk\") (param i32 i32 i32 i32 i32) (result i32)
          (i32.const 512))",
    ),
];
const FINISH: (&str, &str) = (
    "hooks@0.1.0#[method]post-processor.finish\"",
    "(func (export \"tenon:plugin/hooks@0.1.0#[method]post-processor.finish\") (param i32 i32 i32 i32) (result i32)
      (i32.const 544))",
);
const ANSWER: &str = "(func $answer (param $place i32) (param $length i32) (result i32)
    (i32.store (i32.const 20) (i32.const 2))
    (i32.store (i32.const 24) (local.get $place))
    (i32.store (i32.const 28) (local.get $length))
    (i32.const 16))\n";

/// The component of `plugins/adversarial-wat/NAME.wat`.
///
/// # Errors
/// If the file is not there, or is no module that fits the contract.
pub fn component(name: &str, encoding: Encoding) -> Result<Vec<u8>, String> {
    let path = repository().join("plugins/adversarial-wat").join(format!("{name}.wat"));
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    built(&text, encoding).map_err(|error| format!("{name}: {error}"))
}

/// The root of the checkout.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn built(text: &str, encoding: Encoding) -> Result<Vec<u8>, String> {
    let mut module = wat::parse_str(whole(text)).map_err(|error| error.to_string())?;
    let (resolve, world) = contract().as_ref().map_err(Clone::clone)?;
    let encoding = match encoding {
        Encoding::Utf8 => StringEncoding::UTF8,
        Encoding::Utf16 => StringEncoding::UTF16,
        Encoding::Compact => StringEncoding::CompactUTF16,
    };
    let component = || {
        embed_component_metadata(&mut module, resolve, *world, encoding)?;
        ComponentEncoder::default().validate(true).module(&module)?.encode()
    };
    let mut component = component;
    component().map_err(|error| format!("{error:#}"))
}

/// The module with what its file left out.
fn whole(text: &str) -> String {
    let mut module = format!("(module\n{PREFIX}{text}\n{ANSWER}");
    for (mark, part) in PARTS.iter().chain([&FINISH]) {
        if !text.contains(mark) {
            module.push_str(part);
            module.push('\n');
        }
    }
    module.push(')');
    module.replace("(;request;)", REQUEST)
}

/// The contract, read once: no guest changes it.
fn contract() -> &'static Result<(Resolve, WorldId), String> {
    static CONTRACT: OnceLock<Result<(Resolve, WorldId), String>> = OnceLock::new();
    CONTRACT.get_or_init(|| {
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(repository().join("wit")).map_err(|error| format!("{error:#}"))?;
        let world = resolve.select_world(&[package], Some(WORLD)).map_err(|error| format!("{error:#}"))?;
        Ok((resolve, world))
    })
}
