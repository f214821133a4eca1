//! `cargo xtask demo`: from a fresh clone to real functions answering over HTTP, with every step shown. Not here: the
//! conversation itself (`tour`), the server process (`server`).

mod client;
mod server;
mod tour;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use crate::shell::{self, Outcome};
use crate::{base, suite};

use client::Client;
use server::Server;

/// What the user asked for.
pub(crate) struct Options {
    /// End after the tour.
    pub(crate) once: bool,
    /// Keep the data here.
    pub(crate) keep_data: Option<PathBuf>,
    /// 0 for any.
    pub(crate) port: u16,
}

/// An HTTP client that is given its cryptography, because the workspace's `reqwest` has none of its own. The demo's server
/// speaks plain HTTP: no certificate authority is needed.
fn http() -> Outcome<reqwest::blocking::ClientBuilder> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    Ok(reqwest::blocking::Client::builder().no_proxy().tls_backend_preconfigured(tls))
}

/// Sets up, serves, shows, and goes on serving.
///
/// # Errors
/// If any step fails; the server is stopped first.
pub(crate) fn run(options: &Options) -> Outcome {
    let started = Instant::now();
    step("guests", "building the plugins");
    suite::guests(false)?;
    step("host", "building tenon (the first time takes some minutes)");
    shell::run(&mut shell::cargo(&["build", "--locked", "--workspace", "--bins"]))?;
    step("base", "SmolLM2-135M-Instruct, Q4_1");
    let base = base::ensure()?;
    let scratch = tempfile::tempdir()?;
    let data = options.keep_data.clone().unwrap_or_else(|| scratch.path().join("data"));
    fs::create_dir_all(&data)?;
    let data = fs::canonicalize(data)?;
    step("server", &format!("tenon serve --dev, data in {}", data.display()));
    let mut server = Server::start(&base, &data, options.port)?;
    let loading = Instant::now();
    server.wait_until_ready()?;
    println!("  ready after {:.1} s at {}", loading.elapsed().as_secs_f64(), server.url());
    let shown = tour::run(&Client::new(server.url(), &server.key()?)?, &server);
    println!("\nthe tour took {:.1} s in all", started.elapsed().as_secs_f64());
    if let Err(error) = shown {
        drop(server.stop());
        return Err(format!("{error}\nthe server's log is {}", server.log().display()).into());
    }
    if !options.once {
        tour::print_what_to_try(&server)?;
        server.wait_for_end()?;
    }
    server.stop()?;
    println!("the server drained and ended");
    Ok(())
}

fn step(name: &str, what: &str) {
    println!("\n== {name}: {what}");
}
