//! The process that outlives us for a moment and ends what we started.
//!
//! It reads a pipe whose other end only this process holds. The kernel closes that end however we end, `kill -9`
//! included; end of file is the guardian's signal. See `guardian.sh` for the rest.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::TestbedError;
use crate::process::tree::Id;

const SCRIPT: &str = include_str!("guardian.sh");

/// Handle of a running guardian.
#[derive(Debug)]
pub(crate) struct Guardian {
    child: Mutex<Child>,
    pipe: Mutex<Option<ChildStdin>>,
}

impl Guardian {
    /// Starts a guardian for the servers whose files are in `directory`.
    pub(crate) fn start(directory: &Path, keeps_directory: bool) -> Result<Self, TestbedError> {
        // As a file: a list of processes should show a name and not the whole script.
        let script = directory.join("guardian.sh");
        std::fs::write(&script, SCRIPT).map_err(TestbedError::io(script.display().to_string()))?;
        let mut command = Command::new("/bin/sh");
        command.arg(script).arg(directory);
        command.arg(if keeps_directory { "keep" } else { "remove" });
        // Nothing of ours is inherited: whoever waits for the end of our output must not wait for the guardian. A
        // group of its own, and the signals of a terminal ignored: Ctrl-C ends us, and then it has its work to do.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).current_dir("/");
        let mut child = command.spawn().map_err(TestbedError::io("starting the guardian (/bin/sh)"))?;
        let pipe = child.stdin.take();
        Ok(Self { child: Mutex::new(child), pipe: Mutex::new(pipe) })
    }

    /// Has a process ended when we are gone.
    pub(crate) fn record_process(&self, id: Id) -> Result<(), TestbedError> {
        self.record(&format!("process {} {}\n", id.pid, id.start))
    }

    /// Has whichever postmaster owns this data directory ended when we are gone.
    pub(crate) fn record_postgres(&self, directory: &Path) -> Result<(), TestbedError> {
        self.record(&format!("postgres {}\n", directory.display()))
    }

    fn record(&self, line: &str) -> Result<(), TestbedError> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        match pipe.as_mut() {
            Some(pipe) => pipe.write_all(line.as_bytes()).map_err(TestbedError::io("telling the guardian")),
            None => Err(TestbedError::server("guardian", "the ground was stopped")),
        }
    }

    /// Closes the pipe and waits until the guardian has done its work, for 10 s at most.
    pub(crate) fn finish(&self) {
        drop(self.pipe.lock().unwrap_or_else(PoisonError::into_inner).take());
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
