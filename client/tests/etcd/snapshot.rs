//! pintlectl snapshot, beside etcdutl on the same file.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use client::{Client, Delete, Error, EtcdError, Get, LeaseId, Put};
use tempfile::TempDir;

use crate::{
    pintlectl::{output, stdout},
    server::{Etcd, Store, on_both},
};

on_both! {
    a_saved_file_is_what_etcdutl_says_and_both_restore_the_same,
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// pintlectl without a server.
fn local(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pintlectl")).arg("snapshot").args(args).output().unwrap()
}

fn etcdutl(args: &[&str]) -> Output {
    let path = Store::Etcd.program().with_file_name("etcdutl");
    assert!(path.exists(), "{} is missing: script/setup --test brings it", path.display());
    Command::new(path).arg("snapshot").args(args).output().unwrap()
}

fn succeeded(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// The exit code, and what is told on standard error.
fn refused(output: Output) -> (Option<i32>, String) {
    assert!(!output.status.success(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Keys, deletes, a lease and a compaction; returns the store's revision.
async fn fill(client: &Client) -> i64 {
    for value in 0..30 {
        client.put(Put::new(format!("key/{:02}", value % 10), vec![b'v'; 1000 + value])).await.unwrap();
    }
    client.lease_grant(5000, LeaseId(7)).await.unwrap();
    client.put(Put::new("leased", "v").lease(LeaseId(7))).await.unwrap();
    let revision = client.delete(Delete::key("key/03")).await.unwrap().header.unwrap().revision;
    client.compact(revision - 12, true).await.unwrap();
    client.put(Put::new("last", "")).await.unwrap().header.unwrap().revision
}

/// The flags that make the data directory of the one member.
fn target(of: &Etcd) -> Vec<String> {
    let url = of.peer_url(0);
    let dir = of.data_dir(0);
    let cluster = format!("--initial-cluster=m0={url}");
    let advertised = format!("--initial-advertise-peer-urls={url}");
    vec!["--name=m0".into(), format!("--data-dir={}", dir.display()), cluster, advertised]
}

fn with<'a>(first: &[&'a str], rest: &'a [String]) -> Vec<&'a str> {
    first.iter().copied().chain(rest.iter().map(String::as_str)).collect()
}

async fn a_saved_file_is_what_etcdutl_says_and_both_restore_the_same(store: Store) {
    let (dir, saved_from) = (TempDir::new().unwrap(), Etcd::of(store, 1).await);
    let client = saved_from.client();
    let revision = fill(&client).await;
    let file = dir.path().join("saved.db");
    let said = stdout(&saved_from, &["snapshot", "save", text(&file)]);
    assert_eq!(said, format!("Snapshot saved at {}\n", file.display()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(dir.path()), ["saved.db"], "nothing else is left behind");
    for format in ["simple", "json", "fields", "table"] {
        let args = ["status", text(&file), "-w", format];
        let (ours, theirs) = (succeeded(local(&args)), succeeded(etcdutl(&args)));
        assert_eq!(String::from_utf8(ours).unwrap(), String::from_utf8(theirs).unwrap());
    }

    let flags: [&[&str]; 2] = [&[], &["--bump-revision=1000", "--mark-compacted"]];
    for flags in flags {
        let (ours, theirs) = (Etcd::prepare(Store::Pintle, 1), Etcd::prepare(Store::Etcd, 1));
        let first = [&["restore", text(&file)], flags].concat();
        succeeded(local(&with(&first, &target(&ours))));
        let (code, error) = refused(local(&with(&first, &target(&ours))));
        assert!(code == Some(1) && error.contains("not empty"), "{error}");
        succeeded(etcdutl(&with(&first, &target(&theirs))));
        let (ours, theirs) = (ours.run().await, theirs.run().await);
        let raised = if flags.is_empty() { 0 } else { 1000 };
        for restored in [&ours, &theirs] {
            let answer = restored.client().get(Get::all()).await.unwrap();
            assert_eq!(answer.header.unwrap().revision, revision + raised);
            assert_eq!(answer.kvs, client.get(Get::all()).await.unwrap().kvs);
            assert_eq!(restored.client().lease_time_to_live(LeaseId(7), true).await.unwrap().keys, ["leased"]);
            if raised > 0 {
                let old = restored.client().get(Get::all().revision(revision)).await;
                assert_eq!(old.map(|_| ()), Err(Error::Etcd(EtcdError::Compacted)));
            }
        }
        let hash = async |of: &Etcd| of.client().hash_kv(&of.urls()[0], 0).await.unwrap().hash;
        assert_eq!(hash(&ours).await, hash(&theirs).await);
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_no_whole_snapshot_is_refused_and_nothing_is_left_behind() {
    let (dir, pintle) = (TempDir::new().unwrap(), Etcd::of(Store::Pintle, 1).await);
    fill(&pintle.client()).await;
    let file = dir.path().join("saved.db");
    stdout(&pintle, &["snapshot", "save", text(&file)]);
    let whole = fs::read(&file).unwrap();
    let damaged = dir.path().join("damaged.db");
    let to = dir.path().join("restored");
    let restore = |file: &Path, flags: &[&str]| {
        let flags = [&["restore", text(file), "--data-dir", text(&to)], flags].concat();
        let (code, error) = refused(local(&flags));
        assert!(!to.exists(), "{flags:?}");
        assert_eq!(code, Some(if error.contains("--mark-compacted") { 128 } else { 1 }), "{error}");
        error
    };
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (bytes, reason) in [
        (&flipped[..], "expected sha256"),
        (&whole[..whole.len() - 32], "snapshot missing hash but --skip-hash-check=false"),
        (&whole[..whole.len() / 3], "the file ends here"),
        (&b""[..], "damaged.db"),
    ] {
        fs::write(&damaged, bytes).unwrap();
        let error = restore(&damaged, &[]);
        assert!(error.contains(reason) && error.contains("damaged.db"), "{error}");
    }
    fs::write(&damaged, &whole[..whole.len() / 3]).unwrap();
    let error = restore(&damaged, &["--skip-hash-check"]);
    assert!(error.contains("damaged.db"), "{error}");
    let (_, error) = refused(local(&["status", text(&damaged)]));
    assert!(error.contains("damaged.db"), "{error}");
    let absent: PathBuf = dir.path().join("absent");
    for args in [&["status", text(&absent)][..], &["restore", text(&absent), "--data-dir", text(&to)]] {
        let (code, error) = refused(local(args));
        assert!(code == Some(1) && error.contains("absent") && error.contains("o such file"), "{error}");
    }
    restore(&file, &["--mark-compacted"]);
    restore(&file, &["--bump-revision=5"]);

    // A copy of the data, as from a stopped etcd, has no hash; its pages are checked all the same.
    fs::write(&damaged, &whole[..whole.len() - 32]).unwrap();
    succeeded(local(&["restore", text(&damaged), "--skip-hash-check", "--data-dir", text(&to)]));
    assert!(to.join("member").is_dir());
}

#[tokio::test]
async fn a_file_that_cannot_be_saved_is_not_there() {
    let (dir, pintle) = (TempDir::new().unwrap(), Etcd::of(Store::Pintle, 2).await);
    let file = dir.path().join("saved.db");
    let (_, error) = refused(output(&pintle, &["snapshot", "save", text(&file)]));
    assert!(error.contains("snapshot must be requested to one selected node, not multiple"), "{error}");
    let away = dir.path().join("away/saved.db");
    let one = Etcd::of(Store::Pintle, 1).await;
    let (_, error) = refused(output(&one, &["snapshot", "save", text(&away)]));
    assert!(error.contains("could not open") && error.contains("away/saved.db"), "{error}");
    let (code, _) = refused(output(&one, &["snapshot", "save"]));
    assert_eq!(code, Some(128));
    let gone = one.urls();
    drop(one);
    let asked = Command::new(env!("CARGO_BIN_EXE_pintlectl"))
        .args(["--endpoints", &gone[0], "--command-timeout=1s", "snapshot", "save", text(&file)])
        .output();
    refused(asked.unwrap());
    assert_eq!(names(dir.path()), [""; 0]);
}
