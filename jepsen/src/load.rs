//! Writers and readers that go on through faults.

use std::{
    collections::BTreeMap,
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use proto::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        kv_client::KvClient,
        request_op::Request,
    },
    mvccpb::KeyValue,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    history::{Change, Outcome, Write},
    process,
};

const REQUEST_LIMIT: Duration = Duration::from_secs(1);
/// Between attempts while a node is down.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const READ_INTERVAL: Duration = Duration::from_millis(25);
const KEYS_PER_WRITER: u32 = 20;
const COUNTERS: u32 = 2;
const VALUE_BYTES_MAX: usize = 200;
const LARGE_VALUE_BYTES_MAX: usize = 16 * 1024;

/// What all clients together have been told.
pub struct Progress {
    next_number: AtomicU64,
    told: AtomicI64,
    acknowledged: watch::Sender<u64>,
    silence: Mutex<Silence>,
}

struct Silence {
    since: Instant,
    longest: Duration,
    /// Since the last step of a run was taken note of.
    longest_of_step: Duration,
}

/// Where clients reach the members, which may come and go.
pub type Endpoints = watch::Receiver<Vec<String>>;

impl Progress {
    pub fn new() -> Progress {
        Progress {
            next_number: AtomicU64::new(1),
            told: AtomicI64::new(1),
            acknowledged: watch::Sender::new(0),
            silence: Mutex::new(Silence {
                since: Instant::now(),
                longest: Duration::ZERO,
                longest_of_step: Duration::ZERO,
            }),
        }
    }

    /// A number for a write, given to no other.
    pub fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// The highest revision that anyone has been told. Whatever begins now must see it.
    pub fn told(&self) -> i64 {
        self.told.load(Ordering::SeqCst)
    }

    pub fn tell(&self, revision: i64) {
        self.told.fetch_max(revision, Ordering::SeqCst);
    }

    pub fn acknowledge(&self, revision: i64) {
        self.tell(revision);
        self.acknowledged.send_modify(|count| *count += 1);
        self.silence.lock().end();
    }

    /// Waits for so many more acknowledged writes.
    pub async fn wait_for(&self, more: u64, limit: Duration) -> Result<()> {
        let mut acknowledged = self.acknowledged.subscribe();
        let target = *acknowledged.borrow() + more;
        // Mapped at once, because the answer holds the channel's lock, against which writers wait.
        let reached = timeout(limit, acknowledged.wait_for(|count| *count >= target)).await.map(drop);
        let count = *acknowledged.borrow();
        reached
            .with_context(|| format!("{} of {more} writes were acknowledged within {limit:?}", count + more - target))
    }

    /// The longest time without any acknowledged write while there was load.
    pub fn longest_silence(&self) -> Duration {
        self.silence.lock().longest
    }

    /// The longest time without an acknowledged write since this was asked last, the present one included.
    pub fn longest_silence_of_step(&self) -> Duration {
        let mut silence = self.silence.lock();
        let present = silence.since.elapsed();
        std::mem::take(&mut silence.longest_of_step).max(present)
    }
}

impl Silence {
    fn end(&mut self) {
        let elapsed = self.since.elapsed();
        self.longest = self.longest.max(elapsed);
        self.longest_of_step = self.longest_of_step.max(elapsed);
        self.since = Instant::now();
    }
}

/// What a reader was answered.
pub struct Read {
    pub revision: i64,
    pub prefix: Bytes,
    pub kvs: Vec<KeyValue>,
}

/// What the clients of one load did.
#[derive(Default)]
pub struct Done {
    pub writes: Vec<Write>,
    pub reads: Vec<Read>,
    /// Linearizable answers from the past. Whether it is the answer that is wrong, or the past was lost, shows when
    /// everything else is checked.
    pub stale: Vec<String>,
    /// How often which error was answered, or none.
    pub failures: BTreeMap<String, u64>,
    /// Errors that tell a client not to try again.
    pub final_failures: Vec<String>,
    /// The longest that one client had to try again and again.
    pub longest_outage: Duration,
}

impl Done {
    fn add(&mut self, other: Done) {
        self.writes.extend(other.writes);
        self.reads.extend(other.reads);
        self.stale.extend(other.stale);
        for (failure, count) in other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        self.final_failures.extend(other.final_failures);
        self.longest_outage = self.longest_outage.max(other.longest_outage);
    }
}

/// Running clients.
pub struct Load {
    clients: JoinSet<Result<Done>>,
    stop: watch::Sender<bool>,
    progress: Arc<Progress>,
}

impl Load {
    pub fn start(endpoints: &Endpoints, writers: u32, progress: &Arc<Progress>, seed: u64) -> Load {
        let (stop, stopped) = watch::channel(false);
        let mut clients = JoinSet::new();
        let client = |index: u32| {
            let endpoint = nth(&endpoints.borrow(), index as usize);
            Client {
                endpoints: endpoints.clone(),
                current: index as usize,
                kv: kv_client(&endpoint),
                endpoint,
                random: StdRng::seed_from_u64(seed.wrapping_add(u64::from(index))),
                progress: Arc::clone(progress),
                done: Done::default(),
                failing_since: None,
                index,
            }
        };
        progress.silence.lock().since = Instant::now();
        for index in 0..writers {
            clients.spawn(client(index).write_until(stopped.clone()));
        }
        clients.spawn(client(writers).read_until(writers, stopped));
        Load { clients, stop, progress: Arc::clone(progress) }
    }

