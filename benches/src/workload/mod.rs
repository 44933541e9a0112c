//! What the operations are.
//!
//! | name | one operation | module |
//! |---|---|---|
//! | `put`, `put-sequential` | Put of one value under a key of the key space | [`kv`] |
//! | `txn-put` | a transaction of `--txn-ops` puts | [`kv`] |
//! | `get`, `get-serializable` | Range of one key | [`kv`] |
//! | `range` | Range of 100 keys | [`kv`] |
//! | `list` | Range of all keys of the key space, with values of 1 KiB at least | [`kv`] |
//! | `stm` | a key read, and put if it is still the same | [`stm`] |
//! | `lease` | one keep-alive on an open stream | [`lease`] |
//! | `watch` | one event at one watcher; one writer | [`fanout`] |
//! | `watch-latency` | a put, and its event | [`watch`] |
//! | `watch-get` | a serializable get, while so many watchers catch up with history, each twice a second at most | [`watch`] |
//! | `kube` | the transactions Kubernetes sends: create, update, delete by `mod_revision`, 1 KiB | [`kube`] |
//! | `kube-update` | an update of an object of 1 KiB by `mod_revision` | [`kube`] |
//! | `kube-compact` | the same, with a compaction every second | [`kube`] |
//! | `kube-lease` | a node's lease renewed: an update of 500 B | [`kube`] |
//! | `kube-events` | an event created on a lease | [`kube`] |
//! | `kube-page` | 500 of `--objects` objects of 1 KiB, listed page by page at one revision | [`kv`] |
//! | `kube-watch` | one event at one watcher of all objects, progress asked for every 100 ms; 20 clients update | [`kube`] |
//!
//! Keys and values are built before the measurement; an operation clones reference counts.

mod fanout;
mod kube;
pub mod kv;
pub mod lease;
mod stm;
mod watch;

use std::{
    fmt,
    ops::RangeInclusive,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};

