//! etcd's Lease service.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    Stream, StreamExt, TryStreamExt as _,
    stream::{self, BoxStream, FuturesUnordered},
};
use prost::Message;
use proto::{
    EtcdError, LeaseId,
    command::{command::Op, outcome::Result as Outcome},
    etcdserverpb::{
        LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
        LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
        LeaseTimeToLiveResponse, lease_server::Lease,
    },
};
use storage::{Right, cost};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    Clock,
    leader_request::{self, Answer, answer, unknown},
};
use crate::{
    admit::{Learner, admit},
    auth::Caller,
    context::Context,
    quota,
    streaming::Encoded,
    unary,
    watch::leader_lost,
};

/// How long a request may wait, beside two elections. (etcd: `config.go`, ReqTimeout.)
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before the leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Keep-alives of one stream that are under way at a time. They share the leader's confirmation.
const KEEP_ALIVES_MAX: usize = 64;
/// About what an answer to one of them takes.
const ANSWER_BYTES: usize = 64;
/// Longest TTL that is granted, in seconds; whoever asks for more is refused when the grant is applied.
const TTL_MAX: i64 = 9_000_000_000;

#[derive(Clone)]
pub struct LeaseService {
    context: Arc<Context>,
    clock: Arc<Clock>,
}

impl LeaseService {
    pub fn new(context: Arc<Context>, clock: Arc<Clock>) -> Self {
        LeaseService { context, clock }
    }

    /// Asks the leader, which may be this member; again when it changes meanwhile.
    async fn ask(&self, request: leader_request::Request) -> Result<Answer, Status> {
        let node = &self.context.node;
        let mut status = node.watch_status();
        let asking = async {
            loop {
                status.mark_unchanged();
                let result = if node.standing().is_leader {
                    answer(&self.clock, request.clone()).await
                } else {
                    let answer = node.ask_leader(request.encode_to_vec().into()).await;
                    answer.and_then(|answer| Answer::decode(answer).map_err(|error| unknown(&error)))
                };
                match result {
                    Err(error) if may_pass(&error) => {}
                    result => return result,
                }
                // Without Raft nobody will ever be known to lead.
                if let Ok(Err(_)) = tokio::time::timeout(RETRY_PAUSE, status.changed()).await {
                    return Err(EtcdError::Stopped.into());
                }
            }
        };
        let patience = REQUEST_TIMEOUT + 2 * self.context.election_timeout;
        tokio::select! {
            answer = tokio::time::timeout(patience, asking) => answer.unwrap_or_else(|_| {
                let error = if node.standing().has_leader { EtcdError::Timeout } else { EtcdError::NoLeader };
                Err(error.into())
            }),
            () = self.context.shutdown.cancelled() => Err(EtcdError::Stopped.into()),
        }
    }

    /// Whether the caller has a right on all keys of a lease. Returns the auth revision that was looked at.
    async fn check_lease(&self, caller: &Caller, id: i64, right: Right) -> Result<u64, Status> {
        if self.context.auth.is_enabled() {
            // A key that was hung on it a moment ago counts.
            self.context.read_barrier().await?;
        }
        self.context.auth.require_lease(caller, LeaseId(id), right).await
    }

    async fn keep_alive(
        &self,
        caller: &Caller,
        request: LeaseKeepAliveRequest,
    ) -> Result<LeaseKeepAliveResponse, Status> {
        // Whoever renews a lease keeps its keys alive, and so writes them.
        let auth_revision = self.check_lease(caller, request.id, Right::Write).await?;
        self.context.auth.require_unchanged(auth_revision)?;
        // Before the lease is renewed: else a client could see it alive at a revision that it was revoked at.
        let header = self.context.header(self.context.store.revision());
        let id = request.id;
        let ttl = match self.renew_here(&[LeaseId(id)]).await?.and_then(|ttls| ttls.first().copied()) {
            Some(ttl) => ttl,
            None => {
                let answer =
                    self.ask(leader_request::Request { keep_alive: Some(request), time_to_live: None }).await?;
                answer.keep_alive.ok_or_else(|| unknown(&"it does not answer a keep-alive"))?
            }
        };
        Ok(LeaseKeepAliveResponse { header: Some(header), id, ttl })
    }

    /// The short way, which needs no clock of its own to give up: None where somebody has to be waited for.
    async fn renew_here(&self, ids: &[LeaseId]) -> Result<Option<Vec<i64>>, Status> {
        if !self.context.node.standing().is_leader {
            return Ok(None);
        }
        match self.clock.keep_alive_at_once(ids).await {
            Err(error) if may_pass(&error) => Ok(None),
            result => result,
        }
    }

