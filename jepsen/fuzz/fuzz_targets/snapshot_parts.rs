//! The parts of a snapshot: each is preceded by its length. Chunks get the checksum that matches, the
//! others none, but for some.
#![no_main]

use prost::Message;
use proto::peer::{
    SnapshotPart,
    snapshot_part::{Begin, File, Part},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let mut parts = Vec::new();
    while let Ok(part) = SnapshotPart::decode_length_delimited(&mut data) {
        let part = match part.part {
            Some(Part::Chunk(mut chunk)) if chunk.crc32 % 8 != 1 => {
                chunk.crc32 = crc32fast::hash(&chunk.data);
                Part::Chunk(chunk)
            }
            Some(Part::Begin(begin)) if begin.crc32 % 8 != 1 => Part::Begin(Begin { crc32: 0, ..begin }),
            Some(Part::File(file)) if file.crc32 % 8 != 1 => Part::File(File { crc32: 0, ..file }),
            Some(part) => part,
            None => break,
        };
        parts.push(SnapshotPart { part: Some(part) });
        if data.is_empty() || parts.len() > 64 {
            break;
        }
    }
    let dir = tempfile::tempdir().expect("a folder");
    raft::fuzzing::snapshot_parts(&dir.path().join("received"), parts);
    let outside = std::fs::read_dir(dir.path()).expect("the folder").count();
    assert_eq!(outside, 0, "files stand in the folder of the snapshot only, which is removed");
});
