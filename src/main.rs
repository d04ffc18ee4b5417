//! The `countersign` binary: parses, dispatches, exits.

use std::process::ExitCode;

/// A call makes and drops a few dozen small things, which the system's allocator takes a tenth of
/// its time for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    countersign::cli::main()
}
