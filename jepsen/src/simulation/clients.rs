//! Clients: processes that ask for one thing after another, and watchers of all keys. What they are told goes to the
//! oracle.

mod past;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest, WatchCreateRequest, WatchRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    kv_client::KvClient,
    lease_client::LeaseClient,
    request_op::Request as Op,
    response_op::Response as OpResponse,
    watch_client::WatchClient,
    watch_request::RequestUnion,
};
use raft::PeerChannel;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use super::{
    network::Network,
    oracle::{Claim, Version},
    world::World,
};

/// Client numbers on the network begin here; those of members are below.
const FIRST_CLIENT: u64 = 1000;
const FIRST_WATCHER: u64 = 2000;
/// How long a client waits for an answer.
pub const CALL_LIMIT: Duration = Duration::from_secs(20);
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// What is read without asking the others may be this old without being wrong.
const ALL: (&[u8], &[u8]) = (b"\0", b"\0");

/// What the clients of a run do.
#[derive(Debug, Clone)]
pub struct Load {
    pub clients: u64,
    /// Between two requests of a client: up to twice this.
    pub pause: Duration,
    pub keys: u32,
}

/// Which members clients can call.
pub type Endpoints = Arc<parking_lot::Mutex<Vec<u64>>>;

/// What became of a request.
enum Told<T> {
    Answer(T),
    /// Certainly not done.
    Refused(Status),
    /// It may have been done, or be done later.
    Unknown,
}

struct Client {
    number: u64,
    world: Arc<World>,
    network: Arc<Network>,
    endpoints: Endpoints,
    rng: StdRng,
    load: Load,
    written: u64,
    lease: Option<i64>,
}

/// Starts the clients. They go on until the runtime ends.
pub fn start(world: &Arc<World>, network: &Arc<Network>, endpoints: &Endpoints, load: &Load, rng: &mut StdRng) {
    for number in 0..load.clients {
        let client = Client {
            number,
            world: world.clone(),
            network: network.clone(),
            endpoints: endpoints.clone(),
            rng: StdRng::seed_from_u64(rng.random()),
            load: load.clone(),
            written: 0,
            lease: None,
        };
        tokio::spawn(client.run());
    }
}

