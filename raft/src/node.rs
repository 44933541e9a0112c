//! A member: its log, its store, its peers, put together.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt as _;
use openraft::{SnapshotPolicy, async_runtime::WatchReceiver as _};
use proto::{EtcdError, MemberId, command::Outcome, peer};
use storage::{Store, host, planted};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    Change, ChangeError, ChangePolicy, Config, LeaderHandler, LoggedEntry, Member, Meter, RaftError, Standing,
    StartError, Status, campaign, contact,
    convert::change_to_wire,
    force_new, heartbeat,
    log::{Folder, Log, LogError, WeakLog},
    members,
    membership::Changes,
    network::{client::Peers, server::PeerService, transfer},
    propose::{Fate, Overloaded, Proposer},
    read_index::ReadIndex,
    removal::{self, Heard},
    roster::Roster,
    state_machine::{StateMachine, applied_id, roster_of},
    status::Leadership,
    types::{Entry, Payload, Peer, Raft, position},
};

/// Entries of one replication message, at most.
const MESSAGE_ENTRIES: u64 = 512;
/// Beside two election timeouts. (etcd: `ReqTimeout`.)
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One member of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    member: u64,
    cluster: u64,
    heartbeat: Duration,
    election_timeout: Duration,
    raft: Raft,
    log: WeakLog,
    store: Store,
    peers: Peers,
    leadership: Leadership,
    proposer: Proposer,
    reads: ReadIndex,
    applied: watch::Receiver<u64>,
    snapshots: Arc<transfer::Folder>,
    leader_handler: Arc<dyn LeaderHandler>,
    changes: Changes,
    roster: watch::Receiver<Arc<Roster>>,
    heard: Heard,
    failure: watch::Sender<Option<String>>,
    meter: Arc<dyn Meter>,
}

impl Node {
    /// Opens the log and takes part in the cluster. `leader_handler` answers what other members ask this one as the
    /// leader.
    ///
    /// # Errors
    /// When the log is damaged or cannot be read, or does not fit to the store.
    pub async fn start(
        config: Config,
        store: Store,
        leader_handler: Arc<dyn LeaderHandler>,
    ) -> Result<Node, StartError> {
        let (path, disk, segment_bytes) = (config.wal_dir.clone(), config.disk.clone(), config.segment_bytes);
        let (meter, syncs) = (config.meter.clone(), config.is_log_synced);
        let log = host::blocking(move || Log::open(Folder { disk, path, segment_bytes }, meter, syncs));
        let mut log = log.await.map_err(|e| StartError::Io(e.to_string()))??;
        check_fit(&log, &store, &config.data_dir)?;
        let is_fresh = log.end().is_none() && store.applied().index == 0;

        let io = |error: std::io::Error| StartError::Io(error.to_string());
        let roster = roster_of(&store.applied()).map_err(io)?;
        if config.force_new_cluster {
            force_new::keep_only(&mut log, &roster, config.member.0).await?;
        }
        let snapshots = transfer::Folder::open(
            config.data_dir.join("member").join("snapshots"),
            store.clone(),
            config.meter.clone(),
        );
        let snapshots = Arc::new(snapshots.map_err(io)?);
        let peers = Peers::new(
            config.cluster.0,
            config.member.0,
            config.election_timeout,
            snapshots.clone(),
            config.meter.clone(),
            config.reach.clone(),
        );
        let members: BTreeMap<u64, Peer> = config.initial_members.iter().map(peer_of).collect();
        let others = members.clone().into_iter().filter(|(id, _)| *id != config.member.0);
        let is_wiped = is_fresh && peers.ask_about(config.member.0, others).await.is_bootstrapped;
        if is_wiped && !planted!(WipedMemberVotes) {
            return Err(StartError::Config(format!(
                "member {:x} has already been bootstrapped, but its data directory is empty: it would vote without \
                 knowing what it had promised; remove the member from the cluster and add a new one",
                config.member.0
            )));
        }
        let (progress, applied) = watch::channel(store.applied().index);
        let (roster_sender, roster) = watch::channel(Arc::new(roster));
        let weak_log = log.downgrade();
        let state_machine = StateMachine::new(store.clone(), log.clone(), progress, roster_sender).map_err(io)?;
        let raft_config = Arc::new(raft_config(&config)?);
        let raft = Raft::new(config.member.0, raft_config.clone(), peers.clone(), log, state_machine).await;
        let raft = raft.map_err(|error| StartError::Damaged(error.to_string()))?;
        peers.follow(raft.metrics());
        if is_fresh && !config.is_joining && !members.is_empty() {
            // Another member's request may have come first: then this one is initialized already.
            if let Err(error) = raft.initialize(members).await {
                tracing::debug!(%error, "already initialized");
            }
        }

        let (removed_sender, removed) = watch::channel(false);
        let failure = watch::Sender::new(None);
        let leadership =
            Leadership::start(config.member.0, raft.clone(), config.election_timeout, removed, failure.subscribe());
        let proposer = Proposer::start(raft.clone(), peers.clone(), leadership.clone());
        let reads = ReadIndex::start(raft.clone(), peers.clone(), leadership.clone(), 2 * config.election_timeout);
        let changes = Changes {
            member: config.member.0,
            raft: raft.clone(),
            store: store.clone(),
            reads: reads.clone(),
            roster: roster.clone(),
            heartbeat: config.heartbeat,
            election_timeout: config.election_timeout,
            one_at_a_time: Arc::default(),
        };
        host::spawn(changes.clone().seat_newcomers());
        host::spawn(heartbeat::send(raft.clone(), config.heartbeat));
        host::spawn(contact::log_changes(raft.clone(), config.election_timeout));
        host::spawn(campaign::pace(raft.clone(), raft_config));
        let heard = Heard::now();
        let removal = removal::Watcher {
            member: config.member.0,
            raft: raft.clone(),
            peers: peers.clone(),
            heard: heard.clone(),
            roster: roster.clone(),
            election_timeout: config.election_timeout,
        };
        host::spawn(removal.run(removed_sender));
        let inner = Inner {
            member: config.member.0,
            cluster: config.cluster.0,
            heartbeat: config.heartbeat,
            election_timeout: config.election_timeout,
            raft,
            log: weak_log,
            store,
            peers,
            leadership,
            proposer,
            reads,
            applied,
            snapshots,
            leader_handler,
            changes,
            roster,
            heard,
            failure,
            meter: config.meter,
        };
        Ok(Node { inner: Arc::new(inner) })
    }

