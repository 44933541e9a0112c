//! Which directories a crash may leave: the rules of two file systems, and a bounded choice of what they allow.
//!
//! At each point of a run some operations are durable, and those behind are *pending*. A crash loses any of these that
//! the file system lets it lose:
//!
//! | | ordered: ext4 with `data=ordered` | weak: what any of Linux's file systems keeps |
//! |---|---|---|
//! | names, lengths | one journal: a prefix of them is there | each on its own, but those of one file or name in order |
//! | a sync of a file | its bytes, and the journal up to the file's last change | its bytes, length and own names |
//! | a sync of a directory | the journal up to its last change | the names in it |
//! | a write that makes a file longer | a prefix of it, in pages, after the ones before it | any sectors; or only the length: zeros |
//! | a write over bytes that are there | any sectors of it | any sectors of it |
//!
//! Source: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), section 3 and table 1, with the sizes
//! of what is atomic. POSIX promises less: not even that a synced new file has a name. RocksDB counts on it (its MANIFEST
//! is synced, and the directory only after `CURRENT` names it), as on all that Linux's file systems keep; Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (OSDI 2018),
//! for the bounds: all that is allowed with few pending operations, and with many the ones that differ by one or few.

use std::{
    collections::{BTreeSet, HashSet},
    ops::Range,
};

use anyhow::{Context as _, Result};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    disk::{Disk, Fate, Image, SECTOR},
    trace::{Found, Inode, Op, Slot, Trace},
};

const PAGE: u64 = 4096;
/// With so many pending operations or fewer, each subset of them is tried.
const SUBSETS_MAX: usize = 4;
/// Of more, so many of the last are lost alone, kept alone, and cut off from.
const NEIGHBOURS_MAX: usize = 8;
const RANDOM: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Model {
    Ordered,
    Weak,
}

/// What has happened to the pending operations of an image. Counted, so that a run in which nothing happened is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Marker {
    /// Nothing was pending, or all of it is there.
    Whole,
    /// The last operations are lost.
    LostTail,
    /// One is lost that has later ones behind it.
    Reordered,
    /// Of a write to the log only some sectors are there.
    TornLog,
    /// The same of a file of the store.
    TornStore,
    /// A file is longer, but what was written to it is not there.
    Zeros,
    LostCreation,
    LostRename,
    LostRemoval,
    LostLength,
}

/// One directory's way through a run.
pub struct Walk<'a> {
    trace: &'a Trace,
    model: Model,
    /// The directory that belongs to one member, which is all that is looked at.
    root: Inode,
    durable: Disk,
    /// Positions in the trace.
    pending: Vec<usize>,
    /// Files below the log's directory.
    log_dir: Option<Inode>,
    log_files: BTreeSet<Inode>,
    seed: u64,
}

impl<'a> Walk<'a> {
    pub fn new(trace: &'a Trace, model: Model, root: Inode, seed: u64) -> Walk<'a> {
        let durable = Disk::new(trace);
        let (log_dir, log_files) = (None, BTreeSet::new());
        let mut walk = Walk { trace, model, root, durable, pending: Vec::new(), log_dir, log_files, seed };
        for found in &trace.found {
            match found {
                Found::Dir { slot, dir } => walk.note_log(slot, *dir, true),
                Found::File { slot, file, .. } => walk.note_log(slot, *file, false),
            }
        }
        walk
    }

    fn note_log(&mut self, slot: &Slot, node: Inode, is_dir: bool) {
        if is_dir && &*slot.name == "wal" {
            self.log_dir = Some(node);
        } else if !is_dir && Some(slot.dir) == self.log_dir {
            self.log_files.insert(node);
        }
    }

    /// Goes past the operation at `at`, which is one of this directory's.
    pub fn pass(&mut self, at: usize) {
        match &self.trace.ops[at] {
            Op::Sync { node, began } => self.settle(*node, *began),
            Op::SyncRange | Op::Mark(_) => {}
            op => {
                match op {
                    Op::MakeDir { slot, dir } => self.note_log(slot, *dir, true),
                    Op::Create { slot, file } => self.note_log(slot, *file, false),
                    _ => {}
                }
                self.pending.push(at);
            }
        }
    }

    fn op(&self, at: usize) -> &'a Op {
        &self.trace.ops[at]
    }

