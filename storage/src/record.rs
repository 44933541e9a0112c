//! Values as they stand in `data` and `events`: a format version, a kind, a checksum over key and value, the payload.
//!
//! ```text
//! data    01 kind crc32 | KeyValue without its key, as protobuf
//! events  01 kind crc32 | prev main, prev sub, create revision, version, lease (8 bytes each, big-endian) | user key
//! ```
//!
//! `events` repeats what the key index holds and leaves the value out, so that an index is rebuilt without reading
//! values. A prev main of 0 stands for "superseded nothing".

use bytes::Bytes;
use prost::Message;
use proto::{Revision, mvccpb::KeyValue};

use crate::index::Entry;

const FORMAT: u8 = 1;
const HEADER_LEN: usize = 6;
const EVENT_FIXED_LEN: usize = 40;

/// What a change does to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Put = 0,
    Delete = 1,
}

/// What `events` holds of one change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventRecord {
    pub kind: Kind,
    pub key: Bytes,
    pub prev: Option<Revision>,
    /// Create revision, version and lease of a put; zeros for a delete.
    pub create_revision: i64,
    pub version: i64,
    pub lease: i64,
}

impl EventRecord {
    pub fn put(key: Bytes, entry: &Entry, prev: Option<Revision>) -> Self {
        let Entry { create_revision, version, lease, .. } = *entry;
        EventRecord { kind: Kind::Put, key, prev, create_revision, version, lease }
    }

    pub fn delete(key: Bytes, prev: Revision) -> Self {
        EventRecord { kind: Kind::Delete, key, prev: Some(prev), create_revision: 0, version: 0, lease: 0 }
    }

    /// The index entry this put, made at `revision`, gave its key.
    pub fn entry(&self, revision: Revision) -> Entry {
        let (create_revision, version, lease) = (self.create_revision, self.version, self.lease);
        Entry { mod_revision: revision, create_revision, version, lease }
    }

    pub fn encode(&self, at: &[u8]) -> Vec<u8> {
        let prev = self.prev.unwrap_or_default();
        seal_with(at, self.kind, EVENT_FIXED_LEN + self.key.len(), |out| {
            for field in [prev.main, prev.sub, self.create_revision, self.version, self.lease] {
                out.extend(field.to_be_bytes());
            }
            out.extend_from_slice(&self.key);
        })
    }

    pub fn decode(at: &[u8], value: &[u8]) -> Result<Self, String> {
        let (kind, payload) = open(at, value)?;
        let (fixed, key) = payload.split_at_checked(EVENT_FIXED_LEN).ok_or("an event record is cut short")?;
        let field = |i: usize| i64::from_be_bytes(fixed[i * 8..i * 8 + 8].try_into().expect("eight bytes"));
        Ok(EventRecord {
            kind,
            key: Bytes::copy_from_slice(key),
            prev: (field(0) != 0).then(|| Revision::new(field(0), field(1))),
            create_revision: field(2),
            version: field(3),
            lease: field(4),
        })
    }
}

/// The `data` value of a put of `kv`.
pub(crate) fn encode_version(at: &[u8], kv: &KeyValue) -> Vec<u8> {
    let without_key = KeyValue { key: Bytes::new(), ..kv.clone() };
    seal_with(at, Kind::Put, without_key.encoded_len(), |out| without_key.encode_raw(out))
}

/// The `data` value of a delete.
pub(crate) fn encode_tombstone(at: &[u8]) -> Vec<u8> {
    seal(at, Kind::Delete, &[])
}

/// The version in a `data` value as it stands there, an encoded [`KeyValue`] without its key; None for a tombstone.
pub(crate) fn open_version<'a>(at: &[u8], value: &'a [u8]) -> Result<Option<&'a [u8]>, String> {
    let (kind, payload) = open(at, value)?;
    Ok((kind == Kind::Put).then_some(payload))
}

/// The version in a `data` value, with `key` put back; None for a tombstone.
pub(crate) fn decode_version(at: &[u8], value: &[u8], key: Bytes) -> Result<Option<KeyValue>, String> {
    let Some(payload) = open_version(at, value)? else { return Ok(None) };
    let mut kv = KeyValue::decode(payload).map_err(|e| format!("a version does not decode: {e}"))?;
    kv.key = key;
    Ok(Some(kv))
}

pub(crate) fn seal(at: &[u8], kind: Kind, payload: &[u8]) -> Vec<u8> {
    seal_with(at, kind, payload.len(), |out| out.extend_from_slice(payload))
}

/// A record whose payload, of `len` bytes, is written where it is to stand.
fn seal_with(at: &[u8], kind: Kind, len: usize, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + len);
    out.extend([FORMAT, kind as u8, 0, 0, 0, 0]);
    write(&mut out);
    let checksum = checksum(at, out[0], out[1], &out[HEADER_LEN..]);
    out[2..HEADER_LEN].copy_from_slice(&checksum.to_be_bytes());
    out
}

fn open<'a>(at: &[u8], value: &'a [u8]) -> Result<(Kind, &'a [u8]), String> {
    let (header, payload) = value.split_at_checked(HEADER_LEN).ok_or("a record is cut short")?;
    if header[2..] != checksum(at, header[0], header[1], payload).to_be_bytes() {
        return Err("a record's checksum does not match".into());
    }
    match (header[0], header[1]) {
        (FORMAT, 0) => Ok((Kind::Put, payload)),
        (FORMAT, 1) => Ok((Kind::Delete, payload)),
        (FORMAT, kind) => Err(format!("a record is of the unknown kind {kind}")),
        (version, _) => Err(format!("a record has the unknown format version {version}")),
    }
}

fn checksum(at: &[u8], version: u8, kind: u8, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(at);
    hasher.update(&[version, kind]);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_a_flipped_bit_does_not() {
        let kv =
            KeyValue { key: "k".into(), create_revision: 2, mod_revision: 3, version: 2, value: "v".into(), lease: 9 };
        let sealed = encode_version(b"at", &kv);
        assert_eq!(decode_version(b"at", &sealed, "k".into()), Ok(Some(kv)));
        assert_eq!(decode_version(b"at", &encode_tombstone(b"at"), "k".into()), Ok(None));
        let event = EventRecord::delete("k".into(), Revision::new(4, 1));
        assert_eq!(EventRecord::decode(b"at", &event.encode(b"at")), Ok(event));
        assert!(decode_version(b"elsewhere", &sealed, "k".into()).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_version(b"at", &flipped, "k".into()).is_err(), "bit {bit}");
        }
    }
}
