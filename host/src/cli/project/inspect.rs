//! `tenon inspect`: what a component imports and exports, how large it is, and whether a host would take it. Not here: compiling
//! it, which the host does, and which may still refuse it.

use std::path::PathBuf;

use clap::Args;
use plugin::{PluginLimits, World};
use serde_json::{Value, json};
use types::Digest;
use wit_component::DecodedWasm;

use crate::cli::failure::Failure;
use crate::cli::output::{Printer, cell, items, printable, read, text as field};
use crate::error::Error;

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The component, a .wasm file
    component: PathBuf,
}

/// Says what a component is.
pub(crate) fn inspect(arguments: InspectArgs, printer: Printer) -> Result<(), Failure> {
    let InspectArgs { component } = arguments;
    let mut found = described(&read(&component)?)?;
    if let Some(fields) = found.as_object_mut() {
        fields.insert("component".into(), component.display().to_string().into());
    }
    printer.result(&found, text)
}

/// Its digest, size, imports and exports, and what would keep a host with the default limits from taking it.
pub(in crate::cli) fn described(bytes: &[u8]) -> Result<Value, Error> {
    let invalid = |reason: String| Error::invalid("plugin_invalid", "component", reason);
    if bytes.starts_with(b"\0asm\x01\0\0\0") {
        let reason =
            "it is a core module; make a component of it with `wasm-tools component new`, or with `tenon build`";
        return Err(invalid(reason.into()));
    }
    let decoded = wit_component::decode(bytes).map_err(|error| invalid(format!("it is no component: {error:#}")))?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        return Err(invalid("it is a package of WIT, not a component".into()));
    };
    let world = resolve.worlds.get(world).ok_or_else(|| invalid("it has no world".into()))?;
    let imports: Vec<String> = world.imports.keys().map(|key| resolve.name_world_key(key)).collect();
    let exports: Vec<String> = world.exports.keys().map(|key| resolve.name_world_key(key)).collect();
    let max = PluginLimits::default().upload_bytes_max;
    let mut problems = Vec::new();
    if bytes.len() > max {
        problems.push(format!("it has {} bytes, more than the {max} that a host takes", bytes.len()));
    }
    problems.extend(
        imports
            .iter()
            .filter(|name| !plugin::may_be_imported(name))
            .map(|name| format!("no host has its import `{name}`")),
    );
    let world = World::of_exports(exports.iter().map(String::as_str));
    let world = world.map(World::name).map_err(|problem| problems.push(problem)).ok();
    Ok(json!({
        "digest": Digest::of(bytes).to_string(), "bytes": bytes.len(), "bytes_max": max, "world": world,
        "imports": imports, "exports": exports, "problems": problems,
    }))
}

pub(super) fn text(found: &Value) -> String {
    let mut lines = vec![
        format!(
            "{}: {} bytes of at most {}",
            field(found, "component"),
            cell(found, "bytes"),
            cell(found, "bytes_max")
        ),
        format!("digest {}", field(found, "digest")),
    ];
    lines.extend(found.get("world").and_then(Value::as_str).map(|world| format!("world {world}")));
    for (what, list) in [("imports", "imports"), ("exports", "exports"), ("problem:", "problems")] {
        lines.extend(items(found, list).filter_map(Value::as_str).map(|name| format!("{what} {name}")));
    }
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}
