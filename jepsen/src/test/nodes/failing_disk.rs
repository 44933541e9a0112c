//! A block device that fails as it is told: slow syncs, failed syncs, bad sectors, and a cache that a power cut empties.
//!
//! Until it is synced, a written block may be on the disk or not, each for itself: that is all that a disk promises. So
//! a power cut may leave any subset of the blocks written since the last sync, in no order, and a write of several
//! blocks torn ("All File Systems Are Not Created Equal", OSDI 2014, calls these reorderings and torn writes).

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    fs::File,
    io,
    ops::RangeInclusive,
    os::unix::fs::FileExt as _,
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng as _, rngs::StdRng};

use super::fuse::Content;

pub const SECTOR_BYTES: u64 = 512;
/// What a disk writes whole or not at all. ext4 needs as much: its superblock and the checksum over it are in two
/// sectors, and when they are of different times it refuses to be mounted.
pub const BLOCK_BYTES: u64 = 4096;

/// What the disk does wrong from now on.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Each sync takes so much longer.
    pub sync_delay: Duration,
    pub fail_syncs: bool,
    /// They succeed, and nothing is synced.
    pub drop_syncs: bool,
    /// Reading any of these fails.
    pub bad_sectors: BTreeSet<u64>,
}

/// How often faults took effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    pub syncs: u64,
    pub syncs_delayed: u64,
    pub syncs_failed: u64,
    pub syncs_dropped: u64,
    pub reads_failed: u64,
    pub blocks_lost: u64,
    pub blocks_kept: u64,
}

pub struct FailingDisk {
    image: File,
    bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    faults: Faults,
    damage: Damage,
    /// What was in the blocks that have been written since the last sync.
    unsynced: HashMap<u64, [u8; BLOCK_BYTES as usize]>,
}

impl FailingDisk {
    /// A sound disk on an image.
    pub fn new(image: File) -> io::Result<FailingDisk> {
        let bytes = image.metadata()?.len();
        Ok(FailingDisk { image, bytes, state: Mutex::default() })
    }

    pub fn set(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    pub fn damage(&self) -> Damage {
        self.state.lock().damage
    }

    /// Empties the cache, and gives the number of blocks lost. Where syncs were dropped, all is as it was when the first
    /// of them was; a file system that finds some blocks newer than others has lost more than a disk may lose.
    /// Otherwise of each block that is not synced, chance says whether it had reached the disk.
    pub fn lose_cache(&self, random: &mut StdRng) -> io::Result<Damage> {
        let mut state = self.state.lock();
        // The share that is lost differs from cut to cut, so that almost all and almost nothing occur too.
        let lost_permille = if state.faults.drop_syncs { 1000 } else { random.random_range(0..=1000) };
        let mut unsynced: Vec<_> = state.unsynced.drain().collect();
        unsynced.sort_unstable_by_key(|(block, _)| *block);
        for (block, before) in unsynced {
            if random.random_ratio(lost_permille, 1000) {
                self.image.write_all_at(&before, block * BLOCK_BYTES)?;
                state.damage.blocks_lost += 1;
            } else {
                state.damage.blocks_kept += 1;
            }
        }
        Ok(state.damage)
    }
}

/// The units of so many bytes that a part of the disk touches.
fn spanned(offset: u64, length: usize, unit: u64) -> RangeInclusive<u64> {
    assert!(length > 0, "an empty request");
    offset / unit..=(offset + length as u64 - 1) / unit
}

impl Content for FailingDisk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        {
            let mut state = self.state.lock();
            if state.faults.bad_sectors.range(spanned(offset, buffer.len(), SECTOR_BYTES)).next().is_some() {
                state.damage.reads_failed += 1;
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
        }
        self.image.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock();
        for block in spanned(offset, data.len(), BLOCK_BYTES) {
            if let Entry::Vacant(unsynced) = state.unsynced.entry(block) {
                let mut before = [0; BLOCK_BYTES as usize];
                self.image.read_exact_at(&mut before, block * BLOCK_BYTES)?;
                unsynced.insert(before);
            }
        }
        self.image.write_all_at(data, offset)
    }