    /// Replicates one encoded `command::Command` and gives its outcome. Resolves when it is applied on this member, so
    /// that a read that follows here sees it.
    pub async fn propose(&self, command: Bytes) -> Result<Outcome, RaftError> {
        let deadline = self.deadline();
        loop {
            let before = self.standing();
            let fate = timeout_at(deadline, self.inner.proposer.propose(command.clone())).await;
            match fate.map_err(|_| self.too_late())?.map_err(|Overloaded| RaftError::Overloaded)? {
                Fate::Applied { index, outcome } => {
                    if !planted!(AnswerBeforeApply) {
                        self.wait_applied(index, deadline).await?;
                    }
                    return Ok(outcome);
                }
                Fate::Unknown if !planted!(ProposalRepeated) => {
                    return Err(self.fatal().unwrap_or(RaftError::LeaderChanged));
                }
                Fate::Unknown | Fate::NotProposed => {}
            }
            self.wait_for_leader(before, deadline).await?;
        }
    }

    /// Like [`Self::propose`], but only if this member leads now.
    pub async fn propose_as_leader(&self, command: Bytes) -> Result<Outcome, RaftError> {
        if !self.standing().is_leader {
            return Err(RaftError::NotLeader);
        }
        let fates = timeout_at(self.deadline(), self.inner.proposer.propose_here(vec![command])).await;
        match fates.map_err(|_| RaftError::Timeout)?.pop() {
            Some(Fate::Applied { outcome, .. }) => Ok(outcome),
            Some(Fate::NotProposed) => Err(RaftError::NotLeader),
            Some(Fate::Unknown) | None => Err(self.fatal().unwrap_or(RaftError::LeaderChanged)),
        }
    }

    /// Returns once this member has applied everything that was committed anywhere when the call began.
    pub async fn read_index(&self) -> Result<(), RaftError> {
        if planted!(ReadIndexSkipped) {
            return Ok(());
        }
        let deadline = self.deadline();
        loop {
            let before = self.standing();
            // It answers in bounded time.
            match self.inner.reads.index().await {
                Ok(index) => return self.wait_applied(index, deadline).await,
                // Asking again changes nothing.
                Err(error) => {
                    tracing::debug!(%error, "a linearizable read waits for a leader");
                    self.wait_for_leader(before, deadline).await?;
                }
            }
        }
    }

