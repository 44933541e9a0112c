//! Back to a state that a backup covers: a full backup, and what the log holds behind it applied by the store's own code.
//!
//! The store stops at the first entry that brings it to the revision asked for, or before the first one that was applied
//! after the time asked for. A transaction is one entry and one revision, so there is never half of one. One entry may
//! make several revisions only when it ends several leases; then it is cut to the leases that make the revision.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use prost::Message as _;
use proto::{
    LeaseId,
    command::{AuthInfo, Command, LeaseExpire, command::Op},
};
use serde::Serialize;
use storage::{Applier, Change, LogEntry, Observer, Options, Payload, Store};

use super::{
    BackupError, Time,
    catalog::{Catalog, Choice, Goal, Segment},
    error::At as _,
    file::{path_of, read_file},
    manifest::BaseManifest,
    segment::{self, Entry},
};
use crate::import::{Membership, Progress, Target};

/// Entries applied in one write, at most, and the bytes of them.
const BATCH_ENTRIES: usize = 512;
const BATCH_BYTES: usize = 4 << 20;
const CACHE_BYTES: usize = 64 << 20;

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// What `--backup-dir` names.
    pub dir: PathBuf,
    pub goal: Goal,
    /// Whose backups, where there are those of several clusters or members.
    pub cluster: Option<u64>,
    pub member: Option<u64>,
    /// Of the new cluster.
    pub membership: Membership,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Restored {
    pub data_dir: PathBuf,
    /// Ids in hexadecimal.
    pub member: String,
    pub cluster: String,
    pub revision: i64,
    pub compacted: i64,
    /// Of the newest entry in it, or of the full backup.
    pub time: Time,
    /// The full backup it began with.
    pub base: PathBuf,
    /// Entries applied behind it.
    pub replayed: u64,
}

/// Makes a data directory with the state asked for, of a member of a new cluster. When it fails nothing is left behind.
pub fn restore(request: &Request, progress: &Progress) -> Result<Restored, BackupError> {
    let target = Target::new(&request.membership)?;
    let catalog = Catalog::read(&request.dir)?;
    let choice = catalog.choose(request.goal, request.cluster, request.member)?;
    let mut replayed = None;
    let settled = target.build(None, |store| {
        replayed = Some(fill(store, &choice, request.goal, progress)?);
        Ok::<_, BackupError>(())
    })?;
    progress.end();
    let (time, replayed) = replayed.expect("a store that was built was filled");
    Ok(Restored {
        data_dir: target.data_dir.clone(),
        member: target.identity.member.to_string(),
        cluster: target.identity.cluster.to_string(),
        revision: settled.revision,
        compacted: settled.compacted,
        time,
        base: choice.base.dir.clone(),
        replayed,
    })
}

/// Brings the state into an empty store; returns its time, and the number of entries applied.
fn fill(dir: &Path, choice: &Choice<'_>, goal: Goal, progress: &Progress) -> Result<(Time, u64), BackupError> {
    let manifest = &choice.base.manifest;
    let checkpoint = dir.with_extension("checkpoint");
    copy_base(choice, &checkpoint, progress)?;
    let store = Store::open(dir, Options { observer: Arc::new(Nobody), cache_bytes: CACHE_BYTES })?;
    let applied = store.install_checkpoint(&checkpoint)?;
    if (applied.index, store.revision()) != (manifest.applied_index, manifest.revision) {
        let found = (applied.index, store.revision());
        let detail = format!("the store in it stands at entry {} and revision {}", found.0, found.1);
        return Err(BackupError::damaged(&choice.base.dir, 0, detail));
    }
    let mut replay = Replay { applier: store.applier(), store: &store, goal, time: manifest.time, replayed: 0 };
    replay.run(choice, progress)?;
    let (time, replayed) = (replay.time, replay.replayed);
    drop(replay);
    store.flush()?;
    if let Goal::Revision(revision) = goal
        && store.revision() != revision
    {
        let detail = format!("the log ends at revision {}, before {revision}", store.revision());
        return Err(BackupError::damaged(&choice.chain.dir, 0, detail));
    }
    Ok((time, replayed))
}

fn copy_base(choice: &Choice<'_>, to: &Path, progress: &Progress) -> Result<(), BackupError> {
    let BaseManifest { files, .. } = &choice.base.manifest;
    progress.begin("copying the backup", choice.base.manifest.bytes());
    fs::create_dir(to).at(to)?;
    let mut done = 0;
    for file in files {
        let (from, to) = (path_of(&choice.member.dir, &choice.base.dir, file), to.join(&file.name));
        let mut copy = File::create_new(&to).at(&to)?;
        read_file(&from, file, |block| {
            copy.write_all(block).at(&to)?;
            done += block.len() as u64;
            Ok(progress.at(done)?)
        })?;
        copy.sync_all().at(&to)?;
    }
    Ok(())
}

/// Applies the log.
struct Replay<'a> {
    store: &'a Store,
    applier: Applier,
    goal: Goal,
    time: Time,
    replayed: u64,
}

