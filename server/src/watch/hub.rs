//! The hub: hands each change to the watchers that are synced, and knows which are.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    iter,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use parking_lot::Mutex;
use storage::{
    Change, Store,
    host::{self, Worker},
    planted,
};
use tokio::sync::{Notify, Semaphore};

use super::{
    History,
    matched::Matched,
    outbox::{Item, Outbox},
    range_map::RangeMap,
    recent::{Batch, Recent, Since},
    watcher::{NO_WATCH_ID, Watch, Watcher},
};

/// About how many events are delivered in one go.
const DELIVERED_MAX: usize = 1024;
/// About how many events lagging watchers read from memory in one go.
const CAUGHT_UP_MAX: usize = 2048;
/// How many lagging watchers of a stream are served in one go.
pub(super) const LAGGING_MAX: usize = 512;
/// How many read the store's history at a time.
const READERS_MAX: usize = 4;

/// The hub of all watches on this member. It has a thread of its own, which ends when the hub is dropped.
pub struct Hub {
    shared: Arc<Shared>,
    _worker: Worker,
}

pub(super) struct Shared {
    recent: Mutex<Recent>,
    /// Notified when there may be something to deliver.
    changed: Notify,
    /// Watchers in `synced`: nobody needs to be woken while there are none.
    synced_count: AtomicUsize,
    synced: Mutex<Synced>,
    history: OnceLock<Arc<dyn History>>,
    serial: AtomicU64,
    /// Streams, watches and events sent, for metrics.
    pub streams: AtomicUsize,
    watchers: AtomicUsize,
    pub events: AtomicU64,
    /// The hub was dropped.
    dropped: AtomicBool,
    readers: Semaphore,
}

#[derive(Default)]
struct Synced {
    /// By the serials of stream and watcher.
    ranges: RangeMap<BTreeMap<(u64, u64), Arc<Watcher>>>,
    count: usize,
    /// The synced watchers have been handed all up to this revision.
    position: i64,
    /// Streams that asked for progress before it could be told.
    awaiting_progress: Vec<(Arc<Watches>, i64)>,
}

/// What goes on in the hub.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub streams: usize,
    pub watchers: usize,
    /// Of these, those that have been handed all there is.
    pub synced: usize,
    /// Sent since the start.
    pub events: u64,
    /// Revisions that are still to be handed to the synced ones.
    pub pending: usize,
}

/// The watches of one stream.
pub(super) struct Watches {
    pub outbox: Arc<Outbox>,
    state: Mutex<WatchesState>,
}

#[derive(Default)]
struct WatchesState {
    by_id: HashMap<i64, Arc<Watcher>>,
    /// Watches that compaction has ended. Their ids stay taken until the client cancels them too, as in etcd.
    compacted: HashSet<i64>,
    next_id: i64,
}

impl WatchesState {
    fn is_taken(&self, id: i64) -> bool {
        self.by_id.contains_key(&id) || self.compacted.contains(&id)
    }
}

/// What lagging watchers read from memory.
pub(super) struct CaughtUp {
    pub batches: Vec<Arc<Batch>>,
    /// With the revision that each had to read from.
    pub watchers: Vec<(Arc<Watcher>, i64)>,
    pub revision: i64,
}

impl Hub {
    /// Before the store is open; see [`Hub::attach`].
    pub fn new() -> Arc<Hub> {
        let shared = Arc::new(Shared {
            recent: Mutex::new(Recent::new(0, -1)),
            changed: Notify::new(),
            synced_count: AtomicUsize::new(0),
            synced: Mutex::default(),
            history: OnceLock::new(),
            serial: AtomicU64::new(0),
            streams: AtomicUsize::new(0),
            watchers: AtomicUsize::new(0),
            events: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
            readers: Semaphore::new(READERS_MAX),
        });
        let of_worker = shared.clone();
        let worker = host::worker("watch", async move { of_worker.run().await }).expect("a thread can be started");
        Arc::new(Hub { shared, _worker: worker })
    }

    /// Names the store, once it is open and before anything is applied to it.
    pub fn attach(&self, store: Store) {
        self.attach_history(Arc::new(store));
    }

    pub(super) fn attach_history(&self, history: Arc<dyn History>) {
        let mut synced = self.shared.synced.lock();
        synced.position = history.revision();
        *self.shared.recent.lock() = Recent::new(history.revision(), history.compacted());
        assert!(self.shared.history.set(history).is_ok(), "a store is attached once");
    }

