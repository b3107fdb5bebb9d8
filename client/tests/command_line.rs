//! The binary as a shell sees it: exit code, stdout, stderr.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Command, Output};

fn nearring(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nearring")).env_remove("NEARRING_ROUTER").args(arguments).output().unwrap()
}

/// A port that nothing listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn refused(arguments: &[&str], wanted: &str) {
    let output = nearring(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    assert!(stderr.contains(wanted), "{arguments:?}: {stderr}");
}

#[test]
fn what_cannot_be_done_is_said_on_stderr_and_by_the_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("a.md"), "text").unwrap();
    std::fs::write(at("a.jsonl"), "").unwrap();
    std::fs::write(at("a.csv"), "").unwrap();
    let router = format!("127.0.0.1:{}", free_port());
    refused(&["--router", &router, "--json", "cluster", "status"], "to do: check that the router");
    refused(&["import", "-c", "c", &at("none.npy")], "none.npy: No such file");
    refused(&["import", "-c", "c", &at("a.csv")], "a.csv: this ending is not known");
    refused(&["import", "-c", "c", &at("a.md"), &at("a.jsonl")], "use two");
    refused(&["search", "-c", "c"], "--vector");
    refused(&["search", "-c", "c", "--vector", "1,x"], "\"x\" is not a number");
    refused(&["delete", "-c", "c"], "required");
    refused(&["get", "-c", "c", "1", "--replica", "x"], "--replica");
}
