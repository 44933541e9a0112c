//! What keeps a member's backups: one task that archives the log, and one that takes full backups and removes old ones.
//!
//! | | when it fails |
//! |---|---|
//! | the archive | what was to be archived stays in the queue, for the next time; when the queue is too long: a gap |
//! | a full backup | what there is of it is removed; it is tried again soon |
//!
//! A data directory goes on with the chain it has begun, whose id is in `member/backup/chain`; one that was restored, or
//! copied without it, begins its own.

use std::{
    fs::{self, DirBuilder},
    io,
    ops::RangeInclusive,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use raft::LoggedEntry;
use storage::{Store, host};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    BackupError, Settings, Tap, Time,
    archive::{Archive, CHAIN_MANIFEST, bases, chains},
    base::{self, MANIFEST, Owner, Place, Taken},
    error::At as _,
    manifest::{BaseManifest, ChainManifest, FORMAT, read_json, write_file},
    retention,
    segment::{ChainId, Entry},
};
use crate::metrics::BackupMetrics;

/// Until what has failed is tried again, unless it is due before.
const RETRY: Duration = Duration::from_secs(10);

/// The tasks of a member that keeps backups.
pub struct Backups {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    node: oneshot::Sender<raft::Node>,
}

/// What both tasks know.
#[derive(Clone)]
struct Member {
    settings: Settings,
    owner: Owner,
    /// In the backup directory.
    dir: PathBuf,
    /// In the data directory.
    local: PathBuf,
    store: Store,
    metrics: Arc<BackupMetrics>,
    stop: CancellationToken,
}

/// The chain that is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Current {
    number: u64,
    chain: ChainId,
    dir: PathBuf,
}

impl Member {
    fn take_base(&self, current: &Current) -> Result<Taken, BackupError> {
        let place = Place { member_dir: &self.dir, chain_dir: &current.dir, chain: current.chain, stop: &self.stop };
        base::take(&self.store, &self.owner, &place, &self.local.join("checkpoint"))
    }
}

impl Backups {
    /// Begins before the store is applied to, which `tap` is told of.
    pub fn start(
        settings: &Settings,
        owner: Owner,
        data_dir: &Path,
        store: Store,
        tap: Arc<Tap>,
        metrics: Arc<BackupMetrics>,
    ) -> io::Result<Backups> {
        metrics.is_configured.set(1);
        let local = data_dir.join("member").join("backup");
        fs::create_dir_all(&local)?;
        let dir = settings.dir.join(format!("{:x}", owner.cluster)).join(format!("{:x}", owner.member));
        let stop = CancellationToken::new();
        let (node, log) = oneshot::channel();
        let opened_at = (store.applied().index, store.revision());
        let member = Member { settings: settings.clone(), owner, dir, local, store, metrics, stop: stop.clone() };
        let (current, chain) = watch::channel(None);
        let state = State::Starting;
        let archiver =
            Archiver { member: member.clone(), tap, state, opened_at, log: Some(log), missing: None, current };
        let tasks = vec![host::spawn(archiver.run()), host::spawn(Bases { member, chain, last: None }.run())];
        Ok(Backups { stop, tasks, node })
    }

    /// Names the node as soon as it is there: what was applied and not archived before may be in its log.
    pub fn run_beside(self, node: &raft::Node) -> RunningBackups {
        // Nobody waits for it where nothing is missing.
        let _ = self.node.send(node.clone());
        RunningBackups { stop: self.stop, tasks: self.tasks }
    }
}

/// The same beside a node.
pub struct RunningBackups {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl RunningBackups {
    /// To be called when nothing is applied any more: all that was is in the archive then, if it can be written.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            // A task that panicked has said so.
            let _ = task.await;
        }
    }
}

enum State {
    /// Of this process nothing is archived yet.
    Starting,
    Running(Archive),
    /// Why there is to be another chain.
    Broken(String),
}

struct Archiver {
    member: Member,
    tap: Arc<Tap>,
    state: State,
    /// What the store had applied when it was opened, which is not told of again, and its revision.
    opened_at: (u64, i64),
    /// The node, when it is there; not waited for where nothing is missing.
    log: Option<oneshot::Receiver<raft::Node>>,
    /// Applied before the store was opened, and not archived.
    missing: Option<RangeInclusive<u64>>,
    current: watch::Sender<Option<Current>>,
}