    /// Takes a change in. Never waits for a watch.
    pub fn applied(&self, change: Change) {
        self.shared.recent.lock().push(change);
        if self.shared.synced_count.load(SeqCst) > 0 {
            self.shared.changed.notify_one();
        }
    }

    /// The store was replaced by one at this revision: what led there is not known.
    pub fn restored(&self, revision: i64, compacted: i64) {
        *self.shared.recent.lock() = Recent::new(revision, compacted);
        self.shared.changed.notify_one();
    }

    /// What goes on, for metrics.
    pub fn traffic(&self) -> Traffic {
        let shared = &self.shared;
        let synced = shared.synced_count.load(SeqCst);
        let newest = shared.recent.lock().revision();
        let position = shared.synced.lock().position;
        Traffic {
            streams: shared.streams.load(SeqCst),
            watchers: shared.watchers.load(SeqCst),
            synced,
            events: shared.events.load(SeqCst),
            // Without watchers nothing is handed out, and the position stays behind.
            pending: if synced > 0 { (newest - position).max(0) as usize } else { 0 },
        }
    }

    /// How many watchers are synced.
    #[cfg(test)]
    pub(super) fn synced_count(&self) -> usize {
        self.shared.synced_count.load(SeqCst)
    }

    /// How far has been delivered.
    #[cfg(test)]
    pub(super) fn position(&self) -> i64 {
        self.shared.synced.lock().position
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shared.dropped.store(true, SeqCst);
        self.shared.wake();
    }
}

impl Shared {
    pub fn history(&self) -> &Arc<dyn History> {
        self.history.get().expect("a store is attached before anyone watches")
    }

    /// Those of a new stream: none yet.
    pub fn watches(&self) -> Arc<Watches> {
        let outbox = Arc::new(Outbox::new(self.serial.fetch_add(1, SeqCst)));
        Arc::new(Watches { outbox, state: Mutex::default() })
    }

    pub fn readers(&self) -> &Semaphore {
        &self.readers
    }

    /// Begins a watch: answers, then what it has to see.
    pub fn watch(&self, watches: &Watches, mut watch: Watch) {
        let mut synced = self.synced.lock();
        // Before the store is asked: whoever begins after what the store has now may not miss what comes meanwhile.
        synced.skip_to(self.recent.lock().revision());
        let mut state = watches.state.lock();
        let revision = self.history().revision();
        let refuse = |reason| watches.outbox.answer(Item::Refused { reason, revision });
        if watch.range.is_empty() {
            return refuse("mvcc: watcher range is empty");
        }
        if watch.id == 0 {
            while state.is_taken(state.next_id) {
                state.next_id += 1;
            }
            watch.id = state.next_id;
            state.next_id += 1;
        } else if state.is_taken(watch.id) {
            return refuse("mvcc: duplicate watch ID provided on the WatchStream");
        }
        let (id, start) = (watch.id, watch.start);
        let from_now_on = start == 0 || start > revision;
        let next = match from_now_on {
            true if planted!(FutureWatchIgnored) => revision + 1,
            true => start.max(revision + 1),
            false if planted!(ResumeSkipsRevision) => start + 1,
            false => start,
        };
        let watcher = Watcher::new(self.serial.fetch_add(1, SeqCst), watch, watches.outbox.clone(), next);
        state.by_id.insert(id, watcher.clone());
        self.watchers.fetch_add(1, SeqCst);
        watches.outbox.answer(Item::Created { id, revision });
        if from_now_on {
            self.join(&mut synced, watcher);
            drop((state, synced));
            self.wake();
        } else {
            watches.outbox.lag(watcher);
        }
    }

    /// Ends a watch and answers; does neither when there is no such watch. One that compaction has ended is answered
    /// once more.
    pub fn cancel(&self, watches: &Watches, id: i64) {
        let mut synced = self.synced.lock();
        let mut state = watches.state.lock();
        match state.by_id.remove(&id) {
            Some(watcher) => {
                self.leave(&mut synced, &watcher);
                watcher.cancel();
                self.watchers.fetch_sub(1, SeqCst);
            }
            None if state.compacted.remove(&id) => {}
            None => return,
        }
        drop(state);
        watches.outbox.answer(Item::Canceled { id, revision: self.history().revision() });
        synced.tell_awaited_progress();
    }

