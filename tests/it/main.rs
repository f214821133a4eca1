//! The one integration binary: rules of the repository, and what a user can see of a running server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod tidy;

mod adapters;
mod cli;
mod clients;
mod compositions;
mod crash;
mod functions;
mod hostile;
mod hostile_adapters;
mod lifecycle;
mod malformed;
mod openai;
mod operations;
mod plugins;
mod receipts;
mod tenants;
