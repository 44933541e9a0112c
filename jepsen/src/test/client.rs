//! A process of a workload: it asks one thing at a time, and all that it asks and is told is taken down.

use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};

use jepsen::check::history::{Event, Failure, ListOp, RegisterOp, Request, Response, Txn, TxnOp};
use proto::EtcdError;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Status, transport::Channel};

use super::{
    nodes::machine,
    recorder::Recorder,
    wire::{self, Caller},
};
use crate::process;

/// An election takes a little more than a second: an operation that waits for one is given the time.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(3);
/// Before the next attempt of one that failed, so that a member that is down is not asked without end.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

/// Where clients reach a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub name: String,
    pub url: String,
}

impl Endpoint {
    /// A member is known by its host.
    pub fn of(url: &str) -> Endpoint {
        let host = url.split("://").last().and_then(|rest| rest.split(':').next()).unwrap_or(url);
        let name = host.parse().ok().and_then(machine::name_at).unwrap_or_else(|| host.to_owned());
        Endpoint { name, url: url.to_owned() }
    }
}

/// The members, which may come and go.
pub type Endpoints = watch::Receiver<Vec<Endpoint>>;

/// What all processes of a run share.
#[derive(Clone)]
pub struct Context {
    pub workload: &'static str,
    pub recorder: Arc<Recorder>,
    pub endpoints: Endpoints,
    pub stopped: watch::Receiver<bool>,
    /// When nothing is written any more, the revision that observers must have seen before they may go.
    pub quiet: watch::Receiver<Option<i64>>,
    pub seed: u64,
    /// How many processes a workload starts.
    pub processes: u64,
    /// Operations a second, of each process.
    pub rate: f64,
}

impl Context {
    /// Waits as the rate demands; false when the run is over.
    pub async fn next_turn(&self, random: &mut StdRng) -> bool {
        self.wait(Duration::from_secs_f64(random.random_range(0.0..2.0) / self.rate)).await
    }

    /// Waits for so long; false when the run is over.
    pub async fn wait(&self, pause: Duration) -> bool {
        let mut stopped = self.stopped.clone();
        // An error: the run is gone. That it goes on after the pause is what a timeout says.
        timeout(pause, stopped.wait_for(|stopped| *stopped)).await.is_err()
    }
}

/// Whom a process asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Always the same member, whatever becomes of it.
    Pinned,
    /// Another one after each failure.
    AfterFailure,
    /// Another one for each request.
    Always,
}

impl Choice {
    /// Of the processes of a workload, some behave in each way.
    pub fn of(index: u64) -> Choice {
        match index % 3 {
            0 => Choice::Pinned,
            1 => Choice::AfterFailure,
            _ => Choice::Always,
        }
    }
}

pub struct Client {
    context: Context,
    process: u64,
    choice: Choice,
    /// Counts through the endpoints.
    position: usize,
    endpoint: Endpoint,
    caller: Caller,
    /// Connections that have not failed yet, by member.
    channels: HashMap<String, Channel>,
    /// By user, what shows who asks.
    tokens: HashMap<String, String>,
    /// Of the last request, if it was not answered.
    failure: Option<Unanswered>,
    pub random: StdRng,
}

/// Why there is no answer.
pub struct Unanswered {
    pub error: String,
    /// It was not done, and will not be.
    pub certain: bool,
}

impl Unanswered {
    pub fn of(status: &Status) -> Unanswered {
        Unanswered { error: wire::describe(status), certain: wire::certainly_not_done(status) }
    }
}

impl Client {
    /// The process of a workload with this number.
    pub fn new(context: &Context, index: u64) -> Client {
        Client::choosing(context, index, Choice::of(index))
    }

    pub fn choosing(context: &Context, index: u64, choice: Choice) -> Client {
        let position = index as usize;
        let endpoint = nth(&context.endpoints.borrow(), position);
        Client {
            context: context.clone(),
            process: context.recorder.process(context.workload),
            choice,
            position,
            caller: Caller { channel: channel(&endpoint), token: None },
            endpoint,
            channels: HashMap::new(),
            tokens: HashMap::new(),
            failure: None,
            random: StdRng::seed_from_u64(context.seed ^ (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        }
    }

    pub fn workload(&self) -> &'static str {
        self.context.workload
    }

    pub fn recorder(&self) -> &Recorder {
        &self.context.recorder
    }

    pub fn process(&self) -> u64 {
        self.process
    }

    pub fn node(&self) -> &str {
        &self.endpoint.name
    }

    pub fn caller(&self) -> Caller {
        self.caller.clone()
    }

    /// Whether it is unknown what became of the last request.
    pub fn is_unsure(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| !failure.certain)
    }

    pub fn is_stopped(&self) -> bool {
        *self.context.stopped.borrow()
    }

    /// Becomes a revision when nothing is written any more.
    pub fn quiet(&self) -> watch::Receiver<Option<i64>> {
        self.context.quiet.clone()
    }

    pub fn random_ms(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }

    /// Waits as the rate demands; false when the run is over.
    pub async fn goes_on(&mut self) -> bool {
        self.context.next_turn(&mut self.random).await
    }

    /// Waits for so long; false when the run is over.
    pub async fn wait(&self, pause: Duration) -> bool {
        self.context.wait(pause).await
    }

    /// Asks, and takes down the answer. `None`: there is none, and nothing is known but what the history says.
    pub async fn call(&mut self, request: Request) -> Option<Response> {
        self.call_within(REQUEST_LIMIT, request).await
    }

    /// Asks as a user, who is authenticated first if need be. Without a token nothing is asked, unless there is no
    /// authentication.
    pub async fn call_as(&mut self, user: &str, request: Request) -> Option<Response> {
        if !self.tokens.contains_key(user) {
            match timeout(REQUEST_LIMIT, self.caller.authenticate(user)).await {
                Ok(Ok(token)) => drop(self.tokens.insert(user.to_owned(), token)),
                Ok(Err(status)) if status.message() == EtcdError::AuthNotEnabled.message() => (),
                _ => {
                    self.channels.remove(&self.endpoint.url);
                    self.go_elsewhere();
                    sleep(FAILURE_PAUSE).await;
                    return None;
                }
            }
        }
        self.caller.token = self.tokens.get(user).cloned();
        let answer = self.call(request).await;
        self.caller.token = None;
        let is_old = |failure: &Unanswered| {
            let old = [EtcdError::InvalidAuthToken, EtcdError::AuthOldRevision, EtcdError::UserEmpty];
            !failure.certain || old.iter().any(|error| failure.error.ends_with(error.message()))
        };
        if self.failure.as_ref().is_some_and(is_old) {
            self.tokens.remove(user);
        }
        answer
    }

    pub async fn call_within(&mut self, limit: Duration, request: Request) -> Option<Response> {
        let (caller, message) = (self.caller(), request.clone());
        let answer = async move { caller.send(&message).await.map_err(|status| Unanswered::of(&status)) };
        self.attempt(limit, request, answer).await
    }

    /// Does whatever the request stands for, and takes it down.
    pub async fn attempt(
        &mut self,
        limit: Duration,
        request: Request,
        doing: impl Future<Output = Result<Response, Unanswered>>,
    ) -> Option<Response> {
        let harmless = changes_nothing(&request);
        self.context.recorder.note(self.process, Some(&self.endpoint.name), Event::Invoke(request));
        let outcome = timeout(limit, doing)
            .await
            .unwrap_or_else(|_| Err(Unanswered { error: format!("no answer within {limit:?}"), certain: false }));
        self.failure = None;
        match outcome {
            Ok(response) => {
                self.end(Event::Ok(response.clone()));
                if self.choice == Choice::Always {
                    self.channels.insert(self.endpoint.url.clone(), self.caller.channel.clone());
                    self.go_elsewhere();
                }
                Some(response)
            }
            Err(unanswered) => {
                let failure = Failure { error: unanswered.error.clone() };
                // A read that was not answered is as one that was never made.
                if unanswered.certain || harmless {
                    self.end(Event::Fail(failure));
                } else {
                    self.end(Event::Info(failure));
                    self.process = self.context.recorder.process(self.context.workload);
                }
                self.failure = Some(unanswered);
                self.channels.remove(&self.endpoint.url);
                self.go_elsewhere();
                sleep(FAILURE_PAUSE).await;
                None
            }
        }
    }

    fn end(&self, event: Event) {
        self.context.recorder.note(self.process, Some(&self.endpoint.name), event);
    }

    /// Goes to another member, if the process does not insist on its own, over a connection that has not failed.
    pub fn go_elsewhere(&mut self) {
        let endpoints = self.context.endpoints.borrow().clone();
        if self.choice != Choice::Pinned {
            self.position = self.position.wrapping_add(1);
        }
        self.endpoint = nth(&endpoints, self.position);
        let kept = self.channels.get(&self.endpoint.url).cloned();
        self.caller.channel = kept.unwrap_or_else(|| channel(&self.endpoint));
    }
}

fn nth(endpoints: &[Endpoint], position: usize) -> Endpoint {
    endpoints[position % endpoints.len()].clone()
}

fn channel(endpoint: &Endpoint) -> Channel {
    process::channel(&endpoint.url)
}

/// Whether a request may be taken for one that was never made when there is no answer.
fn changes_nothing(request: &Request) -> bool {
    match request {
        Request::Range(_)
        | Request::LeaseTimeToLive { .. }
        | Request::Leader { .. }
        | Request::HashKv { .. }
        | Request::Snapshot
        | Request::Watch { .. } => true,
        Request::Txn(Txn { success, failure, .. }) => {
            success.iter().chain(failure).all(|op| matches!(op, TxnOp::Range(_)))
        }
        Request::As { request, .. } => changes_nothing(request),
        Request::Append { ops } => ops.iter().all(|op| matches!(op, ListOp::Read { .. })),
        Request::Registers { ops } => ops.iter().all(|op| matches!(op, RegisterOp::Read { .. })),
        _ => false,
    }
}