    /// Answers those that have come together, in order. They share what they wait for.
    async fn keep_all_alive(
        &self,
        caller: &Caller,
        requests: Vec<LeaseKeepAliveRequest>,
    ) -> Vec<Result<LeaseKeepAliveResponse, Status>> {
        if !self.context.auth.is_enabled() {
            // Before the leases are renewed: else a client could see one alive at a revision that it was revoked at.
            let header = self.context.header(self.context.store.revision());
            let ids: Vec<LeaseId> = requests.iter().map(|request| LeaseId(request.id)).collect();
            match self.renew_here(&ids).await {
                Ok(Some(ttls)) => {
                    let answer = |(LeaseId(id), ttl)| LeaseKeepAliveResponse { header: Some(header.clone()), id, ttl };
                    return std::iter::zip(ids, ttls).map(answer).map(Ok).collect();
                }
                Ok(None) => {}
                Err(status) => return vec![Err(status)],
            }
        }
        let answers = requests.into_iter().map(|request| self.keep_alive(caller, request));
        futures::future::join_all(answers).await
    }

    /// Answers to the requests of a stream, as many together as came together.
    fn keep_alives<S>(&self, request: Request<S>) -> Result<impl Stream<Item = Batch> + Send + use<S>, Status>
    where
        S: Stream<Item = Result<LeaseKeepAliveRequest, Status>> + Send + Unpin + 'static,
    {
        admit(&self.context, request.metadata(), Learner::Refuses)?;
        let leader_lost = leader_lost(&self.context, request.metadata());
        let (service, caller) = (self.clone(), Caller::of(&request));
        let (metrics, shutdown) = (self.context.metrics.clone(), self.context.shutdown.clone());
        let requests = request.into_inner();
        let requests = requests.inspect_err(move |status| metrics.rpc.receive_failed("lease-keepalive", status));
        let answers = requests.ready_chunks(KEEP_ALIVES_MAX).then(move |requests| {
            let (service, caller) = (service.clone(), caller.clone());
            async move {
                let (requests, failed) = until_failure(requests);
                let answers =
                    if requests.is_empty() { vec![] } else { service.keep_all_alive(&caller, requests).await };
                let (answers, refused) = until_failure(answers);
                let answers = (!answers.is_empty()).then_some(Ok(answers));
                stream::iter(answers.into_iter().chain(refused.or(failed).map(Err)))
            }
        });
        Ok(until(answers.flatten(), async move {
            tokio::select! {
                () = leader_lost => EtcdError::NoLeader.into(),
                () = shutdown.cancelled() => EtcdError::Stopped.into(),
            }
        }))
    }

    /// LeaseKeepAlive, whose answers are put together as they stand on the wire.
    pub fn keep_alives_encoded<S>(&self, request: Request<S>) -> Result<Encoded, Status>
    where
        S: Stream<Item = Result<LeaseKeepAliveRequest, Status>> + Send + Unpin + 'static,
    {
        let encode = |batch: Vec<LeaseKeepAliveResponse>| {
            let mut out = Vec::with_capacity(batch.len() * ANSWER_BYTES);
            batch.iter().try_for_each(|answer| unary::append(&mut out, |out| answer.encode_raw(out)))?;
            Ok(Bytes::from(out))
        };
        Ok(self.keep_alives(request)?.map(move |batch| encode(batch?)).boxed())
    }
}

type Batch = Result<Vec<LeaseKeepAliveResponse>, Status>;

/// What stands before the first failure, and that one.
fn until_failure<T>(results: Vec<Result<T, Status>>) -> (Vec<T>, Option<Status>) {
    let mut failed = None;
    let before = results.into_iter().map_while(|result| result.map_err(|status| failed = Some(status)).ok()).collect();
    (before, failed)
}

/// Whether asking again, perhaps another leader, may help.
fn may_pass(error: &Status) -> bool {
    error.code() == Code::Unavailable || EtcdError::from_message(error.message()) == Some(EtcdError::NotLeader)
}

/// The shortest TTL that is granted, in seconds: a lease shall outlive an election.
/// (etcd: `server/etcdserver/server.go`, MinLeaseTTL.)
fn ttl_min(election_timeout: Duration) -> i64 {
    let millis = election_timeout.as_millis() as u64 * 3 / 2;
    millis.div_ceil(1000) as i64
}

