//! Directories: which names there are, and which of them outlive a crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use rand::{Rng as _, rngs::StdRng};

/// When a name that was made, changed or removed is so on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// When its directory is synced, or at any time before: a crash keeps any of the changes since. This is what POSIX
    /// lets a program rely on.
    Posix,
    /// With the journal, whose records keep their order, and which any sync of any file or directory writes. A crash
    /// keeps the changes up to some point. This is ext4.
    Journal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    Directory,
    File(u64),
}

/// A change of names, as one: a rename is on the disk or is not.
#[derive(Debug, Clone)]
struct Change {
    removes: Option<PathBuf>,
    adds: Option<(PathBuf, Entry)>,
}

impl Change {
    fn names(&self) -> impl Iterator<Item = &PathBuf> {
        self.removes.iter().chain(self.adds.iter().map(|(name, _)| name))
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        if let Some(removed) = &self.removes {
            names.remove(removed);
        }
        if let Some((added, entry)) = &self.adds {
            if let Entry::File(_) = entry {
                // A file has one name. Without the changes between, it would keep the one that it had before them.
                names.retain(|_, other| other != entry);
            }
            names.insert(added.clone(), *entry);
        }
    }
}

#[derive(Debug)]
pub struct Names {
    rule: NameRule,
    now: BTreeMap<PathBuf, Entry>,
    durable: BTreeMap<PathBuf, Entry>,
    /// In the order in which they were made.
    pending: Vec<Change>,
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, path.display().to_string())
}

/// The directory that a name is in, unless that is the root.
fn parent(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| !is_root(parent))
}

/// It is always there.
fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}

impl Names {
    pub fn new(rule: NameRule) -> Names {
        Names { rule, now: BTreeMap::new(), durable: BTreeMap::new(), pending: Vec::new() }
    }

    fn push(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.pending.push(change);
    }

    pub fn clear(&mut self) {
        *self = Names::new(self.rule);
    }

    fn is_dir(&self, path: &Path) -> bool {
        is_root(path) || self.now.get(path) == Some(&Entry::Directory)
    }

    fn has_parent(&self, path: &Path) -> bool {
        parent(path).is_none_or(|dir| self.is_dir(dir))
    }

    pub fn file(&self, path: &Path) -> io::Result<u64> {
        match self.now.get(path) {
            Some(Entry::File(inode)) => Ok(*inode),
            Some(Entry::Directory) => Err(io::Error::new(io::ErrorKind::IsADirectory, path.display().to_string())),
            None => Err(missing(path)),
        }
    }

    pub fn make_dir(&mut self, dir: &Path) -> io::Result<()> {
        let mut new = Vec::new();
        let mut next = Some(dir).filter(|dir| !is_root(dir));
        while let Some(dir) = next {
            match self.now.get(dir) {
                Some(Entry::Directory) => break,
                Some(Entry::File(_)) => {
                    return Err(io::Error::new(io::ErrorKind::NotADirectory, dir.display().to_string()));
                }
                None => new.push(dir),
            }
            next = parent(dir);
        }
        for dir in new.into_iter().rev() {
            self.push(Change { removes: None, adds: Some((dir.into(), Entry::Directory)) });
        }
        Ok(())
    }