    /// A sync of `node` has ended that covers what stands before `began`.
    fn settle(&mut self, node: Inode, began: usize) {
        let settled: Vec<bool> = match self.model {
            Model::Ordered => {
                let before = |at: &&usize| **at < began;
                // A file that grew is given its blocks by the sync, in the newest transaction.
                let grows = |at: &usize| matches!(self.op(*at), Op::Write { file, extends: true, .. } if *file == node);
                let commits = match self.pending.iter().filter(before).any(grows) {
                    true => Some(began),
                    false => {
                        let changes = |at: &&usize| is_metadata(self.op(**at)) && touches(self.op(**at), node);
                        self.pending.iter().filter(before).filter(changes).next_back().map(|at| at + 1)
                    }
                };
                let is_settled = |at: &usize| match self.op(*at) {
                    Op::Write { file, .. } => *file == node && *at < began,
                    _ => commits.is_some_and(|end| *at < end),
                };
                self.pending.iter().map(is_settled).collect()
            }
            Model::Weak => {
                let is_covered = |at: &usize| *at < began && is_of(self.op(*at), node);
                let mut settled: Vec<bool> = self.pending.iter().map(is_covered).collect();
                // What a name depends on comes with it.
                for i in (0..settled.len()).rev().filter(|i| !settled[*i]).collect::<Vec<_>>() {
                    settled[i] = (i + 1..settled.len())
                        .any(|later| settled[later] && depends(self.op(self.pending[later]), self.op(self.pending[i])));
                }
                settled
            }
        };
        let fates = settled.iter().map(|is_settled| if *is_settled { Fate::Done } else { Fate::Lost });
        let fates: Vec<Fate> = fates.collect();
        // What stays pending is applied when it is settled itself: here only what is done counts.
        let done = self.pending.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Done);
        self.durable.apply(done.map(|(at, fate)| (&self.trace.ops[*at], fate)));
        let mut settled = settled.into_iter();
        self.pending.retain(|_| !settled.next().expect("one for each"));
    }

    /// Images of a crash here, behind the operation at `at`. The first one has lost nothing.
    pub fn images(&self, at: usize, mut emit: impl FnMut(Image, Vec<Marker>)) {
        for fates in self.choices(at) {
            emit(self.build(&fates), self.markers(&fates));
        }
    }

    /// One of these, and what became of each pending operation.
    pub fn image(&self, at: usize, number: usize) -> Result<(Image, Vec<(usize, Fate)>)> {
        let fates = self.choices(at).into_iter().nth(number).context("there are not so many images here")?;
        Ok((self.build(&fates), self.pending.iter().copied().zip(fates).collect()))
    }

    fn build(&self, fates: &[Fate]) -> Image {
        let mut disk = self.durable.clone();
        disk.apply(self.pending.iter().map(|at| self.op(*at)).zip(fates));
        disk.image(self.root)
    }

    fn choices(&self, at: usize) -> Vec<Vec<Fate>> {
        let mut random = StdRng::seed_from_u64(self.seed ^ (at as u64) << 8 ^ self.model as u64);
        let mut all = vec![vec![Fate::Done; self.pending.len()]];
        match self.model {
            Model::Ordered => self.ordered(&mut random, &mut all),
            Model::Weak => self.weak(&mut random, &mut all),
        }
        all
    }

    /// Prefixes of names and lengths, each with some of the written bytes.
    fn ordered(&self, random: &mut StdRng, all: &mut Vec<Vec<Fate>>) {
        let count = self.pending.len();
        let metadata: Vec<usize> = (0..count).filter(|i| is_metadata(self.op(self.pending[*i]))).collect();
        let writes: Vec<usize> = (0..count).filter(|i| !metadata.contains(i)).collect();
        // The first `committed` of the metadata are there.
        let fates = |committed: usize, mut of_write: Box<dyn FnMut(usize) -> Fate + '_>| {
            let end = metadata.get(committed).copied().unwrap_or(count);
            let fate = |i: usize| match (metadata.contains(&i), i < end) {
                (true, true) => Fate::Done,
                (true, false) => Fate::Lost,
                (false, _) => of_write(i),
            };
            self.without_holes((0..count).map(fate).collect())
        };
        let first = metadata.len().saturating_sub(NEIGHBOURS_MAX);
        for committed in (first..=metadata.len()).chain((first > 0).then_some(0)) {
            all.push(fates(committed, Box::new(|_| Fate::Done)));
            all.push(fates(committed, Box::new(|_| Fate::Lost)));
        }
        for &one in writes.iter().rev().take(NEIGHBOURS_MAX) {
            for (of_one, of_others) in [(Fate::Lost, Fate::Done), (Fate::Done, Fate::Lost)] {
                let fate = |i| if i == one { of_one.clone() } else { of_others.clone() };
                all.push(fates(metadata.len(), Box::new(fate)));
            }
        }
        for &one in writes.iter().rev().take(2) {
            for torn in self.torn(one, random) {
                for of_others in [Fate::Lost, Fate::Done] {
                    let fate = |i| if i == one { torn.clone() } else { of_others.clone() };
                    all.push(fates(metadata.len(), Box::new(fate)));
                }
            }
        }
        for _ in 0..RANDOM.min(count) {
            let committed = random.random_range(0..=metadata.len());
            let chosen: Vec<Fate> = (0..count).map(|i| self.any_fate(i, random)).collect();
            all.push(fates(committed, Box::new(|i| chosen[i].clone())));
        }
    }

    /// Any of the pending operations without any others.
    fn weak(&self, random: &mut StdRng, all: &mut Vec<Vec<Fate>>) {
        let count = self.pending.len();
        let mut push = |fates: Vec<Fate>| all.push(self.in_order(self.without_torn_middle(fates)));
        let choose = |is_done: &dyn Fn(usize) -> bool| {
            (0..count).map(|i| if is_done(i) { Fate::Done } else { Fate::Lost }).collect::<Vec<Fate>>()
        };
        if count <= SUBSETS_MAX {
            (0..1usize << count).for_each(|subset| push(choose(&|i| subset >> i & 1 == 1)));
        } else {
            push(choose(&|_| true));
            push(choose(&|_| false));
            for one in (0..count).rev().take(NEIGHBOURS_MAX) {
                push(choose(&|i| i != one));
                push(choose(&|i| i == one));
                push(choose(&|i| i < one));
            }
        }
        let is_write = |i: &usize| matches!(self.op(self.pending[*i]), Op::Write { .. });
        for one in (0..count).rev().filter(is_write).take(2) {
            for torn in self.torn(one, random) {
                for of_others in [Fate::Lost, Fate::Done] {
                    push((0..count).map(|i| if i == one { torn.clone() } else { of_others.clone() }).collect());
                }
            }
        }
        for _ in 0..RANDOM.min(count) {
            push((0..count).map(|i| self.any_fate(i, random)).collect());
        }
    }

    fn any_fate(&self, i: usize, random: &mut StdRng) -> Fate {
        match random.random_range(0..4) {
            0 => Fate::Lost,
            1 => self.torn(i, random).choose(random).cloned().unwrap_or(Fate::Lost),
            _ => Fate::Done,
        }
    }

    /// Ways in which a write may be there in part.
    fn torn(&self, i: usize, random: &mut StdRng) -> Vec<Fate> {
        let Op::Write { offset, data, extends, .. } = self.op(self.pending[i]) else { return Vec::new() };
        let (begin, end) = (*offset, offset + data.len() as u64);
        let cuts = |unit: u64| (begin / unit + 1..end.div_ceil(unit)).map(|n| n * unit).collect::<Vec<u64>>();
        let keep = |ranges: Vec<Range<u64>>| Fate::Torn(ranges);
        if *extends && self.model == Model::Ordered {
            return sample(&cuts(PAGE), random).into_iter().map(|cut| keep(vec![begin..cut])).collect();
        }
        let mut torn = Vec::new();
        for unit in [SECTOR, PAGE] {
            for cut in sample(&cuts(unit), random) {
                torn.push(keep(vec![begin..cut]));
                torn.push(keep(vec![cut..end]));
            }
        }
        let mut bounds = cuts(SECTOR);
        if bounds.len() > 1 {
            bounds.insert(0, begin);
            bounds.push(end);
            let sectors = bounds.windows(2).map(|pair| pair[0]..pair[1]);
            torn.push(keep(sectors.filter(|_| random.random_bool(0.5)).collect()));
        }
        if *extends {
            torn.push(Fate::Zeros);
        }
        torn
    }

    /// With ordered data a file grows from its end only.
    fn without_holes(&self, mut fates: Vec<Fate>) -> Vec<Fate> {
        let mut cut = Vec::new();
        for (i, fate) in fates.iter_mut().enumerate() {
            if let Op::Write { file, extends: true, .. } = self.op(self.pending[i]) {
                if cut.contains(file) {
                    *fate = Fate::Lost;
                } else if *fate != Fate::Done {
                    cut.push(*file);
                }
            }
        }
        fates
    }

    /// A file does not go on behind a write that made it longer and is torn: its length follows the bytes, or precedes
    /// all of them. RocksDB would take that for damage.
    fn without_torn_middle(&self, mut fates: Vec<Fate>) -> Vec<Fate> {
        let mut torn = Vec::new();
        for (i, fate) in fates.iter_mut().enumerate() {
            if let Op::Write { file, extends: true, .. } = self.op(self.pending[i]) {
                if torn.contains(file) {
                    *fate = Fate::Lost;
                } else if matches!(fate, Fate::Torn(_)) {
                    torn.push(*file);
                }
            }
        }
        fates
    }

    /// What depends on a lost name is lost.
    fn in_order(&self, mut fates: Vec<Fate>) -> Vec<Fate> {
        for later in 0..fates.len() {
            let lost = |earlier: usize| {
                fates[earlier] == Fate::Lost && depends(self.op(self.pending[later]), self.op(self.pending[earlier]))
            };
            if (0..later).any(lost) {
                fates[later] = Fate::Lost;
            }
        }
        fates
    }

    fn markers(&self, fates: &[Fate]) -> Vec<Marker> {
        let mut markers = Vec::new();
        let is_lost = |fate: &Fate| *fate == Fate::Lost;
        if fates.iter().all(|fate| *fate == Fate::Done) {
            return vec![Marker::Whole];
        }
        if fates.last().is_some_and(is_lost) {
            markers.push(Marker::LostTail);
        }
        if fates.iter().position(is_lost).is_some_and(|lost| fates[lost..].iter().any(|fate| !is_lost(fate))) {
            markers.push(Marker::Reordered);
        }
        for (at, fate) in self.pending.iter().zip(fates) {
            markers.extend(match (self.op(*at), fate) {
                (_, Fate::Done) => None,
                (_, Fate::Zeros) => Some(Marker::Zeros),
                (Op::Write { file, .. }, Fate::Torn(_)) if self.log_files.contains(file) => Some(Marker::TornLog),
                (_, Fate::Torn(_)) => Some(Marker::TornStore),
                (Op::MakeDir { .. } | Op::Create { .. } | Op::Link { .. }, Fate::Lost) => Some(Marker::LostCreation),
                (Op::Rename { .. }, Fate::Lost) => Some(Marker::LostRename),
                (Op::Remove { .. }, Fate::Lost) => Some(Marker::LostRemoval),
                (Op::SetLen { .. }, Fate::Lost) => Some(Marker::LostLength),
                _ => None,
            });
        }
        markers.sort_unstable();
        markers.dedup();
        markers
    }
}

