//! Faults planted on purpose, so that the tests can be shown to find them.
//!
//! A planted bug is a place in the real code that asks [`planted!`](crate::planted!) whether it is to go wrong. Only a
//! build with the feature `planted` has them: there the variable `PINTLE_PLANTED` names the one that is active, and
//! `?` lists all. In every other build the answer is the constant `false`, and neither the branch nor a name is left.

/// Whether a bug is active. Goes last in a condition: from the first time it is asked, the bug counts as reached.
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is_active($crate::planted::Bug::$bug)
    };
}

macro_rules! bugs {
    ($(#[doc = $what:literal] $name:ident,)*) => {
        /// What can be planted, each with where something like it has happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $what] $name,)*
        }

        #[cfg(feature = "planted")]
        const ALL: &[(&str, Bug, &str)] = &[$((stringify!($name), Bug::$name, $what),)*];
    };
}

bugs! {
    // The log.
    /// The log answers when the bytes are written, and does not sync them (Redis `appendfsync everysec`).
    AnswerBeforeFsync,
    /// The log answers when an entry is queued, before it is written (etcd #14370, one-node write loss).
    AnswerBeforeWrite,
    /// A vote is written and not synced (Raft, figure 2: persistent state).
    VoteNotSynced,
    /// An fsync that failed is tried again, and believed (PostgreSQL's fsyncgate).
    FsyncRetried,
    /// Recovery takes every checksum error for a torn end ("Protocol-aware recovery", FAST 2018).
    TruncationOnAnyChecksumError,

    // The store.
    /// Column families are flushed one by one, so the applied index and its data part (etcd #13766).
    FamiliesFlushedApart,
    /// Compaction removes the delete at its very revision (etcd #18089, #19179).
    DeleteEventCompacted,
    /// Compaction removes what is superseded at the revision after it.
    CompactionOffByOne,
    /// A range in a transaction reads below the compacted revision (etcd #18667).
    TxnReadsCompacted,
    /// A nested transaction compares against what the outer one has just written.
    TxnComparesLate,

    // Reads and watches.
    /// A linearizable read asks nobody (etcd #741, "Call Me Maybe: etcd and Consul").
    ReadIndexSkipped,
    /// A watch from a future revision gets what comes before it (etcd #20221).
    FutureWatchIgnored,
}

/// Never, in this build.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is_active(_: Bug) -> bool {
    false
}

#[cfg(feature = "planted")]
pub use self::active::{announce, is_active};

#[cfg(feature = "planted")]
mod active {
    use std::{
        env,
        process::exit,
        sync::{
            OnceLock,
            atomic::{AtomicBool, Ordering::Relaxed},
        },
    };

    use super::{ALL, Bug};

    const VARIABLE: &str = "PINTLE_PLANTED";

    static ACTIVE: OnceLock<Option<Bug>> = OnceLock::new();
    static IS_REACHED: AtomicBool = AtomicBool::new(false);

    pub fn is_active(bug: Bug) -> bool {
        let is_active = *ACTIVE.get_or_init(choose) == Some(bug);
        if is_active && !IS_REACHED.swap(true, Relaxed) {
            eprintln!("planted: {bug:?} is reached");
        }
        is_active
    }

    /// Says which bug is active before anything else happens; ends the process when there is no such bug, and after
    /// listing all.
    pub fn announce() {
        if let Some(bug) = ACTIVE.get_or_init(choose) {
            eprintln!("planted: {bug:?} is active");
        }
    }

    fn choose() -> Option<Bug> {
        let name = env::var(VARIABLE).ok().filter(|name| !name.is_empty())?;
        if name == "?" {
            ALL.iter().for_each(|(name, _, what)| println!("{name}\t{}", what.trim()));
            exit(0);
        }
        let Some((_, bug, _)) = ALL.iter().find(|(known, ..)| *known == name) else {
            // A run without the bug would pass, and say nothing of the tests.
            eprintln!("{VARIABLE}: there is no bug {name}; `?` lists them");
            exit(2);
        };
        Some(*bug)
    }
}
