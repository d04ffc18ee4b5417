//! The `countersign` binary: parses, dispatches, exits.

use std::process::ExitCode;

fn main() -> ExitCode {
    countersign::cli::main()
}
