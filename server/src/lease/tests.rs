//! The clock on a member that is played.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::{
    EtcdError, LeaseId,
    command::{LeaseExpire, command::Op},
    etcdserverpb::{LeaseKeepAliveRequest, LeaseTimeToLiveRequest},
};
use raft::{Standing, Status as RaftStatus};
use storage::{LeaseChange, LeaseInfo};
use tokio::sync::{
    mpsc, oneshot,
    watch::{Receiver, Sender},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    Clock, Member, leader_handler,
    leader_request::{Answer, Request},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A member whose proposals the test answers.
struct TestMember {
    status: Sender<RaftStatus>,
    leases: Vec<LeaseInfo>,
    proposals: mpsc::UnboundedSender<Proposal>,
    /// Done before each confirmation that this member leads.
    while_confirming: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    checkpoint_interval: Option<Duration>,
    shutdown: CancellationToken,
}

type Proposal = (Op, oneshot::Sender<Result<(), Status>>);

#[tonic::async_trait]
impl Member for TestMember {
    fn standing(&self) -> Standing {
        Standing::from(&*self.status.borrow())
    }

    fn watch_status(&self) -> Receiver<RaftStatus> {
        self.status.subscribe()
    }

    async fn read_index(&self) -> Result<(), Status> {
        if let Some(act) = self.while_confirming.lock().take() {
            act();
        }
        Ok(())
    }

    async fn propose_as_leader(&self, op: Op) -> Result<(), Status> {
        let (answer, answered) = oneshot::channel();
        self.proposals.send((op, answer)).unwrap();
        answered.await.unwrap()
    }

    fn leases(&self) -> Vec<LeaseInfo> {
        self.leases.clone()
    }

    fn lease_keys(&self, _id: LeaseId) -> Vec<Bytes> {
        vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]
    }

    fn election_timeout(&self) -> Duration {
        Duration::ZERO
    }

    fn checkpoint_interval(&self) -> Option<Duration> {
        self.checkpoint_interval
    }

    fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }
}

struct World {
    clock: Arc<Clock>,
    member: Arc<TestMember>,
    proposals: mpsc::UnboundedReceiver<Proposal>,
}

impl World {
    /// With leases that expire the moment this member leads, by a TTL of 0, and others.
    fn new(leases: &[(i64, i64)]) -> World {
        World::with_checkpoints(leases, None)
    }

    fn with_checkpoints(leases: &[(i64, i64)], checkpoint_interval: Option<Duration>) -> World {
        let leases = leases.iter().map(|&(id, ttl)| LeaseInfo { id: LeaseId(id), ttl, remaining_ttl: 0 }).collect();
        let (sender, proposals) = mpsc::unbounded_channel();
        let member = Arc::new(TestMember {
            status: Sender::new(RaftStatus::default()),
            leases,
            proposals: sender,
            while_confirming: Mutex::default(),
            checkpoint_interval,
            shutdown: CancellationToken::new(),
        });
        let clock = Clock::new();
        clock.start(member.clone());
        World { clock, member, proposals }
    }

    async fn lead(&self, term: u64) {
        self.member.status.send_replace(RaftStatus { is_leader: true, term, ..Default::default() });
        let began = Instant::now();
        while self.clock.leading() != Some(term) {
            assert!(began.elapsed() < PATIENCE);
            tokio::task::yield_now().await;
        }
    }

    fn follow(&self, term: u64) {
        self.member.status.send_replace(RaftStatus { term, ..Default::default() });
    }

    async fn proposal(&mut self) -> Proposal {
        tokio::time::timeout(PATIENCE, self.proposals.recv()).await.expect("a proposal in time").unwrap()
    }

    async fn expiry(&mut self) -> (Vec<i64>, u64, oneshot::Sender<Result<(), Status>>) {
        match self.proposal().await {
            (Op::LeaseExpire(LeaseExpire { mut ids, term }), answer) => {
                ids.sort();
                (ids, term, answer)
            }
            (other, _) => panic!("{other:?}"),
        }
    }

