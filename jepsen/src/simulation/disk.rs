//! A disk in memory, with what disks and file systems do to those who do not sync.
//!
//! ```text
//! write ─> cached (what readers see) + pending ─ sync ─> durable
//! crash:   durable + any legal part of what is pending; whoever had it mounted gets errors from then on
//! ```
//!
//! All chance comes from the seed: the same calls on a disk of the same seed give the same bytes and the same faults.
//! Nothing here reads a clock, except that a sync takes simulated time.

mod contents;
mod inode;
mod mount;
mod names;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use self::{
    contents::PAGE_BYTES,
    inode::{Inode, SECTOR_BYTES},
    names::Names,
};
pub use self::{
    inode::{Survival, Tally},
    mount::Mount,
    names::NameRule,
};

/// What took effect since the disk was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskCounts {
    pub writes: u64,
    pub bytes_written: u64,
    pub syncs: u64,
    pub crashes: u64,
    /// Syncs that a crash, or the end of the process, cut off.
    pub syncs_interrupted: u64,
    /// What crashes did to writes that were not synced.
    pub unsynced: Tally,
    /// Names made, changed or removed that crashes undid.
    pub name_changes_lost: u64,
    pub syncs_failed: u64,
    /// What failed syncs did to the writes that they were about.
    pub unsynced_by_failure: Tally,
    /// Writes and the like that found the disk full.
    pub refused_when_full: u64,
    pub writes_misdirected: u64,
    pub bits_flipped: u64,
    /// Syncs that said Ok and did nothing.
    pub syncs_omitted: u64,
    pub wipes: u64,
}

#[derive(Debug)]
struct State {
    rng: StdRng,
    names: Names,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Counts the ends of processes: a mount is good until the next one.
    mounts: u64,
    /// Syncs that are waiting.
    syncing: u64,
    sync_time: RangeInclusive<Duration>,
    fails_next_sync: bool,
    misdirects_next_write: bool,
    is_full: bool,
    omits_syncs: bool,
    counts: DiskCounts,
}

/// The disk of one host. It outlives the host's crashes.
#[derive(Debug)]
pub struct SimDisk {
    state: Mutex<State>,
}

impl SimDisk {
    /// An empty one, whose syncs take no time.
    pub fn new(seed: u64, rule: NameRule) -> Arc<SimDisk> {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            names: Names::new(rule),
            inodes: BTreeMap::new(),
            next_inode: 0,
            mounts: 0,
            syncing: 0,
            sync_time: Duration::ZERO..=Duration::ZERO,
            fails_next_sync: false,
            misdirects_next_write: false,
            is_full: false,
            omits_syncs: false,
            counts: DiskCounts::default(),
        };
        Arc::new(SimDisk { state: Mutex::new(state) })
    }

    /// The disk as its host uses it until the host ends. Files that are opened through it die with it.
    pub fn mount(self: &Arc<Self>) -> Arc<Mount> {
        let number = self.state.lock().mounts;
        Arc::new(Mount { disk: self.clone(), number })
    }

    /// The process that has it mounted ends. What it wrote stays, synced or not: the system goes on.
    pub fn kill(&self) {
        self.state.lock().unmount();
    }

    /// Power is lost, with the worst that may come of it.
    pub fn crash(&self) {
        self.crash_with(Survival::Any);
    }

    /// Power is lost, and of the writes that were not synced this is left.
    pub fn crash_with(&self, survival: Survival) {
        let state = &mut *self.state.lock();
        state.unmount();
        state.counts.crashes += 1;
        let unit = if state.rng.random() { SECTOR_BYTES } else { PAGE_BYTES };
        for inode in state.inodes.values_mut() {
            state.counts.unsynced.add(inode.crash(survival, unit, &mut state.rng));
        }
        state.counts.name_changes_lost += state.names.crash(&mut state.rng);
        state.drop_unused();
    }

    /// Another disk, an empty one, is in its place.
    pub fn wipe(&self) {
        let state = &mut *self.state.lock();
        state.unmount();
        state.counts.wipes += 1;
        state.names.clear();
        state.inodes.clear();
    }

    /// Each sync takes a time drawn from this.
    pub fn set_sync_time(&self, time: RangeInclusive<Duration>) {
        self.state.lock().sync_time = time;
    }

    /// The next sync of a file that has something to sync fails with EIO. What it was about counts as clean from then
    /// on: the sync after it says Ok and writes none of it.
    pub fn fail_next_sync(&self) {
        self.state.lock().fails_next_sync = true;
    }

    /// Whatever needs space fails with ENOSPC as long as this is so.
    pub fn set_full(&self, is_full: bool) {
        self.state.lock().is_full = is_full;
    }

    /// The sectors of the next write go to another place of its file, which shows when the file is read from the disk
    /// again, after a crash.
    pub fn misdirect_next_write(&self) {
        self.state.lock().misdirects_next_write = true;
    }

    /// Syncs say Ok and do nothing as long as this is so. No honest disk does it: it is for tests of the tests.
    pub fn omit_syncs(&self, omits: bool) {
        self.state.lock().omits_syncs = omits;
    }

    /// All files, with the length of what is durable of each.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.state.lock();
        let durable_len = |inode| state.inodes.get(&inode).map_or(0, |inode| inode.durable.len());
        state.names.files().map(|(path, inode)| (path.clone(), durable_len(inode))).collect()
    }

    /// Flips `bits` bits of what is durable of a file in this region. Gives how many there were to flip. Readers see it
    /// at once, as the file is read from the disk again.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn rot(&self, path: &Path, region: Range<u64>, bits: u64) -> io::Result<u64> {
        let state = &mut *self.state.lock();
        let number = state.names.file(path)?;
        let inode = state.inodes.get_mut(&number).expect("a named file is there");
        let end = region.end.min(inode.durable.len());
        if region.start >= end {
            return Ok(0);
        }
        let flipped: BTreeSet<(u64, u32)> =
            (0..bits).map(|_| (state.rng.random_range(region.start..end), state.rng.random_range(0..8))).collect();
        for (offset, bit) in &flipped {
            inode.rot(*offset, *bit);
        }
        state.counts.bits_flipped += flipped.len() as u64;
        Ok(flipped.len() as u64)
    }

    pub fn counts(&self) -> DiskCounts {
        self.state.lock().counts
    }
}

