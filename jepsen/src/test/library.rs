//! Processes that ask through the crate `client`, with all endpoints at once: which member answered, and how often it was
//! asked, is the library's affair. What is taken down is what its caller was told.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use client::{Client, Credentials, Error, LeaseKeeper, Options, Watch, Watcher};
use jepsen::check::history::{self, Answer, Event, Failure, Header, Keys, Request, Response, WatchRequest, WatchSeen};
use proto::etcdserverpb::WatchResponse;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    client::{Context, REQUEST_LIMIT},
    recorder::Recorder,
};

/// How long after its time a request may end, on a machine with much else to do.
const LATE: Duration = Duration::from_secs(3);
/// Before the next request, when one has failed.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);
/// Members come and go, and the library asks for them.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// How often a watcher asks how far it has come.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(700);

pub struct Process {
    context: Context,
    process: u64,
    pub client: Client,
    pub random: StdRng,
}

impl Process {
    /// The process of a workload with this number, perhaps as a user, whose password is the user's name.
    pub fn new(context: &Context, index: u64, user: Option<&str>) -> Result<Process> {
        let mut urls: Vec<String> = context.endpoints.borrow().iter().map(|endpoint| endpoint.url.clone()).collect();
        let count = urls.len();
        urls.rotate_left(index as usize % count);
        let credentials = user.map(|user| Credentials::Password { user: user.to_owned(), password: user.to_owned() });
        let options = Options {
            request_timeout: REQUEST_LIMIT,
            connect_timeout: Duration::from_secs(1),
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(2),
            sync_interval: Some(SYNC_INTERVAL),
            credentials,
            ..Options::default()
        };
        Ok(Process {
            context: context.clone(),
            process: context.recorder.process(context.workload),
            client: Client::with_options(urls, options)?,
            random: StdRng::seed_from_u64(context.seed ^ (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        })
    }

    pub fn recorder(&self) -> &Arc<Recorder> {
        &self.context.recorder
    }

    pub fn is_stopped(&self) -> bool {
        *self.context.stopped.borrow()
    }

    /// Waits as the rate demands; false when the run is over.
    pub async fn goes_on(&mut self) -> bool {
        self.context.next_turn(&mut self.random).await
    }

    /// Waits for so long; false when the run is over.
    pub async fn wait(&self, pause: Duration) -> bool {
        self.context.wait(pause).await
    }

    /// Asks, and takes down what comes of it. `None`: no answer.
    ///
    /// # Errors
    /// When the library does not end in time.
    pub async fn ask<T>(
        &mut self,
        request: Request,
        asked: impl Future<Output = client::Result<T>>,
        answer: impl FnOnce(&T) -> Response,
    ) -> Result<Option<T>> {
        self.ask_within(REQUEST_LIMIT, request, asked, answer).await
    }

    pub async fn ask_within<T>(
        &mut self,
        limit: Duration,
        request: Request,
        asked: impl Future<Output = client::Result<T>>,
        answer: impl FnOnce(&T) -> Response,
    ) -> Result<Option<T>> {
        let what = format!("{request:?}");
        self.note(Event::Invoke(request));
        let Ok(outcome) = timeout(limit + LATE, asked).await else {
            bail!("the library had {limit:?} for {what}, and has not ended {LATE:?} later");
        };
        match outcome {
            Ok(answered) => {
                self.note(Event::Ok(answer(&answered)));
                Ok(Some(answered))
            }
            Err(error) => {
                let failure = Failure { error: error.to_string() };
                if error.may_have_happened() {
                    self.note(Event::Info(failure));
                    self.process = self.context.recorder.process(self.context.workload);
                } else {
                    self.note(Event::Fail(failure));
                }
                sleep(FAILURE_PAUSE).await;
                Ok(None)
            }
        }
    }

    fn note(&self, event: Event) {
        self.context.recorder.note(self.process, None, event);
    }

    pub async fn put(&mut self, put: history::Put) -> Result<Option<Response>> {
        let client = self.client.clone();
        let asked = async { Ok(Response::from(&client.put(to_put(&put)).await?)) };
        self.ask(Request::Put(put.clone()), asked, Response::clone).await
    }

    /// Takes down what becomes of a lease until the keeper is told that it is gone, or the run ends, or the task.
    pub fn note_renewals(&self, keeper: LeaseKeeper) -> Renewals {
        let recorder = Arc::clone(&self.context.recorder);
        let process = recorder.process(self.context.workload);
        Renewals(tokio::spawn(note_renewals(recorder, process, keeper)))
    }
}

/// The keeper of a lease, which ends with this.
pub struct Renewals(JoinHandle<()>);

impl Drop for Renewals {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn note_renewals(recorder: Arc<Recorder>, process: u64, mut keeper: LeaseKeeper) {
    let lease = keeper.id().0;
    loop {
        recorder.note(process, None, Event::Invoke(Request::LeaseKeepAlive { lease }));
        let renewed = keeper.next().await;
        let (header, ttl_s) =
            renewed.as_ref().map_or((Header::default(), 0), |answer| (answer.header.as_ref().into(), answer.ttl));
        let answer = Answer::LeaseKeepAlive { lease, ttl_s };
        recorder.note(process, None, Event::Ok(Response { header, answer }));
        if renewed.is_err() {
            return;
        }
    }
}

fn to_put(put: &history::Put) -> client::Put {
    let plain = client::Put::new(put.key.0.clone(), put.value.0.clone()).lease(client::LeaseId(put.lease));
    if put.prev_kv { plain.prev_kv() } else { plain }
}

pub fn to_op(put: &history::Put) -> client::Op {
    client::Op::put(to_put(put))
}

pub fn to_keys(keys: &Keys) -> client::Keys {
    match &*keys.range_end {
        b"" => client::Keys::one(keys.key.0.clone()),
        _ => client::Keys::range(keys.key.0.clone(), keys.range_end.0.clone()),
    }
}

fn to_watch(request: &WatchRequest) -> Watch {
    let watch = Watch::new(to_keys(&request.keys)).from_revision(request.start_revision);
    if request.prev_kv { watch.prev_kv() } else { watch }
}

/// How a watcher takes what it is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// On a stream of its own.
    pub alone: bool,
    /// At most this is waited before the next response is taken: others must not be held up, and nothing be lost.
    pub pause_max: Duration,
}

/// Watches until its time is over, or the store has compacted what the watcher would need, or until it has seen
/// everything and nothing more is written. What the library does when a stream breaks is not seen here: to its caller it
/// is one watch, without a gap and without repetition.
pub async fn watch(process: &mut Process, request: WatchRequest, manner: Manner, life: Option<Duration>) -> Result<()> {
    let watcher = process.recorder().watcher();
    let watch = to_watch(&request);
    let watch = if manner.alone { watch.on_its_own_stream() } else { watch };
    let client = process.client.clone();
    let asked = Request::Watch { watcher, watch: request.clone() };
    let answer = |_: &Watcher| Response { header: Header::default(), answer: Answer::Watch };
    let watching = process.ask(asked, client.watch(watch), answer).await?;
    let Some(mut watching) = watching else { return Ok(()) };
    let created = WatchSeen::Created { request: request.clone(), revision: watching.next_revision() - 1 };
    process.see(watcher, created);
    let until = life.map(|life| Instant::now() + life);
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen_to = 0;
    loop {
        tokio::select! {
            response = watching.next() => {
                let quiet = *process.context.quiet.borrow();
                let Some(seen) = seen_in(&response, &request, quiet)? else { return Ok(()) };
                process.see(watcher, seen);
                let Ok(response) = response else { return Ok(()) };
                seen_to = reached(&response).max(seen_to);
                let pause = manner.pause_max.mul_f64(process.random.random());
                sleep(pause).await;
            }
            _ = ticks.tick() => watching.request_progress(),
        }
        let quiet = *process.context.quiet.borrow();
        match (quiet, until) {
            (Some(quiet), _) if seen_to >= quiet => return Ok(()),
            // Those that must still see everything are given the time.
            (None, Some(until)) if Instant::now() >= until && !process.is_stopped() => {
                process.see(watcher, WatchSeen::Canceled { reason: "its time is over".to_owned() });
                return Ok(());
            }
            _ => {}
        }
    }
}

/// The revision up to which everything was told.
fn reached(response: &WatchResponse) -> i64 {
    let of_events = response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).max();
    of_events.unwrap_or_else(|| response.header.as_ref().map_or(0, |header| header.revision))
}

/// None: nothing but what came after the run, such as the end of a lease that nobody could revoke.
fn seen_in(
    response: &client::Result<WatchResponse>,
    request: &WatchRequest,
    quiet: Option<i64>,
) -> Result<Option<WatchSeen>> {
    let response = match response {
        Ok(response) => response,
        Err(Error::WatchCompacted { compact_revision }) => {
            return Ok(Some(WatchSeen::Compacted { compact_revision: *compact_revision }));
        }
        Err(error) => return Ok(Some(WatchSeen::Canceled { reason: error.to_string() })),
    };
    let seen = WatchSeen::from_wire(response, request);
    let mut seen = seen.context("the library hands over something that is no response")?;
    if let (WatchSeen::Events { events, .. }, Some(quiet)) = (&mut seen, quiet) {
        events.retain(|event| event.revision() <= quiet);
        if events.is_empty() {
            return Ok(None);
        }
    }
    Ok(Some(seen))
}

impl Process {
    fn see(&self, watcher: u64, seen: WatchSeen) {
        self.context.recorder.watch(self.process, None, watcher, seen);
    }
}
