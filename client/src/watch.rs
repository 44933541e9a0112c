//! Watches that survive failures.
//!
//! A [`Watcher`] knows the revision it continues from ([`Position`]). When its stream breaks, or the member it is on
//! loses its leader, it opens a stream to the next endpoint from that revision on:
//!
//! ```text
//!  server a: created (revision 4)   put a @5   put b @6   ✗
//!  server b:                                                created   put b @6*  put c @7
//!  position: 5                      6          7            from 7    (dropped)  8
//!  caller:                          a @5       b @6                              c @7
//! ```
//!
//! Two rules make it without gap and without duplicate: the position moves past a revision only when all its events were
//! handed over (a server never splits a revision over responses unless asked to, which we do not), and events below the
//! position are dropped (*, which only a server that ignores the revision it is given would send).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proto::{
    EtcdError,
    etcdserverpb::{
        WatchCreateRequest, WatchRequest, WatchResponse, watch_client::WatchClient, watch_create_request::FilterType,
        watch_request::RequestUnion,
    },
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_stream::StreamExt;
use tonic::{Code, Request, Status, Streaming, metadata::MetadataValue};

use crate::{Client, Error, Keys, Result, connection::ANSWER_BYTES_MAX, endpoint::Member, retry::Backoff};

/// What to watch.
#[derive(Debug, Clone)]
pub struct Watch(WatchCreateRequest);

impl Watch {
    pub fn new(keys: Keys) -> Watch {
        Watch(WatchCreateRequest { key: keys.key, range_end: keys.range_end, ..Default::default() })
    }

    pub fn key(key: impl Into<Bytes>) -> Watch {
        Watch::new(Keys::one(key))
    }

    pub fn prefix(prefix: impl Into<Bytes>) -> Watch {
        Watch::new(Keys::prefix(prefix))
    }

    /// All keys.
    pub fn all() -> Watch {
        Watch::new(Keys::all())
    }

    /// Begin with the changes of this revision. 0: with the next change.
    pub fn from_revision(mut self, revision: i64) -> Watch {
        self.0.start_revision = revision;
        self
    }

    /// Events carry what was there before.
    pub fn prev_kv(mut self) -> Watch {
        self.0.prev_kv = true;
        self
    }

    /// Responses without events come from time to time, and say up to which revision nothing more will come.
    pub fn progress_notify(mut self) -> Watch {
        self.0.progress_notify = true;
        self
    }

    /// Deletes only.
    pub fn without_puts(mut self) -> Watch {
        self.0.filters.push(FilterType::Noput.into());
        self
    }

    /// Puts only.
    pub fn without_deletes(mut self) -> Watch {
        self.0.filters.push(FilterType::Nodelete.into());
        self
    }
}

/// The revision a watch continues from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    /// 0: with the next change, as long as the server has not said which revision that is.
    next: i64,
}

impl Position {
    /// The server has created the watcher; it tells the store's revision at that moment.
    fn created(&mut self, response: &WatchResponse) {
        if self.next == 0 {
            self.next = header_revision(response) + 1;
        }
    }

    /// Drops what was handed over before and moves on. The response is worth handing over when this says so.
    fn accept(&mut self, response: &mut WatchResponse) -> bool {
        if response.events.is_empty() {
            // A progress notification: nothing at or below its revision will follow.
            self.next = self.next.max(header_revision(response) + 1);
            return true;
        }
        let mod_revision = |event: &proto::mvccpb::Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        response.events.retain(|event| mod_revision(event) >= self.next);
        let Some(last) = response.events.last() else { return false };
        // Not the header's revision: the store may be further than what it has sent.
        self.next = mod_revision(last) + 1;
        true
    }
}

fn header_revision(response: &WatchResponse) -> i64 {
    response.header.as_ref().map_or(0, |header| header.revision)
}

/// A running watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    create: WatchCreateRequest,
    position: Position,
    open: Option<Open>,
    backoff: Backoff,
    /// Set when the watch has ended for good.
    ended: Option<Error>,
}

