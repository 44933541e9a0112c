//! What a snapshot file holds, as `etcdutl snapshot status` of etcd 3.5 says it. (etcd: `etcdutl/snapshot`.)

use std::{fs::File, path::Path};

use super::{ImportError, Progress};
use crate::{
    bbolt::{Item, Reader},
    etcd_schema::{self, bucket},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C of the names of all buckets, their keys and values, in order.
    pub hash: u32,
    /// The newest one of which there is a version.
    pub revision: i64,
    /// In all buckets.
    pub total_keys: u64,
    /// Of the pages.
    pub total_bytes: u64,
}

/// Reads all of a file, and so finds damage to its pages; a checksum at its end is not looked at.
pub fn status(path: &Path, progress: &Progress) -> Result<Status, ImportError> {
    let io = |error| ImportError::io(path, error);
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let reader = Reader::open(file, path, length)?;
    progress.begin("reading the snapshot", reader.bytes());
    let mut status = Status { hash: 0, revision: 0, total_keys: 0, total_bytes: reader.bytes() };
    reader.root().each(|place, name, item| {
        let Item::Bucket(content) = item else {
            return Err(reader.fault(place, "a value stands where buckets do").into());
        };
        status.hash = crc32c::crc32c_append(status.hash, name);
        content.each(|place, key, item| {
            let Item::Value(value) = item else {
                return Err(reader.fault(place, "a bucket stands where values do").into());
            };
            status.hash = crc32c::crc32c_append(crc32c::crc32c_append(status.hash, key), value);
            status.total_keys += 1;
            if name == bucket::KEY.as_bytes() {
                let parsed = etcd_schema::parse_revision_key(key);
                let (at, _) =
                    parsed.ok_or_else(|| reader.fault(place, "a key of the bucket \"key\" is not a revision"))?;
                status.revision = at.main;
            }
            progress.at(reader.bytes_read())
        })
    })?;
    Ok(status)
}
