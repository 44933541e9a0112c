//! What is counted. Requests are laid out, and answers looked at, between the rounds, where nothing is.

use std::path::Path;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use prost::Message;
use proto::etcdserverpb::{
    Compare, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
    WatchCreateRequest, WatchRequest, WatchResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op, watch_request,
};

use crate::{
    http2::Connection,
    member::{Member, instructions_told},
};

const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const WATCH: &str = "/etcdserverpb.Watch/Watch";

const CONNECTIONS: usize = 4;
/// Requests of a connection that are on their way at once.
const STREAMS: usize = 8;
const AT_ONCE: usize = CONNECTIONS * STREAMS;
/// Rounds in which each key is asked for once.
const ROUNDS: usize = 32;
const KEYS: usize = ROUNDS * AT_ONCE;
const WATCHERS: usize = 80;
const WATCHED_PUTS: usize = 64;

/// A workload's name, and how many operations it does.
pub const WORKLOADS: [(&str, u64); 4] = [
    ("put", 2 * KEYS as u64),
    ("get", 2 * KEYS as u64),
    ("txn", 2 * KEYS as u64),
    ("event", (WATCHED_PUTS * WATCHERS) as u64),
];

/// Runs all workloads, each after a round over all keys that is not counted.
pub fn run(dir: &Path) -> anyhow::Result<()> {
    let mut member = Member::start(dir)?;
    puts(&mut member)?;
    gets(&mut member)?;
    txns(&mut member)?;
    events(&mut member)
}

fn puts(member: &mut Member) -> anyhow::Result<()> {
    let mut client = Client::connect(member, PUT)?;
    for round in 0..3 * ROUNDS {
        let request = |i| put(format!("key-{:08}", nth(round, i)), 256);
        let answers: Vec<PutResponse> = client.round(member, round >= ROUNDS, request)?;
        ensure!(answers.iter().all(|answer| answer.header.is_some()), "a put was refused");
    }
    instructions_told();
    Ok(())
}

fn gets(member: &mut Member) -> anyhow::Result<()> {
    let mut client = Client::connect(member, RANGE)?;
    for round in 0..3 * ROUNDS {
        let request = |i| RangeRequest { key: format!("key-{:08}", nth(round, i)).into(), ..Default::default() };
        let answers: Vec<RangeResponse> = client.round(member, round >= ROUNDS, request)?;
        ensure!(answers.iter().all(|answer| answer.kvs.len() == 1), "a key was not found");
    }
    instructions_told();
    Ok(())
}

/// As kube-apiserver creates and updates objects: only if nobody has changed them since.
fn txns(member: &mut Member) -> anyhow::Result<()> {
    let mut client = Client::connect(member, TXN)?;
    let mut mod_revisions = vec![0; KEYS];
    for round in 0..3 * ROUNDS {
        let request = |i| update(nth(round, i), mod_revisions[nth(round, i)]);
        let answers: Vec<TxnResponse> = client.round(member, round >= ROUNDS, request)?;
        for (i, answer) in answers.into_iter().enumerate() {
            ensure!(answer.succeeded, "an object was changed by somebody else");
            mod_revisions[nth(round, i)] = answer.header.context("an answer has a header")?.revision;
        }
    }
    instructions_told();
    Ok(())
}

/// One writer, and watchers of all that it writes. An event's share of its put is counted with it.
fn events(member: &mut Member) -> anyhow::Result<()> {
    let (mut writer, mut watchers) = (Client::connect(member, PUT)?, Client::connect(member, WATCH)?);
    let watch = WatchCreateRequest { key: "key-".into(), range_end: "key.".into(), ..Default::default() };
    let watch = WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(watch)) };
    let of_each = WATCHERS / CONNECTIONS;
    member.run(try_join_all(watchers.0.iter_mut().map(async |connection| {
        (0..of_each).for_each(|_| connection.request(&watch, false));
        connection.send().await?;
        connection.messages(of_each).await?;
        connection.take::<WatchResponse>();
        anyhow::Ok(())
    })))?;
    for number in 0..2 * WATCHED_PUTS {
        let writer = &mut writer.0[0];
        writer.request(&put(format!("key-{number:08}"), 256), true);
        let work = async {
            writer.send().await?;
            writer.ended(1).await?;
            for watcher in &mut watchers.0 {
                watcher.messages(of_each).await?;
            }
            Ok(())
        };
        if number < WATCHED_PUTS { member.run(work) } else { member.run_counted(work) }?;
        writer.take::<PutResponse>();
        for watcher in &mut watchers.0 {
            let answers = watcher.take::<WatchResponse>();
            ensure!(answers.iter().all(|answer| answer.events.len() == 1), "a watcher was not told of one event");
        }
    }
    instructions_told();
    Ok(())
}

struct Client(Vec<Connection>);

impl Client {
    fn connect(member: &mut Member, method: &'static str) -> anyhow::Result<Client> {
        let socket = member.socket.clone();
        member.run(async {
            // The listeners are there before anything else that takes time.
            while !socket.exists() {
                tokio::task::yield_now().await;
            }
            Ok(Client(try_join_all((0..CONNECTIONS).map(|_| Connection::open(&socket, method))).await?))
        })
    }

    /// Sends a request on each stream of each connection, all at once, and waits for the answers.
    fn round<R: Message, A: Message + Default>(
        &mut self,
        member: &mut Member,
        is_counted: bool,
        request: impl Fn(usize) -> R,
    ) -> anyhow::Result<Vec<A>> {
        for (c, connection) in self.0.iter_mut().enumerate() {
            (0..STREAMS).for_each(|s| connection.request(&request(c * STREAMS + s), true));
        }
        let work = async {
            for connection in &mut self.0 {
                connection.send().await?;
            }
            for connection in &mut self.0 {
                connection.ended(STREAMS).await?;
            }
            Ok(())
        };
        if is_counted { member.run_counted(work) } else { member.run(work) }?;
        let answers: Vec<A> = self.0.iter_mut().flat_map(Connection::take).collect();
        ensure!(answers.len() == AT_ONCE, "{} answers of {AT_ONCE}; the others are refusals", answers.len());
        Ok(answers)
    }
}

/// The key of a request: all keys come once in [`ROUNDS`] rounds, in an order that looks like chance.
fn nth(round: usize, i: usize) -> usize {
    const COPRIME: usize = 389;
    (round * AT_ONCE + i) * COPRIME % KEYS
}

fn put(key: String, bytes: usize) -> PutRequest {
    PutRequest { key: key.into(), value: value(bytes), ..Default::default() }
}

fn value(bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i * 31 % 251) as u8).collect()
}

fn update(number: usize, mod_revision: i64) -> TxnRequest {
    let key = Bytes::from(format!("/registry/pods/default/pod-{number:06}"));
    let op = |op| vec![RequestOp { request: Some(op) }];
    TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal as i32,
            target: CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(mod_revision)),
            ..Default::default()
        }],
        success: op(request_op::Request::RequestPut(PutRequest {
            key: key.clone(),
            value: value(1024),
            ..Default::default()
        })),
        failure: op(request_op::Request::RequestRange(RangeRequest { key, ..Default::default() })),
    }
}
