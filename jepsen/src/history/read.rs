//! Reading a store's history through a watch.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use proto::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_client::WatchClient, watch_request::RequestUnion};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::Event;

const SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// What a store told about a stretch of its history.
pub struct Told {
    /// Later than what was asked for, if the store has been compacted since.
    pub from: i64,
    pub events: Vec<Event>,
}

/// A watch on all keys from a revision on. It ends when the returned sender is dropped.
pub async fn all_keys(
    channel: Channel,
    start_revision: i64,
) -> Result<(mpsc::Sender<WatchRequest>, Streaming<proto::etcdserverpb::WatchResponse>), tonic::Status> {
    let (sender, receiver) = mpsc::channel(1);
    let create = WatchCreateRequest {
        key: b"\0".as_slice().into(),
        range_end: b"\0".as_slice().into(),
        start_revision,
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    sender.try_send(request).expect("the channel has room for one request");
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let responses = client.watch(ReceiverStream::new(receiver)).await?.into_inner();
    Ok((sender, responses))
}

/// Reads all events from revision `from` up to and with `to`, which the store has reached or will.
pub async fn read_history(channel: Channel, from: i64, to: i64) -> Result<Told> {
    let mut told = Told { from, events: Vec::new() };
    while told.from <= to {
        let (_requests, mut responses) =
            timeout(SILENCE_LIMIT, all_keys(channel.clone(), told.from)).await.context("the watch did not begin")??;
        loop {
            let response = timeout(SILENCE_LIMIT, responses.message())
                .await
                .with_context(|| {
                    let last = told.events.last().map_or(told.from - 1, |event| event.mod_revision);
                    format!("the watch fell silent after revision {last}; {to} was awaited")
                })??
                .context("the watch ended by itself")?;
            if response.compact_revision > 0 {
                ensure!(told.events.is_empty(), "the store was compacted while its history was read");
                ensure!(response.compact_revision >= told.from, "compacted at {}?", response.compact_revision);
                told.from = response.compact_revision + 1;
                break;
            }
            if response.canceled {
                bail!("the watch was cancelled: {}", response.cancel_reason);
            }
            for event in response.events {
                told.events.push(Event::from_wire(event)?);
            }
            // A revision's events come in one response, so none of its events are still to come.
            if told.events.last().is_some_and(|event| event.mod_revision >= to) {
                told.events.retain(|event| event.mod_revision <= to);
                return Ok(told);
            }
        }
    }
    Ok(told)
}
