//! Moving in: snapshots and data directories of the real etcd, imported, compared with it, and taken back to it.

mod etcd;
mod member;
mod same;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use etcd::{Etcd, etcdctl};
use member::{Member, Places, command, free_ports};
use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RequestOp, TxnRequest, lease_client::LeaseClient,
    request_op::Request as Op,
};
use same::{assert_same, compact, connect, delete, kv, put, read_all};
use tonic::transport::Channel;

const LEASES: [i64; 3] = [7, i64::MAX, 0x1234];

/// `pintle import`, to its end: exit code and what it says.
fn import(arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_pintle")).arg("import").args(arguments).output().unwrap();
    (status.code().expect("it exits"), String::from_utf8([stdout, stderr].concat()).unwrap())
}

/// Imports into `dir` and starts the member.
fn start_imported(source: &Path, dir: &Path, flags: &[&str]) -> Member {
    let [client, peer] = free_ports();
    let (data_dir, peer_url) = (dir.to_str().unwrap(), format!("http://127.0.0.1:{peer}"));
    let target = ["--data-dir", data_dir, "--initial-advertise-peer-urls", &peer_url];
    let (code, said) = import(&[&[source.to_str().unwrap()], &target[..], flags].concat());
    assert_eq!(code, 0, "{said}");
    let mut command = command(dir, client, peer);
    // What is in the directory is believed, and what is given must be the same.
    command.arg(format!("--initial-cluster=default={peer_url}"));
    Member::start_command(dir, client, peer, command)
}

fn save(endpoint: &str, file: &Path) {
    etcdctl(&["--endpoints", endpoint, "snapshot", "save", file.to_str().unwrap()]);
}

/// Writes of every kind; returns the compacted and the newest revision.
async fn fill(store: &Channel) -> (i64, i64) {
    let (mut kv, mut leases) = (kv(store), LeaseClient::new(store.clone()));
    for i in 0..60 {
        kv.put(put(format!("key/{:02}", i % 20), format!("value {i}"))).await.unwrap();
    }
    for key in ["key/03", "key/04"] {
        kv.delete_range(delete(key)).await.unwrap();
    }
    kv.put(put("key/03", "again")).await.unwrap();
    let write = |key: &str| RequestOp { request: Some(Op::RequestPut(put(key, "of one transaction"))) };
    let remove = |key: &str| RequestOp { request: Some(Op::RequestDeleteRange(delete(key))) };
    let several = vec![write("a"), write("b\0\u{1}"), remove("key/05"), write("c")];
    kv.txn(TxnRequest { success: several, ..Default::default() }).await.unwrap();
    for id in LEASES {
        leases.lease_grant(LeaseGrantRequest { id, ttl: 5000 + id % 10 }).await.unwrap();
    }
    kv.put(PutRequest { lease: 7, ..put("leased", "v") }).await.unwrap();
    for bytes in [4000, 4096, 100_000, 1_400_000] {
        kv.put(put(format!("large/{bytes}"), vec![b'x'; bytes])).await.unwrap();
    }
    // The last change of a key, right at the compaction.
    let compacted = kv.delete_range(delete("key/06")).await.unwrap().into_inner().header.unwrap().revision;
    compact(store, compacted).await;
    kv.put(put("key/07", "changed")).await.unwrap();
    kv.delete_range(delete("a")).await.unwrap();
    let revision = kv.put(put("last", "")).await.unwrap().into_inner().header.unwrap().revision;
    (compacted, revision)
}

/// Users and roles, made with etcdctl.
fn add_users(endpoint: &str) {
    for words in [
        "user add root:secret",
        "user add reader:pw",
        "user add nobody --no-password",
        "role add r",
        "role grant-permission r readwrite a/ --prefix",
        "role grant-permission r read b",
        "user grant-role reader r",
        "user grant-role root root",
    ] {
        etcdctl(&[&["--endpoints", endpoint], &words.split(' ').collect::<Vec<_>>()[..]].concat());
    }
}

