//! Watchers that resume where their connection was cut.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::Mutex;
use proto::etcdserverpb::WatchResponse;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    history::{self, Event, History},
    load::{self, Endpoints},
    process,
};

const CREATE_LIMIT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A watch on all keys that goes to another member whenever it breaks.
pub struct Watcher {
    seen: Arc<Mutex<Seen>>,
    /// The revision from which the watcher would resume.
    next: watch::Receiver<i64>,
    task: JoinHandle<()>,
    checked: i64,
}

#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    /// What a compaction took from it while it was away.
    skipped: Vec<RangeInclusive<i64>>,
    resumed: u64,
    fault: Option<String>,
}

impl Watcher {
    /// Watches from the first revision that a store can write.
    pub fn start(endpoints: Endpoints, first: usize) -> Watcher {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (next_sender, next) = watch::channel(2);
        let task = tokio::spawn(watch_on(endpoints, first, Arc::clone(&seen), next_sender));
        Watcher { seen, next, task, checked: 1 }
    }

    pub fn resumed(&self) -> u64 {
        self.seen.lock().resumed
    }

    /// Waits until the watcher has come as far as the history and checks that it saw the same.
    pub async fn check(&mut self, history: &History, compactions: &[i64], limit: Duration) -> Result<()> {
        let to = history.revision();
        let arrived = timeout(limit, self.next.wait_for(|next| *next > to)).await.map(|arrived| arrived.is_ok());
        let (events, skipped) = {
            let mut seen = self.seen.lock();
            if let Some(fault) = &seen.fault {
                bail!("{fault}");
            }
            let end = seen.events.partition_point(|event| event.mod_revision <= to);
            (seen.events.drain(..end).collect::<Vec<Event>>(), std::mem::take(&mut seen.skipped))
        };
        ensure!(
            arrived == Ok(true),
            "a watcher got no further than revision {} of {to} within {limit:?}",
            *self.next.borrow() - 1,
        );
        for gap in &skipped {
            ensure!(
                compactions.contains(gap.end()),
                "a watcher was told of a compaction at {} that nobody asked for",
                gap.end()
            );
        }
        let was_skipped = |revision: i64| skipped.iter().any(|gap| gap.contains(&revision));
        let mut events = events.as_slice();
        for (revision, expected) in history.between(self.checked + 1..=to) {
            if was_skipped(revision) {
                continue;
            }
            let count = events.partition_point(|event| event.mod_revision <= revision);
            let (told, rest) = events.split_at(count);
            ensure!(told == expected, "a watcher was told {told:?} where the history has {expected:?}");
            events = rest;
        }
        self.checked = to;
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch_on(endpoints: Endpoints, first: usize, seen: Arc<Mutex<Seen>>, next: watch::Sender<i64>) {
    for index in first.. {
        let endpoint = load::nth(&endpoints.borrow(), index);
        let start = *next.borrow();
        let stream = timeout(CREATE_LIMIT, history::all_keys(process::channel(&endpoint), start)).await;
        if let Ok(Ok((_requests, mut responses))) = stream {
            while let Ok(Some(response)) = responses.message().await {
                let ends = response.canceled;
                let noted = note(response, &mut seen.lock(), &next);
                if let Err(fault) = noted {
                    seen.lock().fault = Some(format!("{fault:#}"));
                    return;
                }
                if ends {
                    break;
                }
            }
            seen.lock().resumed += 1;
        }
        sleep(RETRY_PAUSE).await;
    }
}

fn note(response: WatchResponse, seen: &mut Seen, next: &watch::Sender<i64>) -> Result<()> {
    let expected = *next.borrow();
    if response.compact_revision > 0 {
        ensure!(response.compact_revision >= expected, "compacted at {} < {expected}", response.compact_revision);
        seen.skipped.push(expected..=response.compact_revision);
        next.send_replace(response.compact_revision + 1);
        return Ok(());
    }
    let mut last = None;
    for event in response.events {
        let event = Event::from_wire(event)?;
        ensure!(event.mod_revision >= expected, "a watcher due for revision {expected} was told again of {event}");
        last = Some(event.mod_revision);
        seen.events.push(event);
    }
    if let Some(last) = last {
        let header = response.header.context("a watch response without a header")?;
        ensure!(header.revision >= last, "a watch response at revision {} tells of {last}", header.revision);
        next.send_replace(last + 1);
    }
    Ok(())
}
