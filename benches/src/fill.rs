//! Many keys, quickly: several clients put disjoint parts of the key space, many keys to a transaction.

use std::{
    fmt,
    ops::RangeInclusive,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;
use client::{Client, Connection};
use proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, kv_client::KvClient, request_op::Request};
use tokio::task::JoinSet;

use crate::workload;

/// etcd's default `--max-txn-ops`.
const MAX_TXN_OPS: usize = 128;
/// Well below etcd's default `--max-request-bytes`, 1.5 MiB.
const MAX_TXN_BYTES: usize = 1 << 20;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Args, Debug, Clone)]
pub struct Options {
    /// The first key's number: those before it are there already.
    #[arg(long, default_value_t = 0)]
    pub first: usize,
    /// Keys there are afterwards.
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: usize,
    /// Size of a value, bytes.
    #[arg(long, default_value_t = 1024)]
    pub value_size: usize,
    /// Keys in a transaction, 1 to 128; fewer where it would become too large.
    #[arg(long, default_value_t = 64)]
    pub batch: usize,
    /// Transactions under way at a time.
    #[arg(long, default_value_t = 16)]
    pub clients: usize,
    /// What the keys begin with.
    #[arg(long, default_value = "/bench/load/")]
    pub prefix: String,
}

impl Options {
    /// Keys in a transaction of at most so many bytes; one key is always sent.
    pub fn batch_within(&self, bytes: usize) -> usize {
        // Lengths, tags and the number that follows the prefix.
        let overhead = 64;
        self.batch.min(bytes / (self.prefix.len() + self.value_size + overhead)).max(1)
    }
}

pub struct Filled {
    pub keys: usize,
    pub elapsed: Duration,
    /// Keys per second while the first tenth of the keys was put, and the last.
    pub first_tenth: f64,
    pub last_tenth: f64,
    /// The revisions of the first and of the last transaction.
    pub revisions: RangeInclusive<i64>,
}

impl Filled {
    pub fn per_second(&self) -> f64 {
        self.keys as f64 / self.elapsed.as_secs_f64()
    }
}

impl fmt::Display for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys in {:.1} s, {:.0}/s", self.keys, self.elapsed.as_secs_f64(), self.per_second())
    }
}

/// A list answers megabytes; tonic's default limit is 4 MiB.
const MAX_ANSWER_BYTES: usize = 1 << 30;

/// Opens `count` connections of the client library, spread over the endpoints in turn.
pub async fn connect(endpoints: &[String], count: usize) -> anyhow::Result<Vec<Connection>> {
    anyhow::ensure!(!endpoints.is_empty() && count > 0, "at least one endpoint and one connection are needed");
    let mut channels = Vec::with_capacity(count);
    for url in endpoints.iter().cycle().take(count) {
        let options = client::Options { request_timeout: REQUEST_TIMEOUT, ..client::Options::default() };
        let client = Client::with_options([url], options)?;
        // Connects.
        client.status(url).await.with_context(|| format!("connect to {url}"))?;
        channels.push(client.connection().await?);
    }
    Ok(channels)
}

pub fn kv(channel: Connection) -> KvClient<Connection> {
    KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// When the first tenth of the keys was there, and when only the last was left.
struct Tenths {
    keys: usize,
    put: AtomicUsize,
    first: OnceLock<Instant>,
    last: OnceLock<Instant>,
}

impl Tenths {
    fn note(&self, keys: usize) {
        let put = self.put.fetch_add(keys, Ordering::Relaxed) + keys;
        if put * 10 >= self.keys {
            self.first.get_or_init(Instant::now);
        }
        if put * 10 >= self.keys * 9 {
            self.last.get_or_init(Instant::now);
        }
    }
}

/// Puts every key, or fails with the first error.
pub async fn fill(channels: &[Connection], options: &Options) -> anyhow::Result<Filled> {
    anyhow::ensure!((1..=MAX_TXN_OPS).contains(&options.batch), "a batch has 1 to {MAX_TXN_OPS} keys");
    anyhow::ensure!(options.clients > 0 && !options.prefix.is_empty(), "clients and a prefix are needed");
    let begin = Instant::now();
    let values = workload::Values::new(options.value_size);
    let next = Arc::new(AtomicUsize::new(options.first));
    let keys = options.keys.saturating_sub(options.first);
    let tenths = Arc::new(Tenths { keys, put: AtomicUsize::new(0), first: OnceLock::new(), last: OnceLock::new() });
    let batch = options.batch_within(MAX_TXN_BYTES);
    let mut tasks = JoinSet::new();
    for client in 0..options.clients {
        let mut kv = kv(channels[client % channels.len()].clone());
        let (next, tenths, values, options) = (next.clone(), tenths.clone(), values.clone(), options.clone());
        tasks.spawn(async move {
            let (mut low, mut high) = (i64::MAX, 0);
            loop {
                let first = next.fetch_add(batch, Ordering::Relaxed);
                if first >= options.keys {
                    return Ok((low, high));
                }
                let last = (first + batch).min(options.keys);
                let put = |index| PutRequest {
                    key: workload::key(&options.prefix, index),
                    value: values.of(index),
                    ..Default::default()
                };
                let puts = (first..last).map(|index| RequestOp { request: Some(Request::RequestPut(put(index))) });
                let answer = kv.txn(TxnRequest { success: puts.collect(), ..Default::default() }).await?.into_inner();
                let revision = answer.header.unwrap_or_default().revision;
                (low, high) = (low.min(revision), high.max(revision));
                tenths.note(last - first);
            }
        });
    }
    let (mut low, mut high) = (i64::MAX, 0);
    while let Some(ended) = tasks.join_next().await {
        let result: Result<(i64, i64), tonic::Status> = ended?;
        let (first, last) = result?;
        (low, high) = (low.min(first), high.max(last));
    }
    let end = Instant::now();
    let tenth = |from: Instant, to: Instant| keys as f64 / 10.0 / (to - from).as_secs_f64();
    let first_tenth = tenth(begin, *tenths.first.get().unwrap_or(&end));
    let last_tenth = tenth(*tenths.last.get().unwrap_or(&begin), end);
    Ok(Filled { keys, elapsed: end - begin, first_tenth, last_tenth, revisions: low..=high })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_large_values_is_cut_to_what_a_server_takes() {
        let batch = |value_size| {
            Options { first: 0, keys: 1, value_size, batch: 64, clients: 1, prefix: "/p/".to_string() }
                .batch_within(MAX_TXN_BYTES)
        };
        assert_eq!(batch(1024), 64);
        assert_eq!(batch(100 << 10), 10);
        assert_eq!(batch(2 << 20), 1);
    }
}
