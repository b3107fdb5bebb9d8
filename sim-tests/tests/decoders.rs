//! The checks that `cargo fuzz` drives, with plain cargo: over the seeds, over what was ever found, and over bytes near both.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::fs;
use std::path::PathBuf;

use nearring_sim::decoders::{ALL, Check};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A directory of inputs of one target; empty where there is none.
fn inputs(directory: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(directory).join(target);
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn replay(directory: &str, target: &str, check: Check) -> usize {
    let mut accepted = 0;
    for (path, bytes) in inputs(directory, target) {
        // Shown only where the check panics.
        eprintln!("cargo fuzz run {target} {}", path.display());
        accepted += usize::from(check(&bytes));
    }
    accepted
}

#[test]
fn what_the_encoders_write_is_accepted() {
    for (target, check, seeds) in ALL {
        let seeds = seeds();
        let accepted = seeds.iter().filter(|seed| check(seed)).count();
        // Some seeds are made to be refused; a target that accepts few would fuzz little.
        assert!(2 * accepted >= seeds.len() && accepted > 0, "{target}: {accepted} of {}", seeds.len());
    }
}

#[test]
fn what_was_collected_and_what_was_found_before_stays_mended() {
    for (target, check, _) in ALL {
        replay("seeds", target, check);
        replay("regressions", target, check);
    }
}

/// A few bytes changed, inserted, repeated or removed, as disks, bugs and fuzzers do.
fn near(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), 0..4u8, any::<u8>(), 1..9usize);
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut bytes = bytes.clone();
        for (at, kind, value, length) in changes {
            let at = at.index(bytes.len() + 1);
            let end = (at + length).min(bytes.len());
            match kind {
                0 => bytes[at..end].iter_mut().for_each(|byte| *byte ^= value.max(1)),
                1 => bytes.insert(at, value),
                2 => drop(bytes.drain(at..end)),
                _ => {
                    let repeated = bytes[at..end].to_vec();
                    bytes.splice(at..at, repeated);
                }
            }
        }
        bytes
    })
}

#[test]
fn nothing_near_a_seed_breaks_a_promise() {
    for (target, check, seeds) in ALL {
        let strategy = prop::sample::select(seeds()).prop_flat_map(near);
        let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
        let checked = TestRunner::new(config).run(&strategy, |bytes| {
            check(&bytes);
            Ok(())
        });
        if let Err(error) = checked {
            panic!("{target}: {error}");
        }
    }
}

/// Writes the seeds to where `cargo fuzz` begins.
#[test]
#[ignore = "writes files: cargo test -p nearring-sim --test decoders -- --ignored write_seeds"]
fn write_seeds() {
    for (target, _, seeds) in ALL {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        fs::create_dir_all(&directory).unwrap();
        for (number, seed) in seeds().into_iter().enumerate() {
            fs::write(directory.join(format!("encoded-{number:02}")), seed).unwrap();
        }
    }
}
