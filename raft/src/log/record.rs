//! Records as they stand in a segment.
//!
//! ```text
//! segment   header (4096 bytes): "pintlelg" version u32, sequence number u64, file size u64, crc32 u32, zeros
//!           record, record, …
//! record    length u32 | crc32 u32 | batch u64 | kind u8 | last u8 | body (length bytes, protobuf)
//! ```
//!
//! Numbers are big-endian. The checksum covers the segment's number and all of the record behind it, so that what a
//! recycled file held before is no record. A *batch* is what one write and one sync brought to the disk; `last` marks
//! its last record. Batches are numbered without gaps, so a record of a later batch behind an unreadable one proves
//! that the unreadable one had been synced: that is damage, and not the torn end of a crashed write.

use bytes::{Buf, Bytes};
use prost::Message;
use proto::peer;

use crate::{
    convert::{entry_from_wire, entry_to_wire, id_from_wire, id_to_wire, vote_from_wire, vote_to_wire},
    types::{Entry, LogId, Vote},
};

pub(super) const HEADER_LEN: u64 = 4096;
const MAGIC: &[u8; 8] = b"pintlelg";
const VERSION: u32 = 1;
/// What stands before a record's body.
pub(super) const PREFIX_LEN: usize = 18;

/// Above every index of an entry and every number of a batch: one that is not is no number that was counted up to.
const COUNT_END: u64 = 1 << 62;

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
const COMMITTED: u8 = 5;
const START: u8 = 6;
const INSTALLED: u8 = 7;

/// The state that a segment begins with.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Start {
    pub previous_end: u64,
    pub last: Option<LogId>,
    pub purged: Option<LogId>,
    pub committed: Option<LogId>,
    pub vote: Option<Vote>,
    pub installed: Option<LogId>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    Entry(Entry),
    Vote(Vote),
    /// Entries behind this one are gone; None: all.
    Truncate(Option<LogId>),
    /// Entries up to and with this one are gone.
    Purge(LogId),
    Committed(LogId),
    Start(Start),
    /// A snapshot up to here is about to replace the store.
    Installed(LogId),
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Record::Entry(_) => ENTRY,
            Record::Vote(_) => VOTE,
            Record::Truncate(_) => TRUNCATE,
            Record::Purge(_) => PURGE,
            Record::Committed(_) => COMMITTED,
            Record::Start(_) => START,
            Record::Installed(_) => INSTALLED,
        }
    }

    /// Appends the record to `out`, with a prefix that [`seal`] completes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend([0; PREFIX_LEN]);
        out[begin + 16] = self.kind();
        let encoded = match self {
            Record::Entry(entry) => entry_to_wire(entry.clone()).encode(out),
            Record::Vote(vote) => vote_to_wire(vote).encode(out),
            Record::Truncate(after) => peer::LogTruncation { after: after.as_ref().map(id_to_wire) }.encode(out),
            Record::Purge(id) | Record::Committed(id) | Record::Installed(id) => id_to_wire(id).encode(out),
            Record::Start(start) => peer::LogStart {
                previous_end: start.previous_end,
                last: start.last.as_ref().map(id_to_wire),
                purged: start.purged.as_ref().map(id_to_wire),
                committed: start.committed.as_ref().map(id_to_wire),
                vote: start.vote.as_ref().map(vote_to_wire),
                installed: start.installed.as_ref().map(id_to_wire),
            }
            .encode(out),
        };
        encoded.expect("a vector grows as needed");
        let len = (out.len() - begin - PREFIX_LEN) as u32;
        out[begin..begin + 4].copy_from_slice(&len.to_be_bytes());
    }

    fn decode(kind: u8, body: Bytes) -> Result<Record, String> {
        let record = Record::decode_any(kind, body)?;
        match record.ids().iter().flatten().all(|id| id.index < COUNT_END) {
            true => Ok(record),
            false => Err("a record names an entry that no log can hold".into()),
        }
    }

    /// The entries that the record names.
    fn ids(&self) -> [Option<LogId>; 4] {
        match self {
            Record::Entry(entry) => [Some(entry.log_id), None, None, None],
            Record::Vote(_) => [None; 4],
            Record::Truncate(after) => [*after, None, None, None],
            Record::Purge(id) | Record::Committed(id) | Record::Installed(id) => [Some(*id), None, None, None],
            Record::Start(start) => [start.last, start.purged, start.committed, start.installed],
        }
    }

    fn decode_any(kind: u8, body: Bytes) -> Result<Record, String> {
        let id = |body: Bytes| peer::LogId::decode(body).map(id_from_wire).map_err(|e| e.to_string());
        Ok(match kind {
            ENTRY => {
                let entry = peer::Entry::decode(body).map_err(|e| e.to_string())?;
                Record::Entry(entry_from_wire(entry).map_err(|e| e.to_string())?)
            }
            VOTE => {
                let ballot = peer::Ballot::decode(body).map_err(|e| e.to_string())?;
                Record::Vote(vote_from_wire(Some(ballot)).map_err(|e| e.to_string())?)
            }
            TRUNCATE => {
                let truncation = peer::LogTruncation::decode(body).map_err(|e| e.to_string())?;
                Record::Truncate(truncation.after.map(id_from_wire))
            }
            PURGE => Record::Purge(id(body)?),
            COMMITTED => Record::Committed(id(body)?),
            INSTALLED => Record::Installed(id(body)?),
            START => {
                let start = peer::LogStart::decode(body).map_err(|e| e.to_string())?;
                let vote = start.vote.map(|vote| vote_from_wire(Some(vote))).transpose().map_err(|e| e.to_string())?;
                Record::Start(Start {
                    previous_end: start.previous_end,
                    last: start.last.map(id_from_wire),
                    purged: start.purged.map(id_from_wire),
                    committed: start.committed.map(id_from_wire),
                    vote,
                    installed: start.installed.map(id_from_wire),
                })
            }
            kind => return Err(format!("a record is of the unknown kind {kind}")),
        })
    }
}

