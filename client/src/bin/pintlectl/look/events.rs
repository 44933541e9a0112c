//! All events of one key that the store still has.
//!
//! A watch from the oldest revision that is kept tells them all, deletions, too. Reading backwards, each time at the
//! revision before the version just found, would end at the first deletion: nothing says where the key was put before
//! that. What was there at the compaction itself no watch tells, but a read at that revision does. That the watch has
//! told all is known by asking for its progress: the server answers when nothing is left to send.

use std::time::Duration;

use client::{
    Client, Error, Get, Watch,
    mvccpb::{Event, KeyValue, event::EventType},
};
use tokio::time::interval;

/// How often progress is asked for. A server that is still sending does not answer.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// What a store knows of a key.
pub struct Events {
    /// From the oldest to the newest.
    pub events: Vec<Event>,
    /// Where the store's history begins: what was before is compacted. 0: it was never compacted.
    pub compacted: i64,
    /// The store's revision.
    pub revision: i64,
}

impl Events {
    pub async fn of(client: &Client, key: &[u8]) -> Result<Events, Error> {
        let now = client.get(Get::key(key.to_vec()).keys_only()).await?;
        let revision = now.header.map_or(0, |header| header.revision);
        let (compacted, events) = match tell(client, key, 1, revision).await {
            Err(Error::WatchCompacted { compact_revision }) => {
                (compact_revision, since_compaction(client, key, compact_revision, revision).await?)
            }
            events => (0, events?),
        };
        Ok(Events { events, compacted, revision })
    }
}

/// The version that was there at the compaction, and all events after it.
async fn since_compaction(client: &Client, key: &[u8], compacted: i64, revision: i64) -> Result<Vec<Event>, Error> {
    let at_compaction = client.get(Get::key(key.to_vec()).revision(compacted)).await?;
    let mut events: Vec<Event> = at_compaction.kvs.into_iter().map(put).collect();
    events.extend(tell(client, key, compacted + 1, revision).await?);
    Ok(events)
}

fn put(kv: KeyValue) -> Event {
    Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: None }
}

/// The events from one revision up to another one, which the store has reached.
async fn tell(client: &Client, key: &[u8], from: i64, until: i64) -> Result<Vec<Event>, Error> {
    let mut events = Vec::new();
    if from > until {
        return Ok(events);
    }
    let mut watcher = client.watch(Watch::key(key.to_vec()).from_revision(from)).await?;
    let mut ask = interval(ASK_INTERVAL);
    loop {
        let response = tokio::select! {
            response = watcher.next() => response?,
            _ = ask.tick() => {
                watcher.request_progress();
                continue;
            }
        };
        let reached = response.header.is_some_and(|header| header.revision >= until);
        if response.events.is_empty() && reached {
            return Ok(events);
        }
        events.extend(response.events);
    }
}