/// A grant as it is replicated: with an id and a TTL that are final.
fn final_grant(mut grant: LeaseGrantRequest, election_timeout: Duration) -> LeaseGrantRequest {
    if grant.id == 0 {
        grant.id = rand::random_range(1..=i64::MAX);
    }
    if grant.ttl <= TTL_MAX {
        grant.ttl = grant.ttl.max(ttl_min(election_timeout));
    }
    grant
}

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        admit(&self.context, request.metadata(), Learner::Refuses)?;
        quota::check(&self.context, cost::LEASE_GRANT).await?;
        let caller = self.context.auth.caller(&request);
        self.context.auth.require_user(&caller).await?;
        let grant = final_grant(request.into_inner(), self.context.election_timeout);
        match self.context.propose_by(&caller, Op::LeaseGrant(grant)).await? {
            Outcome::LeaseGrant(mut response) => {
                self.context.stamp(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(self.context.wrong_outcome("LeaseGrant", &other)),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        admit(&self.context, request.metadata(), Learner::Refuses)?;
        let caller = self.context.auth.caller(&request);
        self.context.auth.require_user(&caller).await?;
        match self.context.propose_by(&caller, Op::LeaseRevoke(request.into_inner())).await? {
            Outcome::LeaseRevoke(mut response) => {
                self.context.stamp(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(self.context.wrong_outcome("LeaseRevoke", &other)),
        }
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let answers = self.keep_alives(request)?;
        let one_by_one = answers.map_ok(|batch| stream::iter(batch.into_iter().map(Ok))).try_flatten();
        Ok(Response::new(one_by_one.boxed()))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        admit(&self.context, request.metadata(), Learner::Refuses)?;
        let (caller, request) = (self.context.auth.caller(&request), request.into_inner());
        self.context.auth.require_user(&caller).await?;
        let auth_revision = match request.keys {
            true => Some(self.check_lease(&caller, request.id, Right::Read).await?),
            false => None,
        };
        let request = leader_request::Request { keep_alive: None, time_to_live: Some(request) };
        let answer = self.ask(request).await?.time_to_live;
        let mut response = answer.ok_or_else(|| unknown(&"it does not answer a time to live"))?;
        auth_revision.map_or(Ok(()), |revision| self.context.auth.require_unchanged(revision))?;
        self.context.stamp(&mut response.header);
        Ok(Response::new(response))
    }

    /// As in etcd, what this member has applied: not linearizable.
    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        admit(&self.context, request.metadata(), Learner::Refuses)?;
        let (caller, ids) = (self.context.auth.caller(&request), self.clock.ids());
        self.context.auth.require_leases(&caller, &ids).await?;
        let leases = ids.into_iter().map(|id| LeaseStatus { id: id.0 }).collect();
        let header = Some(self.context.header(self.context.store.revision()));
        Ok(Response::new(LeaseLeasesResponse { header, leases }))
    }
}

/// The stream, ended by the error that `end` yields.
fn until<T>(
    stream: impl Stream<Item = Result<T, Status>> + Send,
    end: impl Future<Output = Status> + Send,
) -> impl Stream<Item = Result<T, Status>> + Send {
    // Of a set, which asks what has been woken only.
    let (stream, end) = (Box::pin(stream), FuturesUnordered::from_iter([end]));
    futures::stream::unfold(Some((stream, end)), |state| async {
        let (mut stream, mut end) = state?;
        tokio::select! {
            biased;
            Some(status) = end.next() => Some((Err(status), None)),
            item = stream.next() => match item? {
                Ok(item) => Some((Ok(item), Some((stream, end)))),
                Err(status) => Some((Err(status), None)),
            },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ELECTION: Duration = Duration::from_millis(1000);

    #[test]
    fn a_lease_lasts_longer_than_an_election() {
        assert_eq!(ttl_min(ELECTION), 2);
        assert_eq!(ttl_min(Duration::from_millis(2000)), 3);
        assert_eq!(ttl_min(Duration::from_millis(100)), 1);
        for (asked, granted) in
            [(-5, 2), (0, 2), (1, 2), (2, 2), (60, 60), (TTL_MAX, TTL_MAX), (TTL_MAX + 1, TTL_MAX + 1)]
        {
            assert_eq!(
                final_grant(LeaseGrantRequest { ttl: asked, id: 7 }, ELECTION),
                LeaseGrantRequest { ttl: granted, id: 7 }
            );
        }
    }

    #[test]
    fn an_id_that_is_left_to_the_server_is_positive() {
        for _ in 0..1000 {
            assert!(final_grant(LeaseGrantRequest { ttl: 9, id: 0 }, ELECTION).id > 0);
        }
    }

    #[test]
    fn only_a_missing_leader_is_waited_for() {
        for error in [EtcdError::NoLeader, EtcdError::NotLeader, EtcdError::LeaderChanged, EtcdError::Timeout] {
            assert!(may_pass(&error.into()));
        }
        assert!(!may_pass(&EtcdError::RequestTooManyRequests.into()));
        assert!(!may_pass(&unknown(&"why")));
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_error_and_not_before() {
        let items = futures::stream::iter([Ok(1), Ok(2)]);
        let all: Vec<_> = until(items, std::future::pending()).map(Result::unwrap).collect().await;
        assert_eq!(all, [1, 2]);
        let none = futures::stream::pending::<Result<i32, Status>>();
        let all: Vec<_> = until(none, async { EtcdError::NoLeader.into() }).collect().await;
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].as_ref().unwrap_err().message(), "etcdserver: no leader");
        let failing = futures::stream::iter([Err(Status::internal("no")), Ok(1)]);
        assert_eq!(until(failing, std::future::pending()).collect::<Vec<_>>().await.len(), 1);
    }
}