/// Completes the records in `batch`, which begin at the offsets `begins`, as the batch `number` of `segment`.
pub(super) fn seal(batch: &mut [u8], begins: &[usize], segment: u64, number: u64) {
    for (i, &begin) in begins.iter().enumerate() {
        let end = begins.get(i + 1).copied().unwrap_or(batch.len());
        let record = &mut batch[begin..end];
        record[8..16].copy_from_slice(&number.to_be_bytes());
        record[17] = u8::from(i + 1 == begins.len());
        let crc = checksum(segment, record);
        record[4..8].copy_from_slice(&crc.to_be_bytes());
    }
}

/// A record as it was found, still encoded.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub batch: u64,
    pub is_last: bool,
    kind: u8,
    body: Bytes,
}

impl Found {
    /// Prefix and body.
    pub fn len(&self) -> usize {
        PREFIX_LEN + self.body.len()
    }

    pub fn decode(self) -> Result<Record, String> {
        Record::decode(self.kind, self.body)
    }
}

/// The record that `bytes` begin with; None when there is no whole one with a matching checksum.
pub(super) fn find(segment: u64, bytes: &Bytes) -> Option<Found> {
    let prefix = bytes.get(..PREFIX_LEN)?;
    let (len, crc, batch) = ((&prefix[..4]).get_u32() as usize, (&prefix[4..8]).get_u32(), (&prefix[8..16]).get_u64());
    let (kind, last) = (prefix[16], prefix[17]);
    if kind == 0 || last > 1 || batch >= COUNT_END {
        return None;
    }
    let record = bytes.get(..PREFIX_LEN.checked_add(len)?)?;
    (checksum(segment, record) == crc).then(|| Found {
        batch,
        is_last: last == 1,
        kind,
        body: bytes.slice(PREFIX_LEN..record.len()),
    })
}

/// Whether a whole record of a batch behind `batch` begins anywhere in `bytes`.
pub(super) fn is_followed(segment: u64, batch: u64, bytes: &Bytes) -> bool {
    const BLOCK: usize = 4096;
    let later = batch + 1..batch + (1 << 32);
    let mut at = 0;
    while let Some(number) = bytes.get(at + 8..at + 16) {
        // Most of what is searched was never written.
        if at % BLOCK == 0 && bytes.get(at..at + 2 * BLOCK).is_some_and(|block| block.iter().all(|byte| *byte == 0)) {
            at += BLOCK;
            continue;
        }
        if later.contains(&{ number }.get_u64()) && find(segment, &bytes.slice(at..)).is_some() {
            return true;
        }
        at += 1;
    }
    false
}

fn checksum(segment: u64, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&segment.to_be_bytes());
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    hasher.finalize()
}

/// The header of the segment with this number, in a file of `size` bytes.
pub(super) fn header(segment: u64, size: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN as usize);
    out.extend(MAGIC);
    out.extend(VERSION.to_be_bytes());
    out.extend(segment.to_be_bytes());
    out.extend(size.to_be_bytes());
    out.extend(crc32fast::hash(&out).to_be_bytes());
    out.resize(HEADER_LEN as usize, 0);
    out
}

/// Checks a segment's header; says what is wrong with it.
pub(super) fn check_header(segment: u64, bytes: &[u8]) -> Result<(), String> {
    let header = bytes.get(..32).ok_or("the header is cut short")?;
    if header[..8] != *MAGIC || header[28..32] != crc32fast::hash(&header[..28]).to_be_bytes() {
        return Err("the header is not that of a log segment, or its checksum does not match".into());
    }
    let size = (&header[20..28]).get_u64();
    match ((&header[8..12]).get_u32(), (&header[12..20]).get_u64()) {
        (VERSION, found) if found == segment && (bytes.len() as u64) < size => {
            Err(format!("the file was {size} bytes long, and is {} now", bytes.len()))
        }
        (VERSION, found) if found == segment => Ok(()),
        (VERSION, found) => Err(format!("the header is that of segment {found}")),
        (version, _) => Err(format!("format version {version} is not known here, only {VERSION}")),
    }
}
