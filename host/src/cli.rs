//! The command line: `tenon serve`, and the commands that talk to a running host. Not here: what a command means, which
//! is the host's; a client command is one HTTP call and a page of output.

mod adapters;
mod client;
mod doctor;
mod failure;
mod functions;
mod kv;
mod local;
mod output;
mod project;
mod receipts;
mod recordings;
mod registry;
mod remote;
mod rollouts;
mod secrets;
mod selftest;
mod usage;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::{Value, json};

use crate::config::{Config, Precision, RawConfig, RawTls};
use crate::error::Error;
use crate::host::Said;
use failure::Failure;
use output::Printer;

/// One resident base model, thousands of skills.
#[derive(Debug, Parser)]
#[command(name = "tenon", version, about, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    /// Print JSON: one document on standard output, errors on standard error; lines of it from `serve` and `logs --follow`
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 it failed, the host refused, or a replay differs; 2 the arguments make no sense; 3 the host \
    could not be reached, or broke off.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the base over HTTP until SIGTERM or SIGINT
    Serve(Box<ServeArgs>),
    /// Write the project of a new plugin
    New(project::NewArgs),
    /// Make the component of a plugin's project
    Build(project::BuildArgs),
    /// Build and deploy a plugin's project whenever it changes, and print what it says
    Dev(project::DevArgs),
    /// Say what a component imports, exports and weighs
    Inspect(project::InspectArgs),
    /// Push a component to an OCI registry
    Push(registry::PushArgs),
    /// Pull a component from an OCI registry
    Pull(registry::PullArgs),
    /// Upload a plugin and deploy a function of it
    Deploy(client::DeployArgs),
    /// Invoke a function and print its answer as it comes
    Invoke(client::InvokeArgs),
    /// List a function's versions
    Versions(functions::VersionsArgs),
    /// Make an earlier version of a function live
    Rollback(functions::RollbackArgs),
    /// Have a version answer a share of a function's callers
    Canary(rollouts::CanaryArgs),
    /// Send copies of a function's requests to a version, and compare its answers
    Shadow(rollouts::ShadowArgs),
    /// Print what a function's plugin said, and which invocations failed
    Logs(functions::LogsArgs),
    /// Revoke an adapter or a plugin by its digest, for all tenants and for good
    Revoke(adapters::RevokeArgs),
    /// Adapters: add, list, inspect, derive, pin, unpin, revoke, remove
    Adapter {
        #[command(subcommand)]
        command: adapters::AdapterCommand,
    },
    /// Secrets of private sources of adapters, and of plugins: set, list, remove
    Secret {
        #[command(subcommand)]
        command: secrets::SecretCommand,
    },
    /// Key-value buckets: list, get, put, delete
    Kv {
        #[command(subcommand)]
        command: kv::KvCommand,
    },
    /// Recordings of requests: list, show
    Recording {
        #[command(subcommand)]
        command: recordings::RecordingCommand,
    },
    /// Run a recorded request's plugin again on this machine, and say where it does another thing
    Replay(recordings::ReplayArgs),
    /// Receipts: show, verify
    Receipt {
        #[command(subcommand)]
        command: receipts::ReceiptCommand,
    },
    /// Requests and tokens by day, function and adapter
    Usage(usage::UsageArgs),
    /// Tenants: create, list
    Tenant {
        #[command(subcommand)]
        command: local::TenantCommand,
    },
    /// Keys: create, revoke
    Key {
        #[command(subcommand)]
        command: local::KeyCommand,
    },
    /// Check configuration, data directory, base and machine, and say what to do
    Doctor(Box<ServeArgs>),
    /// Run the accelerator's kernels against their references, on this machine's device
    Selftest(selftest::SelftestArgs),
    /// Print a shell's completions
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Compile a component from standard input; started by the host itself, under limits
    #[command(name = COMPILE_COMMAND, hide = true)]
    Compile,
}

/// The hidden command under which the host starts itself to compile plugins.
pub(crate) const COMPILE_COMMAND: &str = "__compile-plugin";

#[derive(Debug, Args)]
struct ServeArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The base model: a GGUF file, or a folder of safetensors files
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,
    /// Where state is kept
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Loopback only, with a key made in DATA/dev.key
    #[arg(long)]
    dev: bool,
    /// f32 (the reference) or quantised
    #[arg(long, value_parser = PossibleValuesParser::new(["f32", "quantised"]).try_map(|text| text.parse::<Precision>()))]
    precision: Option<Precision>,
    /// Threads of the runner
    #[arg(long)]
    threads: Option<u64>,
    /// Folder below which `file://` adapters may lie
    #[arg(long, value_name = "DIR")]
    adapters_root: Option<PathBuf>,
    /// Serve over TLS with this certificate and its chain (PEM)
    #[arg(long, value_name = "FILE")]
    tls_certificate_file: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE")]
    tls_private_key_file: Option<PathBuf>,
    /// Log filter, such as `info` or `host=debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl ServeArgs {
    fn config(self) -> Result<Config, Error> {
        let file = self.config.clone();
        let flags = RawConfig {
            base: self.base,
            data: self.data,
            listen: self.listen,
            dev: self.dev.then_some(true),
            precision: self.precision,
            threads: self.threads,
            adapters_root: self.adapters_root,
            log: self.log,
            tls: RawTls { certificate_file: self.tls_certificate_file, private_key_file: self.tls_private_key_file },
            ..RawConfig::default()
        };
        Ok(Config::load(file.as_deref(), std::env::vars_os(), &flags)?)
    }
}

