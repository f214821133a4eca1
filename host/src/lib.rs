//! Placeholder.

// State: what lasts, and what is made of it.
pub mod store;
