//! What a watch promises: every event once, in order, whole revisions, and nothing that was not asked for.

use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use proto::{
    etcdserverpb::{
        WatchCreateRequest, WatchProgressRequest, WatchRequest, watch_create_request::FilterType,
        watch_request::RequestUnion,
    },
    mvccpb::{Event, event::EventType},
};

use super::{
    Setup,
    client::{Client, Watch, key_of, revision_of, watch_all},
};
use crate::process::Node;

/// More than a watch's queue and the connection hold.
const STARVED_PUTS: usize = 600;
const STARVED_BYTES: usize = 64 << 10;
/// Transactions of three puts each: more than is read of the history at a time.
const TXNS: usize = 1500;
const TXN_KEYS: [&str; 3] = ["c", "a", "b"];
const VALUE: [u8; 1000] = [7; 1000];
const WRITERS: usize = 16;
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Checks that a watch tells of every revision from one on, up to another, whole and in order. `keys` are what each
/// changes.
async fn check_whole(watch: &mut Watch, from: i64, to: i64, keys: &[&str]) -> Result<()> {
    let mut next = from;
    while next <= to {
        let events = watch.events().await?;
        for events in events.chunk_by(|a, b| revision_of(a) == revision_of(b)) {
            let revision = revision_of(&events[0]);
            ensure!(revision == next, "revision {next} was due, and {revision} was told");
            let told: Vec<&[u8]> = events.iter().map(key_of).collect();
            let expected: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
            ensure!(told == expected, "revision {revision} changed {keys:?}, and a response told of {told:?}");
            next += 1;
        }
    }
    Ok(())
}

/// A member that has a history of transactions, and holds none of it in memory. Gives its newest revision.
async fn with_history(setup: &Setup<'_>) -> Result<(Node, i64)> {
    let mut node = setup.single(&[]).await?;
    let client = Client::of(&node);
    put_txns(&client).await?;
    let revision = client.revision().await?;
    restart(&mut node).await?;
    Ok((node, revision))
}

async fn restart(node: &mut Node) -> Result<()> {
    ensure!(node.terminate(STOP_LIMIT).await?.success(), "a clean stop gave an error");
    node.start().await
}

async fn put_txns(client: &Client) -> Result<()> {
    let value = Bytes::from_static(&VALUE);
    let puts = stream::iter(0..TXNS).map(|_| client.put_all(&TXN_KEYS, &value));
    puts.buffer_unordered(WRITERS).try_for_each(|_| async { Ok(()) }).await?;
    Ok(())
}

pub async fn starved(setup: &Setup<'_>) -> Result<()> {
    let node = setup.single(&[]).await?;
    let client = Client::of(&node);
    let from = client.revision().await? + 1;
    let mut watch = client.watch(watch_all(0)).await?;
    // Written through another connection: that of the watch is full.
    let writer = Client::of(&node);
    let value = Bytes::from(vec![7; STARVED_BYTES]);
    let puts = stream::iter(0..STARVED_PUTS).map(|_| writer.put("k", value.clone()));
    puts.buffer_unordered(WRITERS).try_for_each(|_| async { Ok(()) }).await?;
    check_whole(&mut watch, from, writer.revision().await?, &["k"]).await
}

pub async fn past(setup: &Setup<'_>) -> Result<()> {
    let (node, to) = with_history(setup).await?;
    let client = Client::of(&node);
    let mut watch = client.watch(watch_all(2)).await?;
    check_whole(&mut watch, 2, to, &TXN_KEYS).await?;
    // And so it goes on.
    put_txns(&client).await?;
    check_whole(&mut watch, to + 1, client.revision().await?, &TXN_KEYS).await
}

pub async fn future(setup: &Setup<'_>) -> Result<()> {
    let node = setup.single(&[]).await?;
    let client = Client::of(&node);
    let from = client.revision().await? + 5;
    let mut watch = client.watch(watch_all(from)).await?;
    for _ in 0..10 {
        client.put("k", "v").await?;
    }
    check_whole(&mut watch, from, from + 5, &["k"]).await
}

pub async fn filtered(setup: &Setup<'_>) -> Result<()> {
    let node = setup.single(&[]).await?;
    let client = Client::of(&node);
    for (filter, wanted) in [(FilterType::Noput, EventType::Delete), (FilterType::Nodelete, EventType::Put)] {
        let create = WatchCreateRequest { filters: vec![filter.into()], ..watch_all(0) };
        let mut watch = client.watch(create).await?;
        client.put("k", "v").await?;
        client.delete("k").await?;
        let last = match wanted {
            EventType::Put => client.put("k", "v").await?,
            EventType::Delete => {
                client.put("k", "v").await?;
                client.delete("k").await?
            }
        };
        let mut seen = 0;
        while seen < last {
            for event in watch.events().await? {
                ensure!(event.r#type() == wanted, "a watch with the filter {filter:?} was sent {event:?}");
                seen = revision_of(&event);
            }
        }
    }
    Ok(())
}

pub async fn compacted(setup: &Setup<'_>) -> Result<()> {
    let mut node = setup.single(&[]).await?;
    let client = Client::of(&node);
    // Read from the store, since what is in memory is gone.
    let mut first = async |revision| -> Result<Event> {
        client.compact(revision).await?;
        restart(&mut node).await?;
        let create = WatchCreateRequest { prev_kv: true, ..watch_all(revision) };
        let mut watch = Client::of(&node).watch(create).await?;
        let event = watch.events().await?.remove(0);
        ensure!(revision_of(&event) == revision, "the event of revision {revision} is not there: {event:?}");
        ensure!(
            event.prev_kv.is_none(),
            "the version before revision {revision} is compacted, and was sent: {event:?}"
        );
        Ok(event)
    };
    client.put("k", "1").await?;
    let put = client.put("k", "2").await?;
    let event = first(put).await?;
    ensure!(event.r#type() == EventType::Put, "a put became {event:?}");
    let delete = client.delete("k").await?;
    // The event that the watch would wait for if the delete is lost.
    client.put("other", "1").await?;
    let event = first(delete).await?;
    ensure!(event.r#type() == EventType::Delete, "a delete became {event:?}");
    Ok(())
}

pub async fn progress(setup: &Setup<'_>) -> Result<()> {
    let (node, to) = with_history(setup).await?;
    let client = Client::of(&node);
    let mut watch = client.watch(watch_all(2)).await?;
    let request = RequestUnion::ProgressRequest(WatchProgressRequest {});
    watch.requests.send(WatchRequest { request_union: Some(request) }).await?;
    let mut seen = 1;
    loop {
        let response = watch.next().await?;
        if let Some(last) = response.events.last() {
            seen = revision_of(last);
            continue;
        }
        let revision = response.header.unwrap_or_default().revision;
        ensure!(seen >= revision.min(to), "progress up to {revision} was told when events up to {seen} had been");
        return Ok(());
    }
}
