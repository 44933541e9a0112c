//! What a backup directory holds, and what that covers.
//!
//! ```text
//! <dir>/<cluster>/<member>/chain-…/
//!
//!   log     ├────┤├──────┤├────┤      ├─────┤          a span is a full backup, and the log behind it without a gap:
//!   base        │            │            │    │        here are three, of which the last is its full backup alone
//!   span        ├────────────────┤        ├────┤ ...
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    BackupError, Time,
    archive::{CHAIN_MANIFEST, bases, chains, describe, segments},
    base::MANIFEST,
    error::At as _,
    manifest::{BaseManifest, ChainManifest, SegmentManifest, read_json},
    segment::{self, manifest_path},
};

/// All that is in a directory.
#[derive(Debug)]
pub struct Catalog {
    pub dir: PathBuf,
    pub members: Vec<Member>,
    /// Of what could not be read; all else is as if that were not there.
    pub problems: Vec<BackupError>,
}

/// What one member has brought there.
#[derive(Debug)]
pub struct Member {
    pub cluster: u64,
    pub member: u64,
    pub dir: PathBuf,
    pub chains: Vec<Chain>,
}

#[derive(Debug)]
pub struct Chain {
    pub number: u64,
    pub dir: PathBuf,
    pub manifest: ChainManifest,
    /// In order.
    pub bases: Vec<Base>,
    /// In order.
    pub segments: Vec<Segment>,
}

#[derive(Debug)]
pub struct Base {
    pub dir: PathBuf,
    pub manifest: BaseManifest,
}

#[derive(Debug)]
pub struct Segment {
    pub path: PathBuf,
    pub manifest: SegmentManifest,
    pub is_complete: bool,
    /// Bytes behind the last whole record.
    pub rest: u64,
}

/// A state that the store was in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub index: u64,
    pub revision: i64,
    pub time: Time,
}

/// Each state from `first` to `last` can be restored.
#[derive(Debug)]
pub struct Span<'a> {
    pub first: Point,
    pub last: Point,
    /// The full backups in it, in order; there is one at least.
    pub bases: Vec<&'a Base>,
}

/// The state to go back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    Newest,
    Revision(i64),
    /// All that was applied up to then.
    Time(Time),
}

/// What to restore from: the full backup, and then the log from behind it on.
#[derive(Debug)]
pub struct Choice<'a> {
    pub member: &'a Member,
    pub chain: &'a Chain,
    pub base: &'a Base,
}

impl Catalog {
    /// Reads all manifests, and the segments that have none yet.
    ///
    /// # Errors
    /// When the directory itself cannot be read, or holds no backups.
    pub fn read(dir: &Path) -> Result<Catalog, BackupError> {
        let mut catalog = Catalog { dir: dir.into(), members: Vec::new(), problems: Vec::new() };
        for (cluster, cluster_dir) in by_id(dir)? {
            for (member, member_dir) in by_id(&cluster_dir)? {
                let mut chains_read = Vec::new();
                let chain_dirs = chains(&member_dir)?;
                if chain_dirs.is_empty() {
                    continue;
                }
                for (number, chain_dir) in chain_dirs {
                    chains_read.extend(catalog.read_chain(number, &chain_dir));
                }
                catalog.members.push(Member { cluster, member, dir: member_dir, chains: chains_read });
            }
        }
        if catalog.members.is_empty() {
            return Err(BackupError::Refused(format!(
                "{}: there are no backups here; it takes the directory that --backup-dir names",
                dir.display()
            )));
        }
        Ok(catalog)
    }

    fn read_chain(&mut self, number: u64, dir: &Path) -> Option<Chain> {
        let manifest = self.take(required(&dir.join(CHAIN_MANIFEST)))?;
        let mut chain = Chain { number, dir: dir.into(), manifest, bases: Vec::new(), segments: Vec::new() };
        for (_, base_dir) in self.take(bases(dir)).unwrap_or_default() {
            let manifest = self.take(required(&base_dir.join(MANIFEST)));
            chain.bases.extend(manifest.map(|manifest| Base { dir: base_dir, manifest }));
        }
        for (_, path) in self.take(segments(dir)).unwrap_or_default() {
            let segment = read_segment(&path, &chain.manifest);
            chain.segments.extend(self.take(segment).flatten());
        }
        Some(chain)
    }

    fn take<T>(&mut self, read: Result<T, BackupError>) -> Option<T> {
        read.map_err(|error| self.problems.push(error)).ok()
    }

