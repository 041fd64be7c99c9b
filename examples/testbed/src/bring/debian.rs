//! Debian packages without root: private lists, `apt-get download`, `dpkg -x`.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::catalogue::{Set, is_needed};
use super::{Places, search};

/// Everything together; a slow mirror needs about two minutes for all sets.
const LIMIT: Duration = Duration::from_secs(600);

/// After this the lists are read anew: a mirror removes a package some days after it was replaced.
const LISTS_ARE_FRESH_FOR: Duration = Duration::from_secs(12 * 3600);

/// Brings a set into the cache. The error says why not, as a phrase.
pub(super) fn bring(set: &Set, places: &Places) -> Result<(), String> {
    let end = Instant::now() + LIMIT;
    for tool in ["apt-get", "dpkg"] {
        if search::find(tool, places).is_none() {
            return Err(format!("{tool} is missing, so packages cannot be downloaded: install them by other means"));
        }
    }
    let cache = &places.cache;
    public_directory(cache)?;
    if super::user::is_root() && !search::is_public(cache) {
        return Err(format!(
            "{} cannot be entered by the user PostgreSQL runs as: choose another MODAX_CACHE",
            cache.display()
        ));
    }
    let lock = Lock::acquire(&cache.join("lock"), end)?;
    // "alone" is the second try: the system may count a package as installed whose program is not where it should be.
    let modes: &[&str] = if places.ignores_system { &["alone"] } else { &["system", "alone"] };
    let mut reason = String::new();
    for mode in modes {
        let root = search::root(places, mode, set);
        let is_here = || set.programs.iter().take(1).all(|program| search::in_root(program, set, &root).is_some());
        if is_here() {
            // Another process brought it while this one waited for the lock.
            return Ok(());
        }
        match unpack(set, mode, &root, cache, &lock) {
            Ok(()) if is_here() => return Ok(()),
            Ok(()) => reason = format!("the packages {} do not contain the program", set.packages.join(" ")),
            Err(error) => reason = error,
        }
    }
    Err(reason)
}

fn unpack(set: &Set, mode: &str, root: &Path, cache: &Path, lock: &Lock) -> Result<(), String> {
    let apt = Apt::new(cache, mode, lock)?;
    apt.update()?;
    let work = cache.join(format!("work-{}-{mode}", set.name));
    // Left by somebody who was killed: the lock says that nobody is at it.
    let _ = std::fs::remove_dir_all(&work);
    let (packages, aside) = (work.join("packages"), work.join("root"));
    public_directory(&packages)?;
    public_directory(&aside)?;
    let chosen: Vec<String> = apt.resolve(set)?;
    if !chosen.is_empty() {
        let mut download = apt.command("apt-get");
        download.arg("download").args(&chosen).current_dir(&packages);
        lock.run(&mut download, &work.join("download.log"))?;
    }
    for entry in std::fs::read_dir(&packages).map_err(text(&packages))? {
        let package = entry.map_err(text(&packages))?.path();
        lock.run(Command::new("dpkg").arg("-x").arg(&package).arg(&aside), &work.join("unpack.log"))?;
    }
    if set.is_python {
        // Compiled once here instead of at every start: the user who starts it may not write here. No harm if it fails.
        let python = search::in_root(set.programs.first().unwrap_or(&""), set, &aside);
        if let Some(python) = python {
            let mut compile = Command::new(python.path());
            compile.envs(python.environment().iter().map(|(key, value)| (key, value)));
            compile
                .args(["-m", "compileall", "-q"])
                .args(["usr/lib/python3", "usr/lib/python3.11"].map(|path| aside.join(path)));
            let _ = lock.run(&mut compile, &work.join("compile.log"));
        }
    }
    if let Some(parent) = root.parent() {
        public_directory(parent)?;
    }
    let _ = std::fs::remove_dir_all(root);
    std::fs::rename(&aside, root).map_err(text(root))?;
    let _ = std::fs::remove_dir_all(&work);
    Ok(())
}

/// apt with lists, cache and status of its own.
struct Apt<'a> {
    configuration: PathBuf,
    lists: PathBuf,
    cache: &'a Path,
    lock: &'a Lock,
}

