//! Tenon's host.

// Receipts, configuration, metrics.
pub mod config;
pub mod metrics;
pub mod receipt;
