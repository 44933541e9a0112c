//! Backups as etcd's own tools take them: saved, looked into, restored, and an etcd started from them.

mod etcd;
mod member;
mod same;

use std::{fs, path::Path};

use etcd::{Etcd, etcdctl, etcdutl};
use member::Member;
use proto::{
    EtcdError,
    etcdserverpb::{
        DeleteRangeRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest, RequestOp, SnapshotRequest,
        TxnRequest, lease_client::LeaseClient, maintenance_client::MaintenanceClient, request_op::Request as Op,
    },
};
use same::{assert_same, compact, connect, delete, hash_kv, kv, put, read_all};
use sha2::{Digest as _, Sha256};

fn save(member: &Member, file: &Path) {
    etcdctl(&["--endpoints", &member.endpoint(), "snapshot", "save", file.to_str().unwrap()]);
}

/// What `etcdutl snapshot status` says of it: the revision, and the number of elements in all buckets (since 3.6, that
/// of the living keys). It checks the pages, too.
fn status(file: &Path) -> (i64, u64) {
    let text = etcdutl(&["snapshot", "status", file.to_str().unwrap(), "--write-out", "json"]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |name: &str| status[name].as_u64().unwrap();
    assert_eq!(number("totalSize") + 32, fs::metadata(file).unwrap().len());
    (number("revision") as i64, number("totalKey"))
}

#[tokio::test]
async fn etcd_starts_from_a_backup_of_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(&dir.path().join("pintle"), &[]);
    let file = dir.path().join("backup");
    save(&member, &file);
    assert_eq!((status(&file).0, fs::metadata(&file).unwrap().len() % 512), (0, 32));
    // etcd 3.6 would not start from a later one's.
    let version = b"storageVersion3.6.0";
    assert!(fs::read(&file).unwrap().windows(version.len()).any(|bytes| bytes == version));
    let etcd = Etcd::restore(&file, &dir.path().join("etcd"));
    assert_same(&connect(member.endpoint()).await, &connect(etcd.endpoint()).await, -1, 1).await;
}

#[tokio::test]
async fn etcd_starts_from_a_backup_with_the_same_history_leases_and_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(&dir.path().join("pintle"), &[]);
    let pintle = connect(member.endpoint()).await;
    let (mut kv, mut leases) = (kv(&pintle), LeaseClient::new(pintle.clone()));
    for i in 0..40 {
        kv.put(put(format!("key/{:02}", i % 20), format!("value {i}"))).await.unwrap();
    }
    kv.delete_range(delete("key/03")).await.unwrap();
    kv.put(put("key/03", "again")).await.unwrap();
    kv.delete_range(delete("key/04")).await.unwrap();
    let write = |key: &str| RequestOp { request: Some(Op::RequestPut(put(key, "of one transaction"))) };
    let remove = |key: &str| RequestOp { request: Some(Op::RequestDeleteRange(delete(key))) };
    let several = vec![write("a"), write("b"), remove("key/05"), write("c")];
    let at = kv.txn(TxnRequest { success: several, ..Default::default() }).await.unwrap();
    let compacted = at.into_inner().header.unwrap().revision - 1;
    for id in [7, i64::MAX, 0x1234] {
        leases.lease_grant(LeaseGrantRequest { id, ttl: 5000 + id % 10 }).await.unwrap();
    }
    kv.put(PutRequest { lease: 7, ..put("leased", "v") }).await.unwrap();
    // Longer than a page, and longer than what is read at once.
    for bytes in [4000, 4096, 5000, 100_000, 1_400_000] {
        kv.put(put(format!("large/{bytes}"), vec![b'x'; bytes])).await.unwrap();
    }
    kv.delete_range(delete("b")).await.unwrap();
    compact(&pintle, compacted).await;
    let revision = kv.put(put("last", "")).await.unwrap().into_inner().header.unwrap().revision;

    let file = dir.path().join("backup");
    save(&member, &file);
    assert_eq!(status(&file).0, revision);
    let etcd = Etcd::restore(&file, &dir.path().join("etcd"));
    let restored = connect(etcd.endpoint()).await;
    assert_same(&pintle, &restored, compacted, revision).await;
    let mut restored_leases = LeaseClient::new(restored.clone());
    for id in [7, i64::MAX, 0x1234] {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let ours = leases.lease_time_to_live(request).await.unwrap().into_inner();
        let theirs = restored_leases.lease_time_to_live(request).await.unwrap().into_inner();
        assert_eq!((ours.id, ours.granted_ttl, ours.keys), (theirs.id, theirs.granted_ttl, theirs.keys));
    }
    // etcd goes on from there as Pintle does; its compaction merges and removes pages.
    for channel in [&pintle, &restored] {
        self::kv(channel).put(put("new", "v")).await.unwrap();
        compact(channel, revision).await;
    }
    assert_same(&pintle, &restored, revision, revision + 1).await;
}