fn revision_of(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

impl Client {
    async fn run(mut self) {
        loop {
            let pause = self.load.pause.mul_f64(self.rng.random_range(0.0..2.0));
            sleep(pause).await;
            match self.rng.random_range(0..100) {
                0..25 => self.put(0).await,
                25..31 => self.put_with_lease().await,
                31..39 => self.get(false, false).await,
                39..45 => self.get(false, true).await,
                45..51 => self.get(true, false).await,
                51..67 => self.compare_and_put().await,
                67..74 => self.put_several().await,
                74..83 => self.delete().await,
                83..88 => self.read_past().await,
                88..93 => self.watch_past().await,
                93..96 => self.renew().await,
                96..97 => self.revoke().await,
                _ => self.compact().await,
            }
        }
    }

    fn channel(&mut self) -> Option<(u64, PeerChannel)> {
        let endpoints = self.endpoints.lock();
        if endpoints.is_empty() {
            return None;
        }
        let member = endpoints[self.rng.random_range(0..endpoints.len())];
        drop(endpoints);
        Some((member, self.network.channel(FIRST_CLIENT + self.number, member)))
    }

    fn key(&mut self) -> Bytes {
        format!("k{:04}", self.rng.random_range(0..self.load.keys)).into()
    }

    /// No two writes put the same value.
    fn value(&mut self) -> Bytes {
        self.written += 1;
        let value: Bytes = match self.rng.random_range(0..100) {
            0 => format!("{}.{}.{}", self.number, self.written, "x".repeat(3000)).into(),
            _ => format!("{}.{}", self.number, self.written).into(),
        };
        self.world.oracle().asked(&value);
        value
    }

    fn name(&self, what: &str, member: u64) -> String {
        format!("client {} asked n{member}: {what}", self.number)
    }

    async fn told<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>, what: &str) -> Told<T> {
        let told = match timeout(CALL_LIMIT, call).await {
            Ok(Ok(answer)) => Told::Answer(answer.into_inner()),
            Ok(Err(status)) => match status.code() {
                Code::InvalidArgument
                | Code::NotFound
                | Code::OutOfRange
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::PermissionDenied => Told::Refused(status),
                _ => Told::Unknown,
            },
            Err(_) => Told::Unknown,
        };
        match &told {
            Told::Answer(_) => self.world.mark("answers"),
            Told::Refused(status) => self.world.trace(format_args!("{what}: refused: {}", status.message())),
            Told::Unknown => {
                self.world.mark("answers missing");
                self.world.trace(format_args!("{what}: no answer"));
            }
        }
        told
    }

    /// A write was answered.
    fn wrote(&self, what: String, floor: i64, revision: i64, values: Vec<(Bytes, Bytes)>) {
        self.world.trace(format_args!("{what}: done at {revision}"));
        let checked = {
            let mut oracle = self.world.oracle();
            let ordered = oracle.told(revision, floor, true, &what);
            ordered.and_then(|()| oracle.claim(revision, Claim::Wrote { values }, what))
        };
        self.world.check(checked);
    }

    fn refused(&self, value: &Bytes, what: &str) {
        let checked = self.world.oracle().refused(value, what);
        self.world.check(checked);
    }

    async fn put(&mut self, lease: i64) {
        let Some((member, channel)) = self.channel() else { return };
        let (key, value) = (self.key(), self.value());
        let floor = self.world.oracle().floor();
        let what = self.name(&format!("put {} (lease {lease})", key.escape_ascii()), member);
        let request = PutRequest { key: key.clone(), value: value.clone(), lease, ..Default::default() };
        match self.told(KvClient::new(channel).put(request), &what).await {
            Told::Answer(answer) => {
                self.wrote(what, floor, revision_of(answer.header.as_ref()), vec![(key, value)]);
            }
            Told::Refused(_) => self.refused(&value, &what),
            Told::Unknown => {}
        }
    }

    async fn put_with_lease(&mut self) {
        if self.lease.is_none() {
            let Some((member, channel)) = self.channel() else { return };
            let ttl = self.rng.random_range(5..60);
            // An id that nobody else takes, so that it is known when the answer is lost.
            let id = self.rng.random_range(1..i64::MAX);
            let began = self.world.now();
            self.world.oracle().lease_lives(id, began, ttl);
            let what = self.name("grant", member);
            let request = LeaseGrantRequest { id, ttl };
            if let Told::Answer(answer) = self.told(LeaseClient::new(channel).lease_grant(request), &what).await {
                if answer.ttl < ttl {
                    self.world.violated(format!("{what}: {ttl} s were asked for, {} s were given", answer.ttl));
                }
                self.lease = Some(id);
            }
        }
        if let Some(lease) = self.lease {
            self.put(lease).await;
        }
    }

    async fn renew(&mut self) {
        let Some(id) = self.lease else { return };
        let Some((member, channel)) = self.channel() else { return };
        let began = self.world.now();
        let what = self.name("keep alive", member);
        let call = async {
            let requests = futures::stream::iter([LeaseKeepAliveRequest { id }]);
            let mut answers = LeaseClient::new(channel).lease_keep_alive(requests).await?.into_inner();
            let answer = answers.message().await?.ok_or_else(|| Status::unavailable("no answer"))?;
            Ok(tonic::Response::new(answer))
        };
        match self.told(call, &what).await {
            Told::Answer(answer) if answer.ttl > 0 => {
                self.world.trace(format_args!("{what}: {}", answer.ttl));
                self.world.oracle().lease_lives(id, began, answer.ttl);
                self.world.mark("leases renewed");
            }
            Told::Answer(_) => self.lease = None,
            Told::Refused(_) | Told::Unknown => {}
        }
    }

    async fn revoke(&mut self) {
        let Some(id) = self.lease.take() else { return };
        let Some((member, channel)) = self.channel() else { return };
        self.world.oracle().lease_is_revoked(id);
        let what = self.name("revoke", member);
        self.told(LeaseClient::new(channel).lease_revoke(LeaseRevokeRequest { id }), &what).await;
    }

    async fn get(&mut self, serializable: bool, is_range: bool) {
        let Some((member, channel)) = self.channel() else { return };
        let key = self.key();
        let to: Bytes = match is_range {
            true => "k9999".into(),
            false => [&key[..], &[0]].concat().into(),
        };
        let floor = self.world.oracle().floor();
        let what = self.name(&format!("get {} (serializable: {serializable})", key.escape_ascii()), member);
        let range_end = if is_range { to.clone() } else { Bytes::new() };
        let request = RangeRequest { key: key.clone(), range_end, serializable, ..Default::default() };
        if let Told::Answer(answer) = self.told(KvClient::new(channel).range(request), &what).await {
            let revision = revision_of(answer.header.as_ref());
            self.world.trace(format_args!("{what}: {} keys at {revision}", answer.kvs.len()));
            let keys = answer.kvs.iter().map(|kv| (kv.key.clone(), Version::of(kv))).collect();
            let checked = {
                let mut oracle = self.world.oracle();
                let ordered = if serializable { Ok(()) } else { oracle.told(revision, floor, false, &what) };
                ordered.and_then(|()| oracle.claim(revision, Claim::Holds { from: key, to, keys }, what))
            };
            self.world.check(checked);
        }
    }

    /// Reads a key and puts it if it has not been changed since.
    async fn compare_and_put(&mut self) {
        let Some((member, channel)) = self.channel() else { return };
        let key = self.key();
        let what = self.name(&format!("read to compare {}", key.escape_ascii()), member);
        let request = RangeRequest { key: key.clone(), serializable: self.rng.random(), ..Default::default() };
        let mut kv = KvClient::new(channel);
        let Told::Answer(read) = self.told(kv.range(request), &what).await else { return };
        let expected = read.kvs.first().map_or(0, |kv| kv.mod_revision);
        let value = self.value();
        let floor = self.world.oracle().floor();
        let what = self.name(&format!("put {} if modified at {expected}", key.escape_ascii()), member);
        let request = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal as i32,
                target: CompareTarget::Mod as i32,
                key: key.clone(),
                target_union: Some(TargetUnion::ModRevision(expected)),
                ..Default::default()
            }],
            success: vec![op_put(&key, &value)],
            failure: vec![op_get(&key)],
        };
        match self.told(kv.txn(request), &what).await {
            Told::Answer(answer) => {
                let revision = revision_of(answer.header.as_ref());
                let equal = answer.succeeded;
                if equal {
                    self.wrote(what.clone(), floor, revision, vec![(key.clone(), value)]);
                } else {
                    self.refused(&value, &what);
                    let kvs = answer.responses.into_iter().find_map(|op| match op.response {
                        Some(OpResponse::ResponseRange(range)) => Some(range.kvs),
                        _ => None,
                    });
                    let keys = kvs.unwrap_or_default().iter().map(|kv| (kv.key.clone(), Version::of(kv))).collect();
                    let to = [&key[..], &[0]].concat().into();
                    let claim = Claim::Holds { from: key.clone(), to, keys };
                    let checked = {
                        let mut oracle = self.world.oracle();
                        let ordered = oracle.told(revision, floor, false, &what);
                        ordered.and_then(|()| oracle.claim(revision, claim, what.clone()))
                    };
                    self.world.check(checked);
                }
                let checked = self.world.oracle().claim(revision, Claim::Compared { key, expected, equal }, what);
                self.world.check(checked);
            }
            Told::Refused(_) => self.refused(&value, &what),
            Told::Unknown => {}
        }
    }

    /// Puts some keys at one revision.
    async fn put_several(&mut self) {
        let Some((member, channel)) = self.channel() else { return };
        let count = self.load.keys.max(4);
        let first = self.rng.random_range(0..count);
        let keys = (first..first + 3).map(|n| Bytes::from(format!("k{:04}", n % count)));
        let values: Vec<(Bytes, Bytes)> = keys.map(|key| (key, self.value())).collect();
        let floor = self.world.oracle().floor();
        let what = self.name("put three", member);
        let success = values.iter().map(|(key, value)| op_put(key, value)).collect();
        let request = TxnRequest { success, ..Default::default() };
        match self.told(KvClient::new(channel).txn(request), &what).await {
            Told::Answer(answer) => self.wrote(what, floor, revision_of(answer.header.as_ref()), values),
            Told::Refused(_) => values.iter().for_each(|(_, value)| self.refused(value, &what)),
            Told::Unknown => {}
        }
    }

    async fn delete(&mut self) {
        let Some((member, channel)) = self.channel() else { return };
        let key = self.key();
        let floor = self.world.oracle().floor();
        self.world.oracle().asked_to_delete(&key);
        let what = self.name(&format!("delete {}", key.escape_ascii()), member);
        let request = DeleteRangeRequest { key: key.clone(), ..Default::default() };
        if let Told::Answer(answer) = self.told(KvClient::new(channel).delete_range(request), &what).await {
            let revision = revision_of(answer.header.as_ref());
            self.world.trace(format_args!("{what}: {} at {revision}", answer.deleted));
            let checked = {
                let mut oracle = self.world.oracle();
                if answer.deleted == 0 {
                    oracle.found_nothing_to_delete(&key);
                }
                let ordered = oracle.told(revision, floor, answer.deleted > 0, &what);
                ordered.and_then(|()| oracle.claim(revision, Claim::Deleted { key, count: answer.deleted }, what))
            };
            self.world.check(checked);
        }
    }

    async fn compact(&mut self) {
        let Some((member, channel)) = self.channel() else { return };
        // Watchers that are away for long shall now and then find what they want compacted, but not all of them.
        let revision = self.world.oracle().frontier() - self.rng.random_range(0..50);
        let what = self.name(&format!("compact at {revision}"), member);
        let request = CompactionRequest { revision, physical: self.rng.random_bool(0.2) };
        self.world.oracle().asked_to_compact(revision);
        if let Told::Answer(_) = self.told(KvClient::new(channel).compact(request), &what).await {
            self.world.trace(format_args!("{what}: done"));
            self.world.oracle().compacted_at(revision);
            self.world.mark("compactions");
        }
    }
}

