//! The entries of etcd's log that its database lacks and that are committed.
//!
//! etcd writes its database every 100 ms, and its log at once. What is behind the database's index comes from the log,
//! up to the commit index, which the log holds, too. A single voter commits what it has written: of its log everything
//! counts, for the commit index in it may lag behind what clients have been told. Source: etcd,
//! `server/storage/wal/wal.go` (ReadAll), `server/etcdserver/server.go` (applyEntryNormal, applyConfChange).

use std::{
    collections::{BTreeSet, VecDeque},
    path::Path,
};

use bytes::Bytes;
use prost::Message;

use super::{
    ImportError, Progress,
    database::Described,
    wal::{Kind, Log, Place, Torn},
};

/// raftpb's `Entry`.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// 0: a request, 1 and 2: a change of the membership.
    #[prost(int32, optional, tag = "1")]
    kind: Option<i32>,
    #[prost(uint64, optional, tag = "2")]
    term: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    index: Option<u64>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    data: Option<Bytes>,
}

/// raftpb's `HardState`, of which the commit index counts.
#[derive(Clone, PartialEq, Message)]
struct HardState {
    #[prost(uint64, optional, tag = "3")]
    commit: Option<u64>,
}

/// etcd's `walpb.Snapshot`.
#[derive(Clone, PartialEq, Message)]
struct Snapshot {
    #[prost(uint64, optional, tag = "1")]
    index: Option<u64>,
}

/// raftpb's `ConfChange`.
#[derive(Clone, PartialEq, Message)]
struct Change {
    #[prost(int32, optional, tag = "2")]
    kind: Option<i32>,
    #[prost(uint64, optional, tag = "3")]
    node: Option<u64>,
}

/// raftpb's `ConfChangeV2`.
#[derive(Clone, PartialEq, Message)]
struct Changes {
    #[prost(message, repeated, tag = "2")]
    changes: Vec<SingleChange>,
}

#[derive(Clone, PartialEq, Message)]
struct SingleChange {
    #[prost(int32, optional, tag = "1")]
    kind: Option<i32>,
    #[prost(uint64, optional, tag = "2")]
    node: Option<u64>,
}

const REQUEST: i32 = 0;
const CHANGE: i32 = 1;
const ADD_VOTER: i32 = 0;
const UPDATE: i32 = 2;

/// What the log holds behind the database.
pub struct Tail {
    log: Log,
    /// The first one stands right behind the database.
    entries: VecDeque<(Place, bool)>,
    /// The newest snapshot that the log goes on from.
    pub snapshot: Option<u64>,
    /// Why entries are missing, unless the snapshot holds them.
    pub gap: Option<ImportError>,
    pub warnings: Vec<String>,
}

impl Entry {
    /// The request; None in a change of the membership, and in what a new leader begins with.
    pub fn request(&self) -> Option<&Bytes> {
        self.data.as_ref().filter(|data| self.kind() == REQUEST && !data.is_empty())
    }

    fn is_change(&self) -> bool {
        self.kind() != REQUEST
    }

    fn follow(&self, voters: &mut BTreeSet<u64>) -> Result<(), prost::DecodeError> {
        let data = self.data.clone().unwrap_or_default();
        let changes = match self.kind() {
            REQUEST => return Ok(()),
            CHANGE => {
                let Change { kind, node } = Change::decode(data)?;
                vec![SingleChange { kind, node }]
            }
            _ => Changes::decode(data)?.changes,
        };
        for SingleChange { kind, node } in changes {
            let node = node.unwrap_or_default();
            match kind.unwrap_or_default() {
                ADD_VOTER => voters.insert(node),
                UPDATE => continue,
                _ => voters.remove(&node),
            };
        }
        Ok(())
    }
}

impl Tail {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries in order.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, ImportError>> {
        self.entries.iter().map(|(place, _)| decode(&self.log, *place, self.log.read(*place)?))
    }
}

/// Reads the log behind what the database has.
pub fn read(dir: &Path, database: &Described, progress: &Progress) -> Result<Tail, ImportError> {
    let index = database.index;
    let log = Log::open(dir, index + 1)?;
    let mut tail = Tail { log, entries: VecDeque::new(), snapshot: None, gap: None, warnings: Vec::new() };
    progress.begin("reading etcd's log", tail.log.bytes());
    let (mut commit, mut last) = (0, tail.log.index_before_last());
    let Tail { log, entries, snapshot, gap, warnings, .. } = &mut tail;
    let torn = log.each(|place, kind, data| {
        match kind {
            Kind::Entry => {
                let entry = decode(log, place, data)?;
                last = entry.index();
                // An entry overwrites those behind it, which were not committed.
                let position = entry.index().saturating_sub(index + 1).min(entries.len() as u64);
                entries.truncate(position as usize);
                if entry.index() > index + 1 + position {
                    let detail = format!("entry {} follows entry {}", entry.index(), index + position);
                    gap.get_or_insert_with(|| log.damaged(place, detail));
                } else if entry.index() > index {
                    entries.push_back((place, entry.is_change()));
                }
            }
            Kind::State => {
                let state = HardState::decode(data).map_err(|error| log.damaged(place, error.to_string()))?;
                commit = state.commit();
            }
            Kind::Snapshot => {
                let found = Snapshot::decode(data).map_err(|error| log.damaged(place, error.to_string()))?;
                *snapshot = (*snapshot).max(found.index);
                last = last.max(found.index());
            }
            Kind::Metadata | Kind::Checksum => {}
        }
        progress.at(log.bytes_before(place))
    })?;
    // Both come behind the entries: what ends before them has lost some that clients were told of.
    let wanted = index.max(commit);
    if last < wanted {
        let detail =
            format!("the log ends with entry {last}, but entry {wanted} was committed: what is behind it is lost");
        return Err(match torn {
            Some(Torn { path, offset }) => ImportError::Wal { path, offset, detail },
            None => ImportError::WalDir { path: dir.into(), detail },
        });
    }
    if let Some(Torn { path, offset }) = torn {
        warnings.push(format!(
            "{}: the log ends in a record at byte {offset} that etcd had not finished to write: nobody was told of it",
            path.display()
        ));
    }
    tail.keep_committed(index, commit, database.voters.clone())?;
    Ok(tail)
}

impl Tail {
    fn keep_committed(&mut self, index: u64, commit: u64, mut voters: BTreeSet<u64>) -> Result<(), ImportError> {
        let mut committed = 0;
        while committed < self.entries.len() {
            let (place, is_change) = self.entries[committed];
            if index + 1 + committed as u64 > commit && voters.len() != 1 {
                break;
            }
            if is_change {
                let entry = decode(&self.log, place, self.log.read(place)?)?;
                let followed = entry.follow(&mut voters);
                followed.map_err(|error| self.log.damaged(place, format!("a change of members: {error}")))?;
            }
            committed += 1;
        }
        if committed < self.entries.len() {
            self.warnings.push(format!(
                "{}: entries {} to {} are left out, since this member does not know them to be committed; where the \
                 cluster was not stopped in order, import the member with the highest raft applied index, or a snapshot",
                self.log.dir.display(),
                index + 1 + committed as u64,
                index + self.entries.len() as u64
            ));
            self.entries.truncate(committed);
        }
        Ok(())
    }
}

fn decode(log: &Log, place: Place, data: Bytes) -> Result<Entry, ImportError> {
    Entry::decode(data).map_err(|error| log.damaged(place, format!("an entry does not decode: {error}")))
}
