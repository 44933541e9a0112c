//! pintlectl mirror: a store is kept in step with an etcd that is being written to.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use client::{
    Client, Compare, Credentials, Delete, Get, LeaseId, Op, Options, Put, Tls, Txn, Watch,
    mirror::{self, PROGRESS_KEY, Phase, Verdict},
    mvccpb::{Event, KeyValue},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    secure::certs::{Authority, Issued},
    server::{Etcd, Store},
};

/// So that a mirror that is killed, on a machine with much else to do, is back before leases run out.
const LONG_LEASES: [&str; 2] = ["--lease-ttl-min", "60"];

const SOON: Duration = Duration::from_secs(30);

fn command(source: &Etcd, destination: &Etcd, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pintlectl"));
    command.args(["mirror", "--from", &source.urls().join(","), "--to", &destination.urls().join(",")]).args(flags);
    command.stdin(Stdio::null());
    command
}

/// A mirror as a process, which is killed.
struct Mirror(Child);

impl Mirror {
    fn start(source: &Etcd, destination: &Etcd, flags: &[&str]) -> Mirror {
        Mirror(command(source, destination, flags).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn cut_over(source: &Etcd, destination: &Etcd, flags: &[&str]) -> Output {
    command(source, destination, flags).arg("--cut-over").output().unwrap()
}

fn assert_equal(output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("verdict:     equal"), "{output:?}");
}

/// Refused, with this in the reason.
fn assert_refused(output: &Output, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains(reason), "{output:?}");
}

async fn keys(client: &Client) -> Vec<KeyValue> {
    let mut kvs = client.get(Get::all()).await.unwrap().kvs;
    kvs.retain(|kv| kv.key != PROGRESS_KEY);
    kvs
}

/// Keys with their values and leases.
async fn contents(client: &Client) -> Vec<(Vec<u8>, Vec<u8>, i64)> {
    keys(client).await.into_iter().map(|kv| (kv.key.to_vec(), kv.value.to_vec(), kv.lease)).collect()
}

async fn leases(client: &Client) -> BTreeMap<i64, i64> {
    let mut found = BTreeMap::new();
    for lease in client.leases().await.unwrap().leases {
        let ttl = client.lease_time_to_live(LeaseId(lease.id), false).await.unwrap();
        if ttl.ttl >= 0 {
            found.insert(lease.id, ttl.granted_ttl);
        }
    }
    found
}

/// What each change was: is it a put, key, value, lease.
type Change = (bool, Vec<u8>, Vec<u8>, i64);

/// All that has happened, revision by revision, apart from what the mirror wrote about itself.
async fn history(client: &Client) -> Vec<Vec<Change>> {
    let last = client.get(Get::all().count_only()).await.unwrap().header.unwrap().revision;
    let mut watcher = client.watch(Watch::all().from_revision(1)).await.unwrap();
    let mut history: BTreeMap<i64, Vec<Change>> = BTreeMap::new();
    let mut seen = 1;
    while seen < last {
        for Event { r#type, kv, .. } in timeout(SOON, watcher.next()).await.unwrap().unwrap().events {
            let kv = kv.unwrap();
            seen = kv.mod_revision;
            let changes = history.entry(seen).or_default();
            if kv.key != PROGRESS_KEY {
                changes.push((r#type == 0, kv.key.to_vec(), kv.value.to_vec(), kv.lease));
            }
        }
    }
    history.into_values().filter(|changes| !changes.is_empty()).collect()
}

/// Writes as kube-apiserver does: creates where there is nothing, updates and deletes what it has read, by its mod
/// revision, with short leases on some; and a transaction of several keys now and then.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Writer {
    fn start(client: Client) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(write(client, stop.clone()));
        Writer { stop, task }
    }

    /// How many transactions were acknowledged.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn write(client: Client, stop: Arc<AtomicBool>) -> u64 {
    let mut done = 0;
    let mut lease = LeaseId(0);
    for round in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if round.is_multiple_of(20) {
            // Every other lease is revoked with its keys, or runs out with them after a while.
            if round.is_multiple_of(40) {
                let _ = client.lease_revoke(lease).await;
            }
            lease = client
                .lease_grant(if round.is_multiple_of(60) { 2 } else { 600 }, LeaseId(0))
                .await
                .map_or(LeaseId(0), |l| LeaseId(l.id));
        }
        let key = format!("/registry/pods/{}", round * 7 % 23);
        // The source may be down for a moment; what is not acknowledged does not matter.
        done += u64::from(change(&client, key, round, lease).await.is_ok());
    }
    done
}