    /// What to restore from. Where several would do, the newest chain.
    ///
    /// # Errors
    /// When the goal is not covered, or it is not clear of which cluster.
    pub fn choose(&self, goal: Goal, cluster: Option<u64>, member: Option<u64>) -> Result<Choice<'_>, BackupError> {
        let is_asked = |m: &&Member| cluster.is_none_or(|id| id == m.cluster) && member.is_none_or(|id| id == m.member);
        let members: Vec<&Member> = self.members.iter().filter(is_asked).collect();
        let clusters: BTreeSet<u64> = members.iter().map(|member| member.cluster).collect();
        if clusters.len() > 1 {
            let ids: Vec<String> = clusters.iter().map(|id| format!("{id:x}")).collect();
            let (dir, ids) = (self.dir.display(), ids.join(", "));
            return Err(BackupError::Refused(format!("{dir}: these are backups of clusters {ids}; name one of them")));
        }
        let mut found: Option<(Choice<'_>, (Time, i64))> = None;
        let mut covered = Vec::new();
        for member in members {
            for chain in &member.chains {
                for span in chain.spans() {
                    covered.push(span.to_string());
                    let Some(base) = span.base_for(goal) else { continue };
                    let rank = match goal {
                        Goal::Newest => (span.last.time, span.last.revision),
                        Goal::Revision(_) | Goal::Time(_) => (chain.manifest.began, span.last.revision),
                    };
                    if found.as_ref().is_none_or(|(_, best)| rank >= *best) {
                        found = Some((Choice { member, chain, base }, rank));
                    }
                }
            }
        }
        found.map(|(choice, _)| choice).ok_or_else(|| {
            let goal = match goal {
                Goal::Newest => "there is no whole full backup".into(),
                Goal::Revision(revision) => format!("revision {revision} is not covered"),
                Goal::Time(time) => format!("{time} is not covered"),
            };
            let covered = if covered.is_empty() { "nothing".into() } else { covered.join("; ") };
            let unread: String = self.problems.iter().map(|problem| format!("; not read: {problem}")).collect();
            BackupError::Refused(format!("{}: {goal}; what is: {covered}{unread}", self.dir.display()))
        })
    }
}

impl Chain {
    /// What the chain covers, in order. It is one span, unless files are missing.
    pub fn spans(&self) -> Vec<Span<'_>> {
        let mut spans: Vec<Span<'_>> = Vec::new();
        for base in &self.bases {
            if let Some(span) = spans.last_mut().filter(|span| base.manifest.applied_index <= span.last.index) {
                span.bases.push(base);
                if base.manifest.applied_index == span.last.index {
                    // Nothing else had been applied by then.
                    span.last.time = span.last.time.max(base.manifest.time);
                }
                continue;
            }
            let first = base.point();
            let last = self.segments.iter().fold(first, |end, segment| {
                let SegmentManifest { first_index, last_index, last_revision, last_time, .. } = segment.manifest;
                match first_index <= end.index + 1 && last_index > end.index {
                    true => Point { index: last_index, revision: last_revision, time: last_time.max(end.time) },
                    false => end,
                }
            });
            spans.push(Span { first, last, bases: vec![base] });
        }
        spans
    }
}

impl Base {
    pub fn point(&self) -> Point {
        let BaseManifest { applied_index, revision, time, .. } = self.manifest;
        Point { index: applied_index, revision, time }
    }
}

impl<'a> Span<'a> {
    /// The newest full backup that comes before the goal, if the goal is covered.
    fn base_for(&self, goal: Goal) -> Option<&'a Base> {
        let is_before = |base: &&&Base| match goal {
            Goal::Newest => true,
            Goal::Revision(revision) => base.manifest.revision <= revision && revision <= self.last.revision,
            Goal::Time(time) => base.manifest.time <= time && time <= self.last.time,
        };
        self.bases.iter().filter(is_before).next_back().copied()
    }
}

impl std::fmt::Display for Span<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Span { first, last, .. } = self;
        write!(f, "revisions {} to {} ({} to {})", first.revision, last.revision, first.time, last.time)
    }
}

/// A manifest that has to be there.
fn required<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, BackupError> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "the file is missing");
    read_json(path)?.ok_or_else(missing).at(path)
}

/// None for one that holds no entry yet.
fn read_segment(path: &Path, chain: &ChainManifest) -> Result<Option<Segment>, BackupError> {
    if let Some(manifest) = read_json(&manifest_path(path))? {
        return Ok(Some(Segment { path: path.into(), manifest, is_complete: true, rest: 0 }));
    }
    let read = segment::read(path, chain.chain)?;
    if read.entries.is_empty() {
        return Ok(None);
    }
    let manifest = describe(chain.chain, &read.entries, read.bytes, read.checksum);
    Ok(Some(Segment { path: path.into(), manifest, is_complete: read.is_complete, rest: read.rest }))
}

