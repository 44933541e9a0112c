//! What every service shares: the store, the Raft node, who this member is, and the bounds on requests.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::Either;
use prost::Message;
use proto::{
    ClusterId, EtcdError, MemberId,
    command::{AuthInfo, Command, command::Op, outcome::Result as Outcome},
    etcdserverpb::ResponseHeader,
};
use raft::RaftError;
use storage::{AuthState, ReadError, StorageError, host};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    auth::{Auth, Caller},
    gates::Gates,
    metrics::{Metrics, Timed},
    peer_http::PeerHttp,
    quota::Quota,
    snapshot::Snapshots,
};

/// The bounds on what a client may ask.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of one encoded command, and of one watch response.
    pub max_request_bytes: usize,
    pub max_txn_ops: usize,
    /// Negative for none.
    pub quota_backend_bytes: i64,
}

/// Shared by all services, as `Arc<Context>`.
pub struct Context {
    pub store: storage::Store,
    pub node: raft::Node,
    pub cluster: ClusterId,
    pub member: MemberId,
    pub limits: Limits,
    pub change_policy: raft::ChangePolicy,
    pub gates: Gates,
    pub quota: Quota,
    pub peer_http: PeerHttp,
    pub auth: Auth,
    pub watch_progress_interval: Duration,
    pub election_timeout: Duration,
    pub metrics: Arc<Metrics>,
    pub fatal: Fatal,
    pub snapshots: Snapshots,
    /// Cancelled when the process begins to stop: streams end then, since they would not by themselves.
    pub shutdown: CancellationToken,
}

/// Tells `main` that this node cannot go on. The first report counts.
#[derive(Clone)]
pub struct Fatal(mpsc::Sender<String>);

impl Fatal {
    /// The receiver yields the reason to stop for.
    pub fn new() -> (Fatal, mpsc::Receiver<String>) {
        let (sender, receiver) = mpsc::channel(1);
        (Fatal(sender), receiver)
    }

    pub fn report(&self, reason: impl std::fmt::Display) {
        // Full: another report came first, and the process stops for that one.
        let _ = self.0.try_send(reason.to_string());
    }
}

impl Context {
    /// The header of an answer that `revision` is the state of.
    pub fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster.0,
            member_id: self.member.0,
            revision,
            raft_term: self.node.standing().term,
        }
    }

    /// Adds to a header that holds a revision who answers. Without a revision it takes the current one, as in etcd.
    pub fn stamp(&self, header: &mut Option<ResponseHeader>) {
        let revision = match header.as_ref().map_or(0, |header| header.revision) {
            0 => self.store.revision(),
            revision => revision,
        };
        *header = Some(self.header(revision));
    }

    /// Replicates a command of this member's own and returns what applying it here gave; a refusal becomes its status.
    pub async fn propose(&self, op: Op) -> Result<Outcome, Status> {
        self.propose_command(Command { op: Some(op), auth: None }).await
    }

    /// The same on behalf of a client: what it may do is checked again when the command is applied.
    pub fn propose_by(&self, caller: &Caller, op: Op) -> impl Future<Output = Result<Outcome, Status>> + Send {
        if !self.auth.is_enabled() {
            return Either::Left(self.propose_command(Command { op: Some(op), auth: None }));
        }
        Either::Right(Box::pin(async move {
            let auth = self.auth.info(caller).await?;
            self.propose_command(Command { op: Some(op), auth }).await
        }))
    }

    /// The command is encoded at once: what waits has its bytes and not the command itself.
    fn propose_command(&self, command: Command) -> impl Future<Output = Result<Outcome, Status>> + Send {
        let timed = command.op.as_ref().map(|op| self.metrics.request(storage::name_of(op)));
        let is_too_large =
            command.encoded_len() + etcd_envelope_bytes(self.member, &command) > self.limits.max_request_bytes;
        let encoded = (!is_too_large).then(|| Bytes::from(command.encode_to_vec()));
        async move {
            let encoded = encoded.ok_or(EtcdError::RequestTooLarge)?;
            let _pending = self.metrics.proposal();
            let outcome = self.node.propose(encoded).await.map_err(|error| {
                self.metrics.proposals_failed.inc();
                self.raft_error(error)
            })?;
            match outcome.result {
                Some(Outcome::Failure(failure)) => Err(failure.into()),
                Some(result) => {
                    timed.into_iter().for_each(Timed::done);
                    Ok(result)
                }
                None => Err(self.local_failure("the outcome of a command is empty")),
            }
        }
    }

    /// Returns once this member has applied all that was committed when the call began.
    pub async fn read_barrier(&self) -> Result<(), Status> {
        let began = Instant::now();
        let read = self.node.read_index().await;
        self.metrics.read_index_took(began.elapsed(), read.is_ok());
        read.map_err(|error| self.raft_error(error))
    }

    /// Reads on behalf of a client, if `check` allows it.
    ///
    /// # Errors
    /// `AuthOldRevision` when users or roles have changed meanwhile. (etcd: `v3_server.go`, doSerialize.)
    pub fn read_by<T>(
        &self,
        caller: &Caller,
        check: impl FnOnce(&AuthState, Option<&AuthInfo>) -> Result<(), EtcdError> + Send,
        read: impl Future<Output = Result<T, Status>> + Send,
    ) -> impl Future<Output = Result<T, Status>> + Send {
        if !self.auth.is_enabled() {
            return Either::Left(read);
        }
        Either::Right(Box::pin(async move {
            let info = self.auth.info(caller).await?;
            check(&self.auth.state(), info.as_ref())?;
            let result = read.await;
            if let Some(info) = info {
                self.auth.require_unchanged(info.revision)?;
            }
            result
        }))
    }

    /// The status that etcd answers for a request that Raft did not carry out.
    pub fn raft_error(&self, error: RaftError) -> Status {
        match error {
            RaftError::NoLeader => EtcdError::NoLeader.into(),
            RaftError::Timeout => EtcdError::Timeout.into(),
            RaftError::LeaderChanged => EtcdError::LeaderChanged.into(),
            RaftError::Stopped => EtcdError::Stopped.into(),
            RaftError::Overloaded => EtcdError::RequestTooManyRequests.into(),
            RaftError::NotLeader => EtcdError::NotLeader.into(),
            RaftError::Fatal(reason) => self.local_failure(reason),
        }
    }

    /// A refusal by etcd's rules is an answer; a failure of this node's disk stops the node.
    pub fn read_error(&self, error: ReadError) -> Status {
        match error {
            ReadError::Request(refusal) => refusal.into(),
            ReadError::Local(failure) => self.storage_error(failure),
        }
    }

    pub fn storage_error(&self, error: StorageError) -> Status {
        self.local_failure(error)
    }

    /// The answer to a command that was applied as another kind of command: the log and the store disagree.
    pub fn wrong_outcome(&self, rpc: &str, outcome: &Outcome) -> Status {
        self.local_failure(format!("applying a {rpc} gave {outcome:?}"))
    }

    /// Stops the node. The client learns no more than that it has to go elsewhere.
    fn local_failure(&self, reason: impl std::fmt::Display) -> Status {
        self.fatal.report(reason);
        EtcdError::Stopped.into()
    }

    /// Runs a read of the store on a thread that may block.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&storage::Store) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Status> {
        let store = self.store.clone();
        match host::blocking(move || read(&store)).await {
            Ok(result) => result.map_err(|error| self.read_error(error)),
            Err(error) if error.is_panic() => Err(self.local_failure(format!("a read of the store failed: {error}"))),
            Err(_) => Err(EtcdError::Stopped.into()),
        }
    }
}

