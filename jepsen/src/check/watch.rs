//! The properties of watches, named as etcd's guarantees and its robustness tests name them.
//!
//! | property | what breaks it |
//! |---|---|
//! | ordered | an event of a lower revision after one of a higher |
//! | unique | the same key at the same revision twice |
//! | atomic | a revision in two responses (fragments of one response are one) |
//! | reliable | an event left out, or one that never happened, up to the last that was seen or promised |
//! | resumable | the first event is not the first since the revision that was asked for; a watch that goes on elsewhere than where it broke |
//! | bookmarkable | an event at or below the revision of an earlier progress notification |
//! | prev_kv | not the key as it was before; absent only for a key that was not there or when that was compacted |
//! | is-create | a put that says it created what existed, or the reverse |
//! | filter | an event of a kind, a key or a revision that was not asked for |
//! | compacted | a watch refused as compacted when what it asked for was there |
//! | caught up | at the end, when all is quiet, an event has not come |
//!
//! They are judged against the store as it was at each revision: that of [`super::linearizability::replay`], or, where
//! others write too, what one watcher of everything saw ([`truth_of`]), with whom all others must then agree.

#[cfg(test)]
mod tests;
mod watcher;

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

use super::{
    history::{Event, History, Keys, Request, WatchSeen},
    store::Store,
    verdict::Verdict,
};
use watcher::Watcher;

/// Judges all watchers. `quiet_at`: the revision that those which run to the end have had time to see, if that was
/// waited for.
pub fn check(history: &History, truth: &Store, quiet_at: Option<i64>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut watchers: BTreeMap<u64, Watcher> = BTreeMap::new();
    let mut compactions = Compactions::default();
    for (entry, line) in history.entries().iter().enumerate() {
        match &line.event {
            Event::Invoke(request) => compactions.take(request),
            Event::Fault(fault) if COMPACTING.contains(&fault.name.as_str()) => compactions.by_faults = true,
            Event::Watch(note) => {
                let watcher = watchers.entry(note.watcher).or_insert_with(|| Watcher::new(note.watcher));
                if let WatchSeen::Events { events, .. } = &note.seen {
                    verdict.count("watch events", events.len());
                }
                watcher.see(entry, &note.seen, truth, &compactions, &mut verdict);
            }
            _ => {}
        }
    }
    for watcher in watchers.values() {
        watcher.end(truth, quiet_at, &mut verdict);
    }
    verdict.count("watchers", watchers.len());
    verdict
}

/// What the watcher of all keys saw that was asked for from the revision after `initial` on.
pub fn truth_of(history: &History, watcher: u64, initial: Store) -> Result<Store> {
    let mut truth = initial;
    for line in history.entries() {
        let Event::Watch(note) = &line.event else { continue };
        match &note.seen {
            _ if note.watcher != watcher => {}
            WatchSeen::Created { request, .. } => {
                let whole = request.keys == Keys::all() && !request.no_put && !request.no_delete;
                let from = request.start_revision;
                ensure!(whole && from == truth.revision() + 1, "watcher {watcher} does not see all: {request:?}");
            }
            WatchSeen::Events { events, .. } => {
                for event in events {
                    let next = (truth.revision()..=truth.revision() + 1).contains(&event.revision());
                    ensure!(next, "watcher {watcher} goes from {} to {event:?}", truth.revision());
                    truth.witness(event.revision(), event.key().clone(), (!event.delete).then(|| event.kv.clone()));
                }
            }
            WatchSeen::Progress { .. } | WatchSeen::Broken { .. } => {}
            seen => bail!("watcher {watcher} does not see all: {seen:?}"),
        }
    }
    Ok(truth)
}

/// Faults that compact at revisions that the history does not tell.
const COMPACTING: [&str; 2] = ["compaction-storm", "mixed"];

/// Revisions that may have been compacted.
#[derive(Default)]
struct Compactions {
    asked: Vec<i64>,
    /// Any may have been.
    by_faults: bool,
}

impl Compactions {
    fn take(&mut self, request: &Request) {
        match request {
            Request::Compact { revision } => self.asked.push(*revision),
            Request::As { request, .. } => self.take(request),
            _ => {}
        }
    }

    /// Whether what was at a revision may be gone.
    fn may_have_taken(&self, revision: i64) -> bool {
        self.by_faults || self.asked.iter().any(|compacted| *compacted > revision)
    }

    fn have(&self, revision: i64) -> bool {
        self.by_faults || self.asked.contains(&revision)
    }
}
