// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of the command `accf` as a program. They need no listener with a filter.

use std::process::{Command, Output};

/// Runs the command.
fn accf(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_accf"))
        .args(arguments)
        .output()
        .expect("cannot run accf")
}

#[test]
fn wrong_usage_has_status_2() {
    for arguments in [&["stats", "nowhere"][..], &["set"], &[]] {
        let output = accf(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn help_lists_the_exit_statuses() {
    let output = accf(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Exit status"), "{text}");
}

#[test]
fn a_missing_listener_is_reported_on_stderr() {
    // Port 1 has no listener, or one without a filter.
    let output = accf(&["stats", ":1"]);
    // 1: the kernel does not list sockets; 3: no such listener; 4: no module.
    assert!(
        matches!(output.status.code(), Some(1 | 3 | 4)),
        "{output:?}"
    );
    assert!(output.stderr.starts_with(b"accf: "), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
}