    /// Stops the clients and gives what they did.
    pub async fn stop(mut self) -> Result<Done> {
        self.progress.silence.lock().end();
        self.stop.send_replace(true);
        let mut all = Done::default();
        while let Some(done) = self.clients.join_next().await {
            all.add(done??);
        }
        Ok(all)
    }
}

struct Client {
    index: u32,
    endpoints: Endpoints,
    current: usize,
    endpoint: String,
    kv: KvClient<Channel>,
    random: StdRng,
    progress: Arc<Progress>,
    done: Done,
    failing_since: Option<Instant>,
}

/// The endpoints in turn, however many there are at the time.
pub fn nth(endpoints: &[String], index: usize) -> String {
    endpoints[index % endpoints.len()].clone()
}

fn kv_client(endpoint: &str) -> KvClient<Channel> {
    KvClient::new(process::channel(endpoint)).max_decoding_message_size(usize::MAX)
}

/// Whether a client that gets this error may hope for better from another attempt, here or elsewhere. What has a source
/// was said by the connection, not by a member.
fn is_curable(status: &Status) -> bool {
    // An etcd that was removed answers so, without a code of its own, in its last moments.
    let removed = status.message() == "raft: stopped";
    // It sends a client to the other members.
    let learner = status.message() == "etcdserver: rpc not supported for learner";
    let passing = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled);
    removed || learner || passing || status.source().is_some()
}

impl Client {
    async fn write_until(mut self, stopped: watch::Receiver<bool>) -> Result<Done> {
        while !*stopped.borrow() {
            if !self.write().await? {
                self.go_elsewhere().await;
            }
        }
        Ok(self.done())
    }

    async fn go_elsewhere(&mut self) {
        sleep(RETRY_PAUSE).await;
        self.current = self.current.wrapping_add(1);
        self.endpoint = nth(&self.endpoints.borrow(), self.current);
        self.kv = kv_client(&self.endpoint);
    }

