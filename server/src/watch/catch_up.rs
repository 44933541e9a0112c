//! Lagging watchers: reading what they missed.
//!
//! Those of one stream that stand near each other read together, a bounded piece at a time; the piece is sent before
//! the next one is read, so that a client that reads slowly is read for slowly. Where the newest events in memory
//! reach back far enough they are taken from there, else from the store. Only the former leads to being synced: it
//! happens under the hub's lock, which nothing can be delivered without.

use std::sync::Arc;

use proto::{EtcdError, KeyRange};
use storage::{ReadError, StorageError, host, planted};

use super::{
    hub::{LAGGING_MAX, Shared, Watches},
    matched::Matched,
    outbox::Delivery,
    range_map::RangeMap,
    recent::SharedEvent,
    watcher::Watcher,
};

/// About how much of the store's history is read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Serves some of `lagging`: takes out those that are synced now or canceled; returns what is to be sent. Serves at
/// least one.
pub(super) async fn catch_up(
    hub: &Shared,
    watches: &Watches,
    lagging: &mut Vec<Arc<Watcher>>,
) -> Result<Vec<Delivery>, StorageError> {
    let compacted = hub.compacted();
    lagging.retain(|watcher| {
        if !watcher.is_canceled() && watcher.next() < compacted {
            hub.cancel_compacted(watches, watcher, compacted);
        }
        !watcher.is_canceled()
    });
    if let Some(caught_up) = hub.catch_up(lagging) {
        let events = caught_up.batches.iter().flat_map(|batch| &batch.events);
        return Ok(deliveries(&caught_up.watchers, events, caught_up.revision));
    }
    if lagging.is_empty() {
        return Ok(Vec::new());
    }

    // The first one leads, and goes to the end of the row: so all have their turn, however far back one stands.
    let from = lagging[0].next();
    let near = lagging.iter().filter(|watcher| watcher.next() >= from).take(LAGGING_MAX);
    let range = hull(near.map(|watcher| &watcher.watch.range)).expect("there is one at least");
    let history = hub.history().clone();
    let read = {
        let _permit = hub.readers().acquire().await.expect("the semaphore is never closed");
        let read = move || history.events(&range, from, history.revision(), PIECE_BYTES);
        match host::blocking(read).await {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    };
    let (events, to) = match read {
        Ok(read) => read,
        // Compacted while it was being read: the next turn ends those that need it.
        Err(ReadError::Request(EtcdError::Compacted)) => return Ok(Vec::new()),
        Err(ReadError::Request(error)) => unreachable!("history is refused for compaction only, not: {error}"),
        Err(ReadError::Local(error)) => return Err(error),
    };
    let (mut served, mut rest) = (Vec::new(), Vec::new());
    for watcher in lagging.drain(..) {
        let next = watcher.next();
        if (from..to).contains(&next) && served.len() < LAGGING_MAX {
            let is_long = to > from + 1;
            watcher.advance(if is_long && planted!(EventTwice) { to - 1 } else { to });
            served.push((watcher, next));
        } else {
            rest.push(watcher);
        }
    }
    rest.extend(served.iter().map(|(watcher, _)| watcher.clone()));
    *lagging = rest;
    let events: Vec<_> = events.into_iter().map(SharedEvent::new).collect();
    Ok(deliveries(&served, &events, hub.history().revision()))
}

/// To each watcher, which has seen all before the revision beside it, its events.
fn deliveries<'a>(
    watchers: &[(Arc<Watcher>, i64)],
    events: impl IntoIterator<Item = &'a Arc<SharedEvent>>,
    revision: i64,
) -> Vec<Delivery> {
    let mut ranges: RangeMap<Vec<&(Arc<Watcher>, i64)>> = RangeMap::default();
    for watcher in watchers {
        ranges.entry(&watcher.0.watch.range).push(watcher);
    }
    let mut deliveries = Vec::new();
    for (slot, events) in ranges.matching(events, |event| event.event.kv.key.as_ref()) {
        let matched = Matched::new(events);
        let watchers = ranges.get(slot).iter().filter(|(watcher, _)| !watcher.is_canceled());
        deliveries.extend(watchers.filter_map(|(watcher, next)| matched.delivery(watcher, *next, Some(revision))));
    }
    deliveries
}

/// The smallest range that holds all of these.
fn hull<'a>(ranges: impl Iterator<Item = &'a KeyRange>) -> Option<KeyRange> {
    ranges.cloned().reduce(|a, b| {
        if a == b {
            return a;
        }
        let start = a.start().min(b.start()).to_vec().into();
        let end = match (end_of(&a), end_of(&b)) {
            (Some(a), Some(b)) => Some(a.max(b)),
            _ => None,
        };
        KeyRange::Span { start, end }
    })
}

fn end_of(range: &KeyRange) -> Option<bytes::Bytes> {
    match range {
        KeyRange::Single(key) => Some([key, b"\0".as_ref()].concat().into()),
        KeyRange::Span { end, .. } => end.clone(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_hull_holds_every_range_and_is_one_of_equals() {
        let range = |key: &'static str, end: &'static str| KeyRange::new(Bytes::from(key), Bytes::from(end));
        let hull = |ranges: &[KeyRange]| hull(ranges.iter());
        assert_eq!(hull(&[]), None);
        assert_eq!(hull(&[range("b", ""), range("b", "")]), Some(range("b", "")));
        let single_and_span = hull(&[range("x", ""), range("b", "d"), range("c", "e")]).unwrap();
        assert!(single_and_span.contains(b"b") && single_and_span.contains(b"x"));
        assert!(!single_and_span.contains(b"a") && !single_and_span.contains(b"xx"));
        assert_eq!(hull(&[range("x", ""), range("b", "\0")]), Some(range("b", "\0")));
    }
}
