//! The repository's own rules. What a machine can check, a machine checks: each test lists every offender at once.

#[path = "tidy/manifests.rs"]
mod manifests;
#[path = "tidy/papers.rs"]
mod papers;
#[path = "tidy/sources.rs"]
mod sources;

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

/// The four published crates; none of them knows another.
const CRATES: [&str; 4] = ["modax-mqtt-failover", "modax-db-router", "modax-health", "modax-txn"];

/// The programs and the library that put them together or to the test.
const EXAMPLES: [&str; 4] = ["control-layer", "ai-layer", "modax", "testbed"];

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).expect("examples/testbed stands two levels below the root").to_path_buf()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// A path as people write it: from the root, with slashes.
fn named(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Every file below `folder`, in order, without build output and the version control's own.
fn files(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && !["target", ".git", "artifacts"].iter().any(|left_out| name == *left_out) {
                folders.push(path);
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Fails with the whole list, so that one run shows all there is to do.
#[track_caller]
fn none<T: Display>(rule: &str, offenders: impl IntoIterator<Item = T>) {
    let offenders: Vec<String> = offenders.into_iter().map(|offender| format!("  {offender}")).collect();
    assert!(offenders.is_empty(), "{rule}; {} offend:\n{}\n", offenders.len(), offenders.join("\n"));
}
