//! `tenon recording list` and `show`, and `tenon replay`: a request's plugin is run again on this machine, without host, network or
//! model. Not here: how a recording is played (`plugin`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, Subcommand};
use plugin::{PluginHost, PluginHostConfig, Recording, Replay, Step};
use reqwest::Method;
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Printer, cell, items, printable, put, read, read_text, table, text, time};
use super::remote::{Connection, Remote, broken, segment};
use crate::error::Error;

/// Characters of a value that a line shows.
const SHOWN_CHARS_MAX: usize = 240;
/// Compiled components in memory: one.
const CACHE_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, Subcommand)]
pub(crate) enum RecordingCommand {
    /// List a function's recordings, the newest first
    List {
        /// Name of the function
        name: String,
        /// At most so many
        #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
        limit: u64,
        #[command(flatten)]
        connection: Connection,
    },
    /// Print the recording of a request: what its plugin was called with, asked for, was told and returned
    Show {
        /// The request, as `logs` and `x-request-id` have it
        request: String,
        /// Write it to this file, as JSON lines, in place of printing it
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        connection: Connection,
    },
}

/// Does what the command says.
pub(crate) async fn run(command: RecordingCommand, printer: Printer) -> Result<(), Failure> {
    match command {
        RecordingCommand::List { name, limit, connection } => {
            let path = format!("/v1/functions/{}/recordings?limit={limit}", segment(&name));
            let found = Remote::new(&connection)?.get(&path).await?;
            printer.result(&found, list_text)
        }
        RecordingCommand::Show { request, output, connection } => {
            let lines = fetch(&Remote::new(&connection)?, &request).await?;
            let Some(output) = output else { return show(&lines, printer) };
            std::fs::write(&output, &lines).map_err(Error::io(format!("cannot write {}", output.display())))?;
            let written = json!({"request": request, "file": output.display().to_string(), "bytes": lines.len()});
            printer.result(&written, |_| format!("{}: {} bytes", output.display(), lines.len()))
        }
    }
}

async fn fetch(remote: &Remote, request: &str) -> Result<String, Failure> {
    let call = remote.call(Method::GET, &format!("/v1/recordings/{}", segment(request)));
    remote.send(call).await?.text().await.map_err(broken)
}

fn list_text(found: &Value) -> String {
    let head = ["REQUEST", "VERSION", "TIME", "STEPS", "BYTES", ""].map(str::to_owned).to_vec();
    let row = |one: &Value| {
        let when = time(one.get("time_unix_ms").and_then(Value::as_u64).unwrap_or_default());
        let mark = if one.get("is_whole") == Some(&Value::Bool(false)) { "cut" } else { "" };
        vec![
            text(one, "request").to_owned(),
            cell(one, "version"),
            when,
            cell(one, "steps"),
            cell(one, "bytes"),
            mark.into(),
        ]
    };
    table(&std::iter::once(head).chain(items(found, "data").map(row)).collect::<Vec<_>>())
}

fn show(lines: &str, printer: Printer) -> Result<(), Failure> {
    let recordings = read_all(lines)?;
    if printer.json {
        let all = recordings.iter().map(|one| {
            json!({"head": one.head, "is_whole": one.is_whole, "steps": one.steps.iter().map(step_json).collect::<Vec<_>>()})
        });
        return printer.result(&json!({"object": "list", "data": all.collect::<Vec<_>>()}), |_| String::new());
    }
    for recording in &recordings {
        let head = &recording.head;
        put(&format!(
            "{}\n",
            printable(&format!("{} version {}, plugin {}", head.function, head.version, head.plugin))
        ))?;
        for (index, step) in recording.steps.iter().enumerate() {
            put(&format!("{:>5}  {}\n", index + 1, printable(&step_text(step))))?;
        }
        if !recording.is_whole {
            put("       what came then did not fit\n")?;
        }
    }
    Ok(())
}

fn step_json(step: &Step) -> Value {
    match step {
        Step::Call { call, arguments } => json!({"call": call, "arguments": arguments}),
        Step::Import { import, arguments, result } => {
            json!({"import": import, "arguments": arguments, "result": result})
        }
        Step::Returned { call, result } => json!({"returned": call, "result": result}),
    }
}

