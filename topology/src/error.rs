//! What can be wrong with a machine file, an address or a route. Each message names the place, the value and
//! what would be accepted, in one line that a person can act on.

/// An error a user can cause: never a bug, never a panic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// Neither a built-in machine nor a readable file.
    #[error(
        "machine `{wanted}`: not a built-in machine ({builtins}), and not a readable file: {reason}"
    )]
    NoMachine {
        wanted: String,
        builtins: String,
        reason: String,
    },
    /// The file is not TOML, or has an unknown key or a value of the wrong type.
    #[error("{origin}:{line}:{column}: {message}")]
    Toml {
        origin: String,
        line: usize,
        column: usize,
        message: String,
    },
    /// A key that has to be there is not.
    #[error(
        "{origin}: `{key}` is missing: give it, or set `base` to a built-in machine ({builtins})"
    )]
    Missing {
        origin: String,
        key: String,
        builtins: String,
    },
    /// A value outside of what is accepted.
    #[error("{origin}: {key} = {value}: expected {accepted}")]
    Value {
        origin: String,
        key: String,
        value: String,
        accepted: String,
    },
    /// An address or pattern that names no part of the machine, or not the kind wanted.
    #[error("{address}: {reason}")]
    Address { address: String, reason: String },
    /// Two parts between which nothing can be sent.
    #[error("no {plane} route from {from} to {to}: {reason}")]
    Route {
        plane: &'static str,
        from: String,
        to: String,
        reason: String,
    },
}
