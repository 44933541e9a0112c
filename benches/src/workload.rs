//! What the operations are.
//!
//! | name | one operation |
//! |---|---|
//! | `put` | Put of one value under a key of the key space |
//! | `get`, `get-serializable` | Range of one key |
//! | `list` | Range of all keys of the key space, values included |
//! | `kube` | the transactions Kubernetes sends: create (`mod_revision == 0`, then put), update (`mod_revision == x`, then put, else range), one update in fifty with a stale `x` |
//! | `lease` | one keep-alive on an open stream |
//! | `watch` | one event at one watcher: [`crate::fanout`] |
//!
//! Keys and values are built before the measurement; an operation clones reference counts.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use client::Connection;
use proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest, RangeRequest, RequestOp,
    TxnRequest, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    kv_client::KvClient,
    lease_client::LeaseClient,
    request_op::Request,
    response_op::Response,
};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::{
    drive::{self, Measured, Settings, Worker},
    fanout, fill,
};

/// Objects one client of `kube` keeps alive; from then on it only updates.
const OBJECTS_PER_CLIENT: usize = 200;
/// A list answers megabytes; tonic's default limit is 4 MiB.
const MAX_ANSWER_BYTES: usize = 1 << 30;
const LEASE_TTL_SECONDS: i64 = 600;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Put,
    Get { serializable: bool },
    List,
    Kube,
    Watch,
    Lease,
}

/// A workload and its number of clients, written `put:1000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub kind: Kind,
    pub clients: usize,
}

impl Spec {
    /// One connection per 20 clients, and every endpoint is used where there are clients enough.
    pub fn connections(&self, endpoints: usize) -> usize {
        self.clients.div_ceil(20).max(endpoints.min(self.clients))
    }
}

impl Kind {
    const NAMES: [(&'static str, Kind, usize); 7] = [
        ("put", Kind::Put, 100),
        ("get", Kind::Get { serializable: false }, 100),
        ("get-serializable", Kind::Get { serializable: true }, 100),
        ("list", Kind::List, 4),
        ("kube", Kind::Kube, 100),
        ("watch", Kind::Watch, 100),
        ("lease", Kind::Lease, 100),
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, ..) = Kind::NAMES.iter().find(|(_, kind, _)| kind == self).expect("every kind has a name");
        f.write_str(name)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.clients)
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Spec, String> {
        let (name, clients) = text.split_once(':').map_or((text, None), |(name, clients)| (name, Some(clients)));
        let Some((_, kind, default)) = Kind::NAMES.iter().find(|(known, ..)| *known == name) else {
            let known: Vec<&str> = Kind::NAMES.iter().map(|(name, ..)| *name).collect();
            return Err(format!("unknown workload {name}; there are: {}", known.join(", ")));
        };
        let clients = match clients {
            None => *default,
            Some(number) => match number.parse() {
                Ok(clients) if clients > 0 => clients,
                _ => return Err(format!("{number} is not a number of clients")),
            },
        };
        Ok(Spec { kind: *kind, clients })
    }
}

/// Prepares the data the workload needs, then runs it.
pub async fn run(spec: &Spec, settings: &Settings) -> anyhow::Result<Measured> {
    let channels = drive::connect(&settings.endpoints, settings.connections).await?;
    let channel = |client: usize| channels[client % channels.len()].clone();
    let shape = &settings.shape;
    let prefix = format!("/bench/{spec}/");
    let fill_options = fill::Options {
        keys: shape.keys,
        value_size: shape.value_size,
        batch: 64,
        clients: 16,
        prefix: prefix.clone(),
    };
    match spec.kind {
        Kind::Put => {
            let keys = KeySpace::new(&prefix, shape.keys, shape.sequential);
            let value = value(shape.value_size);
            let workers = (0..spec.clients)
                .map(|i| Put { kv: kv(channel(i)), keys: keys.clone(), value: value.clone(), random: random(i) })
                .collect();
            drive::run(settings, workers).await
        }
        Kind::Get { serializable } => {
            fill::fill(&channels, &fill_options).await?;
            let keys = KeySpace::new(&prefix, shape.keys, shape.sequential);
            let workers = (0..spec.clients)
                .map(|i| Get { kv: kv(channel(i)), keys: keys.clone(), serializable, random: random(i) })
                .collect();
            drive::run(settings, workers).await
        }
        Kind::List => {
            fill::fill(&channels, &fill_options).await?;
            let request =
                RangeRequest { key: prefix.clone().into(), range_end: prefix_end(&prefix), ..Default::default() };
            let workers = (0..spec.clients)
                .map(|i| List { kv: kv(channel(i)), request: request.clone(), expected: shape.keys as i64 })
                .collect();
            drive::run(settings, workers).await
        }
        Kind::Kube => {
            let value = value(shape.value_size.max(1024));
            let run = rand::random::<u32>();
            let workers = (0..spec.clients)
                .map(|i| Kube {
                    kv: kv(channel(i)),
                    prefix: format!("/registry/pods/run-{run:08x}/client-{i:05}/pod-"),
                    objects: Vec::with_capacity(OBJECTS_PER_CLIENT),
                    value: value.clone(),
                    random: random(i),
                })
                .collect();
            drive::run(settings, workers).await
        }
        Kind::Lease => {
            let mut workers = Vec::with_capacity(spec.clients);
            for i in 0..spec.clients {
                workers.push(KeepAlive::open(channel(i)).await?);
            }
            drive::run(settings, workers).await
        }
        Kind::Watch => fanout::run(spec.clients, settings, &channels, &prefix).await,
    }
}

