//! What is done to which file, and what must come of it.

use std::{
    fmt,
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::layout::{self, Layout};

/// How many tables are damaged.
const TABLES: usize = 3;
const GARBAGE_BYTES: usize = 300;

#[derive(Clone, Debug)]
pub enum Damage {
    FlipBit { offset: u64 },
    Truncate { length: u64 },
    Remove,
    Write { offset: u64, bytes: Vec<u8>, what: &'static str },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expected {
    /// The server must not serve: it exits and names the file.
    Refusal,
    /// It serves all that it held, or it exits and names the file.
    NoWrongAnswer,
    /// It serves all that it held.
    Service,
}

#[derive(Clone, Debug)]
pub struct Case {
    /// Within the data directory.
    pub file: PathBuf,
    pub damage: Damage,
    pub expected: Expected,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match &self.damage {
            Damage::FlipBit { offset } => write!(f, "{file}: one bit flipped at {offset}"),
            Damage::Truncate { length } => write!(f, "{file}: cut to {length} bytes"),
            Damage::Remove => write!(f, "{file}: removed"),
            Damage::Write { offset, what, .. } => write!(f, "{file}: {what} at {offset}"),
        }
    }
}

impl Case {
    pub fn inflict(&self, data_dir: &Path) -> Result<()> {
        let path = data_dir.join(&self.file);
        self.change(&path).with_context(|| format!("cannot damage {}", path.display()))
    }

    fn change(&self, path: &Path) -> Result<()> {
        if let Damage::Remove = self.damage {
            return Ok(fs::remove_file(path)?);
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        match &self.damage {
            Damage::FlipBit { offset } => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, *offset)?;
                byte[0] ^= 0x10;
                file.write_all_at(&byte, *offset)?;
            }
            Damage::Truncate { length } => file.set_len(*length)?,
            Damage::Write { offset, bytes, .. } => file.write_all_at(bytes, *offset)?,
            Damage::Remove => unreachable!("removed above"),
        }
        Ok(())
    }
}

/// All damage for a member that was killed: its log has a newest segment that is being written.
pub fn to_log(data_dir: &Path, layout: &Layout) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for segment in &layout.segments {
        let records = layout::records(&data_dir.join(segment))?;
        let at = |share: usize| records[records.len() * share / 100];
        let mut refused = |damage| cases.push(Case { file: segment.clone(), damage, expected: Expected::Refusal });
        // The header's magic and number, then bodies, then a length: the highest byte, so that it points far away.
        for offset in [3, 15, at(10) + 25, at(50) + 40, at(50), at(80) + 8] {
            refused(Damage::FlipBit { offset });
        }
        refused(Damage::Truncate { length: at(50) });
        refused(Damage::Truncate { length: at(50) + 30 });
        refused(Damage::Remove);
    }
    for file in &layout.log_files {
        for damage in [Damage::Remove, Damage::FlipBit { offset: 0 }] {
            cases.push(Case { file: file.clone(), damage, expected: Expected::NoWrongAnswer });
        }
    }
    cases.extend(torn_tails(data_dir, layout)?);
    Ok(cases)
}

/// What a crash can leave behind the last synced record, which is no damage.
fn torn_tails(data_dir: &Path, layout: &Layout) -> Result<Vec<Case>> {
    let newest = layout.segments.last().context("no segments")?;
    let path = data_dir.join(newest);
    let records = layout::records(&path)?;
    let [.., last, end] = records[..] else { unreachable!("a segment has records") };
    let mut half = vec![0; (end - last) as usize / 2];
    fs::File::open(&path)?.read_exact_at(&mut half, last)?;
    let garbage = (1..=GARBAGE_BYTES).map(|byte| (byte * 37) as u8).collect();
    let tail = |bytes, what| Case {
        file: newest.clone(),
        damage: Damage::Write { offset: end, bytes, what },
        expected: Expected::Service,
    };
    Ok(vec![tail(half, "half a record"), tail(garbage, "garbage")])
}

/// All damage to the database and the member's small files.
pub fn to_database(data_dir: &Path, layout: &Layout) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut add = |file: &PathBuf, damage, expected| cases.push(Case { file: file.clone(), damage, expected });
    for table in layout.tables.iter().take(TABLES) {
        let size = fs::metadata(data_dir.join(table))?.len();
        // Data, data, index or properties, footer.
        for offset in [size / 3, size * 2 / 3, size.saturating_sub(200), size.saturating_sub(10)] {
            add(table, Damage::FlipBit { offset }, Expected::NoWrongAnswer);
        }
        add(table, Damage::Truncate { length: size / 2 }, Expected::Refusal);
    }
    let table = layout.tables.first().context("the database has no tables")?;
    for file in [table, &layout.manifest, &layout.current] {
        add(file, Damage::Remove, Expected::Refusal);
    }
    for file in [&layout.generation, &layout.identity] {
        add(file, Damage::Remove, Expected::NoWrongAnswer);
    }
    for file in [&layout.manifest, &layout.current, &layout.generation, &layout.identity] {
        let size = fs::metadata(data_dir.join(file))?.len();
        add(file, Damage::FlipBit { offset: size / 2 }, Expected::NoWrongAnswer);
    }
    Ok(cases)
}
