//! What is too old goes: full backups but the newest, the log before the oldest that stays, and files that no full
//! backup names any more.
//!
//! Names go before contents, so that a crash leaves files without a backup, which the next time removes, and never a
//! backup without files. What is removed is known by names alone, but for the files that full backups share: those are
//! in the manifests of the ones that stay.
//!
//! A full backup whose manifest does not read can be restored by nobody, so it is none of those that are to stay, and
//! goes when it is older than they are. Until then nobody knows which shared files are its own, and all of them stay.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use super::{
    BackupError,
    archive::{BASE, CHAIN, bases, chains, partials, segment_manifests, segments},
    base::{MANIFEST, SHARED, shared_path},
    error::{At as _, sync_dir},
    manifest::{BaseManifest, partial_path, read_json},
};

/// Removes what goes when the newest `keep` full backups stay. The chain `current` stays in any case.
///
/// # Errors
/// Those of the file system.
pub fn prune(member_dir: &Path, keep: usize, current: u64) -> Result<(), BackupError> {
    plan(member_dir, keep, current)?.iter().try_for_each(Step::run)
}

/// A crash may come between any two.
#[derive(Debug)]
enum Step {
    /// Takes the name from a folder, durably: nobody takes it for a backup from then on.
    Hide(PathBuf),
    /// A file, or a folder with all that is in it.
    Remove(PathBuf),
}

impl Step {
    fn run(&self) -> Result<(), BackupError> {
        match self {
            Step::Hide(dir) => {
                fs::rename(dir, partial_path(dir)).at(dir)?;
                sync_dir(dir.parent().expect("what has a name is in a folder"))
            }
            Step::Remove(path) if path.is_dir() => fs::remove_dir_all(path).at(path),
            Step::Remove(path) => fs::remove_file(path).at(path),
        }
    }
}

/// A full backup that is there.
struct Found {
    chain: u64,
    applied_index: u64,
    dir: PathBuf,
    /// None of one that does not read.
    manifest: Option<BaseManifest>,
}

impl Found {
    fn read(chain: u64, applied_index: u64, dir: PathBuf) -> Found {
        let manifest = read_json(&dir.join(MANIFEST)).unwrap_or_else(|error| {
            tracing::warn!(%error, "a full backup cannot be read; it stays until it is older than those that are kept");
            None
        });
        Found { chain, applied_index, dir, manifest }
    }
}

fn plan(member_dir: &Path, keep: usize, current: u64) -> Result<Vec<Step>, BackupError> {
    let chains = chains(member_dir)?;
    // In order of their age, as chains and the full backups in them are.
    let mut found = Vec::new();
    for (chain, chain_dir) in &chains {
        found.extend(bases(chain_dir)?.into_iter().map(|(index, dir)| Found::read(*chain, index, dir)));
    }
    let whole = (0..found.len()).rev().filter(|at| found[*at].manifest.is_some());
    let Some(oldest) = whole.take(keep.max(1)).last() else { return Ok(Vec::new()) };
    let (old, kept) = found.split_at(oldest);

    let mut steps = Vec::new();
    old.iter().for_each(|base| hide_and_remove(&base.dir, &mut steps));
    steps.extend(partials(member_dir, CHAIN)?.into_iter().map(Step::Remove));
    for (number, chain_dir) in &chains {
        match kept.iter().find(|base| base.chain == *number) {
            Some(oldest) => remove_rest(chain_dir, oldest.applied_index, &mut steps)?,
            None if *number < current.min(kept[0].chain) => hide_and_remove(chain_dir, &mut steps),
            None => {}
        }
    }
    let manifests: Option<Vec<&BaseManifest>> = kept.iter().map(|base| base.manifest.as_ref()).collect();
    if let Some(manifests) = manifests {
        remove_unnamed(member_dir, &manifests, &mut steps)?;
    }
    Ok(steps)
}

fn hide_and_remove(dir: &Path, steps: &mut Vec<Step>) {
    steps.extend([Step::Hide(dir.into()), Step::Remove(partial_path(dir))]);
}