/// The first, the last, one in the middle and a random one.
fn sample(cuts: &[u64], random: &mut StdRng) -> Vec<u64> {
    let (Some(first), Some(last)) = (cuts.first(), cuts.last()) else { return Vec::new() };
    let mut sample = vec![*first, *last, cuts[cuts.len() / 2], cuts[random.random_range(0..cuts.len())]];
    sample.sort_unstable();
    sample.dedup();
    sample
}

fn is_metadata(op: &Op) -> bool {
    !matches!(op, Op::Write { .. })
}

/// The names that an operation changes.
fn slots(op: &Op) -> Vec<&Slot> {
    match op {
        Op::MakeDir { slot, .. } | Op::Create { slot, .. } | Op::Link { slot, .. } | Op::Remove { slot, .. } => {
            vec![slot]
        }
        Op::Rename { from, to, .. } => vec![from, to],
        Op::Write { .. } | Op::SetLen { .. } | Op::Sync { .. } | Op::SyncRange | Op::Mark(_) => Vec::new(),
    }
}

/// What the names stand for.
fn node(op: &Op) -> Option<Inode> {
    match op {
        Op::MakeDir { dir: node, .. }
        | Op::Create { file: node, .. }
        | Op::Link { file: node, .. }
        | Op::Remove { node, .. }
        | Op::Rename { moved: node, .. }
        | Op::Write { file: node, .. }
        | Op::SetLen { file: node, .. } => Some(*node),
        Op::Sync { .. } | Op::SyncRange | Op::Mark(_) => None,
    }
}