    /// Waits for an answer within the limit. `None`: it is unknown whether the request was served.
    async fn answer<T>(&mut self, request: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Option<T> {
        let begin = Instant::now();
        let failure = match timeout(REQUEST_LIMIT, request).await {
            Ok(Ok(response)) => {
                if let Some(since) = self.failing_since.take() {
                    self.done.longest_outage = self.done.longest_outage.max(since.elapsed());
                }
                return Some(response.into_inner());
            }
            Ok(Err(status)) => {
                let failure = format!("{:?}: {}", status.code(), status.message());
                if !is_curable(&status) {
                    self.done.final_failures.push(format!("{failure} (from {})", self.endpoint));
                }
                failure
            }
            Err(_) => format!("no answer within {REQUEST_LIMIT:?}"),
        };
        self.failing_since.get_or_insert(begin);
        *self.done.failures.entry(failure).or_default() += 1;
        None
    }

    /// Stops, and takes note of an outage that has not ended.
    fn done(mut self) -> Done {
        let present = self.failing_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.done.longest_outage = self.done.longest_outage.max(present);
        self.done
    }

    /// Attempts one change; false if there was no answer.
    async fn write(&mut self) -> Result<bool> {
        match self.random.random_range(0..10) {
            0 => self.delete().await,
            1 => self.put_pair().await,
            2..4 => self.count().await,
            _ => self.put().await,
        }
    }

    fn own_key(&mut self) -> Bytes {
        format!("key/{}/{}", self.index, self.random.random_range(0..KEYS_PER_WRITER)).into()
    }

    fn value(&mut self, number: u64) -> Bytes {
        let limit = if self.random.random_ratio(1, 50) { LARGE_VALUE_BYTES_MAX } else { VALUE_BYTES_MAX };
        let length = self.random.random_range(0..limit);
        let mut value = BytesMut::from(format!("{number}:").as_bytes());
        value.put_bytes(b'a' + (number % 26) as u8, length);
        value.freeze()
    }

    /// Notes an attempt. A write that was answered but changed nothing is no write.
    fn note(&mut self, number: u64, change: Change, begun_after: i64, outcome: Outcome) -> bool {
        if let Outcome::Done(revision) = outcome {
            self.progress.acknowledge(revision);
        }
        self.done.writes.push(Write { number, change, begun_after, outcome });
        outcome != Outcome::Unknown
    }

    /// An answer that changed nothing must still not be from the past.
    fn read_after(&mut self, what: &str, begun_after: i64, header: Option<ResponseHeader>) -> Result<i64> {
        let revision = header.context("an answer without a header")?.revision;
        if revision < begun_after {
            let member = &self.endpoint;
            let stale = format!("{what} from {member} is at revision {revision}, after {begun_after} had been told");
            self.done.stale.push(stale);
        }
        self.progress.tell(revision);
        Ok(revision)
    }

    async fn put(&mut self) -> Result<bool> {
        let mut kv = self.kv.clone();
        let (number, begun_after) = (self.progress.next_number(), self.progress.told());
        let (key, value) = (self.own_key(), self.value(number));
        let put = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
        let outcome = match self.answer(kv.put(put)).await {
            Some(response) => Outcome::Done(response.header.context("no header")?.revision),
            None => Outcome::Unknown,
        };
        Ok(self.note(number, Change::Put { keys: vec![key], value }, begun_after, outcome))
    }

    async fn put_pair(&mut self) -> Result<bool> {
        let mut kv = self.kv.clone();
        let (number, begun_after) = (self.progress.next_number(), self.progress.told());
        let value = self.value(number);
        let keys: Vec<Bytes> = ["a", "b"].map(|half| format!("pair/{}/{half}", self.index).into()).into();
        let success = keys.iter().map(|key| put_op(key, &value)).collect();
        let outcome = match self.answer(kv.txn(TxnRequest { success, ..TxnRequest::default() })).await {
            Some(response) => Outcome::Done(response.header.context("no header")?.revision),
            None => Outcome::Unknown,
        };
        Ok(self.note(number, Change::Put { keys, value }, begun_after, outcome))
    }

    /// Reads a counter and replaces it by one more, if nobody else has meanwhile.
    async fn count(&mut self) -> Result<bool> {
        let mut kv = self.kv.clone();
        let key = Bytes::from(format!("counter/{}", self.random.random_range(0..COUNTERS)));
        let begun_after = self.progress.told();
        let range = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let Some(response) = self.answer(kv.range(range)).await else { return Ok(false) };
        self.read_after("a range of one key", begun_after, response.header)?;
        let (old, mod_revision) = match response.kvs.first() {
            Some(kv) => {
                let value = String::from_utf8_lossy(&kv.value);
                let (_, count) = value.split_once(':').context("a counter without a number")?;
                (count.parse::<u64>()?, kv.mod_revision)
            }
            None => (0, 0),
        };

        let (number, begun_after) = (self.progress.next_number(), self.progress.told());
        let value = Bytes::from(format!("{number}:{}", old + 1));
        let unchanged = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(mod_revision)),
            ..Compare::default()
        };
        let txn = TxnRequest { compare: vec![unchanged], success: vec![put_op(&key, &value)], failure: vec![] };
        let outcome = match self.answer(kv.txn(txn)).await {
            Some(response) if response.succeeded => Outcome::Done(response.header.context("no header")?.revision),
            Some(response) => {
                return self.read_after("a transaction without effect", begun_after, response.header).map(|_| true);
            }
            None => Outcome::Unknown,
        };
        Ok(self.note(number, Change::Count { key, value }, begun_after, outcome))
    }

    async fn delete(&mut self) -> Result<bool> {
        let mut kv = self.kv.clone();
        let (number, begun_after) = (self.progress.next_number(), self.progress.told());
        let key = self.own_key();
        let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
        let outcome = match self.answer(kv.delete_range(delete)).await {
            Some(response) if response.deleted == 1 => Outcome::Done(response.header.context("no header")?.revision),
            Some(response) => {
                return self.read_after("a delete of nothing", begun_after, response.header).map(|_| true);
            }
            None => Outcome::Unknown,
        };
        Ok(self.note(number, Change::Delete { key }, begun_after, outcome))
    }

    async fn read_until(mut self, writers: u32, stopped: watch::Receiver<bool>) -> Result<Done> {
        while !*stopped.borrow() {
            sleep(READ_INTERVAL).await;
            if !self.read(writers).await? {
                self.go_elsewhere().await;
            }
        }
        Ok(self.done())
    }

    async fn read(&mut self, writers: u32) -> Result<bool> {
        let mut kv = self.kv.clone();
        let prefix = Bytes::from(format!("key/{}/", self.random.random_range(0..writers)));
        let serializable = self.random.random();
        let begun_after = self.progress.told();
        let range = RangeRequest {
            key: prefix.clone(),
            // The prefix ends in a slash, so its range ends where the next character begins.
            range_end: [&prefix[..prefix.len() - 1], b"0"].concat().into(),
            serializable,
            ..RangeRequest::default()
        };
        let Some(response) = self.answer(kv.range(range)).await else { return Ok(false) };
        let revision = if serializable {
            response.header.context("an answer without a header")?.revision
        } else {
            self.read_after("a range of many keys", begun_after, response.header)?
        };
        self.done.reads.push(Read { revision, prefix, kvs: response.kvs });
        Ok(true)
    }
}

fn put_op(key: &Bytes, value: &Bytes) -> RequestOp {
    let put = PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() };
    RequestOp { request: Some(Request::RequestPut(put)) }
}
