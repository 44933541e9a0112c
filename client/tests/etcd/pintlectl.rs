//! pintlectl, as a user runs it.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Output, Stdio},
};

use crate::server::Etcd;

pub fn pintlectl(etcd: &Etcd, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pintlectl"));
    command.args(["--endpoints", &etcd.urls().join(",")]).args(args);
    command
}

pub fn output(etcd: &Etcd, args: &[&str]) -> Output {
    pintlectl(etcd, args).stdin(Stdio::null()).output().unwrap()
}

pub fn stdout(etcd: &Etcd, args: &[&str]) -> String {
    let output = output(etcd, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn commands_print_what_etcdctl_prints() {
    let etcd = Etcd::start(1).await;
    let run = |args: &[&str]| stdout(&etcd, args);
    assert_eq!(run(&["put", "a", "1"]), "OK\n");
    assert_eq!(run(&["put", "a", "2", "--prev-kv"]), "OK\na\n1\n");
    assert_eq!(run(&["put", "b", "3"]), "OK\n");
    assert_eq!(run(&["get", "a"]), "a\n2\n");
    assert_eq!(run(&["get", "", "--prefix", "--keys-only"]), "a\n\nb\n\n");
    assert_eq!(run(&["get", "a", "z", "--sort-by=MODIFY", "--order=DESCEND", "--limit=1"]), "b\n3\n");
    assert!(run(&["get", "a", "--from-key", "--count-only", "-w", "fields"]).ends_with("\"Count\" : 2\n"));
    assert_eq!(run(&["get", "a", "--rev", "2", "--print-value-only"]), "1\n");
    let json: serde_json::Value = serde_json::from_str(&run(&["get", "a", "-w", "json"])).unwrap();
    assert_eq!(json["kvs"][0]["value"], "Mg==");
    assert_eq!(json["count"], 1);

    let granted = run(&["lease", "grant", "100"]);
    let id = granted.split_whitespace().nth(1).unwrap();
    assert_eq!(granted, format!("lease {id} granted with TTL(100s)\n"));
    run(&["put", "leased", "v", "--lease", id]);
    let left = run(&["lease", "timetolive", id, "--keys"]);
    assert!(left.ends_with(", attached keys([leased])\n"), "{left}");
    assert_eq!(run(&["lease", "list"]), format!("found 1 leases\n{id}\n"));
    let kept = run(&["lease", "keep-alive", id, "--once"]);
    assert_eq!(kept, format!("lease {id} keepalived with TTL(100)\n"));
    assert_eq!(run(&["lease", "revoke", id]), format!("lease {id} revoked\n"));
    assert_eq!(run(&["lease", "timetolive", id]), format!("lease {id} already expired\n"));

    assert_eq!(run(&["del", "a", "--prev-kv"]), "1\na\n2\n");
    assert_eq!(run(&["compaction", "3"]), "compacted revision 3\n");
    assert_eq!(run(&["alarm", "list"]), "");
    assert!(run(&["member", "list"]).contains(", started, m0, "));
    assert!(run(&["endpoint", "health", "--cluster"]).contains(" is healthy: "));
    assert_eq!(run(&["endpoint", "status"]).split(", ").nth(4), Some("true"), "one member leads itself");
    assert!(run(&["endpoint", "hashkv", "-w", "json"]).contains(r#""hash":"#));
    assert!(run(&["defrag"]).starts_with("Finished defragmenting"));
    assert!(run(&["version"]).starts_with("pintlectl version: "));

    let refused = output(&etcd, &["get", "a", "--rev", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    let error = "Error: etcdserver: mvcc: required revision has been compacted\n";
    assert_eq!(String::from_utf8(refused.stderr).unwrap(), error);
    assert_eq!(output(&etcd, &["get"]).status.code(), Some(128));
}

#[tokio::test]
async fn values_come_from_standard_input_and_changes_are_followed() {
    let etcd = Etcd::start(1).await;
    let mut watch = pintlectl(&etcd, &["watch", "k", "--prefix", "--rev=1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut put = pintlectl(&etcd, &["put", "k"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(b"from stdin").unwrap();
    assert!(put.wait().unwrap().success());
    stdout(&etcd, &["del", "k"]);
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let seen: Vec<String> = lines.take(6).map(Result::unwrap).collect();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert_eq!(seen, ["PUT", "k", "from stdin", "DELETE", "k", ""]);
}