/// Of a chain whose oldest full backup is behind entry `index`: the segments that hold no entry behind it, and what a
/// crash has left. The newest segment stays, since it says where the chain goes on.
fn remove_rest(chain_dir: &Path, index: u64, steps: &mut Vec<Step>) -> Result<(), BackupError> {
    steps.extend(partials(chain_dir, BASE)?.into_iter().map(Step::Remove));
    let segments = segments(chain_dir)?;
    let old = segments.windows(2).take_while(|pair| pair[1].0 <= index + 1).count();
    let is_old = |first: u64| segments.get(old).is_none_or(|(oldest, _)| first < *oldest);
    let manifests = segment_manifests(chain_dir)?;
    let files = segments.iter().chain(&manifests).filter(|(first, _)| is_old(*first));
    steps.extend(files.map(|(_, path)| Step::Remove(path.clone())));
    Ok(())
}

/// Shared files that none of the full backups names.
fn remove_unnamed(member_dir: &Path, kept: &[&BaseManifest], steps: &mut Vec<Step>) -> Result<(), BackupError> {
    let shared = member_dir.join(SHARED);
    let files = kept.iter().flat_map(|manifest| &manifest.files).filter(|file| file.is_shared);
    let named: HashSet<PathBuf> = files.map(|file| shared_path(member_dir, &file.sha256)).collect();
    for entry in fs::read_dir(&shared).at(&shared)? {
        let path = entry.at(&shared)?.path();
        if !named.contains(&path) {
            steps.push(Step::Remove(path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message as _;
    use proto::{
        command::{Command, command::Op},
        etcdserverpb::{PutRequest, RangeRequest},
    };
    use storage::{Applier, LogEntry, Options, Payload, Store};
    use tempfile::TempDir;
    use tokio_util::sync::CancellationToken;
    use walkdir::{DirEntry, WalkDir};

    use super::*;
    use crate::{
        backup::{
            Owner, Time,
            archive::{Archive, chain_name},
            base::{self, Place},
            catalog::{Catalog, Goal},
            manifest::{ChainManifest, FORMAT},
            restore::{Nobody, Request, restore},
            segment::{ChainId, Entry},
            verify::verify,
        },
        import::{Membership, Progress},
    };

    fn open(dir: &Path) -> Store {
        Store::open(dir, Options { observer: Arc::new(Nobody), cache_bytes: 1 << 20 }).unwrap()
    }

    /// A member with its backups. Entry N puts N under the one key, and is revision N + 1.
    struct Member {
        dir: TempDir,
        store: Store,
        applier: Applier,
        archive: Option<Archive>,
    }

    impl Member {
        fn new() -> Member {
            let dir = TempDir::new().unwrap();
            let store = open(&dir.path().join("store"));
            fs::create_dir_all(dir.path().join("backups/1/2")).unwrap();
            Member { applier: store.applier(), archive: None, store, dir }
        }

        fn backups(&self) -> PathBuf {
            self.dir.path().join("backups")
        }

        /// Archives `count` more entries, as a segment that is complete.
        fn segment(&mut self, count: u64) {
            let mut entries = Vec::new();
            for _ in 0..count {
                let index = self.store.applied().index + 1;
                let put = PutRequest { key: "k".into(), value: index.to_string().into(), ..Default::default() };
                let command = Command { op: Some(Op::Put(put)), auth: None };
                let payload = Payload::Command(command.encode_to_vec().into());
                let entry = LogEntry { index, term: 1, payload };
                self.applier.apply(std::slice::from_ref(&entry)).unwrap();
                entries.push(Entry::new(&entry, self.store.revision(), Time { unix_ms: index as i64 }));
            }
            let archive = self.archive.as_mut().unwrap();
            archive.append(&entries).unwrap().unwrap();
            archive.complete().unwrap();
        }

        fn chain(&mut self) {
            let manifest = ChainManifest {
                format: FORMAT,
                chain: ChainId(rand::random()),
                cluster: 1,
                member: 2,
                name: "m".into(),
                after_index: self.store.applied().index,
                began: Time { unix_ms: self.store.applied().index as i64 },
                reason: "a test".into(),
            };
            self.archive = Some(Archive::begin(&self.backups().join("1/2"), manifest).unwrap());
        }

        fn base(&self) -> PathBuf {
            let archive = self.archive.as_ref().unwrap();
            let owner = Owner { cluster: 1, member: 2, name: "m".into() };
            let (member_dir, stop) = (self.backups().join("1/2"), CancellationToken::new());
            let place =
                Place { member_dir: &member_dir, chain_dir: archive.dir(), chain: archive.chain(), stop: &stop };
            base::take(&self.store, &owner, &place, &self.dir.path().join("checkpoint")).unwrap();
            archive.dir().join(base::base_name(self.store.applied().index))
        }
    }

    /// Full backups at revisions 1, 11, 21, and the log to 26; in another chain at 26, 36, 46, and the log to 51.
    fn member() -> Member {
        let mut member = Member::new();
        for _ in 0..2 {
            member.chain();
            member.base();
            for _ in 0..2 {
                member.segment(10);
                member.base();
            }
            member.segment(5);
        }
        member
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let to = to.join(path.file_name().unwrap());
            match path.is_dir() {
                true => copy(&path, &to),
                false => drop(fs::copy(&path, &to).unwrap()),
            }
        }
    }

    /// Revisions from which and to which each span goes.
    fn covered(backups: &Path) -> Vec<(i64, i64)> {
        let catalog = Catalog::read(backups).unwrap();
        let spans = catalog.members[0].chains.iter().flat_map(|chain| chain.spans());
        spans.map(|span| (span.first.revision, span.last.revision)).collect()
    }

    fn assert_restored(backups: &Path, revision: i64) {
        let to = TempDir::new().unwrap();
        let membership = Membership { data_dir: Some(to.path().into()), ..Membership::default() };
        let goal = Goal::Revision(revision);
        let request = Request { dir: backups.into(), goal, cluster: None, member: None, membership };
        restore(&request, &Progress::hidden()).unwrap_or_else(|error| panic!("revision {revision}: {error}"));
        let store = open(&to.path().join("member/store"));
        assert_eq!(store.revision(), revision);
        let kvs = store.range(&RangeRequest { key: "k".into(), ..Default::default() }).unwrap().kvs;
        let value = kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap());
        assert_eq!(value, (revision > 1).then(|| (revision - 1).to_string()));
    }

    fn assert_verified(backups: &Path) {
        assert_eq!(verify(backups, &Progress::hidden()).unwrap().problems, Vec::<String>::new());
    }

    /// What is claimed can be had, to both ends of each span.
    fn assert_whole(backups: &Path) {
        assert_verified(backups);
        for (first, last) in covered(backups) {
            assert_restored(backups, first);
            assert_restored(backups, last);
        }
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let entries = WalkDir::new(dir).sort_by_file_name().into_iter().map(Result::unwrap);
        entries.filter(|entry| entry.file_type().is_file()).map(DirEntry::into_path).collect()
    }

    #[test]
    fn what_stays_can_be_restored_at_each_revision_and_nothing_else_is_left() {
        let member = member();
        let backups = member.backups();
        for (keep, expected) in [
            (9, vec![(1, 26), (26, 51)]),
            (5, vec![(11, 26), (26, 51)]),
            (4, vec![(21, 26), (26, 51)]),
            (3, vec![(26, 51)]),
            (2, vec![(36, 51)]),
            (1, vec![(46, 51)]),
        ] {
            prune(&backups.join("1/2"), keep, 2).unwrap();
            assert_eq!(covered(&backups), expected, "{keep} stay");
            for (first, last) in expected {
                (first..last).step_by(9).chain([last]).for_each(|revision| assert_restored(&backups, revision));
            }
            assert_verified(&backups);
        }
        let catalog = Catalog::read(&backups).unwrap();
        let base = &catalog.members[0].chains[0].bases[0];
        let shared = base.manifest.files.iter().filter(|file| file.is_shared).count();
        assert_eq!(files(&backups.join("1/2").join(SHARED)).len(), shared, "no file is left that is named by none");
        assert!(!backups.join("1/2").join(chain_name(1)).exists());
        assert!(plan(&backups.join("1/2"), 1, 2).unwrap().is_empty());
    }

    #[test]
    fn a_crash_between_any_two_steps_leaves_what_is_claimed_and_the_next_time_ends_the_work() {
        let member = member();
        let member_dir = member.backups().join("1/2");
        let count = plan(&member_dir, 2, 2).unwrap().len();
        assert!(count > 12, "{count}");
        let mut left = None;
        for crash_after in (0..=count).rev() {
            let copied = TempDir::new().unwrap();
            copy(&member.backups(), copied.path());
            let member_dir = copied.path().join("1/2");
            for step in &plan(&member_dir, 2, 2).unwrap()[..crash_after] {
                step.run().unwrap();
            }
            assert_eq!(covered(copied.path()).last(), Some(&(if crash_after < 7 { 26 } else { 36 }, 51)));
            assert_whole(copied.path());
            prune(&member_dir, 2, 2).unwrap();
            let files = files(copied.path());
            let names: Vec<PathBuf> =
                files.iter().map(|path| path.strip_prefix(copied.path()).unwrap().into()).collect();
            assert_eq!(
                left.get_or_insert_with(|| names.clone()),
                &names,
                "a crash after {crash_after} of {count} steps"
            );
        }
    }

    #[test]
    fn a_full_backup_that_does_not_read_counts_for_none_and_goes_when_it_is_old() {
        for damage in [Some("{"), None] {
            let mut member = Member::new();
            member.chain();
            let bases: Vec<PathBuf> = (0..4)
                .map(|_| {
                    member.segment(10);
                    member.base()
                })
                .collect();
            let (member_dir, manifest) = (member.backups().join("1/2"), bases[2].join(MANIFEST));
            match damage {
                Some(text) => fs::write(&manifest, text).unwrap(),
                None => fs::remove_file(&manifest).unwrap(),
            }
            let is_there = |bases: &[PathBuf]| bases.iter().map(|base| base.exists()).collect::<Vec<_>>();
            let shared = files(&member_dir.join(SHARED));
            prune(&member_dir, 2, 1).unwrap();
            assert_eq!(is_there(&bases), [false, true, true, true], "two that read, and the one between them");
            assert_eq!(files(&member_dir.join(SHARED)), shared, "some may be files of the one that does not read");
            assert_eq!(covered(&member.backups()), [(21, 41)]);
            member.segment(10);
            member.base();
            prune(&member_dir, 2, 1).unwrap();
            assert_eq!(is_there(&bases), [false, false, false, true]);
            assert_eq!(covered(&member.backups()), [(41, 51)]);
            assert_whole(&member.backups());
        }
    }

    #[test]
    fn nothing_is_removed_where_no_full_backup_reads() {
        let member = member();
        let bases = Catalog::read(&member.backups()).unwrap();
        for base in bases.members[0].chains.iter().flat_map(|chain| &chain.bases) {
            fs::write(base.dir.join(MANIFEST), "{").unwrap();
        }
        assert!(plan(&member.backups().join("1/2"), 1, 2).unwrap().is_empty());
    }

    #[test]
    fn a_segments_damaged_manifest_is_no_obstacle_and_the_newest_segment_stays() {
        let mut member = Member::new();
        member.chain();
        member.segment(10);
        member.segment(10);
        let base = member.base();
        let chain_dir = base.parent().unwrap();
        let manifests = segment_manifests(chain_dir).unwrap();
        fs::write(&manifests[0].1, "{").unwrap();
        prune(&member.backups().join("1/2"), 1, 1).unwrap();
        assert_eq!(segments(chain_dir).unwrap().iter().map(|(first, _)| *first).collect::<Vec<_>>(), [11]);
        assert_eq!(segment_manifests(chain_dir).unwrap(), manifests[1..]);
        // A process that goes on with the chain knows where.
        let manifest: ChainManifest = read_json(&chain_dir.join("chain.json")).unwrap().unwrap();
        assert_eq!(Archive::resume(chain_dir, 1, &manifest).unwrap().last_index(), 20);
    }
}