fn step_text(step: &Step) -> String {
    match step {
        Step::Call { call, arguments } => format!("{call} {}", shown(arguments)),
        Step::Import { import, arguments, result } => format!("  {import} {} -> {}", shown(arguments), shown(result)),
        Step::Returned { call, result } => format!("{call} returned {}", shown(result)),
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return text;
    }
    let start: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    format!("{start}… ({} bytes)", text.len())
}

fn read_all(lines: &str) -> Result<Vec<Recording>, Failure> {
    let bad = |error: plugin::RecordingError| Error::invalid("invalid_request", "recording", error.to_string());
    Ok(Recording::read_all(lines).map_err(bad)?)
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The request, as `logs` and `x-request-id` have it; its recording comes from the host
    #[arg(required_unless_present = "recording", conflicts_with = "recording")]
    request: Option<String>,
    /// Take the recording from this file, as `recording show --output` wrote it
    #[arg(long, value_name = "FILE")]
    recording: Option<PathBuf>,
    /// Play it with this component in place of the one that was recorded, which comes from the host
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// Which one, if the request was handed over and several functions recorded it; the first if absent
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// What a secret holds, NAME=FILE; recordings have none, and a stand-in is used without this; may be repeated
    #[arg(long = "secret", value_name = "NAME=FILE")]
    secrets: Vec<String>,
    /// Keep what came from the host in this folder, for `--recording` and `--plugin`
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

/// Plays a recording, and says where the plugin did another thing than is recorded: then the exit code is 1.
pub(crate) async fn replay(arguments: ReplayArgs, printer: Printer) -> Result<(), Failure> {
    let ReplayArgs { request, recording: file, plugin: component, function, secrets, save, connection } = arguments;
    let (lines, name) = match (&file, &request) {
        (Some(file), _) => (read_text(file)?, file.display().to_string()),
        (None, Some(request)) => (fetch(&Remote::new(&connection)?, request).await?, request.clone()),
        (None, None) => {
            return Err(Error::invalid("invalid_request", "request", "name a request, or --recording FILE").into());
        }
    };
    let recordings = read_all(&lines)?;
    let wanted = |one: &&Recording| function.as_ref().is_none_or(|function| one.head.function == *function);
    let recording = recordings.iter().find(wanted).ok_or_else(|| {
        let there: Vec<&str> = recordings.iter().map(|one| one.head.function.as_str()).collect();
        Error::invalid("not_found", "function", format!("{name} has recordings of: {}", there.join(", ")))
    })?;
    let bytes: Bytes = match &component {
        Some(file) => read(file)?.into(),
        None => {
            let remote = Remote::new(&connection)?;
            let call = remote.call(Method::GET, &format!("/v1/plugins/{}", segment(&recording.head.plugin)));
            let bytes = remote.send(call).await?.bytes().await.map_err(broken)?;
            if types::Digest::of(&bytes).to_string() != recording.head.plugin {
                return Err(Failure::Unreachable("the host sent another component than was asked for".into()));
            }
            bytes
        }
    };
    if let Some(folder) = &save {
        let written = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(folder.join(format!("{}.jsonl", segment(&recording.head.request))), &lines))
            .and_then(|()| std::fs::write(folder.join(format!("{}.wasm", types::Digest::of(&bytes))), &bytes));
        written.map_err(Error::io(format!("cannot write into {}", folder.display())))?;
    }
    let given = secrets.iter().map(|pair| secret(pair)).collect::<Result<BTreeMap<_, _>, _>>()?;
    let replay = play(recording, bytes, given.clone()).await?;
    say_stand_ins(recording, &given, printer);
    let result = outcome(recording, &replay);
    printer.result(&result, |result| outcome_text(result, recording, &replay))?;
    if replay.difference.is_none() { Ok(()) } else { Err(Failure::Unsound) }
}

fn secret(pair: &str) -> Result<(String, String), Error> {
    let message = || format!("--secret takes NAME=FILE, not `{pair}`");
    let (name, file) = pair.split_once('=').ok_or_else(|| Error::invalid("invalid_request", "secret", message()))?;
    let value = read_text(Path::new(file))?;
    Ok((name.to_owned(), value.trim_end_matches('\n').to_owned()))
}

