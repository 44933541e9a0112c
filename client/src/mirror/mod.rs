//! Keeps one store in step with another, until the other is not needed any more.
//!
//! ```text
//! source       put a @5   put b @6   txn: put a, delete c @7        put d @8
//!                 │          │                │                        │
//!               copy of all keys          watch from 7              watch …
//!                 at revision 6               │                        │
//! destination  put a, put b, progress 6   put a, delete c, progress 7  put d, progress 8
//! ```
//!
//! First all keys are copied as they were at one revision, in pages; then the source is watched from the next revision
//! on, and what it did at one revision is done in one transaction.
//!
//! **Progress** is kept in the destination, because only there can it be written together with what it speaks of: a
//! mirror that is killed at any moment goes on at the next revision, and does nothing twice. A transaction whose outcome
//! is unknown is sent again under a condition that fails when it was carried out ([`progress`]).
//!
//! | | [`Options::keep_revisions`] | else |
//! |---|---|---|
//! | the destination is at first | an import of a snapshot of the source | empty |
//! | progress is | the destination's revision: it is the source's | in the key [`PROGRESS_KEY`] |
//! | kept are | keys, values, leases, versions, create and mod revisions, HashKV | keys, values, leases |
//! | when the source has compacted what was not mirrored yet | it ends: import again | copies again what differs, deletes what has vanished |
//! | the compacted revision | follows the source's at the cut-over | is the destination's own |
//!
//! **Leases** have the id and TTL of the source's. They are kept alive in the destination for as long as the source has
//! them, so their time begins anew there at the cut-over. What expires is deleted when the source says so. While no mirror
//! runs for longer than a lease's TTL, the destination deletes the lease's keys itself; without `keep_revisions` they are
//! put back, with it the destination has gone its own way and the mirror says so. [`Options::lease_ttl_min`] gives more
//! time.
//!
//! Not mirrored: users and roles, alarms, members. Nobody else may write to the destination meanwhile.

mod copy;
mod leases;
mod progress;
mod replay;
mod verify;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{interval, sleep},
};

pub use progress::PROGRESS_KEY;
use progress::Record;
use replay::{Kept, Way};
pub use verify::Verdict;

use crate::{Client, Error, EtcdError, Get, Watch, Watcher, mirror::leases::Leases, mvccpb::event::EventType};

/// How often the source is asked for its revision and leases.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// With one a second, a day.
const AWAITED_MOST: usize = 86_400;

/// Before a server that could not answer is asked again.
const PAUSE: Duration = Duration::from_millis(250);

/// How a mirror works.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Each revision of the source is the same one in the destination, which must be an import of the source.
    pub keep_revisions: bool,
    /// The destination may have keys at first: those that the source has not are deleted.
    pub overwrite: bool,
    /// Leases last at least this many seconds in the destination.
    pub lease_ttl_min: i64,
}

/// Why a mirror ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The source has refused what the mirror needs.
    #[error("source: {0}")]
    Source(#[source] Error),
    /// The destination has refused what the mirror needs.
    #[error("destination: {0}")]
    Destination(#[source] Error),
    /// Nothing was done: what was asked for would harm, or cannot be.
    #[error("{0}")]
    Refused(String),
    /// Something else writes to the destination.
    #[error("destination: {0}")]
    Diverged(String),
}

type Result<T> = std::result::Result<T, Failure>;

/// What a mirror is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    /// It finds out where to go on.
    #[default]
    Starting,
    /// Keys are compared and copied, as they were at a revision.
    Copying {
        /// The source's revision that is copied.
        revision: i64,
        /// How many keys were looked at until now.
        keys: u64,
    },
    /// What the source does is replayed.
    Following,
    /// Both stores make their HashKV, for which they read all they have.
    Hashing,
    /// Everything is compared.
    Verifying {
        /// How many keys were compared until now.
        keys: u64,
    },
}

