//! What `cargo metadata` and the manifests say: independence, licences, sources, versions, reasons.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

use crate::{CRATES, EXAMPLES, none, read, root};

static METADATA: LazyLock<Value> = LazyLock::new(|| {
    let arguments = ["metadata", "--format-version", "1", "--locked", "--all-features"];
    let platform = format!("--filter-platform={}", host());
    // Offline first: cargo has what it built with. Optional dependencies that were never built may need a download.
    let offline = cargo(&[&arguments[..], &["--offline", &platform]].concat());
    let output = offline.or_else(|_| cargo(&[&arguments[..], &[&*platform]].concat()));
    serde_json::from_str(&output.expect("cargo metadata")).expect("JSON from cargo metadata")
});

fn cargo(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output();
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

fn host() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(rustc).arg("-vV").output().expect("rustc -vV");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn members() -> Vec<&'static Value> {
    let ids: BTreeSet<&str> = list(&METADATA, "workspace_members").filter_map(Value::as_str).collect();
    list(&METADATA, "packages").filter(|package| ids.contains(text(package, "id"))).collect()
}

fn member(name: &str) -> &'static Value {
    let found = members().into_iter().find(|package| text(package, "name") == name);
    found.unwrap_or_else(|| panic!("{name} is a member of the workspace"))
}

#[test]
fn no_crate_names_another() {
    let mut offenders = Vec::new();
    for name in CRATES {
        for dependency in list(member(name), "dependencies") {
            let other = text(dependency, "name");
            let is_drill = text(dependency, "kind") == "dev" && text(dependency, "req") == "*";
            if CRATES.contains(&other) || (other == "modax-testbed" && !is_drill) {
                offenders.push(format!("{name} depends on {other}"));
            }
        }
        for line in tree(name, &[]).lines().filter(|line| line.starts_with("modax-")) {
            if !line.starts_with(&format!("{name} ")) {
                offenders.push(format!("{name} draws in {line}"));
            }
        }
    }
    for dependency in list(member("modax-testbed"), "dependencies") {
        let other = text(dependency, "name");
        if other.starts_with("modax") {
            offenders.push(format!("modax-testbed depends on {other}"));
        }
    }
    none(
        "the four crates are independent, the testbed depends on none of them and is a path-only dev-dependency",
        offenders,
    );
}

fn tree(name: &str, more: &[&str]) -> String {
    let arguments = ["tree", "-p", name, "-e", "normal,build", "--locked", "--offline", "--prefix", "none"];
    cargo(&[&arguments[..], more].concat()).expect("cargo tree")
}

#[test]
fn without_features_no_crate_draws_tokio_in() {
    let mut offenders = Vec::new();
    for name in CRATES {
        let tree = tree(name, &["--no-default-features"]);
        let runtimes = tree.lines().filter(|line| line.starts_with("tokio"));
        offenders.extend(runtimes.map(|line| format!("{name}: {line}")));
    }
    none("a crate builds without tokio when its features are off", offenders);
}

#[test]
fn every_licence_is_allowed_and_every_source_is_the_registry() {
    let rules = read("deny.toml");
    let (_, allowed) = rules.split_once("\nallow = [").expect("deny.toml lists the licences");
    let (allowed, _) = allowed.split_once(']').expect("the list ends");
    let allowed: BTreeSet<&str> = allowed.split('"').skip(1).step_by(2).collect();
    let mut offenders = Vec::new();
    for package in list(&METADATA, "packages") {
        let (name, licence) = (text(package, "name"), text(package, "license"));
        if !is_allowed(licence, &allowed) {
            offenders.push(format!("{name}: licence {licence:?}"));
        }
        let source = package["source"].as_str();
        if source.is_some_and(|source| source != "registry+https://github.com/rust-lang/crates.io-index") {
            offenders.push(format!("{name}: source {source:?}"));
        }
        if source.is_none() && !members().contains(&package) {
            offenders.push(format!("{name}: a path outside the workspace"));
        }
    }
    none("licences stand in deny.toml, sources are crates.io or this workspace", offenders);
}

