//! The one error type of this crate. What a user can cause is told apart from what went wrong in a run,
//! because the exit code says which it was.

use std::io;

/// Why a command ended without doing what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bad input: the message names the file or option, the key, the value, and what would be accepted.
    #[error("{0}")]
    User(String),
    /// A run that failed, or a result that could not be delivered.
    #[error("{0}")]
    Failed(String),
    /// Standard output could not be written.
    #[error("cannot write to standard output: {0}")]
    Stdout(#[from] io::Error),
    /// Ctrl-C ended a run whose report has been given.
    #[error("stopped by Ctrl-C: the report is of what had ended by then")]
    Interrupted,
}

impl Error {
    pub fn user(message: impl Into<String>) -> Self {
        Self::User(message.into())
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// 2 for what the user can put right in the input, 1 for the rest; a reader that went away
    /// (`| head`) is no error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::User(_) => 2,
            Self::Failed(_) => 1,
            Self::Stdout(e) if e.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Stdout(_) => 1,
            Self::Interrupted => 130,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;
