//! The keys a request is about.

use bytes::Bytes;

/// One key, or a range of keys. Source: etcd, `api/etcdserverpb/rpc.proto`, RangeRequest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
}

/// As a range end: no end. As a key: the first key there can be.
const NUL: Bytes = Bytes::from_static(b"\0");

impl Keys {
    /// This key alone.
    pub fn one(key: impl Into<Bytes>) -> Keys {
        Keys { key: key.into(), range_end: Bytes::new() }
    }

    /// From `start` up to, without, `end`.
    pub fn range(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Keys {
        Keys { key: start.into(), range_end: end.into() }
    }

    /// All keys that begin with `prefix`; all keys when it is empty.
    pub fn prefix(prefix: impl Into<Bytes>) -> Keys {
        let key = prefix.into();
        if key.is_empty() {
            return Keys::all();
        }
        // The end is the prefix with its last byte that can be raised raised by one; what follows is dropped.
        let range_end = match key.iter().rposition(|byte| *byte != u8::MAX) {
            None => NUL,
            Some(position) => {
                let mut end = key[..=position].to_vec();
                end[position] += 1;
                end.into()
            }
        };
        Keys { key, range_end }
    }

    /// `start` and all keys after it.
    pub fn from(start: impl Into<Bytes>) -> Keys {
        let start = start.into();
        Keys { key: if start.is_empty() { NUL } else { start }, range_end: NUL }
    }

    /// All keys.
    pub fn all() -> Keys {
        Keys { key: NUL, range_end: NUL }
    }

    /// The first key.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// Where a range ends: before this key, nowhere where it is a zero byte. Empty where one key is meant.
    pub fn range_end(&self) -> &Bytes {
        &self.range_end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_first_key_that_does_not_begin_with_it() {
        let end = |prefix: &'static [u8]| Keys::prefix(prefix).range_end;
        assert_eq!(end(b"a"), "b");
        assert_eq!(end(b"/registry/"), "/registry0");
        assert_eq!(end(b"a\xff\xff"), "b");
        assert_eq!(end(b"\xff"), "\0", "there is no such key, so the range has no end");
        assert_eq!(Keys::prefix(""), Keys::all());
        assert_eq!(Keys::from(""), Keys::all());
    }
}
