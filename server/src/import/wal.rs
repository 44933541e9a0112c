//! Reads the records of etcd's log, one segment file after the other.
//!
//! ```text
//! <sequence>-<index of its first entry>.wal      both in hexadecimal
//! frame     length u64, little-endian: the lower 56 bits, and, when the highest one is set, the padding in the 3 above
//!           a Record; the padding
//! ```
//!
//! A record's checksum covers the contents of all records before it, too; a file begins with the checksum so far. Behind
//! the last record there are zeros. Source: etcd, `server/storage/wal` (decoder.go, encoder.go, wal.go).

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use prost::Message;

use super::ImportError;

const FRAME_BYTES: u64 = 8;
/// A disk writes such pieces whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// etcd's `walpb.Record`.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, optional, tag = "1")]
    kind: Option<i64>,
    #[prost(uint32, optional, tag = "2")]
    crc: Option<u32>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    data: Option<bytes::Bytes>,
}

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Metadata,
    Entry,
    State,
    Checksum,
    Snapshot,
}

/// A segment file.
pub struct Segment {
    pub path: PathBuf,
    sequence: u64,
    /// Of its first entry, unless later ones were overwritten.
    first_index: u64,
    file: File,
    length: u64,
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    segment: usize,
    offset: u64,
}

/// Segments in order, without a gap.
pub struct Log {
    pub dir: PathBuf,
    pub segments: Vec<Segment>,
}

/// The last record was being written when etcd ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    pub path: PathBuf,
    pub offset: u64,
}

impl Log {
    /// Opens the segments that hold the entries from `index` on.
    pub fn open(dir: &Path, index: u64) -> Result<Log, ImportError> {
        let mut named = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|error| ImportError::io(dir, error))? {
            let path = entry.map_err(|error| ImportError::io(dir, error))?.path();
            if let Some((sequence, first_index)) = path.file_name().and_then(|name| parse_name(name.to_str()?)) {
                named.push((sequence, first_index, path));
            }
        }
        named.sort();
        let wal_dir = |detail: String| ImportError::WalDir { path: dir.into(), detail };
        // Before a file is cut, what is in it has been written: the next one begins behind it.
        let Some(first) = named.iter().rposition(|(_, first_index, _)| *first_index <= index) else {
            return Err(wal_dir(match named.first() {
                Some((_, first, _)) => format!("the log begins with entry {first}, but entry {index} is wanted"),
                None => "there is no log of etcd's in it; where it is elsewhere, give --etcd-wal-dir".into(),
            }));
        };
        let mut segments: Vec<Segment> = Vec::new();
        for (sequence, first_index, path) in named.drain(first..) {
            if let Some(last) = segments.last().filter(|last| last.sequence + 1 != sequence) {
                let detail = format!("a file of the log is missing between {} and {}", name(last), path.display());
                return Err(wal_dir(detail));
            }
            let open = || {
                let file = File::open(&path)?;
                let length = file.metadata()?.len();
                Ok((file, length))
            };
            let (file, length) = open().map_err(|error| ImportError::io(&path, error))?;
            segments.push(Segment { path, sequence, first_index, file, length });
        }
        Ok(Log { dir: dir.into(), segments })
    }

    /// Visits the content of every record, with its place, and checks all of them. A record that is torn ends the log,
    /// and is told.
    pub fn each(
        &self,
        mut visit: impl FnMut(Place, Kind, bytes::Bytes) -> Result<(), ImportError>,
    ) -> Result<Option<Torn>, ImportError> {
        let mut crc = 0;
        for (number, segment) in self.segments.iter().enumerate() {
            let is_last = number + 1 == self.segments.len();
            let mut offset = 0;
            while let Some(frame) = segment.frame(offset)? {
                let damaged = |detail: String| ImportError::Wal { path: segment.path.clone(), offset, detail };
                let torn = || Torn { path: segment.path.clone(), offset };
                if frame.end() > segment.length {
                    // Where the file has room behind what was written, no record goes beyond its end.
                    if is_last && !segment.has_room()? {
                        return Ok(Some(torn()));
                    }
                    return Err(damaged(format!("a record of {} bytes goes beyond the file's end", frame.record)));
                }
                let bytes = segment.read(offset + FRAME_BYTES, frame.record + frame.padding)?;
                let (kind, data) = match decode(&bytes[..frame.record as usize], crc) {
                    Ok((kind, data, next)) => {
                        crc = next;
                        (kind, data)
                    }
                    Err(_) if is_last && has_empty_sector(&bytes, offset + FRAME_BYTES) => return Ok(Some(torn())),
                    Err(detail) => return Err(damaged(detail)),
                };
                visit(Place { segment: number, offset }, kind, data)?;
                offset = frame.end();
            }
        }
        Ok(None)
    }

    /// The content of a record that [`Self::each`] has checked.
    pub fn read(&self, place: Place) -> Result<bytes::Bytes, ImportError> {
        let segment = &self.segments[place.segment];
        let changed = || self.damaged(place, "the file has been changed while it was read");
        let frame = segment.frame(place.offset)?.filter(|frame| frame.end() <= segment.length).ok_or_else(changed)?;
        let bytes = segment.read(place.offset + FRAME_BYTES, frame.record)?;
        Ok(Record::decode(bytes).map_err(|_| changed())?.data.unwrap_or_default())
    }

    pub fn damaged(&self, place: Place, detail: impl Into<String>) -> ImportError {
        let path = self.segments[place.segment].path.clone();
        ImportError::Wal { path, offset: place.offset, detail: detail.into() }
    }

    /// The entry before the newest segment.
    pub fn index_before_last(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.first_index.saturating_sub(1))
    }

    /// Of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// Of the segments before a record, and of its own up to there.
    pub fn bytes_before(&self, place: Place) -> u64 {
        self.segments[..place.segment].iter().map(|segment| segment.length).sum::<u64>() + place.offset
    }
}

