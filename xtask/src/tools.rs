//! Programs that a task needs and a machine may lack: pinned, built from their sources at the first use. Not here: what
//! they are run with.

use std::fs;
use std::path::PathBuf;

use crate::shell::{self, Outcome};

/// The program `name` of the crate `name` in this version (about a minute the first time, unoptimised).
///
/// # Errors
/// If it cannot be built.
pub(crate) fn installed(name: &str, version: &str) -> Outcome<PathBuf> {
    let folder = shell::target().join("tools").join(format!("{name}-{version}"));
    let tool = folder.join("bin").join(name);
    if !tool.is_file() {
        let build = folder.join("build");
        let mut install = shell::cargo(&["install", "--quiet", "--locked", "--debug", name]);
        install.args(["--version", version, "--root"]).arg(&folder).arg("--target-dir").arg(&build);
        shell::run(&mut install)?;
        fs::remove_dir_all(build)?;
    }
    Ok(tool)
}
