//! The bugs of `storage/src/planted.rs` are in no build that did not ask for them.

use std::{fs, process::Command};

const BINARY: &str = env!("CARGO_BIN_EXE_pintle");
/// The variable, and a bug's name.
const TRACES: [&str; 2] = ["PINTLE_PLANTED", "AnswerBeforeFsync"];

fn contains(binary: &[u8], text: &str) -> bool {
    binary.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_build_has_planted_bugs_only_when_asked_for() {
    let binary = fs::read(BINARY).unwrap();
    for trace in TRACES {
        assert_eq!(contains(&binary, trace), cfg!(feature = "planted"), "{trace}");
    }
}

#[cfg(feature = "planted")]
#[test]
fn an_unknown_bug_ends_the_process_and_a_question_mark_lists_all() {
    let run = |bug| Command::new(BINARY).env("PINTLE_PLANTED", bug).arg("--version").output().unwrap();
    assert_eq!(run("NoSuchBug").status.code(), Some(2));
    let listed = String::from_utf8(run("?").stdout).unwrap();
    assert!(listed.lines().count() >= 40, "{listed}");
    assert!(listed.lines().all(|line| line.split_once('\t').is_some_and(|(_, what)| !what.is_empty())), "{listed}");
}

#[cfg(not(feature = "planted"))]
#[test]
fn an_ordinary_build_does_not_know_the_variable() {
    let output = Command::new(BINARY).env("PINTLE_PLANTED", "NoSuchBug").arg("--version").output().unwrap();
    assert!(output.status.success());
}