impl<'a> Apt<'a> {
    fn new(cache: &'a Path, mode: &str, lock: &'a Lock) -> Result<Self, String> {
        let home = cache.join("apt");
        for directory in ["lists/partial", "archives/partial", mode] {
            public_directory(&home.join(directory))?;
        }
        // With the system's own status apt names only what the system lacks; with an empty one, everything.
        let status = home.join(mode).join("status");
        if mode == "system" {
            std::fs::copy("/var/lib/dpkg/status", &status).map_err(text(Path::new("/var/lib/dpkg/status")))?;
        } else {
            std::fs::write(&status, "").map_err(text(&status))?;
        }
        let configuration = home.join(format!("{mode}.conf"));
        // The hooks of the system's own configuration are cleared: some delete files of the system after an update.
        let lines = format!(
            "Dir::State \"{home}\";\nDir::State::status \"{status}\";\nDir::Cache \"{home}\";\nAPT::Sandbox::User \"\";\n\
             Debug::NoLocking \"true\";\nAcquire::Retries \"2\";\nAcquire::http::Timeout \"30\";\nAPT::Get::AllowUnauthenticated \"false\";\n\
             #clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n\
             #clear DPkg::Pre-Invoke;\n#clear DPkg::Post-Invoke;\n#clear DPkg::Pre-Install-Pkgs;\n",
            home = home.display(),
            status = status.display(),
        );
        std::fs::write(&configuration, lines).map_err(text(&configuration))?;
        Ok(Self { configuration, lists: home.join("lists"), cache, lock })
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        // `-c` is read after the system's configuration; the variable APT_CONFIG would be read before it.
        command.arg("-c").arg(&self.configuration).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn update(&self) -> Result<(), String> {
        let stamp = self.lists.join("modax-updated");
        let age = std::fs::metadata(&stamp)
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age < LISTS_ARE_FRESH_FOR) {
            return Ok(());
        }
        self.lock.run(self.command("apt-get").args(["-q", "update"]), &self.cache.join("apt/update.log"))?;
        std::fs::write(&stamp, "").map_err(text(&stamp))
    }

    /// The packages to download for a set, as `name=version`.
    fn resolve(&self, set: &Set) -> Result<Vec<String>, String> {
        let log = self.cache.join("apt/resolve.log");
        let mut command = self.command("apt-get");
        command.args(["-q", "--print-uris", "-y", "--no-install-recommends", "install"]).args(set.packages);
        self.lock.run(&mut command, &log)?;
        let text = std::fs::read_to_string(&log).map_err(text(&log))?;
        Ok(text
            .lines()
            .filter_map(chosen)
            .filter(|(name, _)| is_needed(name))
            .map(|(name, version)| format!("{name}={version}"))
            .collect())
    }
}

/// Name and version from a line of `--print-uris`: `'URI' NAME_VERSION_ARCHITECTURE.deb SIZE HASH`.
fn chosen(line: &str) -> Option<(String, String)> {
    let file = line.strip_prefix('\'')?.split_once("' ")?.1.split(' ').next()?;
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let (name, version) = (parts.next()?, parts.next()?);
    // The epoch's colon is the only character apt encodes in a file's name.
    Some((name.to_owned(), version.replace("%3a", ":")))
}

/// Makes a directory that everybody may enter, whatever the umask: PostgreSQL runs as another user.
fn public_directory(directory: &Path) -> Result<(), String> {
    std::fs::create_dir_all(directory).map_err(text(directory))?;
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).map_err(text(directory))
}

fn text(path: &Path) -> impl FnOnce(std::io::Error) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}

/// Held while one process brings; the kernel releases it when that process has ended, however it ended.
struct Lock {
    file: File,
    end: Instant,
}

impl Lock {
    fn acquire(path: &Path, end: Instant) -> Result<Self, String> {
        let file = File::options().create(true).read(true).append(true).open(path).map_err(text(path))?;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= end {
                return Err(format!("another process holds {} for too long", path.display()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { file, end })
    }

    /// Runs a command with its output in `log`, which begins anew. The error ends with the last of that output.
    ///
    /// Its standard input is the lock file, which is empty: so the lock is held until the command has ended too, and
    /// an apt-get whose caller was killed is not joined by a second one.
    fn run(&self, command: &mut Command, log: &Path) -> Result<(), String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let held = self.file.try_clone().map_err(text(log))?;
        let file = File::create(log).map_err(text(log))?;
        let errors = file.try_clone().map_err(text(log))?;
        let mut child =
            command.stdin(held).stdout(file).stderr(errors).spawn().map_err(|error| format!("{name}: {error}"))?;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    let output = std::fs::read_to_string(log).unwrap_or_default();
                    let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
                    let last = lines.get(lines.len().saturating_sub(3)..).unwrap_or_default().join(" / ");
                    return Err(format!("{name} failed ({status}): {last}"));
                }
                Ok(None) if Instant::now() < self.end => std::thread::sleep(Duration::from_millis(10)),
                Ok(None) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!("{name} took too long"));
                }
                Err(error) => return Err(format!("{name}: {error}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::chosen;

    #[test]
    fn name_and_version_are_read_from_a_line_of_print_uris() {
        let line = "'http://mirror/pool/libc/libcap2/libcap2_2.66-4%2bdeb12u3_amd64.deb' libcap2_1%3a2.66-4+deb12u3_amd64.deb 27708 MD5Sum:f3";

        assert_eq!(chosen(line), Some(("libcap2".to_owned(), "1:2.66-4+deb12u3".to_owned())));
        assert_eq!(chosen("Reading package lists..."), None);
    }
}
