//! Backups of a member in a directory: full ones, and the log in between, so that any revision can be had back.
//!
//! ```text
//! apply ────────> tap.rs: a bounded queue ─> keeper.rs: every second ─> archive.rs: one write, one sync
//!                                               └─ every day ─> base.rs: checkpoint ─> files not there yet, manifest
//!                                                    retention.rs: removes what is too old
//! pintlectl ─> catalog.rs: what is there, and what it covers ─> verify.rs, restore.rs ─> file.rs, segment.rs
//! ```
//!
//! [`segment`] and [`manifest`] say what stands in the files; `docs/format.md` says both, `docs/backups.md` how to use it.
//!
//! Invariants:
//! - A backup that fails stops nobody: apply only appends to a queue, which is let go when it is too long.
//! - What is missing in the archive is never passed over: a *chain* is the log without a gap, and behind a gap begins
//!   another, with the reason in it and a full backup of its own.
//! - A full backup is there when its manifest is, and that is written last.

mod archive;
mod base;
pub mod catalog;
mod error;
mod file;
mod keeper;
pub mod manifest;
pub mod restore;
mod retention;
mod segment;
mod tap;
mod time;
pub mod verify;

use std::{path::PathBuf, time::Duration};

pub use self::{
    base::Owner,
    error::BackupError,
    keeper::{Backups, RunningBackups},
    tap::Tap,
    time::Time,
};

/// The flags `--backup-…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Of all members; each has a folder of its own in it.
    pub dir: PathBuf,
    /// Between full backups. None: only where a chain begins.
    pub interval: Option<Duration>,
    /// Between two syncs of the archived log, at most.
    pub log_interval: Duration,
    /// Full backups that stay.
    pub keep: usize,
}
