//! A history that was kept is judged again by itself, and what is wrong with it is named.

mod binaries;

use std::{fs, path::Path};

const KEPT: &str = "tests/histories/register.jsonl";

/// The kept history with one text in the place of another.
fn changed(dir: &Path, from: &str, to: &str) -> String {
    let kept = fs::read_to_string(KEPT).unwrap();
    assert!(kept.contains(from), "{from}");
    written(dir, &kept.replacen(from, to, 1))
}

fn written(dir: &Path, history: &str) -> String {
    let path = dir.join("history.jsonl");
    fs::write(&path, history).unwrap();
    path.to_str().unwrap().to_owned()
}

fn refusal_of(history: &str) -> String {
    binaries::run_refused(&["check", history])
}

#[test]
fn a_kept_history_passes_again_and_gives_its_report() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.html");
    binaries::run(&["check", KEPT, "--report", report.to_str().unwrap()]);
    assert!(fs::read_to_string(report).unwrap().contains("<h1>register under kill <span class='tag ok'>passed"));
}

#[test]
fn a_read_that_was_changed_to_an_older_value_fails() {
    let dir = tempfile::tempdir().unwrap();
    let newest = r#""value":"3","create_revision":2,"mod_revision":4,"version":3"#;
    let stale = r#""value":"1","create_revision":2,"mod_revision":2,"version":1"#;
    let said = refusal_of(&changed(dir.path(), newest, stale));
    assert!(said.contains("FAILED    register: each key is linearizable"), "{said}");
    assert!(said.contains("history.jsonl: not passed"), "{said}");
}

#[test]
fn a_history_that_proves_nothing_fails() {
    let dir = tempfile::tempdir().unwrap();
    let said = refusal_of(&changed(dir.path(), r#""processes killed":1"#, r#""processes killed":0"#));
    assert!(said.contains("the run proves something: without effect: processes killed"), "{said}");
    let said = refusal_of(&changed(dir.path(), r#""seconds":2"#, r#""seconds":60"#));
    assert!(said.contains("5 operations succeeded; 120 are wanted"), "{said}");
}

#[test]
fn a_step_that_had_failed_fails_again() {
    let dir = tempfile::tempdir().unwrap();
    let said = refusal_of(&changed(dir.path(), r#""name":"nemesis","#, r#""name":"nemesis","failed":true,"#));
    assert!(said.contains("FAILED    nemesis: 1 faults"), "{said}");
}

#[test]
fn a_damaged_line_is_named_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = changed(dir.path(), r#""f":"range","key":"register/0/1"}"#, r#""f":"range","key":"register/0"#);
    let said = refusal_of(&path);
    assert!(said.contains(&format!("{path}: line 6: ")), "{said}");

    let unasked =
        changed(dir.path(), r#""process":2,"node":"n2","kind":"ok""#, r#""process":1,"node":"n2","kind":"ok""#);
    let said = refusal_of(&unasked);
    assert!(said.contains(&format!("{path}: line 7: process 1 was told something that it had not asked")), "{said}");

    let earlier = changed(dir.path(), r#""time_ns":203000000"#, r#""time_ns":103000000"#);
    let said = refusal_of(&earlier);
    assert!(said.contains(&format!("{path}: line 7: it is of 103000000 ns")), "{said}");
}

#[test]
fn a_history_that_was_cut_is_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    let kept = fs::read_to_string(KEPT).unwrap();
    let lines: Vec<&str> = kept.lines().collect();
    let said = refusal_of(&written(dir.path(), &lines[..lines.len() - 1].join("\n")));
    assert!(said.contains("line 21, the last, is not the end of a run: the history was cut"), "{said}");
    let said = refusal_of(&written(dir.path(), &lines[1..].join("\n")));
    assert!(said.contains("line 1 does not say what was run"), "{said}");
    let said = refusal_of(&written(dir.path(), ""));
    assert!(said.contains("the history is empty"), "{said}");
}
