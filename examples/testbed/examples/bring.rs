//! Brings every server the tests need, or names all that are missing. What `make test` does first.

use std::process::ExitCode;

use modax_testbed::bring;

fn main() -> ExitCode {
    match bring::require(&bring::every()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
