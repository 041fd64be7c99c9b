//! One server process: started with a log, killed or stopped together with everything that descends from it.

pub(crate) mod tree;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tree::Id;

use crate::TestbedError;
use crate::bring::Program;

/// What to start, for [`Ground::spawn`](crate::Ground::spawn).
#[derive(Clone, Debug)]
#[must_use]
pub struct Spawn {
    pub(crate) program: Program,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) name: Option<String>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) output: Option<PathBuf>,
    pub(crate) input: Option<PathBuf>,
    pub(crate) drops_root: bool,
}

impl Spawn {
    /// A program, brought by [`bring::program`](crate::bring::program) or named by its path.
    pub fn new(program: impl Into<Program>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            name: None,
            directory: None,
            output: None,
            input: None,
            drops_root: false,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, arguments: I) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets one environment variable; the rest is inherited.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The name of its log (`NAME.log` in the ground's directory) and in errors. Default: the program's name. A second
    /// start under the same name continues the log.
    pub fn log(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Its working directory. Default: the ground's directory.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// A file of its own for standard output, where that is data. Default: the log, together with standard error.
    pub fn output(mut self, file: impl Into<PathBuf>) -> Self {
        self.output = Some(file.into());
        self
    }

    /// A file to read standard input from. Default: empty.
    pub fn input(mut self, file: impl Into<PathBuf>) -> Self {
        self.input = Some(file.into());
        self
    }

    /// Whether to leave root for the user `postgres`, else `nobody`: PostgreSQL refuses to run as root. Without
    /// meaning for an ordinary user. Default: no.
    pub const fn as_postgres_user(mut self, drops_root: bool) -> Self {
        self.drops_root = drops_root;
        self
    }

    pub(crate) fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            self.program.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
        })
    }

    /// The command without its standard streams.
    pub(crate) fn command(&self, directory: &Path) -> Result<Command, TestbedError> {
        let mut command = if let (true, Some(user)) = (self.drops_root, crate::bring::user::unprivileged()) {
            let setpriv = crate::bring::program("setpriv")?;
            let mut command = Command::new(setpriv.path());
            command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
            command.args(["--clear-groups", "--"]).arg(self.program.path());
            command.env("HOME", directory);
            command
        } else {
            Command::new(self.program.path())
        };
        command.args(self.program.arguments()).args(&self.arguments);
        command.envs(self.program.environment().iter().map(|(key, value)| (key, value)));
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.current_dir(self.directory.as_deref().unwrap_or(directory));
        Ok(command)
    }
}

/// A started process. Cloning gives a second handle to the same one; dropping the handle ends nothing: it ends with
/// its [`Ground`](crate::Ground).
#[derive(Clone, Debug)]
pub struct Process {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    id: Id,
    child: Mutex<Child>,
    /// Whom [`Process::stop`] stopped: an orphan among them is no descendant any more when it has to be continued.
    stopped: Mutex<BTreeSet<Id>>,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(spawn: &Spawn, ground: &Path) -> Result<Self, TestbedError> {
        let name = spawn.name();
        let open = |path: &Path| {
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(TestbedError::io(path.display().to_string()))
        };
        let log = ground.join(format!("{name}.log"));
        let errors = open(&log)?;
        let output = match &spawn.output {
            Some(path) => open(path)?,
            None => errors.try_clone().map_err(TestbedError::io(log.display().to_string()))?,
        };
        let input = match &spawn.input {
            Some(path) => Stdio::from(std::fs::File::open(path).map_err(TestbedError::io(path.display().to_string()))?),
            None => Stdio::null(),
        };
        let mut command = spawn.command(ground)?;
        command.stdin(input).stdout(output).stderr(errors).process_group(0);
        let child = command
            .spawn()
            .map_err(TestbedError::io(format!("starting {name} ({})", spawn.program.path().display())))?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        // Not yet waited for, so the id is certainly still its own, if only as a zombie.
        let id = Id::of(pid).unwrap_or(Id { pid, start: 0 });
        let inner = Inner { name, id, child: Mutex::new(child), stopped: Mutex::default(), log };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn id(&self) -> Id {
        self.inner.id
    }

    /// The name of its log and in errors.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its process id, meaningful while [`is_running`](Self::is_running).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.id.pid.unsigned_abs()
    }

    /// Kills it and all its descendants (SIGKILL); returns when they are gone. Without effect on one that has ended.
    pub fn kill(&self) {
        tree::kill(&[self.inner.id]);
        self.inner.stopped().clear();
        let _ = self.exit_status();
    }

    /// Stops it and all its descendants (SIGSTOP): connections stay open and nobody answers.
    pub fn stop(&self) {
        let frozen = tree::freeze(&[self.inner.id]);
        self.inner.stopped().extend(frozen);
    }

    /// Continues what [`stop`](Self::stop) stopped.
    pub fn cont(&self) {
        let mut stopped = std::mem::take(&mut *self.inner.stopped());
        stopped.extend(tree::family(&[self.inner.id]));
        for id in stopped {
            id.signal(Signal::CONT);
        }
    }

    /// Sends one signal to this process alone, not to its descendants.
    pub fn signal(&self, signal: Signal) {
        self.inner.id.signal(signal);
    }

    /// Asks it to end (SIGTERM) and waits; what has not ended after `deadline` is killed.
    ///
    /// # Errors
    /// [`TestbedError::Deadline`] when it had to be killed.
    ///
    /// # Cancel safety
    /// Safe: the request stands, the killing is left out.
    pub async fn terminate(&self, deadline: Duration) -> Result<ExitStatus, TestbedError> {
        self.signal(Signal::TERM);
        let ended = self.exited(deadline).await;
        if ended.is_err() {
            self.kill();
        }
        ended
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// [`TestbedError::Deadline`] when it still runs after `deadline`.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn exited(&self, deadline: Duration) -> Result<ExitStatus, TestbedError> {
        let what = format!("end of {}", self.inner.name);
        crate::wait::until(deadline, &what, || async { self.exit_status() }).await
    }

    /// Its exit status, once it has ended.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.inner.child().try_wait().ok().flatten()
    }

    /// Whether it has not ended; a stopped process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Where its standard error (and, unless it has a file of its own, standard output) goes.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.inner.log
    }

    /// The last `lines` lines of its log, each cut after 300 characters.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.inner.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        let last = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
        let cut = |line: &&str| line.chars().take(300).collect::<String>();
        last.iter().map(cut).collect::<Vec<_>>().join("\n")
    }

    /// An error that tells how it ended, if it has.
    pub(crate) fn ended(&self) -> Result<(), TestbedError> {
        match self.exit_status() {
            None => Ok(()),
            Some(status) => Err(TestbedError::Exited {
                name: self.inner.name.clone(),
                status: status.to_string(),
                log: self.log_tail(20),
            }),
        }
    }
}

impl Inner {
    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> MutexGuard<'_, BTreeSet<Id>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