    fn revoked(&self, ids: &[i64]) {
        let changes: Vec<_> = ids.iter().map(|&id| LeaseChange::Revoked { id: LeaseId(id) }).collect();
        self.clock.applied(&changes);
    }

    fn keep_alive(&self, id: i64) -> tokio::task::JoinHandle<Result<i64, Status>> {
        let clock = self.clock.clone();
        tokio::spawn(async move { clock.keep_alive(LeaseId(id)).await })
    }
}

#[tokio::test]
async fn the_leader_expires_what_is_due_in_its_term_and_goes_on() {
    let mut world = World::new(&[(1, 0), (2, 0), (3, 1000)]);
    world.lead(5).await;
    let (ids, term, answer) = world.expiry().await;
    assert_eq!((ids, term), (vec![1, 2], 5));
    world.revoked(&[1, 2]);
    answer.send(Ok(())).unwrap();
    // A lease that is due before the one that was next.
    world.clock.applied(&[LeaseChange::Granted { id: LeaseId(4), ttl: 0 }]);
    let (ids, term, _answer) = world.expiry().await;
    assert_eq!((ids, term), (vec![4], 5));
}

#[tokio::test]
async fn an_expiry_that_failed_is_proposed_again() {
    let mut world = World::new(&[(1, 0)]);
    world.lead(5).await;
    let (_, _, answer) = world.expiry().await;
    let failed = Instant::now();
    answer.send(Err(EtcdError::Timeout.into())).unwrap();
    let (ids, _, answer) = world.expiry().await;
    assert!(ids == [1] && failed.elapsed() >= Duration::from_millis(500));
    // Applied, but of no effect: another term's.
    answer.send(Ok(())).unwrap();
    world.lead(6).await;
    let (ids, term, _answer) = world.expiry().await;
    assert_eq!((ids, term), (vec![1], 6));
}

#[tokio::test]
async fn many_leases_expire_in_several_entries() {
    let leases: Vec<_> = (1..=700).map(|id| (id, 0)).collect();
    let mut world = World::new(&leases);
    world.lead(5).await;
    let (first, _, answer) = world.expiry().await;
    assert_eq!(first.len(), 500);
    world.revoked(&first);
    answer.send(Ok(())).unwrap();
    let (second, _, _answer) = world.expiry().await;
    assert_eq!((second.len(), second.iter().any(|id| first.contains(id))), (200, false));
}

#[tokio::test]
async fn a_lease_that_expired_while_it_was_kept_alive_is_gone_or_lives() {
    let mut world = World::new(&[(1, 0), (2, 0), (3, 1000)]);
    world.lead(5).await;
    let (_, _, _answer) = world.expiry().await;
    assert_eq!(world.keep_alive(3).await.unwrap().unwrap(), 1000);
    assert_eq!(world.keep_alive(9).await.unwrap().unwrap(), 0);
    let (first, second) = (world.keep_alive(1), world.keep_alive(2));
    // Both wait for what becomes of the expiry.
    assert_eq!(world.keep_alive(3).await.unwrap().unwrap(), 1000);
    assert!(!first.is_finished() && !second.is_finished());
    world.revoked(&[1]);
    assert_eq!(first.await.unwrap().unwrap(), 0);
    assert!(!second.is_finished());
    world.follow(6);
    assert_eq!(second.await.unwrap().unwrap_err().message(), "etcdserver: not leader");
}

