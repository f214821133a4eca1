//! Text to read: the repository's own documents and sources, so that everyone reads the same at the same commit. Not here: the
//! tokenizer.

use std::path::Path;
use std::process::{Command, Stdio};

use model::Base;

use crate::Outcome;
use crate::machine::repository;

/// Bytes from one file: every file says something, and none says all.
const FILE_BYTES_MAX: usize = 6000;

/// Windows of tokens, at least as many tokens as are wanted; half of documents, half of sources as far as they go.
///
/// # Errors
/// If git is missing or the repository has too little text.
pub(super) fn windows(base: &Base, tokens: usize, window: usize) -> Outcome<Vec<Vec<u32>>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "*.md", "*.rs"]).current_dir(repository()).stdin(Stdio::null());
    let output = git.output().map_err(|error| format!("cannot start git: {error}"))?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let (mut documents, mut sources): (Vec<&str>, Vec<&str>) =
        names.split('\0').filter(|name| !name.is_empty()).partition(|name| name.ends_with(".md"));
    documents.sort_unstable();
    sources.sort_unstable();
    let wanted = tokens.div_ceil(window);
    let mut windows = Vec::with_capacity(wanted);
    take(base, &documents, wanted / 2, window, &mut windows)?;
    take(base, &sources, wanted, window, &mut windows)?;
    if windows.len() < wanted {
        return Err(
            format!("the repository has text for {} windows, not {wanted}: lower --tokens", windows.len()).into()
        );
    }
    Ok(windows)
}

/// Adds windows of these files until there are so many in all; files evenly spread over the list.
fn take(base: &Base, names: &[&str], until: usize, window: usize, windows: &mut Vec<Vec<u32>>) -> Outcome {
    let mut pending = Vec::new();
    // Every third file, then those between: a few windows already see all parts of the tree.
    let order = (0..3).flat_map(|first| names.iter().skip(first).step_by(3));
    for name in order {
        if windows.len() >= until {
            break;
        }
        let text = std::fs::read_to_string(repository().join(Path::new(name)))?;
        pending.extend(base.tokenizer().encode(beginning(&text))?);
        while pending.len() >= window && windows.len() < until {
            let rest = pending.split_off(window);
            windows.push(std::mem::replace(&mut pending, rest));
        }
    }
    Ok(())
}

/// As much of a text as one file may give.
fn beginning(text: &str) -> &str {
    let end = (0..=FILE_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ours::tests::tiny_base;

    #[test]
    fn the_repository_has_windows_of_one_length_of_both_kinds() {
        let base = tiny_base();
        let windows = windows(&base, 4096, 512).expect("text");
        assert!(windows.len() == 8 && windows.iter().all(|window| window.len() == 512));
        assert_ne!(windows[0], windows[4]);
        assert_eq!(beginning("é"), "é");
        assert!(beginning(&"é".repeat(FILE_BYTES_MAX)).len() <= FILE_BYTES_MAX);
    }
}