#[tokio::test]
async fn users_and_roles_are_in_a_backup() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(&dir.path().join("pintle"), &[]);
    let pintle = member.endpoint();
    let run = |endpoint: &str, user: &[&str], words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        etcdctl(&[&["--endpoints", endpoint], user, &words].concat())
    };
    for command in [
        "user add root:secret",
        "user add reader:pw",
        "user add nobody --no-password",
        "role add r",
        "role grant-permission r readwrite a/ --prefix",
        "role grant-permission r read b",
        "user grant-role reader r",
        "put a/1 v",
        "auth enable",
    ] {
        run(&pintle, &[], command);
    }
    let root = ["--user", "root:secret"];
    let file = dir.path().join("backup");
    run(&pintle, &root, &format!("snapshot save {}", file.display()));
    let etcd = Etcd::restore(&file, &dir.path().join("etcd"));
    for command in ["user list", "user get reader", "user get nobody", "role list", "role get r", "auth status"] {
        let answers = [&pintle, &etcd.endpoint()].map(|endpoint| run(endpoint, &root, command));
        assert_eq!(answers[0], answers[1], "{command}");
    }
    let reader = ["--user", "reader:pw"];
    assert_eq!(run(&etcd.endpoint(), &reader, "get a/1"), "a/1\nv\n");
    run(&etcd.endpoint(), &reader, "put a/2 v");
    let refused = etcd::refused(&[&["--endpoints", &etcd.endpoint()], &reader[..], &["put", "b", "v"]].concat());
    assert!(refused.contains(EtcdError::PermissionDenied.message()), "{refused}");
}

#[tokio::test]
async fn a_backup_during_writes_is_the_state_at_one_revision() {
    const KEYS: usize = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(&dir.path().join("pintle"), &[]);
    let pintle = connect(member.endpoint()).await;
    let fill = (0..KEYS).map(|i| RequestOp { request: Some(Op::RequestPut(put(format!("k{i:05}"), vec![b'v'; 100]))) });
    for success in fill.collect::<Vec<_>>().chunks(100) {
        kv(&pintle).txn(TxnRequest { success: success.to_vec(), ..Default::default() }).await.unwrap();
    }
    let mut writer = kv(&pintle);
    let before = writer.put(put("w", "first")).await.unwrap().into_inner().header.unwrap().revision;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writes = tokio::spawn(async move {
        let mut last = before;
        while stopped.try_recv().is_err() {
            last = writer.put(put("w", format!("{last}"))).await.unwrap().into_inner().header.unwrap().revision;
        }
        last
    });
    let file = dir.path().join("backup");
    let saved = file.clone();
    let member = tokio::task::spawn_blocking(move || {
        save(&member, &saved);
        member
    });
    let member = member.await.unwrap();
    stop.send(()).unwrap();
    let after = writes.await.unwrap();

    let (revision, elements) = status(&file);
    assert!(before < revision && revision < after, "{before} {revision} {after}");
    assert!(elements > KEYS as u64);
    let etcd = Etcd::restore(&file, &dir.path().join("etcd"));
    let restored = connect(etcd.endpoint()).await;
    assert_eq!(hash_kv(&pintle, revision).await.0, hash_kv(&restored, 0).await.0);
    assert_eq!(read_all(&pintle, revision).await.unwrap(), read_all(&restored, 0).await.unwrap());
    // The trees have several levels here: etcd takes half of their leaves away.
    let range_end = "k1".into();
    let half = DeleteRangeRequest { range_end, ..delete("k0") };
    let deleted = kv(&restored).delete_range(half).await.unwrap().into_inner();
    compact(&restored, deleted.header.unwrap().revision).await;
    assert_eq!(read_all(&restored, 0).await.unwrap().count, KEYS as i64 + 1 - deleted.deleted);
    drop(member);
}

#[tokio::test]
async fn the_stream_is_cut_as_etcds_and_ends_with_its_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let channel = connect(member.endpoint()).await;
    kv(&channel).put(put("k", vec![7; 1_200_000])).await.unwrap();
    let mut client = MaintenanceClient::new(channel);
    let mut stream = client.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        assert_eq!(part.version, "3.7.0");
        parts.push(part);
    }
    let sha256 = parts.pop().unwrap();
    let mut left: u64 = parts.iter().map(|part| part.blob.len() as u64).sum();
    let mut hash = Sha256::new();
    for part in &parts {
        left -= part.blob.len() as u64;
        assert_eq!(part.remaining_bytes, left);
        assert!(part.blob.len() == 32 << 10 || left == 0);
        hash.update(&part.blob);
    }
    assert_eq!((sha256.remaining_bytes, &sha256.blob[..]), (0, &hash.finalize()[..]));
}

#[tokio::test]
async fn nothing_is_left_of_a_backup_whose_client_goes() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let channel = connect(member.endpoint()).await;
    for i in 0..16 {
        kv(&channel).put(put(format!("k{i}"), vec![i; 1_400_000])).await.unwrap();
    }
    // More than may be made at a time: a place is given back, too.
    for _ in 0..4 {
        let mut stream =
            MaintenanceClient::new(channel.clone()).snapshot(SnapshotRequest {}).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().unwrap().remaining_bytes > 0);
        assert_eq!(fs::read_dir(dir.path().join("member/snapshots")).unwrap().count(), 0, "the file has no name");
    }
    member.wait_for_log("failed to send the database snapshot");
    let mut stream = MaintenanceClient::new(channel).snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    while stream.message().await.unwrap().is_some() {}
    let open = fs::read_dir(format!("/proc/{}/fd", member.process_id())).unwrap();
    let files = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let left = files.filter(|file| file.to_string_lossy().contains("backup-")).count();
    assert!(left <= 1, "the last one may not be closed yet");
}