async fn change(client: &Client, key: String, round: u64, lease: LeaseId) -> client::Result<()> {
    let found = client.get(Get::key(key.clone())).await?.kvs.into_iter().next();
    let value = vec![b'0' + (round % 10) as u8; 100 + (round % 50) as usize];
    let mut put = Put::new(key.clone(), value.clone());
    if round.is_multiple_of(5) {
        put = put.lease(lease);
    }
    let txn = match found {
        None => Txn::new().when(Compare::create_revision(key).equals(0)).then(Op::put(put)),
        Some(kv) if round.is_multiple_of(3) => Txn::new()
            .when(Compare::mod_revision(key.clone()).equals(kv.mod_revision))
            .then(Op::delete(Delete::key(key))),
        Some(kv) => Txn::new().when(Compare::mod_revision(key).equals(kv.mod_revision)).then(Op::put(put)),
    };
    let txn = match round % 11 {
        0 => txn
            .then(Op::put(Put::new("/registry/zz", value)))
            .then(Op::delete(Delete::prefix(format!("/many/{}", round % 3)))),
        1 => (0..9).fold(txn, |txn, n| txn.then(Op::put(Put::new(format!("/many/{}/{n}", round % 3), "v")))),
        _ => txn,
    };
    client.txn(txn).await.map(|_| ())
}

/// Until the store has as many changes as this from now on.
async fn moved_on(store: &Client, by: i64) {
    let now = store.get(Get::all().count_only()).await.unwrap().header.unwrap().revision;
    moved_on_to(store, now + by).await;
}

async fn moved_on_to(store: &Client, wanted: i64) {
    happened(store, Watch::all().from_revision(wanted)).await;
}

/// Until the store has, or has had, this key.
async fn was_put(store: &Client, key: &str) {
    happened(store, Watch::key(key.to_string()).from_revision(1)).await;
}

async fn happened(store: &Client, watch: Watch) {
    let mut watcher = store.watch(watch).await.unwrap();
    let seen = timeout(SOON, watcher.next()).await.expect("it comes in time").unwrap();
    assert!(!seen.events.is_empty());
}

/// Writes, mirrors, kills the mirror again and again, and the source once; then stops the writer.
async fn write_and_mirror(source: &mut Etcd, destination: &Etcd, flags: &[&str]) {
    let writer = Writer::start(source.client());
    for kill in 0..6 {
        let mirror = Mirror::start(source, destination, flags);
        moved_on(&destination.client(), 40).await;
        if kill == 3 {
            source.kill(0);
            source.restart(0).await;
            moved_on(&destination.client(), 20).await;
        }
        drop(mirror);
    }
    let done = writer.stop().await;
    assert!(done > 200, "only {done} transactions");
    short_leases_are_over(&source.client()).await;
}

