//! What is written for people: READMEs that compile, the map that is complete, the catalogue of faults, no leftovers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::{CRATES, EXAMPLES, files, is_rust, named, none, read, root};

/// What may stand at the top of the repository.
const TOP: [&str; 24] = [
    ".ci",
    ".git",
    ".github",
    ".gitignore",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "TESTING.md",
    "clippy.toml",
    "deny.toml",
    "examples",
    "fuzz",
    "modax-db-router",
    "modax-health",
    "modax-mqtt-failover",
    "modax-txn",
    "rustfmt.toml",
    "target",
];

fn is_text(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extensions = ["rs", "md", "toml", "sql", "sh", "yml", "yaml", "json", "cfg", "conf", "html", "txt"];
    path.extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension))
        || ["Makefile", "run", "steps"].contains(&&*name)
}

#[test]
fn the_top_of_the_repository_holds_what_the_architecture_says() {
    let entries = std::fs::read_dir(root()).expect("the root can be read").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    none("no other file or folder at the top level", names.filter(|name| !TOP.contains(&&**name)));
    let folders = std::fs::read_dir(root().join("examples")).expect("examples can be read").flatten();
    let folders = folders.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let known = |name: &String| EXAMPLES.contains(&&**name) || name == "deploy";
    none("no other folder in examples", folders.filter(|name| !known(name)));
}

#[test]
fn readmes_are_compiled_as_tests() {
    let mut offenders = Vec::new();
    for name in CRATES {
        let library = read(format!("{name}/src/lib.rs"));
        if !library.contains("include_str!(\"../README.md\")") {
            offenders.push(format!("{name}/src/lib.rs does not include its README.md as a doctest"));
        }
        let readme = std::fs::read_to_string(root().join(name).join("README.md")).unwrap_or_default();
        if !readme.contains("```rust") {
            offenders.push(format!("{name}/README.md has no Rust example"));
        }
        if readme.contains("```rust,ignore") {
            offenders.push(format!("{name}/README.md has an example that nobody compiles"));
        }
    }
    none("the examples in a crate's README.md are compiled", offenders);
}

/// The first Rust example of a text, without the lines that rustdoc hides.
fn example(text: &str, after: &str) -> Vec<String> {
    let from = text.find(after).map(|at| &text[at..]).unwrap_or_default();
    let code = from.lines().skip_while(|line| !line.starts_with("```rust")).skip(1);
    let code = code.take_while(|line| !line.starts_with("```"));
    code.filter(|line| !line.starts_with("# ")).map(str::to_owned).collect()
}

#[test]
fn the_examples_at_the_front_are_those_that_are_compiled() {
    let front = read("README.md");
    let differs = |name: &&&str| {
        let compiled = example(&read(format!("{name}/README.md")), "");
        compiled.is_empty() || compiled != example(&front, &format!("### {name}"))
    };
    none("README.md shows each crate's example letter for letter", CRATES.iter().filter(differs));
}

#[test]
fn the_architecture_names_every_file_on_the_first_floor() {
    let map = read("ARCHITECTURE.md");
    let mut offenders = Vec::new();
    let folders = CRATES.iter().map(|name| format!("{name}/src"));
    let folders = folders.chain(EXAMPLES.iter().map(|name| format!("examples/{name}/src")));
    for folder in folders {
        for path in files(&folder) {
            let is_first_floor = path.parent() == Some(&root().join(&folder));
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let module = file.trim_end_matches(".rs");
            let is_named =
                [format!("`{file}`"), format!("`{module}`"), format!("/{file}`")].iter().any(|it| map.contains(it));
            if is_first_floor && is_rust(&path) && !module.ends_with("tests") && !is_named {
                offenders.push(named(&path));
            }
        }
    }
    none("ARCHITECTURE.md has a word on every file directly in a src folder", offenders);
}

/// The words of the catalogue for the four crates, in the order of [`CRATES`].
const CONCERNED: [&str; 4] = ["mqtt", "db", "health", "txn"];

/// A row of the catalogue in TESTING.md: the crates that a fault concerns, and those that are marked as having a test.
struct Fault {
    concerns: BTreeSet<String>,
    marked: BTreeSet<String>,
}

fn catalogue() -> BTreeMap<String, Fault> {
    let words = |text: &str| -> BTreeSet<String> {
        let text = if text == "all" { CONCERNED.join(", ") } else { text.to_owned() };
        text.split(", ").filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let text = read("TESTING.md");
    let row = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [number, _, concerns, mark, ..] = cells[..] else { return None };
        let concerns = words(concerns);
        // The mark alone stands for all of them.
        let marked = match mark.strip_prefix('●').map(str::trim) {
            None => BTreeSet::new(),
            Some("") => concerns.clone(),
            Some(some) => words(some),
        };
        Some((format!("f{number}"), Fault { concerns, marked }))
    };
    text.lines().filter_map(|line| line.strip_prefix("| F")).filter_map(row).collect()
}

