//! The `supernode` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    supernode::cli::main()
}