fn name(segment: &Segment) -> String {
    format!("{:016x}-{:016x}.wal", segment.sequence, segment.first_index)
}

fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (sequence, index) = name.strip_suffix(".wal")?.split_once('-')?;
    Some((u64::from_str_radix(sequence, 16).ok()?, u64::from_str_radix(index, 16).ok()?))
}

struct Frame {
    begin: u64,
    record: u64,
    padding: u64,
}

impl Frame {
    fn end(&self) -> u64 {
        self.begin.saturating_add(FRAME_BYTES + self.record + self.padding)
    }
}

impl Segment {
    /// The frame that begins at `offset`; None behind the last one.
    fn frame(&self, offset: u64) -> Result<Option<Frame>, ImportError> {
        if offset + FRAME_BYTES > self.length {
            return Ok(None);
        }
        let bytes = self.read(offset, FRAME_BYTES)?;
        let field = u64::from_le_bytes(bytes[..].try_into().expect("a frame's header has eight bytes"));
        let padding = if field >> 63 == 1 { (field >> 56) & 7 } else { 0 };
        let frame = Frame { begin: offset, record: field & ((1 << 56) - 1), padding };
        Ok((field != 0).then_some(frame))
    }

    /// etcd makes the file larger than what is in it, with zeros.
    fn has_room(&self) -> Result<bool, ImportError> {
        let length = self.length.min(SECTOR_BYTES);
        Ok(self.read(self.length - length, length)?.iter().all(|byte| *byte == 0))
    }

    fn read(&self, offset: u64, length: u64) -> Result<bytes::Bytes, ImportError> {
        let mut bytes = vec![0; length as usize];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|error: io::Error| ImportError::io(&self.path, error))?;
        Ok(bytes.into())
    }
}

/// A record's kind and content, and the checksum behind it.
fn decode(bytes: &[u8], crc: u32) -> Result<(Kind, bytes::Bytes, u32), String> {
    let record = Record::decode(bytes).map_err(|error| format!("a record does not decode: {error}"))?;
    let (data, found) = (record.data.unwrap_or_default(), record.crc.unwrap_or_default());
    let kind = match record.kind.unwrap_or_default() {
        1 => Kind::Metadata,
        2 => Kind::Entry,
        3 => Kind::State,
        4 => Kind::Checksum,
        5 => Kind::Snapshot,
        other => return Err(format!("a record is of the unknown kind {other}")),
    };
    let matches = match kind {
        // The first one of all has nothing to be compared with.
        Kind::Checksum => crc == 0 || crc == found,
        _ => crc32c::crc32c_append(crc, &data) == found,
    };
    if !matches {
        return Err("a record's checksum does not match".into());
    }
    Ok((kind, data, found))
}

/// A write that was cut by a crash leaves whole sectors as they were: zeros.
fn has_empty_sector(bytes: &[u8], offset: u64) -> bool {
    let first = ((SECTOR_BYTES - offset % SECTOR_BYTES) as usize).min(bytes.len());
    let (first, rest) = bytes.split_at(first);
    let is_empty = |sector: &[u8]| !sector.is_empty() && sector.iter().all(|byte| *byte == 0);
    is_empty(first) || rest.chunks(SECTOR_BYTES as usize).any(is_empty)
}
