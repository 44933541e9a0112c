//! The Election and Lock services of one member, by what etcd answers.

mod member;

use std::{path::Path, time::Duration};

use member::Member;
use proto::{
    etcdserverpb::{
        DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
        WatchCreateRequest, WatchRequest, WatchResponse, kv_client::KvClient, lease_client::LeaseClient,
        watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb::{KeyValue, event::EventType},
    v3electionpb::{
        CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest, election_client::ElectionClient,
    },
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use tonic::{Code, Status, Streaming, transport::Channel};

const PATIENCE: Duration = Duration::from_secs(30);

struct Served {
    _member: Member,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    watch: WatchClient<Channel>,
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
}

async fn serve(dir: &Path) -> Served {
    let member = Member::start(dir, &[]);
    let channel = Channel::from_shared(member.endpoint()).unwrap().connect().await.unwrap();
    Served {
        _member: member,
        kv: KvClient::new(channel.clone()),
        lease: LeaseClient::new(channel.clone()),
        watch: WatchClient::new(channel.clone()),
        lock: LockClient::new(channel.clone()),
        election: ElectionClient::new(channel),
    }
}

impl Served {
    async fn grant(&mut self) -> i64 {
        self.lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.unwrap().into_inner().id
    }

    async fn keys(&mut self, prefix: &str) -> Vec<KeyValue> {
        let (key, range_end) = (prefix.to_owned().into(), queue_end(prefix).into());
        self.kv.range(RangeRequest { key, range_end, ..Default::default() }).await.unwrap().into_inner().kvs
    }

    /// What happens below `prefix` from here on.
    async fn events(&mut self, prefix: &str) -> Events {
        let create = WatchCreateRequest {
            key: prefix.to_owned().into(),
            range_end: queue_end(prefix).into(),
            ..Default::default()
        };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let mut responses = self.watch.watch(futures::stream::iter([request])).await.unwrap().into_inner();
        assert!(responses.message().await.unwrap().unwrap().created);
        Events(responses)
    }
}

fn queue_end(prefix: &str) -> String {
    format!("{}0", prefix.strip_suffix('/').unwrap())
}

struct Events(Streaming<WatchResponse>);

impl Events {
    async fn next(&mut self) -> (EventType, String) {
        let next = tokio::time::timeout(PATIENCE, self.0.message()).await.expect("an event");
        let response = next.unwrap().unwrap();
        let [event] = &response.events[..] else { panic!("one event: {response:?}") };
        (event.r#type(), String::from_utf8(event.kv.as_ref().unwrap().key.to_vec()).unwrap())
    }
}

fn lock_of(name: &'static str, lease: i64) -> LockRequest {
    LockRequest { name: name.into(), lease }
}

fn campaign_of(name: &'static str, lease: i64, value: &'static str) -> CampaignRequest {
    CampaignRequest { name: name.into(), lease, value: value.into() }
}

fn refused<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_string())
}

fn unknown(text: &str) -> (Code, String) {
    (Code::Unknown, text.into())
}

#[tokio::test]
async fn a_lock_goes_to_the_next_when_it_is_released() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path()).await;
    let (first, second) = (served.grant().await, served.grant().await);
    let held = served.lock.lock(lock_of("job", first)).await.unwrap().into_inner();
    assert_eq!(held.key, format!("job/{first:x}"));
    let again = served.lock.lock(lock_of("job", first)).await.unwrap().into_inner();
    assert_eq!(again.key, held.key, "whoever holds it has it");
    assert_eq!(again.header.unwrap().revision, held.header.unwrap().revision);

    let mut events = served.events("job/").await;
    let mut lock = served.lock.clone();
    let waiting = tokio::spawn(async move { lock.lock(lock_of("job", second)).await });
    assert_eq!(events.next().await, (EventType::Put, format!("job/{second:x}")));
    assert!(!waiting.is_finished());
    let unlocked = served.lock.unlock(UnlockRequest { key: held.key }).await.unwrap().into_inner();
    let got = waiting.await.unwrap().unwrap().into_inner();
    assert_eq!(got.key, format!("job/{second:x}"));
    assert_eq!(got.header.unwrap().revision, unlocked.header.unwrap().revision);
}

