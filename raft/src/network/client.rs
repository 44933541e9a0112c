//! Calls to another member.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _, Stream, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use openraft::{
    OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    async_runtime::WatchReceiver as _,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    metrics::RaftMetrics,
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use parking_lot::Mutex;
use prost::Message;
use proto::{
    MemberId,
    peer::{self, peer_client::PeerClient},
};
use tonic::{
    Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::Endpoint,
};

use super::{
    CLUSTER, FROM, KEEP_ALIVE_PARTS, MEMBER,
    acknowledged::Acknowledged,
    append_to_wire, appended_from_wire,
    connect::{PeerChannel, Reach},
    transfer, vote_request_to_wire, voted_from_wire,
};
use crate::{
    Meter, PeerEvent,
    convert::{id_to_wire, vote_from_wire, vote_to_wire},
    state_machine::SnapshotData,
    types::{Membership, Peer, Snapshot, TypeConfig, Vote},
};

const WINDOW_BYTES: u32 = 4 << 20;
/// The silence that ends a connection of Raft, in election timeouts: what asks whether the other side is there stands
/// behind megabytes of entries or of a snapshot, on a link that may be slow. Who opens the connection finds out earlier
/// that nobody is there: see [`super::connect::Connect`].
const SILENCES: u32 = 20;

pub type Client = PeerClient<InterceptedService<PeerChannel, Stamp>>;

/// Says on each call whom it is for, and from.
#[derive(Clone)]
pub struct Stamp {
    cluster: AsciiMetadataValue,
    member: AsciiMetadataValue,
    from: AsciiMetadataValue,
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(CLUSTER, self.cluster.clone());
        request.metadata_mut().insert(MEMBER, self.member.clone());
        request.metadata_mut().insert(FROM, self.from.clone());
        Ok(request)
    }
}

/// Makes clients to members. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    cluster: u64,
    member: u64,
    election_timeout: Duration,
    snapshots: Arc<transfer::Folder>,
    /// Those for forwarding, by member.
    forwarding: Arc<Mutex<HashMap<u64, (Vec<String>, Client)>>>,
    meter: Arc<dyn Meter>,
    /// Knows the newest URLs, once Raft has started.
    metrics: Arc<OnceLock<Metrics>>,
    reach: Reach,
    acknowledged: Acknowledged,
}

type Metrics = openraft::alias::WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>;

/// What others know of a member.
#[derive(Debug, Clone, Copy, Default)]
pub struct Past {
    pub is_bootstrapped: bool,
    pub is_removed: bool,
}

impl Peers {
    /// Of this `member`, to the others.
    pub fn new(
        cluster: u64,
        member: u64,
        election_timeout: Duration,
        snapshots: Arc<transfer::Folder>,
        meter: Arc<dyn Meter>,
        reach: Reach,
    ) -> Self {
        let (forwarding, metrics, acknowledged) = Default::default();
        Peers { cluster, member, election_timeout, snapshots, forwarding, meter, metrics, reach, acknowledged }
    }

    /// From now on a member's URLs are those that Raft knows.
    pub fn follow(&self, metrics: Metrics) {
        // The first one stays: there is one Raft.
        let _ = self.metrics.set(metrics);
    }

    fn newest_urls(&self, member: u64) -> Option<Vec<String>> {
        let metrics = self.metrics.get()?.borrow_watched();
        Some(metrics.membership_config.membership().get_node(&member)?.urls.clone())
    }

    /// Closes the connections to those that are no members any more.
    pub fn forget_others_than(&self, membership: &Membership) {
        self.forwarding.lock().retain(|id, _| membership.get_node(id).is_some());
    }

    /// A client that connects when it is used first, and anew when the connection is lost, or nothing is heard on it for
    /// so long.
    fn connect(&self, target: u64, urls: &[String], silence: Duration) -> Client {
        let channel = self.reach.channel(&self.endpoint(silence), urls);
        let hex = |id: u64| AsciiMetadataValue::try_from(format!("{id:x}")).expect("hexadecimal digits are ASCII");
        let stamp = Stamp { cluster: hex(self.cluster), member: hex(target), from: hex(self.member) };
        PeerClient::with_interceptor(channel, stamp)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }

