//! Watches: who is told of which change.
//!
//! ```text
//! apply ─────────> Recent             the newest events, bounded                        recent.rs
//!                    │ the hub's thread matches them with the synced watchers           hub.rs, range_map.rs, interval.rs
//!                    v
//!                  Outbox             one per stream, bounded                           outbox.rs
//!                    │ the stream encodes and sends                                     stream.rs, encode.rs
//!                    v
//!                  client
//! ```
//!
//! A watcher is *synced* while the hub delivers to it, and *lagging* while it has to read what it missed: because it
//! starts in the past, because its outbox was full, or because a snapshot replaced the store. Its stream reads on its
//! behalf, from `Recent` or from the store's history (catch_up.rs), and joins it to the synced ones again.
//!
//! Invariants:
//! - Applying never waits for a watch: it appends to `Recent`, which forgets its oldest.
//! - Every watcher sees each event of its range once, in order, all events of a revision in one response (or in
//!   fragments of one). It joins under the hub's lock, with all read that the hub has delivered.
//! - What a stream holds in memory is bounded; a synced watcher costs no task.
//! - An event is encoded once, however many watchers it goes to.
//!
//! Locks are taken in this order: hub, watches of a stream, then one of outbox and recent events.

mod catch_up;
mod encode;
mod hub;
mod interval;
mod leader;
mod matched;
mod outbox;
mod range_map;
mod recent;
mod service;
mod stream;
#[cfg(test)]
mod tests;
mod watcher;

use std::{sync::Arc, time::Duration};

use proto::{KeyRange, etcdserverpb::ResponseHeader, mvccpb};
use storage::{Event, ReadError, StorageError, Store};
use tokio_util::sync::CancellationToken;

pub use hub::{Hub, Traffic};
pub(crate) use leader::leader_lost;
pub use service::WatchService;

/// What watches read from the store.
pub(crate) trait History: Send + Sync + 'static {
    fn revision(&self) -> i64;
    fn compacted(&self) -> i64;
    /// See [`Store::events`].
    fn events(
        &self,
        range: &KeyRange,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<(Vec<Arc<Event>>, i64), ReadError>;
    /// See [`Store::previous`].
    fn previous(&self, event: &Event) -> Result<Option<mvccpb::KeyValue>, StorageError>;
}

impl History for Store {
    fn revision(&self) -> i64 {
        Store::revision(self)
    }

    fn compacted(&self) -> i64 {
        self.compacted_revision()
    }

    fn events(
        &self,
        range: &KeyRange,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<(Vec<Arc<Event>>, i64), ReadError> {
        Store::events(self, range, from, to, max_bytes)
    }

    fn previous(&self, event: &Event) -> Result<Option<mvccpb::KeyValue>, StorageError> {
        Store::previous(self, event)
    }
}

/// What a stream needs of the member it runs on.
pub(crate) trait Member: Send + Sync + 'static {
    fn header(&self, revision: i64) -> ResponseHeader;
    /// Responses of watches that asked for fragments stay below this.
    fn response_bytes_max(&self) -> usize;
    fn progress_interval(&self) -> Duration;
    /// Cancelled when the member stops.
    fn shutdown(&self) -> CancellationToken;
    /// This member's disk failed: it must stop.
    fn fatal(&self, error: &StorageError);
}
