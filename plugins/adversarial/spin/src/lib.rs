//! Never comes back: by itself, or (text `calls`) through host functions, or (text `log`) by filling the log.

use tenon_sdk::{Decision, Plan, Policy, Request, Result, catalog, log};

struct Spin;

impl Policy for Spin {
    fn route(request: &Request) -> Result<Decision> {
        match request.text.as_str() {
            "serve" => Ok(Decision::Serve),
            "calls" => loop {
                catalog::adapters()?;
            },
            "log" => loop {
                log::info(&"x".repeat(1000));
            },
            _ => spin(),
        }
    }

    fn compose(_: &Request) -> Result<Plan> {
        spin()
    }
}

fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

tenon_sdk::export_policy!(Spin);