/// Both say the same about users, with passwords that still are right.
fn assert_same_users(endpoints: [&str; 2]) {
    let root = ["--user", "root:secret"];
    for words in ["user list", "user get reader", "user get nobody", "role list", "role get r", "auth status"] {
        let words: Vec<&str> = words.split(' ').collect();
        let said = endpoints.map(|endpoint| etcdctl(&[&["--endpoints", endpoint], &root[..], &words[..]].concat()));
        assert_eq!(said[0], said[1], "{words:?}");
    }
    for endpoint in endpoints {
        etcdctl(&["--endpoints", endpoint, "--user", "reader:pw", "put", "a/1", "v"]);
        let refused = etcd::refused(&["--endpoints", endpoint, "--user", "reader:pw", "put", "b", "v"]);
        assert!(refused.contains("permission denied"), "{refused}");
    }
}

async fn assert_same_leases(stores: [&Channel; 2]) {
    for id in LEASES {
        let mut answers = Vec::new();
        for store in stores {
            let request = LeaseTimeToLiveRequest { id, keys: true };
            let answer = LeaseClient::new(store.clone()).lease_time_to_live(request).await.unwrap().into_inner();
            answers.push((answer.id, answer.granted_ttl, answer.keys));
        }
        assert_eq!(answers[0], answers[1]);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

#[tokio::test]
async fn a_snapshot_of_etcd_comes_in_whole_and_goes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(&dir.path().join("etcd"), &[]);
    let theirs = connect(etcd.endpoint()).await;
    let (compacted, revision) = fill(&theirs).await;
    let file = dir.path().join("snapshot");
    save(&etcd.endpoint(), &file);

    let member = start_imported(&file, &dir.path().join("pintle"), &[]);
    let ours = connect(member.endpoint()).await;
    assert_same(&ours, &theirs, compacted, revision).await;
    assert_same_leases([&ours, &theirs]).await;
    // Both go on alike from there.
    for store in [&ours, &theirs] {
        kv(store).put(put("key/01", "after")).await.unwrap();
        kv(store).delete_range(delete("leased")).await.unwrap();
        compact(store, revision).await;
        kv(store).put(put("key/06", "anew")).await.unwrap();
    }
    assert_same(&ours, &theirs, revision, revision + 3).await;

    let back = dir.path().join("back");
    save(&member.endpoint(), &back);
    let returned = Etcd::restore(&back, &dir.path().join("returned"));
    assert_same(&connect(returned.endpoint()).await, &theirs, revision, revision + 3).await;
    // A member that was imported starts again as any other does.
    let (dir, ports) = (member.dir.clone(), (member.client, member.peer));
    assert_eq!(member.stop(), Some(0));
    let member = Member::start_on(&dir, ports.0, ports.1, &[]);
    assert_same(&connect(member.endpoint()).await, &theirs, revision, revision + 3).await;
}

#[tokio::test]
async fn an_empty_store_is_imported() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(&dir.path().join("etcd"), &[]);
    let file = dir.path().join("snapshot");
    save(&etcd.endpoint(), &file);
    let member = start_imported(&file, &dir.path().join("pintle"), &[]);
    assert_same(&connect(member.endpoint()).await, &connect(etcd.endpoint()).await, -1, 1).await;
}

#[tokio::test]
async fn users_roles_and_passwords_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(&dir.path().join("etcd"), &[]);
    add_users(&etcd.endpoint());
    etcdctl(&["--endpoints", &etcd.endpoint(), "auth", "enable"]);
    let file = dir.path().join("snapshot");
    etcdctl(&["--endpoints", &etcd.endpoint(), "--user", "root:secret", "snapshot", "save", file.to_str().unwrap()]);
    let member = start_imported(&file, &dir.path().join("pintle"), &[]);
    assert_same_users([&member.endpoint(), &etcd.endpoint()]);
}

/// etcd that writes its database as seldom as it can: after a kill, most is in its log only.
fn start_lazy(dir: &Path) -> Etcd {
    Etcd::start(dir, &["--backend-batch-interval", "1h", "--backend-batch-limit", "1000000"])
}