impl Archiver {
    async fn run(mut self) {
        let (mut has_failed, mut wait) = (false, Duration::ZERO);
        loop {
            let is_last = tokio::select! {
                // A delay: what has been applied meanwhile shares a sync, and after a failure nobody tells of its end.
                () = tokio::time::sleep(wait) => false,
                () = self.tap.soon.notified() => false,
                () = self.member.stop.cancelled() => true,
            };
            let step = move || {
                let result = self.step(is_last);
                (self, result)
            };
            let Ok((archiver, result)) = host::blocking(step).await else { return };
            self = archiver;
            let metrics = &self.member.metrics;
            metrics.queue_bytes.set(self.tap.bytes() as i64);
            match result {
                Ok(()) if has_failed => tracing::info!("the log is archived again"),
                Ok(()) => {}
                Err(error) => {
                    metrics.archive_failures.inc();
                    if !has_failed {
                        tracing::error!(%error, "the log could not be archived; trying again");
                    }
                    has_failed = true;
                    metrics.is_archiving.set(0);
                    if is_last {
                        return;
                    }
                    wait = self.member.settings.log_interval.min(RETRY);
                    continue;
                }
            }
            has_failed = false;
            metrics.is_archiving.set(1);
            if is_last {
                return;
            }
            wait = self.member.settings.log_interval;
            if let Some(missing) = self.missing.take() {
                self.fill(missing).await;
                wait = Duration::ZERO;
            }
        }
    }

    /// Takes from the Raft log what the process before has applied and not archived.
    async fn fill(&mut self, missing: RangeInclusive<u64>) {
        let node = async { self.log.take()?.await.ok() };
        let node = self.member.stop.run_until_cancelled(node).await.flatten();
        let logged = match node {
            Some(node) => node.logged(missing.clone()).await,
            None => None,
        };
        let Some(logged) = logged else {
            let (from, to) = missing.into_inner();
            let reason =
                format!("entries {from} to {to} were not archived before the member ended, and are gone from its log");
            return self.break_off(reason);
        };
        let time = Time::now();
        let entries = logged.into_iter().map(|LoggedEntry { index, term, command }| {
            let revision = if index == self.opened_at.0 { self.opened_at.1 } else { 0 };
            Entry { index, term, revision, time, command }
        });
        self.tap.put_back(entries.collect());
    }

    fn step(&mut self, is_last: bool) -> Result<(), BackupError> {
        if let State::Starting = self.state {
            match self.resume()? {
                Ok(archive) => self.run_on(archive),
                Err(reason) => self.break_off(reason),
            }
            if self.missing.is_some() {
                return Ok(());
            }
            self.log = None;
        }
        let entries = match self.tap.take() {
            Ok(entries) => entries,
            Err(gap) => {
                self.break_off(gap.to_string());
                Vec::new()
            }
        };
        let archived = self.archive(&entries);
        if archived.is_err() {
            self.tap.put_back(entries);
        }
        archived?;
        match &mut self.state {
            State::Running(archive) if is_last => archive.complete(),
            _ => Ok(()),
        }
    }

    fn archive(&mut self, entries: &[Entry]) -> Result<(), BackupError> {
        if let State::Running(archive) = &self.state
            && !archive.dir().exists()
            && self.member.settings.dir.is_dir()
        {
            let gone = format!("{} is gone", archive.dir().display());
            self.break_off(gone);
        }
        if let State::Broken(reason) = &self.state {
            let archive = self.begin(reason)?;
            self.run_on(archive);
        }
        let State::Running(archive) = &mut self.state else { unreachable!("a chain has been begun") };
        match archive.append(entries)? {
            Ok(bytes) => {
                let metrics = &self.member.metrics;
                metrics.archived_bytes.inc_by(bytes);
                metrics.archived_index.set(archive.last_index() as i64);
                metrics.archive_time.set(Time::now().unix_ms / 1000);
                Ok(())
            }
            Err(missing) => {
                self.break_off(format!("entries {} to {} were not told of", missing.from, missing.to));
                self.archive(&[])
            }
        }
    }

    /// The chain cannot go on.
    fn break_off(&mut self, reason: String) {
        if let State::Running(archive) = &mut self.state {
            // What of it is whole is found also without this.
            if let Err(error) = archive.complete() {
                tracing::warn!(%error, "the end of a chain was not completed");
            }
        }
        self.state = State::Broken(reason);
    }

    fn run_on(&mut self, archive: Archive) {
        let current = Current { number: archive.number(), chain: archive.chain(), dir: archive.dir().into() };
        self.current.send_replace(Some(current));
        self.state = State::Running(archive);
    }

