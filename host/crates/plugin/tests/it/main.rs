//! The sandbox as its users see it, with real guests and the real compiler child.

mod admission;
mod calls;
mod components;
mod hostile;
mod setup;