#[tokio::test]
async fn a_lock_goes_to_the_next_when_its_lease_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path()).await;
    let (first, second, third) = (served.grant().await, served.grant().await, served.grant().await);
    served.lock.lock(lock_of("job", first)).await.unwrap();
    let mut events = served.events("job/").await;
    let wait = |lease| {
        let mut lock = served.lock.clone();
        tokio::spawn(async move { lock.lock(lock_of("job", lease)).await })
    };
    let second_waits = wait(second);
    assert_eq!(events.next().await, (EventType::Put, format!("job/{second:x}")));
    let third_waits = wait(third);
    assert_eq!(events.next().await, (EventType::Put, format!("job/{third:x}")));
    // A waiter whose lease ends is told so when its turn comes; the next after it does not wait for it.
    served.lease.lease_revoke(LeaseRevokeRequest { id: second }).await.unwrap();
    assert_eq!(events.next().await, (EventType::Delete, format!("job/{second:x}")));
    served.lease.lease_revoke(LeaseRevokeRequest { id: first }).await.unwrap();
    assert_eq!(refused(second_waits.await.unwrap()), unknown("mutex: session is expired"));
    assert_eq!(third_waits.await.unwrap().unwrap().into_inner().key, format!("job/{third:x}"));
}

#[tokio::test]
async fn a_candidate_whose_lease_has_ended_does_not_lead() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path()).await;
    let (first, second) = (served.grant().await, served.grant().await);
    served.election.campaign(campaign_of("vote", first, "a")).await.unwrap();
    let mut events = served.events("vote/").await;
    let mut election = served.election.clone();
    let waiting = tokio::spawn(async move { election.campaign(campaign_of("vote", second, "b")).await });
    assert_eq!(events.next().await, (EventType::Put, format!("vote/{second:x}")));
    served.lease.lease_revoke(LeaseRevokeRequest { id: second }).await.unwrap();
    assert_eq!(events.next().await, (EventType::Delete, format!("vote/{second:x}")));
    served.lease.lease_revoke(LeaseRevokeRequest { id: first }).await.unwrap();
    assert_eq!(refused(waiting.await.unwrap()), unknown("election: session is expired"));
}

#[tokio::test]
async fn a_waiter_that_goes_away_leaves_the_queue() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path()).await;
    let (first, second) = (served.grant().await, served.grant().await);
    served.lock.lock(lock_of("job", first)).await.unwrap();
    served.election.campaign(campaign_of("vote", first, "a")).await.unwrap();

    let mut events = served.events("job/").await;
    let mut lock = served.lock.clone();
    let waiting = tokio::spawn(async move { lock.lock(lock_of("job", second)).await });
    assert_eq!(events.next().await, (EventType::Put, format!("job/{second:x}")));
    waiting.abort();
    assert_eq!(events.next().await, (EventType::Delete, format!("job/{second:x}")));

    let mut events = served.events("vote/").await;
    let mut election = served.election.clone();
    let waiting = tokio::spawn(async move { election.campaign(campaign_of("vote", second, "b")).await });
    assert_eq!(events.next().await, (EventType::Put, format!("vote/{second:x}")));
    waiting.abort();
    assert_eq!(events.next().await, (EventType::Delete, format!("vote/{second:x}")));
}

#[tokio::test]
async fn a_lease_is_granted_to_whoever_brings_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path()).await;
    let key = served.lock.lock(lock_of("job", 0)).await.unwrap().into_inner().key;
    let kv = served.keys("job/").await.pop().unwrap();
    assert_eq!(key, format!("job/{:x}", kv.lease));
    let asked = LeaseTimeToLiveRequest { id: kv.lease, keys: false };
    assert_eq!(served.lease.lease_time_to_live(asked).await.unwrap().into_inner().granted_ttl, 60);
}