    /// Goes on with the chain of the process before, or says why not.
    fn resume(&mut self) -> Result<Result<Archive, String>, BackupError> {
        let member = &self.member;
        create(&member.settings.dir).at(&member.settings.dir)?;
        let found = if member.dir.exists() { chains(&member.dir)?.pop() } else { None };
        let Some((number, dir)) = found else { return Ok(Err("it is this member's first one here".into())) };
        let path = member.local.join("chain");
        let own = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<ChainId>().ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).at(&path),
        };
        let resumed = read_json::<ChainManifest>(&dir.join(CHAIN_MANIFEST)).and_then(|manifest| {
            let own = manifest.filter(|manifest| Some(manifest.chain) == own);
            own.map(|manifest| Archive::resume(&dir, number, &manifest)).transpose()
        });
        let archive = match resumed {
            Ok(Some(archive)) => archive,
            Ok(None) => return Ok(Err("the data directory is new, or was restored".into())),
            Err(error @ (BackupError::Damaged { .. } | BackupError::Format { .. })) => {
                return Ok(Err(error.to_string()));
            }
            Err(error) => return Err(error),
        };
        let (archived, applied) = (archive.last_index(), self.opened_at.0);
        self.missing = (archived < applied).then_some(archived + 1..=applied);
        tracing::info!(chain = number, archived_index = archived, "goes on with the archived log");
        Ok(Ok(archive))
    }

    fn begin(&self, reason: &str) -> Result<Archive, BackupError> {
        let member = &self.member;
        // Before the store is asked: so whatever it applies behind `after_index` is in the queue.
        self.tap.arm();
        let after_index = member.store.applied().index;
        // The directory itself is made at the start only: it may be a file system that is not mounted now.
        fs::metadata(&member.settings.dir).at(&member.settings.dir)?;
        create(&member.dir).at(&member.dir)?;
        let chain = ChainId(rand::random());
        let manifest = ChainManifest {
            format: FORMAT,
            chain,
            cluster: member.owner.cluster,
            member: member.owner.member,
            name: member.owner.name.clone(),
            after_index,
            began: Time::now(),
            reason: reason.into(),
        };
        let archive = Archive::begin(&member.dir, manifest)?;
        write_file(&member.local.join("chain"), format!("{chain}\n").as_bytes())?;
        member.metrics.chains.inc();
        match archive.number() {
            1 => tracing::info!(chain = 1, after_index, reason, "begins a chain of backups"),
            chain => tracing::warn!(chain, after_index, reason, "begins another chain of backups"),
        }
        Ok(archive)
    }
}

/// Takes full backups.
struct Bases {
    member: Member,
    chain: watch::Receiver<Option<Current>>,
    /// The newest: its chain, and when it was taken.
    last: Option<(u64, Instant)>,
}

impl Bases {
    async fn run(mut self) {
        let (stop, mut retry_at) = (self.member.stop.clone(), None);
        loop {
            let current = self.chain.borrow_and_update().clone();
            let due = match &current {
                Some(current) => self.due(current).await.map(|due| retry_at.map_or(due, |retry| due.max(retry))),
                None => None,
            };
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                Ok(()) = self.chain.changed() => continue,
                () = stop.cancelled() => return,
            }
            let Some(current) = current else { continue };
            retry_at = match self.take(&current).await {
                true => None,
                false => Some(Instant::now() + RETRY),
            };
        }
    }

    /// When a full backup is to be taken: at once where the chain has none.
    async fn due(&mut self, current: &Current) -> Option<Instant> {
        if self.last.is_none_or(|(number, _)| number != current.number) {
            let dir = current.dir.clone();
            let newest = host::blocking(move || newest_base(&dir)).await.ok().flatten();
            let Some(time) = newest else { return Some(Instant::now()) };
            let age = Duration::from_millis(Time::now().unix_ms.saturating_sub(time.unix_ms).max(0) as u64);
            let taken = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
            self.last = Some((current.number, taken));
        }
        let (_, taken) = self.last?;
        Some(taken + self.member.settings.interval?)
    }

    /// Whether it is done.
    async fn take(&mut self, current: &Current) -> bool {
        let (member, chain, began) = (self.member.clone(), current.clone(), Instant::now());
        let taken = host::blocking(move || member.take_base(&chain)).await;
        let metrics = &self.member.metrics;
        match taken {
            Ok(Ok(Taken { manifest, new_bytes })) => {
                metrics.bases.inc();
                metrics.base_time.set(Time::now().unix_ms / 1000);
                metrics.base_seconds.observe(began.elapsed().as_secs_f64());
                let (revision, bytes) = (manifest.revision, manifest.bytes());
                tracing::info!(chain = current.number, revision, bytes, new_bytes, "took a full backup");
                self.last = Some((current.number, Instant::now()));
            }
            _ if self.member.stop.is_cancelled() => return false,
            failed => {
                let error = failed.map_or_else(|panic| panic.to_string(), |taken| taken.unwrap_err().to_string());
                metrics.base_failures.inc();
                tracing::error!(error, "a full backup failed; trying again");
                return false;
            }
        }
        let (member, number) = (self.member.clone(), current.number);
        let pruned = host::blocking(move || retention::prune(&member.dir, member.settings.keep, number)).await;
        if let Ok(Err(error)) = pruned {
            metrics.base_failures.inc();
            tracing::error!(%error, "old backups could not be removed");
        }
        true
    }
}

/// What is in a store is not for everybody.
fn create(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// When the newest full backup of a chain was taken. One that cannot be read is none.
fn newest_base(chain_dir: &Path) -> Option<Time> {
    let (_, dir) = bases(chain_dir).ok()?.pop()?;
    Some(read_json::<BaseManifest>(&dir.join(MANIFEST)).ok()??.time)
}