    /// Returns once this member has applied the entry at `index`.
    pub async fn wait_until_applied(&self, index: u64) -> Result<(), RaftError> {
        self.wait_applied(index, self.deadline()).await
    }

    /// Entries of this member's log at these places; None when it does not hold all of them any more.
    pub async fn logged(&self, indexes: RangeInclusive<u64>) -> Option<Vec<LoggedEntry>> {
        let log = self.inner.log.clone();
        let read = host::blocking(move || {
            let log = log.upgrade()?;
            let read = |index: u64| log.read(index.checked_sub(1)?).ok()?.map(logged);
            indexes.map(read).collect()
        });
        read.await.ok().flatten()
    }

    /// Sends a request to the leader's [`LeaderHandler`], which may be this member's own.
    pub async fn ask_leader(&self, request: Bytes) -> Result<Bytes, tonic::Status> {
        let inner = &self.inner;
        match inner.leadership.leader() {
            Some((leader, _)) if leader == inner.member => inner.leader_handler.handle(request).await,
            Some((leader, peer)) => {
                let mut client = inner.peers.forwarding(leader, &peer);
                let call = client.ask_leader(peer::AskLeaderRequest { request });
                let response = timeout_at(self.deadline(), call).await;
                let late = |_| tonic::Status::from(proto::EtcdError::Timeout);
                Ok(response.map_err(late)??.into_inner().response)
            }
            None => Err(proto::EtcdError::NoLeader.into()),
        }
    }

    /// Who leads, and how far the log has come, now.
    pub fn status(&self) -> Status {
        Status { applied_index: *self.inner.applied.borrow(), ..self.inner.leadership.now() }
    }

    /// What of the status nearly every request asks for. Costs next to nothing.
    pub fn standing(&self) -> Standing {
        self.inner.leadership.standing()
    }

