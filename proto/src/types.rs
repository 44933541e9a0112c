//! Ids, revisions and key ranges: what passes between crates instead of bare integers.

use std::fmt;

use bytes::Bytes;

/// Where a change stands in the store's history: `main` counts transactions, `sub` the changes within one.
/// An empty store is at main revision 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    pub main: i64,
    pub sub: i64,
}

impl Revision {
    pub const fn new(main: i64, sub: i64) -> Self {
        Revision { main, sub }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

/// A lease. 0 stands for "no lease" on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

/// A member of the cluster. Never 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// The cluster, the same on all members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

macro_rules! display_as_hex {
    ($($id:ident),*) => {$(
        /// Lower-case hexadecimal without leading zeros, as etcd prints ids.
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }
    )*};
}
display_as_hex!(LeaseId, MemberId, ClusterId);

/// The keys a request means by `key` and `range_end`.
///
/// | key | range_end | keys |
/// |---|---|---|
/// | `a` | empty | `a` alone |
/// | `a` | `c` | from `a` up to, without, `c` |
/// | `a` | `\0` | from `a` on |
/// | `\0` | `\0` | all |
/// | `c` | `a` | none |
///
/// Source: etcd, `api/etcdserverpb/rpc.proto`, RangeRequest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeyRange {
    /// One key.
    Single(Bytes),
    /// Keys from `start` on, up to `end` (exclusive) where there is one.
    Span { start: Bytes, end: Option<Bytes> },
}

impl KeyRange {
    /// Reads the two fields of a request.
    pub fn new(key: Bytes, range_end: Bytes) -> Self {
        match range_end.as_ref() {
            b"" => KeyRange::Single(key),
            b"\0" => KeyRange::Span { start: key, end: None },
            _ => KeyRange::Span { start: key, end: Some(range_end) },
        }
    }

    /// Every key.
    pub fn all() -> Self {
        KeyRange::Span { start: Bytes::new(), end: None }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::Single(single) => single == key,
            KeyRange::Span { start, end } => start.as_ref() <= key && end.as_ref().is_none_or(|end| key < end.as_ref()),
        }
    }

    pub fn is_single(&self) -> bool {
        matches!(self, KeyRange::Single(_))
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(self, KeyRange::Span { start, end: Some(end) } if end <= start)
    }

    /// The first key that may be in it.
    pub fn start(&self) -> &[u8] {
        match self {
            KeyRange::Single(key) => key,
            KeyRange::Span { start, .. } => start,
        }
    }

    /// Whether some key is in both.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        match (self, other) {
            (KeyRange::Single(key), _) => other.contains(key),
            (_, KeyRange::Single(key)) => self.contains(key),
            (KeyRange::Span { start: a, end: a_end }, KeyRange::Span { start: b, end: b_end }) => {
                !self.is_empty()
                    && !other.is_empty()
                    && a_end.as_ref().is_none_or(|end| b < end)
                    && b_end.as_ref().is_none_or(|end| a < end)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::new(Bytes::from(key), Bytes::from(end))
    }

    #[test]
    fn a_range_holds_the_keys_that_etcd_says() {
        assert!(range("a", "").contains(b"a") && !range("a", "").contains(b"aa"));
        assert!(range("a", "c").contains(b"a") && range("a", "c").contains(b"bz") && !range("a", "c").contains(b"c"));
        assert!(range("b", "\0").contains(b"\xff") && !range("b", "\0").contains(b"a"));
        assert!(range("\0", "\0").contains(b"\0") && KeyRange::all().contains(b""));
        assert!(range("c", "a").is_empty() && range("a", "a").is_empty() && !range("c", "a").contains(b"b"));
    }

    #[test]
    fn ranges_overlap_when_a_key_is_in_both() {
        assert!(range("a", "c").overlaps(&range("b", "\0")) && !range("a", "b").overlaps(&range("b", "c")));
        assert!(range("a", "c").overlaps(&range("b", "")) && !range("c", "").overlaps(&range("a", "c")));
        assert!(!range("c", "a").overlaps(&range("a", "z")) && range("a", "").overlaps(&range("a", "")));
    }

    #[test]
    fn ids_print_as_etcd_prints_them() {
        assert_eq!(MemberId(0x8e9e05c52164694d).to_string(), "8e9e05c52164694d");
        assert_eq!(Revision::new(5, 2).to_string(), "5.2");
    }
}