#[tokio::test]
async fn what_only_the_log_of_a_killed_etcd_holds_is_imported() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("etcd");
    let etcd = start_lazy(&data_dir);
    add_users(&etcd.endpoint());
    let (compacted, revision) = fill(&connect(etcd.endpoint()).await).await;
    etcdctl(&["--endpoints", &etcd.endpoint(), "auth", "enable"]);
    let root = ["--user", "root:secret"];
    etcdctl(&[&["--endpoints", &etcd.endpoint()], &root[..], &["put", "a/0", "by root"]].concat());
    etcd.kill();

    let source = dir.path().join("copy");
    copy(&data_dir, &source);
    let target = dir.path().join("pintle");
    let member = start_imported(&source, &target, &[]);
    let etcd = Etcd::start(&data_dir, &[]);
    assert_same_users([&member.endpoint(), &etcd.endpoint()]);
    for endpoint in [member.endpoint(), etcd.endpoint()] {
        etcdctl(&[&["--endpoints", &endpoint], &root[..], &["auth", "disable"]].concat());
    }
    let (ours, theirs) = (connect(member.endpoint()).await, connect(etcd.endpoint()).await);
    assert_same(&ours, &theirs, compacted, revision + 2).await;
    assert_same_leases([&ours, &theirs]).await;
}

#[tokio::test]
async fn the_log_may_stand_elsewhere_and_a_running_etcd_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (data_dir, wal) = (dir.path().join("etcd"), dir.path().join("wal"));
    let lazy = ["--backend-batch-interval", "1h", "--backend-batch-limit", "1000000"];
    let etcd = Etcd::start(&data_dir, &[&lazy[..], &["--wal-dir", wal.to_str().unwrap()]].concat());
    kv(&connect(etcd.endpoint()).await).put(put("k", "v")).await.unwrap();
    let target = dir.path().join("pintle");
    let arguments = [data_dir.to_str().unwrap(), "--data-dir", target.to_str().unwrap()];
    let (code, said) = import(&arguments);
    assert!(code == 1 && said.contains("etcd is running on this data directory"), "{code} {said}");
    etcd.kill();
    let (code, said) = import(&arguments);
    assert!(code == 1 && said.contains(data_dir.join("member/wal").to_str().unwrap()), "{code} {said}");
    assert!(!target.exists());
    let member = start_imported(&data_dir, &target, &["--etcd-wal-dir", wal.to_str().unwrap()]);
    assert_eq!(read_all(&connect(member.endpoint()).await, 0).await.unwrap().count, 1);
}

/// The newest segment of the log.
fn newest_log(data_dir: &Path) -> PathBuf {
    let logs = fs::read_dir(data_dir.join("member/wal")).unwrap().map(|entry| entry.unwrap().path());
    logs.filter(|path| path.extension().is_some_and(|extension| extension == "wal")).max().unwrap()
}

#[tokio::test]
async fn damage_to_etcds_log_is_named_and_a_torn_end_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("etcd");
    let etcd = start_lazy(&data_dir);
    let store = connect(etcd.endpoint()).await;
    for i in 0..10 {
        kv(&store).put(put(format!("k{i}"), vec![b'v'; 3000])).await.unwrap();
    }
    etcd.kill();
    let (log, target) = (newest_log(&data_dir), dir.path().join("pintle"));
    let whole = fs::read(&log).unwrap();
    let arguments = [data_dir.to_str().unwrap(), "--data-dir", target.to_str().unwrap()];
    let at = |key: &[u8]| whole.windows(key.len()).position(|window| window == key).unwrap();

    let mut flipped = whole.clone();
    flipped[at(b"k5") + 100] ^= 1;
    fs::write(&log, &flipped).unwrap();
    let (code, said) = import(&arguments);
    assert!(code == 1 && said.contains(log.to_str().unwrap()) && said.contains("damaged at byte"), "{said}");
    assert!(said.contains("checksum") && !target.exists(), "{said}");

    // The length of a record in the middle goes beyond the file's end. It stands in the eight bytes before the record.
    let frame =
        (0..at(b"k5")).rev().find(|at| at % 8 == 0 && whole[*at..at + 8][2..7] == [0; 5] && whole[*at + 8] == 8);
    let mut long = whole.clone();
    long[frame.unwrap() + 5] ^= 1;
    fs::write(&log, &long).unwrap();
    let (code, said) = import(&arguments);
    assert!(code == 1 && said.contains("goes beyond the file's end") && !target.exists(), "{said}");

    // The last record lacks a sector, as after a crash in the middle of a write.
    let mut torn = whole.clone();
    torn[at(b"k9") + 1000..].fill(0);
    fs::write(&log, &torn).unwrap();
    let member = start_imported(&data_dir, &target, &[]);
    assert_eq!(read_all(&connect(member.endpoint()).await, 0).await.unwrap().count, 9);
}

