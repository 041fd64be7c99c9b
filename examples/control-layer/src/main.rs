//! The control layer's process: environment, logs, runtime. Everything else is in the library.

use std::{io::Write as _, process::ExitCode};

use control_layer::{
    config::Config,
    logs::Logs,
    run::{RunError, run, to_the_end},
};
use tracing_subscriber::EnvFilter;

/// A value of the environment that cannot work.
const BAD_SETTING: u8 = 2;

const USAGE: &str = "control-layer: MODAX's control layer. It takes no arguments; it is configured by its environment: the variables that its README.md lists.";

fn main() -> ExitCode {
    if let Some(argument) = std::env::args_os().nth(1) {
        let asked = argument == "--help" || argument == "-h";
        return fail(if asked { 0 } else { BAD_SETTING }, USAGE);
    }
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => return fail(BAD_SETTING, &error.to_string()),
    };
    let logs = match Logs::start(EnvFilter::new(&config.log_filter)) {
        Ok(logs) => logs,
        Err(error) => return fail(1, &format!("no thread for the log: {error}")),
    };
    let ended = to_the_end(run(config));
    logs.finish();
    match ended {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(RunError::Setting(error))) => fail(BAD_SETTING, &error.to_string()),
        // The log has said what.
        Ok(Err(RunError::Lost)) => ExitCode::FAILURE,
        Ok(Err(RunError::Io(error))) => fail(1, &format!("cannot serve: {error}")),
        Err(error) => fail(1, &format!("no runtime: {error}")),
    }
}

fn fail(code: u8, line: &str) -> ExitCode {
    // Nobody may be reading; the exit code says the rest.
    let _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::from(code)
}
