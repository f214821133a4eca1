//! The compiler child as a program of its own, for this crate's tests. Not here: what it does.

fn main() -> std::process::ExitCode {
    plugin::compiler_main()
}
