pub struct Options { pub once: bool, pub keep_data: Option<std::path::PathBuf>, pub port: u16 }
pub fn run(_: &Options) -> crate::shell::Outcome { Ok(()) }
