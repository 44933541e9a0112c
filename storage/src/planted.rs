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
    ($($(#[doc = $what:literal])+ $name:ident,)*) => {
        /// What can be planted, each with where something like it has happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Bug {
            $($(#[doc = $what])+ $name,)*
        }

        #[cfg(feature = "planted")]
        const ALL: &[(&str, Bug, &str)] = &[$((stringify!($name), Bug::$name, concat!($($what),+)),)*];
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
    /// Of what is cut off the log, one entry stays (Raft, figure 2: AppendEntries, step 3).
    LogTruncationOffByOne,
    /// A new segment's name is not synced into its directory ("All File Systems Are Not Created Equal", OSDI 2014).
    SegmentNameNotSynced,
    /// The log is purged up to what is applied, which the store may not have on disk yet.
    LogPurgedBeforeFlush,

    // The store.
    /// Column families are flushed one by one, so the applied index and its data part (etcd #13766).
    FamiliesFlushedApart,
    /// The applied index is written with the batch after the one that it belongs to (etcd #13766).
    AppliedIndexApart,
    /// After compaction the revision is taken from the living keys at a start (etcd #17780).
    RevisionFromLivingKeys,
    /// Defragmentation brings one column family after the other to the disk (etcd #14685: a crash in between).
    DefragmentTearsFamilies,
    /// A snapshot is installed without its leases.
    SnapshotMissesFamily,
    /// Compaction removes the delete at its very revision (etcd #18089, #19179).
    DeleteEventCompacted,
    /// Compaction removes what is superseded at the revision after it.
    CompactionOffByOne,
    /// A range in a transaction reads below the compacted revision (etcd #18667).
    TxnReadsCompacted,
    /// A nested transaction compares against what the outer one has just written.
    TxnComparesLate,
    /// A revoked lease's keys go one by one, each at a revision of its own.
    LeaseRevokeNotAtomic,
    /// A key that is put on another lease stays on the old one too, and goes with it.
    OldLeaseKeepsKey,
    /// Rights are checked when a command is proposed, and not again when it is applied (etcd #14571).
    RightsCheckedEarly,

    // Raft.
    /// A leader that restarts leads on in its term without a vote (openraft's `enable_leader_restore`).
    LeaderRestored,
    /// A member that lost its disk takes part as if it had promised nothing.
    WipedMemberVotes,
    /// Who is added votes before it has the log (Raft dissertation, section 4.2.1).
    MembershipAppliedEarly,
    /// A proposal whose fate is unknown is proposed again (Jepsen: a retried write that is done twice).
    ProposalRepeated,
    /// A write is answered before the member that was asked has applied it.
    AnswerBeforeApply,

    // Reads and watches.
    /// A linearizable read asks nobody (etcd #741, "Call Me Maybe: etcd and Consul").
    ReadIndexSkipped,
    /// A leader takes it for granted that it still leads (etcd #20418: reads after a pause).
    StaleReadAfterPause,
    /// A leader that a majority confirmed answers alone for five seconds, longer than an election takes (lease reads
    /// where clocks differ).
    LeaseReadTooLong,
    /// A watch from a future revision gets what comes before it (etcd #20221).
    FutureWatchIgnored,
    /// Where the store is replaced by a snapshot, watches are told again what they have seen (etcd #15271).
    WatchGoesBack,
    /// Events for a watcher whose queue is full are dropped (etcd #17529).
    EventsLostWhenStarved,
    /// A watcher that catches up is told the last revision of each piece twice (etcd #17247).
    EventTwice,
    /// Events of one transaction come in the opposite order.
    EventsReordered,
    /// Events of one revision come in several responses.
    RevisionSplit,
    /// A watch in the past begins a revision late.
    ResumeSkipsRevision,
    /// Progress is told before the events that lead there are sent (etcd #15220).
    ProgressAhead,
    /// An event whose previous version has been compacted is sent with another one.
    WrongPrevKv,
    /// A watch that wants no puts is sent them.
    FilterIgnored,

    // Leases and locks.
    /// A new leader gives leases a part of their time only (etcd: `lease/lessor.go`, Promote).
    LeaseShortened,
    /// A leader that was replaced renews leases without asking anybody (etcd #15247).
    StaleLeaderRenews,
    /// A lock is given to whoever asks.
    LockGivenAtOnce,
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
