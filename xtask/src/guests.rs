//! Builds the guests of `plugins/` into components: `target/guests/NAME.wasm`. Not here: running them, and which other
//! tasks need them.
//!
//! Three ways to a toolchain: rustc has the WebAssembly target; else the Debian route of `scripts/guest-toolchain.sh`;
//! else an error that says what to run.

mod stage;

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use wit_component::{ComponentEncoder, DecodedWasm};

const TARGET: &str = "wasm32-unknown-unknown";
const KINDS: [&str; 3] = ["examples", "adversarial", "testing"];
/// The one guest that is there to import what a guest should not.
const IMPORTS_WASI: &str = "wasi-peek";
/// What guests may import: our own interfaces, the standard ones that the host grants, and what those are made of.
const IMPORTS: [&str; 8] = [
    "tenon:plugin/",
    "wasi:config/store@",
    "wasi:http/",
    "wasi:io/",
    "wasi:keyvalue/",
    "wasi:logging/logging@",
    "wasi:clocks/monotonic-clock@",
    "wasi:clocks/wall-clock@",
];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Builds every guest. With `update_fixtures`, also copies them to `tests/fixtures/guests` and writes their digests.
///
/// # Errors
/// If there is no toolchain for WebAssembly, a guest does not compile, or a component imports what it must not.
pub(crate) fn build(root: &Path, update_fixtures: bool) -> Result<Vec<PathBuf>> {
    let names = guest_names(root)?;
    eprintln!("guests: building {} for {TARGET}", names.len());
    let target_dir = root.join("target/guests-build");
    compile(root, &target_dir)?;
    let out = root.join("target/guests");
    fs::create_dir_all(&out)?;
    let mut components = Vec::new();
    for name in &names {
        let core = target_dir.join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_")));
        let component = encode(&core).map_err(|error| format!("{name}: {error}"))?;
        let path = out.join(format!("{name}.wasm"));
        fs::write(&path, &component)?;
        eprintln!("guests: {name}.wasm, {:.1} KB", component.len() as f64 / 1024.0);
        components.push(path);
    }
    if update_fixtures {
        write_fixtures(&components, &root.join("tests/fixtures/guests"))?;
    }
    Ok(components)
}

/// As in the template of a project in Rust, whose `.cargo/config.toml` says why.
const STACK_BYTES: u32 = 64 << 10;

fn guest_names(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for kind in KINDS {
        for entry in fs::read_dir(root.join("plugins").join(kind))? {
            let entry = entry?;
            if entry.path().join("Cargo.toml").exists() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
    }
    names.sort();
    Ok(names)
}

fn compile(root: &Path, target_dir: &Path) -> Result<()> {
    let stage = root.join("target/guests-stage");
    fs::create_dir_all(target_dir)?;
    stage::make(root, &stage)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--locked", "--target", TARGET, "--workspace", "--exclude", "tenon-sdk"]);
    cargo.arg("--manifest-path").arg(stage.join("Cargo.toml")).arg("--target-dir").arg(target_dir);
    cargo.current_dir(&stage);
    // What the host's own build was told does not hold for another target.
    for name in ["RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        cargo.env_remove(name);
    }
    let flags =
        remapped_paths(&stage, target_dir).into_iter().chain([format!("-Clink-arg=-zstack-size={STACK_BYTES}")]);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.collect::<Vec<_>>().join("\u{1f}"));
    for (name, value) in toolchain(root)? {
        cargo.env(name, value);
    }
    let status = cargo.status().map_err(|error| format!("cargo could not be started: {error}"))?;
    if status.success() { Ok(()) } else { Err("the guests did not compile (see above)".into()) }
}

/// So that a component says nothing about the machine that built it. What build scripts generate lies in the target folder.
fn remapped_paths(stage: &Path, target_dir: &Path) -> Vec<String> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let folders =
        [(cargo_home, "/cargo"), (Some(stage.to_owned()), "/tenon"), (Some(target_dir.to_owned()), "/target")];
    let remapped = |(from, to): (Option<PathBuf>, &str)| {
        let from = from?;
        let from = from.canonicalize().unwrap_or(from);
        Some(format!("--remap-path-prefix={}={to}", from.display()))
    };
    folders.into_iter().filter_map(remapped).collect()
}

/// What to export for the guest build; empty if rustc has the target.
fn toolchain(root: &Path) -> Result<Vec<(String, String)>> {
    if rustc_has_target() {
        return Ok(Vec::new());
    }
    eprintln!("guests: rustc has no {TARGET}; making a toolchain (about a minute, once per machine)");
    let script = root.join("scripts/guest-toolchain.sh");
    let output = Command::new("bash").arg(script).arg(TARGET).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("there is no toolchain for {TARGET}; run `rustup target add {TARGET}`").into());
    }
    Ok(exports(&String::from_utf8_lossy(&output.stdout)))
}

fn rustc_has_target() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else { return false };
    let libdir = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let Ok(entries) = fs::read_dir(libdir) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libstd-") && name.ends_with(".rlib")
    })
}

fn exports(text: &str) -> Vec<(String, String)> {
    let pairs = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn encode(core: &Path) -> Result<Vec<u8>> {
    let module = fs::read(core).map_err(|error| format!("{}: {error}", core.display()))?;
    let component = ComponentEncoder::default().validate(true).module(&module)?.encode()?;
    let may_import_wasi = core.file_stem().is_some_and(|stem| stem.to_string_lossy().replace('_', "-") == IMPORTS_WASI);
    for import in imports(&component)? {
        let is_listed = IMPORTS.iter().any(|prefix| import.starts_with(prefix));
        if !(is_listed || may_import_wasi && import.starts_with("wasi:")) {
            return Err(format!("it imports `{import}`, which is not there for a plugin").into());
        }
    }
    Ok(component)
}

fn imports(component: &[u8]) -> Result<Vec<String>> {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(component)? else {
        return Err("it is a WIT package, not a component".into());
    };
    let world = resolve.worlds.get(world).ok_or("it has no world")?;
    Ok(world.imports.keys().map(|key| resolve.name_world_key(key)).collect())
}

/// Copies what has changed, and writes `DIGESTS`: a line `BLAKE3  NAME.wasm` for each.
fn write_fixtures(components: &[PathBuf], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut digests = String::new();
    for component in components {
        let name = component.file_name().ok_or("a component without a name")?;
        let bytes = fs::read(component)?;
        writeln!(digests, "{}  {}", blake3::hash(&bytes), name.to_string_lossy())?;
        fs::write(folder.join(name), bytes)?;
    }
    fs::write(folder.join("DIGESTS"), digests)?;
    eprintln!("guests: wrote {} fixtures to {}", components.len(), folder.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read_from_the_script() {
        let text = "noise\nexport RUSTC=/a/rustc\nexport CARGO_X_LINKER=/a/wasm-ld\n";
        let expected = [("RUSTC", "/a/rustc"), ("CARGO_X_LINKER", "/a/wasm-ld")];
        assert_eq!(exports(text), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_is_not_a_component_is_refused() {
        assert!(imports(b"not WebAssembly").is_err());
        assert!(imports(b"").is_err());
    }
}
