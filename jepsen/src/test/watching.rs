//! One watcher, resumed where it broke until its time is over.

use std::time::Duration;

use anyhow::{Context as _, Result};
use jepsen::check::history::{Answer, Header, Keys, Request, Response, WatchRequest, WatchSeen};
use proto::etcdserverpb::{
    WatchProgressRequest, WatchRequest as WireRequest, WatchResponse, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    client::{Choice, Client, Context, Unanswered},
    recorder::WITNESS,
    wire::{self, Caller},
};

const CREATE_LIMIT: Duration = Duration::from_secs(3);
/// How often a watcher asks how far it has come.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(700);
/// A member that lost its way to the others keeps its watches, and says nothing. A user would not wait for ever.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);

/// Watches until its time is over, or the store has compacted what the watcher would need, or until it has seen
/// everything and nothing more is written.
pub async fn watch(client: &mut Client, mut request: WatchRequest, life: Option<Duration>) {
    let watcher = client.recorder().watcher();
    let until = life.map(|life| Instant::now() + life);
    loop {
        let ended = match create(client, watcher, &mut request).await {
            Some(mut stream) => follow(client, watcher, &mut request, &mut stream, until).await,
            None => Ok(is_over(client, &request, until)),
        };
        let seen = match ended {
            Ok(None) => continue,
            Ok(Some(Ended::SawAll | Ended::Canceled)) => return,
            Ok(Some(Ended::Late)) => WatchSeen::Canceled { reason: "its time is over".to_owned() },
            Err(error) => WatchSeen::Broken { error: format!("{error:#}") },
        };
        let is_broken = matches!(seen, WatchSeen::Broken { .. });
        client.recorder().watch(client.process(), Some(client.node()), watcher, seen);
        if !is_broken {
            return;
        }
        client.go_elsewhere();
    }
}

enum Ended {
    /// Everything that was written, and nothing is any more.
    SawAll,
    /// The time of the watcher is over.
    Late,
    /// The store has ended it.
    Canceled,
}

fn is_over(client: &Client, request: &WatchRequest, until: Option<Instant>) -> Option<Ended> {
    let quiet = *client.quiet().borrow();
    match (quiet, until) {
        (Some(quiet), _) if request.start_revision > quiet => Some(Ended::SawAll),
        // Those that must still see everything are given the time.
        (None, Some(until)) if Instant::now() >= until && !client.is_stopped() => Some(Ended::Late),
        _ => None,
    }
}

struct Stream {
    requests: mpsc::Sender<WireRequest>,
    responses: Streaming<WatchResponse>,
    /// With the first response already.
    is_canceled: bool,
}

/// The first response says that the watch is there; until then it is a request like any other.
async fn create(client: &mut Client, watcher: u64, request: &mut WatchRequest) -> Option<Stream> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let message = wire::watch_create(request);
    let caller = client.caller();
    let doing = async move {
        let (stream, response) = open(&caller, message).await.map_err(|status| Unanswered::of(&status))?;
        let header = Header::from(response.header.as_ref());
        // It has a receiver for as long as the attempt lasts.
        let _ = sender.send((stream, response));
        Ok(Response { header, answer: Answer::Watch })
    };
    let asked = Request::Watch { watcher, watch: request.clone() };
    client.attempt(CREATE_LIMIT, asked, doing).await?;
    let (stream, response) = receiver.await.ok()?;
    note(client, watcher, &response, request);
    if request.start_revision == 0 {
        request.start_revision = response.header.as_ref()?.revision + 1;
    }
    Some(stream)
}

async fn open(caller: &Caller, message: WireRequest) -> Result<(Stream, WatchResponse), tonic::Status> {
    // A watcher has two requests under way at most: to be created, and to be told of its progress.
    let (requests, receiver) = mpsc::channel(2);
    requests.try_send(message).expect("the channel has room for one request");
    let mut client = WatchClient::new(caller.channel.clone()).max_decoding_message_size(usize::MAX);
    let mut responses = client.watch(caller.request(ReceiverStream::new(receiver))).await?.into_inner();
    let first = responses.message().await?;
    let first = first.ok_or_else(|| tonic::Status::unavailable("the stream ended without an answer"))?;
    Ok((Stream { requests, responses, is_canceled: first.canceled }, first))
}

async fn follow(
    client: &Client,
    watcher: u64,
    request: &mut WatchRequest,
    stream: &mut Stream,
    until: Option<Instant>,
) -> Result<Option<Ended>> {
    if stream.is_canceled {
        return Ok(Some(Ended::Canceled));
    }
    let mut progress = interval(PROGRESS_INTERVAL);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            response = stream.responses.message() => {
                let response = response.map_err(|status| anyhow::anyhow!("{}", wire::describe(&status)))?;
                let response = response.context("the stream ended")?;
                heard = Instant::now();
                note(client, watcher, &response, request);
                if response.canceled {
                    return Ok(Some(Ended::Canceled));
                }
                advance(request, &response);
            }
            _ = progress.tick() => {
                anyhow::ensure!(heard.elapsed() < SILENCE_LIMIT, "nothing was heard for {SILENCE_LIMIT:?}");
                let ask = WireRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) };
                // Full: the last one has not been taken yet.
                let _ = stream.requests.try_send(ask);
            }
        }
        if let Some(ended) = is_over(client, request, until) {
            return Ok(Some(ended));
        }
    }
}

/// The request by which the watch would be resumed. A response that is told in fragments counts when it is complete.
fn advance(request: &mut WatchRequest, response: &WatchResponse) {
    let last = response.events.iter().filter_map(|event| Some(event.kv.as_ref()?.mod_revision)).max();
    match (last, &response.header) {
        (Some(last), _) if !response.fragment => request.start_revision = last + 1,
        // Progress: nothing up to this revision is still to come.
        (None, Some(header)) if !response.created && !response.fragment => {
            request.start_revision = request.start_revision.max(header.revision + 1);
        }
        _ => (),
    }
}

/// Sees everything from the first revision that a store can write, so that it is known what happened.
pub async fn witness(context: Context) -> Result<()> {
    let mut client = Client::choosing(&context, 0, Choice::AfterFailure);
    watch(&mut client, WatchRequest { keys: Keys::all(), start_revision: 2, ..WatchRequest::default() }, None).await;
    Ok(())
}

fn note(client: &Client, watcher: u64, response: &WatchResponse, request: &WatchRequest) {
    let seen = WatchSeen::from_wire(response, request)
        .unwrap_or_else(|error| WatchSeen::Broken { error: format!("{error:#}") });
    client.recorder().watch(client.process(), Some(client.node()), watcher, seen);
    if client.workload() == WITNESS
        && let Some(header) = &response.header
    {
        client.recorder().set_witnessed(header.revision);
    }
}