/// How far a mirror is.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// What is being done.
    pub phase: Phase,
    /// The source's revision when it was last asked.
    pub source_revision: i64,
    /// Everything up to this revision of the source is in the destination.
    pub mirrored_revision: i64,
    /// Revisions of the source that the destination has not, and when they were first heard of.
    awaited: VecDeque<(i64, Instant)>,
    /// What was replayed since the start.
    pub transactions: u64,
    /// What keeps the mirror from going on just now.
    pub trouble: Option<String>,
}

impl Status {
    /// How many revisions the destination is behind.
    pub fn lag(&self) -> i64 {
        (self.source_revision - self.mirrored_revision).max(0)
    }

    /// How long ago the source was first heard to have something that the destination has not.
    pub fn lag_time(&self) -> Duration {
        self.awaited.front().map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    fn heard_of(&mut self, source_revision: i64) {
        if source_revision > self.source_revision.max(self.mirrored_revision) && self.awaited.len() < AWAITED_MOST {
            self.awaited.push_back((source_revision, Instant::now()));
        }
        self.source_revision = self.source_revision.max(source_revision);
    }

    fn mirrored(&mut self, revision: i64) {
        self.mirrored_revision = revision;
        self.source_revision = self.source_revision.max(revision);
        while self.awaited.front().is_some_and(|(awaited, _)| *awaited <= revision) {
            self.awaited.pop_front();
        }
        self.trouble = None;
    }
}

/// A mirror of one store in another.
#[derive(Debug)]
pub struct Mirror {
    source: Client,
    destination: Client,
    options: Options,
    status: watch::Sender<Status>,
}

/// Where the changes come from, and where they go to.
struct Running {
    way: Way,
    leases: Leases,
    watcher: Watcher,
    /// The last revision that did something else than delete.
    last_put: i64,
}

impl Mirror {
    /// Nothing is done before [`Mirror::run`].
    pub fn new(source: Client, destination: Client, options: Options) -> Mirror {
        Mirror { source, destination, options, status: watch::Sender::default() }
    }

    /// How far it is, as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Mirrors until it is dropped, or cannot go on.
    ///
    /// # Errors
    /// What a later attempt may mend (a server that cannot be reached) is waited for, and shown in the status.
    pub async fn run(&self) -> Result<std::convert::Infallible> {
        let mut running = self.begin().await?;
        loop {
            self.follow(&mut running, None).await?;
        }
    }

    /// Mirrors until the destination has all that the source has, and compares them. The source must not be written to
    /// any more; if it is for longer than `patience`, this is refused. Leases may run out: what is deleted while stores are
    /// compared, which takes minutes where they are large, is mirrored and does not make the comparison worthless.
    pub async fn cut_over(&self, patience: Duration) -> Result<Verdict> {
        let mut running = self.begin().await?;
        let deadline = Instant::now() + patience;
        loop {
            let revision = self.source_revision().await?;
            self.follow(&mut running, Some(revision)).await?;
            // The source's leases without keys are made, and those that it has no more are revoked.
            for _ in 0..leases::MISSING_TWICE {
                self.poll(&mut running).await?;
            }
            let verdict = self.verify(&running.way, revision).await?;
            let last = self.source_revision().await?;
            self.follow(&mut running, Some(last)).await?;
            if running.last_put <= revision {
                if verdict.is_equal() {
                    running.way.finish(self).await?;
                }
                return Ok(verdict);
            }
            if Instant::now() >= deadline {
                let reason =
                    format!("the source is still written to: something was put at revision {}", running.last_put);
                return Err(Failure::Refused(reason));
            }
        }
    }

    /// Finds out where to go on, and brings the destination to the state of a revision.
    async fn begin(&self) -> Result<Running> {
        let (cluster, revision) = self.patient(|| header(&self.source)).await?;
        self.status.send_modify(|status| status.heard_of(revision));
        let mut way = if self.options.keep_revisions {
            Way::SameRevisions(self.begin_import(revision).await?)
        } else {
            Way::Recorded(self.begin_record(cluster, revision).await?)
        };
        let mut leases = Leases::new(&self.source, &self.destination, self.options.lease_ttl_min);
        // Before all that takes long, so that none runs out meanwhile.
        while let Err(failure) = leases.adopt(way.revision()).await {
            self.wait_out(failure).await?;
        }
        if let Way::SameRevisions(kept) = &way {
            self.check_import(kept.revision).await?;
        }
        let watcher = self.catch_up(&mut way, &mut leases).await?;
        Ok(Running { way, leases, watcher, last_put: 0 })
    }

