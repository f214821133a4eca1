//! The one integration binary: rules of the repository, and what a user can see of a running server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod tidy;

mod actions;
mod adapters;
mod adversarial;
mod alora;
mod bases;
mod canary;
mod churn;
mod cli;
mod clients;
mod cold;
mod compositions;
mod crash;
mod derive;
mod doctor;
mod functions;
mod grants;
mod hand_over;
mod hang_ups;
mod hostile;
mod hostile_adapters;
mod json_guard;
mod lifecycle;
mod logs;
mod lorax;
mod malformed;
mod not_http;
mod openai;
mod operations;
mod plugins;
mod quotas;
mod receipts;
mod revocation;
mod s3;
mod serving;
mod shadow;
mod shares;
mod signatures;
mod sources;
mod switch;
mod tenants;
mod tls;
mod usage;
mod vllm;
