//! The stream of an election's leaders and of what they proclaim.
//! Source: etcd, `client/v3/concurrency/election.go`, observe.

use std::collections::VecDeque;

use futures::{Stream, StreamExt as _};
use proto::{
    etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse},
    mvccpb::{KeyValue, event::EventType},
    v3electionpb::LeaderResponse,
};
use tonic::{Status, Streaming};

use super::{caller::Caller, queue};

/// Each leader, and each value that it proclaims, from the present one on. Past ones may be left out, the last never.
/// As in etcd the stream just ends when the store cannot be read any more.
pub(super) fn leaders(caller: Caller, prefix: Vec<u8>) -> impl Stream<Item = Result<LeaderResponse, Status>> + Send {
    let observer = Observer { caller, prefix, state: State::Seeking };
    futures::stream::unfold(observer, |mut observer| async {
        let response = observer.next().await?;
        Some((Ok(response), observer))
    })
}

struct Observer {
    caller: Caller,
    prefix: Vec<u8>,
    state: State,
}

enum State {
    /// It is not known who leads.
    Seeking,
    /// The leader's key was found in the state of a revision, and is not watched yet.
    Found { key: Vec<u8>, revision: i64 },
    /// The leader's key is watched; `pending` has yet to be told.
    Watching { responses: Box<Streaming<WatchResponse>>, pending: VecDeque<LeaderResponse>, is_deleted: bool },
}

impl Observer {
    /// None when the store cannot be read any more.
    async fn next(&mut self) -> Option<LeaderResponse> {
        loop {
            match &mut self.state {
                State::Seeking => {
                    let (header, kv) = self.seek().await?;
                    self.state = State::Found { key: kv.key.to_vec(), revision: header.revision };
                    return Some(LeaderResponse { header: Some(header), kv: Some(kv) });
                }
                State::Found { key, revision } => {
                    let create = WatchCreateRequest {
                        key: std::mem::take(key).into(),
                        start_revision: *revision + 1,
                        ..Default::default()
                    };
                    let responses = Box::new(self.caller.watch(create).await.ok()?);
                    self.state = State::Watching { responses, pending: VecDeque::new(), is_deleted: false };
                }
                State::Watching { responses, pending, is_deleted } => {
                    if let Some(response) = pending.pop_front() {
                        return Some(response);
                    }
                    if *is_deleted {
                        self.state = State::Seeking;
                        continue;
                    }
                    let response = responses.next().await?.ok().filter(|response| !response.canceled)?;
                    (*pending, *is_deleted) = proclaimed(response);
                }
            }
        }
    }

    /// The present leader, or the next one if there is none.
    async fn seek(&self) -> Option<(ResponseHeader, KeyValue)> {
        let mut found = self.caller.range(queue::first(&self.prefix)).await.ok()?;
        let header = found.header?;
        match found.kvs.pop() {
            Some(kv) => Some((header, kv)),
            None => self.first_put(header.revision).await,
        }
    }

    /// The first key that is put below the prefix, as of the put's revision.
    async fn first_put(&self, from_revision: i64) -> Option<(ResponseHeader, KeyValue)> {
        let create = WatchCreateRequest {
            key: self.prefix.clone().into(),
            range_end: queue::prefix_end(&self.prefix).into(),
            start_revision: from_revision,
            ..Default::default()
        };
        let mut responses = self.caller.watch(create).await.ok()?;
        loop {
            let response = responses.next().await?.ok().filter(|response| !response.canceled)?;
            let header = response.header?;
            if let Some(kv) =
                response.events.into_iter().find(|event| event.r#type() == EventType::Put).and_then(|event| event.kv)
            {
                return Some((ResponseHeader { revision: kv.mod_revision, ..header }, kv));
            }
        }
    }
}

/// The values of the puts up to a deletion, and whether there was one.
fn proclaimed(response: WatchResponse) -> (VecDeque<LeaderResponse>, bool) {
    let mut values = VecDeque::new();
    for event in response.events {
        if event.r#type() == EventType::Delete {
            return (values, true);
        }
        values.push_back(LeaderResponse { header: response.header.clone(), kv: event.kv });
    }
    (values, false)
}