    /// Told of every change of leader, term and failure.
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.inner.leadership.watch()
    }

    /// The membership as it is applied here, with what members said of themselves, in order of ids.
    pub fn members(&self) -> Vec<Member> {
        let roster = self.inner.roster.borrow().clone();
        // Nothing is applied yet in a new cluster's first moment; then its first membership is in the log.
        let membership = match roster.stored.log_id() {
            Some(_) => roster.membership().clone(),
            None => self.inner.raft.metrics().borrow_watched().membership_config.membership().clone(),
        };
        members::join(&membership, self.inner.store.member_attributes())
    }

    /// Those who vote now, and so not who is to vote as soon as it has caught up.
    pub fn voters(&self) -> BTreeSet<MemberId> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().voter_ids().map(MemberId).collect()
    }

    /// Changes the membership, and gives the members there are then. The leader decides, whichever member is asked.
    ///
    /// # Errors
    /// A refusal by etcd's rules, or what keeps Raft from making the change; then it may be made or not.
    pub async fn change_members(&self, change: Change, policy: ChangePolicy) -> Result<Vec<Member>, ChangeError> {
        let deadline = self.deadline();
        // Who has lost the majority does not want more members.
        let needs_health = policy.is_strict && matches!(change, Change::AddVoter { .. } | Change::AddLearner { .. });
        let leader_by = if needs_health { Instant::now() + 3 * self.inner.election_timeout } else { deadline };
        loop {
            let before = self.standing();
            match self.change_at_leader(&change, policy, deadline).await {
                Ok(index) => {
                    return match change {
                        // A removed member is not told of its removal any more.
                        Change::Remove(id) if id.0 == self.inner.member => {
                            Ok(self.members().into_iter().filter(|member| member.id != id).collect())
                        }
                        _ => {
                            self.wait_applied(index, deadline).await?;
                            Ok(self.members())
                        }
                    };
                }
                Err(ChangeError::Raft(RaftError::NotLeader)) => match self.wait_for_leader(before, leader_by).await {
                    Ok(()) => {}
                    Err(RaftError::NoLeader) if needs_health => {
                        return Err(ChangeError::Refused(EtcdError::Unhealthy));
                    }
                    Err(error) => return Err(error.into()),
                },
                Err(error) => return Err(error),
            }
        }
    }

    /// The position of the entry that made the change.
    async fn change_at_leader(
        &self,
        change: &Change,
        policy: ChangePolicy,
        deadline: Instant,
    ) -> Result<u64, ChangeError> {
        use peer::change_members_response::Result as Answer;
        let inner = &self.inner;
        let (leader, peer) = inner.leadership.leader().ok_or(RaftError::NotLeader)?;
        if leader == inner.member {
            return inner.changes.make(change, policy, deadline).await;
        }
        let mut client = inner.peers.forwarding(leader, &peer);
        let call = client.change_members(change_to_wire(change, policy));
        let answer = timeout_at(deadline, call).await.map_err(|_| RaftError::Timeout)?;
        let answer = answer.map_err(|status| {
            tracing::debug!(%status, "the leader did not say what became of a change of the membership");
            match status.code() {
                tonic::Code::DeadlineExceeded => RaftError::Timeout,
                _ => RaftError::LeaderChanged,
            }
        })?;
        match answer.into_inner().result {
            Some(Answer::Index(index)) => Ok(index),
            Some(Answer::Refused(failure)) => match EtcdError::from_message(&failure.message) {
                Some(error) => Err(ChangeError::Refused(error)),
                None => Err(RaftError::LeaderChanged.into()),
            },
            Some(Answer::NotLeader(_)) => Err(RaftError::NotLeader.into()),
            None => Err(RaftError::LeaderChanged.into()),
        }
    }

    /// The service that other members call.
    pub fn peer_routes(&self) -> tonic::service::Routes {
        let inner = &self.inner;
        let service = PeerService {
            cluster: inner.cluster,
            member: inner.member,
            raft: inner.raft.clone(),
            store: inner.store.clone(),
            proposer: inner.proposer.clone(),
            reads: inner.reads.clone(),
            snapshots: inner.snapshots.clone(),
            leader_handler: inner.leader_handler.clone(),
            changes: inner.changes.clone(),
            roster: inner.roster.clone(),
            heard: inner.heard.clone(),
            log: inner.log.clone(),
            failure: inner.failure.clone(),
            meter: inner.meter.clone(),
            change_timeout: REQUEST_TIMEOUT + 2 * inner.election_timeout,
        };
        let service = peer::peer_server::PeerServer::new(service)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        tonic::service::Routes::new(service)
    }

    /// Hands leadership to `to`, or to the voter whose log is nearest to this one's.
    pub async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<(), RaftError> {
        let mut status = self.inner.leadership.watch();
        if !status.borrow_and_update().is_leader {
            return Err(RaftError::NotLeader);
        }
        let to = to.map(|id| id.0).or_else(|| self.nearest_voter()).ok_or(RaftError::NoLeader)?;
        let stopped = |_| RaftError::Stopped;
        self.inner.raft.trigger().transfer_leader(to).await.map_err(stopped)?;
        let handed_over = status.wait_for(|status| status.leader.is_some_and(|leader| leader.0 == to));
        match tokio::time::timeout(self.inner.election_timeout, handed_over).await {
            Ok(changed) => changed.map(drop).map_err(|_| RaftError::Stopped),
            Err(_) => Err(RaftError::Timeout),
        }
    }

    fn nearest_voter(&self) -> Option<u64> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters = metrics.membership_config.membership().voter_ids().filter(|id| *id != self.inner.member);
        let matching = |id: &u64| metrics.replication.as_ref().and_then(|all| all.get(id).cloned()).flatten();
        voters.max_by_key(|id| matching(id).map(|log_id| log_id.index))
    }

    /// Hands leadership over if there is someone to take it, stops Raft, and makes durable what was applied.
    pub async fn shutdown(&self) -> Result<(), RaftError> {
        match self.transfer_leadership(None).await {
            Ok(()) | Err(RaftError::NotLeader | RaftError::NoLeader) => {}
            Err(error) => tracing::warn!(%error, "leadership was not handed over"),
        }
        self.inner.raft.shutdown().await.map_err(|error| RaftError::Fatal(error.to_string()))?;
        let store = self.inner.store.clone();
        let flushed = host::blocking(move || store.flush()).await;
        let fatal = |error: &dyn std::error::Error| RaftError::Fatal(error.to_string());
        flushed.map_err(|e| fatal(&e))?.map_err(|e| fatal(&e))?;
        Ok(())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + REQUEST_TIMEOUT + 2 * self.inner.election_timeout
    }

    fn too_late(&self) -> RaftError {
        match self.inner.leadership.now().leader {
            Some(_) => RaftError::Timeout,
            None => RaftError::NoLeader,
        }
    }

    fn fatal(&self) -> Option<RaftError> {
        self.inner.leadership.now().fatal.map(RaftError::Fatal)
    }

    async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<(), RaftError> {
        if *self.inner.applied.borrow() >= index {
            return Ok(());
        }
        let mut applied = self.inner.applied.clone();
        // In a box, as all that is seldom waited for: every call has room for all that it may wait for.
        match timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).boxed().await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(self.fatal().unwrap_or(RaftError::Stopped)),
            Err(_) => Err(RaftError::Timeout),
        }
    }

    /// Waits until something has changed about the leader since `before`. One that is known but does not know of it yet
    /// is asked again after a heartbeat.
    async fn wait_for_leader(&self, before: Standing, deadline: Instant) -> Result<(), RaftError> {
        if let Some(fatal) = self.fatal() {
            return Err(fatal);
        }
        let mut status = self.inner.leadership.watch();
        let now = Standing::from(&*status.borrow_and_update());
        if now != before {
            return Ok(());
        }
        let soon = if now.has_leader { deadline.min(Instant::now() + self.inner.heartbeat) } else { deadline };
        match timeout_at(soon, status.changed()).boxed().await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(RaftError::Stopped),
            Err(_) if soon < deadline => Ok(()),
            Err(_) => Err(self.too_late()),
        }
    }
}

