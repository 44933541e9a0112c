//! One writer, many watchers of one prefix: how many events a second arrive, and how long after the put was sent.
//!
//! The value of each put begins with the time it was sent, so a watcher knows an event's delay when it arrives. The
//! watchers share one stream per connection, as etcd's client library does.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use client::Connection;
use proto::etcdserverpb::{
    PutRequest, WatchCreateRequest, WatchRequest, WatchResponse, watch_client::WatchClient, watch_request::RequestUnion,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    drive::{Measured, Recorder, Settings, micros},
    workload,
};

const TIMESTAMP_BYTES: usize = 8;

/// `operations` of the result are events received by all watchers together; latencies are delays of events.
pub async fn run(
    watchers: usize,
    settings: &Settings,
    channels: &[Connection],
    prefix: &str,
) -> anyhow::Result<Measured> {
    let mut streams = Vec::new();
    for (index, channel) in channels.iter().enumerate() {
        let share = (watchers + channels.len() - 1 - index) / channels.len();
        if share > 0 {
            streams.push(open(channel.clone(), share, prefix).await?);
        }
    }
    let epoch = Instant::now();
    let recorder = Recorder::new(settings.warmup, settings.duration);
    let mut readers = JoinSet::new();
    for (shard, stream) in streams.into_iter().enumerate() {
        let recorder = recorder.clone();
        readers.spawn(async move { read(stream, &recorder, epoch, shard).await });
    }
    let mut writer = JoinSet::new();
    writer.spawn(write(channels[0].clone(), settings.clone(), prefix.to_string(), epoch));
    let (server, own_cpu) = tokio::select! {
        observed = recorder.observe(&settings.pids) => observed?,
        // The writer and the readers go on until they are stopped, unless something is wrong.
        failed = writer.join_next() => match failed.context("the writer was started")?? {
            Ok(never) => match never {},
            Err(status) => return Err(status).context("the writer failed"),
        },
        Some(ended) = readers.join_next() => { ended??; anyhow::bail!("a watch stream was closed before the end") }
    };
    writer.shutdown().await;
    readers.shutdown().await;
    Ok(recorder.finish(server, own_cpu, None))
}

/// A stream with its watchers created. The sender is held: dropping it would end the stream.
struct Watching {
    _requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

async fn open(channel: Connection, watchers: usize, prefix: &str) -> anyhow::Result<Watching> {
    let (requests, receiver) = mpsc::channel(watchers);
    for _ in 0..watchers {
        let create = WatchCreateRequest {
            key: prefix.to_string().into(),
            range_end: workload::prefix_end(prefix),
            ..Default::default()
        };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.send(request).await.context("the channel has room for all watchers")?;
    }
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut responses = client.watch(ReceiverStream::new(receiver)).await?.into_inner();
    for _ in 0..watchers {
        let created = responses.message().await?.context("the watch stream was closed")?;
        anyhow::ensure!(created.created && !created.canceled, "a watcher was refused: {}", created.cancel_reason);
    }
    Ok(Watching { _requests: requests, responses })
}

async fn read(mut stream: Watching, recorder: &Arc<Recorder>, epoch: Instant, shard: usize) -> anyhow::Result<()> {
    while let Some(response) = stream.responses.message().await? {
        anyhow::ensure!(!response.canceled, "a watcher was cancelled: {}", response.cancel_reason);
        let now = Instant::now();
        recorder.complete(response.events.len() as u64, now);
        if !(recorder.start..recorder.end).contains(&now) {
            continue;
        }
        for event in &response.events {
            let value = event.kv.as_ref().map(|kv| kv.value.as_ref()).unwrap_or_default();
            let sent = value.first_chunk::<TIMESTAMP_BYTES>().context("an event without our timestamp")?;
            let sent = epoch + Duration::from_micros(u64::from_be_bytes(*sent));
            recorder.latency(shard, now.saturating_duration_since(sent));
        }
    }
    Ok(())
}

/// Puts until it is stopped: as fast as puts are answered, or at the rate that was asked for.
async fn write(channel: Connection, settings: Settings, prefix: String, epoch: Instant) -> Result<Infallible, Status> {
    let mut kv = workload::kv(channel);
    let filler = workload::value(settings.shape.value_size.saturating_sub(TIMESTAMP_BYTES));
    let begin = Instant::now();
    let mut index = 0_usize;
    loop {
        if let Some(rate) = settings.rate {
            let due = begin + Duration::from_secs_f64(index as f64 / rate);
            tokio::time::sleep_until(due.into()).await;
        }
        let mut value = Vec::with_capacity(TIMESTAMP_BYTES + filler.len());
        value.extend_from_slice(&micros(epoch.elapsed()).to_be_bytes());
        value.extend_from_slice(&filler);
        let key = workload::key(&prefix, index % settings.shape.keys);
        kv.put(PutRequest { key, value: Bytes::from(value), ..Default::default() }).await?;
        index += 1;
    }
}
