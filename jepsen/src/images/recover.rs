//! What a member makes of an image: its own code opens the store and the log, and applies what the log holds.
//!
//! A member on its own makes the whole log its state, since it elects itself. So each image is brought to that state.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;
use raft::recovered::{self, Ballot, EntryId};
use storage::{Change, LogEntry, Observer, Options, Payload, Store};
use tokio::runtime::{Builder, Runtime};

use super::disk::Image;

/// Small segments, so that a short run fills many.
pub const SEGMENT_BYTES: u64 = 64 << 10;
const CACHE_BYTES: usize = 1 << 20;

/// A member's directories in its data directory.
pub const STORE: &str = "member/store";
pub const LOG: &str = "member/wal";

/// A store's state, as members compare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreState {
    pub revision: i64,
    pub hash: u32,
}

/// What a member found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub ballot: Option<Ballot>,
    pub purged: Option<EntryId>,
    pub last: Option<EntryId>,
    /// What the log holds: term, first and last index.
    pub runs: Vec<(u64, u64, u64)>,
    /// What the store had applied, and its state then.
    pub applied: Option<EntryId>,
    pub opened: StoreState,
    /// With all of the log applied.
    pub replayed: StoreState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Refused(String),
    Recovered(Found),
}

impl Found {
    /// The log's entry at `index`, or what the store has applied there.
    pub fn id_at(&self, index: u64) -> Option<EntryId> {
        let held = self.runs.iter().find(|(_, first, last)| (*first..=*last).contains(&index));
        let known = [self.purged, self.applied].into_iter().flatten().find(|id| id.index == index);
        held.map(|(term, ..)| EntryId { term: *term, index }).or(known)
    }
}

/// All entries that any image held. Entries with the same term and index are the same, with the same ones before them.
/// (Ongaro, "In Search of an Understandable Consensus Algorithm", section 5.3: Log Matching.)
#[derive(Default)]
pub struct Entries {
    pub known: Mutex<BTreeMap<EntryId, Known>>,
}

#[derive(Clone)]
pub struct Known {
    pub before: Option<EntryId>,
    pub entry: LogEntry,
}

/// The entries up to `last`, from the first.
pub fn path_to(known: &BTreeMap<EntryId, Known>, last: EntryId) -> Result<Vec<EntryId>> {
    let (mut path, mut next) = (Vec::new(), Some(last));
    while let Some(id) = next {
        path.push(id);
        next = known.get(&id).with_context(|| format!("no image had the entry {id:?} above its store"))?.before;
    }
    path.reverse();
    ensure!(path[0].index == 1, "the entries begin with {:?}", path[0]);
    Ok(path)
}

impl Entries {
    /// Those that lead to what an image held.
    pub fn of(&self, outcome: &Outcome) -> Result<Entries> {
        let last = match outcome {
            Outcome::Recovered(found) => found.last,
            Outcome::Refused(_) => None,
        };
        let known = self.known.lock();
        let path = last.map_or(Ok(Vec::new()), |last| path_to(&known, last))?;
        Ok(Entries { known: Mutex::new(path.into_iter().map(|id| (id, known[&id].clone())).collect()) })
    }

    /// The first violation of Log Matching, if the entries show one.
    fn add(&self, found: &Found, entries: Vec<LogEntry>) -> Option<String> {
        let mut known = self.known.lock();
        for entry in entries {
            let id = EntryId { term: entry.term, index: entry.index };
            let before = entry.index.checked_sub(1).and_then(|index| found.id_at(index));
            let new = Known { before, entry };
            match known.get(&id) {
                Some(old) if old.before != new.before => {
                    return Some(format!("{id:?} comes behind {before:?}, and elsewhere behind {:?}", old.before));
                }
                Some(old) if !is_same(&old.entry.payload, &new.entry.payload) => {
                    return Some(format!("{id:?} is not what it is elsewhere"));
                }
                Some(_) => {}
                None => drop(known.insert(id, new)),
            }
        }
        None
    }
}