/// Ids with which names of tests begin, and where: in one of the crates, or elsewhere. The testbed's own tests break fakes,
/// not the code under test.
fn tested() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let folders = CRATES.iter().zip(CONCERNED).map(|(name, word)| ((*name).to_owned(), word));
    let folders = folders.chain(["control-layer", "ai-layer", "modax"].map(|name| (format!("examples/{name}"), name)));
    for (folder, word) in folders {
        for path in files(folder).into_iter().filter(|path| is_rust(path)) {
            for name in read(&path)
                .lines()
                .filter_map(|line| line.trim_start().split_once("fn f"))
                .map(|(_, name)| name.to_owned())
            {
                let digits: String = name.chars().take_while(char::is_ascii_digit).collect();
                if digits.len() == 2 && name[2..].starts_with('_') {
                    found.entry(format!("f{digits}")).or_default().insert(word.to_owned());
                }
            }
        }
    }
    found
}

#[test]
fn the_fault_catalogue_tells_the_truth_about_its_tests() {
    let (catalogue, tested) = (catalogue(), tested());
    assert!(catalogue.len() >= 62, "TESTING.md has the catalogue F01 to F62");
    let mut offenders = Vec::new();
    for (id, Fault { concerns, marked }) in &catalogue {
        let unknown = concerns.iter().filter(|word| !CONCERNED.contains(&&***word));
        offenders.extend(unknown.map(|word| format!("{id} concerns {word}, which is none of {CONCERNED:?}")));
        for word in CONCERNED {
            let is_tested = tested.get(id).is_some_and(|places| places.contains(word));
            match (concerns.contains(word), marked.contains(word), is_tested) {
                (_, true, false) => {
                    offenders.push(format!("{id} is marked ● for {word}, where no test begins with {id}_"));
                }
                (_, false, true) => offenders.push(format!("{id} has a test in {word} and no mark ● for it")),
                (false, true, true) => offenders.push(format!("{id} has a test in {word}, which it does not concern")),
                (true, true, true) | (_, false, false) => {}
            }
        }
    }
    offenders.extend(
        tested.keys().filter(|id| !catalogue.contains_key(*id)).map(|id| format!("{id} is not in the catalogue")),
    );
    none("TESTING.md marks exactly the faults that have a test, crate by crate", offenders);
}

#[test]
fn names_of_tests_are_sentences() {
    let mut offenders = Vec::new();
    for path in files("").into_iter().filter(|path| is_rust(path)) {
        let text = read(&path);
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, name)) = line.split_once("fn ").filter(|_| is_test) {
                is_test = false;
                let name = name.split('(').next().unwrap_or_default();
                if name.matches('_').count() < 2 || name.starts_with("test_") {
                    offenders.push(format!("{}: {name}", named(&path)));
                }
            }
        }
    }
    none("a test's name is a sentence that claims something", offenders);
}

#[test]
fn nothing_is_left_over() {
    // Spelt in two halves, so that this file does not offend.
    let leftovers = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
    ];
    let machines = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/tmp/br", "ief"),
        concat!("/ho", "me/"),
        concat!("/var/tmp", "/t/"),
    ];
    let mut offenders = Vec::new();
    for path in files("").into_iter().filter(|path| is_text(path)) {
        for (number, line) in read(&path).lines().enumerate() {
            let found = leftovers.iter().chain(&machines).find(|leftover| line.contains(**leftover));
            if let Some(leftover) = found {
                offenders.push(format!("{}:{}: {leftover}", named(&path), number + 1));
            }
        }
    }
    none("no reminder and no path of somebody's machine", offenders);
}

#[test]
fn every_changelog_knows_the_version() {
    let version = env!("CARGO_PKG_VERSION");
    let without = CRATES.iter().filter(|name| {
        let text = std::fs::read_to_string(root().join(name).join("CHANGELOG.md")).unwrap_or_default();
        !text.contains(version)
    });
    none(&format!("CHANGELOG.md has a part on {version}"), without);
}

#[test]
fn links_between_papers_lead_somewhere() {
    let mut offenders = Vec::new();
    for path in files("").into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let text = read(&path);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            let is_local =
                !target.is_empty() && !target.contains("://") && !target.contains("::") && !target.contains(' ');
            let looks_like_a_file = target.contains('.') || target.contains('/');
            if is_local && looks_like_a_file && !path.parent().is_some_and(|folder| folder.join(target).exists()) {
                offenders.push(format!("{}: {link}", named(&path)));
            }
        }
    }
    none("a link to a file of the repository leads to one", offenders);
}
