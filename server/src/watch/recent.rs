//! The newest events, kept in memory: what the hub delivers from, and where most watchers that fell behind catch up.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use prost::Message;
use proto::mvccpb;
use storage::{Change, Event, StorageError, planted};

use super::History;

/// How much is kept at most (but always the newest change).
const EVENTS_MAX: usize = 16_384;
const BYTES_MAX: usize = 16 << 20;
/// What an event takes beside its key and its value.
const EVENT_OVERHEAD: usize = 128;

/// An event, and what it is on the wire: encoded once, however many watchers it goes to.
#[derive(Debug)]
pub struct SharedEvent {
    pub event: Arc<Event>,
    plain: OnceLock<Bytes>,
    with_previous: OnceLock<Bytes>,
}

impl SharedEvent {
    pub fn new(event: Arc<Event>) -> Arc<Self> {
        Arc::new(SharedEvent { event, plain: OnceLock::new(), with_previous: OnceLock::new() })
    }

    pub fn revision(&self) -> i64 {
        self.event.revision.main
    }

    /// About what it takes in memory and on the wire.
    pub fn size(&self) -> usize {
        self.event.kv.key.len() + self.event.kv.value.len() + EVENT_OVERHEAD
    }

    /// The encoded `mvccpb.Event`.
    pub fn encoded(&self) -> &Bytes {
        self.plain.get_or_init(|| encode(&self.event, None))
    }

    /// The same with the version it superseded, as long as that is not compacted.
    pub fn encoded_with_previous(&self, history: &dyn History) -> Result<Bytes, StorageError> {
        let is_compacted = self.event.revision.main <= history.compacted();
        if is_compacted && planted!(WrongPrevKv) {
            return Ok(encode(&self.event, Some(self.event.kv.clone())));
        }
        if self.event.prev.is_none() || is_compacted {
            return Ok(self.encoded().clone());
        }
        if let Some(encoded) = self.with_previous.get() {
            return Ok(encoded.clone());
        }
        // Two streams may come here at once: both read the same.
        let encoded = encode(&self.event, history.previous(&self.event)?);
        Ok(self.with_previous.get_or_init(|| encoded).clone())
    }
}