/// The log and the store were made durable at different times, but neither may lack what the other has let go.
pub(crate) fn check_fit(log: &Log, store: &Store, data_dir: &Path) -> Result<(), StartError> {
    let applied = applied_id(&store.applied());
    if applied > log.end() {
        let (path, offset) = log.tail();
        let detail = format!(
            "the log ends here with entry {:?}, but entry {applied:?} had been applied: its newest part is missing",
            log.end()
        );
        return Err(StartError::Damaged(LogError::damaged(&path, offset, detail).to_string()));
    }
    if log.purged() > applied {
        let path = data_dir.join("member").join("store");
        let detail = format!(
            "the store has applied entry {applied:?}, but the log begins behind {:?}: files of the store are missing",
            log.purged()
        );
        return Err(StartError::Damaged(LogError::damaged(&path, 0, detail).to_string()));
    }
    Ok(())
}

fn logged(entry: Entry) -> LoggedEntry {
    let command = match entry.payload {
        Payload::Normal(command) => Some(command.0),
        Payload::Blank | Payload::Membership(_) => None,
    };
    LoggedEntry { index: position(entry.log_id.index), term: entry.log_id.leader_id.term, command }
}

pub(crate) fn peer_of(member: &Member) -> (u64, Peer) {
    (member.id.0, Peer { name: member.name.clone(), urls: member.peer_urls.clone(), joins_as_voter: false })
}

/// A dead leader is noticed after its lease, which openraft takes to be the longest election timeout, and a random
/// election timeout. Both are chosen so that a new one leads within two of etcd's election timeouts.
fn raft_config(config: &Config) -> Result<openraft::Config, StartError> {
    let (heartbeat, election) = (config.heartbeat.as_millis() as u64, config.election_timeout.as_millis() as u64);
    let raft = openraft::Config {
        cluster_name: format!("{:x}", config.cluster.0),
        enable_heartbeat: false,
        // For how long the answer to a heartbeat is waited for: the longest that openraft takes.
        heartbeat_interval: election / 2 - 1,
        // A vote is synced and answered within this, or does not count.
        election_timeout_min: election / 2,
        election_timeout_max: election * 65 / 100,
        enable_pre_vote: Some(true),
        // A leader that comes back has lost what it had not synced, which followers may have: it must not write other
        // entries in the same term.
        enable_leader_restore: Some(planted!(LeaderRestored)),
        max_payload_entries: MESSAGE_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_count),
        max_in_snapshot_log_to_keep: config.catch_up_entries,
        // A snapshot takes as long as it takes; a connection that is lost ends it.
        install_snapshot_timeout: Duration::from_secs(24 * 3600).as_millis() as u64,
        backoff: format!("{heartbeat}ms {}ms ...{election}ms", 2 * heartbeat),
        ..Default::default()
    };
    raft.validate().map_err(|error| StartError::Config(error.to_string()))
}
