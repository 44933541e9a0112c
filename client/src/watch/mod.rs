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
//! handed over (a server never splits a revision over responses unless asked to, and then says so), and events below the
//! position are dropped (*, which only a server that ignores the revision it is given would send).

mod position;
mod stream;

use std::time::Duration;

use bytes::Bytes;
use proto::{
    EtcdError,
    etcdserverpb::{WatchCreateRequest, WatchResponse, watch_create_request::FilterType},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Code;

pub(crate) use self::stream::Hub;
use self::{
    position::Position,
    stream::{Broken, Subscription},
};
use crate::{Client, Error, Keys, Result, retry::Backoff};

/// What to watch.
#[derive(Debug, Clone)]
pub struct Watch {
    create: WatchCreateRequest,
    alone: bool,
}

impl Watch {
    /// Watches these keys.
    pub fn new(keys: Keys) -> Watch {
        let create = WatchCreateRequest { key: keys.key, range_end: keys.range_end, ..Default::default() };
        Watch { create, alone: false }
    }

    /// Watches one key.
    pub fn key(key: impl Into<Bytes>) -> Watch {
        Watch::new(Keys::one(key))
    }

    /// Watches all keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Watch {
        Watch::new(Keys::prefix(prefix))
    }

    /// All keys.
    pub fn all() -> Watch {
        Watch::new(Keys::all())
    }

    /// Begin with the changes of this revision. 0: with the next change.
    pub fn from_revision(mut self, revision: i64) -> Watch {
        self.create.start_revision = revision;
        self
    }

    /// Events carry what was there before.
    pub fn prev_kv(mut self) -> Watch {
        self.create.prev_kv = true;
        self
    }

    /// Responses without events come from time to time, and say up to which revision nothing more will come.
    pub fn progress_notify(mut self) -> Watch {
        self.create.progress_notify = true;
        self
    }

    /// Large revisions come in parts, which are put together here: for events that are more than a server or a proxy lets
    /// pass in one message.
    pub fn fragment(mut self) -> Watch {
        self.create.fragment = true;
        self
    }

    /// Not on the stream that the client's watchers share: a slow one then slows the server's sending down, instead of
    /// coming back later for what it has missed.
    pub fn on_its_own_stream(mut self) -> Watch {
        self.alone = true;
        self
    }

    /// Deletes only.
    pub fn without_puts(mut self) -> Watch {
        self.create.filters.push(FilterType::Noput.into());
        self
    }

    /// Puts only.
    pub fn without_deletes(mut self) -> Watch {
        self.create.filters.push(FilterType::Nodelete.into());
        self
    }
}

/// A running watch. Dropping it ends it.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    watch: Watch,
    position: Position,
    subscription: Option<Subscription>,
    backoff: Backoff,
    progress_asked_for: bool,
    /// Set when the watch has ended for good.
    ended: Option<Error>,
}

