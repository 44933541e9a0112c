//! Reading the log from its files: what is found there is believed only as far as it can be proved.
//!
//! - A segment that another one follows must read without a fault up to the end that the next one names.
//! - The newest one may end in the torn batch of a crashed write, which was never synced and is cut. When a record of a
//!   later batch follows the fault, the batch was synced, and this is damage.
//! - A gap in the numbers of segments, batches or entries is damage.
//!
//! What is read may be in memory only: the process before may have ended between a write and its sync, or because the
//! sync failed, after which the system takes what is not on the disk as clean. So the last batch is written again and
//! synced before anybody hears of it (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).

use std::collections::VecDeque;

use bytes::Bytes;
use storage::planted;

use super::{
    LogError,
    record::{self, HEADER_LEN, Record, Start},
    segment::{Folder, Segment},
};
use crate::types::{LogId, Vote, log_id};

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub segment: u64,
    pub offset: u64,
    pub len: u32,
    pub term: u64,
}

/// What the records lead to.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct State {
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    /// The end of the newest snapshot that was to be installed.
    pub installed: Option<LogId>,
    /// Entries behind `purged` whose segments are gone; none, once recovery has come to its end.
    gone: u64,
    /// Of the entries behind those, in order.
    pub positions: VecDeque<Position>,
}

impl State {
    /// The index of the first entry there is or will be.
    pub fn first(&self) -> u64 {
        self.purged.map_or(0, |id| id.index + 1)
    }

    /// The index behind the last entry.
    pub fn next(&self) -> u64 {
        self.first() + self.gone + self.positions.len() as u64
    }

    pub fn last(&self) -> Option<LogId> {
        self.positions.back().map(|position| log_id(position.term, self.next() - 1)).or(self.purged)
    }

    pub fn position(&self, index: u64) -> Option<Position> {
        self.positions.get(index.checked_sub(self.first() + self.gone)? as usize).copied()
    }

    /// Follows a record that is no entry.
    pub fn follow(&mut self, record: &Record) {
        match record {
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Committed(id) => self.committed = self.committed.max(Some(*id)),
            Record::Installed(id) => self.installed = self.installed.max(Some(*id)),
            Record::Truncate(after) => {
                let keep = after.map_or(0, |id| (id.index + 1).saturating_sub(self.first()));
                let keep = keep + u64::from(planted!(LogTruncationOffByOne));
                self.positions.truncate(keep.saturating_sub(self.gone) as usize);
                self.gone = self.gone.min(keep);
            }
            Record::Purge(id) => {
                let purged = (id.index + 1).saturating_sub(self.first());
                let of_gone = purged.min(self.gone);
                self.gone -= of_gone;
                self.positions.drain(..(purged - of_gone).min(self.positions.len() as u64) as usize);
                self.purged = self.purged.max(Some(*id));
            }
            Record::Start(_) | Record::Entry(_) => {}
        }
    }

    /// What a new segment begins with.
    pub fn start(&self, previous_end: u64) -> Start {
        Start {
            previous_end,
            last: self.last(),
            purged: self.purged,
            committed: self.committed,
            vote: self.vote,
            installed: self.installed,
        }
    }
}

/// The log as it was found.
pub(super) struct Recovered {
    pub state: State,
    /// In order; the last one is written to.
    pub segments: Vec<Segment>,
    /// Where the next batch goes in the last segment; [`HEADER_LEN`]: it is empty.
    pub end: u64,
    /// The end of the segment before the last one.
    pub previous_end: u64,
    pub next_batch: u64,
}

/// One segment, read.
struct Scan {
    /// The state that the segment begins with; None when it has no record.
    start: Option<Start>,
    records: Vec<(u64, u32, Record)>,
    /// Where the last whole batch begins.
    last_batch: u64,
    /// Behind the last whole batch.
    end: u64,
    next_batch: Option<u64>,
    /// A record of a later batch stands behind `end`.
    is_followed: bool,
}

pub(super) fn recover(folder: &Folder) -> Result<Recovered, LogError> {
    let (numbers, newest) = (folder.numbers()?, folder.newest()?);
    let missing = |number| {
        let path = folder.path_of(number);
        LogError::damaged(&path, 0, "the segment is missing")
    };
    let (Some(&first), Some(&last)) = (numbers.first(), numbers.last()) else {
        if let Some(newest) = newest {
            return Err(missing(newest));
        }
        let first = folder.create(1, folder.segment_bytes)?;
        let (state, segments) = (State::default(), vec![first]);
        return Ok(Recovered { state, segments, end: HEADER_LEN, previous_end: 0, next_batch: 1 });
    };
    if let Some(gap) = (first..=last).zip(&numbers).find(|(expected, number)| expected != *number) {
        return Err(missing(gap.0));
    }
    if let Some(newest) = newest.filter(|newest| *newest > last) {
        return Err(missing(newest));
    }

    let mut segments = Vec::new();
    let mut scans = Vec::new();
    let mut batch = None;
    for &number in &numbers {
        let (segment, scan) = scan(folder, number, batch)?;
        batch = scan.next_batch.or(batch);
        segments.push(segment);
        scans.push(scan);
    }
    // Without the mark there can only be the first segment, not yet written to.
    if newest.is_none() && (numbers.len() > 1 || scans[0].start.is_some()) {
        return Err(LogError::damaged(&folder.newest_path(), 0, "the file is missing"));
    }
    let is_unused = scans.len() > 1 && scans.last().is_some_and(|scan| scan.start.is_none());
    let written = scans.len() - usize::from(is_unused);
    for (i, scan) in scans.iter().enumerate() {
        let end = match scans[..written].get(i + 1).and_then(|next| next.start.as_ref()) {
            Some(next) => next.previous_end,
            None if i + 1 < written => return Err(damaged(&segments[i + 1], HEADER_LEN)),
            None => scan.end,
        };
        if (scan.is_followed || scan.end != end) && !planted!(TruncationOnAnyChecksumError) {
            return Err(damaged(&segments[i], scan.end));
        }
    }

    let mut state = State::default();
    for (i, scan) in scans.iter().enumerate() {
        replay(&mut state, scan, &mut segments[i], i == 0)?;
    }
    if state.gone > 0 {
        return Err(missing(first.saturating_sub(1)));
    }
    settle(folder, newest, &segments[segments.len() - 1], &scans[scans.len() - 1])?;
    let before_last = scans.len().checked_sub(2).map_or(0, |i| scans[i].end);
    let end = scans.last().map_or(HEADER_LEN, |scan| scan.end);
    Ok(Recovered { state, segments, end, previous_end: before_last, next_batch: batch.unwrap_or(1) })
}