fn op_put(key: &Bytes, value: &Bytes) -> RequestOp {
    let put = PutRequest { key: key.clone(), value: value.clone(), ..Default::default() };
    RequestOp { request: Some(Op::RequestPut(put)) }
}

fn op_get(key: &Bytes) -> RequestOp {
    let get = RangeRequest { key: key.clone(), ..Default::default() };
    RequestOp { request: Some(Op::RequestRange(get)) }
}

/// Watches all keys through one member for ever, and resumes where it was cut.
pub async fn watch(world: Arc<World>, network: Arc<Network>, member: u64) {
    let mut next = 1;
    loop {
        let channel = network.channel(FIRST_WATCHER + member, member);
        if let Err(status) = watch_once(&world, channel, member, &mut next).await {
            world.trace(format_args!("the watch at n{member} ends before {next}: {}", status.message()));
        }
        world.mark("watches resumed");
        sleep(RETRY_PAUSE).await;
    }
}

async fn watch_once(world: &World, channel: PeerChannel, member: u64, next: &mut i64) -> Result<(), Status> {
    let create = WatchCreateRequest {
        key: Bytes::from_static(ALL.0),
        range_end: Bytes::from_static(ALL.1),
        start_revision: *next,
        prev_kv: true,
        progress_notify: true,
        ..Default::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures::StreamExt::chain(futures::stream::iter([create]), futures::stream::pending());
    let mut client = WatchClient::new(channel);
    let answers = timeout(CALL_LIMIT, client.watch(requests)).await;
    let mut answers = answers.map_err(|_| Status::unavailable("no answer"))??.into_inner();
    while let Some(answer) = answers.message().await? {
        let revision = revision_of(answer.header.as_ref());
        if answer.canceled {
            if answer.compact_revision > 0 {
                world.mark("watches compacted");
                if answer.compact_revision < *next {
                    world.violated(format!("n{member} called {next} compacted by {}", answer.compact_revision));
                }
                // Only what nobody has seen yet would be missed.
                *next = answer.compact_revision;
            }
            return Err(Status::unavailable(answer.cancel_reason));
        }
        let mut events = &answer.events[..];
        if let Some(last) = events.last().and_then(|event| event.kv.as_ref())
            && last.mod_revision > revision
        {
            world.violated(format!("n{member} told of revision {} at revision {revision}", last.mod_revision));
        }
        while let Some(at) = events.first().and_then(|event| event.kv.as_ref()).map(|kv| kv.mod_revision) {
            let is_other = |event: &proto::mvccpb::Event| event.kv.as_ref().is_none_or(|kv| kv.mod_revision != at);
            let count = events.iter().position(is_other).unwrap_or(events.len());
            if at < *next {
                world.violated(format!("n{member} told of revision {at}, after {}", *next - 1));
            }
            world.trace(format_args!("n{member} tells of {at}: {count} events"));
            let checked = world.oracle().observe(at, &events[..count], world.now());
            world.check(checked);
            *next = at + 1;
            events = &events[count..];
        }
        if answer.events.is_empty() && !answer.created && answer.compact_revision == 0 {
            // Progress: all up to here has been told.
            if revision + 1 < *next {
                world.violated(format!("n{member} told of progress to {revision}, after {}", *next - 1));
            }
            let is_missed = world.oracle().frontier() >= revision && *next <= revision;
            if is_missed {
                world.violated(format!("n{member} told of progress to {revision} before {next}"));
            }
            world.mark("progress told");
            *next = (*next).max(revision + 1);
        }
    }
    Ok(())
}
