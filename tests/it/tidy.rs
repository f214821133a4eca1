//! Rules of the repository as tests. Each message says what to do. Not here: licences and sources (`deny.toml`).

mod files;
mod imports;
