//! `activity-milter`: see the library's documentation for the map of the house.

use std::process::ExitCode;

/// A message is some hundred small allocations, most of them the milter library's, and glibc spends a quarter of the
/// instructions on them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    activity_milter::cli::run()
}
