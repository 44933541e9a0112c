//! A writer that does all that changes keys, and a reader that notes what is there at revisions as they come.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proto::{
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
        RequestOp, TxnRequest, kv_client::KvClient, lease_client::LeaseClient, request_op::Request,
    },
    mvccpb::KeyValue,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::watch, task::JoinHandle};
use tonic::{Status, transport::Channel};

/// Until a member that is away is tried again. A delay: that it is back is known only by trying.
const RETRY: Duration = Duration::from_millis(20);
const KEYS: u32 = 60;
/// Revisions that compactions leave.
const HISTORY: i64 = 150;

/// What was read at a revision: all keys.
pub type Seen = BTreeMap<i64, Vec<KeyValue>>;

/// A connection to several members, of which one that is away is passed over.
pub fn channel(endpoints: &[String]) -> Channel {
    let endpoints = endpoints.iter().map(|endpoint| {
        let endpoint = Channel::from_shared(endpoint.clone()).unwrap();
        endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(5))
    });
    Channel::balance_list(endpoints)
}

pub fn kv(channel: &Channel) -> KvClient<Channel> {
    KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX)
}

pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, lease: i64) -> PutRequest {
    PutRequest { key: key.into().into(), value: value.into().into(), lease, ..Default::default() }
}

/// All keys, and the revision they were read at.
pub async fn read_all(channel: &Channel, revision: i64) -> Result<(i64, Vec<KeyValue>), Status> {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..Default::default() };
    let answer = kv(channel).range(all).await?.into_inner();
    Ok((answer.header.unwrap().revision, answer.kvs))
}

/// Writes and reads until it is stopped.
pub struct Recording {
    stop: Arc<AtomicBool>,
    /// How many revisions were read.
    seen: watch::Receiver<usize>,
    writer: JoinHandle<u64>,
    reader: JoinHandle<Seen>,
}

impl Recording {
    pub fn start(endpoints: &[String], seed: u64) -> Recording {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(write(channel(endpoints), StdRng::seed_from_u64(seed), stop.clone()));
        let (count, seen) = watch::channel(0);
        let reader = tokio::spawn(read(channel(endpoints), StdRng::seed_from_u64(seed + 1), stop.clone(), count));
        Recording { stop, seen, writer, reader }
    }

    /// Returns once so many more revisions have been read.
    pub async fn grow(&self, by: usize) {
        let mut seen = self.seen.clone();
        let enough = *seen.borrow() + by;
        seen.wait_for(|seen| *seen >= enough).await.expect("the reader goes on");
    }

    /// What was seen, and how many writes were answered.
    pub async fn stop(self) -> (Seen, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.writer.await.unwrap();
        (self.reader.await.unwrap(), written)
    }
}

async fn read(channel: Channel, mut random: StdRng, stop: Arc<AtomicBool>, count: watch::Sender<usize>) -> Seen {
    let mut seen = Seen::new();
    while !stop.load(Ordering::Relaxed) {
        match read_all(&channel, 0).await {
            Ok((revision, kvs)) => {
                seen.insert(revision, kvs);
                count.send_replace(seen.len());
            }
            // A delay: that a member is back is known only by asking it.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
        // A delay: what is read is to be a sample of the revisions, at times that the writer does not choose.
        tokio::time::sleep(Duration::from_millis(random.random_range(1..30))).await;
    }
    seen
}

async fn write(channel: Channel, mut random: StdRng, stop: Arc<AtomicBool>) -> u64 {
    let (mut written, mut leases) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        match write_one(&channel, &mut random, &mut leases).await {
            Ok(()) => written += 1,
            // A delay: that a member is back is known only by asking it.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
    written
}

fn key(random: &mut StdRng) -> String {
    format!("key/{:02}", random.random_range(0..KEYS))
}

async fn write_one(channel: &Channel, random: &mut StdRng, leases: &mut Vec<i64>) -> Result<(), Status> {
    let value = vec![random.random::<u8>(); random.random_range(0..300)];
    match random.random_range(0..100) {
        0..50 => drop(kv(channel).put(put(key(random), value, 0)).await?),
        50..65 => {
            let put_op = |key| RequestOp { request: Some(Request::RequestPut(put(key, value.clone(), 0))) };
            let delete = DeleteRangeRequest { key: key(random).into(), ..Default::default() };
            let delete = RequestOp { request: Some(Request::RequestDeleteRange(delete)) };
            let txn = TxnRequest {
                success: vec![put_op(format!("{}/a", key(random))), put_op(format!("{}/b", key(random))), delete],
                ..Default::default()
            };
            kv(channel).txn(txn).await?;
        }
        65..75 => {
            let from = random.random_range(0..KEYS);
            let (key, range_end) = (format!("key/{from:02}"), format!("key/{:02}", from + 3));
            let delete = DeleteRangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
            kv(channel).delete_range(delete).await?;
        }
        75..90 => {
            // The shortest there is: it ends by itself while others are written.
            let grant = LeaseGrantRequest { ttl: 2, id: 0 };
            let lease = LeaseClient::new(channel.clone()).lease_grant(grant).await?.into_inner().id;
            leases.push(lease);
            for _ in 0..2 {
                kv(channel).put(put(key(random), value.clone(), lease)).await?;
            }
        }
        90..96 => {
            if let Some(id) = leases.pop() {
                LeaseClient::new(channel.clone()).lease_revoke(LeaseRevokeRequest { id }).await?;
            }
        }
        _ => {
            let (revision, _) = read_all(channel, 0).await?;
            if revision > HISTORY {
                let compact = CompactionRequest { revision: revision - HISTORY, physical: false };
                kv(channel).compact(compact).await?;
            }
        }
    }
    Ok(())
}