    fn endpoint(&self, silence: Duration) -> Endpoint {
        let interval = silence / KEEP_ALIVE_PARTS;
        // What stands in requests only: where to connect to, and how, is with `connect`.
        Endpoint::from_static("http://member")
            .connect_timeout(self.election_timeout)
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(interval)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(4 * WINDOW_BYTES)
    }

    /// What `peers` together know of `member`. Those that do not answer in an election timeout know nothing.
    pub async fn ask_about(&self, member: u64, peers: impl IntoIterator<Item = (u64, Peer)>) -> Past {
        let answers = peers.into_iter().map(|(id, peer)| {
            let mut client = self.forwarding(id, &peer);
            let timeout = self.election_timeout;
            async move {
                let call = client.is_bootstrapped(peer::IsBootstrappedRequest { member });
                tokio::time::timeout(timeout, call).await.ok()?.ok()
            }
        });
        let answers = futures::future::join_all(answers).await;
        answers.into_iter().flatten().fold(Past::default(), |past, answer| Past {
            is_bootstrapped: past.is_bootstrapped || answer.get_ref().is_bootstrapped,
            is_removed: past.is_removed || answer.get_ref().is_removed,
        })
    }

    /// The client that requests of this member's clients are forwarded with.
    pub fn forwarding(&self, target: u64, peer: &Peer) -> Client {
        let mut clients = self.forwarding.lock();
        match clients.get(&target) {
            Some((urls, client)) if *urls == peer.urls => client.clone(),
            _ => {
                let client = self.connect(target, &peer.urls, self.election_timeout);
                clients.insert(target, (peer.urls.clone(), client.clone()));
                client
            }
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Connection;

    /// Each of replication, heartbeats and snapshots has a connection of its own, so that none waits behind another.
    async fn new_client(&mut self, target: u64, peer: &Peer) -> Connection {
        Connection::new(self.clone(), target, peer.urls.clone())
    }
}

/// A connection to one member, wherever its URLs are now.
pub struct Connection {
    peers: Peers,
    target: u64,
    urls: Vec<String>,
    client: Client,
}

impl Connection {
    fn new(peers: Peers, target: u64, urls: Vec<String>) -> Connection {
        let client = peers.connect(target, &urls, SILENCES * peers.election_timeout);
        Connection { peers, target, urls, client }
    }

    /// To the URLs that the member has now.
    fn client(&mut self) -> &mut Client {
        if let Some(urls) = self.peers.newest_urls(self.target)
            && urls != self.urls
        {
            *self = Connection::new(self.peers.clone(), self.target, urls);
        }
        &mut self.client
    }

    fn told(&self) -> Told {
        let Peers { meter, acknowledged, .. } = self.peers.clone();
        Told { meter, peer: MemberId(self.target), acknowledged }
    }

    /// One request and its answer.
    async fn append_one(
        &mut self,
        request: peer::AppendRequest,
        option: &RPCOption,
    ) -> Result<peer::AppendResponse, RPCError<TypeConfig>> {
        let mut responses = call(option, self.client().append_stream(stream::iter([request]))).await?;
        let response = tokio::time::timeout(option.hard_ttl(), responses.message()).await.map_err(unreachable)?;
        Ok(response.map_err(unreachable)?.unwrap_or_default())
    }
}

fn unreachable(error: impl std::error::Error + 'static) -> Unreachable<TypeConfig> {
    Unreachable::new(&error)
}

fn malformed(error: impl std::error::Error + 'static) -> NetworkError<TypeConfig> {
    NetworkError::new(&error)
}

/// Waits for an answer no longer than openraft allows.
async fn call<T>(
    option: &RPCOption,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, RPCError<TypeConfig>> {
    match tokio::time::timeout(option.hard_ttl(), call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(unreachable(status).into()),
        Err(elapsed) => Err(unreachable(elapsed).into()),
    }
}

/// Who is told of what passes between the leader and a member.
#[derive(Clone)]
struct Told {
    meter: Arc<dyn Meter>,
    peer: MemberId,
    acknowledged: Acknowledged,
}

impl Told {
    fn tell(&self, event: PeerEvent) {
        self.meter.peer(self.peer, event);
    }

    /// As it is sent.
    fn request(&self, request: AppendEntriesRequest<TypeConfig>) -> peer::AppendRequest {
        let mut request = append_to_wire(request);
        request.acknowledged = request.leader.as_ref().map_or(0, |leader| self.acknowledged.by(self.peer.0, leader));
        self.tell(PeerEvent::Sent(request.encoded_len()));
        request
    }

    /// The answer to what was sent as `leader`.
    fn response(
        &self,
        leader: Option<&peer::Ballot>,
        response: peer::AppendResponse,
    ) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
        self.tell(PeerEvent::Received(response.encoded_len()));
        leader.into_iter().for_each(|leader| self.acknowledged.note(self.peer.0, leader, &response));
        Ok(appended_from_wire(response).map_err(malformed)?)
    }
}

fn requests_on_wire<S>(requests: S, told: Told) -> impl Stream<Item = peer::AppendRequest> + Send + Unpin + 'static
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    requests.map(move |request| told.request(request))
}

fn responses_of(
    responses: tonic::Streaming<peer::AppendResponse>,
    told: Told,
    leader: Option<peer::Ballot>,
    mut awaited: Option<Awaited>,
) -> impl Stream<Item = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>> + Send + 'static {
    responses.map(move |response| {
        let response = response.inspect_err(|_| told.tell(PeerEvent::ReceiveFailed)).map_err(unreachable)?;
        awaited.take().into_iter().for_each(Awaited::answered);
        told.response(leader.as_ref(), response)
    })
}

