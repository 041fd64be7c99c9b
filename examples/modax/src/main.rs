//! `modax`: the four crates from the command line, for people and for tests in any language.
//!
//! Results are JSON lines on stdout, one object a line, flushed at once; diagnostics and events are JSON lines on
//! stderr. The exit code is 0 only when every line was acknowledged or committed, 2 on bad usage, 1 otherwise.

mod args;
mod demo;
mod input;
mod mqtt;
mod outbox;
mod output;
mod queue;
mod report;
mod signal;
mod sql;

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use serde_json::json;

use crate::args::{Cli, Command};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// Every line was acknowledged, committed or answered.
    Done,
    /// Something was not; its line or event says what.
    Failed,
    /// The command line makes no sense.
    Usage,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::event("failed", json!({ "error": format!("cannot start the runtime: {error}") }));
            let _ = output::events_written().blocking_recv();
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(async {
        let exit = run(cli.command).await;
        output::end_events().await;
        exit
    });
    // A read of stdin may still be waiting on its thread: it must not hold up the end.
    runtime.shutdown_background();
    ExitCode::from(u8::from(exit))
}

async fn run(command: Command) -> Exit {
    signal::survive_file_limit();
    let (output, end) = output::Output::start();
    let exit = match command {
        Command::Pub(args) => mqtt::publish(args, output).await,
        Command::Sub(args) => mqtt::subscribe(args, output).await,
        Command::Queue(args) => queue::run(args.action, output).await,
        Command::Write(args) => sql::write(args, output).await,
        Command::Read(args) => sql::read(args, output).await,
        Command::Topology(args) => sql::topology(args, output).await,
        Command::Outbox(args) => outbox::run(args, output).await,
        Command::Up(args) => demo::up(args, output).await,
        Command::Demo(args) => demo::run(args, output).await,
    };
    let Err(error) = end.finish().await else { return exit };
    output::event("failed", json!({ "error": error }));
    if exit == Exit::Done { Exit::Failed } else { exit }
}

/// Prints help where it was asked for, else one line that names what is wrong.
fn refuse(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let printed = error.print();
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    output::event("bad_usage", json!({ "error": args::explain(error) }));
    let _ = output::events_written().blocking_recv();
    ExitCode::from(u8::from(Exit::Usage))
}
