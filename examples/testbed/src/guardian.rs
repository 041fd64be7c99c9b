//! The process that outlives us for a moment and ends what we started.
//!
//! It reads a pipe whose other end only this process holds. The kernel closes that end however we end, `kill -9`
//! included; end of file is the guardian's signal. See `guardian.sh` for the rest.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::TestbedError;
use crate::process::tree::Id;

/// What the name of a ground's directory begins with, and, as `guardian.sh` has it, that of one to be removed.
pub(crate) const GROUND: &str = "modax-ground-";
const GONE: &str = "modax-gone-";

const SCRIPT: &str = include_str!("guardian.sh");

/// For all the guardian does, the removal of the directory included. All is gone 10 s after our end: this leaves one.
const LIMIT_SECONDS: u32 = 9;

/// Handle of a running guardian.
#[derive(Debug)]
pub(crate) struct Guardian {
    child: Mutex<Child>,
    pipe: Mutex<Option<ChildStdin>>,
}

impl Guardian {
    /// Starts a guardian for the servers whose files are in `directory`.
    pub(crate) fn start(directory: &Path, keeps_directory: bool) -> Result<Self, TestbedError> {
        Self::start_within(directory, keeps_directory, LIMIT_SECONDS, Command::new("/bin/sh"))
    }

    fn start_within(
        directory: &Path,
        keeps_directory: bool,
        seconds: u32,
        mut command: Command,
    ) -> Result<Self, TestbedError> {
        // As a file: a list of processes should show a name and not the whole script.
        let script = directory.join("guardian.sh");
        std::fs::write(&script, SCRIPT).map_err(TestbedError::io(script.display().to_string()))?;
        command.arg(script).arg(directory);
        command.arg(if keeps_directory { "keep" } else { "remove" }).arg(seconds.to_string());
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

/// Where the guardian puts a directory before it removes it.
pub(crate) fn gone(directory: &Path) -> PathBuf {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    directory.with_file_name(format!("{GONE}{}", name.trim_start_matches(GROUND)))
}

/// Removes what guardians had no time left to remove, in the background: it may be much.
pub(crate) fn clear_gone() {
    std::thread::spawn(|| {
        let ours = rustix::process::getuid().as_raw();
        for entry in std::fs::read_dir("/var/tmp").into_iter().flatten().flatten() {
            let is_gone = entry.file_name().to_string_lossy().starts_with(GONE);
            if is_gone && entry.metadata().is_ok_and(|data| data.uid() == ours) {
                // Another start may be at it, too.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_removal_that_takes_too_long_is_left_to_the_next_start() {
        let directory = PathBuf::from(format!("/var/tmp/{GROUND}test-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory");
        let slow = directory.join("rm");
        std::fs::write(&slow, "#!/bin/sh\nexec sleep 1000\n").expect("a program");
        std::fs::set_permissions(&slow, PermissionsExt::from_mode(0o755)).expect("a program");
        let mut command = Command::new("/bin/sh");
        // Found also where the directory is by then.
        let path = format!("{}:{}", gone(&directory).display(), std::env::var("PATH").expect("a path"));
        command.env("PATH", path);
        let guardian = Guardian::start_within(&directory, false, 1, command).expect("a guardian");

        guardian.finish();

        let ended = guardian.child.lock().expect("lock").try_wait().expect("our child");
        assert!(ended.is_some(), "it is gone although the removal was not done");
        assert!(!directory.exists() && gone(&directory).exists(), "the fault fired");
        clear_gone();
        let end = Instant::now() + Duration::from_secs(20);
        while gone(&directory).exists() {
            assert!(Instant::now() < end, "the next start removes it");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
