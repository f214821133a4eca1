//! The command line: `tenon serve`, and the commands that talk to a running host. Not here: what a command means, which
//! is the host's; a client command is one HTTP call and a page of output.

mod client;
mod local;
mod output;
mod receipts;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Precision, RawConfig};
use crate::error::Error;
use crate::host::Said;

/// One resident base model, thousands of skills.
#[derive(Debug, Parser)]
#[command(name = "tenon", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the base over HTTP until SIGTERM or SIGINT
    Serve(Box<ServeArgs>),
    /// Upload a plugin and deploy a function of it
    Deploy(client::DeployArgs),
    /// Invoke a function and print its answer as it comes
    Invoke(client::InvokeArgs),
    /// Adapters: add, list, remove
    Adapter {
        #[command(subcommand)]
        command: client::AdapterCommand,
    },
    /// Receipts: show, verify
    Receipt {
        #[command(subcommand)]
        command: receipts::ReceiptCommand,
    },
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
    /// The base model, a GGUF file
    #[arg(long, value_name = "FILE")]
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
    #[arg(long)]
    precision: Option<Precision>,
    /// Threads of the runner
    #[arg(long)]
    threads: Option<u64>,
    /// Folder below which `file://` adapters may lie
    #[arg(long, value_name = "DIR")]
    adapters_root: Option<PathBuf>,
    /// Log filter, such as `info` or `host=debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

/// Where a running host is and with which key.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// Address of the host
    #[arg(long, env = "TENON_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// API key
    #[arg(long, env = "TENON_KEY", hide_env_values = true, conflicts_with = "key_file")]
    key: Option<String>,
    /// File that holds the key, such as DATA/dev.key
    #[arg(long, env = "TENON_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Reads the arguments and does what they say.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Compile => return plugin::compiler_main(),
        Command::Serve(arguments) => serve(*arguments),
        Command::Deploy(arguments) => block_on(client::deploy(arguments)),
        Command::Invoke(arguments) => block_on(client::invoke(arguments)),
        Command::Adapter { command } => block_on(client::adapter(command)),
        Command::Receipt { command } => block_on(receipts::run(command)),
        Command::Tenant { command } => block_on(local::tenant(command)),
        Command::Key { command } => block_on(local::key(command)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tenon: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: ServeArgs) -> Result<(), Error> {
    let flags = RawConfig {
        base: arguments.base,
        data: arguments.data,
        listen: arguments.listen,
        dev: arguments.dev.then_some(true),
        precision: arguments.precision,
        threads: arguments.threads,
        adapters_root: arguments.adapters_root,
        log: arguments.log,
        ..RawConfig::default()
    };
    let config = Config::load(arguments.config.as_deref(), std::env::vars_os(), &flags)?;
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log)
        .map_err(|error| Error::invalid("invalid_config", "log", format!("log filter: {error}")))?;
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    block_on(crate::host::serve(config, say))
}

fn say(said: Said<'_>) {
    match said {
        Said::DevelopmentKey { path } => println!("tenon: development key in {}", path.display()),
        Said::Listening { url } => println!("tenon: listening on {url}"),
        Said::Ready { base, precision } => println!("tenon: ready, base {base} ({precision})"),
    }
}

fn block_on(work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(Error::io("cannot start the async runtime"))?.block_on(work)
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