fn encode(event: &Event, prev_kv: Option<mvccpb::KeyValue>) -> Bytes {
    mvccpb::Event { r#type: event.kind as i32, kv: Some(event.kv.clone()), prev_kv }.encode_to_vec().into()
}

/// The events of one change: whole revisions.
#[derive(Debug)]
pub struct Batch {
    pub events: Vec<Arc<SharedEvent>>,
    last: i64,
    bytes: usize,
}

/// What [`Recent::since`] found.
#[derive(Debug)]
pub enum Since {
    /// All events from the revision asked for up to `to`. `complete`: there is nothing newer.
    Events { batches: Vec<Arc<Batch>>, to: i64, complete: bool },
    /// Some are not kept any more.
    Missing { revision: i64 },
}

/// The newest events, without a gap, after the revision `floor`.
#[derive(Debug)]
pub struct Recent {
    batches: VecDeque<Arc<Batch>>,
    floor: i64,
    revision: i64,
    compacted: i64,
    events: usize,
    bytes: usize,
}

impl Recent {
    /// Of a store at `revision`: nothing before is known.
    pub fn new(revision: i64, compacted: i64) -> Self {
        Recent { batches: VecDeque::new(), floor: revision, revision, compacted, events: 0, bytes: 0 }
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Every event after this revision is here.
    pub fn floor(&self) -> i64 {
        self.floor
    }

    pub fn push(&mut self, change: Change) {
        assert!(change.revision >= self.revision, "revision {} follows {}", change.revision, self.revision);
        (self.revision, self.compacted) = (change.revision, change.compacted);
        let events: Vec<_> = change.events.into_iter().map(SharedEvent::new).collect();
        let Some(newest) = events.last() else { return };
        let last = newest.revision();
        let bytes = events.iter().map(|event| event.size()).sum();
        self.events += events.len();
        self.bytes += bytes;
        self.batches.push_back(Arc::new(Batch { events, last, bytes }));
        while self.batches.len() > 1 && (self.events > EVENTS_MAX || self.bytes > BYTES_MAX) {
            let oldest = self.batches.pop_front().expect("there is more than one");
            self.floor = oldest.last;
            self.events -= oldest.events.len();
            self.bytes -= oldest.bytes;
        }
    }

    /// The events from revision `from` on, about `events_max` of them.
    pub fn since(&self, from: i64, events_max: usize) -> Since {
        if from <= self.floor {
            return Since::Missing { revision: self.revision };
        }
        let first = self.batches.partition_point(|batch| batch.last < from);
        let mut batches = Vec::new();
        let mut events = 0;
        for batch in self.batches.range(first..) {
            if events >= events_max {
                let to = batches.last().map_or(from - 1, |batch: &Arc<Batch>| batch.last);
                return Since::Events { batches, to, complete: false };
            }
            events += batch.events.len();
            batches.push(batch.clone());
        }
        Since::Events { batches, to: self.revision, complete: true }
    }
}

#[cfg(test)]
mod tests {
    use proto::{
        Revision,
        mvccpb::{KeyValue, event::EventType},
    };

    use super::*;

    fn change(revision: i64, events: usize, value: usize) -> Change {
        let event = |sub| {
            let kv = KeyValue {
                key: Bytes::from("k"),
                value: vec![0; value].into(),
                mod_revision: revision,
                ..Default::default()
            };
            Arc::new(Event { kind: EventType::Put, kv, revision: Revision::new(revision, sub), prev: None })
        };
        Change { revision, compacted: -1, events: (0..events as i64).map(event).collect(), ..Change::default() }
    }

    fn revisions(since: Since) -> Option<(Vec<i64>, i64, bool)> {
        match since {
            Since::Missing { .. } => None,
            Since::Events { batches, to, complete } => {
                Some((batches.iter().flat_map(|b| b.events.iter().map(|e| e.revision())).collect(), to, complete))
            }
        }
    }

    #[test]
    fn what_is_asked_for_comes_without_a_gap_or_not_at_all() {
        let mut recent = Recent::new(5, -1);
        assert_eq!(revisions(recent.since(6, 10)), Some((vec![], 5, true)));
        assert_eq!(revisions(recent.since(5, 10)), None);
        for revision in 6..=9 {
            recent.push(change(revision, 2, 0));
        }
        assert_eq!(revisions(recent.since(8, 10)), Some((vec![8, 8, 9, 9], 9, true)));
        assert_eq!(revisions(recent.since(6, 3)), Some((vec![6, 6, 7, 7], 7, false)));
        assert_eq!(revisions(recent.since(12, 3)), Some((vec![], 9, true)));
    }

    #[test]
    fn it_is_bounded_in_events_and_in_bytes_and_keeps_the_newest() {
        let mut recent = Recent::new(1, -1);
        for revision in 2..2 + EVENTS_MAX as i64 + 10 {
            recent.push(change(revision, 1, 0));
        }
        assert_eq!(recent.floor(), 11);
        assert_eq!(recent.events, EVENTS_MAX);
        let next = recent.revision() + 1;
        recent.push(change(next, 1, BYTES_MAX + 1));
        assert_eq!((recent.floor(), recent.events), (next - 1, 1));
        assert_eq!(revisions(recent.since(next, 10)), Some((vec![next], next, true)));
        recent.push(change(next + 1, 1, 0));
        assert_eq!((recent.floor(), recent.events), (next, 1));
    }

    #[test]
    #[should_panic(expected = "follows")]
    fn a_change_of_the_past_is_refused() {
        Recent::new(5, -1).push(change(4, 1, 0));
    }
}
