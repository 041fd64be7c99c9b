//! A test inside namespaces of its own, as root or not: there it mounts small disks and filters packets, and nobody
//! else sees any of it.
//!
//! The test runs itself again: `unshare` starts this very binary with the one test inside, and the first run only waits
//! for it. What is mounted and filtered goes with the second.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::bring;

/// What a test wants to have for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Mounts.
    Mount,
    /// Interfaces, addresses, ports, filters. Only loopback is there, and it is up. `ip` and `nft` are brought.
    Network,
}

/// Set for the second run.
const INSIDE: &str = "MODAX_INSIDE_NAMESPACE";

impl Namespace {
    /// True inside. Outside it runs the test of this name there, and returns false when that has passed.
    ///
    /// ```no_run
    /// # use modax_testbed::namespace::Namespace;
    /// # fn small() {
    /// if !Namespace::Mount.has_entered("f31::a_small_disk") {
    ///     return;
    /// }
    /// # }
    /// ```
    ///
    /// # Panics
    /// When the test inside fails, or this machine lets nobody have namespaces: a test that cannot be run has failed.
    #[must_use]
    pub fn has_entered(self, test: &str) -> bool {
        if std::env::var_os(INSIDE).is_some_and(|inside| inside == test) {
            if self == Self::Network {
                let up = tool("ip").args(["link", "set", "lo", "up"]).output();
                check("ip link set lo up", up);
            }
            return true;
        }
        let way = self.way();
        if self == Self::Network {
            // Inside there is no network to bring them over.
            bring::require(&["ip", "nft"]).unwrap_or_else(|error| panic!("{error}"));
        }
        let binary = std::env::current_exe().expect("this binary has a path");
        let mut command = Command::new("unshare");
        command.args(way).arg("--").arg(binary).args(["--exact", test, "--nocapture"]).env(INSIDE, test);
        // Inside, an ordinary user has another number, by which the cache is named.
        command.env("MODAX_CACHE", bring::cache());
        let output = command.output().expect("unshare was there a moment ago");
        let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        eprintln!("{told}");
        println!("{said}");
        // Without the count a name that fits no test would pass.
        let passed = output.status.success() && said.contains("test result: ok. 1 passed");
        assert!(passed, "{test} inside its namespaces: {}", output.status);
        false
    }

    /// How `unshare` gives it here: by way of a user namespace, which needs no rights, else as root without one.
    fn way(self) -> &'static [&'static str] {
        let ways: [&[&str]; 2] = match self {
            Self::Mount => [&["--user", "--map-root-user", "--mount"], &["--mount"]],
            Self::Network => [&["--user", "--map-root-user", "--net"], &["--net"]],
        };
        let mut reasons = Vec::new();
        for way in ways {
            match Command::new("unshare").args(way).args(["--", "true"]).output() {
                Ok(output) if output.status.success() => return way,
                Ok(output) => reasons.push(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
                Err(error) => reasons.push(format!("unshare (Debian: util-linux): {error}")),
            }
        }
        panic!(
            "this test needs user namespaces (see kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns) \
             or root: {}",
            reasons.join("; ")
        )
    }
}

/// A disk of a few pages, in memory. For use inside [`Namespace::Mount`].
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of this size on `path`, which is made if it must be.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn mount(path: &Path, kib: u32) -> Self {
        std::fs::create_dir_all(path).expect("a directory to mount on");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs", text(path)]);
        Self { path: path.to_owned() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills what is left of it with a file of this name and returns how many bytes that took.
    ///
    /// # Panics
    /// When it ends for another reason than that it is full.
    #[must_use]
    pub fn fill(&self, name: &str) -> u64 {
        let mut file = std::fs::File::create(self.path.join(name)).expect("a file");
        let mut bytes = 0;
        loop {
            match std::io::Write::write(&mut file, &[0; 4096]) {
                Ok(written) => bytes += written as u64,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
                    return bytes;
                }
            }
        }
    }

    /// Makes all of it read-only, or writable again. The kernel refuses while a file is open for writing.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn remount(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        // With the source named, or mount repeats options in which an ordinary user stands under his outer number.
        run("mount", &["-o", options, "tmpfs", text(&self.path)]);
    }

    /// Makes `folder`, as whoever opens a file by its path from here on sees it, read-only. Files that are open stay so.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn cover_read_only(&self, folder: &Path) {
        run("mount", &["--bind", text(folder), text(folder)]);
        run("mount", &["-o", "remount,bind,ro", text(folder)]);
    }

    /// Takes the cover away.
    ///
    /// # Panics
    /// When there was none.
    pub fn uncover(&self, folder: &Path) {
        run("umount", &[text(folder)]);
    }
}