#[derive(Debug)]
struct Open {
    target: Arc<Member>,
    responses: Streaming<WatchResponse>,
}

/// Why a stream ended.
enum Broken {
    /// Another stream may do better.
    Resumable(Error),
    /// It would end the same way.
    ForGood(Error),
}

impl Client {
    /// Starts a watch. When this returns, the server has the watcher: what is put afterwards is seen.
    pub async fn watch(&self, watch: Watch) -> Result<Watcher> {
        let position = Position { next: watch.0.start_revision };
        let mut watcher = Watcher {
            client: self.clone(),
            create: watch.0,
            position,
            open: None,
            backoff: Backoff::default(),
            ended: None,
        };
        let deadline = Instant::now() + self.request_timeout();
        let mut last = Error::Timeout;
        loop {
            match timeout_at(deadline, watcher.open()).await {
                Ok(Ok(())) => return Ok(watcher),
                Ok(Err(Broken::ForGood(error))) => return Err(error),
                Ok(Err(Broken::Resumable(error))) => last = error,
                Err(_elapsed) => return Err(last),
            }
            if timeout_at(deadline, sleep(watcher.backoff.wait())).await.is_err() {
                return Err(last);
            }
        }
    }
}

impl Watcher {
    /// The next events, all of a revision together; or, where it was asked for, a progress notification without events.
    ///
    /// Waits as long as it takes, also while no endpoint can be reached. An error is the end of the watch: the same one
    /// comes again at every later call. May be cancelled (dropped) at any await without loss.
    pub async fn next(&mut self) -> Result<WatchResponse> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        loop {
            let broken = if self.open.is_some() {
                match self.receive().await {
                    Ok(response) => return Ok(response),
                    Err(broken) => broken,
                }
            } else {
                match self.open().await {
                    Ok(()) => continue,
                    Err(broken) => broken,
                }
            };
            self.open = None;
            match broken {
                Broken::ForGood(error) => {
                    self.ended = Some(error.clone());
                    return Err(error);
                }
                Broken::Resumable(error) => {
                    let wait = self.backoff.wait();
                    tracing::debug!(%error, next_revision = self.position.next, ?wait, "watch is resumed");
                    sleep(wait).await;
                }
            }
        }
    }

    /// The revision the watch would continue from after a failure: everything below was handed over.
    pub fn next_revision(&self) -> i64 {
        self.position.next
    }

    /// Creates the watcher at the client's present endpoint; gives the endpoint up when that fails.
    async fn open(&mut self) -> Result<(), Broken> {
        let target = self.client.route().target();
        // A member that hangs must not hold the watch for ever.
        let within: Duration = self.client.request_timeout();
        let opened = match timeout(within, self.open_at(&target)).await {
            Ok(opened) => opened,
            Err(_elapsed) => Err(Broken::Resumable(Error::Timeout)),
        };
        match opened {
            Ok(responses) => {
                self.open = Some(Open { target, responses });
                Ok(())
            }
            Err(broken) => {
                self.client.route().give_up(&target);
                Err(broken)
            }
        }
    }

    async fn open_at(&mut self, target: &Arc<Member>) -> Result<Streaming<WatchResponse>, Broken> {
        let create = WatchCreateRequest { start_revision: self.position.next, ..self.create.clone() };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // The stream of requests stays open, or the server would take the watch for ended.
        let mut request = Request::new(tokio_stream::once(create).chain(tokio_stream::pending()));
        // A member that has lost its leader shall end the stream, so that we go to one that has not.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let token = self.client.route().token(Instant::now() + self.client.request_timeout()).await;
        let connection = token.map_err(Broken::ForGood)?.connection(target.channel.clone());
        let mut client = WatchClient::new(connection).max_decoding_message_size(ANSWER_BYTES_MAX);
        let mut responses = client.watch(request).await.map_err(broken)?.into_inner();
        let created = next_message(&mut responses).await?;
        if !created.created {
            let error = Error::WatchCanceled("the server sent events before it created the watcher".to_string());
            return Err(Broken::ForGood(error));
        }
        self.position.created(&created);
        Ok(responses)
    }

    async fn receive(&mut self) -> Result<WatchResponse, Broken> {
        let open = self.open.as_mut().expect("a stream is open whenever this is called");
        loop {
            let mut response = match next_message(&mut open.responses).await {
                Ok(response) => response,
                Err(broken) => {
                    self.client.route().give_up(&open.target);
                    return Err(broken);
                }
            };
            self.backoff.reset();
            let asked_for = !response.events.is_empty() || self.create.progress_notify;
            if self.position.accept(&mut response) && asked_for {
                return Ok(response);
            }
        }
    }
}

