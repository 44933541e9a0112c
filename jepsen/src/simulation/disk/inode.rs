//! One file: what a reader sees, what is on the disk, and the writes between the two.
//!
//! Writes reach the disk when they are synced, or earlier, or never: after a crash each unit of the disk (512 B or
//! 4 KiB, whichever it writes atomically) holds some version that it had since the last sync. A unit never holds a
//! later write without the earlier ones to it, for what is written back is the page as it is then; different units
//! know nothing of each other. See Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, section 3.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
};

use rand::{Rng as _, rngs::StdRng};

use super::contents::{Contents, PAGE_BYTES, pieces};

pub const SECTOR_BYTES: u64 = 512;

/// Which of the writes that were not synced are on the disk after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Survival {
    /// Any of the others, drawn for each file.
    Any,
    Nothing,
    Everything,
    /// Those before a point in time; of the write at that point, some units.
    Prefix,
    /// Each write or not.
    Writes,
    /// Each unit in any of its versions.
    Units,
    /// All writes, but of the last one only the beginning.
    TornLast,
}

impl Survival {
    fn drawn(self, rng: &mut StdRng) -> Survival {
        match self {
            Survival::Any => match rng.random_range(0..12) {
                0 => Survival::Nothing,
                1 => Survival::Everything,
                2..5 => Survival::Prefix,
                5..7 => Survival::Writes,
                7..10 => Survival::Units,
                _ => Survival::TornLast,
            },
            drawn => drawn,
        }
    }
}

/// What became of writes that were not synced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub survived: u64,
    pub torn: u64,
    pub lost: u64,
    pub bytes_lost: u64,
}

#[derive(Debug)]
struct Change {
    number: u64,
    offset: u64,
    bytes: Vec<u8>,
    /// The length of the file after it.
    len: u64,
}

impl Change {
    fn units(&self, unit: u64) -> impl Iterator<Item = (u64, Range<u64>)> {
        pieces(self.offset, self.bytes.len() as u64, unit)
    }

    fn part(&self, part: &Range<u64>) -> &[u8] {
        &self.bytes[(part.start - self.offset) as usize..(part.end - self.offset) as usize]
    }
}

#[derive(Debug, Default)]
pub struct Inode {
    /// What readers see.
    pub cached: Contents,
    pub durable: Contents,
    /// In the order in which they were made.
    pending: VecDeque<Change>,
    next_number: u64,
    /// Pages that count as clean, but are not on the disk as they are cached. When one is written again, all of it goes
    /// to the disk.
    diverged: BTreeSet<u64>,
    /// How many hold the file open.
    pub open: usize,
}

impl Inode {
    pub fn allocate(&mut self, len: u64) {
        if len > self.cached.len() {
            self.cached.extend(len);
            self.push(0, Vec::new());
        }
    }

    pub fn write(&mut self, bytes: &[u8], offset: u64) {
        self.cached.write(bytes, offset);
        let range = offset..offset + bytes.len() as u64;
        let pages = pieces(offset, bytes.len() as u64, PAGE_BYTES).map(|(page, _)| page);
        match pages.fold(false, |any, page| self.diverged.remove(&page) || any) {
            false => self.push(offset, bytes.to_vec()),
            true => {
                let whole = self.rounded(range, PAGE_BYTES);
                self.push(whole.start, self.cached.read_vec(whole));
            }
        }
    }

    /// Writes `bytes`, which readers see where they belong. On the disk their sectors go to another place of the file.
    /// False, and nothing is done, when the file has no other place.
    pub fn write_elsewhere(&mut self, bytes: &[u8], offset: u64, rng: &mut StdRng) -> bool {
        let sectors = self.rounded(offset..offset + bytes.len() as u64, SECTOR_BYTES);
        let Some(page) = self.cached.nth_page(rng.random_range(0..1 << 20)) else { return false };
        let wrong = page * PAGE_BYTES + rng.random_range(0..PAGE_BYTES / SECTOR_BYTES) * SECTOR_BYTES;
        let len = (sectors.end - sectors.start).min(self.cached.len().saturating_sub(wrong));
        if len == 0 || wrong == sectors.start {
            return false;
        }
        self.cached.write(bytes, offset);
        let misdirected = self.cached.read_vec(sectors.start..sectors.start + len);
        let right = pieces(sectors.start, sectors.end - sectors.start, PAGE_BYTES);
        self.diverged.extend(right.chain(pieces(wrong, len, PAGE_BYTES)).map(|(page, _)| page));
        self.push(wrong, misdirected);
        true
    }

    fn rounded(&self, range: Range<u64>, unit: u64) -> Range<u64> {
        let end = range.end.next_multiple_of(unit).min(self.cached.len().max(range.end));
        range.start / unit * unit..end
    }

    fn push(&mut self, offset: u64, bytes: Vec<u8>) {
        let (number, len) = (self.next_number, self.cached.len());
        self.pending.push_back(Change { number, offset, bytes, len });
        self.next_number += 1;
    }

    /// What a sync that begins now is about, for [`Inode::sync`] and [`Inode::fail`].
    pub fn written(&self) -> u64 {
        self.next_number
    }

