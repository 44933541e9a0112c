//! Probes: situations that load seldom produces, each made on purpose and looked at closely.
//!
//! A probe takes seconds, needs no checker for histories, and knows what must come of what it does. Each says which
//! promise it is about.

mod client;
mod disk;
mod leases;
mod members;
mod reads;
mod store;
mod sync_order;
mod watches;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Result, ensure};
use clap::ValueEnum as _;

use crate::process::{Cluster, Node, Target};

#[derive(clap::Args)]
pub struct Arguments {
    /// The server to run: Pintle or etcd
    #[arg(long)]
    binary: PathBuf,
    /// Only these
    #[arg(long, value_enum)]
    only: Vec<Probe>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Probe {
    /// A leader that was paused and replaced gives no stale answer when it goes on
    PausedLeader,
    /// A member that answered a write shows it to the serializable read after it
    OwnWrites,
    /// A leader that was paused and replaced renews no lease that is gone
    PausedRenewal,
    /// A lease lives through an election for its whole time, and ends
    LeaseOverElection,
    /// A lease takes its keys with it, these and no others, in one revision
    LeaseKeys,
    /// A lock has one holder
    Lock,
    /// A watcher that does not read for a while misses nothing
    StarvedWatch,
    /// History comes whole, in order, and once, revision by revision
    PastWatch,
    /// A watch from a revision that is not there yet begins with it
    FutureWatch,
    /// A watch gets the kinds of events that it asked for
    FilteredWatch,
    /// A watch from the compacted revision has its delete, and no version from before
    CompactedWatch,
    /// Progress is told when everything up to it has been
    Progress,
    /// A member that lags is brought up by a snapshot: its leases are there, and its watches go on
    Snapshot,
    /// What is at the compacted revision can be read, in no way what was before
    CompactedReads,
    /// Compaction and a restart leave the revision where it was
    CompactedRevision,
    /// A nested transaction compares with the state before the outer one
    NestedCompare,
    /// Who has no right on a key cannot write it
    Rights,
    /// What was acknowledged survives a kill, also where the store has written its files meanwhile
    LargeCrash,
    /// What the log has let go is in the store after a kill
    PurgedLog,
    /// A kill during a defragmentation loses nothing
    DefragmentCrash,
    /// A member without its data is not let in as itself
    WipedMember,
    /// A member that was added and has not started does not stand in the way
    AddedMember,
    /// A member whose fsync fails ends
    FailedSync,
    /// Each write to the log is synced, and each segment's name
    SyncOrder,
    /// A write that a client was not answered is done once, or not at all
    DoneOnce,
}

impl Probe {
    async fn run(self, setup: &Setup<'_>) -> Result<()> {
        match self {
            Probe::PausedLeader => reads::paused_leader(setup).await,
            Probe::OwnWrites => reads::own_writes(setup).await,
            Probe::PausedRenewal => leases::paused_renewal(setup).await,
            Probe::LeaseOverElection => leases::over_election(setup).await,
            Probe::LeaseKeys => leases::keys(setup).await,
            Probe::Lock => leases::lock(setup).await,
            Probe::StarvedWatch => watches::starved(setup).await,
            Probe::PastWatch => watches::past(setup).await,
            Probe::FutureWatch => watches::future(setup).await,
            Probe::FilteredWatch => watches::filtered(setup).await,
            Probe::CompactedWatch => watches::compacted(setup).await,
            Probe::Progress => watches::progress(setup).await,
            Probe::Snapshot => members::snapshot(setup).await,
            Probe::CompactedReads => store::compacted_reads(setup).await,
            Probe::CompactedRevision => store::compacted_revision(setup).await,
            Probe::NestedCompare => store::nested_compare(setup).await,
            Probe::Rights => store::rights(setup).await,
            Probe::LargeCrash => disk::large_crash(setup).await,
            Probe::PurgedLog => disk::purged_log(setup).await,
            Probe::DefragmentCrash => disk::defragment_crash(setup).await,
            Probe::WipedMember => members::wiped(setup).await,
            Probe::AddedMember => members::added(setup).await,
            Probe::FailedSync => disk::failed_sync(setup).await,
            Probe::SyncOrder => sync_order::sync_order(setup).await,
            Probe::DoneOnce => members::done_once(setup).await,
        }
    }

    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// What a probe starts its members with.
struct Setup<'a> {
    target: &'a Target,
    dir: &'a Path,
}

impl Setup<'_> {
    async fn cluster(&self, size: usize, flags: &[&str]) -> Result<Cluster> {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Cluster::start(self.target, size, self.dir, &flags).await
    }

    async fn single(&self, flags: &[&str]) -> Result<Node> {
        let mut cluster = self.cluster(1, flags).await?;
        Ok(cluster.nodes.remove(0))
    }
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let target = Target::new(&arguments.binary)?;
    let chosen = match arguments.only.as_slice() {
        [] => Probe::value_variants(),
        only => only,
    };
    let mut failed = Vec::new();
    for probe in chosen {
        let dir = tempfile::Builder::new().prefix("pintle-probe-").tempdir()?;
        let began = Instant::now();
        let outcome = probe.run(&Setup { target: &target, dir: dir.path() }).await;
        let (name, seconds) = (probe.name(), began.elapsed().as_secs_f64());
        match outcome {
            Ok(()) => println!("{name}: holds; {seconds:.1} s"),
            Err(error) => {
                println!("FAILED {name}: {error:#}; {seconds:.1} s");
                failed.push(name);
            }
        }
    }
    ensure!(failed.is_empty(), "{} of {} probes failed: {}", failed.len(), chosen.len(), failed.join(", "));
    Ok(())
}
