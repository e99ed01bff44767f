//! `activity-milter`: see the library's documentation for the map of the house.

use std::process::ExitCode;

fn main() -> ExitCode {
    activity_milter::cli::run()
}
