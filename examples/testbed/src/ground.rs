//! The ground servers stand on: one directory, one guardian, the ports, and everything that was started.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;

use crate::guardian::{self, Guardian};
use crate::process::tree::{self, Id};
use crate::process::{Process, Spawn};
use crate::{TestbedError, bring};

/// One look for what earlier grounds left is enough for a process.
static CLEARED: Once = Once::new();

/// Where servers stand. Cheap to clone; everything ends with [`stop`](Ground::stop), or when the last clone and the
/// last server on it are dropped, or, by the guardian, within 10 s after this process has ended in whatever way.
#[derive(Clone, Debug)]
pub struct Ground {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    guardian: Guardian,
    contents: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    is_ended: bool,
    processes: Vec<Process>,
    clusters: BTreeSet<PathBuf>,
    ports: Vec<UdpSocket>,
}

impl Ground {
    /// Makes the directory and starts the guardian.
    ///
    /// The directory is `/var/tmp/modax-ground-…`, which PostgreSQL's user can reach. It is removed at the end, unless
    /// `MODAX_KEEP` is set and the test failed.
    ///
    /// # Errors
    /// [`TestbedError::Io`] when the directory or the guardian cannot be made.
    ///
    /// # Cancel safety
    /// Safe: it does not wait.
    #[expect(clippy::unused_async, reason = "part of an interface that is async throughout")]
    pub async fn start() -> Result<Self, TestbedError> {
        let keeps = keeps_failures();
        CLEARED.call_once(guardian::clear_gone);
        let directory = directory()?;
        let guardian = Guardian::start(&directory, keeps)?;
        Ok(Self { inner: Arc::new(Inner { directory, guardian, contents: Mutex::default() }) })
    }

    /// The directory: logs as `NAME.log`, the servers' own directories.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.directory
    }

    /// A directory of its own for a server, writable for the user PostgreSQL runs as if `for_postgres`.
    pub(crate) fn directory(&self, name: &str, for_postgres: bool) -> Result<PathBuf, TestbedError> {
        let path = self.inner.directory.join(name);
        let made = std::fs::create_dir_all(&path)
            .and_then(|()| {
                std::fs::set_permissions(&path, PermissionsExt::from_mode(if for_postgres { 0o700 } else { 0o755 }))
            })
            .and_then(|()| if for_postgres { bring::user::give(&path) } else { Ok(()) });
        made.map_err(TestbedError::io(path.display().to_string()))?;
        Ok(path)
    }

    /// Writes a server's configuration, readable for everybody.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf, TestbedError> {
        let path = self.inner.directory.join(name);
        std::fs::write(&path, text)
            .and_then(|()| std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)))
            .map_err(TestbedError::io(path.display().to_string()))?;
        Ok(path)
    }

    /// A port of 127.0.0.1 that is free and stays ours until the end, also while no server listens on it.
    ///
    /// It lies below the range from which the kernel takes ports for outgoing connections: else a client that
    /// reconnects to a killed server may occupy the server's port, or even connect to itself. The claim is the UDP
    /// port of the same number: other grounds, in other processes too, look for it, and the kernel gives it back.
    ///
    /// # Panics
    /// When not one port is free, which no test can survive.
    #[must_use]
    pub fn port(&self) -> u16 {
        static TURN: AtomicU64 = AtomicU64::new(0);
        let (low, high) = port_range();
        for _ in 0..10_000 {
            let random = noise(TURN.fetch_add(1, Ordering::Relaxed));
            let port = low + u16::try_from(random % u64::from(high - low)).unwrap_or(0);
            let Ok(claim) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                self.inner.contents().ports.push(claim);
                return port;
            }
        }
        panic!("no free port between {low} and {high}");
    }

    /// Starts a process that ends with this ground.
    ///
    /// # Errors
    /// [`TestbedError::Io`] when it cannot be started; [`TestbedError::Server`] after [`stop`](Self::stop).
    #[expect(clippy::needless_pass_by_value, reason = "a description is used up by its start")]
    pub fn spawn(&self, spawn: Spawn) -> Result<Process, TestbedError> {
        // Held over the start: nothing is started behind the back of an end that happens at the same time.
        let mut contents = self.inner.contents();
        if contents.is_ended {
            return Err(TestbedError::server(spawn.name(), "not started, the ground was stopped"));
        }
        let process = Process::start(&spawn, &self.inner.directory)?;
        self.inner.guardian.record_process(process.id())?;
        contents.processes.push(process.clone());
        Ok(process)
    }

    /// Runs a program to its end, for `deadline` at most, and returns what it printed.
    pub(crate) async fn run(&self, spawn: Spawn, deadline: Duration) -> Result<(), TestbedError> {
        let process = self.spawn(spawn)?;
        let status = process.exited(deadline).await;
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(TestbedError::Exited {
                name: process.name().to_owned(),
                status: status.to_string(),
                log: process.log_tail(20),
            }),
            Err(error) => {
                process.kill();
                Err(error)
            }
        }
    }

    /// Has whichever postmaster owns this data directory ended with the ground.
    pub(crate) fn owns_postgres(&self, directory: &Path) -> Result<(), TestbedError> {
        if self.inner.contents().clusters.insert(directory.to_owned()) {
            self.inner.guardian.record_postgres(directory)?;
        }
        Ok(())
    }

    /// Ends everything and removes the directory. Takes well under a second, 15 s at the very most.
    ///
    /// # Cancel safety
    /// Safe: the work goes on in a thread of its own.
    pub async fn stop(self) {
        let inner = self.inner;
        // A failure means that the runtime shuts down, and then the last owner's drop does the same.
        let _ = tokio::task::spawn_blocking(move || inner.end()).await;
    }
}

