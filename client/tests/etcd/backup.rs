//! pintlectl backup, as an operator uses it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use client::{Get, Put};
use serde_json::Value;

use crate::{
    SOON,
    server::{Etcd, Store},
};

fn backup(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pintlectl")).arg("backup").args(args).output().unwrap()
}

fn stdout(args: &[&str]) -> String {
    let output = backup(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The exit code, and what is told on standard error.
fn refusal(args: &[&str]) -> (Option<i32>, String) {
    let output = backup(args);
    assert!(!output.status.success(), "{args:?}: {output:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn covered(dir: &str) -> Option<i64> {
    let output = backup(&["list", dir, "-w", "json"]);
    let list: Value = serde_json::from_slice(&output.stdout).ok()?;
    list["members"][0]["covered"][0]["last_revision"].as_i64()
}

/// A member that has put 1 to 9 under a key, and its backups.
async fn nine_revisions(dir: &Path) {
    let flags = [format!("--backup-dir={}", dir.display()), "--backup-log-interval=20ms".into()];
    let pintle = Etcd::prepare(Store::Pintle, 1).flags(&flags.each_ref().map(String::as_str)).run().await;
    for value in 1..=9 {
        pintle.client().put(Put::new("count", value.to_string())).await.unwrap();
    }
    wait_until_covered(dir.to_str().unwrap(), 10).await;
}

async fn wait_until_covered(dir: &str, revision: i64) {
    let began = Instant::now();
    while covered(dir) != Some(revision) {
        assert!(began.elapsed() < SOON, "{:?}", backup(&["list", dir]));
        // Another process: it can only be asked again.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_backup_is_listed_verified_and_restored_to_a_revision() {
    let backups = tempfile::tempdir().unwrap();
    let dir = backups.path().to_str().unwrap();
    nine_revisions(backups.path()).await;
    let list = stdout(&["list", dir]);
    assert!(list.contains("(m0) of cluster") && list.contains("covered: revisions 1 to 10"), "{list}");
    let verified = stdout(&["verify", dir]);
    assert!(verified.starts_with("read 1 full backups with "), "{verified}");

    let restored = Etcd::prepare(Store::Pintle, 1);
    let (data_dir, url) = (restored.data_dir(0), restored.peer_url(0));
    let (data, cluster) = (data_dir.to_str().unwrap(), format!("m0={url}"));
    let target =
        ["--name=m0", "--data-dir", data, "--initial-cluster", &cluster, "--initial-advertise-peer-urls", &url];
    let said = stdout(&[&["restore", dir, "--to-revision=5"][..], &target].concat());
    assert!(said.contains("at revision 5 of") && said.starts_with(data), "{said}");
    let (code, error) = refusal(&[&["restore", dir][..], &target].concat());
    assert!(code == Some(1) && error.contains("not empty"), "{error}");
    let restored = restored.run().await;
    let answer = restored.client().get(Get::key("count")).await.unwrap();
    let kv = &answer.kvs[0];
    assert_eq!((kv.value.as_ref(), kv.mod_revision, kv.create_revision, kv.version), (&b"4"[..], 5, 2, 4));
    assert_eq!(answer.header.unwrap().revision, 5);
    let next = restored.client().put(Put::new("count", "again")).await.unwrap();
    assert_eq!(next.header.unwrap().revision, 6);
}

#[tokio::test]
async fn what_is_not_covered_or_damaged_is_refused_and_nothing_is_left_behind() {
    let (backups, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = backups.path().to_str().unwrap();
    nine_revisions(backups.path()).await;
    let target = to.path().join("d");
    let restore = |args: &[&str]| {
        let (code, error) = refusal(&[&["restore", dir, "--data-dir", target.to_str().unwrap()], args].concat());
        assert!(!target.exists(), "{args:?}");
        (code, error)
    };
    let (_, error) = restore(&["--to-revision=11"]);
    assert!(error.contains("revision 11 is not covered; what is: revisions 1 to 10 ("), "{error}");
    let (_, error) = restore(&["--to-time=2001-01-01T00:00:00Z"]);
    assert!(error.contains("2001-01-01T00:00:00Z is not covered"), "{error}");
    let (code, error) = restore(&["--to-time=yesterday"]);
    assert!(code == Some(1) && error.contains("is not a time such as"), "{error}");
    assert_eq!(restore(&["--to-revision=0"]).0, Some(1));
    let (_, error) = restore(&["--from-member=abc"]);
    assert!(error.contains("there is no whole full backup"), "{error}");
    let (_, error) = refusal(&["list", to.path().to_str().unwrap()]);
    assert!(error.contains("there are no backups here"), "{error}");
    let (_, error) = refusal(&["verify", "/does/not/exist"]);
    assert!(error.contains("/does/not/exist: No such file"), "{error}");

    let log = find(backups.path(), ".log").into_iter().find(|path| !path.contains("base-")).unwrap();
    let mut bytes = fs::read(&log).unwrap();
    bytes[60] ^= 1;
    fs::write(&log, bytes).unwrap();
    let output = backup(&["verify", dir]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.code() == Some(1) && told.contains(&format!("problem: {log}: damaged at offset 40:")),
        "{told}"
    );
    let (_, error) = restore(&["--to-revision=5"]);
    assert!(error.contains("revision 5 is not covered"), "{error}");
}

#[tokio::test]
async fn a_time_is_gone_back_to() {
    let (backups, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = backups.path().to_str().unwrap();
    let flags = [format!("--backup-dir={dir}"), "--backup-log-interval=20ms".into()];
    let pintle = Etcd::prepare(Store::Pintle, 1).flags(&flags.each_ref().map(String::as_str)).run().await;
    // Times are told in milliseconds: each put has one of its own, between two others.
    let mut times = Vec::new();
    for value in 1..=5 {
        pintle.client().put(Put::new("count", value.to_string())).await.unwrap();
        times.push(next_millisecond());
        next_millisecond();
    }
    wait_until_covered(dir, 6).await;
    drop(pintle);
    for (time, value) in times.iter().take(4).zip(1..) {
        let restored = Etcd::prepare(Store::Pintle, 1);
        let (data_dir, url) = (restored.data_dir(0), restored.peer_url(0));
        let (cluster, time) = (format!("m0={url}"), format!("--to-time={time}"));
        let target = ["--data-dir", data_dir.to_str().unwrap(), "--initial-advertise-peer-urls", &url];
        let member = ["--name=m0", "--initial-cluster", &cluster];
        let said = stdout(&[&["restore", dir, &time][..], &target, &member].concat());
        assert!(said.contains(&format!("at revision {} of", value + 1)), "{said}");
        let answer = restored.run().await.client().get(Get::key("count")).await.unwrap();
        assert_eq!(answer.kvs[0].value, value.to_string());
        assert_eq!(answer.header.unwrap().revision, value + 1);
    }
    // Behind the newest entry nobody knows what there was.
    let newest = format!("--to-time={}", times[4]);
    let target = to.path().join("d");
    let (code, error) = refusal(&["restore", dir, &newest, "--data-dir", target.to_str().unwrap()]);
    assert!(
        code == Some(1) && error.contains("is not covered; what is: revisions 1 to 6") && !target.exists(),
        "{error}"
    );
}

/// Waits for the clock to go on.
fn next_millisecond() -> server::backup::Time {
    let now = server::backup::Time::now();
    loop {
        let next = server::backup::Time::now();
        if next > now {
            return next;
        }
        std::hint::spin_loop();
    }
}

/// Files whose name ends so.
fn find(dir: &Path, end: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(find(&path, end));
        } else if path.to_str().unwrap().ends_with(end) {
            found.push(path.to_str().unwrap().to_string());
        }
    }
    found
}
