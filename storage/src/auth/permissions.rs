//! Which keys a user may read and write. (etcd: `server/auth/range_perm_cache.go`.)
//!
//! ```text
//! read   [a, c)  [c, e)      becomes   [a, e)
//! write  [b]     [x, ∞)                [b, b\0)  [x, ∞)
//! ```
//! So a range is permitted if one interval holds it, also when it takes several permissions to permit it.

use bytes::Bytes;
use proto::authpb::{Permission, permission::Type};

/// What is to be done with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    Read,
    Write,
}

/// What one user may do.
#[derive(Debug, Clone, Default)]
pub(super) struct Permissions {
    read: Intervals,
    write: Intervals,
}

impl Permissions {
    pub fn merge<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Permissions {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in permissions {
            let interval = Interval::new(&permission.key, &permission.range_end);
            let kind = Type::try_from(permission.perm_type);
            if matches!(kind, Ok(Type::Read | Type::Readwrite)) {
                read.push(interval.clone());
            }
            if matches!(kind, Ok(Type::Write | Type::Readwrite)) {
                write.push(interval);
            }
        }
        Permissions { read: Intervals::merge(read), write: Intervals::merge(write) }
    }

    pub fn permit(&self, key: &[u8], range_end: &[u8], right: Right) -> bool {
        match right {
            Right::Read => self.read.hold(key, range_end),
            Right::Write => self.write.hold(key, range_end),
        }
    }
}

/// The keys from `begin` to below `end`; without an end when that is None.
#[derive(Debug, Clone)]
struct Interval {
    begin: Bytes,
    end: Option<Bytes>,
}

impl Interval {
    fn new(key: &Bytes, range_end: &Bytes) -> Interval {
        let end = match range_end.as_ref() {
            // One key: up to its successor.
            b"" => Some([key.as_ref(), b"\0"].concat().into()),
            b"\0" => None,
            _ => Some(range_end.clone()),
        };
        Interval { begin: key.clone(), end }
    }

    fn reaches(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| end.as_ref() >= key)
    }
}

/// Disjoint, in order, with a gap between any two.
#[derive(Debug, Clone, Default)]
struct Intervals(Vec<Interval>);

impl Intervals {
    fn merge(mut intervals: Vec<Interval>) -> Intervals {
        intervals.sort_by(|a, b| a.begin.cmp(&b.begin));
        let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
        for interval in intervals {
            match merged.last_mut() {
                Some(last) if last.reaches(&interval.begin) => {
                    let is_longer = interval.end.as_ref().is_none_or(|end| !last.reaches(end));
                    if is_longer && last.end.is_some() {
                        last.end = interval.end;
                    }
                }
                _ => merged.push(interval),
            }
        }
        Intervals(merged)
    }

    /// Whether all of `key..range_end` is held, or `key` when there is no range end.
    fn hold(&self, key: &[u8], range_end: &[u8]) -> bool {
        let after = self.0.partition_point(|interval| interval.begin.as_ref() <= key);
        let Some(interval) = after.checked_sub(1).map(|at| &self.0[at]) else { return false };
        // The first key behind the interval is not in it.
        if interval.end.as_ref().is_some_and(|end| end.as_ref() <= key) {
            return false;
        }
        match range_end {
            b"" => true,
            b"\0" => interval.end.is_none(),
            // A range that ends before it begins holds no key; etcd asks for its first one.
            end => interval.reaches(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permissions(granted: &[(Type, &'static str, &'static str)]) -> Permissions {
        let permission = |&(kind, key, range_end): &(Type, &'static str, &'static str)| Permission {
            perm_type: kind as i32,
            key: key.into(),
            range_end: range_end.into(),
        };
        let granted: Vec<Permission> = granted.iter().map(permission).collect();
        Permissions::merge(granted.iter())
    }

    fn reads(granted: &[(&'static str, &'static str)], key: &str, range_end: &str) -> bool {
        let granted: Vec<_> = granted.iter().map(|&(key, end)| (Type::Read, key, end)).collect();
        permissions(&granted).permit(key.as_bytes(), range_end.as_bytes(), Right::Read)
    }

    #[test]
    fn a_single_key_permits_itself_only() {
        for (key, end, permitted) in [
            ("b", "", true),
            ("b", "b\0", true),
            ("b", "c", false),
            ("a", "", false),
            ("b\0", "", false),
            ("b", "\0", false),
        ] {
            assert_eq!(reads(&[("b", "")], key, end), permitted, "{key:?} {end:?}");
        }
    }

    #[test]
    fn ranges_that_touch_permit_what_lies_across() {
        let granted = [("a", "c"), ("c", "e"), ("g", "h"), ("b", "d")];
        for (key, end, permitted) in [
            ("a", "e", true),
            ("b", "d", true),
            ("d", "", true),
            ("e", "", false),
            ("a", "f", false),
            ("a", "h", false),
            ("g", "h", true),
            ("a", "\0", false),
        ] {
            assert_eq!(reads(&granted, key, end), permitted, "{key:?} {end:?}");
        }
    }

    #[test]
    fn an_open_end_permits_all_that_follows() {
        for (key, end, permitted) in
            [("x", "\0", true), ("x", "z", true), ("zz", "", true), ("w", "", false), ("w", "\0", false)]
        {
            assert_eq!(reads(&[("x", "\0"), ("y", "z")], key, end), permitted, "{key:?} {end:?}");
        }
        assert!(reads(&[("\0", "\0")], "\0", "\0"));
    }

    #[test]
    fn of_a_range_that_ends_before_it_begins_the_first_key_counts() {
        assert!(reads(&[("b", "d")], "c", "a"));
        assert!(reads(&[("b", "d")], "b", "a"));
        assert!(!reads(&[("b", "d")], "e", "a"));
    }

    #[test]
    fn reading_is_not_writing() {
        let granted = permissions(&[(Type::Read, "r", ""), (Type::Write, "w", ""), (Type::Readwrite, "b", "")]);
        for (key, right, permitted) in [
            (b"r", Right::Read, true),
            (b"r", Right::Write, false),
            (b"w", Right::Read, false),
            (b"w", Right::Write, true),
            (b"b", Right::Read, true),
            (b"b", Right::Write, true),
        ] {
            assert_eq!(granted.permit(key, b"", right), permitted);
        }
    }
}
