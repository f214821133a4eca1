//! Hostile inputs out of bytes, mostly valid and then mutated. Ordinary tests draw the bytes from a seed, fuzz targets take
//! them from libFuzzer. In reading order: how bytes become choices, JSON, the files of an adapter, a base small enough to
//! open in a millisecond, plans, HTTP requests.
//!
//! Not here: what must hold for an input. Those properties lie beside the tests of what they are about.

mod adapter;
mod base;
mod draw;
mod http;
mod json;
mod plan;
mod safetensors;

pub use adapter::{AdapterFiles, adapter};
pub use base::{Sizes, base_file, base_file_with, quantised_base_file};
pub use draw::{Draw, seeded_bytes};
pub use http::{KEY, Request, requests, routes};
pub use json::Json;
pub use plan::{Granted, PlanCase, plan_case};
