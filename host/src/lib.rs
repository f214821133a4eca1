//! Tenon's host.

pub mod receipt;