#[tokio::test]
async fn a_leader_that_was_replaced_renews_nothing() {
    let world = World::new(&[(1, 1000)]);
    assert_eq!(world.keep_alive(1).await.unwrap().unwrap_err().message(), "etcdserver: not leader");
    world.lead(5).await;
    assert_eq!(world.keep_alive(1).await.unwrap().unwrap(), 1000);
    // While it asks for a majority it learns that there is another leader; or leads again, in another term.
    for status in
        [RaftStatus { term: 6, ..Default::default() }, RaftStatus { is_leader: true, term: 7, ..Default::default() }]
    {
        let sender = world.member.status.clone();
        *world.member.while_confirming.lock() = Some(Box::new(move || {
            sender.send_replace(status);
        }));
        assert_eq!(world.keep_alive(1).await.unwrap().unwrap_err().message(), "etcdserver: not leader");
        world.lead(5).await;
    }
}

#[tokio::test]
async fn a_checkpoint_is_cleared_before_the_lease_is_renewed() {
    let mut world = World::new(&[(1, 1000)]);
    world.clock.applied(&[LeaseChange::Checkpointed { id: LeaseId(1), remaining_ttl: 10 }]);
    world.lead(5).await;
    let renewal = world.keep_alive(1);
    let (Op::LeaseCheckpoint(checkpoint), answer) = world.proposal().await else { panic!("not a checkpoint") };
    assert_eq!((checkpoint.term, checkpoint.checkpoints[0].id, checkpoint.checkpoints[0].remaining_ttl), (5, 1, 0));
    assert!(!renewal.is_finished());
    world.clock.applied(&[LeaseChange::Checkpointed { id: LeaseId(1), remaining_ttl: 0 }]);
    answer.send(Ok(())).unwrap();
    assert_eq!(renewal.await.unwrap().unwrap(), 1000);
}

#[tokio::test]
async fn other_members_ask_the_leader() {
    let world = World::new(&[(1, 1000)]);
    let handler = leader_handler(world.clock.clone());
    let ask = async |request: Request| {
        let answer = handler.handle(prost::Message::encode_to_vec(&request).into()).await?;
        Ok::<_, Status>(<Answer as prost::Message>::decode(answer).unwrap())
    };
    let keep_alive = Request { keep_alive: Some(LeaseKeepAliveRequest { id: 1 }), time_to_live: None };
    let time_to_live = |id, keys| Request { keep_alive: None, time_to_live: Some(LeaseTimeToLiveRequest { id, keys }) };
    assert_eq!(ask(keep_alive.clone()).await.unwrap_err().message(), "etcdserver: not leader");
    world.lead(5).await;
    assert_eq!(ask(keep_alive).await.unwrap(), Answer { keep_alive: Some(1000), time_to_live: None });
    let found = ask(time_to_live(1, true)).await.unwrap().time_to_live.unwrap();
    assert!((998..=1000).contains(&found.ttl), "{found:?}");
    assert_eq!((found.id, found.granted_ttl, found.keys.len()), (1, 1000, 2));
    let found = ask(time_to_live(2, true)).await.unwrap().time_to_live.unwrap();
    assert_eq!((found.id, found.ttl, found.granted_ttl, found.keys.len()), (2, -1, 0, 0));
    assert!(ask(Request::default()).await.is_err());
    assert!(handler.handle(Bytes::from_static(b"\xff")).await.is_err());
}

#[tokio::test]
async fn the_leader_notes_what_is_left_of_a_long_lease() {
    let mut world = World::with_checkpoints(&[(1, 600)], Some(Duration::from_millis(1100)));
    world.lead(5).await;
    let (op, answer) = world.proposal().await;
    let Op::LeaseCheckpoint(checkpoint) = op else { panic!("{op:?}") };
    assert_eq!((checkpoint.term, checkpoint.checkpoints.len(), checkpoint.checkpoints[0].id), (5, 1, 1));
    assert!((590..600).contains(&checkpoint.checkpoints[0].remaining_ttl), "{checkpoint:?}");
    answer.send(Err(EtcdError::Timeout.into())).unwrap();
    // It comes again, though that was not noted.
    assert!(matches!(world.proposal().await.0, Op::LeaseCheckpoint(_)));
}
