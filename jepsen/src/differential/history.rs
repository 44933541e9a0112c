//! Every event there ever was, from a watch over the whole key space of the reference: it tells how much a watcher has
//! yet to deliver, so that nothing is waited for by the clock.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use proto::{etcdserverpb as pb, mvccpb};
use tokio::{sync::mpsc, time::timeout};
use tonic::Streaming;

use super::peer::Peer;

const EVENT_LIMIT: Duration = Duration::from_secs(20);
const EVERYTHING: &[u8] = b"\0";

pub struct Event {
    pub key: Bytes,
    pub revision: i64,
    pub is_put: bool,
}

pub struct History {
    events: Vec<Event>,
    answers: Streaming<pb::WatchResponse>,
    /// Dropped, the stream would end.
    _requests: mpsc::Sender<pb::WatchRequest>,
}

impl History {
    pub async fn follow(reference: &Peer) -> Result<History> {
        let (requests, receiver) = mpsc::channel(1);
        let create = pb::WatchCreateRequest {
            key: Bytes::from_static(EVERYTHING),
            range_end: Bytes::from_static(EVERYTHING),
            start_revision: 1,
            ..Default::default()
        };
        requests.send(create_request(create)).await?;
        let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut answers = reference.watch_client().watch(receiver).await?.into_inner();
        let created = answers.message().await?.context("the reference watch ended")?;
        ensure!(created.created && !created.canceled, "the reference watch was refused: {created:?}");
        Ok(History { events: Vec::new(), answers, _requests: requests })
    }

    /// Takes in the events up to a revision, each of which has at least one.
    pub async fn read_to(&mut self, revision: i64) -> Result<()> {
        while self.events.last().map_or(1, |event| event.revision) < revision {
            let Ok(answer) = timeout(EVENT_LIMIT, self.answers.message()).await else {
                bail!("the reference watch did not reach revision {revision} in {EVENT_LIMIT:?}");
            };
            let answer = answer?.context("the reference watch ended")?;
            ensure!(!answer.canceled, "the reference watch was canceled: {answer:?}");
            self.events.extend(answer.events.into_iter().map(|event| {
                let is_put = event.r#type == mvccpb::event::EventType::Put as i32;
                let kv = event.kv.unwrap_or_default();
                Event { key: kv.key, revision: kv.mod_revision, is_put }
            }));
        }
        Ok(())
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }
}

pub fn create_request(request: pb::WatchCreateRequest) -> pb::WatchRequest {
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(request)) }
}
