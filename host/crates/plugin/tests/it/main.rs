//! The sandbox as its users see it, with real guests and the real compiler child.
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests stand outside of test functions")]

mod abandoned;
mod admission;
mod agents;
mod calls;
mod components;
mod hostile;
mod imports;
mod kept;
mod lenders;
mod limits;
mod recording;
mod recording_agents;
mod setup;
mod spares;
mod stuck;
