//! After a round: all that the members hold against all that clients were told.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use proto::etcdserverpb::{
    HashKvRequest, HashKvResponse, RangeRequest, RangeResponse, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};
use rand::{Rng as _, rngs::StdRng};
use tokio::time::{sleep, timeout};
use tonic::{Code, transport::Channel};

use crate::{
    history::{History, Ledger, Write, read_history},
    load::{Progress, Read},
    process::{Cluster, Node},
    watcher::Watcher,
};

/// How long a member may take to catch up with the others.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
const PAST_READS: usize = 20;

pub struct Verifier {
    history: History,
    ledger: Ledger,
    /// Revisions at which a compaction was asked for; each may have been done or not.
    asked: Vec<i64>,
    compactions: u32,
    hash: Option<HashKvResponse>,
}

impl Verifier {
    pub fn new() -> Verifier {
        Verifier { history: History::new(), ledger: Ledger::default(), asked: Vec::new(), compactions: 0, hash: None }
    }

    pub fn acknowledged(&self) -> u64 {
        self.ledger.acknowledged()
    }

    pub fn unknown_done(&self) -> u64 {
        self.ledger.unknown_done()
    }

    /// How many compactions showed in the history.
    pub fn compactions(&self) -> u32 {
        self.compactions
    }

    /// A revision for the next compaction, later than all before.
    pub fn choose_compaction(&mut self, random: &mut StdRng) -> Option<i64> {
        let last = self.asked.last().map_or(self.history.base_revision(), |last| *last);
        // At least two later: a watch from the revision after the last compaction must show the next one, and it does
        // not if it starts where the history was compacted to.
        let choice = last + 2..=self.history.revision();
        if choice.is_empty() {
            return None;
        }
        let revision = random.random_range(choice);
        self.asked.push(revision);
        Some(revision)
    }

    /// Checks a cluster to which nobody writes any more, with all that was done since the last check.
    pub async fn check(
        &mut self,
        cluster: &Cluster,
        writes: Vec<Write>,
        reads: Vec<Read>,
        watchers: &mut [Watcher],
        progress: &Progress,
        random: &mut StdRng,
    ) -> Result<()> {
        let new_from = self.history.revision() + 1;
        let revision = current_revision(&cluster.nodes[0]).await?;
        ensure!(revision >= progress.told(), "the store is at {revision}, but {} was told", progress.told());

        let mut compacted = None;
        for node in &cluster.nodes {
            let compaction =
                self.take_history(node, revision).await.with_context(|| format!("the history of {}", node.name()))?;
            compacted = compacted.max(compaction);
        }
        self.ledger.check(&self.history, new_from, writes)?;
        self.ledger.check_counters()?;
        for (index, watcher) in watchers.iter_mut().enumerate() {
            let check = watcher.check(&self.history, &self.asked, CATCH_UP_LIMIT).await;
            check.with_context(|| format!("watcher {}", index + 1))?;
        }
        self.check_reads(reads)?;
        self.check_past(cluster, compacted, random).await?;
        for node in &cluster.nodes {
            self.check_state(node).await.with_context(|| format!("all keys of {}", node.name()))?;
        }
        self.check_hashes(cluster).await?;
        if let Some(compaction) = compacted {
            self.history.compact(compaction);
            self.compactions += 1;
        }
        Ok(())
    }

    /// Reads one member's whole history and gives the revision up to which the member has forgotten it, if that is
    /// news.
    async fn take_history(&mut self, node: &Node, to: i64) -> Result<Option<i64>> {
        let asked_from = self.history.base_revision() + 1;
        let told = read_history(node.channel(), asked_from, to).await?;
        let compacted = (told.from > asked_from).then_some(told.from - 1);
        if let Some(compacted) = compacted {
            ensure!(self.asked.contains(&compacted), "compacted at {compacted}, which nobody asked for");
        }
        self.history.take(told.from, to, told.events)?;
        Ok(compacted)
    }

    /// Each answer must be what the store held at the revision that the answer names.
    fn check_reads(&self, mut reads: Vec<Read>) -> Result<()> {
        reads.sort_by_key(|read| read.revision);
        let points = reads.into_iter().map(|read| (read.revision, read));
        self.history.replay(points, |_, state, read| state.check_range(&read.prefix, &read.kvs).context("a read"))
    }

