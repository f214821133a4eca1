//! Signs of life for a person who waits. Not here: what takes so long.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for so many steps, where somebody looks at it.
pub(crate) fn bar(steps: usize, done: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("  {bar:30} {pos}/{len} {msg}, {per_sec}, {eta} left");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(steps as u64).with_style(style).with_message(done)
}
