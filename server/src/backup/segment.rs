//! Segments of the archived log: committed entries in order, each with the revision that the store had behind it.
//!
//! ```text
//! header   "pintlear" | format u32 = 1 | chain, 16 bytes | index of the first entry u64 | crc32c u32
//! record   "PLAR" | length u32 | crc32c u32 | body of `length` bytes
//! body     index u64 | term u64 | revision i64 | milliseconds since 1970 i64 | kind u8 | command
//! ```
//!
//! The header is synced before the segment has its name, so one that does not read is damaged. A record's checksum
//! covers the header's and the length, so a record of another segment is none here. What is behind the last whole record
//! was being written when the process ended; unless a whole record follows, since then the fault was synced.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use storage::{LogEntry, Payload};

use super::{
    BackupError, Time,
    error::At as _,
    manifest::{SegmentManifest, read_json},
};

pub const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"pintlear";
const RECORD_MAGIC: &[u8; 4] = b"PLAR";
pub const HEADER_BYTES: usize = 40;
const RECORD_HEADER_BYTES: usize = 12;
const BODY_HEADER_BYTES: usize = 33;

/// A chain's name beyond its number: random, so that no two are taken for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainId(pub [u8; 16]);

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for ChainId {
    type Err = String;

    fn from_str(text: &str) -> Result<ChainId, String> {
        let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32);
        number.map(|number| ChainId(number.to_be_bytes())).ok_or_else(|| format!("{text:?} is not a chain's id"))
    }
}

impl Serialize for ChainId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChainId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ChainId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// An entry of the log, as it was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub index: u64,
    pub term: u64,
    /// Of the store, behind the entry. 0 where it is not known, since the entry was read from the Raft log later.
    pub revision: i64,
    /// When this member had applied it.
    pub time: Time,
    /// Entries of leaders and members have none: a restored cluster has members of its own.
    pub command: Option<Bytes>,
}

impl Entry {
    pub fn new(entry: &LogEntry, revision: i64, time: Time) -> Entry {
        let command = match &entry.payload {
            Payload::Command(command) => Some(command.clone()),
            Payload::Blank | Payload::Membership(_) => None,
        };
        Entry { index: entry.index, term: entry.term, revision, time, command }
    }

    /// As it is applied again.
    pub fn to_log(&self) -> LogEntry {
        let payload = self.command.clone().map_or(Payload::Blank, Payload::Command);
        LogEntry { index: self.index, term: self.term, payload }
    }

    /// In the file.
    pub fn bytes(&self) -> usize {
        RECORD_HEADER_BYTES + BODY_HEADER_BYTES + self.command.as_ref().map_or(0, Bytes::len)
    }

    /// Appends the record to `buffer`; `seed` is the checksum of the segment's header.
    pub fn encode(&self, seed: u32, buffer: &mut Vec<u8>) {
        let command = self.command.as_deref().unwrap_or_default();
        let length = u32::try_from(BODY_HEADER_BYTES + command.len()).expect("a command is smaller than 4 GiB");
        let begin = buffer.len();
        buffer.extend_from_slice(RECORD_MAGIC);
        buffer.extend_from_slice(&length.to_be_bytes());
        buffer.extend_from_slice(&[0; 4]);
        for number in [self.index, self.term, self.revision as u64, self.time.unix_ms as u64] {
            buffer.extend_from_slice(&number.to_be_bytes());
        }
        buffer.push(u8::from(self.command.is_some()));
        buffer.extend_from_slice(command);
        let checksum = record_checksum(seed, &buffer[begin..]);
        buffer[begin + 8..begin + 12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Of a whole record; the place of the checksum itself does not count.
fn record_checksum(seed: u32, record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &record[4..8]), &record[RECORD_HEADER_BYTES..])
}

/// The header, and the checksum in it.
pub fn header(chain: ChainId, first: u64) -> (Vec<u8>, u32) {
    let mut bytes = [&MAGIC[..], &FORMAT.to_be_bytes(), &chain.0, &first.to_be_bytes()].concat();
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_be_bytes());
    (bytes, checksum)
}

pub fn file_name(first: u64) -> String {
    format!("log-{first:020}.log")
}

/// The manifest of a segment that is complete.
pub fn manifest_path(segment: &Path) -> PathBuf {
    segment.with_extension("json")
}