/// SPDX, as far as it occurs: `AND` binds tighter than `OR` (and the old `/`), parentheses, `WITH`.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "+");
    let mut words: VecDeque<&str> = spaced.split_whitespace().collect();
    any_of(&mut words, allowed) && words.is_empty()
}

fn any_of(words: &mut VecDeque<&str>, allowed: &BTreeSet<&str>) -> bool {
    let mut holds = all_of(words, allowed);
    while words.front() == Some(&"OR") {
        words.pop_front();
        holds |= all_of(words, allowed);
    }
    holds
}

fn all_of(words: &mut VecDeque<&str>, allowed: &BTreeSet<&str>) -> bool {
    let mut holds = one_of(words, allowed);
    while words.front() == Some(&"AND") {
        words.pop_front();
        holds &= one_of(words, allowed);
    }
    holds
}

fn one_of(words: &mut VecDeque<&str>, allowed: &BTreeSet<&str>) -> bool {
    match words.pop_front() {
        Some("(") => {
            let holds = any_of(words, allowed);
            words.pop_front() == Some(")") && holds
        }
        Some(licence) => allowed.contains(&*licence.replace('+', " WITH ")),
        None => false,
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = BTreeSet::from(["MIT", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/GPL-3.0", true),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("GPL-3.0 AND MIT OR Unicode-3.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn rust_version_is_the_highest_of_what_we_build_with() {
    let packages: BTreeMap<&str, &Value> =
        list(&METADATA, "packages").map(|package| (text(package, "id"), package)).collect();
    let nodes: BTreeMap<&str, &Value> =
        list(&METADATA["resolve"], "nodes").map(|node| (text(node, "id"), node)).collect();
    let mut queue: Vec<&str> = members().into_iter().map(|package| text(package, "id")).collect();
    let ours: BTreeSet<&str> = queue.iter().copied().collect();
    let mut seen = BTreeSet::new();
    let mut highest = (vec![0], String::new());
    while let Some(id) = queue.pop() {
        if !seen.insert(id) {
            continue;
        }
        let package = packages[id];
        let version = text(package, "rust_version");
        if !ours.contains(id) && !version.is_empty() {
            highest = highest.max((numbers(version), format!("{} {version}", text(package, "name"))));
        }
        for dependency in list(nodes[id], "deps") {
            if list(dependency, "dep_kinds").any(|kind| text(kind, "kind") != "dev") {
                queue.push(text(dependency, "pkg"));
            }
        }
    }
    let declared = members().into_iter().filter(|package| {
        let declared = numbers(text(package, "rust_version"));
        !declared.starts_with(&highest.0[..2.min(highest.0.len())])
    });
    let declared = declared.map(|package| format!("{} {}", text(package, "name"), text(package, "rust_version")));
    none(
        &format!("`rust-version` is that of {}, the highest among normal and build dependencies", highest.1),
        declared,
    );
}

fn numbers(version: &str) -> Vec<u64> {
    version.split('.').filter_map(|part| part.parse().ok()).collect()
}

#[test]
fn every_crate_is_ready_to_be_published_and_read() {
    let mut offenders = Vec::new();
    for name in CRATES {
        let package = member(name);
        for key in ["description", "license", "repository", "readme"] {
            if text(package, key).is_empty() {
                offenders.push(format!("{name}/Cargo.toml: no {key}"));
            }
        }
        let docs = &package["metadata"]["docs"]["rs"];
        if docs["all-features"] != true || !docs["rustdoc-args"].to_string().contains("docsrs") {
            offenders
                .push(format!("{name}/Cargo.toml: [package.metadata.docs.rs] wants all-features and --cfg docsrs"));
        }
        if !list(package, "targets").any(|target| target["kind"][0] == "example") {
            offenders.push(format!("{name}/examples: no example program"));
        }
        for test in ["it", "drill"] {
            if !list(package, "targets").any(|target| target["kind"][0] == "test" && target["name"] == test) {
                offenders.push(format!("{name}/tests: no test binary `{test}`"));
            }
        }
        for paper in ["README.md", "CHANGELOG.md"] {
            if !root().join(name).join(paper).is_file() {
                offenders.push(format!("{name}/{paper}: missing"));
            }
        }
    }
    for package in members() {
        let is_published = package["publish"].is_null();
        let name = text(package, "name");
        if is_published != CRATES.contains(&name) {
            offenders.push(format!("{name}: the four crates are published, nothing else is"));
        }
    }
    none("each crate has its papers, docs.rs metadata, an example and two test binaries", offenders);
}

#[test]
fn the_lock_file_of_the_fuzz_targets_is_up_to_date() {
    let arguments = ["tree", "--manifest-path", "fuzz/Cargo.toml", "--locked", "--depth", "0"];
    let answer = cargo(&[&arguments[..], &["--offline"]].concat()).or_else(|_| cargo(&arguments));
    none(
        "fuzz/Cargo.lock follows the crates: `cargo update --manifest-path fuzz/Cargo.toml --workspace`",
        answer.err(),
    );
}

#[test]
fn every_dependency_has_a_reason() {
    let mut offenders = Vec::new();
    let mut manifests = vec!["Cargo.toml".to_owned()];
    manifests.extend(CRATES.map(|name| format!("{name}/Cargo.toml")));
    manifests.extend(EXAMPLES.map(|name| format!("examples/{name}/Cargo.toml")));
    manifests.push("fuzz/Cargo.toml".to_owned());
    for manifest in manifests {
        let Ok(text) = std::fs::read_to_string(root().join(&manifest)) else { continue };
        offenders.extend(without_reason(&text).into_iter().map(|line| format!("{manifest}: {line}")));
    }
    none("a dependency has its reason in a line of its own above it (several of a kind may share one)", offenders);
}

/// Dependencies with a version of their own that do not stand below a comment. What a crate takes from the workspace
/// has its reason there.
fn without_reason(manifest: &str) -> Vec<&str> {
    let mut offenders = Vec::new();
    let (mut in_dependencies, mut has_reason) = (false, false);
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_dependencies = line.ends_with("dependencies]");
            has_reason = false;
        } else if line.is_empty() {
            has_reason = false;
        } else if line.starts_with('#') {
            has_reason = true;
        } else if in_dependencies && !has_reason && is_own_dependency(line) {
            offenders.push(line);
        }
    }
    offenders
}

fn is_own_dependency(line: &str) -> bool {
    let from_workspace = line.contains("workspace = true");
    let testbed = line.starts_with("modax-testbed");
    line.contains('=') && !from_workspace && !testbed
}

#[test]
fn a_dependency_without_a_reason_is_found() {
    let manifest = "[dependencies]\n# Why.\na = \"1\"\nb = \"1\"\n\nc = { version = \"1\" }\nd.workspace = true\n";
    assert_eq!(without_reason(manifest), ["c = { version = \"1\" }"]);
}

#[test]
fn every_member_takes_the_lints_of_the_workspace() {
    let mut offenders = Vec::new();
    for package in members() {
        let manifest = text(package, "manifest_path");
        let content = read(manifest);
        if !content.contains("[lints]\nworkspace = true") {
            offenders.push(format!("{}: no [lints] workspace = true", text(package, "name")));
        }
    }
    if !read("Cargo.toml").contains("unsafe_code = \"forbid\"") {
        offenders.push("Cargo.toml: unsafe_code is not forbidden".to_owned());
    }
    none("lints are the workspace's", offenders);
}

#[test]
fn deny_toml_explains_what_it_ignores() {
    let rules = read("deny.toml");
    let (_, ignored) = rules.split_once("ignore = [").expect("deny.toml has a list, even if empty");
    let (ignored, _) = ignored.split_once("\n]").unwrap_or((ignored, ""));
    let entries = ignored.lines().map(str::trim).filter(|line| line.contains("RUSTSEC"));
    none(
        "an ignored advisory has its reason",
        entries.filter(|line| !line.starts_with('#') && !line.contains("reason = \"")),
    );
}