impl State {
    fn unmount(&mut self) {
        self.mounts += 1;
        self.counts.syncs_interrupted += std::mem::take(&mut self.syncing);
        self.inodes.values_mut().for_each(|inode| inode.open = 0);
        self.drop_unused();
    }

    /// Removes the files that nothing leads to any more.
    fn drop_unused(&mut self) {
        let names = &self.names;
        self.inodes.retain(|number, inode| inode.open > 0 || names.is_named(*number));
    }

    fn inode(&mut self, number: u64) -> &mut Inode {
        self.inodes.get_mut(&number).expect("an open file is there while it is mounted")
    }

    fn need_space(&mut self) -> io::Result<()> {
        self.counts.refused_when_full += u64::from(self.is_full);
        if self.is_full { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
    }

    /// Removes the file if nothing leads to it any more.
    fn drop_if_unused(&mut self, number: u64) {
        if self.inodes.get(&number).is_some_and(|inode| inode.open == 0) && !self.names.is_named(number) {
            self.inodes.remove(&number);
        }
    }

    fn write(&mut self, number: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.need_space()?;
        self.counts.writes += 1;
        self.counts.bytes_written += bytes.len() as u64;
        let inode = self.inodes.get_mut(&number).expect("an open file is there while it is mounted");
        if self.misdirects_next_write && inode.write_elsewhere(bytes, offset, &mut self.rng) {
            self.misdirects_next_write = false;
            self.counts.writes_misdirected += 1;
        } else {
            inode.write(bytes, offset);
        }
        Ok(())
    }

    /// Brings the writes before `end` to the disk, or fails, as the scenario has it.
    fn sync(&mut self, number: u64, end: u64) -> io::Result<()> {
        self.counts.syncs += 1;
        if self.omits_syncs {
            self.counts.syncs_omitted += 1;
            return Ok(());
        }
        let inode = self.inodes.get_mut(&number).expect("an open file is there while it is mounted");
        if inode.is_dirty() && std::mem::take(&mut self.fails_next_sync) {
            let is_kept = self.rng.random();
            self.counts.syncs_failed += 1;
            self.counts.unsynced_by_failure.add(inode.fail(end, is_kept, &mut self.rng));
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        inode.sync(end);
        self.names.file_synced();
        Ok(())
    }
}