/// A segment as it was read.
#[derive(Debug)]
pub struct Segment {
    pub entries: Vec<Entry>,
    /// Up to the end of the last whole record.
    pub bytes: u64,
    /// CRC-32C of that.
    pub checksum: u32,
    /// What is behind the last whole record.
    pub rest: u64,
    pub is_complete: bool,
}

/// Reads a segment of `chain` whole, and checks all of it.
///
/// # Errors
/// When it is damaged; what was being written as the process ended is no damage in a segment that is not complete.
pub fn read(path: &Path, chain: ChainId) -> Result<Segment, BackupError> {
    let manifest: Option<SegmentManifest> = read_json(&manifest_path(path))?;
    let bytes = Bytes::from(fs::read(path).at(path)?);
    let segment = parse(path, &bytes, chain)?;
    let Some(manifest) = manifest else { return Ok(segment) };
    let damaged = |offset, detail: &str| Err(BackupError::damaged(path, offset, detail));
    if segment.rest > 0 {
        return damaged(segment.bytes, "a complete segment ends in something that is no record");
    }
    if segment.bytes != manifest.bytes {
        return damaged(segment.bytes.min(manifest.bytes), "its manifest says that it has another length");
    }
    if segment.checksum != manifest.crc32c {
        return damaged(0, "its manifest has another checksum for the whole of it");
    }
    Ok(Segment { is_complete: true, ..segment })
}

fn parse(path: &Path, bytes: &Bytes, chain: ChainId) -> Result<Segment, BackupError> {
    let damaged = |offset: usize, detail: String| Err(BackupError::damaged(path, offset as u64, detail));
    if bytes.len() < HEADER_BYTES || &bytes[..8] != MAGIC {
        return damaged(0, "it does not begin as a segment of the log".into());
    }
    let found = number(&bytes[8..12]) as u32;
    if found != FORMAT {
        return Err(BackupError::Format { path: path.into(), found, known: FORMAT });
    }
    let first = number(&bytes[28..36]);
    let (expected, seed) = header(ChainId(bytes[12..28].try_into().expect("sixteen bytes")), first);
    if bytes[..HEADER_BYTES] != expected {
        return damaged(0, "the header's checksum does not match".into());
    }
    if bytes[12..28] != chain.0 {
        return damaged(12, "it belongs to another chain".into());
    }
    if path.file_name().and_then(|name| name.to_str()) != Some(&file_name(first)) {
        return damaged(28, format!("it begins with entry {first}, and its name says otherwise"));
    }
    let (mut entries, mut offset) = (Vec::<Entry>::new(), HEADER_BYTES);
    while offset < bytes.len() {
        let (entry, length) = match record(bytes, offset, seed) {
            Ok(read) => read,
            Err(detail) => match next_record(bytes, offset + 1, seed) {
                Some(next) => return damaged(offset, format!("{detail}, but a whole record follows at {next}")),
                None => break,
            },
        };
        let expected = entries.last().map_or(first, |last| last.index + 1);
        if entry.index != expected {
            return damaged(offset, format!("entry {} stands where {expected} should", entry.index));
        }
        let is_back = |last: &Entry| last.term > entry.term || (entry.revision != 0 && last.revision > entry.revision);
        if entries.last().is_some_and(is_back) {
            return damaged(offset, format!("the revision or the term of entry {expected} is lower than before"));
        }
        entries.push(entry);
        offset += length;
    }
    let (whole, rest) = (offset as u64, (bytes.len() - offset) as u64);
    let checksum = crc32c::crc32c(&bytes[..offset]);
    Ok(Segment { entries, bytes: whole, checksum, rest, is_complete: false })
}

