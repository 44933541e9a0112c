//! Disks that are slow, full, or fail.

use std::{
    fs::{self, OpenOptions},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::{FutureExt as _, future::BoxFuture};
use rand::{Rng as _, rngs::StdRng};
use tokio::task::block_in_place;

use super::{Effect, Fault, Nemesis, victims};
use crate::test::nodes::{
    Needs, Nodes,
    disk::{extents, visit},
    failing_disk::{Damage, Faults, SECTOR_BYTES},
};

/// How long a node may take to notice that its disk fails. Under load it writes all the time.
const NOTICE_LIMIT: Duration = Duration::from_secs(20);
const FILLER: &str = "filler";
/// What is left free on a full disk: less than most files take.
const LEFT_FREE_BYTES: std::ops::Range<u64> = 0..(2 << 20);
const BLOCK_BYTES: usize = 4096;

fn damage_of(nodes: &Nodes, victims: &[usize]) -> Result<Damage> {
    let mut sum = Damage::default();
    for victim in victims {
        let damage = nodes.machine(*victim).disk.failing()?.damage();
        sum.syncs_delayed += damage.syncs_delayed;
        sum.syncs_failed += damage.syncs_failed;
        sum.syncs_dropped += damage.syncs_dropped;
        sum.reads_failed += damage.reads_failed;
    }
    Ok(sum)
}

fn set_faults(nodes: &Nodes, victims: &[usize], faults: &Faults) -> Result<()> {
    victims.iter().try_for_each(|victim| {
        nodes.machine(*victim).disk.failing()?.set(faults.clone());
        Ok(())
    })
}

/// Each sync takes long on a minority, or on all.
#[derive(Default)]
pub struct SlowSync {
    slow: Vec<usize>,
    before: Damage,
}

impl Nemesis for SlowSync {
    fn name(&self) -> &'static str {
        "slow-sync"
    }

    fn needs(&self) -> Needs {
        Needs { failing_disk: true, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            self.slow = match random.random_bool(0.5) {
                true => victims::minority(nodes, random).await?,
                false => (0..nodes.len()).collect(),
            };
            self.before = damage_of(nodes, &self.slow)?;
            let sync_delay = Duration::from_millis(random.random_range(20..400));
            let at = Instant::now();
            set_faults(nodes, &self.slow, &Faults { sync_delay, ..Faults::default() })?;
            let description = format!("each sync of {} takes {sync_delay:?} longer", nodes.names(&self.slow));
            Ok(Fault::new(nodes, &self.slow, at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            set_faults(nodes, &self.slow, &Faults::default())?;
            let delayed = damage_of(nodes, &self.slow)?.syncs_delayed - self.before.syncs_delayed;
            Ok(Effect::now("syncs are fast again", &[("syncs delayed", delayed)]))
        }
        .boxed()
    }
}

/// The syncs of a minority fail. What was not synced may be lost even though later syncs succeed ("Can Applications
/// Recover from fsync Failures?", USENIX ATC 2020), so a node must end.
#[derive(Default)]
pub struct SyncError {
    failing: Vec<usize>,
    before: Damage,
}

impl Nemesis for SyncError {
    fn name(&self) -> &'static str {
        "sync-error"
    }

    fn needs(&self) -> Needs {
        Needs { failing_disk: true, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            self.failing = victims::minority(nodes, random).await?;
            self.before = damage_of(nodes, &self.failing)?;
            for victim in &self.failing {
                nodes.may_end(*victim, &[]);
            }
            let at = Instant::now();
            set_faults(nodes, &self.failing, &Faults { fail_syncs: true, ..Faults::default() })?;
            let description = format!("the syncs of {} fail", nodes.names(&self.failing));
            Ok(Fault::new(nodes, &self.failing, at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            nodes.await_end(&self.failing, NOTICE_LIMIT).await.context("its disk fails")?;
            set_faults(nodes, &self.failing, &Faults::default())?;
            let failed = damage_of(nodes, &self.failing)?.syncs_failed - self.before.syncs_failed;
            nodes.remount(&self.failing)?;
            nodes.start_stopped().await?;
            let counters = [("syncs failed", failed), ("nodes that ended for it", self.failing.len() as u64)];
            Ok(Effect::now("disks are sound again", &counters))
        }
        .boxed()
    }
}

/// The disk of a follower confirms syncs and does not do them, and its power is cut. What the member has answered for
/// is gone then: it must end when its leader tells it so, and is replaced. One at a time, and with no other fault: until
/// it is replaced, a quorum needs all others.
#[derive(Default)]
pub struct LostSyncs {
    victim: Option<usize>,
    before: Damage,
}

impl Nemesis for LostSyncs {
    fn name(&self) -> &'static str {
        "lost-syncs"
    }

    fn needs(&self) -> Needs {
        Needs { failing_disk: true, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let leader = nodes.leader().await?;
            let victim = (leader + random.random_range(1..nodes.len())) % nodes.len();
            self.before = damage_of(nodes, &[victim])?;
            let at = Instant::now();
            set_faults(nodes, &[victim], &Faults { drop_syncs: true, ..Faults::default() })?;
            self.victim = Some(victim);
            let description = format!("the disk of {} confirms syncs and does not do them", nodes.name(victim));
            Ok(Fault::new(nodes, &[victim], at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let victim = self.victim.take().context("nobody was struck")?;
            let lost = nodes.cut_power(&[victim]).await?.blocks;
            let dropped = damage_of(nodes, &[victim])?.syncs_dropped - self.before.syncs_dropped;
            set_faults(nodes, &[victim], &Faults::default())?;
            nodes.restore_power(&[victim])?;
            nodes.may_end(victim, &["the disk has lost what it had synced"]);
            nodes.cluster.nodes[victim].spawn()?;
            nodes.cluster.nodes[victim].ready_or_wait().await?;
            let ended = nodes.must_run(&[victim]).await?.len() as u64;
            let name = nodes.name(victim).to_owned();
            nodes.replace_member(victim, random.random()).await?;
            let counters = [("syncs dropped", dropped), ("blocks lost", lost), ("nodes that ended for it", ended)];
            Ok(Effect::now(format!("cut the power of {name}, which lost {lost} blocks, and replaced it"), &counters))
        }
        .boxed()
    }
}

/// Parts of a file of a stopped minority cannot be read when it starts. They can be read again afterwards.
#[derive(Default)]
pub struct BadSectors {
    bad: Vec<usize>,
    before: Damage,
    refused: u64,
}

impl Nemesis for BadSectors {
    fn name(&self) -> &'static str {
        "bad-sectors"
    }

    fn needs(&self) -> Needs {
        Needs { failing_disk: true, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            self.bad = victims::minority(nodes, random).await?;
            self.before = damage_of(nodes, &self.bad)?;
            let at = Instant::now();
            nodes.kill(&self.bad).await?;
            // Nothing may be cached.
            nodes.remount(&self.bad)?;
            let mut files = Vec::new();
            for victim in self.bad.clone() {
                let file = block_in_place(|| spoil(nodes, victim, random))?;
                let data_dir = nodes.machine(victim).disk.path();
                files.push(file.strip_prefix(data_dir).unwrap_or(&file).display().to_string());
                nodes.may_end(victim, &[]);
                nodes.cluster.nodes[victim].spawn()?;
            }
            let description = format!("{} start and cannot read all of {}", nodes.names(&self.bad), files.join(", "));
            Ok(Fault::new(nodes, &self.bad, at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            for victim in &self.bad {
                // It ends when it reads what it cannot, which may be now, later or never.
                nodes.cluster.nodes[*victim].ready_or_wait().await?;
            }
            let read = damage_of(nodes, &self.bad)?.reads_failed - self.before.reads_failed;
            self.refused += nodes.must_run(&self.bad).await?.len() as u64;
            // One that runs may have been told of a bad sector, and will end for it yet.
            let running: Vec<usize> =
                self.bad.iter().copied().filter(|node| nodes.cluster.nodes[*node].is_running()).collect();
            nodes.kill(&running).await?;
            set_faults(nodes, &self.bad, &Faults::default())?;
            nodes.remount(&self.bad)?;
            nodes.start_stopped().await?;
            Ok(Effect::now("disks are sound again", &[("reads failed", read)]))
        }
        .boxed()
    }
}

/// Makes some sectors of a file of a node unreadable, and gives the file.
fn spoil(nodes: &Nodes, victim: usize, random: &mut StdRng) -> Result<PathBuf> {
    let disk = &nodes.machine(victim).disk;
    let mut files = Vec::new();
    visit(disk.path(), &mut |path| {
        files.push(path.to_path_buf());
        Ok(())
    })?;
    // What a node reads when it starts: its log, and the tables of its store.
    files.retain(|path| path.extension().is_some_and(|extension| extension == "sst" || extension == "log"));
    files.retain(|path| extents(path).is_ok_and(|extents| !extents.is_empty()));
    ensure!(!files.is_empty(), "{} has no file to spoil", nodes.name(victim));
    let file = files.swap_remove(random.random_range(0..files.len()));
    // What is at a file's begin is surely read, and what is further behind only may be.
    let extent = extents(&file)?.swap_remove(0);
    let first = extent.start / SECTOR_BYTES;
    let length = random.random_range(8..=64).min((extent.end - extent.start) / SECTOR_BYTES);
    disk.failing()?.set(Faults { bad_sectors: (first..first + length).collect(), ..Faults::default() });
    Ok(file)
}

/// The disks of a minority are full. A node may go on while it has nothing to put down, and has to end otherwise.
#[derive(Default)]
pub struct DiskFull {
    full: Vec<usize>,
    bytes: u64,
}

impl Nemesis for DiskFull {
    fn name(&self) -> &'static str {
        "disk-full"
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            self.full = victims::minority(nodes, random).await?;
            self.bytes = 0;
            let at = Instant::now();
            for victim in self.full.clone() {
                nodes.may_end(victim, &["No space left on device"]);
                let left = random.random_range(LEFT_FREE_BYTES);
                self.bytes += block_in_place(|| fill(nodes, victim, left))?;
            }
            let description = format!("the disks of {} are full", nodes.names(&self.full));
            Ok(Fault::new(nodes, &self.full, at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let ended = nodes.must_run(&self.full).await?;
            for victim in &self.full {
                fs::remove_file(nodes.machine(*victim).disk.path().join(FILLER))?;
            }
            nodes.start_stopped().await?;
            let description = format!("there is room again; {} nodes had ended", ended.len());
            Ok(Effect::now(description, &[("bytes filled", self.bytes)]))
        }
        .boxed()
    }
}

/// Takes all room but a little, and says how much that was.
fn fill(nodes: &Nodes, victim: usize, left: u64) -> Result<u64> {
    let disk = &nodes.machine(victim).disk;
    let filler = OpenOptions::new().create(true).truncate(true).write(true).open(disk.path().join(FILLER))?;
    let mut filled = disk.free_bytes()?.saturating_sub(left);
    // SAFETY: plain system call with a file that is open.
    while unsafe { libc::posix_fallocate(filler.as_raw_fd(), 0, filled as libc::off_t) } != 0 {
        // The node takes room meanwhile, and so does the file system for itself.
        filled = filled.checked_sub(1 << 20).context("nothing can be filled")?;
    }
    if left == 0 {
        // What is left in between is taken block by block.
        while filler.write_all_at(&[1; BLOCK_BYTES], filled).is_ok() {
            filled += BLOCK_BYTES as u64;
        }
    }
    Ok(filled)
}