impl Drop for SmallDisk {
    /// Lazily: the directory below is to be removed, whoever still has a file open.
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).output();
    }
}

/// The kernel drops packets by chance, of both directions and of every kind. For use inside [`Namespace::Network`].
#[derive(Debug)]
pub struct PacketLoss {
    ports: Vec<u16>,
}

impl PacketLoss {
    /// Of connections to these ports of loopback; none until [`set`](Self::set) is called.
    ///
    /// # Panics
    /// When the kernel does not know the filter.
    #[must_use]
    pub fn of(ports: impl IntoIterator<Item = u16>) -> Self {
        let chain = "chain lossy { type filter hook input priority 0; }";
        nft(&format!("add table inet modax {{ counter dropped {{ }}\n{chain}\n}}\n"));
        Self { ports: ports.into_iter().collect() }
    }

    /// Drops this share of the packets from here on; at 100 all of them.
    ///
    /// # Panics
    /// When the kernel does not know the filter.
    pub fn set(&self, percent: u8) {
        let mut rules = String::from("flush chain inet modax lossy\n");
        // 100 is no value below 100 for the kernel.
        let chance = if percent >= 100 { String::new() } else { format!("numgen random mod 100 < {percent} ") };
        for port in &self.ports {
            for side in ["sport", "dport"] {
                let _ =
                    writeln!(rules, "add rule inet modax lossy tcp {side} {port} {chance}counter name dropped drop");
            }
        }
        nft(&rules);
    }

    /// Packets dropped so far.
    ///
    /// # Panics
    /// When `nft` no longer answers.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let listed = nft("list counter inet modax dropped\n");
        let packets = listed.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        packets.unwrap_or_else(|| panic!("nft said: {listed}"))
    }
}

fn nft(script: &str) -> String {
    let mut command = tool("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("nft: {error}"));
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(script.as_bytes()).expect("nft reads");
    drop(input);
    let output = check(script, child.wait_with_output());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn tool(name: &str) -> Command {
    bring::program(name).unwrap_or_else(|error| panic!("{error}")).command()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test's own is text")
}

/// Runs a program of the system to its end.
///
/// # Panics
/// When it is missing or fails.
fn run(program: &str, arguments: &[&str]) {
    check(&format!("{program} {arguments:?}"), Command::new(program).args(arguments).output());
}

fn check(what: &str, ended: std::io::Result<Output>) -> Output {
    let output = ended.unwrap_or_else(|error| panic!("{what}: {error}"));
    let Output { status, stderr, .. } = &output;
    assert!(status.success(), "{what}: {status}: {}", String::from_utf8_lossy(stderr));
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_is_full_read_only_and_covered_when_it_is_said_to_be() {
        if !Namespace::Mount
            .has_entered("namespace::tests::a_small_disk_is_full_read_only_and_covered_when_it_is_said_to_be")
        {
            return;
        }
        let path = std::env::temp_dir().join(format!("modax-small-disk-{}", std::process::id()));
        let disk = SmallDisk::mount(&path, 64);
        assert_eq!(disk.fill("a"), 64 << 10);
        std::fs::remove_file(path.join("a")).expect("it was there");
        disk.remount(true);
        let refused = std::fs::write(path.join("b"), "").map_err(|error| error.kind());
        assert_eq!(refused, Err(std::io::ErrorKind::ReadOnlyFilesystem));
        disk.remount(false);
        let folder = path.join("folder");
        std::fs::create_dir(&folder).expect("writable again");
        disk.cover_read_only(&folder);
        assert!(std::fs::write(folder.join("b"), "").is_err() && std::fs::write(path.join("b"), "").is_ok());
        disk.uncover(&folder);
        std::fs::write(folder.join("b"), "").expect("uncovered");
        drop(disk);
        std::fs::remove_dir(&path).expect("nothing is left");
    }
}