pub fn kv(channel: Connection) -> KvClient<Connection> {
    KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

fn random(client: usize) -> SmallRng {
    SmallRng::seed_from_u64(client as u64 + 1)
}

/// A value that does not compress: compression would flatter one store over the other.
pub fn value(size: usize) -> Bytes {
    let mut value = vec![0; size];
    SmallRng::seed_from_u64(size as u64).fill_bytes(&mut value);
    value.into()
}

pub fn key(prefix: &str, index: usize) -> Bytes {
    format!("{prefix}{index:012}").into()
}

/// The end of the range of all keys that begin with `prefix`, which ends in an ASCII character.
pub fn prefix_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix is not empty") += 1;
    end.into()
}

/// The keys of a workload, ready to send.
#[derive(Clone)]
struct KeySpace {
    keys: Arc<[Bytes]>,
    /// The next key, for a sequential walk.
    next: Option<Arc<AtomicUsize>>,
}

impl KeySpace {
    fn new(prefix: &str, count: usize, sequential: bool) -> KeySpace {
        KeySpace { keys: (0..count).map(|i| key(prefix, i)).collect(), next: sequential.then(Arc::default) }
    }

    fn pick(&self, random: &mut SmallRng) -> Bytes {
        let index = match &self.next {
            Some(next) => next.fetch_add(1, Ordering::Relaxed) % self.keys.len(),
            None => random.random_range(0..self.keys.len()),
        };
        self.keys[index].clone()
    }
}

struct Put {
    kv: KvClient<Connection>,
    keys: KeySpace,
    value: Bytes,
    random: SmallRng,
}

impl Worker for Put {
    async fn step(&mut self) -> Result<(), Status> {
        let key = self.keys.pick(&mut self.random);
        self.kv.put(PutRequest { key, value: self.value.clone(), ..Default::default() }).await?;
        Ok(())
    }
}

struct Get {
    kv: KvClient<Connection>,
    keys: KeySpace,
    serializable: bool,
    random: SmallRng,
}

impl Worker for Get {
    async fn step(&mut self) -> Result<(), Status> {
        let key = self.keys.pick(&mut self.random);
        let request = RangeRequest { key, serializable: self.serializable, ..Default::default() };
        let answer = self.kv.range(request).await?.into_inner();
        // On a cluster, a serializable read may ask a member that has not applied the filling yet; a linearizable one not.
        if answer.kvs.is_empty() && !self.serializable {
            return Err(Status::data_loss("a key that was put is not there"));
        }
        Ok(())
    }
}

struct List {
    kv: KvClient<Connection>,
    request: RangeRequest,
    expected: i64,
}

impl Worker for List {
    async fn step(&mut self) -> Result<(), Status> {
        let answer = self.kv.range(self.request.clone()).await?.into_inner();
        if answer.count != self.expected || answer.kvs.len() as i64 != self.expected {
            return Err(Status::data_loss(format!("{} keys listed, {} put", answer.kvs.len(), self.expected)));
        }
        Ok(())
    }
}

/// An object and the revision at which this client last saw it changed.
struct Object {
    key: Bytes,
    mod_revision: i64,
}

struct Kube {
    kv: KvClient<Connection>,
    prefix: String,
    objects: Vec<Object>,
    value: Bytes,
    random: SmallRng,
}

impl Kube {
    fn create_or_update(key: &Bytes, mod_revision: i64, value: Bytes, or_read: bool) -> TxnRequest {
        let unchanged = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(mod_revision)),
            ..Default::default()
        };
        let put = Request::RequestPut(PutRequest { key: key.clone(), value, ..Default::default() });
        let read = Request::RequestRange(RangeRequest { key: key.clone(), ..Default::default() });
        let op = |request| RequestOp { request: Some(request) };
        TxnRequest {
            compare: vec![unchanged],
            success: vec![op(put)],
            failure: if or_read { vec![op(read)] } else { Vec::new() },
        }
    }
}

