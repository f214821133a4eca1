//! Imports WASI as some toolchains make every guest do, and answers with what it could see through it. Asked for `lent`,
//! it answers with what the host's own interfaces say.

use tenon_sdk::{Decision, Plan, Policy, Request, Result, catalog, clock, config, random};

wit_bindgen::generate!({
    inline: "
        package demo:peek;

        world peek {
            import wasi:cli/environment@0.2.0;
            import wasi:random/random@0.2.0;
        }

        package wasi:cli@0.2.0 {
            interface environment {
                get-environment: func() -> list<tuple<string, string>>;
                get-arguments: func() -> list<string>;
                initial-cwd: func() -> option<string>;
            }
        }

        package wasi:random@0.2.0 {
            interface random {
                get-random-bytes: func(len: u64) -> list<u8>;
            }
        }
    ",
    generate_all,
});

struct Peek;

impl Policy for Peek {
    fn route(request: &Request) -> Result<Decision> {
        use wasi::cli::environment::{get_arguments, get_environment, initial_cwd};
        if request.text == "random" {
            let bytes = wasi::random::random::get_random_bytes(8);
            return Ok(Decision::Answer(format!("{bytes:?}")));
        }
        if request.text == "lent" {
            return lent().map(Decision::Answer);
        }
        if request.text == "much" {
            wasi::random::random::get_random_bytes(1 << 30);
        }
        let seen = get_environment().len() + get_arguments().len() + usize::from(initial_cwd().is_some());
        Ok(Decision::Answer(format!("{seen} things seen")))
    }

    fn compose(request: &Request) -> Result<Plan> {
        Ok(Plan::new(request.prompt()))
    }
}

/// One line for each thing that can be asked.
fn lent() -> Result<String> {
    let refused = |answer: Result<()>| answer.map_or_else(|error| error.to_string(), |()| "taken".to_owned());
    let lines = [
        format!("elapsed {} ms", clock::elapsed_ms()),
        format!("time {} s", clock::unix_seconds()),
        format!("random {} {:?}", random::next(), random::bytes(4)?),
        format!("too much random: {}", refused(random::bytes(65_537).map(drop))),
        format!("config {:?} {:?}", config::all(), config::get("none")),
        format!("prefetch: {}", refused(catalog::prefetch(&["iso-date".to_owned()]))),
    ];
    Ok(lines.join("\n"))
}

tenon_sdk::export_policy!(Peek);