/// The next response, unless it is the watch's end. May be cancelled without loss.
async fn next_message(responses: &mut Streaming<WatchResponse>) -> Result<WatchResponse, Broken> {
    let response = match responses.message().await {
        Ok(Some(response)) => response,
        Ok(None) => return Err(Broken::Resumable(Error::Unreachable("the watch stream was closed".to_string()))),
        Err(status) => return Err(broken(status)),
    };
    if response.compact_revision != 0 {
        return Err(Broken::ForGood(Error::WatchCompacted { compact_revision: response.compact_revision }));
    }
    if response.canceled {
        let reason = response.cancel_reason;
        return Err(match EtcdError::from_message(&reason) {
            Some(error) if error.code() == Code::Unavailable => Broken::Resumable(Error::Etcd(error)),
            _ => Broken::ForGood(Error::WatchCanceled(reason)),
        });
    }
    Ok(response)
}

/// Broken connections and members that go down have many codes; what another attempt cannot mend has few.
fn broken(status: Status) -> Broken {
    let for_good = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
    );
    let error = Error::from(status);
    if for_good { Broken::ForGood(error) } else { Broken::Resumable(error) }
}

#[cfg(test)]
mod tests {
    use proto::{etcdserverpb::ResponseHeader, mvccpb};

    use super::*;

    fn response(header_revision: i64, mod_revisions: &[i64]) -> WatchResponse {
        let event = |mod_revision: &i64| mvccpb::Event {
            kv: Some(mvccpb::KeyValue { mod_revision: *mod_revision, ..Default::default() }),
            ..Default::default()
        };
        WatchResponse {
            header: Some(ResponseHeader { revision: header_revision, ..Default::default() }),
            events: mod_revisions.iter().map(event).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_watch_of_what_comes_next_continues_from_where_it_was_created() {
        let mut position = Position { next: 0 };
        position.created(&response(7, &[]));
        assert_eq!(position.next, 8);
        // A stream opened later must not move it: what happened in between would be missed.
        position.created(&response(20, &[]));
        assert_eq!(position.next, 8);
    }

    #[test]
    fn the_position_follows_the_events_and_not_the_header() {
        let mut position = Position { next: 3 };
        assert!(position.accept(&mut response(100, &[3, 5])));
        assert_eq!(position.next, 6);
    }

    #[test]
    fn events_that_were_handed_over_are_dropped() {
        let mut position = Position { next: 6 };
        let mut repeated = response(9, &[4, 5]);
        assert!(!position.accept(&mut repeated));
        assert_eq!(position.next, 6);
        let mut partly = response(9, &[5, 6, 6, 7]);
        assert!(position.accept(&mut partly));
        assert_eq!(partly.events.len(), 3, "both events of revision 6 are new");
        assert_eq!(position.next, 8);
    }

    #[test]
    fn progress_moves_the_position_forward_only() {
        let mut position = Position { next: 6 };
        assert!(position.accept(&mut response(9, &[])));
        assert_eq!(position.next, 10);
        assert!(position.accept(&mut response(4, &[])));
        assert_eq!(position.next, 10);
    }
}