/// The revision at which an object was last changed, as a transaction answers it.
fn changed_at(answer: &TxnResponse) -> Option<i64> {
    if answer.succeeded {
        return answer.header.as_ref().map(|header| header.revision);
    }
    match answer.responses.first()?.response.as_ref()? {
        Response::ResponseRange(range) => range.kvs.first().map(|kv| kv.mod_revision),
        _ => None,
    }
}

impl Worker for Kube {
    async fn step(&mut self) -> Result<(), Status> {
        let create =
            self.objects.len() < OBJECTS_PER_CLIENT && (self.objects.is_empty() || self.random.random_range(0..5) == 0);
        if create {
            let key = key(&self.prefix, self.objects.len());
            let answer = self.kv.txn(Kube::create_or_update(&key, 0, self.value.clone(), false)).await?.into_inner();
            let mod_revision = changed_at(&answer)
                .ok_or_else(|| Status::data_loss("an object exists that nobody else could have created"))?;
            self.objects.push(Object { key, mod_revision });
            return Ok(());
        }
        let index = self.random.random_range(0..self.objects.len());
        let object = &mut self.objects[index];
        let stale = self.random.random_range(0..50) == 0;
        let seen = if stale { object.mod_revision - 1 } else { object.mod_revision };
        let request = Kube::create_or_update(&object.key, seen, self.value.clone(), true);
        let answer = self.kv.txn(request).await?.into_inner();
        if answer.succeeded == stale {
            return Err(Status::data_loss("an update was decided against the object's revision"));
        }
        object.mod_revision = changed_at(&answer).ok_or_else(|| Status::data_loss("an object is gone"))?;
        Ok(())
    }
}

struct KeepAlive {
    id: i64,
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAlive {
    async fn open(channel: Connection) -> Result<KeepAlive, Status> {
        let mut lease = LeaseClient::new(channel);
        let id = lease.lease_grant(LeaseGrantRequest { ttl: LEASE_TTL_SECONDS, id: 0 }).await?.into_inner().id;
        // One request is under way at a time.
        let (requests, receiver) = mpsc::channel(1);
        // The server may answer with headers only after the first request.
        requests.send(LeaseKeepAliveRequest { id }).await.expect("the receiver is held below");
        let answers = lease.lease_keep_alive(ReceiverStream::new(receiver)).await?.into_inner();
        let mut keep_alive = KeepAlive { id, requests, answers };
        keep_alive.answered().await?;
        Ok(keep_alive)
    }

    async fn answered(&mut self) -> Result<(), Status> {
        match self.answers.message().await? {
            Some(answer) if answer.ttl > 0 => Ok(()),
            Some(_) => Err(Status::not_found("the lease has expired")),
            None => Err(Status::unavailable("the keep-alive stream was closed")),
        }
    }
}

impl Worker for KeepAlive {
    async fn step(&mut self) -> Result<(), Status> {
        let request = LeaseKeepAliveRequest { id: self.id };
        self.requests.send(request).await.map_err(|_| Status::unavailable("the keep-alive stream was closed"))?;
        self.answered().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_written_with_or_without_its_clients() {
        let spec: Spec = "put:1000".parse().unwrap();
        assert_eq!(spec, Spec { kind: Kind::Put, clients: 1000 });
        assert_eq!("list".parse::<Spec>().unwrap().clients, 4);
        for text in ["", "pot", "put:", "put:0", "put:x"] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
        for (name, ..) in Kind::NAMES {
            assert_eq!(format!("{name}:7").parse::<Spec>().unwrap().to_string(), format!("{name}:7"));
        }
    }

    #[test]
    fn connections_reach_every_endpoint_when_clients_suffice() {
        let spec = |clients| Spec { kind: Kind::Put, clients };
        assert_eq!(spec(1).connections(3), 1);
        assert_eq!(spec(10).connections(3), 3);
        assert_eq!(spec(1000).connections(3), 50);
    }

    #[test]
    fn a_key_space_hands_out_every_key_in_order() {
        let keys = KeySpace::new("p/", 3, true);
        let mut random = random(0);
        let picked: Vec<Bytes> = (0..4).map(|_| keys.pick(&mut random)).collect();
        assert_eq!(picked, [key("p/", 0), key("p/", 1), key("p/", 2), key("p/", 0)]);
        assert!(picked.iter().all(|key| key.as_ref() < prefix_end("p/").as_ref()));
    }
}
