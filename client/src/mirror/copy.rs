//! The copy of all keys as they were at one revision of the source.
//!
//! It compares page by page and writes what differs, so that it can begin again at any time: what the destination has
//! already is not written a second time, and what has vanished from the source meanwhile is deleted.

use std::{cmp::Ordering, time::Duration};

use bytes::Bytes;

use super::{Failure, Mirror, PROGRESS_KEY, Phase, Record, Result, leases::Leases, progress::after, replay};
use crate::{Client, Delete, Get, Keys, Op, mvccpb::KeyValue};

/// A page is as many keys as made this many bytes in the page before. For each page etcd counts all keys that follow, half
/// a second for three million: so there should be few.
const PAGE_BYTES: usize = 16 << 20;
const PAGE_KEYS_FIRST: i64 = 256;
const PAGE_KEYS_MOST: i64 = 50_000;
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// A transaction stays below the limits that etcd and Pintle have by default: 128 operations, 1.5 MiB.
const TXN_OPS: usize = 100;
const TXN_BYTES: usize = 1 << 20;

/// No end.
const NUL: Bytes = Bytes::from_static(b"\0");

/// Reads keys in their order, some at a time.
pub(super) struct Pages {
    client: Client,
    revision: i64,
    from: Bytes,
    /// The first key that is not wanted; NUL: all are.
    end: Bytes,
    limit: i64,
    pub is_over: bool,
}

impl Pages {
    pub fn new(client: &Client, revision: i64, from: Bytes, end: Bytes) -> Pages {
        let client = client.with_request_timeout(client.request_timeout().max(PAGE_TIMEOUT));
        Pages { client, revision, from, end, limit: PAGE_KEYS_FIRST, is_over: false }
    }

    pub async fn next(&mut self) -> crate::Result<Vec<KeyValue>> {
        if self.is_over {
            return Ok(Vec::new());
        }
        let keys = Keys::range(self.from.clone(), self.end.clone());
        let answer = self.client.get(Get::new(keys).revision(self.revision).limit(self.limit)).await?;
        self.is_over = !answer.more;
        if let Some(last) = answer.kvs.last() {
            self.from = after(&last.key);
            let bytes: usize = answer.kvs.iter().map(size).sum();
            let each = (bytes / answer.kvs.len()).max(1);
            self.limit = i64::try_from(PAGE_BYTES / each).unwrap_or(i64::MAX).clamp(1, PAGE_KEYS_MOST);
        }
        Ok(answer.kvs)
    }
}

fn size(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len()
}

/// One key that differs, and what must be done about it.
struct Change {
    key: Bytes,
    put: Option<KeyValue>,
}

impl Mirror {
    /// Makes the destination what the source is now, or was when an unfinished copy began.
    pub(super) async fn copy(&self, record: &mut Record, leases: &mut Leases) -> Result<()> {
        let (revision, mut from) = match record.progress.copied_up_to() {
            Some(key) => (record.progress.revision, after(&key)),
            None => (self.source_revision().await?, NUL),
        };
        let mut pages = Pages::new(&self.source, revision, from.clone(), NUL);
        let mut keys = 0;
        loop {
            let page = self.page_of_source(&mut pages).await?;
            let end = if pages.is_over { NUL } else { pages.from.clone() };
            let there = self.all_of_destination(from, end.clone()).await?;
            let (read, last) = (page.len() as u64, page.last().map(|kv| kv.key.clone()));
            for changes in portions(differences(page, there)) {
                self.patiently_ensure(leases, changes.iter().filter_map(|change| change.put.as_ref())).await?;
                let up_to = changes.last().map(|change| change.key.clone()).unwrap_or_default();
                let next = record.progress.copying(revision, &up_to);
                self.commit(record, changes.into_iter().map(op).collect(), next).await?;
            }
            if let Some(last) = last.filter(|_| !pages.is_over) {
                let next = record.progress.copying(revision, &last);
                if next != record.progress {
                    self.commit(record, Vec::new(), next).await?;
                }
            }
            keys += read;
            self.status.send_modify(|status| {
                status.phase = Phase::Copying { revision, keys };
                status.trouble = None;
            });
            if pages.is_over {
                break;
            }
            from = end;
        }
        let next = record.progress.at(revision);
        self.commit(record, Vec::new(), next).await
    }