/// The command line as a value, for those who walk through it.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Reads the arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    let printer = Printer { json: cli.json };
    let result = match cli.command {
        Command::Compile => return plugin::compiler_main(),
        Command::Serve(arguments) => serve(*arguments, printer),
        Command::New(arguments) => project::new(arguments, printer),
        Command::Build(arguments) => project::build(arguments, printer),
        Command::Dev(arguments) => block_on(project::dev(arguments, printer)),
        Command::Inspect(arguments) => project::inspect(arguments, printer),
        Command::Push(arguments) => block_on(registry::push(arguments, printer)),
        Command::Pull(arguments) => block_on(registry::pull(arguments, printer)),
        Command::Deploy(arguments) => block_on(client::deploy(arguments, printer)),
        Command::Invoke(arguments) => block_on(client::invoke(arguments, printer)),
        Command::Versions(arguments) => block_on(functions::versions(arguments, printer)),
        Command::Rollback(arguments) => block_on(functions::rollback(arguments, printer)),
        Command::Canary(arguments) => block_on(rollouts::canary(arguments, printer)),
        Command::Shadow(arguments) => block_on(rollouts::shadow(arguments, printer)),
        Command::Logs(arguments) => block_on(functions::logs(arguments, printer)),
        Command::Revoke(arguments) => block_on(adapters::revoke(arguments, printer)),
        Command::Adapter { command } => block_on(adapters::run(command, printer)),
        Command::Secret { command } => block_on(secrets::run(command, printer)),
        Command::Kv { command } => block_on(kv::run(command, printer)),
        Command::Recording { command } => block_on(recordings::run(command, printer)),
        Command::Replay(arguments) => block_on(recordings::replay(arguments, printer)),
        Command::Receipt { command } => block_on(receipts::run(command, printer)),
        Command::Usage(arguments) => block_on(usage::run(arguments, printer)),
        Command::Tenant { command } => block_on(local::tenant(command, printer)),
        Command::Key { command } => block_on(local::key(command, printer)),
        Command::Doctor(arguments) => block_on(doctor::run(arguments.config(), printer)),
        Command::Selftest(arguments) => selftest::run(&arguments, printer),
        Command::Completions { shell } => completions(shell, printer),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.say(printer.json);
            failure.exit()
        }
    }
}

/// What clap says about the arguments, as JSON if that was asked for; help and versions are no errors.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    let as_json =
        std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == "--json");
    if as_json && error.use_stderr() {
        let message = error.to_string();
        let message = message.trim().trim_start_matches("error: ");
        eprintln!("{}", json!({"error": {"message": message, "code": "usage", "param": null}}));
        return ExitCode::from(failure::USAGE);
    }
    let _nobody_reads = error.print();
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn completions(shell: Shell, printer: Printer) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "tenon", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    printer.result(&json!({"shell": shell.to_string(), "script": script}), |_| script.clone())?;
    Ok(())
}

fn serve(arguments: ServeArgs, printer: Printer) -> Result<(), Failure> {
    let config = arguments.config()?;
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log)
        .map_err(|error| Error::invalid("invalid_config", "log", format!("log filter: {error}")))?;
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    // Before the runtime's threads.
    if let Err(error) = crate::open_files::make_room() {
        tracing::warn!(%error, "no room for many open files could be made; opening one may take long now and then");
    }
    block_on(async { Ok(crate::host::serve(config, |said| say(said, printer)).await?) })
}

/// What the host says of itself, as it comes; as JSON, a line for each.
fn say(said: Said<'_>, printer: Printer) {
    if printer.json {
        println!("{}", said_json(said));
        return;
    }
    match said {
        Said::DevelopmentKey { path } => println!("tenon: development key in {}", path.display()),
        Said::Listening { url } => println!("tenon: listening on {url}"),
        Said::Ready { base, precision } => println!("tenon: ready, base {base} ({precision})"),
    }
}

fn said_json(said: Said<'_>) -> Value {
    match said {
        Said::DevelopmentKey { path } => json!({"event": "development_key", "path": path.display().to_string()}),
        Said::Listening { url } => json!({"event": "listening", "url": url}),
        Said::Ready { base, precision } => json!({"event": "ready", "base": base, "precision": precision}),
    }
}

fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(Error::io("cannot start the async runtime"))?.block_on(work)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
