//! The log's files: segments whose records have checksums that match, cut, flipped or missing as the input says.
#![no_main]

use std::fs;

use arbitrary::Arbitrary;

#[derive(Arbitrary, Debug)]
struct Input {
    segments: Vec<Segment>,
    newest: Option<u8>,
}

#[derive(Arbitrary, Debug)]
struct Segment {
    number: u8,
    /// Far from zero now and then.
    first_batch: u64,
    records: Vec<(u8, bool, Vec<u8>)>,
    /// A byte that is changed, and how.
    flip: Option<(u16, u8)>,
    cut: Option<u16>,
    padding: u16,
}

libfuzzer_sys::fuzz_target!(|input: Input| {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    for segment in input.segments.iter().take(4) {
        let number = u64::from(segment.number % 8);
        let records: Vec<_> =
            segment.records.iter().map(|(kind, last, body)| (kind % 9, *last, body.clone())).collect();
        let mut bytes = raft::fuzzing::segment(number, segment.first_batch, &records);
        bytes.resize(bytes.len() + usize::from(segment.padding), 0);
        if let Some((at, change)) = segment.flip {
            let at = usize::from(at) % bytes.len();
            bytes[at] ^= change;
        }
        if let Some(cut) = segment.cut {
            bytes.truncate(usize::from(cut));
        }
        fs::write(dir.path().join(format!("{number:016x}.log")), bytes).expect("a file");
    }
    if let Some(newest) = input.newest {
        fs::write(dir.path().join("newest"), newest.to_string()).expect("a file");
    }
    // An empty folder would be given a first segment of full size.
    if !input.segments.is_empty() {
        raft::fuzzing::log_recovery(dir.path());
    }
});