/// A heartbeat on its way: it has failed when nobody waits for its answer any more. openraft gives it up by itself.
struct Awaited {
    told: Told,
    began: Instant,
    is_answered: bool,
}

impl Awaited {
    fn from_now_on(told: Told) -> Self {
        Awaited { told, began: Instant::now(), is_answered: false }
    }

    fn answered(mut self) {
        self.is_answered = true;
        self.told.tell(PeerEvent::RoundTrip(self.began.elapsed()));
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if !self.is_answered {
            self.told.tell(PeerEvent::HeartbeatFailed);
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let told = self.told();
        let request = told.request(request);
        let leader = request.leader;
        let response = self.append_one(request, &option).await.inspect_err(|_| told.tell(PeerEvent::SendFailed))?;
        Ok(told.response(leader.as_ref(), response)?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        requests: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: futures::Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let told = self.told();
        async move {
            let mut requests = requests_on_wire(requests, told.clone());
            // openraft waits out its backoff before the first request: a member that is down is not called without end.
            let Some(first) = requests.next().await else { return Ok(stream::empty().boxed()) };
            let leader = first.leader;
            let awaited = first.entries.is_empty().then(|| Awaited::from_now_on(told.clone()));
            let requests = stream::iter([first]).chain(requests);
            match call(&option, self.client().append_stream(requests)).await {
                Ok(responses) => Ok(responses_of(responses, told, leader, awaited).boxed()),
                Err(error) => {
                    told.tell(PeerEvent::SendFailed);
                    Err(error)
                }
            }
        }
        .boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let response = call(&option, self.client().vote(vote_request_to_wire(request))).await?;
        Ok(voted_from_wire(response).map_err(malformed)?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let response = call(&option, self.client().pre_vote(vote_request_to_wire(request))).await?;
        Ok(voted_from_wire(response).map_err(malformed)?)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let message = peer::TransferLeaderRequest {
            leader: Some(vote_to_wire(request.from_leader())),
            to: *request.to_node_id(),
            last: request.last_log_id().map(id_to_wire),
        };
        let response = call(&option, self.client().transfer_leader(message)).await?;
        match response.refused.as_str() {
            "" => Ok(Ok(())),
            refused => Err(malformed(Status::failed_precondition(refused)).into()),
        }
    }

    /// Sends a checkpoint of the store as it is now, which may be newer than `snapshot` says.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        _snapshot: Snapshot,
        cancelled: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (meter, target) = (self.peers.meter.clone(), MemberId(self.target));
        let parts = self.peers.snapshots.send(vote);
        let began = Instant::now();
        meter.peer(target, PeerEvent::SnapshotSends);
        let told = |is_done| meter.peer(target, PeerEvent::SnapshotSent { took: began.elapsed(), is_done });
        let mut client = self.client().clone();
        tokio::select! {
            closed = cancelled => {
                told(false);
                Err(closed.into())
            }
            response = client.snapshot(parts) => {
                told(response.is_ok());
                let response = response.map_err(unreachable)?.into_inner();
                let vote = vote_from_wire(response.vote).map_err(malformed)?;
                Ok(SnapshotResponse::new(vote))
            }
        }
    }
}