    fn sync(&self) -> io::Result<()> {
        let delay = {
            let mut state = self.state.lock();
            state.damage.syncs += 1;
            if state.faults.fail_syncs {
                state.damage.syncs_failed += 1;
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            if state.faults.drop_syncs {
                state.damage.syncs_dropped += 1;
                return Ok(());
            }
            let delay = state.faults.sync_delay;
            state.damage.syncs_delayed += u64::from(!delay.is_zero());
            if delay.is_zero() {
                state.unsynced.clear();
            }
            delay
        };
        if !delay.is_zero() {
            thread::sleep(delay);
            self.state.lock().unsynced.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn disk() -> FailingDisk {
        let image = tempfile::tempfile().unwrap();
        image.set_len(1 << 20).unwrap();
        FailingDisk::new(image).unwrap()
    }

    fn read(disk: &FailingDisk, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; length];
        disk.read(offset, &mut buffer).map(|()| buffer)
    }

    #[test]
    fn what_is_synced_outlives_a_power_cut() {
        let (disk, mut random) = (disk(), StdRng::seed_from_u64(1));
        disk.write(1000, &[7; 5000]).unwrap();
        disk.sync().unwrap();
        for _ in 0..10 {
            disk.lose_cache(&mut random).unwrap();
        }
        assert_eq!(read(&disk, 1000, 5000).unwrap(), [7; 5000]);
        assert_eq!(disk.damage().blocks_lost, 0);
    }

    #[test]
    fn of_what_is_not_synced_each_block_is_as_before_or_as_written() {
        let (disk, mut random) = (disk(), StdRng::seed_from_u64(1));
        disk.write(0, &[1; 64 * 1024]).unwrap();
        disk.sync().unwrap();
        let (mut lost, mut kept) = (0, 0);
        for _ in 0..40 {
            disk.write(0, &[2; 64 * 1024]).unwrap();
            disk.write(0, &[3; 64 * 1024]).unwrap();
            disk.lose_cache(&mut random).unwrap();
            for block in read(&disk, 0, 64 * 1024).unwrap().chunks(BLOCK_BYTES as usize) {
                match block {
                    block if block.iter().all(|byte| *byte == 3) => kept += 1,
                    block if block.iter().all(|byte| *byte == 1) => lost += 1,
                    block => panic!("a block that nobody wrote: {block:?}"),
                }
            }
            disk.write(0, &[1; 64 * 1024]).unwrap();
            disk.sync().unwrap();
        }
        assert!(lost > 60 && kept > 60, "{lost} lost, {kept} kept");
        let damage = disk.damage();
        assert_eq!((damage.blocks_lost, damage.blocks_kept), (lost, kept));
    }

    #[test]
    fn a_failed_sync_syncs_nothing() {
        let (disk, mut random) = (disk(), StdRng::seed_from_u64(1));
        disk.set(Faults { fail_syncs: true, ..Faults::default() });
        let mut lost = false;
        for _ in 0..20 {
            disk.write(0, &[2; 512]).unwrap();
            disk.sync().unwrap_err();
            disk.lose_cache(&mut random).unwrap();
            lost |= read(&disk, 0, 512).unwrap() == [0; 512];
            disk.write(0, &[0; 512]).unwrap();
        }
        assert!(lost);
        assert_eq!(disk.damage().syncs_failed, 20);
    }

    #[test]
    fn after_dropped_syncs_all_is_as_before_them() {
        let (disk, mut random) = (disk(), StdRng::seed_from_u64(1));
        disk.write(0, &[1; 8192]).unwrap();
        disk.sync().unwrap();
        disk.set(Faults { drop_syncs: true, ..Faults::default() });
        for value in 2..9 {
            disk.write(0, &[value; 8192]).unwrap();
            disk.sync().unwrap();
        }
        disk.lose_cache(&mut random).unwrap();
        assert_eq!(read(&disk, 0, 8192).unwrap(), [1; 8192]);
        assert_eq!((disk.damage().syncs_dropped, disk.damage().blocks_lost), (7, 2));
    }

    #[test]
    fn a_bad_sector_fails_whoever_reads_across_it() {
        let disk = disk();
        disk.set(Faults { bad_sectors: [3].into(), ..Faults::default() });
        assert_eq!(read(&disk, 0, 4096).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert!(read(&disk, 0, 3 * 512).is_ok() && read(&disk, 4 * 512, 512).is_ok());
        assert_eq!(disk.damage().reads_failed, 1);
    }
}