#[tokio::test]
async fn the_first_candidate_leads_until_it_resigns() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path()).await;
    let (first, second) = (served.grant().await, served.grant().await);
    let whose = || LeaderRequest { name: "vote".into() };
    assert_eq!(refused(served.election.leader(whose()).await), unknown("election: no leader"));

    let won = served.election.campaign(campaign_of("vote", first, "a")).await.unwrap().into_inner();
    let leader = won.leader.unwrap();
    let revision = won.header.unwrap().revision;
    let key = format!("vote/{first:x}").into();
    assert_eq!(leader, LeaderKey { name: "vote".into(), key, rev: revision, lease: first });
    // Once more, with another value: it still leads, and proclaims the value.
    let again = served.election.campaign(campaign_of("vote", first, "a2")).await.unwrap().into_inner();
    assert_eq!(again.leader.unwrap().rev, revision);
    let found = served.election.leader(whose()).await.unwrap().into_inner().kv.unwrap();
    assert_eq!((&found.value[..], found.create_revision), (&b"a2"[..], revision));

    let mut events = served.events("vote/").await;
    let mut election = served.election.clone();
    let waiting = tokio::spawn(async move { election.campaign(campaign_of("vote", second, "b")).await });
    assert_eq!(events.next().await, (EventType::Put, format!("vote/{second:x}")));
    let resign = ResignRequest { leader: Some(leader.clone()) };
    served.election.resign(resign.clone()).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().leader.unwrap().lease, second);
    assert_eq!(served.election.leader(whose()).await.unwrap().into_inner().kv.unwrap().value, "b");
    // The first leads no more.
    let proclaim = ProclaimRequest { leader: Some(leader), value: "late".into() };
    assert_eq!(refused(served.election.proclaim(proclaim).await), unknown("election: not leader"));
    served.election.resign(resign).await.unwrap();
    assert_eq!(served.keys("vote/").await.len(), 1);
}

#[tokio::test]
async fn an_observer_sees_each_leader_and_what_it_proclaims() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path()).await;
    let mut leaders = served.election.observe(LeaderRequest { name: "vote".into() }).await.unwrap().into_inner();
    let mut next = async || {
        let next = tokio::time::timeout(PATIENCE, leaders.message()).await.expect("a leader").unwrap().unwrap();
        let (header, kv) = (next.header.unwrap(), next.kv.unwrap());
        assert_eq!(header.revision, kv.mod_revision);
        String::from_utf8(kv.value.to_vec()).unwrap()
    };
    for value in ["a", "b"] {
        let lease = served.grant().await;
        let leader = served.election.campaign(campaign_of("vote", lease, value)).await.unwrap().into_inner().leader;
        assert_eq!(next().await, value);
        let proclaim = ProclaimRequest { leader: leader.clone(), value: "more".into() };
        served.election.proclaim(proclaim).await.unwrap();
        assert_eq!(next().await, "more");
        served.election.resign(ResignRequest { leader }).await.unwrap();
    }
}

#[tokio::test]
async fn errors_have_etcds_texts() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path()).await;
    let missing = unknown(r#""leader" field must be provided"#);
    assert_eq!(refused(served.election.proclaim(ProclaimRequest::default()).await), missing);
    assert_eq!(refused(served.election.resign(ResignRequest::default()).await), missing);
    let no_lease = unknown("etcdserver: requested lease not found");
    assert_eq!(refused(served.lock.lock(lock_of("job", 77)).await), no_lease);
    assert_eq!(refused(served.election.campaign(campaign_of("vote", 77, "")).await), no_lease);
    assert_eq!(refused(served.lock.unlock(UnlockRequest::default()).await), unknown("etcdserver: key is not provided"));
}

#[tokio::test]
async fn a_lock_waits_for_a_key_that_a_client_library_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path()).await;
    served.kv.put(PutRequest { key: "job/1234".into(), ..Default::default() }).await.unwrap();
    let lease = served.grant().await;
    let mut events = served.events("job/").await;
    let mut lock = served.lock.clone();
    let waiting = tokio::spawn(async move { lock.lock(lock_of("job", lease)).await });
    assert_eq!(events.next().await, (EventType::Put, format!("job/{lease:x}")));
    assert!(!waiting.is_finished());
    served.kv.delete_range(DeleteRangeRequest { key: "job/1234".into(), ..Default::default() }).await.unwrap();
    waiting.await.unwrap().unwrap();
}
