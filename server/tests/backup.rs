//! Backups to a directory, and back to any revision: with real members, crashes, and directories that fail.

mod member;
mod recorded;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use member::{Member, Places};
use proto::{
    etcdserverpb::{LeaseGrantRequest, MemberAddRequest, cluster_client::ClusterClient, lease_client::LeaseClient},
    mvccpb::KeyValue,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IteratorRandom as _};
use recorded::{Recording, Seen, channel, kv, put, read_all};
use server::{
    backup::{
        BackupError,
        catalog::{Catalog, Goal},
        restore::{Request, Restored, restore},
        verify::verify,
    },
    import::{Membership, Progress},
};
use tempfile::TempDir;
use walkdir::{DirEntry, WalkDir};

const PATIENCE: Duration = Duration::from_secs(30);

fn flags(dir: &Path, interval: &str) -> Vec<String> {
    vec![
        format!("--backup-dir={}", dir.display()),
        format!("--backup-interval={interval}"),
        "--backup-log-interval=50ms".into(),
        "--backup-keep=1000".into(),
    ]
}

fn start(dir: &Path, flags: &[String]) -> Member {
    Member::start(dir, &flags.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Of the member's metrics.
fn metric(member: &Member, name: &str) -> f64 {
    let (_, text) = member.get("/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("there is no {name}")).parse().unwrap()
}

async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        // A delay: the member is another process, whose metrics and files tell nobody that they change.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until all that is applied now is archived.
async fn wait_archived(member: &Member) {
    let applied = metric(member, "etcd_server_proposals_applied_total");
    wait_until("the log is archived", || metric(member, "pintle_backup_archived_index") >= applied).await;
}

fn restore_to(backups: &Path, goal: Goal, member: Option<u64>, to: &Path) -> Result<Restored, BackupError> {
    let membership = Membership { data_dir: Some(to.into()), ..Membership::default() };
    let request = Request { dir: backups.into(), goal, cluster: None, member, membership };
    restore(&request, &Progress::hidden())
}

/// All keys at a revision, from a member that is started on the restored directory.
async fn restored_keys(dir: &Path, revision: i64) -> Vec<KeyValue> {
    // The directory is that of a member with etcd's default URLs; what it was told it need not be told again.
    let [client, peer] = member::free_ports();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pintle"));
    command.args([
        format!("--data-dir={}", dir.display()),
        format!("--listen-client-urls=http://127.0.0.1:{client}"),
        format!("--advertise-client-urls=http://127.0.0.1:{client}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
    ]);
    let member = Member::start_command(dir, client, peer, command);
    let keys = read_all(&channel(&[member.endpoint()]), revision).await.unwrap().1;
    assert_eq!(member.stop(), Some(0));
    keys
}

fn assert_whole(backups: &Path) {
    let found = verify(backups, &Progress::hidden()).unwrap();
    assert_eq!(found.problems, Vec::<String>::new());
    assert!(found.bases > 0, "{found:?}");
}

/// Restores ten of the revisions that were read, the first and the last among them, and compares.
async fn assert_restored_as_seen(backups: &Path, seen: &Seen, member: Option<u64>) {
    let catalog = Catalog::read(backups).unwrap();
    for &revision in seen.keys() {
        let covered = catalog.choose(Goal::Revision(revision), None, member);
        covered.unwrap_or_else(|error| panic!("revision {revision}: {error}"));
    }
    let mut random = StdRng::seed_from_u64(11);
    let mut chosen = seen.keys().copied().choose_multiple(&mut random, 8);
    chosen.extend([*seen.first_key_value().unwrap().0, *seen.last_key_value().unwrap().0]);
    for revision in chosen {
        let to = TempDir::new().unwrap();
        let restored = restore_to(backups, Goal::Revision(revision), member, to.path());
        let restored = restored.unwrap_or_else(|error| panic!("revision {revision}: {error}"));
        assert_eq!(restored.revision, revision);
        assert_eq!(restored_keys(to.path(), revision).await, seen[&revision], "revision {revision}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_revision_is_restored_as_a_reader_saw_it() {
    let (dir, backups) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let flags = flags(backups.path(), "1500ms");
    let [client, peer] = member::free_ports();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut member = Member::start_on(dir.path(), client, peer, &flags);
    let recording = Recording::start(&[member.endpoint()], 1);
    for round in 0..4 {
        recording.grow(20).await;
        wait_until("a full backup", || metric(&member, "pintle_backup_full_total") >= 1.0).await;
        match round % 2 {
            0 => assert_eq!(member.stop(), Some(0)),
            _ => {
                member.signal(libc::SIGKILL);
                drop(member);
            }
        }
        member = Member::start_on(dir.path(), client, peer, &flags);
    }
    wait_until("a full backup", || metric(&member, "pintle_backup_full_total") >= 1.0).await;
    let (seen, written) = recording.stop().await;
    wait_archived(&member).await;
    assert_eq!(member.stop(), Some(0));
    assert!(written > 40 && seen.len() > 20, "{written} writes, {} reads", seen.len());

    assert_whole(backups.path());
    let catalog = Catalog::read(backups.path()).unwrap();
    let chains = &catalog.members[0].chains;
    assert!(chains.iter().map(|chain| chain.bases.len()).sum::<usize>() > 3, "full backups were taken meanwhile");
    assert!(chains.iter().all(|chain| chain.spans().len() == 1));
    assert_restored_as_seen(backups.path(), &seen, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_member_of_a_cluster_keeps_backups_across_a_leaders_death() {
    let (places, backups) = (Places::new(), TempDir::new().unwrap());
    let flags = flags(backups.path(), "2s");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut members: Vec<Option<Member>> = places.start_all(&flags).into_iter().map(Some).collect();
    let endpoints: Vec<String> = members.iter().flatten().map(Member::endpoint).collect();
    let recording = Recording::start(&endpoints, 2);
    let have_full = |members: &[Option<Member>]| {
        members.iter().flatten().all(|member| metric(member, "pintle_backup_full_total") >= 1.0)
    };
    let leads =
        |member: &Option<Member>| member.as_ref().is_some_and(|member| metric(member, "etcd_server_is_leader") == 1.0);
    for _ in 0..2 {
        recording.grow(20).await;
        wait_until("full backups", || have_full(&members)).await;
        wait_until("a leader", || members.iter().any(leads)).await;
        let leader = members.iter().position(leads).unwrap_or(0);
        let killed = members[leader].take().unwrap();
        killed.signal(libc::SIGKILL);
        drop(killed);
        wait_until("another leader", || members.iter().any(leads)).await;
        recording.grow(20).await;
        members[leader] = Some(places.start(leader, &flags));
    }
    recording.grow(20).await;
    wait_until("full backups", || have_full(&members)).await;
    let (seen, written) = recording.stop().await;
    for member in members.into_iter().flatten() {
        wait_archived(&member).await;
        assert_eq!(member.stop(), Some(0));
    }
    assert!(written > 40 && seen.len() > 20, "{written} writes, {} reads", seen.len());

    assert_whole(backups.path());
    let catalog = Catalog::read(backups.path()).unwrap();
    assert_eq!(catalog.members.len(), 3);
    for member in &catalog.members {
        assert_restored_as_seen(backups.path(), &seen, Some(member.member)).await;
    }
}

fn value(kv: &KeyValue) -> i64 {
    String::from_utf8(kv.value.to_vec()).unwrap().parse().unwrap()
}

/// The value of the one key says how often it was written: once at least.
async fn count_up(member: &Member, from: i64, until: impl Fn() -> bool) -> i64 {
    let (channel, mut count) = (channel(&[member.endpoint()]), from);
    while kv(&channel).put(put("count", (count + 1).to_string(), 0)).await.is_ok() {
        count += 1;
        if until() {
            break;
        }
    }
    count
}

/// How far it was counted, with a put whose answer was lost.
async fn counted(member: &Member) -> i64 {
    read_all(&channel(&[member.endpoint()]), 0).await.unwrap().1.first().map_or(0, value)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_time_leaves_a_directory_that_says_what_it_covers() {
    let (dir, backups) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let flags = flags(backups.path(), "30ms");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut random = StdRng::seed_from_u64(3);
    let [client, peer] = member::free_ports();
    let mut count = 0;
    for round in 0..8 {
        let member = Member::start_on(dir.path(), client, peer, &flags);
        count = counted(&member).await.max(count);
        let end = Instant::now() + Duration::from_millis(random.random_range(100..700));
        // Nothing is covered before the first full backup.
        let is_covered = || round > 0 || metric(&member, "pintle_backup_full_total") >= 1.0;
        count = count_up(&member, count, || Instant::now() > end && is_covered()).await;
        member.signal(libc::SIGKILL);
        drop(member);

        assert_whole(backups.path());
        let to = TempDir::new().unwrap();
        let restored = restore_to(backups.path(), Goal::Newest, None, to.path()).unwrap();
        let kvs = restored_keys(to.path(), restored.revision).await;
        // The first revision is that of the empty store.
        let found = kvs.first().map_or((1, 0), |kv| (kv.mod_revision, value(kv)));
        assert_eq!(found, (restored.revision, restored.revision - 1));
        // What was answered longer ago than the log interval is there.
        assert!(count - (restored.revision - 1) < 1000, "{count} writes, restored {restored:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_old_backups_are_removed_leaves_what_is_claimed() {
    let (dir, backups) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut flags = flags(backups.path(), "20ms");
    *flags.last_mut().unwrap() = "--backup-keep=2".into();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut random = StdRng::seed_from_u64(5);
    let [client, peer] = member::free_ports();
    let mut count = 0;
    for round in 0..8 {
        let member = Member::start_on(dir.path(), client, peer, &flags);
        count = counted(&member).await.max(count);
        // Old ones are removed each time one is taken: here once at least.
        let (before, began) = (oldest_covered(backups.path()).max(1), Instant::now());
        while oldest_covered(backups.path()) <= before {
            assert!(began.elapsed() < PATIENCE, "no old backup is removed");
            count = count_up(&member, count, || oldest_covered(backups.path()) > before).await;
        }
        let end = Instant::now() + Duration::from_millis(random.random_range(0..100));
        count = count_up(&member, count, || Instant::now() > end).await;
        if round < 7 {
            member.signal(libc::SIGKILL);
            drop(member);
        } else {
            assert_eq!(member.stop(), Some(0));
        }
        assert_whole(backups.path());
        let catalog = Catalog::read(backups.path()).unwrap();
        let spans: Vec<_> = catalog.members[0].chains.iter().flat_map(|chain| chain.spans()).collect();
        let bases: usize = spans.iter().map(|span| span.bases.len()).sum();
        assert!((2..=3).contains(&bases), "two stay, and one more while others are removed: {bases}");
        for revision in spans.iter().flat_map(|span| [span.first.revision, span.last.revision]) {
            let to = TempDir::new().unwrap();
            let restored = restore_to(backups.path(), Goal::Revision(revision), None, to.path()).unwrap();
            let kvs = restored_keys(to.path(), restored.revision).await;
            let found = kvs.first().map_or((1, 0), |kv| (kv.mod_revision, value(kv)));
            assert_eq!(found, (revision, revision - 1));
        }
    }
}

/// The revision of the oldest full backup; 0 while there is none.
fn oldest_covered(backups: &Path) -> i64 {
    let oldest = |catalog: Catalog| Some(catalog.members.first()?.chains.first()?.bases.first()?.manifest.revision);
    Catalog::read(backups).ok().and_then(oldest).unwrap_or(0)
}

/// A small backup: two full ones, complete segments, users, and a compaction.
async fn some_backups(dir: &Path, backups: &Path) -> i64 {
    let flags = flags(backups, "500ms");
    let [client, peer] = member::free_ports();
    for _ in 0..2 {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let member = Member::start_on(dir, client, peer, &flags);
        count_up(&member, 0, || metric(&member, "pintle_backup_full_total") >= 2.0).await;
        wait_archived(&member).await;
        assert_eq!(member.stop(), Some(0));
    }
    Catalog::read(backups).unwrap().members[0].chains.last().unwrap().spans()[0].last.revision
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = WalkDir::new(dir).sort_by_file_name().into_iter().map(Result::unwrap);
    entries.filter(|entry| entry.file_type().is_file()).map(DirEntry::into_path).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_any_file_is_named_and_nothing_is_restored_from_it() {
    let (dir, backups) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let newest = some_backups(dir.path(), backups.path()).await;
    assert_whole(backups.path());
    let oldest = Catalog::read(backups.path()).unwrap().members[0].chains[0].spans()[0].first.revision;
    let mut kinds = BTreeSet::new();
    for path in files(backups.path()).into_iter().filter(|path| kinds.insert(kind(path))) {
        let whole = fs::read(&path).unwrap();
        let damaged = match whole.len() {
            0 => vec![Some(vec![1]), None],
            length => {
                let mut flipped = whole.clone();
                flipped[length / 2] ^= 4;
                vec![Some(flipped), Some(whole[..length - 1].to_vec()), None]
            }
        };
        for bytes in damaged {
            match &bytes {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let what = format!("{} with {:?} bytes of {}", path.display(), bytes.as_ref().map(Vec::len), whole.len());
            // A segment without its manifest is one that was being written, and nothing is missing.
            let is_spare = bytes.is_none() && path.with_extension("log").exists() && path.with_extension("log") != path;
            let problems = verify(backups.path(), &Progress::hidden()).map(|found| found.problems).unwrap_or_default();
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_named = problems.iter().any(|problem| problem.contains(name) || problem.contains("are missing"));
            assert!(is_named || is_spare, "{what}: {problems:?}");
            // Whatever still can be restored is right.
            for goal in [oldest, newest] {
                let to = TempDir::new().unwrap();
                match restore_to(backups.path(), Goal::Revision(goal), None, &to.path().join("d")) {
                    Ok(restored) => assert_eq!(restored.revision, goal, "{what}"),
                    Err(_) => assert!(!to.path().join("d").exists(), "{what}: something is left behind"),
                }
            }
            fs::write(&path, &whole).unwrap();
        }
    }
    assert!(kinds.len() >= 7, "{kinds:?}");
    assert_whole(backups.path());
}

/// The file's name without its numbers, and what it stands in.
fn kind(path: &Path) -> String {
    let name = path.file_name().unwrap().to_str().unwrap();
    let is_shared = path.extension().is_some_and(|extension| extension == "sst");
    if is_shared { "sst".into() } else { name.chars().filter(|c| !c.is_ascii_digit()).collect() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_away_for_a_time_leaves_no_gap() {
    let (dir, parent) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (backups, away) = (parent.path().join("backups"), parent.path().join("away"));
    // From the start on.
    fs::write(&backups, "in the way").unwrap();
    let member = start(dir.path(), &flags(&backups, "1h"));
    count_up(&member, 0, || metric(&member, "pintle_backup_archive_failures_total") >= 1.0).await;
    fs::remove_file(&backups).unwrap();
    count_up(&member, 0, || metric(&member, "pintle_backup_full_total") == 1.0).await;
    fs::rename(&backups, &away).unwrap();
    fs::write(&backups, "in the way").unwrap();
    let before = metric(&member, "pintle_backup_archive_failures_total");
    let failing = || metric(&member, "pintle_backup_archive_failures_total") >= before + 2.0;
    let count = count_up(&member, 0, failing).await;
    assert!(count > 0);
    assert_eq!(metric(&member, "pintle_backup_archiving"), 0.0);
    fs::remove_file(&backups).unwrap();
    fs::rename(&away, &backups).unwrap();
    wait_archived(&member).await;
    assert_eq!(metric(&member, "pintle_backup_archiving"), 1.0);
    assert_eq!(member.stop(), Some(0));
    assert_whole(&backups);
    assert_eq!(Catalog::read(&backups).unwrap().members[0].chains.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_archived_is_a_gap_with_a_reason_and_a_full_backup_behind_it() {
    let (dir, parent) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (backups, away) = (parent.path().join("backups"), parent.path().join("away"));
    let member = start(dir.path(), &flags(&backups, "1h"));
    let client = channel(&[member.endpoint()]);
    count_up(&member, 0, || metric(&member, "pintle_backup_full_total") == 1.0).await;
    fs::rename(&backups, &away).unwrap();
    // More than the queue holds.
    for _ in 0..70 {
        kv(&client).put(put("large", vec![7; 1 << 20], 0)).await.unwrap();
    }
    let lost = read_all(&client, 0).await.unwrap().0;
    fs::rename(&away, &backups).unwrap();
    wait_until("a full backup behind the gap", || metric(&member, "pintle_backup_full_total") == 2.0).await;
    kv(&client).put(put("after", "1", 0)).await.unwrap();
    wait_archived(&member).await;

    // Then the directory is emptied while the member runs.
    fs::rename(&backups, &away).unwrap();
    fs::create_dir(&backups).unwrap();
    kv(&client).put(put("after", "2", 0)).await.unwrap();
    wait_until("a full backup in the new directory", || metric(&member, "pintle_backup_full_total") == 3.0).await;
    kv(&client).put(put("after", "3", 0)).await.unwrap();
    wait_archived(&member).await;
    let newest = read_all(&client, 0).await.unwrap().0;
    assert_eq!(member.stop(), Some(0));
    assert_whole(&backups);
    let to = TempDir::new().unwrap();
    let error = restore_to(&backups, Goal::Revision(lost), None, to.path()).unwrap_err();
    assert!(error.to_string().contains("is not covered"), "{error}");
    assert_eq!(restore_to(&backups, Goal::Newest, None, to.path()).unwrap().revision, newest);
    let catalog = Catalog::read(&backups).unwrap();
    assert!(catalog.members[0].chains.last().unwrap().manifest.reason.contains("is gone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_archived_before_a_crash_comes_from_the_raft_log() {
    let (dir, backups) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let [client, peer] = member::free_ports();
    let start = |log_interval: &str| {
        let mut flags = flags(backups.path(), "300ms");
        flags[2] = format!("--backup-log-interval={log_interval}");
        Member::start_on(dir.path(), client, peer, &flags.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let member = start("1h");
    let channel = channel(&[member.endpoint()]);
    wait_until("the first full backup", || metric(&member, "pintle_backup_full_total") >= 1.0).await;
    count_up(&member, 0, || metric(&member, "etcd_debugging_mvcc_current_revision") > 20.0).await;
    // Three leases that end together: several revisions in one entry.
    for id in 1..=3 {
        let grant = LeaseGrantRequest { ttl: 2, id };
        LeaseClient::new(channel.clone()).lease_grant(grant).await.unwrap();
        kv(&channel).put(put(format!("lease/{id}"), "1", id)).await.unwrap();
    }
    wait_until("the leases end", || metric(&member, "etcd_debugging_server_lease_expired_total") >= 3.0).await;
    kv(&channel).put(put("last", "1", 0)).await.unwrap();
    let mut seen = Seen::new();
    let newest = read_all(&channel, 0).await.unwrap().0;
    for revision in 2..=newest {
        seen.insert(revision, read_all(&channel, revision).await.unwrap().1);
    }
    // A full backup flushes the store: what it has applied then, it does not apply again.
    let taken = metric(&member, "pintle_backup_full_total");
    wait_until("a full backup", || metric(&member, "pintle_backup_full_total") > taken + 1.0).await;
    member.signal(libc::SIGKILL);
    drop(member);

    let member = start("50ms");
    wait_archived(&member).await;
    assert_eq!(member.stop(), Some(0));
    assert_whole(backups.path());
    let catalog = Catalog::read(backups.path()).unwrap();
    assert_eq!(catalog.members[0].chains.len(), 1, "nothing was missing");
    // Without the full backups in between, the log alone leads there.
    for base in &catalog.members[0].chains[0].bases[1..] {
        fs::remove_dir_all(&base.dir).unwrap();
    }
    for revision in newest - 5..=newest {
        let to = TempDir::new().unwrap();
        let restored = restore_to(backups.path(), Goal::Revision(revision), None, to.path()).unwrap();
        assert!(restored.replayed > 20);
        assert_eq!(restored_keys(to.path(), revision).await, seen[&revision], "revision {revision}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_archive_and_not_the_member() {
    let (dir, mount) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let [client, peer] = member::free_ports();
    // A small file system that this process alone sees.
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs -o size=3m tmpfs \"$0\" && exec \"$@\""]);
    let pintle = member::command(dir.path(), client, peer);
    command.arg(mount.path()).arg(pintle.get_program()).args(pintle.get_args()).args(flags(mount.path(), "1h"));
    let member = Member::start_command(dir.path(), client, peer, command);
    let channel = channel(&[member.endpoint()]);
    wait_until("the first full backup", || metric(&member, "pintle_backup_full_total") == 1.0).await;
    let write = async || {
        kv(&channel).put(put("large", vec![7; 64 << 10], 0)).await.unwrap();
    };
    for _ in 0..60 {
        write().await;
    }
    wait_until("the disk is full", || metric(&member, "pintle_backup_archiving") == 0.0).await;
    write().await;
    assert!(metric(&member, "pintle_backup_queue_bytes") > 0.0);
    let larger = ["mount", "-o", "remount,size=64m"];
    let id = member.process_id().to_string();
    let status = Command::new("nsenter")
        .args(["--user", "--preserve-credentials", "--mount", "--target", &id])
        .args(larger)
        .arg(mount.path())
        .status();
    assert!(status.unwrap().success());
    wait_archived(&member).await;
    // Its own view of the directory, while it runs.
    let backups = PathBuf::from(format!("/proc/{id}/root")).join(mount.path().strip_prefix("/").unwrap());
    assert_whole(&backups);
    let to = TempDir::new().unwrap();
    let newest = read_all(&channel, 0).await.unwrap().0;
    assert_eq!(restore_to(&backups, Goal::Newest, None, to.path()).unwrap().revision, newest);
    assert_eq!(Catalog::read(&backups).unwrap().members[0].chains.len(), 1, "there is no gap");
    assert_eq!(member.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_sent_a_snapshot_begins_a_chain_behind_it() {
    let (dir, backups, to) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let member = start(dir.path(), &flags(backups.path(), "1h"));
    count_up(&member, 0, || metric(&member, "pintle_backup_full_total") == 1.0).await;
    wait_archived(&member).await;
    assert_eq!(member.stop(), Some(0));

    // A restored cluster has no log of the entries before: whoever joins is sent the store.
    let [client, peer, joining_client, joining_peer] = member::free_ports();
    let (url, joining_url) = (format!("http://127.0.0.1:{peer}"), format!("http://127.0.0.1:{joining_peer}"));
    let membership = Membership {
        name: Some("r0".into()),
        data_dir: Some(to.path().join("r0")),
        initial_cluster: Some(format!("r0={url}")),
        initial_advertise_peer_urls: Some(url.clone()),
        ..Membership::default()
    };
    let request = Request { dir: backups.path().into(), goal: Goal::Newest, cluster: None, member: None, membership };
    let restored = restore(&request, &Progress::hidden()).unwrap();
    let first = Member::start_on(&to.path().join("r0"), client, peer, &["--name=r0"]);
    let channel = channel(&[first.endpoint()]);
    let add = MemberAddRequest { peer_ur_ls: vec![joining_url.clone()], is_learner: false };
    ClusterClient::new(channel.clone()).member_add(add).await.unwrap();
    let second_backups = TempDir::new().unwrap();
    let mut arguments = flags(second_backups.path(), "1h");
    let cluster = format!("--initial-cluster=r0={url},r1={joining_url}");
    arguments.extend(["--name=r1".into(), "--initial-cluster-state=existing".into(), cluster]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let second = Member::start_on(&to.path().join("r1"), joining_client, joining_peer, &arguments);
    let is_covered = |revision| {
        let catalog = Catalog::read(second_backups.path());
        catalog.is_ok_and(|catalog| catalog.choose(Goal::Revision(revision), None, None).is_ok())
    };
    wait_until("a full backup behind the snapshot", || is_covered(restored.revision)).await;
    kv(&channel).put(put("after", "1", 0)).await.unwrap();
    let (revision, keys) = read_all(&channel, 0).await.unwrap();
    assert_eq!(revision, restored.revision + 1);
    wait_until("the log behind it", || is_covered(revision)).await;
    assert_eq!(second.stop(), Some(0));
    drop(first);

    assert_whole(second_backups.path());
    let again = to.path().join("again");
    let restored = restore_to(second_backups.path(), Goal::Newest, None, &again).unwrap();
    assert_eq!(restored.revision, revision);
    assert_eq!(restored_keys(&again, revision).await, keys);
}