    /// Whether anything is not on the disk.
    pub fn is_dirty(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The writes before `end` are on the disk now.
    pub fn sync(&mut self, end: u64) {
        while let Some(change) = self.pending.pop_front_if(|change| change.number < end) {
            self.durable.write(&change.bytes, change.offset);
            self.durable.extend(change.len);
        }
    }

    /// The sync of the writes before `end` failed: any part of them is on the disk, and all count as clean, so that
    /// nothing ever writes the rest. Readers see it still (`is_kept`, as with ext4) or no more (as with XFS). See
    /// Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020.
    pub fn fail(&mut self, end: u64, is_kept: bool, rng: &mut StdRng) -> Tally {
        let failed = self.pending.iter().filter(|change| change.number < end);
        let pages: BTreeSet<u64> = failed.flat_map(|change| change.units(PAGE_BYTES)).map(|(page, _)| page).collect();
        let survival = if rng.random() { Survival::Nothing } else { Survival::Units };
        let tally = self.settle(end, survival, PAGE_BYTES, rng);
        if is_kept {
            self.diverged.extend(pages);
        } else {
            for page in pages {
                self.cached.take_page(page, &self.durable);
            }
            for change in &self.pending {
                self.cached.write(&change.bytes, change.offset);
            }
        }
        if self.cached.len() > self.durable.len() && self.pending.is_empty() {
            self.push(0, Vec::new());
        }
        tally
    }

    /// A bit on the disk flips. Readers see it unless they read what is yet to be written.
    pub fn rot(&mut self, offset: u64, bit: u32) {
        self.durable.flip_bit(offset, bit);
        let page = offset / PAGE_BYTES;
        let is_dirty = |change: &Change| change.units(PAGE_BYTES).any(|(dirty, _)| dirty == page);
        if !self.pending.iter().any(is_dirty) && !self.diverged.contains(&page) {
            self.cached.flip_bit(offset, bit);
        }
    }

    /// Power is lost. `unit` is what the disk writes atomically.
    pub fn crash(&mut self, survival: Survival, unit: u64, rng: &mut StdRng) -> Tally {
        let tally = self.settle(u64::MAX, survival, unit, rng);
        self.cached = self.durable.clone();
        self.diverged.clear();
        tally
    }

    /// Decides what of the writes before `end` is on the disk.
    fn settle(&mut self, end: u64, survival: Survival, unit: u64, rng: &mut StdRng) -> Tally {
        let rest = self.pending.split_off(self.pending.partition_point(|change| change.number < end));
        let changes = Vec::from(std::mem::replace(&mut self.pending, rest));
        if changes.is_empty() {
            return Tally::default();
        }
        let (versions, len) = draw(&changes, self.durable.len(), survival, unit, rng);
        let mut tally = Tally::default();
        for (i, change) in changes.iter().enumerate() {
            let (mut kept, mut lost) = (0, 0);
            for (number, part) in change.units(unit) {
                if i < versions[&number] {
                    self.durable.write(change.part(&part), part.start);
                    kept += part.end - part.start;
                } else {
                    lost += part.end - part.start;
                }
            }
            tally.count(kept, lost);
        }
        self.durable.set_len(len);
        tally
    }
}

impl Tally {
    fn count(&mut self, kept: u64, lost: u64) {
        match (kept, lost) {
            (0, 0) => return,
            (_, 0) => self.survived += 1,
            (0, _) => self.lost += 1,
            (_, _) => self.torn += 1,
        }
        self.bytes_lost += lost;
    }

    pub fn add(&mut self, other: Tally) {
        self.survived += other.survived;
        self.torn += other.torn;
        self.lost += other.lost;
        self.bytes_lost += other.bytes_lost;
    }
}

/// By unit, how many of the changes it has seen; and the length of the file.
fn draw(
    changes: &[Change],
    durable_len: u64,
    survival: Survival,
    unit: u64,
    rng: &mut StdRng,
) -> (BTreeMap<u64, usize>, u64) {
    let survival = survival.drawn(rng);
    let count = changes.len();
    let mut touching: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (i, change) in changes.iter().enumerate() {
        change.units(unit).for_each(|(number, _)| touching.entry(number).or_default().push(i));
    }
    let cut = rng.random_range(0..count);
    let is_kept: Vec<bool> = changes.iter().map(|_| rng.random()).collect();
    let last: Vec<u64> = changes[count - 1].units(unit).map(|(number, _)| number).collect();
    let torn_from = last.get(1..).filter(|rest| !rest.is_empty()).map(|rest| rest[rng.random_range(0..rest.len())]);

    let mut version = |number: u64, by: &[usize]| match survival {
        Survival::Nothing | Survival::Any => 0,
        Survival::Everything => count,
        Survival::Prefix => cut + usize::from(rng.random::<bool>()),
        Survival::Writes => by.iter().rfind(|i| is_kept[**i]).map_or(0, |i| i + 1),
        Survival::Units => match rng.random_range(0..=by.len()) {
            0 => 0,
            n => by[n - 1] + 1,
        },
        Survival::TornLast => count - usize::from(torn_from.is_some_and(|from| number >= from)),
    };
    let versions = touching.iter().map(|(number, by)| (*number, version(*number, by))).collect();
    let lengths = match survival {
        Survival::Nothing | Survival::Any => 0,
        Survival::Everything | Survival::TornLast => count,
        Survival::Prefix => cut + usize::from(rng.random::<bool>()),
        Survival::Writes | Survival::Units => rng.random_range(0..=count),
    };
    let len = lengths.checked_sub(1).map_or(durable_len, |i| durable_len.max(changes[i].len));
    (versions, len)
}
