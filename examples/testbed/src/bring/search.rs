//! Looking for a program on the system and in the cache.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::catalogue::{self, Set};
use super::{Places, Program, user};

/// A program of the system or of an earlier bringing.
pub(super) fn find(name: &str, places: &Places) -> Option<Program> {
    if let Some(only) = &places.only {
        return catalogue::set_of(name)
            // Tools of the base system (setpriv) are no servers and need not be in the directory.
            .map_or_else(|| on_path(name), |_| usable(&only.join(name)))
            .map(Program::from);
    }
    let system = match catalogue::set_of(name) {
        Some(_) if places.ignores_system => None,
        Some(set) => on_system(name, set),
        None => on_path(name),
    };
    system.map(Program::from).or_else(|| find_brought(name, places))
}

/// A program in the cache.
pub(super) fn find_brought(name: &str, places: &Places) -> Option<Program> {
    let set = catalogue::set_of(name)?;
    ["system", "alone"]
        .into_iter()
        .filter(|mode| !(places.ignores_system && *mode == "system"))
        .map(|mode| root(places, mode, set))
        .find_map(|root| in_root(name, set, &root))
}

/// Where a set is unpacked: `system` holds what this system lacks, `alone` everything.
pub(super) fn root(places: &Places, mode: &str, set: &Set) -> PathBuf {
    places.cache.join(mode).join(set.name)
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from));
    directories.iter().find_map(|directory| usable(&directory.join(name)))
}

fn on_system(name: &str, set: &Set) -> Option<PathBuf> {
    let (main, _) = set.programs.split_first()?;
    // Programs of one set must be of one version: they are taken from beside the set's main program.
    let beside = on_path(main).and_then(|path| Some(path.parent()?.join(name)));
    beside.as_deref().and_then(usable).or_else(|| {
        set.directories.iter().find_map(|pattern| {
            let directory = expand(Path::new("/"), pattern)?;
            usable(&directory.join(main))?;
            usable(&directory.join(name))
        })
    })
}

/// The program in an unpacked set, with what it needs to find its libraries there.
pub(super) fn in_root(name: &str, set: &Set, root: &Path) -> Option<Program> {
    let path = set.directories.iter().find_map(|pattern| usable(&expand(root, pattern)?.join(name)))?;
    let mut environment = Vec::new();
    let libraries = libraries(root);
    if !libraries.is_empty() {
        environment.push((OsString::from("LD_LIBRARY_PATH"), std::env::join_paths(libraries).ok()?));
    }
    if !set.is_python {
        return Some(Program { path, arguments: Vec::new(), environment });
    }
    environment.push(("PYTHONPATH".into(), root.join("usr/lib/python3/dist-packages").into()));
    environment.push(("PYTHONNOUSERSITE".into(), "1".into()));
    environment.push(("PYTHONDONTWRITEBYTECODE".into(), "1".into()));
    // The interpreter of the same set; else Debian's own, whose version the modules were built for. A python3 that
    // merely comes first in PATH may be of another version.
    let python = python_in(root).or_else(|| usable(Path::new("/usr/bin/python3")))?;
    Some(Program { path: python, arguments: vec![path.into()], environment })
}

/// The interpreter of an unpacked set.
pub(super) fn python_in(root: &Path) -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir(root.join("usr/bin"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.strip_prefix("python3.").is_some_and(|minor| minor.parse::<u32>().is_ok())
        })
        .collect();
    versions.sort();
    usable(&versions.pop()?)
}

fn libraries(root: &Path) -> Vec<PathBuf> {
    let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
    ["usr/lib", "lib"].iter().map(|lib| root.join(lib).join(&triplet)).filter(|path| path.is_dir()).collect()
}

/// Replaces the part of `pattern` that contains `*` by the directory with the highest number.
fn expand(root: &Path, pattern: &str) -> Option<PathBuf> {
    let mut path = root.to_owned();
    for part in pattern.split('/') {
        let Some((before, after)) = part.split_once('*') else {
            path.push(part);
            continue;
        };
        let (_, name) = std::fs::read_dir(&path)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| Some((name.strip_prefix(before)?.strip_suffix(after)?.parse::<u32>().ok()?, name)))
            .max()?;
        path.push(name);
    }
    Some(path)
}

/// The real path of a program that can be executed, also by the user root drops to.
fn usable(path: &Path) -> Option<PathBuf> {
    let real = path.canonicalize().ok()?;
    let mode = std::fs::metadata(&real).ok().filter(std::fs::Metadata::is_file)?.permissions().mode();
    let is_reachable = !user::is_root() || (mode & 0o001 != 0 && is_public(real.parent()?));
    (mode & 0o111 != 0 && is_reachable).then_some(real)
}

/// Whether everybody may enter this directory and all above it.
pub(super) fn is_public(directory: &Path) -> bool {
    directory
        .ancestors()
        .all(|above| std::fs::metadata(above).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0))
}
