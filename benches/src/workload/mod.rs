//! What the operations are.
//!
//! | name | one operation | module |
//! |---|---|---|
//! | `put` | Put of one value under a key of the key space | [`kv`] |
//! | `get`, `get-serializable` | Range of one key | [`kv`] |
//! | `list` | Range of all keys of the key space, values included | [`kv`] |
//! | `kube` | the transactions Kubernetes sends: create (`mod_revision == 0`, then put), update (`mod_revision == x`, then put, else range), one update in fifty with a stale `x` | [`kube`] |
//! | `lease` | one keep-alive on an open stream | [`lease`] |
//! | `watch` | one event at one watcher | [`fanout`] |
//!
//! Keys and values are built before the measurement; an operation clones reference counts.

mod fanout;
mod kube;
pub mod kv;
pub mod lease;

use std::{fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};

use crate::{
    drive::{self, Client},
    fill,
    measure::{Measured, Settings},
    wire::protobuf,
};

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
    let shape = &settings.shape;
    let prefix = format!("/bench/{spec}/");
    if matches!(spec.kind, Kind::Get { .. } | Kind::List) {
        let (keys, value_size) = (shape.keys, shape.value_size);
        let options = fill::Options { keys, value_size, batch: 64, clients: 16, prefix: prefix.clone() };
        fill::fill(&fill::connect(&settings.endpoints, 4).await?, &options).await?;
    }
    let keys = || KeySpace::new(&prefix, shape.keys, shape.sequential);
    let clients: Vec<Box<dyn Client>> = match spec.kind {
        Kind::Put => {
            let (keys, value) = (keys(), value(shape.value_size));
            each(spec, |i| kv::Put::new(keys.of(i), value.clone()))
        }
        Kind::Get { serializable } => {
            let keys = keys();
            each(spec, |i| kv::Get::new(keys.of(i), serializable))
        }
        Kind::List => each(spec, |_| kv::List::new(&prefix, shape.keys)),
        Kind::Kube => {
            let (value, run) = (value(shape.value_size.max(1024)), rand::random::<u32>());
            each(spec, |i| {
                kube::Kube::new(format!("/registry/pods/run-{run:08x}/client-{i:05}/pod-"), i, value.clone())
            })
        }
        Kind::Lease => each(spec, |_| lease::KeepAlive::default()),
        Kind::Watch => return fanout::run(spec.clients, settings, &prefix).await,
    };
    drive::run(settings, clients).await
}

fn each<C: Client + 'static>(spec: &Spec, client: impl Fn(usize) -> C) -> Vec<Box<dyn Client>> {
    (0..spec.clients).map(|index| Box::new(client(index)) as Box<dyn Client>).collect()
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

    /// One client's way through the keys: from a place of its own on, or by chance.
    fn of(&self, client: usize) -> Keys {
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
        let count = self.space.keys.len();
        let index = if self.space.sequential { self.next % count } else { self.random.random_range(0..count) };
        self.next += 1;
        self.space.keys[index].clone()
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
        let mut keys = KeySpace::new("p/", 3, true).of(0);
        let picked: Vec<Bytes> = (0..4).map(|_| keys.pick()).collect();
        assert_eq!(picked, [key("p/", 0), key("p/", 1), key("p/", 2), key("p/", 0)]);
        assert!(picked.iter().all(|key| key.as_ref() < prefix_end("p/").as_ref()));
    }
}