impl Client {
    /// Starts a watch. When this returns, the server has the watcher: what is put afterwards is seen.
    pub async fn watch(&self, watch: Watch) -> Result<Watcher> {
        let start = watch.create.start_revision;
        let mut watcher = Watcher {
            client: self.clone(),
            position: Position::from(start),
            watch: Watch { create: self.entered(watch.create)?, ..watch },
            subscription: None,
            backoff: Backoff::default(),
            progress_asked_for: false,
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

/// Servers write some reasons as Go writes a status: `rpc error: code = … desc = etcdserver: …`. Source: etcd,
/// `server/etcdserver/api/v3rpc/watch.go` (recvLoop), `client/v3/watch.go` (shouldRetryWatch).
fn message_of(cancel_reason: &str) -> &str {
    cancel_reason.split_once(" desc = ").map_or(cancel_reason, |(_, message)| message)
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
            let broken = if self.subscription.is_some() {
                match self.receive().await {
                    Ok(response) => return Ok(self.client.left(response)),
                    Err(broken) => broken,
                }
            } else {
                match self.open().await {
                    Ok(()) => continue,
                    Err(broken) => Some(broken),
                }
            };
            self.subscription = None;
            match broken {
                // It was too slow, and has caught up with what was sent.
                None => {}
                Some(Broken::ForGood(Error::WatchCompacted { compact_revision }))
                    if self.position.is_beyond(compact_revision) => {}
                Some(Broken::ForGood(error)) => {
                    self.ended = Some(error.clone());
                    return Err(error);
                }
                Some(Broken::Resumable(error)) => {
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

    /// Asks the server to say how far it is. The answer comes from [`Watcher::next`] as a response without events, when
    /// everything up to its revision was sent.
    pub fn request_progress(&mut self) {
        self.progress_asked_for = true;
        if let Some(subscription) = &self.subscription {
            subscription.request_progress();
        }
    }

    /// Creates the watcher at a server; gives the endpoint up when that fails.
    async fn open(&mut self) -> Result<(), Broken> {
        let within: Duration = self.client.request_timeout();
        let route = self.client.route();
        let token = match route.token(Instant::now() + within).await {
            Ok(token) => token,
            Err(error) if error.is_transient() => return Err(Broken::Resumable(error)),
            Err(error) => return Err(Broken::ForGood(error)),
        };
        let create = WatchCreateRequest { start_revision: self.position.next, ..self.watch.create.clone() };
        let mut subscription = self.client.watches().join(route, token, create, self.watch.alone);
        // A member that hangs must not hold the watch for ever.
        let created = match timeout(within, subscription.responses.recv()).await {
            Ok(Some(created)) => self.look_at(&subscription, created)?,
            Ok(None) => {
                let lost = || Broken::Resumable(Error::Unreachable("the watch stream was closed".to_string()));
                return Err(subscription.stream.reason().unwrap_or_else(lost));
            }
            Err(_elapsed) => {
                self.client.route().give_up(&subscription.stream.target);
                let broken = Broken::Resumable(Error::Timeout);
                subscription.stream.close(broken.clone());
                return Err(broken);
            }
        };
        if !created.created {
            let error = Error::WatchCanceled("the server sent events before it created the watcher".to_string());
            return Err(Broken::ForGood(error));
        }
        self.position.created(&created);
        if self.progress_asked_for {
            subscription.request_progress();
        }
        self.subscription = Some(subscription);
        Ok(())
    }

    /// The next response that is worth handing over. An error of None: the watcher was taken off the stream for being slow.
    async fn receive(&mut self) -> Result<WatchResponse, Option<Broken>> {
        loop {
            let subscription = self.subscription.as_mut().expect("there is one whenever this is called");
            let Some(response) = subscription.responses.recv().await else {
                return Err(subscription.stream.reason());
            };
            let subscription = self.subscription.as_ref().expect("it was there just now");
            let mut response = self.look_at(subscription, response)?;
            self.backoff.reset();
            let is_asked_for = !response.events.is_empty()
                || self.watch.create.progress_notify
                || (self.progress_asked_for && response.watch_id == position::ALL);
            let has_events = !response.events.is_empty();
            if self.position.accept(&mut response) && (is_asked_for || !response.events.is_empty()) {
                self.progress_asked_for &= has_events;
                return Ok(response);
            }
        }
    }

    /// The response, unless it is the watch's end.
    fn look_at(&self, subscription: &Subscription, response: WatchResponse) -> Result<WatchResponse, Broken> {
        if response.compact_revision != 0 {
            return Err(Broken::ForGood(Error::WatchCompacted { compact_revision: response.compact_revision }));
        }
        if !response.canceled {
            return Ok(response);
        }
        let Some(error) = EtcdError::from_message(message_of(&response.cancel_reason)) else {
            return Err(Broken::ForGood(Error::WatchCanceled(response.cancel_reason)));
        };
        let (route, stream) = (self.client.route(), &subscription.stream);
        if route.is_stale(&stream.token, &Error::Etcd(error)) {
            // Nobody on this stream could create another watcher.
            let broken = Broken::Resumable(Error::Etcd(error));
            stream.close(broken.clone());
            return Err(broken);
        }
        if error.code() != Code::Unavailable {
            return Err(Broken::ForGood(match error {
                EtcdError::PermissionDenied => Error::Etcd(error),
                _ => Error::WatchCanceled(response.cancel_reason),
            }));
        }
        let broken = Broken::Resumable(Error::Etcd(error));
        route.give_up(&stream.target);
        stream.close(broken.clone());
        Err(broken)
    }
}