impl Replay<'_> {
    fn run(&mut self, choice: &Choice<'_>, progress: &Progress) -> Result<(), BackupError> {
        let mut index = choice.base.manifest.applied_index;
        let segments = choice.chain.segments.iter().filter(|segment| segment.manifest.last_index > index);
        let segments: Vec<&Segment> = segments.collect();
        progress.begin("applying the log", segments.iter().map(|segment| segment.manifest.bytes).sum());
        let mut done = 0;
        for segment in segments {
            if self.is_done() || segment.manifest.first_index > index + 1 {
                break;
            }
            let read = segment::read(&segment.path, choice.chain.manifest.chain)?;
            let mut rest = &read.entries[read.entries.partition_point(|entry| entry.index <= index)..];
            while !rest.is_empty() && !self.is_done() {
                let batch = self.next_batch(rest);
                if batch == 0 {
                    return self.finish(&rest[0], &segment.path);
                }
                self.apply(&rest[..batch], &segment.path)?;
                index = rest[batch - 1].index;
                done += rest[..batch].iter().map(|entry| entry.bytes() as u64).sum::<u64>();
                rest = &rest[batch..];
                progress.at(done)?;
            }
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        matches!(self.goal, Goal::Revision(revision) if self.store.revision() >= revision)
    }

    /// How many of these are applied next, up to the goal; 0 where the first one goes beyond it.
    fn next_batch(&self, entries: &[Entry]) -> usize {
        if entries[0].revision == 0 {
            return usize::from(!self.is_beyond(&entries[0]));
        }
        let (mut count, mut bytes) = (0, 0);
        for entry in entries.iter().take(BATCH_ENTRIES) {
            bytes += entry.bytes();
            if entry.revision == 0 || self.is_beyond(entry) || (count > 0 && bytes > BATCH_BYTES) {
                break;
            }
            count += 1;
            if matches!(self.goal, Goal::Revision(revision) if entry.revision == revision) {
                break;
            }
        }
        count
    }

    /// Whether the goal lies before the end of the entry. One whose revision is not known is the next to be applied.
    fn is_beyond(&self, entry: &Entry) -> bool {
        match self.goal {
            Goal::Newest => false,
            Goal::Time(time) => entry.time > time,
            Goal::Revision(goal) if entry.revision != 0 => entry.revision > goal,
            Goal::Revision(goal) => {
                let ends = expiry(entry).map_or(0, |(expire, _)| expire.ids.iter().map(|id| self.makes(*id)).sum());
                self.store.revision() + ends > goal
            }
        }
    }

    /// Revisions that the end of a lease makes: one without keys makes none.
    fn makes(&self, lease: i64) -> i64 {
        i64::from(!self.store.lease_keys(LeaseId(lease)).is_empty())
    }

    /// Applies whole entries, which must lead where they led before.
    fn apply(&mut self, entries: &[Entry], path: &Path) -> Result<(), BackupError> {
        let log: Vec<LogEntry> = entries.iter().map(Entry::to_log).collect();
        self.applier.apply(&log)?;
        let last = &entries[entries.len() - 1];
        let (now, then) = (self.store.revision(), last.revision);
        if now != then && then != 0 {
            let detail =
                format!("entry {} leads to revision {now}, and led to {then} when it was archived", last.index);
            return Err(BackupError::damaged(path, 0, detail));
        }
        self.time = self.time.max(last.time);
        self.replayed += entries.len() as u64;
        Ok(())
    }

    /// Applies what of `entry` leads to the goal, which lies before its end.
    fn finish(&mut self, entry: &Entry, path: &Path) -> Result<(), BackupError> {
        let Goal::Revision(revision) = self.goal else { return Ok(()) };
        let beyond = || {
            let detail = format!("entry {} goes beyond revision {revision} at once", entry.index);
            BackupError::damaged(path, 0, detail)
        };
        let (LeaseExpire { ids, term }, auth) = expiry(entry).ok_or_else(beyond)?;
        let mut left = revision - self.store.revision();
        let wanted = ids.into_iter().take_while(|id| {
            let is_wanted = left > 0;
            left -= self.makes(*id);
            is_wanted
        });
        let op = Op::LeaseExpire(LeaseExpire { ids: wanted.collect(), term });
        let payload = Payload::Command(Command { op: Some(op), auth }.encode_to_vec().into());
        self.applier.apply(&[LogEntry { index: entry.index, term: entry.term, payload }])?;
        (self.time, self.replayed) = (self.time.max(entry.time), self.replayed + 1);
        if self.is_done() { Ok(()) } else { Err(beyond()) }
    }
}

/// The leases that an entry ends, if that is what it does.
fn expiry(entry: &Entry) -> Option<(LeaseExpire, Option<AuthInfo>)> {
    match Command::decode(entry.command.clone()?).ok()? {
        Command { op: Some(Op::LeaseExpire(expire)), auth } => Some((expire, auth)),
        _ => None,
    }
}

/// A store that is restored has nobody to tell.
pub(super) struct Nobody;

impl Observer for Nobody {
    fn applied(&self, _: Change) {}
    fn restored(&self, _: i64, _: i64) {}
}
