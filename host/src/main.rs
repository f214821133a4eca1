//! `tenon`.
fn main() {}