    /// Reads all keys at random revisions of the past.
    async fn check_past(&self, cluster: &Cluster, compacted: Option<i64>, random: &mut StdRng) -> Result<()> {
        let first = compacted.unwrap_or(self.history.base_revision()).max(2);
        let mut past = Vec::with_capacity(PAST_READS);
        for _ in 0..PAST_READS {
            let revision = random.random_range(first..=self.history.revision());
            let node = &cluster.nodes[random.random_range(0..cluster.nodes.len())];
            match range_all(node.channel(), revision, random.random()).await {
                Ok(answer) => past.push((revision, answer)),
                Err(status) if self.may_be_compacted(revision, &status) => (),
                Err(status) => {
                    return Err(status)
                        .with_context(|| format!("all keys at revision {revision} from {}", node.name()));
                }
            }
        }
        past.sort_by_key(|(revision, _)| *revision);
        self.history.replay(past, |_, state, answer| state.check_range(b"", &answer.kvs).context("a read of the past"))
    }

    /// A compaction may come into effect as late as between two reads.
    fn may_be_compacted(&self, revision: i64, status: &tonic::Status) -> bool {
        status.code() == Code::OutOfRange && self.asked.iter().any(|asked| *asked > revision)
    }

    async fn check_state(&self, node: &Node) -> Result<()> {
        for serializable in [true, false] {
            let answer = range_all(node.channel(), self.history.revision(), serializable).await?;
            ensure!(answer.count == answer.kvs.len() as i64, "{} keys, counted {}", answer.kvs.len(), answer.count);
            self.history.tip().check_range(b"", &answer.kvs)?;
        }
        Ok(())
    }

    /// All members must have the same hash, and that of an earlier revision must still be what it was.
    async fn check_hashes(&mut self, cluster: &Cluster) -> Result<()> {
        let revision = self.history.revision();
        let begin = Instant::now();
        // A member that has not been compacted as far as the others has another hash, rightly.
        let hashes = loop {
            let mut hashes = Vec::with_capacity(cluster.nodes.len());
            for node in &cluster.nodes {
                hashes.push(hash(node, revision).await.with_context(|| format!("the hash of {}", node.name()))?);
            }
            if hashes.iter().all(|hash| hash.compact_revision == hashes[0].compact_revision) {
                break hashes;
            }
            ensure!(begin.elapsed() < CATCH_UP_LIMIT, "the members do not compact alike: {hashes:?}");
            sleep(POLL_INTERVAL).await;
        };
        ensure!(hashes.iter().all(|other| other.hash == hashes[0].hash), "the members' hashes differ: {hashes:?}");
        if let Some(earlier) = self.hash.take()
            && earlier.compact_revision == hashes[0].compact_revision
        {
            let again = hash(&cluster.nodes[0], earlier.hash_revision).await?;
            ensure!(
                again.compact_revision != earlier.compact_revision || again.hash == earlier.hash,
                "the hash of revision {} was {} and is now {}",
                earlier.hash_revision,
                earlier.hash,
                again.hash,
            );
        }
        self.hash = hashes.into_iter().next().map(|hash| HashKvResponse { hash_revision: revision, ..hash });
        Ok(())
    }
}

/// The revision that a linearizable read shows, as soon as there is an answer.
async fn current_revision(node: &Node) -> Result<i64> {
    let begin = Instant::now();
    loop {
        let range = RangeRequest { key: "any".into(), count_only: true, ..RangeRequest::default() };
        match timeout(REQUEST_LIMIT, KvClient::new(node.channel()).range(range)).await {
            Ok(Ok(response)) => return Ok(response.into_inner().header.context("no header")?.revision),
            Ok(Err(status)) if begin.elapsed() > CATCH_UP_LIMIT => return Err(status).context("no linearizable read"),
            Err(_) if begin.elapsed() > CATCH_UP_LIMIT => bail!("no linearizable read within {CATCH_UP_LIMIT:?}"),
            Ok(Err(_)) | Err(_) => sleep(POLL_INTERVAL).await,
        }
    }
}

async fn range_all(channel: Channel, revision: i64, serializable: bool) -> Result<RangeResponse, tonic::Status> {
    let range = RangeRequest {
        key: b"\0".as_slice().into(),
        range_end: b"\0".as_slice().into(),
        revision,
        serializable,
        ..RangeRequest::default()
    };
    let mut client = KvClient::new(channel).max_decoding_message_size(usize::MAX);
    match timeout(REQUEST_LIMIT, client.range(range)).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(tonic::Status::deadline_exceeded("no answer in time")),
    }
}

/// A member's hash at a revision that it has reached or will.
async fn hash(node: &Node, revision: i64) -> Result<HashKvResponse> {
    let begin = Instant::now();
    loop {
        let mut client = MaintenanceClient::new(node.channel());
        match timeout(REQUEST_LIMIT, client.hash_kv(HashKvRequest { revision })).await {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) if status.code() == Code::OutOfRange && begin.elapsed() < CATCH_UP_LIMIT => {
                sleep(POLL_INTERVAL).await;
            }
            Ok(Err(status)) => return Err(status.into()),
            Err(_) => bail!("no answer within {REQUEST_LIMIT:?}"),
        }
    }
}
