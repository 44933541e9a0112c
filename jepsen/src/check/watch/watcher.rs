//! One watcher, through all the watches that were made for it.

use std::collections::BTreeSet;

use super::{
    super::{
        history::{Blob, WatchEvent, WatchRequest, WatchSeen},
        store::Store,
        verdict::Verdict,
    },
    Compactions,
};

pub struct Watcher {
    number: u64,
    /// The watch that runs, or ran last.
    request: WatchRequest,
    state: State,
    /// Events from here on are still to come.
    next: i64,
    /// Whether the present watch has told nothing yet.
    is_fresh: bool,
    last_event: i64,
    last_progress: i64,
    seen: BTreeSet<(i64, Blob)>,
    /// Fragments of a response that is not yet whole.
    fragments: Vec<WatchEvent>,
    last_entry: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Running,
    Broken,
    Compacted(i64),
    Canceled,
}

impl Watcher {
    pub fn new(number: u64) -> Watcher {
        Watcher {
            number,
            request: WatchRequest::default(),
            state: State::New,
            next: 0,
            is_fresh: true,
            last_event: 0,
            last_progress: 0,
            seen: BTreeSet::new(),
            fragments: Vec::new(),
            last_entry: 0,
        }
    }

    pub fn see(
        &mut self,
        entry: usize,
        seen: &WatchSeen,
        truth: &Store,
        compactions: &Compactions,
        verdict: &mut Verdict,
    ) {
        self.last_entry = entry;
        match seen {
            WatchSeen::Created { request, revision } => self.created(entry, request, *revision, verdict),
            WatchSeen::Events { revision, fragment, events } => {
                self.fragments.extend(events.iter().cloned());
                if events.iter().any(|event| event.revision() > *revision) {
                    let explanation = format!("{self} got an event beyond its response's revision {revision}");
                    verdict.found("header revision", [entry], explanation);
                }
                if !fragment {
                    let events = std::mem::take(&mut self.fragments);
                    self.events(entry, &events, truth, compactions, verdict);
                }
            }
            WatchSeen::Progress { revision } => self.progress(entry, *revision, truth, verdict),
            WatchSeen::Compacted { compact_revision } => {
                if *compact_revision <= self.next || !compactions.have(*compact_revision) {
                    let explanation =
                        format!("{self}, asking for {}, was told that {compact_revision} is compacted", self.next);
                    verdict.found("compacted", [entry], explanation);
                }
                self.state = State::Compacted(*compact_revision);
            }
            WatchSeen::Canceled { .. } => self.state = State::Canceled,
            WatchSeen::Broken { .. } => {
                self.state = State::Broken;
                self.fragments.clear();
            }
        }
    }

    fn created(&mut self, entry: usize, request: &WatchRequest, revision: i64, verdict: &mut Verdict) {
        let from = if request.start_revision > 0 { request.start_revision } else { revision + 1 };
        let expected = match self.state {
            State::New => from,
            State::Compacted(compacted) => compacted.max(self.next),
            State::Running | State::Broken | State::Canceled => self.next,
        };
        if from != expected && !(matches!(self.state, State::Compacted(_)) && from > expected) {
            let explanation = format!("{self} goes on from {from} where {expected} is next");
            verdict.found("resumable", [entry], explanation);
        }
        self.request = request.clone();
        self.state = State::Running;
        self.next = from;
        self.is_fresh = true;
        self.fragments.clear();
    }