/// etcd wraps a command into an envelope with a request id before it compares the size with the bound. Its size counts
/// here too, so that the bound falls on the same byte. The id begins with the lower 16 bits of the member's, and is
/// encoded the longer the higher it is (`pkg/idutil/id.go`).
fn etcd_envelope_bytes(member: MemberId, command: &Command) -> usize {
    const TIME_AND_COUNT: u64 = 1 << 47;
    // Two bytes for the header's tag, one for its length, one for the id's tag.
    let envelope = 4 + prost::encoding::encoded_len_varint(member.0 << 48 | TIME_AND_COUNT);
    // Who asks stands in etcd's header, without a tag (two bytes here) and a length of its own.
    if command.auth.is_some() { envelope - 3 } else { envelope }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures: what etcd 3.5.30 with these member ids takes at most.
    #[test]
    fn the_envelope_is_as_long_as_etcds() {
        const MAX: usize = 1_572_864;
        let put = |value_bytes: usize| proto::etcdserverpb::PutRequest {
            key: "bi".into(),
            value: vec![0; value_bytes].into(),
            ..Default::default()
        };
        let command = |auth, value_bytes| Command { op: Some(Op::Put(put(value_bytes))), auth };
        let size = |command: &Command, member| command.encoded_len() + etcd_envelope_bytes(member, command);
        let member = MemberId(11_382_902_454_091_896_042);
        assert_eq!(size(&command(None, 1_572_838), member), MAX);
        assert_eq!(etcd_envelope_bytes(MemberId(0x1234), &command(None, 0)), 13);
        // Name and revision, with a tag and a length each, as they are in etcd's header.
        let auth = AuthInfo { username: "root".into(), revision: 3 };
        let named = size(&command(Some(auth), 0), member) - size(&command(None, 0), member);
        assert_eq!(named, 2 + "root".len() + 2);
    }

    #[test]
    fn the_first_failure_is_the_one_reported() {
        let (fatal, mut reasons) = Fatal::new();
        fatal.report("first");
        fatal.report("second");
        assert_eq!(reasons.try_recv(), Ok("first".into()));
        assert!(reasons.try_recv().is_err());
    }
}