    /// Ends a lagging watch that needs what has been compacted.
    pub fn cancel_compacted(&self, watches: &Watches, watcher: &Arc<Watcher>, compacted: i64) {
        let mut synced = self.synced.lock();
        let mut state = watches.state.lock();
        let id = watcher.watch.id;
        // The client may have canceled it meanwhile: a watch ends once.
        if state.by_id.get(&id).is_some_and(|found| Arc::ptr_eq(found, watcher)) {
            state.by_id.remove(&id);
            self.watchers.fetch_sub(1, SeqCst);
            state.compacted.insert(id);
            drop(state);
            watcher.cancel();
            watches.outbox.answer(Item::Compacted { id, compacted });
            synced.tell_awaited_progress();
        }
    }

    /// Tells progress on behalf of all watches of a stream, as soon as all are synced. As in etcd there is no answer
    /// when there is no watch, or one that starts in the future.
    pub fn request_progress(&self, watches: &Arc<Watches>) {
        let mut synced = self.synced.lock();
        let target = self.history().revision();
        {
            let state = watches.state.lock();
            if state.by_id.is_empty() || state.by_id.values().any(|watcher| watcher.watch.start > target) {
                return;
            }
        }
        if !synced.tell_progress(watches, target)
            && !synced.awaiting_progress.iter().any(|(waiting, _)| Arc::ptr_eq(waiting, watches))
        {
            synced.awaiting_progress.push((watches.clone(), target));
        }
    }

    /// The progress interval has passed: tells it to the watches that asked for it and had no events meanwhile.
    pub fn tick(&self, watches: &Watches) {
        let synced = self.synced.lock();
        let state = watches.state.lock();
        let mut due: Vec<_> = state.by_id.values().filter(|w| w.watch.progress && !w.take_active()).collect();
        due.sort_unstable_by_key(|watcher| watcher.watch.id);
        for watcher in due.into_iter().filter(|w| w.is_synced() && w.watch.start <= synced.position) {
            watcher.outbox.offer_progress(watcher.watch.id, synced.position);
        }
    }

    /// Forgets a stream.
    pub fn remove(&self, watches: &Watches) {
        watches.outbox.close();
        let mut synced = self.synced.lock();
        let watchers = std::mem::take(&mut watches.state.lock().by_id);
        self.watchers.fetch_sub(watchers.len(), SeqCst);
        self.streams.fetch_sub(1, SeqCst);
        for watcher in watchers.values() {
            self.leave(&mut synced, watcher);
            watcher.cancel();
        }
        synced.awaiting_progress.retain(|(waiting, _)| !std::ptr::eq(waiting.as_ref(), watches));
    }

    /// Below which revision a lagging watcher cannot read any more.
    pub fn compacted(&self) -> i64 {
        self.recent.lock().compacted()
    }

    /// Takes those out of `lagging` that can go on from memory, and joins them to the synced ones if they reach the
    /// newest event. None when there is no such watcher.
    pub fn catch_up(&self, lagging: &mut Vec<Arc<Watcher>>) -> Option<CaughtUp> {
        let mut synced = self.synced.lock();
        let recent = self.recent.lock();
        let in_memory = |watcher: &Arc<Watcher>| watcher.next() > recent.floor();
        let from = lagging.iter().filter(|w| in_memory(w)).map(|w| w.next()).min()?;
        let Since::Events { batches, to, complete } = recent.since(from, CAUGHT_UP_MAX) else {
            unreachable!("revision {from} lies after the floor {}", recent.floor());
        };
        let revision = recent.revision();
        drop(recent);
        if complete {
            synced.skip_to(to);
        }

        let (mut watchers, mut rest) = (Vec::new(), Vec::new());
        let mut behind = Vec::new();
        for watcher in lagging.drain(..) {
            let next = watcher.next();
            if next < from || (!complete && next > to) || watchers.len() == LAGGING_MAX {
                rest.push(watcher);
                continue;
            }
            watcher.advance(to + 1);
            watchers.push((watcher.clone(), next));
            if !complete {
                behind.push(watcher);
            } else if !watcher.is_canceled() {
                self.join(&mut synced, watcher);
            }
        }
        rest.append(&mut behind);
        *lagging = rest;
        synced.tell_awaited_progress();
        drop(synced);
        self.wake();
        Some(CaughtUp { batches, watchers, revision })
    }

    /// Adds a watcher that has seen, or need not see, all up to the position.
    fn join(&self, synced: &mut Synced, watcher: Arc<Watcher>) {
        assert!(watcher.next() > synced.position, "{} is delivered already", watcher.next());
        watcher.set_synced(true);
        let before = synced.ranges.entry(&watcher.watch.range).insert(watcher.serials(), watcher);
        assert!(before.is_none(), "a watcher joins once");
        synced.count += 1;
        self.synced_count.store(synced.count, SeqCst);
    }

