//! Events that went to one range, as each of its watchers wants them.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    outbox::Delivery,
    recent::SharedEvent,
    watcher::{Filter, Watcher},
};

/// Events that many watchers share, also where some of these want only a part.
pub struct Matched {
    all: Part,
    /// By what is filtered out.
    filtered: Mutex<Vec<(Filter, Part)>>,
}

#[derive(Clone)]
struct Part {
    events: Arc<Vec<Arc<SharedEvent>>>,
    bytes: usize,
}

impl Part {
    fn new(events: Vec<Arc<SharedEvent>>) -> Self {
        let bytes = events.iter().map(|event| event.size()).sum();
        Part { events: Arc::new(events), bytes }
    }
}

impl Matched {
    /// In order, and not empty.
    pub fn new(events: Vec<&Arc<SharedEvent>>) -> Self {
        Matched { all: Part::new(events.into_iter().cloned().collect()), filtered: Mutex::default() }
    }

    /// What of it goes to `watcher`, which has seen all before `next`. The header's revision is that of the newest event,
    /// or the one given.
    pub fn delivery(&self, watcher: &Arc<Watcher>, next: i64, revision: Option<i64>) -> Option<Delivery> {
        let (first, last) = (self.all.events.first()?.revision(), self.all.events.last()?.revision());
        let filter = watcher.watch.filter;
        let part = if first < next {
            let wanted = |event: &&Arc<SharedEvent>| event.revision() >= next && filter.passes(event);
            Part::new(self.all.events.iter().filter(wanted).cloned().collect())
        } else if filter == Filter::default() {
            self.all.clone()
        } else {
            self.part(filter)
        };
        (!part.events.is_empty()).then(|| Delivery {
            watcher: watcher.clone(),
            events: part.events,
            bytes: part.bytes,
            revision: revision.unwrap_or(last),
        })
    }

    fn part(&self, filter: Filter) -> Part {
        let mut filtered = self.filtered.lock();
        if let Some((_, part)) = filtered.iter().find(|(known, _)| *known == filter) {
            return part.clone();
        }
        let part = Part::new(self.all.events.iter().filter(|event| filter.passes(event)).cloned().collect());
        filtered.push((filter, part.clone()));
        part
    }
}