    fn events(
        &mut self,
        entry: usize,
        events: &[WatchEvent],
        truth: &Store,
        compactions: &Compactions,
        verdict: &mut Verdict,
    ) {
        if events.first().is_some_and(|event| event.revision() == self.last_event) {
            verdict.found("atomic", [entry], format!("{self} got revision {} in two responses", self.last_event));
        }
        for event in events {
            let (key, revision) = (event.key(), event.revision());
            let mut broken = |name, why: &str| {
                verdict.found(name, [entry], format!("{self} got {key} at revision {revision}, {why}"));
            };
            if revision < self.last_event {
                broken("ordered", &format!("after revision {}", self.last_event));
            }
            if self.seen.contains(&(revision, key.clone())) {
                broken("unique", "again");
            }
            if revision <= self.last_progress {
                broken("bookmarkable", &format!("after progress to revision {}", self.last_progress));
            }
            let unwanted = if event.delete { self.request.no_delete } else { self.request.no_put };
            if unwanted || !self.request.keys.contains(key) || revision < self.request.start_revision {
                broken("filter", "which it had not asked for");
            }
            self.judge_content(entry, event, truth, compactions, verdict);
            self.seen.insert((revision, key.clone()));
            self.last_event = self.last_event.max(revision);
        }
        self.expect_all(entry, self.last_event, truth, verdict);
    }

    /// Whether the event is what happened.
    fn judge_content(
        &self,
        entry: usize,
        event: &WatchEvent,
        truth: &Store,
        compactions: &Compactions,
        verdict: &mut Verdict,
    ) {
        let (key, revision) = (event.key(), event.revision());
        let before = truth.at(key, revision - 1);
        let shown = format!("{self} got {key} at revision {revision}");
        if !event.delete && event.is_create() == before.is_some() {
            let explanation = format!("{shown}, created at {}; before it was {before:?}", event.kv.create_revision);
            verdict.found("is-create", [entry], explanation);
        }
        let happened = truth.written_at(key, revision);
        if happened != Some((!event.delete).then_some(&event.kv)) {
            let explanation = format!("{shown} as {event:?}; what happened is {happened:?}");
            verdict.found("reliable", [entry], explanation);
        }
        let expected = before.filter(|_| self.request.prev_kv);
        let compacted_away = event.prev_kv.is_none() && compactions.may_have_taken(revision - 1);
        if event.prev_kv.as_ref() != expected && !compacted_away {
            let explanation = format!("{shown} with {:?} before it, expected {expected:?}", event.prev_kv);
            verdict.found("prev_kv", [entry], explanation);
        }
    }

    fn progress(&mut self, entry: usize, revision: i64, truth: &Store, verdict: &mut Verdict) {
        if revision < self.last_progress || revision < self.last_event {
            let explanation = format!(
                "{self} was told of progress to {revision} after progress to {} and an event of {}",
                self.last_progress, self.last_event
            );
            verdict.found("bookmarkable", [entry], explanation);
        }
        self.last_progress = self.last_progress.max(revision);
        self.expect_all(entry, revision, truth, verdict);
    }

    /// Everything up to a revision must have come.
    fn expect_all(&mut self, entry: usize, to: i64, truth: &Store, verdict: &mut Verdict) {
        for (revision, key) in self.missing(truth, to) {
            let name = if self.is_fresh && self.request.start_revision > 0 { "resumable" } else { "reliable" };
            verdict.found(name, [entry], format!("{self} got on to {to} without {key} at revision {revision}"));
        }
        self.next = self.next.max(to + 1);
        self.is_fresh = false;
    }

    /// What was to come up to a revision and did not.
    fn missing(&self, truth: &Store, to: i64) -> Vec<(i64, Blob)> {
        let request = &self.request;
        let happened = truth.written(self.next..=to).filter(|(_, key, kv)| {
            request.keys.contains(key) && if kv.is_some() { !request.no_put } else { !request.no_delete }
        });
        let happened = happened.map(|(revision, key, _)| (revision, key.clone()));
        happened.filter(|event| !self.seen.contains(event)).collect()
    }

    /// At the end of the history.
    pub fn end(&self, truth: &Store, quiet_at: Option<i64>, verdict: &mut Verdict) {
        let Some(quiet_at) = quiet_at.filter(|_| self.state == State::Running) else { return };
        for (revision, key) in self.missing(truth, quiet_at) {
            verdict.found("caught up", [self.last_entry], format!("{self} never got {key} at revision {revision}"));
        }
    }
}

impl std::fmt::Display for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "watcher {}", self.number)
    }
}
