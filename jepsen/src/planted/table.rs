//! Which runs have to find which bug.

/// A run that finds a bug.
#[derive(Clone, Copy)]
pub struct Catch {
    /// As `storage/src/planted.rs` names it.
    pub bug: &'static str,
    /// What this program is run with, beside the server and the seed.
    pub arguments: &'static [&'static str],
    pub takes_binary: bool,
    pub takes_seed: bool,
    /// A run that leaves something to chance is tried again, with other seeds.
    pub attempts: u32,
    /// One of these stands in the complaint.
    pub reasons: &'static [&'static str],
}

const fn probe(bug: &'static str, arguments: &'static [&'static str], reasons: &'static [&'static str]) -> Catch {
    Catch { bug, arguments, takes_binary: true, takes_seed: false, attempts: 3, reasons }
}

const fn load(bug: &'static str, arguments: &'static [&'static str], reasons: &'static [&'static str]) -> Catch {
    Catch { bug, arguments, takes_binary: true, takes_seed: true, attempts: 4, reasons }
}

/// How acknowledged writes are missed: by a member that has forgotten that there were any, by their revisions, or one
/// by one.
const LOST: &[&str] =
    &["instead of getting ready", "the store is at", "acknowledged but lost", "that had been told before it began"];

/// Within this process, which must have been built with the feature `planted` too.
const fn images(bug: &'static str, arguments: &'static [&'static str], reasons: &'static [&'static str]) -> Catch {
    Catch { bug, arguments, takes_binary: false, takes_seed: true, attempts: 2, reasons }
}

/// Whole clusters within this process, which must have been built with the feature `planted` too.
const fn simulate(bug: &'static str, reasons: &'static [&'static str]) -> Catch {
    let arguments = &["simulate", "--minutes", "4"];
    Catch { bug, arguments, takes_binary: false, takes_seed: true, attempts: 16, reasons }
}

/// How the simulation misses what a disk was to keep.
const FORGOTTEN: &[&str] =
    &["stopped without a reason of ours", "was seen as", "acknowledged", "went back", "but it is"];

macro_rules! only {
    ($probe:literal) => {
        &["probe", "--only", $probe]
    };
}

/// The cheapest run of each bug first.
pub const CATCHES: &[Catch] = &[
    probe("AnswerBeforeFsync", only!("sync-order"), &["without a sync in between"]),
    load("AnswerBeforeFsync", &["power-cut", "--rounds", "10"], LOST),
    images(
        "AnswerBeforeFsync",
        &["images", "--scenario", "single", "--share", "20"],
        &["a record that was synced cannot be read any more"],
    ),
    simulate("AnswerBeforeFsync", FORGOTTEN),
    load("AnswerBeforeWrite", &["kill", "--nodes", "1", "--rounds", "20"], LOST),
    simulate("AnswerBeforeWrite", FORGOTTEN),
    probe("VoteNotSynced", only!("sync-order"), &["without a sync in between"]),
    images(
        "VoteNotSynced",
        &["images", "--scenario", "three", "--share", "20"],
        &["the ballot is", "a record that was synced cannot be read any more"],
    ),
    simulate("VoteNotSynced", FORGOTTEN),
    probe("FsyncRetried", only!("failed-sync"), &["goes on after an fsync failed"]),
    simulate("FsyncRetried", FORGOTTEN),
    Catch {
        takes_seed: false,
        ..load("TruncationOnAnyChecksumError", &["damage", "--megabytes", "20"], &["it is at revision"])
    },
    load("LogTruncationOffByOne", &["kill", "--nodes", "3", "--rounds", "25"], &["stands where entry"]),
    simulate("LogTruncationOffByOne", &["stands where entry"]),
    probe("SegmentNameNotSynced", only!("sync-order"), &["before its name was synced"]),
    images(
        "SegmentNameNotSynced",
        &["images", "--scenario", "single", "--share", "20"],
        &["newest: damaged at offset 0: the file is missing"],
    ),
    simulate("SegmentNameNotSynced", FORGOTTEN),
    probe("LogPurgedBeforeFlush", only!("purged-log"), &["the start after a kill"]),
    simulate("LogPurgedBeforeFlush", FORGOTTEN),
    probe("FamiliesFlushedApart", only!("large-crash"), &["after a kill"]),
    probe("AppliedIndexApart", only!("large-crash"), &["after a kill"]),
    simulate("AppliedIndexApart", FORGOTTEN),
    probe(
        "RevisionFromLivingKeys",
        only!("compacted-revision"),
        &["required revision has been compacted", "the store was at revision"],
    ),
    probe("DefragmentTearsFamilies", only!("defragment-crash"), &["defragmentation"]),
    probe("SnapshotMissesFamily", only!("snapshot"), &["after a snapshot lease"]),
    probe("DeleteEventCompacted", only!("compacted-watch"), &["is not there"]),
    probe("CompactionOffByOne", only!("compacted-reads"), &["at the compacted revision"]),
    simulate("CompactionOffByOne", &[": Holds {"]),
    probe("TxnReadsCompacted", only!("compacted-reads"), &["a read below the compacted revision"]),
    probe("TxnComparesLate", only!("nested-compare"), &["a nested comparison saw"]),
    probe("LeaseRevokeNotAtomic", only!("lease-keys"), &["was revoked in 4 revisions"]),
    probe("OldLeaseKeepsKey", only!("lease-keys"), &["a key went with a lease"]),
    simulate("OldLeaseKeepsKey", &["nobody asked", "the apply thread has stopped"]),
    probe("RightsCheckedEarly", only!("rights"), &["a user without a right"]),
    load(
        "LeaderRestored",
        &["kill", "--nodes", "3", "--rounds", "25", "--victims", "all"],
        // Another leader's revisions are given again.
        &["the watch fell silent", "instead of getting ready", "differ", "stale reads", "has changed: it was"],
    ),
    simulate("LeaderRestored", &["was seen as", "was known before it began", "but it is"]),
    probe("WipedMemberVotes", only!("wiped-member"), &["was let in as itself"]),
    probe("MembershipAppliedEarly", only!("added-member"), &["a member cannot be added"]),
    probe("ProposalRepeated", only!("done-once"), &["was done 2 times"]),
    simulate("ProposalRepeated", &["was done again at", "and yet it was done"]),
    probe("AnswerBeforeApply", only!("own-writes"), &["a put was answered at"]),
    probe("ReadIndexSkipped", only!("paused-leader"), &["a stale read"]),
    load("ReadIndexSkipped", &["kill", "--nodes", "3", "--rounds", "5"], &["stale reads", "the store is at"]),
    simulate("ReadIndexSkipped", &["was known before it began"]),
    probe("StaleReadAfterPause", only!("paused-leader"), &["a stale read"]),
    probe("LeaseReadTooLong", only!("paused-leader"), &["a stale read"]),
    probe("FutureWatchIgnored", only!("future-watch"), &["was due, and 2 was told"]),
    simulate("FutureWatchIgnored", &["told of revision"]),
    probe("WatchGoesBack", only!("snapshot"), &["a watch at revision"]),
    probe("EventsLostWhenStarved", only!("starved-watch"), &["was due, and"]),
    probe("EventTwice", only!("past-watch"), &["was due, and"]),
    simulate("EventTwice", &["told of revision"]),
    probe("EventsReordered", only!("past-watch"), &["and a response told of"]),
    simulate("EventsReordered", &["was seen as"]),
    probe("RevisionSplit", only!("past-watch"), &["and a response told of"]),
    simulate("RevisionSplit", &["told of revision"]),
    probe("ResumeSkipsRevision", only!("past-watch"), &["revision 2 was due, and 3"]),
    probe("ProgressAhead", only!("progress"), &["progress up to"]),
    probe("WrongPrevKv", only!("compacted-watch"), &["is compacted, and was sent"]),
    load("WrongPrevKv", &["test", "--workload", "watch", "--nemesis", "none", "--time", "60"], &["FAILED: prev_kv"]),
    probe("FilterIgnored", only!("filtered-watch"), &["was sent Event"]),
    probe("LeaseShortened", only!("lease-over-election"), &["a lease of 4s was gone"]),
    simulate("LeaseShortened", &["nobody asked"]),
    probe("StaleLeaderRenews", only!("paused-renewal"), &["a replaced leader renewed"]),
    probe("LockGivenAtOnce", only!("lock"), &["was given to another"]),
];
