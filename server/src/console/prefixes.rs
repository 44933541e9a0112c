//! Keys and bytes below a prefix, by its children: what a key holds up to the next slash.
//!
//! Sizes are found by reading, so one answer reads no more than so many keys, and so long; it says when it has not come to the end.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use proto::etcdserverpb::RangeRequest;
use serde::Serialize;
use tonic::Status;

use super::Writes;
use crate::context::Context;

const READ_KEYS_MAX: u64 = 200_000;
const READ_TIME_MAX: Duration = Duration::from_secs(2);
const PART_BYTES: usize = 512 * 1024;
/// A flat list of keys is no tree: the rest is counted as one.
const CHILDREN_MAX: usize = 500;

#[derive(Debug, Default, Serialize, PartialEq)]
pub struct Sizes {
    children: Vec<Child>,
    keys: u64,
    bytes: u64,
    /// There are more keys than were read, or more children than are told.
    is_cut: bool,
    writes_per_second: f64,
}

#[derive(Debug, Default, Serialize, PartialEq)]
struct Child {
    /// The whole prefix, or key, in base64 for URLs.
    name: String,
    keys: u64,
    /// Of the newest versions: keys and values.
    bytes: u64,
    writes_per_second: f64,
}

/// Start and end of the keys that begin with `prefix`, as Range takes them.
pub fn range(prefix: &[u8]) -> (Bytes, Bytes) {
    if prefix.is_empty() {
        return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
    }
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    (Bytes::copy_from_slice(prefix), end.into())
}

pub async fn sizes(ctx: &Arc<Context>, writes: &Arc<Writes>, prefix: Bytes) -> Result<Sizes, Status> {
    let writes = writes.clone();
    ctx.blocking(move |store| {
        let (key, range_end) = range(&prefix);
        let (mut counted, began) = (Counted::new(prefix), Instant::now());
        let mut parts = store.range_cursor(&RangeRequest { key, range_end, ..Default::default() }, PART_BYTES)?;
        while let Some(part) = parts.next_part()? {
            part.kvs.iter().for_each(|kv| counted.add(&kv.key, kv.value.len()));
            if counted.keys > READ_KEYS_MAX || began.elapsed() > READ_TIME_MAX {
                counted.is_cut = true;
                break;
            }
        }
        Ok(counted.with(&writes))
    })
    .await
}

struct Counted {
    prefix: Bytes,
    children: BTreeMap<Vec<u8>, Child>,
    keys: u64,
    bytes: u64,
    is_cut: bool,
}

impl Counted {
    fn new(prefix: Bytes) -> Counted {
        Counted { prefix, children: BTreeMap::new(), keys: 0, bytes: 0, is_cut: false }
    }

    fn add(&mut self, key: &[u8], value_bytes: usize) {
        let bytes = (key.len() + value_bytes) as u64;
        self.keys += 1;
        self.bytes += bytes;
        let name = child_of(&self.prefix, key);
        if !self.children.contains_key(name) {
            if self.children.len() >= CHILDREN_MAX {
                self.is_cut = true;
                return;
            }
            self.children.insert(name.to_vec(), Child::default());
        }
        let child = self.children.get_mut(name).expect("it was put there");
        child.keys += 1;
        child.bytes += bytes;
    }

    fn with(mut self, writes: &Writes) -> Sizes {
        let mut all = 0.0;
        for (folder, rate) in writes.rates(&self.prefix) {
            all += rate;
            if let Some(child) = self.children.get_mut(child_of(&self.prefix, &folder)) {
                child.writes_per_second += rate;
            }
        }
        let named = |(name, child): (Vec<u8>, Child)| Child { name: BASE64.encode(name), ..child };
        Sizes {
            children: self.children.into_iter().map(named).collect(),
            keys: self.keys,
            bytes: self.bytes,
            is_cut: self.is_cut,
            writes_per_second: all,
        }
    }
}

/// The prefix, and what follows up to the next slash behind its first byte: a name may begin with one.
fn child_of<'a>(prefix: &[u8], key: &'a [u8]) -> &'a [u8] {
    let begin = (prefix.len() + 1).min(key.len());
    let slash = key[begin..].iter().position(|byte| *byte == b'/');
    slash.map_or(key, |slash| &key[..begin + slash + 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(prefix: &'static str, keys: &[&str]) -> Vec<(String, u64)> {
        let mut counted = Counted::new(prefix.into());
        keys.iter().for_each(|key| counted.add(key.as_bytes(), 1));
        counted.children.into_iter().map(|(name, child)| (String::from_utf8(name).unwrap(), child.keys)).collect()
    }

    #[test]
    fn children_end_at_the_next_slash() {
        let keys = ["/a/b/c", "/a/b/d", "/a/e", "f"];
        let shown =
            |list: &[(&str, u64)]| list.iter().map(|(name, keys)| (name.to_string(), *keys)).collect::<Vec<_>>();
        assert_eq!(names("", &keys), shown(&[("/a/", 3), ("f", 1)]));
        assert_eq!(names("/a/", &keys[..3]), shown(&[("/a/b/", 2), ("/a/e", 1)]));
        assert_eq!(names("/a", &["/a/x", "/ab"]), shown(&[("/a/x", 1), ("/ab", 1)]));
    }

    #[test]
    fn a_prefix_is_a_range() {
        let range = |prefix: &[u8]| {
            let (start, end) = range(prefix);
            (start.to_vec(), end.to_vec())
        };
        assert_eq!(range(b""), (vec![0], vec![0]));
        assert_eq!(range(b"a/"), (b"a/".to_vec(), b"a0".to_vec()));
        assert_eq!(range(b"a\xff"), (b"a\xff".to_vec(), b"b".to_vec()));
        assert_eq!(range(b"\xff"), (vec![0xff], vec![0]));
    }

    #[test]
    fn many_keys_without_a_slash_are_cut() {
        let mut counted = Counted::new(Bytes::new());
        (0..CHILDREN_MAX + 5).for_each(|i| counted.add(format!("{i:04}").as_bytes(), 1));
        assert!(counted.is_cut);
        assert_eq!((counted.children.len(), counted.keys), (CHILDREN_MAX, CHILDREN_MAX as u64 + 5));
    }
}
