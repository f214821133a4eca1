//! Reads file, environment and flags into settings that know where they come from. Not here: what values are allowed,
//! beyond their names and types.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::Value;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, RawConfig};

const CONFIG_BYTES_MAX: u64 = 1 << 20;
const PREFIX: &str = "TENON_";
/// Variables that are not keys: the file's name; what the command line's client, the tests and the build read.
const NOT_KEYS: [&str; 9] = [
    "TENON_CONFIG",
    "TENON_URL",
    "TENON_KEY",
    "TENON_KEY_FILE",
    "TENON_CA",
    "TENON_SHARED",
    "TENON_SKIP_LOG",
    "TENON_GUEST_TOOLCHAIN_DIR",
    "TENON_GUEST_TOOLCHAIN_FORCE",
];
const PATH_KEYS: [&str; 5] = ["base", "data", "adapters_root", "tls.certificate_file", "tls.private_key_file"];

/// Who set a value. Later ones win over earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nobody.
    Default,
    /// The configuration file, at a line counted from 1.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl Source {
    /// Position in the order of precedence.
    const fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File(..) => 1,
            Self::Environment(_) => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// The flag of a key.
pub(super) fn flag_name(key: &str) -> String {
    format!("--{}", key.replace(['.', '_'], "-"))
}

/// The environment variable of a key.
pub(super) fn variable_name(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// All that was set, by dotted key, each by the source that won.
#[derive(Debug, Default)]
pub(super) struct Settings {
    values: BTreeMap<String, (Value, Source)>,
}

impl Settings {
    /// Who set this key.
    pub(super) fn source(&self, key: &str) -> Source {
        self.values.get(key).map_or(Source::Default, |(_, source)| source.clone())
    }

    /// All of it, typed.
    pub(super) fn raw(&self) -> Result<RawConfig, ConfigError> {
        let mut table = toml::Table::new();
        for (key, (value, _)) in &self.values {
            insert(&mut table, key, value.clone());
        }
        RawConfig::deserialize(Value::Table(table)).map_err(|error| refuse("", Source::Default, error.message()))
    }

    /// Sets a key after checking its name and type alone, so that a mistake is laid at the right door.
    fn set(&mut self, key: String, value: Value, source: Source) -> Result<(), ConfigError> {
        check_alone(&key, &value).map_err(|reason| refuse(&key, source.clone(), &reason))?;
        // Two keys for one thing: the one from the stronger source wins.
        let other = match key.as_str() {
            "kv_blocks" => Some("kv_bytes_max"),
            "kv_bytes_max" => Some("kv_blocks"),
            _ => None,
        };
        if let Some(other) = other.filter(|other| self.source(other).rank() < source.rank()) {
            self.values.remove(other);
        }
        self.values.insert(key, (value, source));
        Ok(())
    }
}

fn check_alone(key: &str, value: &Value) -> Result<(), String> {
    let mut table = toml::Table::new();
    insert(&mut table, key, value.clone());
    RawConfig::deserialize(Value::Table(table)).map(drop).map_err(|error| error.message().to_owned())
}

fn insert(table: &mut toml::Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((first, rest)) => {
            let entry = table.entry(first.to_owned()).or_insert_with(|| Value::Table(toml::Table::new()));
            if let Value::Table(inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

pub(super) fn refuse(key: &str, origin: Source, reason: &str) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), origin, reason: reason.trim_end().to_owned() }
}

/// Reads the sources, the weakest first.
pub(super) fn read(
    file: Option<&Path>,
    environment: Vec<(OsString, OsString)>,
    flags: &RawConfig,
) -> Result<Settings, ConfigError> {
    let named = environment.iter().find(|(name, _)| name == "TENON_CONFIG").map(|(_, path)| PathBuf::from(path));
    let mut settings = Settings::default();
    if let Some(path) = file.map(Path::to_owned).or(named) {
        read_file(&mut settings, &path)?;
    }
    for (name, value) in environment {
        read_variable(&mut settings, &name, &value)?;
    }
    read_flags(&mut settings, flags)?;
    Ok(settings)
}

fn read_file(settings: &mut Settings, path: &Path) -> Result<(), ConfigError> {
    let unreadable = |source| ConfigError::File { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        let reason = format!("the file is longer than {CONFIG_BYTES_MAX} bytes");
        return Err(ConfigError::Syntax { origin: Source::File(path.to_owned(), 1), reason });
    }
    let line = |at: usize| text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
    let syntax = |error: toml::de::Error| {
        let origin = Source::File(path.to_owned(), error.span().map_or(1, |span| line(span.start)));
        ConfigError::Syntax { origin, reason: error.message().to_owned() }
    };
    let values: toml::Table = toml::from_str(&text).map_err(syntax)?;
    let spans = DeTable::parse(&text).map_err(syntax)?;
    let mut lines = BTreeMap::new();
    collect_lines("", spans.get_ref(), &line, &mut lines);
    let folder = path.parent().unwrap_or(Path::new(""));
    for (key, value) in leaves("", values) {
        let source = Source::File(path.to_owned(), lines.get(&key).copied().unwrap_or(1));
        let value = match value {
            Value::String(text) if PATH_KEYS.contains(&key.as_str()) => {
                Value::String(folder.join(&text).to_str().map_or(text, str::to_owned))
            }
            value => value,
        };
        settings.set(key, value, source)?;
    }
    Ok(())
}

fn collect_lines(
    prefix: &str,
    table: &DeTable<'_>,
    line: &dyn Fn(usize) -> usize,
    lines: &mut BTreeMap<String, usize>,
) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        lines.insert(key.clone(), line(name.span().start));
        if let DeValue::Table(inner) = value.get_ref() {
            collect_lines(&format!("{key}."), inner, line, lines);
        }
    }
}