    async fn page_of_source(&self, pages: &mut Pages) -> Result<Vec<KeyValue>> {
        loop {
            match pages.next().await {
                Err(error) => self.wait_out(Failure::Source(error)).await?,
                Ok(page) => return Ok(page),
            }
        }
    }

    async fn all_of_destination(&self, from: Bytes, end: Bytes) -> Result<Vec<KeyValue>> {
        let mut pages = Pages::new(&self.destination, 0, from, end);
        let mut all = Vec::new();
        while !pages.is_over {
            match pages.next().await {
                Err(error) => self.wait_out(Failure::Destination(error)).await?,
                Ok(page) => all.extend(page),
            }
        }
        Ok(all)
    }
}

/// What makes `there` what `wanted` is. Both are in the order of keys, and so is the answer.
fn differences(wanted: Vec<KeyValue>, there: Vec<KeyValue>) -> Vec<Change> {
    let is_ours = |kv: &KeyValue| kv.key == PROGRESS_KEY;
    let mut wanted = wanted.into_iter().filter(|kv| !is_ours(kv)).peekable();
    let mut there = there.into_iter().filter(|kv| !is_ours(kv)).peekable();
    let mut changes = Vec::new();
    loop {
        let order = match (wanted.peek(), there.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(wanted), Some(there)) => wanted.key.cmp(&there.key),
        };
        let found = if order.is_ge() { there.next() } else { None };
        let put = if order.is_le() { wanted.next() } else { None };
        let same = |put: &KeyValue, found: &KeyValue| put.value == found.value && put.lease == found.lease;
        match (put, found) {
            (Some(put), Some(found)) if same(&put, &found) => {}
            (Some(put), _) => changes.push(Change { key: put.key.clone(), put: Some(put) }),
            (None, Some(found)) => changes.push(Change { key: found.key, put: None }),
            (None, None) => unreachable!("one of the two was the lesser"),
        }
    }
}

/// As much as fits into one transaction each.
fn portions(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let mut portions: Vec<Vec<Change>> = Vec::new();
    let mut bytes = 0;
    for change in changes {
        let more = change.key.len() + change.put.as_ref().map_or(0, size);
        let fits = portions.last().is_some_and(|last| last.len() < TXN_OPS && bytes + more <= TXN_BYTES);
        match portions.last_mut() {
            Some(last) if fits => last.push(change),
            _ => {
                portions.push(vec![change]);
                bytes = 0;
            }
        }
        bytes += more;
    }
    portions
}

fn op(change: Change) -> Op {
    match change.put {
        Some(kv) => Op::put(replay::put(&kv)),
        None => Op::delete(Delete::key(change.key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static str, value: &'static str) -> KeyValue {
        KeyValue { key: key.into(), value: value.into(), ..Default::default() }
    }

    #[test]
    fn only_what_differs_is_written() {
        let wanted = vec![kv("a", "1"), kv("b", "2"), kv("d", "4")];
        let mut leased = kv("d", "4");
        leased.lease = 7;
        let there = vec![kv("\0pintle-mirror", "{}"), kv("a", "1"), kv("b", "old"), kv("c", "3"), leased, kv("e", "5")];
        let changes = differences(wanted, there);
        let shown: Vec<(&[u8], bool)> = changes.iter().map(|change| (&change.key[..], change.put.is_some())).collect();
        assert_eq!(shown, [(&b"b"[..], true), (b"c", false), (b"d", true), (b"e", false)]);
    }

    #[test]
    fn portions_stay_within_the_limits_of_a_transaction() {
        let small = (0..250).map(|i: u32| Change { key: i.to_be_bytes().to_vec().into(), put: None }).collect();
        assert_eq!(portions(small).iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
        let large = |_| Change {
            key: "k".into(),
            put: Some(KeyValue { value: vec![0; TXN_BYTES / 2].into(), ..Default::default() }),
        };
        let large = portions((0..3).map(large).collect());
        assert_eq!(large.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
        assert!(portions(Vec::new()).is_empty());
    }
}