#[tokio::test]
async fn a_log_that_ends_before_its_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("etcd");
    let etcd = Etcd::start(&data_dir, &["--backend-batch-limit", "1"]);
    let store = connect(etcd.endpoint()).await;
    for i in 0..10 {
        kv(&store).put(put(format!("k{i}"), vec![b'v'; 3000])).await.unwrap();
    }
    etcd.kill();
    let (log, target) = (newest_log(&data_dir), dir.path().join("pintle"));
    let mut cut = fs::read(&log).unwrap();
    let at = cut.windows(2).position(|window| window == b"k5").unwrap();
    cut[at + 1000..].fill(0);
    fs::write(&log, &cut).unwrap();
    let (code, said) = import(&[data_dir.to_str().unwrap(), "--data-dir", target.to_str().unwrap()]);
    assert!(code == 1 && said.contains(log.to_str().unwrap()) && said.contains("damaged at byte"), "{said}");
    assert!(said.contains("the log ends with entry") && !target.exists(), "{said}");
}

/// Where a database begins: the root that the newer meta page names.
fn root_page(database: &[u8]) -> usize {
    let number = |at: usize| u64::from_le_bytes(database[at..at + 8].try_into().unwrap());
    let meta = [16, 4096 + 16].into_iter().max_by_key(|meta| number(meta + 48)).unwrap();
    number(meta + 16) as usize
}

#[tokio::test]
async fn damaged_and_truncated_snapshots_are_refused_with_the_place_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("etcd");
    let etcd = Etcd::start(&data_dir, &[]);
    fill(&connect(etcd.endpoint()).await).await;
    let file = dir.path().join("snapshot");
    save(&etcd.endpoint(), &file);
    let whole = fs::read(&file).unwrap();
    let (target, damaged) = (dir.path().join("pintle"), dir.path().join("damaged"));
    let refuse = |bytes: &[u8], flags: &[&str]| {
        fs::write(&damaged, bytes).unwrap();
        let arguments = [damaged.to_str().unwrap(), "--data-dir", target.to_str().unwrap()];
        let (code, said) = import(&[&arguments[..], flags].concat());
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(damaged.to_str().unwrap()), "{said}");
        assert!(!target.exists(), "{said}");
        said
    };

    // A bit of a value changes no page.
    let mut flipped = whole.clone();
    let value = whole.windows(8).position(|window| window == b"value 59").unwrap();
    flipped[value] ^= 1;
    let said = refuse(&flipped, &[]);
    assert!(said.contains("expected sha256") && said.contains(&format!("at byte {}", whole.len() - 32)), "{said}");
    // One of a page's header is found where it is.
    let root = root_page(&whole);
    let mut header = whole.clone();
    header[root * 4096 + 8] ^= 0x40;
    let said = refuse(&header, &["--skip-hash-check"]);
    assert!(said.contains(&format!("damaged at byte {}, page {root}", root * 4096 + 8)), "{said}");
    // The hash finds it first, and the place is told.
    let said = refuse(&header, &[]);
    assert!(said.contains("expected sha256") && said.contains(&format!("page {root}")), "{said}");
    // Cut anywhere: between pages, within one, within a meta page, to nothing.
    for length in [whole.len() - 32, whole.len() - 32 - 4096, whole.len() - 2000, 4096 * 5 + 32, 5000, 100, 0] {
        let said = refuse(&whole[..length], &[]);
        assert!(said.contains("at byte") && !said.contains("panic"), "{length}: {said}");
    }
    let said = refuse(&whole[..whole.len() - 32 - 4096], &["--skip-hash-check"]);
    assert!(said.contains(&format!("damaged at byte {}", whole.len() - 32 - 4096)), "{said}");
    let said = refuse(b"a text that is no snapshot of anything, however long it may be, as far as one can see", &[]);
    assert!(said.contains("damaged at byte"), "{said}");
    // A data directory's database has no hash, and says so.
    let said = refuse(&whole[..whole.len() - 32], &[]);
    assert!(said.contains("--skip-hash-check"), "{said}");

    let (code, said) = import(&["/nowhere/snapshot", "--data-dir", target.to_str().unwrap()]);
    assert!(code == 1 && said.contains("/nowhere/snapshot"), "{said}");
    let (code, said) = import(&[file.to_str().unwrap(), "--data-dir", data_dir.to_str().unwrap()]);
    assert!(code == 1 && said.contains("not empty"), "{said}");
    let (code, said) = import(&[file.to_str().unwrap(), "--bump-revision", "5"]);
    assert!(code == 1 && said.contains("--mark-compacted required"), "{said}");
    let other = ["--name", "other", "--initial-cluster", "one=http://127.0.0.1:1"];
    let (code, said) =
        import(&[&[file.to_str().unwrap(), "--data-dir", target.to_str().unwrap()], &other[..]].concat());
    assert!(code == 1 && !target.exists(), "{said}");
}