/// Every key that is not a table, and empty tables.
fn leaves(prefix: &str, table: toml::Table) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            Value::Table(inner) if !inner.is_empty() => all.extend(leaves(&format!("{key}."), inner)),
            value => all.push((key, value)),
        }
    }
    all
}

fn read_variable(settings: &mut Settings, name: &OsString, value: &OsString) -> Result<(), ConfigError> {
    let shown = name.to_string_lossy().into_owned();
    let Some(rest) = shown.strip_prefix(PREFIX).filter(|_| !NOT_KEYS.contains(&shown.as_str())) else {
        return Ok(());
    };
    if is_kubernetes(rest) {
        tracing::debug!(name = shown, "ignored: Kubernetes sets it for a service called tenon");
        return Ok(());
    }
    let key = rest.replace("__", ".").to_ascii_lowercase();
    let source = Source::Environment(shown.clone());
    if variable_name(&key) != shown {
        return Err(refuse(&key, source, "variables are written in capitals, such as TENON_LIMITS__BODY_BYTES_MAX"));
    }
    let Some(text) = value.to_str() else {
        return Err(refuse(&key, source, "its value is not UTF-8"));
    };
    // A variable has no type. It is text where text will do, else the number or truth value it spells.
    let as_text = Value::String(text.to_owned());
    let value = if check_alone(&key, &as_text).is_ok() { as_text } else { scalar(text).unwrap_or(as_text) };
    settings.set(key, value, source)
}

/// Kubernetes tells every pod where a service named `tenon` is: `TENON_SERVICE_HOST`, `TENON_SERVICE_PORT`,
/// `TENON_SERVICE_PORT_HTTP`, `TENON_PORT`, `TENON_PORT_8080_TCP`, `TENON_PORT_8080_TCP_ADDR` (`_PORT`, `_PROTO`).
fn is_kubernetes(rest: &str) -> bool {
    let is_port_name = |name: &str| {
        let is_word = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        !name.is_empty() && name.bytes().all(is_word)
    };
    if matches!(rest, "SERVICE_HOST" | "SERVICE_PORT" | "PORT") {
        return true;
    }
    if let Some(name) = rest.strip_prefix("SERVICE_PORT_") {
        return is_port_name(name);
    }
    let Some((number, protocol)) = rest.strip_prefix("PORT_").and_then(|rest| rest.split_once('_')) else {
        return false;
    };
    let (protocol, what) = protocol.split_once('_').unwrap_or((protocol, "ADDR"));
    number.parse::<u16>().is_ok()
        && matches!(protocol, "TCP" | "UDP" | "SCTP")
        && matches!(what, "ADDR" | "PORT" | "PROTO")
}

fn scalar(text: &str) -> Option<Value> {
    let integer = text.parse().ok().map(Value::Integer);
    let truth = || text.parse().ok().map(Value::Boolean);
    integer.or_else(truth).or_else(|| text.parse().ok().map(Value::Float))
}

fn read_flags(settings: &mut Settings, flags: &RawConfig) -> Result<(), ConfigError> {
    let table = toml::Table::try_from(flags)
        .map_err(|error| refuse("", Source::Flag("of the command line".to_owned()), &error.to_string()))?;
    for (key, value) in leaves("", table) {
        let source = Source::Flag(flag_name(&key));
        settings.set(key, value, source)?;
    }
    Ok(())
}
