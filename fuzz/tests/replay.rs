//! Replays each corpus, and seeded variations of it, without any engine.

use std::fs;
use std::path::Path;

use modax_fuzz::{TARGETS, Target};

fn corpus(target: Target) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut inputs: Vec<_> =
        paths.map(|path| (path.display().to_string(), fs::read(&path).expect("an input can be read"))).collect();
    inputs.sort();
    inputs
}

/// SplitMix64.
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((mixed ^ mixed >> 31) & 0xffff).expect("16 bits fit")
}

/// Changes, inserts, removes or doubles a few bytes.
fn vary(input: &[u8], state: &mut u64) -> Vec<u8> {
    const TELLING: &[u8] = b"/:@%[]#+-\0\n\"\\ .0fF9$\xff\xc3";
    let mut varied = input.to_vec();
    for _ in 0..=random(state) % 3 {
        let at = random(state) % (varied.len() + 1);
        let byte = TELLING[random(state) % TELLING.len()];
        match random(state) % 4 {
            0 => varied.insert(at, byte),
            1 if at < varied.len() => drop(varied.remove(at)),
            2 if at < varied.len() => varied[at] = byte,
            _ => varied.extend_from_slice(&input[at.min(input.len())..]),
        }
    }
    varied
}

#[test]
fn every_corpus_passes_its_target() {
    for target in TARGETS {
        let inputs = corpus(target);
        assert!(inputs.len() >= 3, "{}: a corpus of {} says little", target.name, inputs.len());
        for (name, input) in inputs {
            println!("{name}");
            (target.check)(&input);
        }
    }
}

#[test]
fn variations_of_every_corpus_pass_its_target() {
    for target in TARGETS {
        for (name, input) in corpus(target) {
            for seed in 0..target.variations {
                let varied = vary(&input, &mut seed.wrapping_mul(0xd134_2543_de82_ef95));
                let checked = std::panic::catch_unwind(|| (target.check)(&varied));
                assert!(checked.is_ok(), "{} fails on {varied:?} ({name}, seed {seed})", target.name);
            }
        }
    }
}

#[test]
fn every_folder_of_the_corpus_belongs_to_a_target() {
    let folders = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).expect("a corpus").flatten();
    let names = folders.map(|folder| folder.file_name().to_string_lossy().into_owned());
    let strangers: Vec<String> = names.filter(|name| modax_fuzz::target(name).is_none()).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}
