//! Whole clusters, simulated, each in a process of its own. `cargo run --release -p nearring-sim --bin fuzz` runs many more
//! seeds than these.
#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::process::{Command, Output};

fn fuzz(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fuzz"));
    command.args(arguments.split(' ')).env("RUST_LOG", "off").output().unwrap()
}

/// Runs it, wants no violation, and returns what is reported.
fn fine(arguments: &str) -> String {
    let output = fuzz(arguments);
    let (report, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{report}\n{errors}\nreplay: cargo run -p nearring-sim --bin fuzz -- {arguments}");
    report
}

/// The number before a word of the report.
fn number(report: &str, before: &str) -> u64 {
    let (text, _) = report.split_once(before).unwrap();
    text.rsplit([' ', ',']).find_map(|word| word.parse().ok()).unwrap()
}

/// How often the report says that something was reached.
fn reached(report: &str, what: &str) -> u64 {
    report.split_once(what).and_then(|(_, rest)| rest.trim_start().split([',', '\n']).next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn without_faults_every_operation_is_answered_and_segments_are_built() {
    let report = fine("--seed=1 --faults-for=0 --operations=30");
    assert!(number(&report, " operations") >= 90, "{report}");
    assert_eq!(number(&report, " of unknown outcome"), 0, "{report}");
    assert!(reached(&report, "segments installed") > 0, "{report}");
}

/// Seeds that follow from what the product's and the simulator's sources are: fresh ones with every change to them, and the
/// same ones until the next, so that a failure comes with the change that it belongs to. The campaign runs many more.
#[test]
fn acknowledged_writes_survive_what_goes_wrong() {
    let fresh = u64::from_str_radix(&env!("NEARRING_SIM_CODE")[..8], 16).unwrap();
    let report = fine(&format!("--from={} --seeds=24 --jobs=2", 1_000_000 + fresh));
    for run in report.split("seed ").skip(1) {
        let (all, unknown) = (number(run, " operations"), number(run, " of unknown outcome"));
        assert!(unknown * 2 < all, "too little was answered to judge: {run}");
    }
}

/// What was found by seeds is listed with its cause in `seeds/failed.tsv`; each line must pass from now on.
#[test]
fn seeds_that_once_failed() {
    for line in include_str!("../seeds/failed.tsv").lines().filter(|line| !line.starts_with('#')) {
        fine(line.split('\t').next().unwrap());
    }
}

#[test]
fn a_seed_repeats_itself_and_another_is_another() {
    let [first, second, other] = [4, 4, 5].map(|seed| fine(&format!("--seed={seed} --faults-for=20 --operations=30")));
    assert_eq!(first, second);
    let trace = |report: &str| report.split_once("trace ").unwrap().1.lines().next().unwrap().to_owned();
    assert!(trace(&first) != trace(&other));
}

/// The planted bug: nodes acknowledge what is not on disk. A judge that misses it would miss real ones.
#[test]
fn disks_that_lie_about_syncs_are_caught() {
    let output = fuzz("--from=1 --seeds=12 --operations=40 --lie-about-syncs");
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && report.contains("replay: "), "twelve lying clusters went by: {report}");
}
