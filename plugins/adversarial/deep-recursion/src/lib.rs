//! Calls itself without end: on the engine's stack alone, with text `memory` on the stack in linear memory, with text
//! `calls` with a call of the host on the way down every now and then.

use std::hint::black_box;

use tenon_sdk::{Decision, Plan, Policy, Request, Result, clock};

struct DeepRecursion;

impl Policy for DeepRecursion {
    fn route(request: &Request) -> Result<Decision> {
        // An unknown start: the depth must not be computed when this is compiled.
        let start = u64::from(request.version);
        let depth = match request.text.as_str() {
            "memory" => in_memory(start),
            "calls" => with_calls(start),
            _ => deeper(start),
        };
        Ok(Decision::Answer(depth.to_string()))
    }

    fn compose(request: &Request) -> Result<Plan> {
        Ok(Plan::new(request.prompt()))
    }
}

/// Nothing of it lives in linear memory, so that it is the engine's stack that ends.
#[inline(never)]
fn deeper(depth: u64) -> u64 {
    if depth == u64::MAX { 0 } else { deeper(depth + 1).wrapping_mul(31) ^ depth }
}

/// A page of linear memory for each step, so that this is what ends.
#[inline(never)]
fn in_memory(depth: u64) -> u64 {
    let mut page = [0_u64; 8192];
    black_box(&mut page)[0] = depth;
    if depth == u64::MAX { 0 } else { in_memory(depth + 1) ^ black_box(&page)[0] }
}

#[inline(never)]
fn with_calls(depth: u64) -> u64 {
    let now = if depth.is_multiple_of(64) { clock::elapsed_ms() } else { 1 };
    if depth == u64::MAX { 0 } else { with_calls(depth + 1).wrapping_mul(31) ^ u64::from(now) }
}

tenon_sdk::export_policy!(DeepRecursion);
