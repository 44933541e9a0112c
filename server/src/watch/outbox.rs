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

impl Outbox {
    /// False when there is no room.
    pub fn offer(&self, delivery: Delivery) -> bool {
        let size = delivery.bytes + ITEM_OVERHEAD;
        self.offer_item(Item::Events(delivery), size)
    }

    /// Progress that nobody waits for: false when there is no room.
    pub fn offer_progress(&self, id: i64, revision: i64) -> bool {
        self.offer_item(Item::Progress { id, revision }, ITEM_OVERHEAD)
    }

    fn offer_item(&self, item: Item, size: usize) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return true;
        }
        if state.bytes > 0 && state.bytes + size > BYTES_MAX {
            return false;
        }
        state.bytes += size;
        state.items.push_back(item);
        drop(state);
        self.filled.notify_one();
        true
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