/// Whether the operation changes the file or directory, its names among that.
fn touches(op: &Op, of: Inode) -> bool {
    node(op) == Some(of) || slots(op).iter().any(|slot| slot.dir == of)
}

/// Whether a sync of `of` covers the operation where nothing more is promised than has to be. A rename is durable with
/// its new name.
fn is_of(op: &Op, of: Inode) -> bool {
    node(op) == Some(of) || slots(op).last().is_some_and(|slot| slot.dir == of)
}

/// Whether a change of names cannot be there without an earlier one: of the same name or file, or of the directory.
fn depends(later: &Op, earlier: &Op) -> bool {
    let (of_later, of_earlier) = (slots(later), slots(earlier));
    if of_later.is_empty() || of_earlier.is_empty() {
        return false;
    }
    node(later) == node(earlier)
        || of_later.iter().any(|slot| of_earlier.contains(slot))
        || matches!(earlier, Op::MakeDir { dir, .. } if of_later.iter().any(|slot| slot.dir == *dir))
}

/// The operations of the member whose directory is `root`, by their positions.
pub fn of_member(trace: &Trace, root: Inode) -> Vec<usize> {
    let mut own = HashSet::from([root]);
    for found in &trace.found {
        let (Found::Dir { slot, dir: node } | Found::File { slot, file: node, .. }) = found;
        if own.contains(&slot.dir) {
            own.insert(*node);
        }
    }
    let mut positions = Vec::new();
    for (at, op) in trace.ops.iter().enumerate() {
        let is_own = match op {
            Op::Sync { node, .. } => own.contains(node),
            op => slots(op).iter().any(|slot| own.contains(&slot.dir)) || node(op).is_some_and(|of| own.contains(&of)),
        };
        if is_own {
            own.extend(node(op));
            positions.push(at);
        }
    }
    positions
}
