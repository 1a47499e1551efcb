//! The `portcullis` command; see [`portcullis::cli`].

use std::process::ExitCode;

/// A request makes some two dozen small allocations: over glibc's, this one takes 3 to 10 % off its CPU time (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    portcullis::cli::run()
}