    pub fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        if !self.is_dir(dir) {
            return Err(missing(dir));
        }
        Ok(self.now.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    /// All files, with their inodes.
    pub fn files(&self) -> impl Iterator<Item = (&PathBuf, u64)> {
        self.now.iter().filter_map(|(path, entry)| match entry {
            Entry::File(inode) => Some((path, *inode)),
            Entry::Directory => None,
        })
    }

    pub fn create(&mut self, path: &Path, inode: u64) -> io::Result<()> {
        if !self.has_parent(path) {
            return Err(missing(path));
        }
        self.push(Change { removes: None, adds: Some((path.into(), Entry::File(inode))) });
        Ok(())
    }

    /// Files only: nothing here renames a directory.
    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.file(from)?;
        if !self.has_parent(to) {
            return Err(missing(to));
        }
        if self.now.get(to) == Some(&Entry::Directory) {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, to.display().to_string()));
        }
        if from != to {
            self.push(Change { removes: Some(from.into()), adds: Some((to.into(), Entry::File(inode))) });
        }
        Ok(())
    }

    pub fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.file(path)?;
        self.push(Change { removes: Some(path.into()), adds: None });
        Ok(())
    }

    pub fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        if !self.is_dir(dir) {
            return Err(missing(dir));
        }
        match self.rule {
            NameRule::Journal => self.sync_all(),
            NameRule::Posix => self.sync_only(dir),
        }
        Ok(())
    }

    /// A file was synced.
    pub fn file_synced(&mut self) {
        if self.rule == NameRule::Journal {
            self.sync_all();
        }
    }

    fn sync_all(&mut self) {
        self.pending.drain(..).for_each(|change| change.apply(&mut self.durable));
    }

    fn sync_only(&mut self, dir: &Path) {
        // With a change go those before it that are about the same names.
        let mut names = BTreeSet::new();
        let mut is_synced = vec![false; self.pending.len()];
        for (change, is_synced) in self.pending.iter().zip(&mut is_synced).rev() {
            *is_synced = change.names().any(|name| name.parent() == Some(dir) || names.contains(name));
            if *is_synced {
                names.extend(change.names().cloned());
            }
        }
        let mut is_synced = is_synced.into_iter();
        let durable = &mut self.durable;
        self.pending.retain(|change| match is_synced.next() {
            Some(true) => {
                change.apply(durable);
                false
            }
            _ => true,
        });
    }

    /// Power is lost. Gives how many changes are.
    pub fn crash(&mut self, rng: &mut StdRng) -> u64 {
        let pending = std::mem::take(&mut self.pending);
        let cut = rng.random_range(0..=pending.len());
        let is_any = self.rule == NameRule::Posix && rng.random();
        let mut lost = 0;
        for (i, change) in pending.iter().enumerate() {
            match if is_any { rng.random() } else { i < cut } {
                true => change.apply(&mut self.durable),
                false => lost += 1,
            }
        }
        self.drop_unreachable();
        self.now = self.durable.clone();
        lost
    }

    /// Takes away what is in directories that are not there.
    fn drop_unreachable(&mut self) {
        let all = std::mem::take(&mut self.durable);
        // A directory comes before what is in it.
        for (path, entry) in all {
            if parent(&path).is_none_or(|dir| self.durable.get(dir) == Some(&Entry::Directory)) {
                self.durable.insert(path, entry);
            }
        }
    }

    /// Whether the file has a name, or would have one after a crash.
    pub fn is_named(&self, inode: u64) -> bool {
        let entry = Entry::File(inode);
        let adds = |change: &Change| change.adds.as_ref().is_some_and(|(_, added)| *added == entry);
        self.now.values().chain(self.durable.values()).any(|named| *named == entry) || self.pending.iter().any(adds)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    fn after_crashes(rule: NameRule, act: impl Fn(&mut Names)) -> BTreeSet<Vec<(String, u64)>> {
        let crashed = (0..200).map(|seed| {
            let mut names = Names::new(rule);
            names.make_dir(Path::new("/d")).unwrap();
            names.sync_dir(Path::new("/")).unwrap();
            act(&mut names);
            names.crash(&mut StdRng::seed_from_u64(seed));
            names.files().map(|(path, inode)| (path.display().to_string(), inode)).collect()
        });
        crashed.collect()
    }

    fn at(name: &str, inode: u64) -> (String, u64) {
        (name.into(), inode)
    }

    #[test]
    fn a_new_name_may_be_lost_until_its_directory_is_synced() {
        let create = |names: &mut Names| names.create(Path::new("/d/a"), 1).unwrap();
        assert_eq!(after_crashes(NameRule::Posix, create), [vec![], vec![at("/d/a", 1)]].into());
        let synced = |names: &mut Names| {
            create(names);
            names.sync_dir(Path::new("/d")).unwrap();
        };
        assert_eq!(after_crashes(NameRule::Posix, synced), [vec![at("/d/a", 1)]].into());
    }

    #[test]
    fn the_sync_of_a_file_keeps_names_with_a_journal_only() {
        let create = |names: &mut Names| {
            names.create(Path::new("/d/a"), 1).unwrap();
            names.file_synced();
        };
        assert_eq!(after_crashes(NameRule::Posix, create).len(), 2);
        assert_eq!(after_crashes(NameRule::Journal, create), [vec![at("/d/a", 1)]].into());
    }

    #[test]
    fn a_rename_leaves_the_old_file_or_the_new_one() {
        let replace = |names: &mut Names| {
            names.create(Path::new("/d/a"), 1).unwrap();
            names.create(Path::new("/d/b"), 2).unwrap();
            names.sync_dir(Path::new("/d")).unwrap();
            names.rename(Path::new("/d/b"), Path::new("/d/a")).unwrap();
        };
        for rule in [NameRule::Posix, NameRule::Journal] {
            let expected = [vec![at("/d/a", 1), at("/d/b", 2)], vec![at("/d/a", 2)]];
            assert_eq!(after_crashes(rule, replace), expected.into(), "{rule:?}");
        }
    }

    #[test]
    fn a_journal_keeps_the_order_and_posix_does_not() {
        let create = |names: &mut Names| {
            names.create(Path::new("/d/a"), 1).unwrap();
            names.create(Path::new("/d/b"), 2).unwrap();
        };
        let in_order = [vec![], vec![at("/d/a", 1)], vec![at("/d/a", 1), at("/d/b", 2)]];
        assert_eq!(after_crashes(NameRule::Journal, create), in_order.clone().into());
        let any = in_order.into_iter().chain([vec![at("/d/b", 2)]]).collect();
        assert_eq!(after_crashes(NameRule::Posix, create), any);
    }

    #[test]
    fn a_file_never_has_two_names() {
        let rename = |names: &mut Names| {
            names.create(Path::new("/d/a"), 1).unwrap();
            names.sync_dir(Path::new("/d")).unwrap();
            names.rename(Path::new("/d/a"), Path::new("/d/b")).unwrap();
            names.rename(Path::new("/d/b"), Path::new("/d/c")).unwrap();
        };
        let one = |name| vec![at(name, 1)];
        assert_eq!(after_crashes(NameRule::Posix, rename), [one("/d/a"), one("/d/b"), one("/d/c")].into());
    }

    #[test]
    fn what_is_in_a_lost_directory_is_lost() {
        let nested = |names: &mut Names| {
            names.make_dir(Path::new("/d/sub")).unwrap();
            names.create(Path::new("/d/sub/a"), 1).unwrap();
            names.sync_dir(Path::new("/d/sub")).unwrap();
        };
        assert_eq!(after_crashes(NameRule::Posix, nested), [vec![], vec![at("/d/sub/a", 1)]].into());
    }
}
