//! The files of `examples/deploy`: that they parse, that they agree with the programs, and that HAProxy does with its
//! file what the file says.

#[path = "deploy/balancer.rs"]
mod balancer;
#[path = "deploy/files.rs"]
mod files;

use std::path::{Path, PathBuf};

fn examples() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("the testbed stands in examples").to_path_buf()
}

fn read(path: &str) -> String {
    let path = examples().join("deploy").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The whole source of a program or crate, to look names up in.
fn source_of(folder: &str) -> String {
    let mut text = String::new();
    let mut folders = vec![examples().join(folder).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())).flatten()
        {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(path).expect("a source file can be read"));
            }
        }
    }
    text
}