#[tokio::test]
async fn a_raised_revision_is_etcdutls() {
    let dir = tempfile::tempdir().unwrap();
    let source = Etcd::start(&dir.path().join("etcd"), &[]);
    let (_, revision) = fill(&connect(source.endpoint()).await).await;
    let file = dir.path().join("snapshot");
    save(&source.endpoint(), &file);
    let flags = ["--bump-revision", "1000", "--mark-compacted"];
    let etcd = Etcd::restore_with(&file, &dir.path().join("restored"), &flags);
    let member = start_imported(&file, &dir.path().join("pintle"), &flags);
    let (ours, theirs) = (connect(member.endpoint()).await, connect(etcd.endpoint()).await);
    assert_same(&ours, &theirs, revision + 1000, revision + 1000).await;
    for store in [&ours, &theirs] {
        kv(store).put(put("key/01", "after")).await.unwrap();
    }
    assert_same(&ours, &theirs, revision + 1000, revision + 1001).await;
}

#[tokio::test]
async fn three_members_that_are_imported_from_one_snapshot_are_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let etcd = Etcd::start(&dir.path().join("etcd"), &[]);
    let theirs = connect(etcd.endpoint()).await;
    let (compacted, revision) = fill(&theirs).await;
    let file = dir.path().join("snapshot");
    save(&etcd.endpoint(), &file);
    let places = Places::new();
    let url = |i: usize| format!("http://127.0.0.1:{}", places.peers[i]);
    let cluster = (0..3).map(|i| format!("m{i}={}", url(i))).collect::<Vec<_>>().join(",");
    for i in 0..3 {
        let (name, data_dir) = (format!("m{i}"), places.dirs[i].path().to_str().unwrap());
        let member = ["--name", &name, "--data-dir", data_dir, "--initial-advertise-peer-urls", &url(i)];
        let (code, said) = import(&[&[file.to_str().unwrap(), "--initial-cluster", &cluster], &member[..]].concat());
        assert_eq!(code, 0, "{said}");
    }
    let members = places.start_all(&[]);
    let mut stores = Vec::new();
    for member in &members {
        stores.push(connect(member.endpoint()).await);
    }
    for ours in &stores {
        assert_same(ours, &theirs, compacted, revision).await;
    }
    for (i, ours) in stores.iter().enumerate() {
        kv(ours).put(put(format!("by {i}"), "v")).await.unwrap();
        kv(&theirs).put(put(format!("by {i}"), "v")).await.unwrap();
    }
    for ours in &stores {
        // So that the member has applied what was put through the others.
        read_all(ours, 0).await.unwrap();
        assert_same(ours, &theirs, compacted, revision + 3).await;
    }
    let listed = etcdctl(&["--endpoints", &members[0].endpoint(), "member", "list"]);
    assert_eq!(listed.lines().filter(|line| line.contains("started")).count(), 3, "{listed}");
}