    /// Brings the destination to the state of a revision, and watches from the next one on.
    async fn catch_up(&self, way: &mut Way, leases: &mut Leases) -> Result<Watcher> {
        loop {
            self.copy_if_needed(way, leases).await?;
            self.restore_expired(way, leases).await?;
            let watch = Watch::all().from_revision(way.revision() + 1).on_its_own_stream();
            match self.patient(|| self.source.watch(watch.clone())).await {
                Ok(watcher) => {
                    self.status.send_modify(|status| {
                        status.phase = Phase::Following;
                        status.mirrored(way.revision());
                    });
                    return Ok(watcher);
                }
                Err(failure) => self.copy_again_after(failure, way)?,
            }
        }
    }

    /// The destination says up to where it was mirrored, or is new. From then on the record is this mirror's. The last
    /// transaction of one that was killed may come while the record is read: that is looked at once, and a second time
    /// it is another mirror.
    async fn begin_record(&self, cluster: u64, revision: i64) -> Result<Record> {
        let mut record = self.find_record(cluster, revision).await?;
        match self.take_over(&mut record).await {
            Err(Failure::Diverged(_)) => {
                record = self.find_record(cluster, revision).await?;
                self.take_over(&mut record).await?;
            }
            taken => taken?,
        }
        Ok(record)
    }

    async fn take_over(&self, record: &mut Record) -> Result<()> {
        let next = record.progress.taken_over();
        self.commit(record, Vec::new(), next).await
    }

    async fn find_record(&self, cluster: u64, revision: i64) -> Result<Record> {
        let found = self.to_destination(|| Record::load(&self.destination)).await??;
        if let Some(record) = found {
            record.check(cluster, revision)?;
            return Ok(record);
        }
        let keys = self.to_destination(|| self.destination.get(Get::all().count_only())).await?.count;
        if keys > 0 && !self.options.overwrite {
            let reason = format!(
                "the destination has {keys} keys, and no mirror has written them; if it was made by `pintle import` of \
                 a snapshot of the source, use --keep-revisions, and if what is there may be deleted, --overwrite"
            );
            return Err(Failure::Refused(reason));
        }
        Ok(Record::new(cluster))
    }

    /// The destination's revision is one that the source has had.
    async fn begin_import(&self, source_revision: i64) -> Result<Kept> {
        let (_, revision) = self.to_destination(|| header(&self.destination)).await?;
        if revision > source_revision {
            let reason = format!(
                "--keep-revisions: the destination is at revision {revision}, the source only at {source_revision}"
            );
            return Err(Failure::Refused(reason));
        }
        Ok(Kept { revision })
    }

    /// The destination is what the source was at the destination's revision.
    async fn check_import(&self, revision: i64) -> Result<()> {
        match self.last_change_differs(revision).await? {
            None => Ok(()),
            Some(difference) => Err(Failure::Refused(format!(
                "--keep-revisions: the destination is not what the source was at revision {revision}: {difference}; \
                 import a new snapshot"
            ))),
        }
    }