    /// Takes a watcher out, if it is in.
    fn leave(&self, synced: &mut Synced, watcher: &Watcher) {
        if !watcher.is_synced() {
            return;
        }
        watcher.set_synced(false);
        let range = &watcher.watch.range;
        let watchers = synced.ranges.find(range).expect("a synced watcher is found by its range");
        watchers.remove(&watcher.serials()).expect("a synced watcher is found by its range");
        if watchers.is_empty() {
            synced.ranges.remove(range);
        }
        synced.count -= 1;
        self.synced_count.store(synced.count, SeqCst);
    }

    fn wake(&self) {
        self.changed.notify_one();
    }

    async fn run(&self) {
        let _stops_with_it = AbortOnPanic;
        let mut position = 0;
        while !self.dropped.load(SeqCst) {
            if self.recent.lock().revision() > position {
                position = self.deliver();
            } else {
                self.changed.notified().await;
            }
        }
    }

    /// Hands the next events to the synced watchers; returns how far that is now.
    fn deliver(&self) -> i64 {
        let mut synced = self.synced.lock();
        let since = self.recent.lock().since(synced.position + 1, DELIVERED_MAX);
        match since {
            Since::Events { batches, to, .. } => {
                if synced.count > 0 {
                    for watcher in synced.hand_out(&batches) {
                        self.leave(&mut synced, &watcher);
                        watcher.outbox.clone().lag(watcher);
                    }
                }
                synced.position = synced.position.max(to);
            }
            Since::Missing { revision } => {
                let (next, watchers) = (synced.position + 1, synced.ranges.drain());
                for watcher in watchers.into_iter().flat_map(BTreeMap::into_values) {
                    watcher.advance(next);
                    if planted!(WatchGoesBack) {
                        watcher.go_back(self.compacted() + 1);
                    }
                    watcher.set_synced(false);
                    watcher.outbox.clone().lag(watcher);
                }
                (synced.count, synced.position) = (0, revision);
                self.synced_count.store(0, SeqCst);
            }
        }
        synced.tell_awaited_progress();
        synced.position
    }
}

impl Synced {
    /// Where nobody is synced, nothing up to `revision` has to be delivered: the thread may have slept meanwhile.
    fn skip_to(&mut self, revision: i64) {
        if self.count == 0 {
            self.position = self.position.max(revision);
        }
    }

    /// Delivers; returns the watchers whose outbox had no room.
    fn hand_out(&mut self, batches: &[Arc<Batch>]) -> Vec<Arc<Watcher>> {
        let from = self.position + 1;
        let mut full = Vec::new();
        let events = batches.iter().flat_map(|batch| &batch.events).filter(|event| event.revision() >= from);
        for (slot, events) in self.ranges.matching(events, |event| event.event.kv.key.as_ref()) {
            let matched = Matched::new(events);
            let mut watchers = self.ranges.get(slot).values().peekable();
            while let Some(first) = watchers.peek() {
                let outbox = first.outbox.clone();
                let of_stream = iter::from_fn(|| watchers.next_if(|next| Arc::ptr_eq(&next.outbox, &outbox)));
                let deliveries = of_stream.filter_map(|watcher| matched.delivery(watcher, watcher.next(), None));
                full.extend(outbox.offer(deliveries));
            }
        }
        if planted!(EventsLostWhenStarved) {
            full.clear();
        }
        full.iter().for_each(|watcher| watcher.advance(from));
        full
    }

    fn tell_awaited_progress(&mut self) {
        for (watches, target) in std::mem::take(&mut self.awaiting_progress) {
            if !self.tell_progress(&watches, target) {
                self.awaiting_progress.push((watches, target));
            }
        }
    }

    /// Tells progress on behalf of all watches of a stream. False when some are not synced, or `target` was not
    /// delivered yet.
    fn tell_progress(&self, watches: &Watches, target: i64) -> bool {
        let state = watches.state.lock();
        let is_behind = self.position < target || !state.by_id.values().all(|watcher| watcher.is_synced());
        if is_behind && !planted!(ProgressAhead) {
            return false;
        }
        if !state.by_id.is_empty() {
            let revision = if is_behind { target } else { self.position };
            watches.outbox.answer(Item::Progress { id: NO_WATCH_ID, revision });
        }
        true
    }
}

/// Without its thread the hub would keep silent, and nobody could tell that from a quiet store.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}