impl Inner {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does at once what the guardian would do; then the guardian finds nobody left and tidies up.
    fn end(&self) {
        let mut contents = self.contents();
        if contents.is_ended {
            return;
        }
        contents.is_ended = true;
        let processes = std::mem::take(&mut contents.processes);
        let owners: Vec<Id> = contents.clusters.iter().filter_map(|directory| postmaster(directory)).collect();
        // First whoever might start a postmaster again. A postmaster Patroni started is nobody's descendant by then.
        // Those that have ended too: what they left in their groups is ours.
        let others: Vec<Id> = processes.iter().map(Process::id).filter(|id| !owners.contains(id)).collect();
        tree::kill(&others);
        // QUIT is PostgreSQL's immediate shutdown: as fast as a kill, but it gives its shared memory back.
        let mut family = tree::family(&owners);
        for owner in &owners {
            owner.signal(Signal::QUIT);
        }
        for member in &family {
            member.signal(Signal::CONT);
        }
        let end = Instant::now() + Duration::from_secs(3);
        while family.iter().any(|member| member.is_alive()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        family.retain(|member| member.is_alive());
        if !family.is_empty() {
            tree::kill(&family.into_iter().collect::<Vec<_>>());
        }
        for process in processes {
            let _ = process.exit_status();
        }
        contents.ports.clear();
        drop(contents);
        self.guardian.finish();
        // Where failures are kept the guardian removes nothing: it cannot tell this end from a kill.
        if !(keeps_failures() && std::thread::panicking()) {
            let _ = std::fs::remove_dir_all(&self.directory);
            let _ = std::fs::remove_dir_all(guardian::gone(&self.directory));
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end();
    }
}

/// The postmaster that owns a data directory at present. It works in that directory, which tells it from a stranger
/// who was given the process id of an earlier one.
pub(crate) fn postmaster(directory: &Path) -> Option<Id> {
    let file = std::fs::read_to_string(directory.join("postmaster.pid")).ok()?;
    let pid = file.lines().next()?.trim().parse().ok()?;
    let id = Id::of(pid)?;
    (std::fs::read_link(format!("/proc/{pid}/cwd")).ok()? == directory).then_some(id)
}

fn keeps_failures() -> bool {
    std::env::var_os("MODAX_KEEP").is_some_and(|value| !value.is_empty() && value != "0")
}

fn directory() -> Result<PathBuf, TestbedError> {
    for turn in 0..100 {
        let path = PathBuf::from(format!(
            "/var/tmp/{}{}-{:06x}",
            guardian::GROUND,
            std::process::id(),
            noise(turn) & 0xff_ffff
        ));
        match std::fs::create_dir(&path) {
            Ok(()) => {
                // Whatever the umask: PostgreSQL's user has to pass through.
                return std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))
                    .map(|()| path.clone())
                    .map_err(TestbedError::io(path.display().to_string()));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(TestbedError::io(path.display().to_string())(error)),
        }
    }
    Err(TestbedError::server("/var/tmp", "no free name for a directory"))
}

/// From 10,000 to the first port the kernel gives to outgoing connections.
fn port_range() -> (u16, u16) {
    let low = 10_000;
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let high = text.split_ascii_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32_768);
    if high > low + 1_000 { (low, high) } else { (low, 65_535) }
}

/// Differs from call to call and from process to process; splitmix64 over the clock, the process and a counter.
fn noise(turn: u64) -> u64 {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    let mut value =
        (u64::from(std::process::id()) << 32 | u64::from(clock)).wrapping_add(turn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