/// The record at `offset`, with its length.
fn record(bytes: &Bytes, offset: usize, seed: u32) -> Result<(Entry, usize), &'static str> {
    let rest = &bytes[offset..];
    if rest.len() < RECORD_HEADER_BYTES {
        return Err("a record is cut short");
    }
    if &rest[..4] != RECORD_MAGIC {
        return Err("there is no record");
    }
    let length = RECORD_HEADER_BYTES + number(&rest[4..8]) as usize;
    if rest.len() < length {
        return Err("a record is cut short");
    }
    if length < RECORD_HEADER_BYTES + BODY_HEADER_BYTES {
        return Err("a record is too short");
    }
    if number(&rest[8..12]) as u32 != record_checksum(seed, &rest[..length]) {
        return Err("the checksum of a record does not match");
    }
    let body = offset + RECORD_HEADER_BYTES;
    let field = |i: usize| number(&bytes[body + 8 * i..body + 8 * i + 8]);
    let command = match bytes[body + 32] {
        0 => None,
        1 => Some(bytes.slice(body + BODY_HEADER_BYTES..offset + length)),
        _ => return Err("a record is of no known kind"),
    };
    let time = Time { unix_ms: field(3) as i64 };
    Ok((Entry { index: field(0), term: field(1), revision: field(2) as i64, time, command }, length))
}

/// Where the next whole record begins, from `offset` on.
fn next_record(bytes: &Bytes, offset: usize, seed: u32) -> Option<usize> {
    let starts = bytes.get(offset..)?.windows(RECORD_MAGIC.len()).enumerate();
    let mut starts = starts.filter(|(_, window)| window == RECORD_MAGIC).map(|(at, _)| offset + at);
    starts.find(|&at| record(bytes, at, seed).is_ok())
}

/// Up to eight bytes, big-endian.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: ChainId = ChainId([7; 16]);

    fn entry(index: u64) -> Entry {
        let command = (index % 3 > 0).then(|| vec![index as u8; 50].into());
        Entry { index, term: 2, revision: index as i64, time: Time { unix_ms: 1000 + index as i64 }, command }
    }

    fn segment(indexes: std::ops::Range<u64>) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, seed) = header(CHAIN, indexes.start);
        let mut ends = vec![bytes.len()];
        for index in indexes {
            entry(index).encode(seed, &mut bytes);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn parse_as(first: u64, bytes: &[u8]) -> Result<Segment, BackupError> {
        parse(Path::new(&file_name(first)), &Bytes::copy_from_slice(bytes), CHAIN)
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, _) = segment(5..20);
        let read = parse_as(5, &bytes).unwrap();
        assert_eq!(read.entries, (5..20).map(entry).collect::<Vec<_>>());
        assert_eq!((read.bytes, read.rest), (bytes.len() as u64, 0));
        assert_eq!(read.entries.iter().map(Entry::bytes).sum::<usize>() + HEADER_BYTES, bytes.len());
    }

    #[test]
    fn a_segment_that_is_cut_anywhere_ends_behind_its_last_whole_record() {
        let (bytes, ends) = segment(1..6);
        for cut in HEADER_BYTES..=bytes.len() {
            let read = parse_as(1, &bytes[..cut]).unwrap();
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!((read.entries.len(), read.bytes as usize), (whole, ends[whole]), "cut at {cut}");
        }
        assert!(matches!(parse_as(1, &bytes[..HEADER_BYTES - 1]), Err(BackupError::Damaged { offset: 0, .. })));
    }

    #[test]
    fn a_flipped_bit_before_the_last_record_is_damage_and_has_a_place() {
        let (bytes, ends) = segment(1..6);
        for at in 0..ends[4] {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            let error = parse_as(1, &changed).unwrap_err();
            let begin = ends.iter().rev().find(|end| **end <= at).copied().unwrap_or(0);
            match error {
                BackupError::Damaged { offset, .. } => assert_eq!(offset as usize, begin, "byte {at}"),
                BackupError::Format { .. } => assert!((8..12).contains(&at)),
                other => panic!("byte {at}: {other}"),
            }
        }
    }

    #[test]
    fn records_out_of_order_and_of_other_chains_are_damage() {
        let (mut bytes, seed) = header(CHAIN, 1);
        entry(1).encode(seed, &mut bytes);
        entry(3).encode(seed, &mut bytes);
        assert!(parse_as(1, &bytes).unwrap_err().to_string().contains("entry 3 stands where 2 should"));
        let other = parse(Path::new(&file_name(1)), &Bytes::from(segment(1..3).0), ChainId([8; 16]));
        assert!(other.unwrap_err().to_string().contains("another chain"));
        assert!(parse_as(2, &segment(1..3).0).unwrap_err().to_string().contains("its name says otherwise"));
    }
}
