//! Whose fault an error is. It decides the HTTP status class, the log level and who pays.

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The request is wrong; the same request will fail again.
    Caller,
    /// The function's plugin, manifest or adapters are wrong.
    Function,
    /// A limit on resources was met; later may do.
    Capacity,
    /// The host failed.
    Host,
}