/// Brings to the disk what the process before may have left in memory: the last batch, and the names in the folder.
fn settle(folder: &Folder, newest: Option<u64>, segment: &Segment, scan: &Scan) -> Result<(), LogError> {
    let rewrite = || {
        let mut batch = vec![0; (scan.end - scan.last_batch) as usize];
        segment.file.read_at(&mut batch, scan.last_batch)?;
        segment.file.write_at(&batch, scan.last_batch)?;
        segment.file.sync_all()
    };
    rewrite().map_err(|e| LogError::io(&segment.path, e))?;
    match newest == Some(segment.number) {
        true => folder.sync(),
        // It had come as far as the segment.
        false => folder.mark_newest(segment.number),
    }
}

fn damaged(segment: &Segment, offset: u64) -> LogError {
    LogError::damaged(&segment.path, offset, "a record that was synced cannot be read any more")
}

/// Reads a segment up to the first fault. `batch` is the number that its first batch must have; None: any.
fn scan(folder: &Folder, number: u64, batch: Option<u64>) -> Result<(Segment, Scan), LogError> {
    let path = folder.path_of(number);
    let error = |e| LogError::io(&path, e);
    let bytes = Bytes::from(folder.disk.read(&path).map_err(error)?);
    record::check_header(number, &bytes).map_err(|detail| LogError::damaged(&path, 0, detail))?;
    let file = folder.disk.open(&path, false).map_err(error)?;
    let size = bytes.len() as u64;

    let mut scan = Scan {
        start: None,
        records: Vec::new(),
        last_batch: HEADER_LEN,
        end: HEADER_LEN,
        next_batch: batch,
        is_followed: false,
    };
    let (mut offset, mut whole) = (HEADER_LEN, 0);
    while let Some(found) =
        bytes.get(offset as usize..).and_then(|_| record::find(number, &bytes.slice(offset as usize..)))
    {
        if scan.next_batch.is_some_and(|expected| found.batch != expected) {
            break;
        }
        let (batch, is_last, len) = (found.batch, found.is_last, found.len() as u64);
        scan.next_batch = Some(batch);
        let record = found.decode().map_err(|detail| LogError::damaged(&path, offset, detail))?;
        match record {
            Record::Start(start) if offset == HEADER_LEN => scan.start = Some(start),
            record => scan.records.push((offset, len as u32, record)),
        }
        offset += len;
        if is_last {
            (scan.last_batch, scan.end) = (scan.end, offset);
            (scan.next_batch, whole) = (Some(batch + 1), scan.records.len());
        }
    }
    scan.records.truncate(whole);
    if scan.end == HEADER_LEN {
        (scan.start, scan.next_batch) = (None, batch);
    } else if scan.start.is_none() {
        return Err(LogError::damaged(&path, HEADER_LEN, "the segment does not begin with its start record"));
    }
    let rest = bytes.slice((offset as usize).min(bytes.len())..);
    scan.is_followed = record::is_followed(number, scan.next_batch.unwrap_or(0), &rest);
    Ok((Segment { number, path, file, size, last_index: None }, scan))
}

fn replay(state: &mut State, scan: &Scan, segment: &mut Segment, is_first: bool) -> Result<(), LogError> {
    if let Some(start) = scan.start.as_ref().filter(|_| is_first) {
        state.vote = start.vote;
        state.committed = start.committed;
        state.installed = start.installed;
        state.purged = start.purged;
        // Entries up to `last` stood in segments that are gone. What follows must purge them.
        state.gone = start.last.map_or(0, |last| last.index + 1).saturating_sub(state.first());
    }
    for (offset, len, record) in &scan.records {
        match record {
            Record::Entry(entry) => {
                let (index, term) = (entry.log_id.index, entry.log_id.leader_id.term);
                if index != state.next() {
                    let detail = format!("entry {index} stands where entry {} belongs", state.next());
                    return Err(LogError::damaged(&segment.path, *offset, detail));
                }
                segment.last_index = segment.last_index.max(Some(index));
                state.positions.push_back(Position { segment: segment.number, offset: *offset, len: *len, term });
            }
            record => state.follow(record),
        }
    }
    Ok(())
}
