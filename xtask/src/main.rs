//! Repository tasks.

mod guests;

fn main() -> std::process::ExitCode {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let update_fixtures = std::env::args().any(|argument| argument == "--update-fixtures");
    match guests::build(&root, update_fixtures) {
        Ok(_) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
