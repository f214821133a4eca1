//! What the end-to-end tests share, in reading order: where things are, a server, a client for it. Only the public
//! surface of the host is used: its binary and its HTTP routes. Not here: tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test harness fails by panicking")]

mod client;
mod distribution;
mod fault_proxy;
mod memory_registry;
mod peft;
mod places;
mod plugins;
mod s3;
mod server;
mod setup;
mod sse;

pub use client::{Answer, Client, completion_ids};
pub use distribution::Distribution;
pub use fault_proxy::{Asked, Fault, FaultProxy};
pub use memory_registry::MemoryRegistry;
pub use peft::{PeftAdapter, PeftTensor, safetensors_file};
pub use places::{adapter_folder, base, golden, guest, repository, shared, skip, tracked_files};
pub use plugins::{
    deploy_component, deploy_plugin, receipt_of, server_with_limits, server_with_settings, wait_until_idle,
};
pub use s3::S3Server;
pub use server::{Options, Server, run_tenon, tenon};
pub use setup::{deploy_examples, shared_server, tenant_key};
pub use sse::{Events, read_events};