async fn play(recording: &Recording, component: Bytes, secrets: BTreeMap<String, String>) -> Result<Replay, Failure> {
    let scratch = tempfile::tempdir().map_err(Error::io("cannot make a folder for what is compiled"))?;
    let program = std::env::current_exe().map_err(Error::io("cannot find this program's own file"))?;
    let host = PluginHost::new(PluginHostConfig {
        cache_dir: scratch.path().join("plugin-cache"),
        compiler: crate::host::compiler(program),
        limits: recording.limits(),
        instances_max: 1,
        cache_bytes_max: CACHE_BYTES_MAX,
        images_max: 16,
    })?;
    Ok(host.replay(component, recording, secrets).await?)
}

/// A plugin that computes with a secret does another thing with a stand-in.
fn say_stand_ins(recording: &Recording, given: &BTreeMap<String, String>, printer: Printer) {
    let read = recording.steps.iter().filter_map(|step| match step {
        Step::Import { import, arguments, .. } if import == "secrets.get" => arguments.get("name")?.as_str(),
        _ => None,
    });
    let mut missing: Vec<&str> = read.filter(|name| !given.contains_key(*name)).collect();
    missing.sort_unstable();
    missing.dedup();
    for name in missing.into_iter().filter(|_| !printer.json) {
        let name = printable(name);
        eprintln!("(a stand-in was used for the secret `{name}`; --secret {name}=FILE gives its value)");
    }
}

fn outcome(recording: &Recording, replay: &Replay) -> Value {
    let head = &recording.head;
    let difference = replay.difference.as_ref().map(|difference| {
        json!({
            "step": difference.step, "call": difference.call, "path": difference.path,
            "recorded": difference.expected, "played": difference.got,
            "recorded_part": difference.expected_part, "played_part": difference.got_part,
        })
    });
    let played: Vec<(&str, &Value)> = replay.played.returns().collect();
    let mut recorded = recording.returns();
    let mut returns: Vec<Value> = Vec::new();
    for (call, got) in &played {
        let was = recorded.next().filter(|(name, _)| name == call).map(|(_, result)| result);
        returns.push(json!({"call": call, "is_same": was == Some(*got), "recorded": was, "played": got}));
    }
    returns
        .extend(recorded.map(|(call, was)| json!({"call": call, "is_same": false, "recorded": was, "played": null})));
    json!({
        "request": head.request, "function": head.function, "version": head.version, "recorded_plugin": head.plugin,
        "plugin": replay.plugin.to_string(), "is_whole": recording.is_whole, "steps": recording.steps.len(),
        "played_steps": replay.played.steps.len(), "is_same": difference.is_none(), "difference": difference, "returns": returns,
    })
}

fn outcome_text(result: &Value, recording: &Recording, replay: &Replay) -> String {
    let head = &recording.head;
    let cut = if recording.is_whole { "" } else { ", as far as it was recorded" };
    let (steps, name) =
        (recording.steps.len(), format!("{}: {} version {}", head.request, head.function, head.version));
    let Some(difference) = &replay.difference else {
        return printable(&format!("{name}: {steps} steps, the same{cut}"));
    };
    let step = |value: &Value| if value.is_null() { "nothing".to_owned() } else { described(value) };
    let mut lines = vec![
        format!("{name}: differs at step {} of {steps}, in `{}`", difference.step, difference.call),
        format!("  recorded: {}", step(&difference.expected)),
        format!("  played:   {}", step(&difference.got)),
    ];
    if !difference.path.is_empty() {
        let (was, is) = (shown(&difference.expected_part), shown(&difference.got_part));
        lines.push(format!("  at {}: {was} became {is}", difference.path));
    }
    lines.extend(items(result, "returns").filter(|one| one.get("is_same") == Some(&Value::Bool(false))).map(|one| {
        let of = |name: &str| one.get(name).filter(|value| !value.is_null()).map_or("nothing".to_owned(), shown);
        format!("  {} returned {}, and returns {}", text(one, "call"), of("recorded"), of("played"))
    }));
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

/// A step in a line.
fn described(step: &Value) -> String {
    let part = |name: &str| step.get(name).map(shown).unwrap_or_default();
    match (text(step, "call"), text(step, "import"), text(step, "returned")) {
        ("", "", returned) => format!("{returned} returned {}", part("result")),
        ("", import, _) => format!("{import} {} -> {}", part("arguments"), part("result")),
        (call, ..) => format!("{call} {}", part("arguments")),
    }
}