/// Folders named by an id, in order.
fn by_id(dir: &Path) -> Result<Vec<(u64, PathBuf)>, BackupError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).at(dir)? {
        let path = entry.at(dir)?.path();
        let id = path.file_name().and_then(|name| u64::from_str_radix(name.to_str()?, 16).ok());
        found.extend(id.filter(|_| path.is_dir()).map(|id| (id, path)));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{archive::describe, segment::ChainId};

    fn time(unix_ms: i64) -> Time {
        Time { unix_ms }
    }

    /// The entry's index is also its revision and its time.
    fn base(index: u64, taken: i64) -> Base {
        let manifest = BaseManifest {
            format: 1,
            chain: ChainId([0; 16]),
            cluster: 1,
            member: 2,
            name: "m".into(),
            pintle_version: "0".into(),
            applied_index: index,
            applied_term: 1,
            revision: index as i64,
            compacted_revision: -1,
            time: time(taken),
            files: Vec::new(),
        };
        Base { dir: format!("base-{index}").into(), manifest }
    }

    fn segment(first: u64, last: u64) -> Segment {
        let entry = |index: u64| segment::Entry {
            index,
            term: 1,
            revision: index as i64,
            time: time(index as i64),
            command: None,
        };
        let manifest = describe(ChainId([0; 16]), &[entry(first), entry(last)], 0, 0);
        Segment { path: format!("log-{first}").into(), manifest, is_complete: true, rest: 0 }
    }

    fn chain(number: u64, bases: Vec<Base>, segments: Vec<Segment>) -> Chain {
        let manifest = ChainManifest {
            format: 1,
            chain: ChainId([0; 16]),
            cluster: 1,
            member: 2,
            name: "m".into(),
            after_index: 0,
            began: time(number as i64),
            reason: "first".into(),
        };
        Chain { number, dir: format!("chain-{number}").into(), manifest, bases, segments }
    }

    fn covered(chain: &Chain) -> Vec<(u64, u64, i64)> {
        chain.spans().iter().map(|span| (span.first.index, span.last.index, span.last.time.unix_ms)).collect()
    }

    #[test]
    fn a_span_ends_where_the_log_does() {
        let whole = chain(1, vec![base(4, 4), base(15, 15)], vec![segment(1, 10), segment(11, 20)]);
        assert_eq!(covered(&whole), [(4, 20, 20)]);
        let hole = chain(1, vec![base(4, 4), base(15, 15)], vec![segment(1, 10), segment(14, 20)]);
        assert_eq!(covered(&hole), [(4, 10, 10), (15, 20, 20)]);
        let behind_the_log = chain(1, vec![base(4, 4), base(30, 30)], vec![segment(1, 10)]);
        assert_eq!(covered(&behind_the_log), [(4, 10, 10), (30, 30, 30)]);
        let before_the_log = chain(1, vec![base(4, 4)], vec![segment(6, 10)]);
        assert_eq!(covered(&before_the_log), [(4, 4, 4)]);
    }

    #[test]
    fn a_full_backup_at_the_end_shows_that_nothing_came_until_then() {
        assert_eq!(covered(&chain(1, vec![base(4, 4), base(10, 50)], vec![segment(5, 10)])), [(4, 10, 50)]);
    }

    #[test]
    fn the_newest_chain_that_covers_the_goal_is_chosen_and_its_newest_full_backup_before() {
        let first = chain(1, vec![base(4, 4), base(15, 15)], vec![segment(5, 30)]);
        let second = chain(2, vec![base(20, 40)], vec![segment(21, 25)]);
        let member = Member { cluster: 1, member: 2, dir: "m".into(), chains: vec![first, second] };
        let catalog = Catalog { dir: "d".into(), members: vec![member], problems: Vec::new() };
        let chosen = |goal| {
            let choice = catalog.choose(goal, None, None).ok()?;
            Some((choice.chain.number, choice.base.manifest.applied_index))
        };
        assert_eq!(chosen(Goal::Revision(14)), Some((1, 4)));
        assert_eq!(chosen(Goal::Revision(16)), Some((1, 15)));
        assert_eq!(chosen(Goal::Revision(22)), Some((2, 20)));
        assert_eq!(chosen(Goal::Revision(28)), Some((1, 15)));
        assert_eq!(chosen(Goal::Newest), Some((2, 20)));
        assert_eq!(chosen(Goal::Time(time(10))), Some((1, 4)));
        assert_eq!(chosen(Goal::Revision(31)), None);
        assert_eq!(chosen(Goal::Revision(3)), None);
        let error = catalog.choose(Goal::Revision(31), None, None).unwrap_err().to_string();
        assert!(error.starts_with("d: revision 31 is not covered; what is: revisions 4 to 30 ("), "{error}");
        assert!(catalog.choose(Goal::Newest, None, Some(9)).is_err());
    }
}
