//! The same watches on both servers.
//!
//! A watch delivers when it likes and batches as it likes, so two servers are compared at quiescent points: when every
//! watcher has delivered what the [`History`] says is due. Between such points the answers to creations and cancels
//! come in order; the end of these is marked by a [fence](Stream::control).

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use proto::{etcdserverpb as pb, mvccpb};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    history::{Event, History, create_request},
    normal::Normalise as _,
    peer::Peer,
};

const DELIVERY_LIMIT: Duration = Duration::from_secs(20);
/// etcd answers a progress request only when all watchers of the stream are synced, and forgets it otherwise.
const PROGRESS_REPEAT: Duration = Duration::from_millis(30);
const ANSWERS_UNREAD_MAX: usize = 1024;
/// Server-side id of a creation that is refused, and of progress answers on behalf of all watchers.
const NO_WATCH: i64 = -1;
/// Why a fence is refused.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

/// One Watch stream of one peer.
pub struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    answers: mpsc::Receiver<Result<pb::WatchResponse, tonic::Status>>,
    reader: JoinHandle<()>,
    watchers: BTreeMap<i64, Watcher>,
    /// Answers to creations and cancels since the last fence.
    control: Vec<pb::WatchResponse>,
    progress: Vec<pb::WatchResponse>,
    violations: Vec<String>,
    pub fragments: u64,
}

/// What one watcher has delivered since the last comparison.
#[derive(Debug, Default)]
pub struct Watcher {
    pub events: Vec<mvccpb::Event>,
    pub delivered: usize,
    /// The answer that ended it because of a compaction.
    pub compacted: Option<pb::WatchResponse>,
    last_revision: i64,
    last_was_fragment: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Stream {
    pub async fn open(peer: &Peer) -> Result<Stream> {
        let (requests, receiver) = mpsc::channel(16);
        let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
        // A server may answer the call itself only with its first message.
        requests.send(fence()).await?;
        let mut from_server = peer.watch_client().watch(receiver).await?.into_inner();
        let (sender, answers) = mpsc::channel(ANSWERS_UNREAD_MAX);
        let reader = tokio::spawn(async move {
            loop {
                let answer = match from_server.message().await {
                    Ok(Some(answer)) => Ok(answer),
                    Ok(None) => Err(tonic::Status::aborted("the server ended the stream")),
                    Err(status) => Err(status),
                };
                let ended = answer.is_err();
                if sender.send(answer).await.is_err() || ended {
                    return;
                }
            }
        });
        let mut stream = Stream {
            requests,
            answers,
            reader,
            watchers: BTreeMap::new(),
            control: Vec::new(),
            progress: Vec::new(),
            violations: Vec::new(),
            fragments: 0,
        };
        stream.await_fences(1).await?;
        stream.control.clear();
        Ok(stream)
    }

    /// Sends a creation or cancel and gives every answer to it: those that come before the answer to a fence, a
    /// creation that every server refuses at once.
    pub async fn control(&mut self, request: pb::WatchRequest) -> Result<Vec<pb::WatchResponse>> {
        let refused_like_a_fence = matches!(
            &request.request_union,
            Some(pb::watch_request::RequestUnion::CreateRequest(create)) if has_empty_range(create)
        );
        self.requests.send(request).await?;
        self.requests.send(fence()).await?;
        self.await_fences(1 + usize::from(refused_like_a_fence)).await?;
        // The last one is the fence's own.
        self.control.pop();
        Ok(std::mem::take(&mut self.control))
    }

    async fn await_fences(&mut self, count: usize) -> Result<()> {
        let is_fence = |answer: &&pb::WatchResponse| {
            answer.created && answer.canceled && answer.watch_id == NO_WATCH && answer.cancel_reason == EMPTY_RANGE
        };
        let deadline = Instant::now() + DELIVERY_LIMIT;
        while self.control.iter().filter(is_fence).count() < count {
            if !self.read(deadline).await? {
                bail!("{EMPTY_RANGE:?} was not answered in {DELIVERY_LIMIT:?}; what came: {:?}", self.control);
            }
        }
        Ok(())
    }

    /// Reads until a watcher has delivered so many events, or was ended by a compaction; `false` when it does not.
    pub async fn delivered(&mut self, watch_id: i64, due: Due) -> Result<bool> {
        let deadline = Instant::now() + DELIVERY_LIMIT;
        loop {
            let Some(watcher) = self.watchers.get(&watch_id) else { return Ok(false) };
            let done = match due {
                Due::Events(count) => watcher.delivered >= count,
                Due::Compacted => watcher.compacted.is_some(),
            };
            if done {
                return Ok(true);
            }
            if watcher.compacted.is_some() || !self.read(deadline).await? {
                return Ok(false);
            }
        }
    }

    /// Asks for progress until it is answered; gives the first answer.
    pub async fn progress(&mut self) -> Result<Option<pb::WatchResponse>> {
        self.progress.clear();
        let deadline = Instant::now() + DELIVERY_LIMIT;
        while Instant::now() < deadline {
            let request = pb::watch_request::RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
            self.requests.send(pb::WatchRequest { request_union: Some(request) }).await?;
            let repeat = Instant::now() + PROGRESS_REPEAT;
            while self.read(repeat).await? {
                if !self.progress.is_empty() {
                    return Ok(Some(self.progress.remove(0)));
                }
            }
        }
        Ok(None)
    }

    /// Takes in one answer; `false` if none came in time.
    async fn read(&mut self, deadline: Instant) -> Result<bool> {
        let Ok(answer) = timeout_at(deadline, self.answers.recv()).await else { return Ok(false) };
        let mut answer = answer.context("the watch stream has ended")?.context("the watch stream failed")?;
        answer.header.normalise();
        self.take(answer);
        Ok(true)
    }

    fn take(&mut self, answer: pb::WatchResponse) {
        let ended_by_compaction = answer.canceled && answer.compact_revision != 0;
        if answer.created || (answer.canceled && !ended_by_compaction) {
            if answer.created && !answer.canceled {
                self.watchers.insert(answer.watch_id, Watcher::default());
            } else if answer.canceled {
                self.watchers.remove(&answer.watch_id);
            }
            self.control.push(answer);
            return;
        }
        if answer.events.is_empty() && !answer.canceled {
            self.progress.push(answer);
            return;
        }
        let Some(watcher) = self.watchers.get_mut(&answer.watch_id) else {
            self.violations.push(format!("an answer for a watcher that is not there: {answer:?}"));
            return;
        };
        self.fragments += u64::from(answer.fragment);
        self.violations.extend(watcher.take(answer));
    }

    pub fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }

    pub fn watchers(&self) -> &BTreeMap<i64, Watcher> {
        &self.watchers
    }

    /// Forgets the events that have been compared.
    pub fn forget_events(&mut self) {
        self.watchers.values_mut().for_each(|watcher| watcher.events.clear());
    }
}

impl Watcher {
    /// Adds an answer's events; gives whatever no answer may do.
    fn take(&mut self, answer: pb::WatchResponse) -> Vec<String> {
        let mut violations = Vec::new();
        if self.compacted.is_some() {
            violations.push(format!("an answer after the one that ended the watcher: {answer:?}"));
        }
        let revision_of = |event: &mvccpb::Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let newest = answer.events.iter().map(revision_of).max().unwrap_or(0);
        let header_revision = answer.header.as_ref().map_or(0, |header| header.revision);
        if header_revision < newest {
            violations.push(format!("an event of revision {newest} under a header of revision {header_revision}"));
        }
        if !self.last_was_fragment
            && answer.events.first().is_some_and(|event| revision_of(event) == self.last_revision)
        {
            violations.push(format!("revision {} was split over two answers", self.last_revision));
        }
        if !answer.events.is_empty() {
            self.last_revision = newest;
            self.last_was_fragment = answer.fragment;
        }
        self.delivered += answer.events.len();
        if answer.canceled {
            self.compacted = Some(pb::WatchResponse { events: Vec::new(), ..answer.clone() });
        }
        self.events.extend(answer.events);
        violations
    }
}

/// What a watcher has to deliver before it is at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Events(usize),
    Compacted,
}

/// Which events a watcher was asked to deliver.
#[derive(Debug)]
pub struct Interest {
    request: pb::WatchCreateRequest,
    start_revision: i64,
    starts_compacted: bool,
    matched: usize,
    /// How much of the history has been looked at.
    seen: usize,
}

impl Interest {
    /// Of a watcher created while the store was at `revision` and compacted to `compacted`.
    pub fn new(request: pb::WatchCreateRequest, revision: i64, compacted: i64) -> Interest {
        let start_revision = if request.start_revision == 0 { revision + 1 } else { request.start_revision };
        Interest { starts_compacted: start_revision < compacted, start_revision, matched: 0, seen: 0, request }
    }

    pub fn due(&mut self, history: &History) -> Due {
        if self.starts_compacted {
            return Due::Compacted;
        }
        let unseen = &history.events()[self.seen..];
        self.matched += unseen.iter().filter(|event| self.matches(event)).count();
        self.seen = history.events().len();
        Due::Events(self.matched)
    }

    /// Whether the watcher is not waiting for a revision to begin with, nor ended by a compaction.
    pub fn is_current(&self, revision: i64) -> bool {
        !self.starts_compacted && self.request.start_revision <= revision
    }

    fn matches(&self, event: &Event) -> bool {
        use pb::watch_create_request::FilterType::{Nodelete, Noput};
        let unwanted = if event.is_put { Noput } else { Nodelete } as i32;
        let (key, end) = (&self.request.key, &self.request.range_end);
        let in_range = match end.as_ref() {
            b"" if key.is_empty() => event.key.as_ref() == b"\0",
            b"" => event.key == *key,
            b"\0" => event.key >= *key,
            end => event.key >= *key && event.key.as_ref() < end,
        };
        event.revision >= self.start_revision && in_range && !self.request.filters.contains(&unwanted)
    }
}

/// A creation that is refused at once, whatever the state.
fn fence() -> pb::WatchRequest {
    let (key, range_end) = (Bytes::from_static(b"b"), Bytes::from_static(b"a"));
    create_request(pb::WatchCreateRequest { key, range_end, ..Default::default() })
}

fn has_empty_range(create: &pb::WatchCreateRequest) -> bool {
    let key: &[u8] = if create.key.is_empty() { b"\0" } else { &create.key };
    let end: &[u8] = &create.range_end;
    create.start_revision >= 0 && !end.is_empty() && end != b"\0" && key >= end
}
