//! What pintlectl has beyond etcdctl, and how it fails, as a user sees it.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use crate::{
    pintlectl::{output, pintlectl, stdout},
    server::{Etcd, Store, on_both},
};

on_both!(
    history_tells_all_events_that_are_left,
    undelete_puts_back_what_was_deleted_and_nothing_else,
    diff_tells_what_became_of_keys,
    top_counts_keys_and_writes,
    a_lock_is_held_while_a_command_runs,
    several_watches_are_told_on_standard_input,
);

fn json(etcd: &Etcd, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&stdout(etcd, &[args, &["-w", "json"]].concat())).unwrap()
}

fn refusal(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn history_tells_all_events_that_are_left(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let run = |args: &[&str]| stdout(&etcd, args);
    run(&["put", "k", r#"{"a":1,"b":2}"#]);
    run(&["put", "k", r#"{"a":1,"b":3}"#]);
    run(&["del", "k"]);
    run(&["put", "other", "x"]);
    run(&["put", "k", "text"]);
    let shown = run(&["history", "k"]);
    let expected = "\
revision 2: created, version 1, 13 bytes
    {
      \"a\": 1,
      \"b\": 2
    }
revision 3: put, version 2, 13 bytes
    {
      \"a\": 1,
  -   \"b\": 2
  +   \"b\": 3
    }
revision 4: deleted
revision 6: created, version 1, 4 bytes
    text
";
    assert_eq!(shown, expected);
    assert_eq!(run(&["history", "k", "--limit", "1"]).lines().next(), Some("(3 older ones are left out)"));

    // The version at the compaction is still there; what was before is not, and that is said.
    run(&["compaction", "3", "--physical"]);
    let left = json(&etcd, &["history", "k"]);
    assert_eq!(left["compacted"], 3);
    let revisions: Vec<i64> =
        left["events"].as_array().unwrap().iter().map(|event| event["revision"].as_i64().unwrap()).collect();
    assert_eq!(revisions, [3, 4, 6]);
    assert_eq!(left["events"][0]["object"]["b"], 3);
    assert!(run(&["history", "k"]).starts_with("(compacted at revision 3: what was before it is gone)\n"));
    assert_eq!(
        run(&["history", "none"]).lines().last(),
        Some("\"none\": not there, and nothing happened to it since 3")
    );
}

async fn undelete_puts_back_what_was_deleted_and_nothing_else(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let run = |args: &[&str]| stdout(&etcd, args);
    run(&["put", "k", "old"]);
    run(&["put", "k", "newest"]);
    assert_eq!(
        refusal(&output(&etcd, &["undelete", "k"])),
        (Some(1), "Error: \"k\" is there, put at revision 3; nothing was changed\n".to_string())
    );
    run(&["del", "k"]);
    assert!(run(&["undelete", "k", "--dry-run"]).contains("would be put back"));
    assert_eq!(run(&["get", "k"]), "");
    assert_eq!(run(&["undelete", "k"]), "\"k\" is back: the 6 bytes of revision 3, deleted at 4, put at 5\n");
    assert_eq!(run(&["get", "k"]), "k\nnewest\n");

    run(&["del", "k"]);
    run(&["compaction", "6"]);
    let (code, error) = refusal(&output(&etcd, &["undelete", "k"]));
    assert_eq!(code, Some(1));
    assert!(error.contains("compacted"), "{error}");
    assert!(refusal(&output(&etcd, &["undelete", "none"])).1.contains("was not there since revision 6"));
    assert_eq!(run(&["get", "k"]), "");
}

async fn diff_tells_what_became_of_keys(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let run = |args: &[&str]| stdout(&etcd, args);
    for (key, value) in [("p/same", "1"), ("p/changed", "1\n2\n"), ("p/gone", "1"), ("q", "1")] {
        run(&["put", key, value]);
    }
    run(&["put", "p/changed", "1\n3\n"]);
    run(&["del", "p/gone"]);
    run(&["put", "p/new", "1"]);
    run(&["del", "q"]);
    let expected = "\
~ p/changed (revision 6, version 2)
- p/gone (revision 4, version 1)
+ p/new (revision 8, version 1)
revision 5 to 9: 1 added, 1 changed, 1 deleted, 1 as they were
";
    assert_eq!(run(&["diff", "5", "--prefix", "p/"]), expected);
    assert!(run(&["diff", "5", "6", "--values"]).contains("    1\n  - 2\n  + 3\n"));
    let found = json(&etcd, &["diff", "5", "9"]);
    assert_eq!(found["counts"]["deleted"], 2);
    assert_eq!(
        (&found["changed"][0]["mod_revision"], &found["changed"][0]["mod_revision_before"]),
        (&6.into(), &3.into())
    );
    assert_eq!(run(&["diff", "9", "9"]), "revision 9 to 9: 0 added, 0 changed, 0 deleted, 3 as they were\n");
    assert_eq!(output(&etcd, &["diff", "9", "5"]).status.code(), Some(128));
    run(&["compaction", "7"]);
    let (code, error) = refusal(&output(&etcd, &["diff", "5"]));
    assert!(code == Some(1) && error.contains("compacted: revision 5"), "{error}");
}

async fn top_counts_keys_and_writes(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let client = etcd.client();
    for index in 0..30 {
        client.put(client::Put::new(format!("/registry/pods/{index}"), "12345")).await.unwrap();
    }
    client.put(client::Put::new("/registry/leases/a", "1")).await.unwrap();
    client.put(client::Put::new("plain", "1")).await.unwrap();
    let found = json(&etcd, &["top", "--once", "--sizes", "--interval", "100ms"]);
    let row = |prefix: &str| {
        let rows = found["prefixes"].as_array().unwrap();
        rows.iter().find(|row| row["prefix"] == prefix).unwrap_or_else(|| panic!("no {prefix} in {found}")).clone()
    };
    assert_eq!(row("/registry/pods/")["keys"], 30);
    let bytes: usize = (0..30).map(|index: usize| format!("/registry/pods/{index}12345").len()).sum();
    assert_eq!(row("/registry/pods/")["bytes"], bytes);
    assert_eq!(row("")["keys"], 1);

    // What is written while it looks.
    let top = pintlectl(&etcd, &["top", "--depth=1", "--interval=1s"]).stdout(Stdio::piped()).spawn().unwrap();
    let writer = tokio::spawn(async move {
        loop {
            client.put(client::Put::new("/registry/pods/0", "12345")).await.unwrap();
        }
    });
    let shown = tokio::task::spawn_blocking(move || top.wait_with_output().unwrap()).await.unwrap();
    writer.abort();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let line = shown.lines().find(|line| line.ends_with("/registry/")).unwrap_or_else(|| panic!("{shown}"));
    let columns: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(columns[0], "31");
    assert!(columns[1].parse::<f64>().unwrap() > 0.0, "{shown}");
    assert_eq!(output(&etcd, &["top", "--depth=0"]).status.code(), Some(128));
}

async fn a_lock_is_held_while_a_command_runs(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let inner =
        format!("{} --endpoints {} get l/ --prefix --keys-only", env!("CARGO_BIN_EXE_pintlectl"), etcd.urls()[0]);
    let script = format!("test \"$({inner} | head -1)\" = \"$ETCD_LOCK_KEY\" && echo held at $ETCD_LOCK_REV");
    assert_eq!(stdout(&etcd, &["lock", "l", "--", "sh", "-c", &script]), "held at 2\n");
    assert_eq!(output(&etcd, &["lock", "l", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(stdout(&etcd, &["get", "l", "--prefix"]), "", "it is given back");
    assert_eq!(stdout(&etcd, &["lease", "list"]), "found 0 leases\n");
}

async fn several_watches_are_told_on_standard_input(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    stdout(&etcd, &["put", "a", "1"]);
    stdout(&etcd, &["put", "b", "2"]);
    let mut watch = pintlectl(&etcd, &["watch", "-i"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = watch.stdin.take().unwrap();
    input.write_all(b"nonsense\nwatch a --rev=1\nwatch b --rev 1 -- echo seen\n").unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()));
    let mut seen: Vec<String> = lines.by_ref().take(7).map(Result::unwrap).collect();
    drop(input);
    let ended = watch.wait_with_output().unwrap();
    seen.sort();
    assert_eq!(seen, ["1", "2", "PUT", "PUT", "a", "b", "seen"]);
    let (code, complaints) = refusal(&ended);
    assert_eq!(code, Some(3));
    let expected = "Invalid command nonsense (only support watch)\nError: error reading watch request line: EOF\n";
    assert_eq!(complaints, expected);
}

fn alone(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pintlectl"));
    command.args(args).envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn who_finds_no_server_is_told_where_it_looked_and_what_to_try() {
    let output = alone(&["get", "a", "--command-timeout=300ms"], &[("ETCDCTL_ENDPOINTS", "127.0.0.1:1")]);
    let (code, error) = refusal(&output);
    assert_eq!(code, Some(1));
    assert!(error.starts_with("Error: cannot connect") && error.contains("127.0.0.1:1"), "{error}");
    assert!(error.contains("refused") && error.contains("--endpoints or ETCDCTL_ENDPOINTS"), "{error}");
    for question in [&["endpoint", "health"][..], &["endpoint", "status"], &["endpoint", "hashkv"], &["defrag"]] {
        let output = alone(&[question, &["--command-timeout=300ms"]].concat(), &[("ETCDCTL_ENDPOINTS", "127.0.0.1:1")]);
        let (code, error) = refusal(&output);
        assert_eq!(code, Some(1), "{question:?}");
        assert!(error.contains("\nTry: is a server running there? --endpoints"), "{question:?}: {error}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_named_so() {
    let etcd = Etcd::start(1).await;
    let endpoint = etcd.urls()[0].replace("http://", "https://");
    let arguments = ["get", "a", "--command-timeout=1s", "--insecure-skip-tls-verify", "--endpoints", &endpoint];
    let (code, error) = refusal(&alone(&arguments, &[]));
    assert_eq!(code, Some(1));
    assert!(error.contains("does the server speak TLS?"), "{error}");
}

#[test]
fn flags_and_variables_are_taken_as_etcdctl_takes_them() {
    let refused = |args: &[&str], variables: &[(&str, &str)]| refusal(&alone(args, variables));
    let unknown = (Some(1), "Error: unknown flag: --foo\n".to_string());
    assert_eq!(refused(&["get", "a", "--foo"], &[]), unknown);
    let both = [("ETCDCTL_WRITE_OUT", "simple"), ("PINTLECTL_WRITE_OUT", "yaml")];
    assert_eq!(refused(&["get", "a"], &both), (Some(4), "Error: unsupported output format\n".to_string()));
    assert_eq!(refused(&["get", "a", "--cert="], &[]).0, Some(128));
    assert_eq!(refused(&["get", "a", "--cert=x"], &[]).0, Some(128));
    assert_eq!(alone(&["completion", "bash"], &[]).status.code(), Some(0));
    assert_eq!(alone(&["completion", "none"], &[]).status.code(), Some(128));
    assert_eq!(alone(&["lease"], &[]).status.code(), Some(0));
    let help = String::from_utf8(alone(&["help", "history"], &[]).stdout).unwrap();
    assert!(help.contains("pintlectl history"), "{help}");
}
