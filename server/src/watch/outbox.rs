//! What waits to be sent on one stream.
//!
//! Events are refused when the queue is full; the watcher lags then. Answers to requests are always taken: the stream
//! reads no further request while many of them wait. So a stream holds two queues full at most: this one and the one
//! that is being sent.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::Status;

use super::{recent::SharedEvent, watcher::Watcher};

/// Events that may wait, in bytes. Those of several watchers count for each, though they are shared.
const BYTES_MAX: usize = 4 << 20;
/// What an item takes beside its events.
const ITEM_OVERHEAD: usize = 64;
/// Answers that may wait before the next request is read.
const ANSWERS_MAX: usize = 128;

/// Events for one watcher, to be sent in one response.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub watcher: Arc<Watcher>,
    pub events: Arc<Vec<Arc<SharedEvent>>>,
    /// Size of the events.
    pub bytes: usize,
    /// The store's revision when they were delivered.
    pub revision: i64,
}

#[derive(Debug)]
pub enum Item {
    Created {
        id: i64,
        revision: i64,
    },
    Refused {
        reason: &'static str,
        revision: i64,
    },
    Canceled {
        id: i64,
        revision: i64,
    },
    /// The watch is over because what it was to read has been compacted.
    Compacted {
        id: i64,
        compacted: i64,
    },
    Progress {
        id: i64,
        revision: i64,
    },
    Events(Delivery),
}

/// What [`Outbox::take`] found.
pub enum Taken {
    /// All items, and the watchers that lag: everything that went to one of these before stands in the items.
    Items {
        items: VecDeque<Item>,
        lagging: Vec<Arc<Watcher>>,
    },
    Ended(Status),
}

#[derive(Debug, Default)]
pub struct Outbox {
    /// In order of the streams: those of one are served together.
    pub serial: u64,
    state: Mutex<State>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    lagging: Vec<Arc<Watcher>>,
    /// Of the events in `items`.
    bytes: usize,
    /// Items that are no events.
    answers: usize,
    ended: Option<Status>,
    closed: bool,
}

impl State {
    /// Gives the item back where there is no room for it.
    fn offer(&mut self, item: Item) -> Option<Item> {
        let size = item.size();
        if !self.closed && self.bytes > 0 && self.bytes + size > BYTES_MAX {
            return Some(item);
        }
        if !self.closed {
            self.bytes += size;
            self.items.push_back(item);
        }
        None
    }
}

impl Item {
    /// About what it takes, in memory and on the wire.
    pub fn size(&self) -> usize {
        match self {
            Item::Events(delivery) => delivery.bytes + ITEM_OVERHEAD,
            _ => ITEM_OVERHEAD,
        }
    }
}

impl Outbox {
    pub fn new(serial: u64) -> Outbox {
        Outbox { serial, ..Outbox::default() }
    }

    /// Takes what there is room for; gives the watchers for whose events there was none.
    pub fn offer(&self, deliveries: impl IntoIterator<Item = Delivery>) -> Vec<Arc<Watcher>> {
        let (mut refused, mut state) = (Vec::new(), self.state.lock());
        let before = state.items.len();
        for delivery in deliveries {
            if let Some(Item::Events(delivery)) = state.offer(Item::Events(delivery)) {
                refused.push(delivery.watcher);
            }
        }
        let has_more = state.items.len() > before;
        drop(state);
        if has_more {
            self.filled.notify_one();
        }
        refused
    }

    /// Progress that nobody waits for: left out when there is no room.
    pub fn offer_progress(&self, id: i64, revision: i64) {
        drop(self.state.lock().offer(Item::Progress { id, revision }));
        self.filled.notify_one();
    }

    /// An answer to a request.
    pub fn answer(&self, item: Item) {
        let mut state = self.state.lock();
        if !state.closed {
            state.answers += 1;
            state.items.push_back(item);
            drop(state);
            self.filled.notify_one();
        }
    }

    /// Leaves a watcher to its stream, to be brought up to date.
    pub fn lag(&self, watcher: Arc<Watcher>) {
        let mut state = self.state.lock();
        if !state.closed {
            state.lagging.push(watcher);
            drop(state);
            self.filled.notify_one();
        }
    }

    /// Ends the stream: nothing that waits is sent any more.
    pub fn end(&self, status: Status) {
        self.state.lock().ended.get_or_insert(status);
        self.filled.notify_one();
    }

    /// The stream is gone.
    pub fn close(&self) {
        let mut state = self.state.lock();
        let (items, lagging) = (std::mem::take(&mut state.items), std::mem::take(&mut state.lagging));
        state.closed = true;
        drop(state);
        drop((items, lagging));
    }

    pub fn take(&self) -> Taken {
        let mut state = self.state.lock();
        if let Some(status) = &state.ended {
            return Taken::Ended(status.clone());
        }
        (state.bytes, state.answers) = (0, 0);
        let (items, lagging) = (std::mem::take(&mut state.items), std::mem::take(&mut state.lagging));
        drop(state);
        self.emptied.notify_one();
        Taken::Items { items, lagging }
    }

    /// Waits until there is something to [`take`](Outbox::take). For one waiter, as below.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Waits until another answer may be added.
    pub async fn room(&self) {
        while self.state.lock().answers >= ANSWERS_MAX {
            self.emptied.notified().await;
        }
    }
}
