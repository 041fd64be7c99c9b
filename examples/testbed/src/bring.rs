//! The one way to bring a server's program.
//!
//! 1. `MODAX_BIN_PATH=DIR`: looked for in `DIR` only.
//! 2. A program of the system is used, unless `MODAX_IGNORE_SYSTEM=1`.
//! 3. Else its Debian packages are downloaded with private apt lists and unpacked into
//!    `${MODAX_CACHE:-/var/tmp/modax-$UID}`: no root, no service started, nothing on the system changed.
//! 4. Where that cannot serve, one [`BringError`] names every missing program and its package.
//!
//! Several test binaries may bring at once: a lock file lets one work and the others wait, and a set of packages is
//! unpacked aside and renamed, so that half of it never counts as all of it.

mod catalogue;
mod debian;
mod search;
pub(crate) mod user;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Why programs could not be brought.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BringError {
    /// Programs are missing. The message names all of them with their packages, and where they were looked for.
    #[error("missing {}; {looked}", list(missing))]
    Missing {
        /// Program and the Debian packages it comes from.
        missing: Vec<(String, String)>,
        /// Where it was looked for and why bringing did not help.
        looked: String,
    },
}

fn list(missing: &[(String, String)]) -> String {
    let each: Vec<String> =
        missing.iter().map(|(program, packages)| format!("{program} (Debian: {packages})")).collect();
    each.join(", ")
}

/// A program and what it needs to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// The executable file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Arguments that come before all others: the script, where the executable is an interpreter.
    #[must_use]
    pub fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// Variables without which a brought program does not find its libraries.
    #[must_use]
    pub fn environment(&self) -> &[(OsString, OsString)] {
        &self.environment
    }

    /// A command that runs it.
    #[must_use]
    pub fn command(&self) -> std::process::Command {
        let mut command = std::process::Command::new(&self.path);
        command.args(&self.arguments).envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }
}

impl<P: AsRef<OsStr> + ?Sized> From<&P> for Program {
    fn from(path: &P) -> Self {
        PathBuf::from(path.as_ref()).into()
    }
}

impl From<PathBuf> for Program {
    fn from(path: PathBuf) -> Self {
        Self { path, arguments: Vec::new(), environment: Vec::new() }
    }
}

impl From<String> for Program {
    fn from(path: String) -> Self {
        PathBuf::from(path).into()
    }
}

/// Where to look, from the environment.
#[derive(Clone, Debug)]
struct Places {
    only: Option<PathBuf>,
    ignores_system: bool,
    cache: PathBuf,
}

impl Places {
    fn from_environment() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            only: set("MODAX_BIN_PATH").map(PathBuf::from),
            ignores_system: set("MODAX_IGNORE_SYSTEM").is_some_and(|value| value != "0"),
            cache: set("MODAX_CACHE").map_or_else(
                || PathBuf::from(format!("/var/tmp/modax-{}", rustix::process::geteuid().as_raw())),
                PathBuf::from,
            ),
        }
    }
}

/// What was found in this process: a program does not move while tests run.
static FOUND: Mutex<BTreeMap<String, Program>> = Mutex::new(BTreeMap::new());

/// Finds one program, or brings it. Blocks while packages are downloaded, for 10 minutes at most.
///
/// # Errors
/// [`BringError::Missing`] when it is nowhere and cannot be brought.
pub fn program(name: &str) -> Result<Program, BringError> {
    let found = |name: &str| FOUND.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
    if let Some(program) = found(name) {
        return Ok(program);
    }
    require(&[name])?;
    found(name).ok_or_else(|| missing(&[name.to_owned()], "it vanished".to_owned()))
}

/// Every program the testbed knows.
#[must_use]
pub fn every() -> Vec<&'static str> {
    catalogue::programs().collect()
}

/// Where programs are brought to, from the environment.
pub(crate) fn cache() -> PathBuf {
    Places::from_environment().cache
}

/// Finds or brings several programs. Blocks while packages are downloaded, for 10 minutes at most.
///
/// # Errors
/// [`BringError::Missing`], naming all that are missing, not only the first.
pub fn require(names: &[&str]) -> Result<(), BringError> {
    let places = Places::from_environment();
    // One lock for the whole search: a second thread would only download the same again.
    let mut known = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let mut absent: Vec<String> = Vec::new();
    for name in names.iter().copied().filter(|name| !absent.iter().any(|other| other == name)).collect::<Vec<_>>() {
        if known.contains_key(name) {
            continue;
        }
        match search::find(name, &places) {
            Some(program) => {
                known.insert(name.to_owned(), program);
            }
            None => absent.push(name.to_owned()),
        }
    }
    if absent.is_empty() {
        return Ok(());
    }
    if let Some(only) = &places.only {
        return Err(missing(&absent, format!("looked only in MODAX_BIN_PATH={}", only.display())));
    }
    let mut reasons = Vec::new();
    let mut sets: Vec<&'static catalogue::Set> = absent.iter().filter_map(|name| catalogue::set_of(name)).collect();
    sets.dedup_by_key(|set| set.name);
    for set in sets {
        if let Err(reason) = debian::bring(set, &places) {
            reasons.push(reason);
        }
    }
    absent.retain(|name| match search::find_brought(name, &places) {
        Some(program) => {
            known.insert(name.clone(), program);
            false
        }
        None => true,
    });
    if absent.is_empty() {
        return Ok(());
    }
    let system =
        if places.ignores_system { "the system was ignored (MODAX_IGNORE_SYSTEM)" } else { "not on the system" };
    reasons.dedup();
    let why =
        if reasons.is_empty() { String::new() } else { format!(", and could not be brought: {}", reasons.join("; ")) };
    Err(missing(&absent, format!("{system}, not in {}{why}", places.cache.display())))
}

fn missing(names: &[String], looked: String) -> BringError {
    let packages = |name: &String| match (catalogue::set_of(name), name.as_str()) {
        (Some(set), _) => set.packages.join(" "),
        (None, "setpriv") => "util-linux".to_owned(),
        (None, _) => "unknown".to_owned(),
    };
    BringError::Missing { missing: names.iter().map(|name| (name.clone(), packages(name))).collect(), looked }
}