/// What runs out writes, too.
async fn short_leases_are_over(client: &Client) {
    let deadline = Instant::now() + SOON;
    while leases(client).await.values().any(|ttl| *ttl < 600) {
        assert!(Instant::now() < deadline, "a lease does not run out");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_mirror_that_is_killed_again_and_again_loses_and_repeats_nothing() {
    let (mut source, destination) = (Etcd::of(Store::Etcd, 1).await, Etcd::of(Store::Pintle, 1).await);
    // A history that is complete begins with a mirror of an empty store.
    let mirror = Mirror::start(&source, &destination, &[]);
    source.client().put(Put::new("first", "v")).await.unwrap();
    let to = destination.client();
    was_put(&to, "first").await;
    drop(mirror);
    write_and_mirror(&mut source, &destination, &LONG_LEASES).await;
    assert_equal(&cut_over(&source, &destination, &[]));
    let from = source.client();
    assert_eq!(contents(&from).await, contents(&to).await);
    let (wanted, got) = (history(&from).await, history(&to).await);
    assert!(wanted.len() > 200);
    for (index, (wanted, got)) in wanted.iter().zip(&got).enumerate() {
        assert_eq!(wanted, got, "transaction {index}");
    }
    assert_eq!(wanted.len(), got.len());
    let (wanted, got) = (leases(&from).await, leases(&to).await);
    for (lease, ttl) in wanted {
        assert_eq!(got.get(&lease), Some(&ttl), "lease {lease:x}");
    }
    assert_eq!(to.get(Get::key(PROGRESS_KEY)).await.unwrap().count, 0, "it goes with the cut-over");
}

#[tokio::test]
async fn an_import_goes_on_with_the_revisions_of_its_source() {
    let (mut source, destination) = (Etcd::of(Store::Etcd, 1).await, Etcd::prepare(Store::Pintle, 1));
    let from = source.client();
    let writer = Writer::start(from.clone());
    moved_on(&from, 150).await;
    writer.stop().await;
    short_leases_are_over(&from).await;
    let revision = from.get(Get::all().count_only()).await.unwrap().header.unwrap().revision;
    from.compact(revision - 50, true).await.unwrap();
    destination.import(0, &snapshot(&source).await);
    // The source does not wait for the import.
    let writer = Writer::start(from.clone());
    moved_on(&from, 50).await;
    writer.stop().await;
    let flags = [&LONG_LEASES[..], &["--keep-revisions"]].concat();
    // It waits for the destination, so that no lease is without it there.
    let mirror = Mirror::start(&source, &destination, &flags);
    let destination = destination.run().await;
    moved_on_to(&destination.client(), revision + 1).await;
    drop(mirror);

    write_and_mirror(&mut source, &destination, &flags).await;
    let to = destination.client();
    // Compacted at the source, but not there: the cut-over does what is missing.
    let mirrored = to.get(Get::all().count_only()).await.unwrap().header.unwrap().revision;
    from.compact(mirrored - 1, true).await.unwrap();
    let output = cut_over(&source, &destination, &["--keep-revisions"]);
    assert_equal(&output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("HashKV"), "{output:?}");
    assert_eq!(keys(&from).await, keys(&to).await, "with their revisions and versions");
    assert_eq!(leases(&from).await.keys().collect::<Vec<_>>(), leases(&to).await.keys().collect::<Vec<_>>());

    // Who writes there himself is found out.
    to.put(Put::new("other", "v")).await.unwrap();
    assert_refused(&cut_over(&source, &destination, &["--keep-revisions"]), "the source only at");
    from.put(Put::new("one", "v")).await.unwrap();
    assert_refused(&cut_over(&source, &destination, &["--keep-revisions"]), "is not what the source was");
}

/// As `etcdctl snapshot save` gets it.
async fn snapshot(of: &Etcd) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut parts = of.client().snapshot(&of.urls()[0]).await.unwrap();
    while let Some(part) = timeout(SOON, parts.message()).await.unwrap().unwrap() {
        file.write_all(&part.blob).unwrap();
    }
    file.flush().unwrap();
    file
}

#[tokio::test]
async fn what_the_source_has_compacted_meanwhile_is_copied_again() {
    let (source, destination) = (Etcd::of(Store::Etcd, 1).await, Etcd::of(Store::Pintle, 1).await);
    let (from, to) = (source.client(), destination.client());
    for key in 0..30 {
        from.put(Put::new(format!("k{key:02}"), vec![b'v'; 100_000])).await.unwrap();
    }
    let mirror = Mirror::start(&source, &destination, &[]);
    // The second of three portions.
    was_put(&to, "k10").await;
    drop(mirror);
    from.delete(Delete::new(client::Keys::range("k05", "k20"))).await.unwrap();
    let last = from.put(Put::new("k21", "changed")).await.unwrap().header.unwrap().revision;
    from.compact(last, true).await.unwrap();
    assert_equal(&cut_over(&source, &destination, &[]));
    assert_eq!(contents(&from).await, contents(&to).await);

    // Revisions that cannot be kept are not made up.
    let kept = Etcd::of(Store::Pintle, 1).await;
    assert_refused(&cut_over(&source, &kept, &["--keep-revisions"]), "import a new snapshot");
}

#[tokio::test]
async fn a_transaction_of_thousands_of_keys_stays_one() {
    let (source, destination) = (Etcd::of(Store::Etcd, 1).await, Etcd::of(Store::Pintle, 1).await);
    let from = source.client();
    for key in 0..30 {
        let puts = (0..100).map(|n| Op::put(Put::new(format!("k/{key}/{n}"), "v"))).collect();
        from.txn(Txn::all_of(puts)).await.unwrap();
    }
    from.delete(Delete::prefix("k/")).await.unwrap();
    assert_equal(&cut_over(&source, &destination, &["--keep-revisions"]));
}

#[tokio::test]
async fn keys_of_leases_that_ran_out_without_a_mirror_are_put_back() {
    let (source, destination) = (Etcd::of(Store::Etcd, 1).await, Etcd::of(Store::Pintle, 1).await);
    let (from, to) = (source.client(), destination.client());
    let lease = LeaseId(from.lease_grant(2, LeaseId(0)).await.unwrap().id);
    let _keeper = from.keep_alive(lease);
    from.put(Put::new("leased", "v").lease(lease)).await.unwrap();
    let mirror = Mirror::start(&source, &destination, &[]);
    let mut watcher = to.watch(Watch::key("leased").from_revision(1)).await.unwrap();
    let seen = timeout(SOON, watcher.next()).await.unwrap().unwrap();
    assert_eq!(seen.events[0].kv.as_ref().unwrap().lease, lease.0);
    // As long as there is a mirror the lease lives on.
    assert!(timeout(Duration::from_secs(5), watcher.next()).await.is_err());
    drop(mirror);
    let gone = timeout(SOON, watcher.next()).await.unwrap().unwrap();
    assert_eq!(gone.events[0].r#type, 1, "nobody kept it alive");
    assert_equal(&cut_over(&source, &destination, &[]));
    assert_eq!(contents(&from).await, contents(&to).await);
}

/// A cut-over that finds a change when it has begun to compare.
async fn cut_over_during(
    source: &Etcd,
    destination: &Etcd,
    change: impl Future<Output = ()>,
) -> Result<Verdict, mirror::Failure> {
    let mirror = mirror::Mirror::new(source.client(), destination.client(), mirror::Options::default());
    let mut status = mirror.status();
    let changed = async {
        status.wait_for(|status| matches!(status.phase, Phase::Verifying { .. })).await.unwrap();
        destination.pause(0);
        change.await;
        destination.resume(0);
    };
    tokio::join!(mirror.cut_over(Duration::ZERO), changed).0
}

#[tokio::test]
async fn leases_that_run_out_while_stores_are_compared_do_not_keep_the_cut_over_from_ending() {
    let (source, destination) = (Etcd::of(Store::Etcd, 1).await, Etcd::of(Store::Pintle, 1).await);
    let (from, to) = (source.client(), destination.client());
    // More than is read at once.
    for key in 0..200 {
        let puts = (0..100).map(|n| Op::put(Put::new(format!("k/{key}/{n}"), vec![b'v'; 2000]))).collect();
        from.txn(Txn::all_of(puts)).await.unwrap();
    }
    let lease = LeaseId(from.lease_grant(600, LeaseId(0)).await.unwrap().id);
    from.put(Put::new("leased", "v").lease(lease)).await.unwrap();

    let put = async { assert!(from.put(Put::new("late", "v")).await.is_ok()) };
    let refused = cut_over_during(&source, &destination, put).await.unwrap_err();
    assert!(refused.to_string().contains("still written to"), "{refused}");
    let run_out = async { assert!(from.lease_revoke(lease).await.is_ok()) };
    let verdict = cut_over_during(&source, &destination, run_out).await.unwrap();
    assert!(verdict.is_equal(), "{verdict:?}");
    assert_eq!(to.get(Get::key("leased")).await.unwrap().count, 0, "this is mirrored, too");
    assert_eq!(contents(&from).await, contents(&to).await);
}

#[tokio::test]
async fn an_import_whose_last_revision_is_forgotten_goes_on() {
    let (source, destination) = (Etcd::of(Store::Etcd, 1).await, Etcd::prepare(Store::Pintle, 1));
    let from = source.client();
    for key in ["a", "b"] {
        from.put(Put::new(key, "v")).await.unwrap();
    }
    let last = from.delete(Delete::key("b")).await.unwrap().header.unwrap().revision;
    from.compact(last, true).await.unwrap();
    destination.import(0, &snapshot(&source).await);
    let destination = destination.run().await;
    assert_equal(&cut_over(&source, &destination, &["--keep-revisions"]));
    from.put(Put::new("c", "v")).await.unwrap();
    assert_equal(&cut_over(&source, &destination, &["--keep-revisions"]));
    assert_eq!(keys(&from).await, keys(&destination.client()).await, "with their revisions and versions");
}

#[tokio::test]
async fn what_would_harm_is_refused() {
    let (source, destination) = (Etcd::of(Store::Etcd, 1).await, Etcd::of(Store::Pintle, 1).await);
    let (from, to) = (source.client(), destination.client());
    from.put(Put::new("k", "v")).await.unwrap();
    to.put(Put::new("other", "v")).await.unwrap();
    assert_refused(&cut_over(&source, &destination, &[]), "--overwrite");
    assert_refused(&cut_over(&source, &destination, &["--keep-revisions"]), "is not what the source was");
    assert_eq!(to.get(Get::key("other")).await.unwrap().count, 1, "nothing was done");
    drop(Mirror::start(&source, &destination, &["--overwrite"]));
    let mirror = Mirror::start(&source, &destination, &["--overwrite"]);
    was_put(&to, "k").await;
    drop(mirror);
    assert_eq!(contents(&to).await, contents(&from).await);

    // What was mirrored from one cluster does not go on from another.
    let another = Etcd::of(Store::Pintle, 1).await;
    assert_refused(&cut_over(&another, &destination, &[]), "cluster");
    // A second writer is found out.
    to.put(Put::new(PROGRESS_KEY, "{}")).await.unwrap();
    assert_refused(&cut_over(&source, &destination, &[]), "no mirror's progress");
}

#[tokio::test]
async fn a_difference_is_named() {
    let (source, destination) = (Etcd::of(Store::Etcd, 1).await, Etcd::of(Store::Pintle, 1).await);
    let (from, to) = (source.client(), destination.client());
    from.put(Put::new("k", "v")).await.unwrap();
    let mirror = Mirror::start(&source, &destination, &[]);
    was_put(&to, "k").await;
    drop(mirror);
    to.put(Put::new("k", "changed by hand")).await.unwrap();
    let output = cut_over(&source, &destination, &[]);
    assert_refused(&output, "is not what the source is");
    assert!(String::from_utf8_lossy(&output.stdout).contains(r#"DIFFERENT: key "k": the values differ"#), "{output:?}");
}

/// A store that shows its certificate, wants one, and knows root alone.
async fn secured(store: Store, authority: &Authority, shown: &Issued, password: &str) -> Etcd {
    let server = authority.issue_here("server");
    let text = |path: &std::path::Path| path.to_str().unwrap().to_string();
    let flags = [
        format!("--cert-file={}", text(&server.cert)),
        format!("--key-file={}", text(&server.key)),
        format!("--trusted-ca-file={}", text(&authority.file)),
        "--client-cert-auth".to_string(),
    ];
    let tls = Tls::with_ca(&authority.file).identity(&shown.cert, &shown.key);
    let options = Options { tls: Some(tls), ..Options::default() };
    let etcd = Etcd::prepare(store, 1).flags(&flags.each_ref().map(String::as_str)).tls(options).run().await;
    let client = etcd.client();
    client.user_add("root", Some(password)).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    etcd
}

/// The flags of one side.
fn shows(side: &str, authority: &Authority, shown: &Issued, password: &str) -> Vec<String> {
    vec![
        format!("--{side}-cacert={}", authority.file.display()),
        format!("--{side}-cert={}", shown.cert.display()),
        format!("--{side}-key={}", shown.key.display()),
        format!("--{side}-user=root"),
        format!("--{side}-password={password}"),
    ]
}

#[tokio::test]
async fn each_side_is_shown_its_own_certificate_and_user() {
    let dir = tempfile::tempdir().unwrap();
    let authorities = ["from", "to"].map(|name| {
        let own = dir.path().join(name);
        std::fs::create_dir(&own).unwrap();
        Authority::new(&own, name)
    });
    let issued = authorities.each_ref().map(|authority| authority.issue_here("client"));
    let source = secured(Store::Etcd, &authorities[0], &issued[0], "one").await;
    let destination = secured(Store::Pintle, &authorities[1], &issued[1], "two").await;
    let as_root = |of: &Etcd, password: &str| {
        let credentials = Credentials::Password { user: "root".into(), password: password.into() };
        Client::with_options(of.urls(), Options { credentials: Some(credentials), ..of.options.clone() }).unwrap()
    };
    let (from, to) = (as_root(&source, "one"), as_root(&destination, "two"));
    for key in 0..20 {
        from.put(Put::new(format!("k/{key}"), "v")).await.unwrap();
    }
    let flags = [shows("from", &authorities[0], &issued[0], "one"), shows("to", &authorities[1], &issued[1], "two")];
    let flags: Vec<&str> = flags.iter().flatten().map(String::as_str).collect();
    let mirror = Mirror::start(&source, &destination, &flags);
    was_put(&to, "k/0").await;
    from.put(Put::new("later", "v")).await.unwrap();
    drop(mirror);

    // Each flag counts: without it, or with that of the other side, the mirror does nothing and says why.
    let instead = |flag: &str, other: &str| -> Vec<String> {
        let left = flags.iter().filter(|given| !given.starts_with(flag)).map(|given| given.to_string());
        left.chain((!other.is_empty()).then(|| other.to_string())).collect()
    };
    let run = |flags: &[String]| cut_over(&source, &destination, &flags.iter().map(String::as_str).collect::<Vec<_>>());
    for (flag, other, reason) in [
        ("--from-password", "--from-password=two", "authentication failed"),
        ("--to-password", "--to-password=one", "authentication failed"),
        ("--from-cacert", "--from-cacert=/does/not/exist", "/does/not/exist"),
        ("--to-key", "--to-key=/does/not/exist", "/does/not/exist"),
    ] {
        assert_refused(&run(&instead(flag, other)), reason);
    }
    let other_ca = format!("--from-cacert={}", authorities[1].file.display());
    for (flag, other, reason) in [
        ("--from-cacert", other_ca.as_str(), "UnknownIssuer"),
        ("--to-cacert", "", "UnknownIssuer"),
        ("--from-server-name", "--from-server-name=elsewhere", "elsewhere"),
    ] {
        assert_waits_saying(&source, &destination, &instead(flag, other), reason);
    }
    let alone = run(&instead("--to-key", ""));
    assert!(!alone.status.success() && String::from_utf8_lossy(&alone.stderr).contains("--to-key"), "{alone:?}");
    assert_equal(&run(&instead("--to-cacert", "--to-insecure-skip-tls-verify")));
    assert_eq!(contents(&from).await, contents(&to).await);
}

/// What may be mended while it runs, such as a certificate, is waited for; the reason is told at once.
fn assert_waits_saying(source: &Etcd, destination: &Etcd, flags: &[String], reason: &str) {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut child = command(source, destination, &flags).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let _mirror = Mirror(child);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut said = Vec::new();
    while let Ok(line) = receiver.recv_timeout(SOON) {
        if line.contains(reason) {
            return;
        }
        said.push(line);
    }
    panic!("it does not say {reason:?}: {said:?}");
}