    async fn copy_if_needed(&self, way: &mut Way, leases: &mut Leases) -> Result<()> {
        let Way::Recorded(record) = way else { return Ok(()) };
        while !record.progress.is_copied() {
            match self.copy(record, leases).await {
                Ok(()) => {}
                Err(Failure::Source(Error::Etcd(EtcdError::Compacted))) => record.copy_again(),
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// The source has forgotten what comes next.
    fn copy_again_after(&self, failure: Failure, way: &mut Way) -> Result<()> {
        match (failure, way) {
            (Failure::Source(Error::WatchCompacted { compact_revision }), Way::Recorded(record)) => {
                tracing::info!(compact_revision, "the source has compacted what was not mirrored; copying again");
                record.copy_again();
                Ok(())
            }
            (Failure::Source(Error::WatchCompacted { compact_revision }), Way::SameRevisions(kept)) => {
                let reason = format!(
                    "--keep-revisions: the destination is at revision {}, and the source has compacted up to {}; import \
                     a new snapshot",
                    kept.revision, compact_revision
                );
                Err(Failure::Refused(reason))
            }
            (failure, _) => Err(failure),
        }
    }

    /// Replays what the source does; up to a revision, where one is given.
    async fn follow(&self, running: &mut Running, until: Option<i64>) -> Result<()> {
        let mut poll = interval(POLL_INTERVAL);
        while until.is_none_or(|until| running.way.revision() < until) {
            tokio::select! {
                biased;
                _ = poll.tick() => {
                    let begin = Instant::now();
                    self.poll(running).await?;
                    // A source that answers slowly is not asked all the time.
                    poll.reset_after(begin.elapsed().max(POLL_INTERVAL));
                }
                response = running.watcher.next() => match response {
                    Ok(response) => {
                        for changes in response.events.chunk_by(|a, b| replay::revision(a) == replay::revision(b)) {
                            self.replay(&mut running.way, &mut running.leases, changes).await?;
                            if changes.iter().any(|event| event.r#type() == EventType::Put) {
                                running.last_put = running.way.revision();
                            }
                        }
                    }
                    Err(error) => {
                        self.copy_again_after(Failure::Source(error), &mut running.way)?;
                        running.watcher = self.catch_up(&mut running.way, &mut running.leases).await?;
                        // What was copied may have been put.
                        running.last_put = running.way.revision();
                    }
                },
            }
        }
        Ok(())
    }

    /// How far the source is, and which leases it has.
    async fn poll(&self, running: &mut Running) -> Result<()> {
        match running.leases.poll(running.way.revision()).await {
            Ok(poll) => {
                self.status.send_modify(|status| status.heard_of(poll.source_revision));
                if poll.has_lost_some {
                    self.restore_expired(&mut running.way, &mut running.leases).await?;
                }
                Ok(())
            }
            // Asked again soon.
            Err(failure) => self.wait_out(failure).await,
        }
    }

    async fn source_revision(&self) -> Result<i64> {
        let (_, revision) = self.patient(|| header(&self.source)).await?;
        self.status.send_modify(|status| status.heard_of(revision));
        Ok(revision)
    }

    /// Waits a moment where another attempt may do better.
    async fn wait_out(&self, failure: Failure) -> Result<()> {
        match &failure {
            Failure::Source(error) | Failure::Destination(error) if error.is_transient() => {
                self.status.send_modify(|status| status.trouble = Some(failure.to_string()));
                sleep(PAUSE).await;
                Ok(())
            }
            _ => Err(failure),
        }
    }

    /// Asks the source until it answers.
    ///
    /// Not `AsyncFn`: what calls it with one could not be spawned.
    async fn patient<T, F: Future<Output = crate::Result<T>>>(&self, ask: impl Fn() -> F) -> Result<T> {
        loop {
            match ask().await.map_err(Failure::Source) {
                Err(failure) => self.wait_out(failure).await?,
                answer => return answer,
            }
        }
    }

    /// Asks the destination until it answers.
    async fn to_destination<T, F: Future<Output = crate::Result<T>>>(&self, ask: impl Fn() -> F) -> Result<T> {
        loop {
            match ask().await.map_err(Failure::Destination) {
                Err(failure) => self.wait_out(failure).await?,
                answer => return answer,
            }
        }
    }
}

/// The cluster, and its revision. One key is asked for: where all are counted, a large store takes seconds.
async fn header(client: &Client) -> crate::Result<(u64, i64)> {
    let header = client.get(Get::key(PROGRESS_KEY).count_only()).await?.header.unwrap_or_default();
    Ok((header.cluster_id, header.revision))
}
