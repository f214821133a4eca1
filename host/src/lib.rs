//! Tenon's host.

pub mod receipt;

// State: what lasts, and what is made of it.
pub mod adapters;
pub mod artifacts;
pub mod registry;
pub mod store;
pub mod tenants;
