//! Whether a backup directory could be restored from, without doing so: every byte is read, every checksum computed,
//! every command decoded, and the log followed from each full backup to its end.

use std::{collections::HashMap, path::Path};

use prost::Message as _;
use proto::command::Command;
use serde::Serialize;

use super::{
    BackupError,
    archive::describe,
    catalog::{Base, Catalog, Chain, Member, Segment},
    file::{path_of, read_file},
    segment,
};
use crate::import::Progress;

/// What was read, and what is wrong with it.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    pub bases: usize,
    pub files: usize,
    pub segments: usize,
    pub entries: u64,
    pub bytes: u64,
    /// Where a member was ended, or is at work, while it wrote.
    pub unfinished: Vec<String>,
    /// With file and place.
    pub problems: Vec<String>,
}

struct Verifier<'a> {
    progress: &'a Progress,
    found: Verified,
    /// Shared files that were read, by their names.
    read: HashMap<String, bool>,
}

/// # Errors
/// When there is no backup to look at, or the work was interrupted. What is wrong with a backup is in the answer.
pub fn verify(dir: &Path, progress: &Progress) -> Result<Verified, BackupError> {
    let catalog = Catalog::read(dir)?;
    let mut verifier = Verifier { progress, found: Verified::default(), read: HashMap::new() };
    verifier.found.problems.extend(catalog.problems.iter().map(BackupError::to_string));
    progress.begin("verifying", bytes(&catalog));
    for member in &catalog.members {
        // Files are shared within a member only.
        verifier.read.clear();
        for chain in &member.chains {
            for base in &chain.bases {
                verifier.base(member, chain, base)?;
            }
            verifier.log(chain)?;
        }
    }
    progress.end();
    Ok(verifier.found)
}

/// What there is to read; what is shared counts once.
fn bytes(catalog: &Catalog) -> u64 {
    let of_member = |member: &Member| {
        let files = member.chains.iter().flat_map(|chain| &chain.bases).flat_map(|base| &base.manifest.files);
        let (shared, own): (Vec<_>, Vec<_>) = files.partition(|file| file.is_shared);
        let shared: HashMap<&str, u64> = shared.iter().map(|file| (file.sha256.as_str(), file.bytes)).collect();
        let segments = member.chains.iter().flat_map(|chain| &chain.segments);
        let own = own.iter().map(|file| file.bytes).sum::<u64>();
        own + shared.values().sum::<u64>() + segments.map(|segment| segment.manifest.bytes).sum::<u64>()
    };
    catalog.members.iter().map(of_member).sum()
}

impl Verifier<'_> {
    fn base(&mut self, member: &Member, chain: &Chain, base: &Base) -> Result<(), BackupError> {
        self.found.bases += 1;
        if base.manifest.chain != chain.manifest.chain {
            self.found.problems.push(format!("{}: it belongs to another chain", base.dir.display()));
        }
        for file in &base.manifest.files {
            let path = path_of(&member.dir, &base.dir, file);
            if file.is_shared && self.read.contains_key(&file.sha256) {
                continue;
            }
            let checked = read_file(&path, file, |block| self.advance(block.len() as u64));
            if file.is_shared {
                self.read.insert(file.sha256.clone(), checked.is_ok());
            }
            self.found.files += 1;
            self.note(checked)?;
        }
        Ok(())
    }

    fn log(&mut self, chain: &Chain) -> Result<(), BackupError> {
        let mut end: Option<u64> = None;
        for segment in &chain.segments {
            let manifest = &segment.manifest;
            if let Some(end) = end.filter(|end| end + 1 != manifest.first_index) {
                let (from, to) = (end + 1, manifest.first_index.saturating_sub(1));
                let path = segment.path.display();
                self.found.problems.push(format!("{path}: before it, entries {from} to {to} are missing"));
            }
            end = Some(manifest.last_index);
            let checked = self.segment(chain, segment);
            self.note(checked)?;
        }
        let first = chain.segments.first().map(|segment| segment.manifest.first_index);
        for base in &chain.bases {
            let index = base.manifest.applied_index;
            if let Some(first) = first.filter(|first| *first > index + 1) {
                let (dir, from, to) = (base.dir.display(), index + 1, first - 1);
                self.found.problems.push(format!("{dir}: behind it, entries {from} to {to} are missing"));
            }
        }
        Ok(())
    }

    fn segment(&mut self, chain: &Chain, segment: &Segment) -> Result<(), BackupError> {
        let path = &segment.path;
        let read = segment::read(path, chain.manifest.chain)?;
        self.found.segments += 1;
        self.found.entries += read.entries.len() as u64;
        let described = describe(chain.manifest.chain, &read.entries, read.bytes, read.checksum);
        if read.is_complete && described != segment.manifest {
            return Err(BackupError::damaged(path, 0, "its manifest describes other entries"));
        }
        if read.rest > 0 {
            let (path, offset, rest) = (path.display(), read.bytes, read.rest);
            self.found
                .unfinished
                .push(format!("{path}: at offset {offset} begin {rest} bytes of an unfinished record"));
        }
        for entry in &read.entries {
            let Some(command) = &entry.command else { continue };
            let is_known = Command::decode(command.clone()).is_ok_and(|command| command.op.is_some());
            if !is_known {
                let detail = format!("entry {} holds no command known here", entry.index);
                return Err(BackupError::damaged(path, 0, detail));
            }
        }
        self.advance(read.bytes)
    }

    fn advance(&mut self, bytes: u64) -> Result<(), BackupError> {
        self.found.bytes += bytes;
        Ok(self.progress.at(self.found.bytes)?)
    }

    /// Damage is part of the answer.
    fn note(&mut self, checked: Result<(), BackupError>) -> Result<(), BackupError> {
        match checked {
            Err(BackupError::Import(interrupted)) => Err(interrupted.into()),
            Err(problem) => {
                self.found.problems.push(problem.to_string());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
