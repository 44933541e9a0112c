//! For the fuzzers in `jepsen/fuzz`: the decoders of what stands on disk. Not part of any build but theirs.

use crate::{
    keys, lease,
    record::{self, EventRecord, Kind},
};

/// Whatever bytes stand in the store, decoding them is an error or gives what encodes to the same again.
pub fn records(data: &[u8]) {
    let (at, value) = data.split_at(data.len().min(24));
    let _ = record::decode_version(at, value, "k".into());
    let _ = EventRecord::decode(at, value);
    // The same behind a checksum that matches.
    for kind in [Kind::Put, Kind::Delete] {
        let sealed = record::seal(at, kind, value);
        if let Ok(event) = EventRecord::decode(at, &sealed) {
            assert_eq!(EventRecord::decode(at, &event.encode(at)), Ok(event));
        }
        if let Ok(Some(kv)) = record::decode_version(at, &sealed, "k".into()) {
            assert_eq!(record::decode_version(at, &record::encode_version(at, &kv), "k".into()), Ok(Some(kv)));
        }
    }
    if let Some((key, revision)) = keys::parse_data_key(data) {
        assert_eq!(keys::data_key(&key, revision), data);
    }
    if let Some(revision) = keys::parse_event_key(data) {
        assert_eq!(keys::event_key(revision), data);
    }
    if let Some(found) = lease::decode(&data[..data.len().min(8)], data.get(8..).unwrap_or_default()) {
        assert_eq!(lease::encode(&found), data[8..]);
    }
}
