//! The `unslothify` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    unslothify::cli::main()
}