use crate::{
    Shape,
    drive::{self, Client},
    fill,
    measure::{Measured, Settings},
    wire::protobuf,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Put { sequential: bool },
    TxnPut,
    Get { serializable: bool },
    Range,
    List,
    Stm,
    Lease,
    Watch,
    WatchLatency,
    WatchGet,
    Kube,
    KubeUpdate,
    KubeCompact,
    KubeLease,
    KubeEvents,
    KubePage,
    KubeWatch,
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

/// Objects of Kubernetes, and what lists are made of.
const OBJECT_BYTES: usize = 1024;
const NODE_LEASE_BYTES: usize = 500;
const PAGE: i64 = 500;
const WATCHED_UPDATERS: usize = 20;
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
const COMPACT_EVERY: Duration = Duration::from_secs(1);

impl Kind {
    /// Names, and how many clients there are unless said.
    const NAMES: [(&'static str, Kind, usize); 19] = [
        ("put", Kind::Put { sequential: false }, 100),
        ("put-sequential", Kind::Put { sequential: true }, 100),
        ("txn-put", Kind::TxnPut, 100),
        ("get", Kind::Get { serializable: false }, 100),
        ("get-serializable", Kind::Get { serializable: true }, 100),
        ("range", Kind::Range, 100),
        ("list", Kind::List, 4),
        ("stm", Kind::Stm, 100),
        ("lease", Kind::Lease, 1000),
        ("watch", Kind::Watch, 1000),
        ("watch-latency", Kind::WatchLatency, 10),
        ("watch-get", Kind::WatchGet, 10),
        ("kube", Kind::Kube, 300),
        ("kube-update", Kind::KubeUpdate, 300),
        ("kube-compact", Kind::KubeCompact, 300),
        ("kube-lease", Kind::KubeLease, 300),
        ("kube-events", Kind::KubeEvents, 100),
        ("kube-page", Kind::KubePage, 4),
        ("kube-watch", Kind::KubeWatch, 10),
    ];

    /// The keys that are there when it begins: what they begin with, how many, and the size of their values.
    fn filled(self, prefix: &str, shape: &Shape) -> Option<(String, usize, usize)> {
        let objects = shape.value_size.max(OBJECT_BYTES);
        let filled = |prefix: &str, keys, size| Some((prefix.to_string(), keys, size));
        match self {
            Kind::Get { .. } | Kind::Range | Kind::WatchGet => filled(prefix, shape.keys, shape.value_size),
            Kind::List | Kind::KubeUpdate | Kind::KubeCompact | Kind::KubeWatch => filled(prefix, shape.keys, objects),
            Kind::KubeLease => filled(prefix, shape.keys, NODE_LEASE_BYTES),
            Kind::KubePage => filled(prefix, shape.objects, objects),
            _ => None,
        }
    }

    /// Whether an operation is a put of one value.
    pub fn is_put(self) -> bool {
        matches!(self, Kind::Put { .. })
    }

    /// The size of the values that an echo server has to answer, and how many; `None` where made-up answers would be
    /// wrong.
    pub fn echoed(self, shape: &Shape) -> Option<(usize, usize)> {
        let objects = shape.value_size.max(OBJECT_BYTES);
        match self {
            Kind::Put { .. } | Kind::TxnPut | Kind::Get { .. } | Kind::Range | Kind::Watch => {
                Some((shape.value_size, shape.keys))
            }
            Kind::List | Kind::KubeUpdate | Kind::KubeLease | Kind::KubeEvents => Some((objects, shape.keys)),
            Kind::KubePage => Some((objects, shape.objects)),
            Kind::Lease => Some((0, shape.keys)),
            _ => None,
        }
    }

    fn prefix(self, spec: &Spec) -> String {
        match self {
            Kind::KubeLease => "/registry/leases/kube-node-lease/node-".to_string(),
            Kind::KubeUpdate | Kind::KubeCompact | Kind::KubePage | Kind::KubeWatch => {
                format!("/registry/pods/{}/pod-", spec.to_string().replace(':', "-"))
            }
            _ => format!("/bench/{spec}/"),
        }
    }
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
    let shape = &settings.shape;
    let prefix = spec.kind.prefix(spec);
    let mut history = 0..=0;
    if let Some((prefix, keys, value_size)) = spec.kind.filled(&prefix, shape) {
        let options = fill::Options { first: 0, keys, value_size, batch: 64, clients: 16, prefix };
        history = fill::fill(&fill::connect(&settings.endpoints, 4).await?, &options).await?.revisions;
    }
    run_on(spec, settings, &prefix, history).await
}

/// Runs a workload against a server that answers as if all keys were there.
pub async fn run_unfilled(spec: &Spec, settings: &Settings) -> anyhow::Result<Measured> {
    run_on(spec, settings, &spec.kind.prefix(spec), 0..=0).await
}

async fn run_on(
    spec: &Spec,
    settings: &Settings,
    prefix: &str,
    history: RangeInclusive<i64>,
) -> anyhow::Result<Measured> {
    if spec.kind == Kind::Watch {
        return fanout::run(spec.clients, settings, prefix).await;
    }
    drive::run(settings, clients(spec, &settings.shape, prefix, history)).await
}

fn clients(spec: &Spec, shape: &Shape, prefix: &str, history: RangeInclusive<i64>) -> Vec<Box<dyn Client>> {
    let keys = |sequential| KeySpace::new(prefix, shape.keys, sequential);
    let (small, object) = (value(shape.value_size), value(shape.value_size.max(OBJECT_BYTES)));
    let run = rand::random::<u32>();
    let updates = |value: Bytes| {
        each(spec, move |i| kube::Updates::new(prefix, shape.keys, i, spec.clients, kube::Values::Same(value.clone())))
    };
    match spec.kind {
        Kind::Put { sequential } => {
            let keys = keys(sequential || shape.sequential);
            each(spec, |i| kv::Put::new(keys.of(i), small.clone()))
        }
        Kind::TxnPut => {
            let keys = keys(shape.sequential);
            each(spec, |i| kv::TxnPut::new(keys.of(i), small.clone(), shape.txn_ops.min(shape.keys)))
        }
        Kind::Get { serializable } => {
            let keys = keys(shape.sequential);
            each(spec, |i| kv::Get::new(keys.of(i), serializable))
        }
        Kind::Range => {
            let keys = keys(shape.sequential);
            each(spec, |i| kv::Range::new(keys.of(i), prefix))
        }
        Kind::List => each(spec, |_| kv::List::new(prefix, shape.keys)),
        Kind::Stm => {
            let keys = keys(false);
            each(spec, |i| stm::Stm::new(keys.of(i), small.clone()))
        }
        Kind::Lease => each(spec, |_| lease::KeepAlive::default()),
        Kind::Watch => unreachable!("it has clients of its own"),
        Kind::WatchLatency => each(spec, |i| watch::RoundTrip::new(key(prefix, i), small.clone())),
        Kind::WatchGet => {
            let mut clients = each(spec, |_| watch::CatchUp::new(prefix, history.clone()));
            clients.push(Box::new(kv::Get::new(keys(false).of(0), true)));
            clients
        }
        Kind::Kube => each(spec, |i| {
            let prefix = format!("/registry/pods/run-{run:08x}/client-{i:05}/pod-");
            kube::Objects::new(prefix, i, object.clone())
        }),
        Kind::KubeUpdate => updates(object),
        Kind::KubeLease => updates(value(NODE_LEASE_BYTES)),
        Kind::KubeCompact => {
            let mut clients = updates(object);
            clients.push(Box::new(kube::Compactor::new(COMPACT_EVERY)));
            clients
        }
        Kind::KubeEvents => each(spec, |i| {
            kube::Events::new(format!("/registry/events/run-{run:08x}/client-{i:05}/event-"), object.clone())
        }),
        Kind::KubePage => each(spec, |_| kv::Paged::new(prefix, shape.objects, PAGE)),
        Kind::KubeWatch => {
            let (epoch, filler) = (Instant::now(), value(OBJECT_BYTES));
            let mut clients = each(spec, |_| fanout::Watchers::new(prefix, 1, epoch).with_progress(PROGRESS_EVERY));
            clients.extend((0..WATCHED_UPDATERS.min(shape.keys)).map(|i| {
                let values = kube::Values::Stamped(epoch, filler.clone());
                Box::new(kube::Updates::new(prefix, shape.keys, i, WATCHED_UPDATERS, values)) as Box<dyn Client>
            }));
            clients
        }
    }
}

fn each<C: Client + 'static>(spec: &Spec, client: impl Fn(usize) -> C) -> Vec<Box<dyn Client>> {
    (0..spec.clients).map(|index| Box::new(client(index)) as Box<dyn Client>).collect()
}

fn random(client: usize) -> SmallRng {
    SmallRng::seed_from_u64(client as u64 + 1)
}

/// Values repeat after so many bytes.
const VALUES_BYTES: usize = 32 << 20;

/// A value that does not compress: compression would flatter one store over the other.
pub fn value(size: usize) -> Bytes {
    let mut value = vec![0; size];
    SmallRng::seed_from_u64(size as u64).fill_bytes(&mut value);
    value.into()
}

/// Values of which none is like its neighbours: what lies together does not compress either.
#[derive(Clone)]
pub struct Values {
    bytes: Bytes,
    size: usize,
}

impl Values {
    /// Of `size` bytes each.
    pub fn new(size: usize) -> Values {
        Values { bytes: value(size.max(VALUES_BYTES) + size), size }
    }

    /// The value of a key by its number.
    pub fn of(&self, index: usize) -> Bytes {
        let begin = index.wrapping_mul(self.size) % (self.bytes.len() - self.size);
        self.bytes.slice(begin..begin + self.size)
    }
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

fn encode(message: &impl prost::Message, out: &mut Vec<u8>) {
    message.encode(out).expect("a vector has room");
}

/// The store's revision, in the header that is the first field of every answer.
fn revision(answer: &[u8]) -> i64 {
    protobuf::bytes(answer, 1).map_or(0, |header| protobuf::number(header, 3))
}

/// The keys of a workload, ready to send.
#[derive(Clone)]
pub struct KeySpace {
    keys: Arc<[Bytes]>,
    sequential: bool,
}

impl KeySpace {
    fn new(prefix: &str, count: usize, sequential: bool) -> KeySpace {
        KeySpace { keys: (0..count).map(|i| key(prefix, i)).collect(), sequential }
    }

    /// At most so many of the keys, evenly spread.
    pub fn sample(prefix: &str, count: usize, most: usize) -> KeySpace {
        let step = count.div_ceil(most).max(1);
        KeySpace { keys: (0..count).step_by(step).map(|i| key(prefix, i)).collect(), sequential: false }
    }

    /// One client's way through the keys: from a place of its own on, or by chance.
    pub fn of(&self, client: usize) -> Keys {
        Keys { space: self.clone(), next: client * 7919, random: random(client) }
    }
}

pub struct Keys {
    space: KeySpace,
    next: usize,
    random: SmallRng,
}

impl Keys {
    fn pick(&mut self) -> Bytes {
        let index = self.pick_index();
        self.at(index)
    }

    fn pick_index(&mut self) -> usize {
        let count = self.space.keys.len();
        self.next += 1;
        if self.space.sequential { self.next - 1 } else { self.random.random_range(0..count) }
    }

    /// A key by its place; behind the last comes the first again.
    fn at(&self, index: usize) -> Bytes {
        self.space.keys[index % self.space.keys.len()].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_written_with_or_without_its_clients() {
        let spec: Spec = "put:1000".parse().unwrap();
        assert_eq!(spec, Spec { kind: Kind::Put { sequential: false }, clients: 1000 });
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
        let spec = |clients| Spec { kind: Kind::Put { sequential: false }, clients };
        assert_eq!(spec(1).connections(3), 1);
        assert_eq!(spec(10).connections(3), 3);
        assert_eq!(spec(1000).connections(3), 50);
    }

    #[test]
    fn a_key_space_hands_out_every_key_in_order() {
        let mut keys = KeySpace::new("p/", 3, true).of(0);
        let picked: Vec<Bytes> = (0..4).map(|_| keys.pick()).collect();
        assert_eq!(picked, [key("p/", 0), key("p/", 1), key("p/", 2), key("p/", 0)]);
        assert!(picked.iter().all(|key| key.as_ref() < prefix_end("p/").as_ref()));
    }
}
