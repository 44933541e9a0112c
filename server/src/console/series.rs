//! What this member did, second by second: a ring of samples that the page draws.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde::Serialize;
use storage::host;
use tokio::time::{MissedTickBehavior, interval};

use super::Console;
use crate::metrics::{Sample, Times};

const EVERY: Duration = Duration::from_secs(1);
/// A quarter of an hour.
const KEPT: usize = 900;

#[derive(Default)]
pub struct Series(Mutex<VecDeque<Point>>);

/// One second. Latencies are in milliseconds, and there is none without a request.
#[derive(Debug, Clone, Serialize)]
struct Point {
    /// Unix time in milliseconds.
    at: i64,
    reads: f64,
    writes: f64,
    events: f64,
    read_p50: Option<f64>,
    read_p99: Option<f64>,
    write_p50: Option<f64>,
    write_p99: Option<f64>,
    sync_p99: Option<f64>,
    commit_p99: Option<f64>,
    failed: f64,
    size_bytes: i64,
    keys: usize,
    watchers: i64,
}

impl Series {
    /// What came after that time.
    pub fn since(&self, at: i64) -> impl Serialize + use<> {
        self.0.lock().iter().filter(|point| point.at > at).cloned().collect::<Vec<_>>()
    }

    fn push(&self, point: Point) {
        let mut points = self.0.lock();
        if points.len() == KEPT {
            points.pop_front();
        }
        points.push_back(point);
    }
}

/// Takes samples until the process stops.
pub async fn record(console: Arc<Console>) {
    let ctx = &console.ctx;
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let (mut before, mut began) = (ctx.metrics.sample(), host::now());
    while ctx.shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let size_bytes = match ctx.store.size_on_disk() {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%error, "the console's record has a gap");
                continue;
            }
        };
        let (sample, now) = (ctx.metrics.sample(), host::now());
        let point = Point { size_bytes, keys: ctx.store.key_count(), ..between(&before, &sample, now - began) };
        console.series.push(point);
        (before, began) = (sample, now);
    }
}

fn between(before: &Sample, after: &Sample, time: Duration) -> Point {
    let per_second = |count: u64| count as f64 / time.as_secs_f64();
    let quantile = |times: fn(&Sample) -> &Times, q| times(after).since(times(before)).quantile(q).map(|s| s * 1000.0);
    let counted = |count: fn(&Sample) -> u64| per_second(count(after).saturating_sub(count(before)));
    let now = host::system_time().duration_since(UNIX_EPOCH).unwrap_or_default();
    Point {
        at: now.as_millis() as i64,
        reads: counted(|sample| sample.reads.count()),
        writes: counted(|sample| sample.writes.count()),
        events: counted(|sample| sample.events),
        read_p50: quantile(|sample| &sample.reads, 0.5),
        read_p99: quantile(|sample| &sample.reads, 0.99),
        write_p50: quantile(|sample| &sample.writes, 0.5),
        write_p99: quantile(|sample| &sample.writes, 0.99),
        sync_p99: quantile(|sample| &sample.log_syncs, 0.99),
        commit_p99: quantile(|sample| &sample.commits, 0.99),
        failed: counted(|sample| sample.failed),
        size_bytes: 0,
        keys: 0,
        watchers: after.watchers,
    }
}