fn is_same(a: &Payload, b: &Payload) -> bool {
    match (a, b) {
        (Payload::Blank, Payload::Blank) => true,
        (Payload::Command(a), Payload::Command(b)) | (Payload::Membership(a), Payload::Membership(b)) => a == b,
        _ => false,
    }
}

struct Quiet;

impl Observer for Quiet {
    fn applied(&self, _: Change) {}
    fn restored(&self, _: i64, _: i64) {}
}

pub fn open_store(path: &Path) -> Result<Store, storage::StorageError> {
    open_observed_store(path, Arc::new(Quiet))
}

pub fn open_observed_store(path: &Path, observer: Arc<dyn Observer>) -> Result<Store, storage::StorageError> {
    Store::open(path, Options { observer, cache_bytes: CACHE_BYTES })
}

pub fn state_of(store: &Store) -> Result<StoreState> {
    let hashed = store.hash_kv(0).map_err(|error| anyhow::anyhow!("HashKV: {error:?}"))?;
    Ok(StoreState { revision: hashed.revision, hash: hashed.hash })
}

/// Opens images in a directory of its own, one after the other.
pub struct Recoverer {
    dir: PathBuf,
    runtime: Runtime,
}

impl Recoverer {
    pub fn new(dir: &Path) -> Result<Recoverer> {
        Ok(Recoverer { dir: dir.into(), runtime: Builder::new_current_thread().build()? })
    }

    /// # Errors
    /// When the machine fails, and not the image.
    pub fn recover(&self, image: &Image, entries: &Entries) -> Result<Outcome> {
        image.write(&self.dir)?;
        let outcome = self.runtime.block_on(open(&self.dir, entries));
        fs::remove_dir_all(&self.dir).context("removing an image")?;
        outcome
    }
}

async fn open(dir: &Path, entries: &Entries) -> Result<Outcome> {
    let store = match open_store(&dir.join(STORE)) {
        Ok(store) => store,
        Err(error) => return Ok(Outcome::Refused(error.to_string())),
    };
    let applied = store.applied();
    let opened = match state_of(&store) {
        Ok(state) => state,
        Err(error) => return Ok(Outcome::Refused(error.to_string())),
    };
    let read = match recovered::read(dir, &dir.join(LOG), SEGMENT_BYTES, &store).await {
        Ok(read) => read,
        Err(error) => return Ok(Outcome::Refused(error.to_string())),
    };
    let applied = (applied.index > 0).then_some(EntryId { term: applied.term, index: applied.index });
    let mut found = Found {
        ballot: read.ballot,
        purged: read.purged,
        last: read.last.max(applied),
        runs: runs_of(&read.ids),
        applied,
        opened,
        replayed: opened,
    };
    if let Err(error) = apply(&store, &read.unapplied) {
        return Ok(Outcome::Refused(error.to_string()));
    }
    found.replayed = state_of(&store)?;
    match entries.add(&found, read.unapplied) {
        None => Ok(Outcome::Recovered(found)),
        Some(violation) => Ok(Outcome::Refused(violation)),
    }
}

/// Applies entries, which come right behind what has been applied.
pub fn apply(store: &Store, entries: &[LogEntry]) -> Result<()> {
    let next = store.applied().index + 1;
    if let Some(first) = entries.first().filter(|first| first.index != next) {
        bail!("entry {} was to be applied where entry {next} belongs", first.index);
    }
    if !entries.is_empty() {
        store.applier().apply(entries)?;
    }
    Ok(())
}

fn runs_of(ids: &[EntryId]) -> Vec<(u64, u64, u64)> {
    let mut runs: Vec<(u64, u64, u64)> = Vec::new();
    for id in ids {
        match runs.last_mut() {
            Some((term, _, last)) if *term == id.term && *last + 1 == id.index => *last = id.index,
            _ => runs.push((id.term, id.index, id.index)),
        }
    }
    runs
}
