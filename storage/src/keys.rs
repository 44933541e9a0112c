//! Keys as RocksDB sorts them.
//!
//! `data`: the user key, escaped so that byte order is key order and no key is a prefix of another, then the revision,
//! inverted so that the newest version comes first:
//!
//! ```text
//! "a"      @ 7.0   61       00 01   ff ff ff ff ff ff ff f8   ff ff ff ff ff ff ff ff
//! "a"      @ 5.0   61       00 01   ff ff ff ff ff ff ff fa   ff ff ff ff ff ff ff ff
//! "a\0"    @ 6.1   61 00 ff 00 01   ff ff ff ff ff ff ff f9   ff ff ff ff ff ff ff fe
//! ```
//!
//! `events`: the revision, so that history is one sequential scan.

use proto::Revision;

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xff;
const END: u8 = 0x01;
const AFTER_END: u8 = 0x02;
const REVISION_LEN: usize = 16;

/// What every version of `key` begins with.
pub(crate) fn data_prefix(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 2 + REVISION_LEN);
    put_data_prefix(key, &mut out);
    out
}

fn put_data_prefix(key: &[u8], out: &mut Vec<u8>) {
    let mut pieces = key.split(|&byte| byte == ESCAPE);
    out.extend_from_slice(pieces.next().unwrap_or_default());
    for piece in pieces {
        out.extend([ESCAPE, ESCAPED_ZERO]);
        out.extend_from_slice(piece);
    }
    out.extend([ESCAPE, END]);
}

/// The first possible key behind all versions of `key`.
pub(crate) fn after_versions(key: &[u8]) -> Vec<u8> {
    let mut out = data_prefix(key);
    *out.last_mut().expect("a prefix ends with its terminator") = AFTER_END;
    out
}

/// Where the version of `key` written at `revision` stands.
pub(crate) fn data_key(key: &[u8], revision: Revision) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 2 + REVISION_LEN);
    put_data_key(key, revision, &mut out);
    out
}

/// Appends [`data_key`].
pub(crate) fn put_data_key(key: &[u8], revision: Revision, out: &mut Vec<u8>) {
    put_data_prefix(key, out);
    out.extend((!(revision.main as u64)).to_be_bytes());
    out.extend((!(revision.sub as u64)).to_be_bytes());
}

/// Splits a `data` key; None when it is not one.
pub(crate) fn parse_data_key(encoded: &[u8]) -> Option<(Vec<u8>, Revision)> {
    let (escaped, revision) = encoded.split_at_checked(encoded.len().checked_sub(REVISION_LEN)?)?;
    let escaped = escaped.strip_suffix(&[ESCAPE, END])?;
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(&byte) = bytes.next() {
        key.push(byte);
        if byte == ESCAPE && bytes.next() != Some(&ESCAPED_ZERO) {
            return None;
        }
    }
    let (main, sub) = (u64_at(revision, 0), u64_at(revision, 8));
    Some((key, Revision::new(!main as i64, !sub as i64)))
}

/// Where the event of `revision` stands.
pub(crate) fn event_key(revision: Revision) -> [u8; REVISION_LEN] {
    let mut out = [0; REVISION_LEN];
    out[..8].copy_from_slice(&(revision.main as u64).to_be_bytes());
    out[8..].copy_from_slice(&(revision.sub as u64).to_be_bytes());
    out
}

pub(crate) fn parse_event_key(encoded: &[u8]) -> Option<Revision> {
    (encoded.len() == REVISION_LEN).then(|| Revision::new(u64_at(encoded, 0) as i64, u64_at(encoded, 8) as i64))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn encoded_keys_sort_by_key_then_newest_first(
            a in proptest::collection::vec(0u8..3, 0..5), b in proptest::collection::vec(0u8..3, 0..5),
            x in (1i64..9, 0i64..3), y in (1i64..9, 0i64..3),
        ) {
            let (x, y) = (Revision::new(x.0, x.1), Revision::new(y.0, y.1));
            let encoded = data_key(&a, x).cmp(&data_key(&b, y));
            prop_assert_eq!(encoded, a.cmp(&b).then(y.cmp(&x)));
            prop_assert_eq!(parse_data_key(&data_key(&a, x)), Some((a.clone(), x)));
            prop_assert!(data_key(&a, x) < after_versions(&a));
            prop_assert_eq!(after_versions(&a) <= data_prefix(&b), a < b);
        }
    }
}
