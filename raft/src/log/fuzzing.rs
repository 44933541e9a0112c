//! The log's part of `crate::fuzzing`, and what its tests make files with.

use super::record::{HEADER_LEN, PREFIX_LEN, header, seal};

#[cfg(fuzzing)]
pub fn recover(dir: &std::path::Path) {
    if let Ok(recovered) = super::recovery::recover(&super::Folder::of(dir)) {
        assert!(recovered.end >= HEADER_LEN && !recovered.segments.is_empty());
        assert!(recovered.state.next() >= recovered.state.first());
    }
}

pub fn segment(number: u64, first_batch: u64, records: &[(u8, bool, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut batch = first_batch;
    for records in records.split_inclusive(|(_, ends_batch, _)| *ends_batch) {
        let (mut bytes, mut begins) = (Vec::new(), Vec::new());
        for (kind, _, body) in records {
            begins.push(bytes.len());
            bytes.extend((body.len() as u32).to_be_bytes());
            bytes.resize(begins[begins.len() - 1] + PREFIX_LEN, 0);
            *bytes.last_mut().expect("the prefix") = 0;
            let at = bytes.len() - 2;
            bytes[at] = *kind;
            bytes.extend(body);
        }
        seal(&mut bytes, &begins, number, batch);
        out.extend(bytes);
        batch = batch.wrapping_add(1);
    }
    [header(number, HEADER_LEN + out.len() as u64), out].concat()
}
