//! The loops that issue operations, and what is measured meanwhile.
//!
//! *Closed loop*: every client sends its next operation when the last is answered; the server's speed sets the rate.
//! *Open loop* (`rate`): operation *i* is due at `start + i/rate`, whatever became of the ones before it, and its
//! latency counts from the moment it was **due**, not from when a client got round to sending it. A server that stalls
//! for a second therefore shows a second of latency on all operations due meanwhile, and not on one only
//! ("coordinated omission").
//!
//! ```text
//!  |-- warm-up --|------------ measured: latencies, CPU time of the servers and our own ------------|-- drain --|
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use client::{Client, Connection, Options};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::{sync::Semaphore, task::JoinSet, time::sleep_until};
use tonic::Status;

use crate::{Shape, node};

/// An answer later than this counts as an error.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long operations that were due in time may be late before they are given up as missed (open loop).
const DRAIN: Duration = Duration::from_secs(10);
/// A client waits this long after an error, so that a dead server is not hammered.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);
const SHARDS: usize = 16;

/// Where the load goes and for how long.
#[derive(Debug, Clone)]
pub struct Settings {
    pub endpoints: Vec<String>,
    pub connections: usize,
    pub warmup: Duration,
    pub duration: Duration,
    /// Operations per second; `None` is a closed loop.
    pub rate: Option<f64>,
    pub pids: Vec<u32>,
    pub shape: Shape,
}

/// One client of the loop.
pub trait Worker: Send + 'static {
    fn step(&mut self) -> impl Future<Output = Result<(), Status>> + Send;
}

/// Opens `count` connections of the client library, spread over the endpoints in turn.
pub async fn connect(endpoints: &[String], count: usize) -> anyhow::Result<Vec<Connection>> {
    anyhow::ensure!(!endpoints.is_empty() && count > 0, "at least one endpoint and one connection are needed");
    let mut channels = Vec::with_capacity(count);
    for url in endpoints.iter().cycle().take(count) {
        let options = Options { request_timeout: REQUEST_TIMEOUT, ..Options::default() };
        let client = Client::with_options([url], options)?;
        // Connects.
        client.status(url).await.with_context(|| format!("connect to {url}"))?;
        channels.push(client.connection().await?);
    }
    Ok(channels)
}

/// Latencies in microseconds, up to a minute, to three digits.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid")
}

pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What a run gave.
pub struct Measured {
    pub elapsed: Duration,
    /// Operations answered within the measured time.
    pub operations: u64,
    pub latency: Histogram<u64>,
    /// Operations that were due and never ran (open loop). The latencies hold them as ten seconds late.
    pub missed: u64,
    pub errors: BTreeMap<String, u64>,
    /// CPU time of the servers, where their pids are known.
    pub server: Option<Usage>,
    /// CPU time of the load generator.
    pub own_cpu: Duration,
}

/// What the servers used, summed over them.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub cpu: Duration,
    pub rss_bytes: u64,
    pub anon_bytes: u64,
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }

    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }

    pub fn cpu_us_per_operation(&self) -> Option<f64> {
        let server = self.server.as_ref()?;
        (self.operations > 0).then(|| server.cpu.as_secs_f64() * 1e6 / self.operations as f64)
    }

    pub fn own_cpu_share(&self) -> f64 {
        self.own_cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }

    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "operations   {} in {:.2} s, {:.0}/s",
            self.operations,
            self.elapsed.as_secs_f64(),
            self.per_second()
        )?;
        let q = |quantile| self.quantile_ms(quantile);
        writeln!(
            f,
            "latency ms   p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3}",
            q(0.5),
            q(0.9),
            q(0.99),
            q(0.999),
            self.latency.max() as f64 / 1000.0
        )?;
        if let (Some(server), Some(each)) = (&self.server, self.cpu_us_per_operation()) {
            let mib = |bytes| bytes as f64 / (1 << 20) as f64;
            let share = server.cpu.as_secs_f64() / self.elapsed.as_secs_f64();
            writeln!(f, "server CPU   {each:.1} us/operation, {share:.2} cores")?;
            writeln!(
                f,
                "server RSS   {:.1} MiB, of it anonymous {:.1} MiB",
                mib(server.rss_bytes),
                mib(server.anon_bytes)
            )?;
        }
        write!(f, "load CPU     {:.2} cores", self.own_cpu_share())?;
        if self.missed > 0 {
            write!(f, "\nmissed       {} operations were due and did not run", self.missed)?;
        }
        for (error, count) in &self.errors {
            write!(f, "\nerror        {count} x {error}")?;
        }
        Ok(())
    }
}

/// What the workers write their results to. Sharded: a lock per operation that nobody else holds costs little.
pub struct Recorder {
    pub start: Instant,
    pub end: Instant,
    completed: AtomicU64,
    shards: Vec<Mutex<Histogram<u64>>>,
    errors: Mutex<BTreeMap<String, u64>>,
}

impl Recorder {
    pub fn new(warmup: Duration, duration: Duration) -> Arc<Recorder> {
        let start = Instant::now() + warmup;
        Arc::new(Recorder {
            start,
            end: start + duration,
            completed: AtomicU64::new(0),
            shards: (0..SHARDS).map(|_| Mutex::new(latencies())).collect(),
            errors: Mutex::default(),
        })
    }

    /// Counts `count` operations answered at `now`, if that is within the measured time.
    pub fn complete(&self, count: u64, now: Instant) {
        if (self.start..self.end).contains(&now) {
            self.completed.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub fn latency(&self, shard: usize, latency: Duration) {
        self.shards[shard % SHARDS].lock().saturating_record(micros(latency).max(1));
    }

    pub fn error(&self, status: &Status) {
        let text = format!("{:?}: {}", status.code(), status.message());
        *self.errors.lock().entry(text).or_default() += 1;
    }

    /// Waits for the measured time to begin and to end, and takes the CPU times at both moments.
    pub async fn observe(&self, pids: &[u32]) -> anyhow::Result<(Option<Usage>, Duration)> {
        sleep_until(self.start.into()).await;
        let (server_before, own_before) = (node::cpu_time(pids)?, node::own_cpu_time());
        sleep_until(self.end.into()).await;
        let (server_after, own_after) = (node::cpu_time(pids)?, node::own_cpu_time());
        let server = if pids.is_empty() {
            None
        } else {
            let memory = node::memory(pids)?;
            let cpu = server_after.saturating_sub(server_before);
            Some(Usage { cpu, rss_bytes: memory.rss_bytes, anon_bytes: memory.anon_bytes })
        };
        Ok((server, own_after.saturating_sub(own_before)))
    }

    pub fn finish(&self, server: Option<Usage>, own_cpu: Duration, due: Option<u64>) -> Measured {
        let mut latency = latencies();
        for shard in &self.shards {
            latency.add(&*shard.lock()).expect("all shards have the same bounds");
        }
        let errors = self.errors.lock().clone();
        let answered = latency.len() + errors.values().sum::<u64>();
        let missed = due.map_or(0, |due| due.saturating_sub(answered));
        // They were late by at least this much. Left out, they would make an overloaded server look fast.
        latency.saturating_record_n(micros(DRAIN), missed);
        Measured {
            elapsed: self.end - self.start,
            operations: self.completed.load(Ordering::Relaxed),
            missed,
            latency,
            errors,
            server,
            own_cpu,
        }
    }
}

/// When operations are due in an open loop.
struct Schedule {
    begin: Instant,
    rate: f64,
    total: u64,
    next: AtomicU64,
    /// One permit per operation that is due. A number, not a queue: it cannot fill up.
    due: Semaphore,
}

impl Schedule {
    fn new(begin: Instant, end: Instant, rate: f64) -> Schedule {
        let total = ((end - begin).as_secs_f64() * rate) as u64;
        Schedule { begin, rate, total, next: AtomicU64::new(0), due: Semaphore::new(0) }
    }

    fn due_at(&self, index: u64) -> Instant {
        self.begin + Duration::from_secs_f64(index as f64 / self.rate)
    }

    /// How many operations are due in [start, end).
    fn count_between(&self, start: Instant, end: Instant) -> u64 {
        let below = |at: Instant| {
            let mut index = ((at.saturating_duration_since(self.begin)).as_secs_f64() * self.rate) as u64;
            while index > 0 && self.due_at(index - 1) >= at {
                index -= 1;
            }
            while self.due_at(index) < at {
                index += 1;
            }
            index.min(self.total)
        };
        below(end) - below(start)
    }

    /// Releases operations as they fall due. A thread of its own: the runtime's timer rounds to milliseconds.
    fn pace(&self) {
        let mut released = 0;
        while released < self.total {
            let now = Instant::now();
            let mut ready = 0;
            while released + ready < self.total && self.due_at(released + ready) <= now {
                ready += 1;
            }
            if ready == 0 {
                thread::sleep(self.due_at(released).saturating_duration_since(now));
                continue;
            }
            self.due.add_permits(ready as usize);
            released += ready;
        }
    }

    /// The next operation, when it is due; `None` when there are no more.
    async fn next_due(&self) -> Option<Instant> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        if index >= self.total {
            return None;
        }
        self.due.acquire().await.ok()?.forget();
        Some(self.due_at(index))
    }
}

/// Runs the workers for the warm-up and the measured time.
pub async fn run<W: Worker>(settings: &Settings, workers: Vec<W>) -> anyhow::Result<Measured> {
    let recorder = Recorder::new(settings.warmup, settings.duration);
    let schedule = settings.rate.map(|rate| {
        let schedule = Arc::new(Schedule::new(recorder.start - settings.warmup, recorder.end, rate));
        let pacer = schedule.clone();
        thread::spawn(move || pacer.pace());
        schedule
    });
    let mut tasks = JoinSet::new();
    for (shard, worker) in workers.into_iter().enumerate() {
        match &schedule {
            None => tasks.spawn(closed_loop(worker, recorder.clone(), shard)),
            Some(schedule) => tasks.spawn(open_loop(worker, recorder.clone(), schedule.clone(), shard)),
        };
    }
    let (server, own_cpu) = recorder.observe(&settings.pids).await?;
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    let due = schedule.map(|schedule| schedule.count_between(recorder.start, recorder.end));
    Ok(recorder.finish(server, own_cpu, due))
}

async fn closed_loop<W: Worker>(mut worker: W, recorder: Arc<Recorder>, shard: usize) {
    loop {
        let sent = Instant::now();
        if sent >= recorder.end {
            return;
        }
        let result = step(&mut worker).await;
        let now = Instant::now();
        match result {
            Ok(()) => {
                recorder.complete(1, now);
                if (recorder.start..recorder.end).contains(&now) {
                    recorder.latency(shard, now - sent);
                }
            }
            Err(status) => {
                if now >= recorder.start {
                    recorder.error(&status);
                }
                // A delay: that a server is back is known only by asking it, and it must not be hammered.
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            }
        }
    }
}

async fn step<W: Worker>(worker: &mut W) -> Result<(), Status> {
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, worker.step()).await;
    answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("there was no answer in time")))
}

async fn open_loop<W: Worker>(mut worker: W, recorder: Arc<Recorder>, schedule: Arc<Schedule>, shard: usize) {
    while let Some(due) = schedule.next_due().await {
        if Instant::now() >= recorder.end + DRAIN {
            return;
        }
        let result = step(&mut worker).await;
        let now = Instant::now();
        let counts = (recorder.start..recorder.end).contains(&due);
        match result {
            Ok(()) => {
                recorder.complete(1, now);
                if counts {
                    recorder.latency(shard, now - due);
                }
            }
            Err(status) if counts => recorder.error(&status),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(rate: Option<f64>) -> Settings {
        Settings {
            endpoints: Vec::new(),
            connections: 1,
            warmup: Duration::from_millis(50),
            duration: Duration::from_millis(400),
            rate,
            pids: Vec::new(),
            shape: Shape { value_size: 1, keys: 1, sequential: false },
        }
    }

    /// Answers at once, but for the one operation that stalls.
    struct Stalling {
        calls: u64,
        stall_at: u64,
    }

    impl Worker for Stalling {
        async fn step(&mut self) -> Result<(), Status> {
            self.calls += 1;
            if self.calls == self.stall_at {
                // A delay: the stall itself is what the test is about.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stall_counts_for_every_operation_that_was_due_meanwhile() {
        let measured = run(&settings(Some(1000.0)), vec![Stalling { calls: 0, stall_at: 150 }]).await.unwrap();
        assert_eq!(measured.missed, 0);
        assert_eq!(measured.latency.len(), 400);
        let late = measured.latency.count_between(100_000, 60_000_000);
        assert!(
            (80..=220).contains(&late),
            "about a hundred operations were due 100 ms before the stall ended: {late}"
        );
    }

    /// Fails every time.
    struct Failing;

    impl Worker for Failing {
        async fn step(&mut self) -> Result<(), Status> {
            Err(Status::unavailable("down"))
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn errors_are_counted_and_are_no_operations() {
        let measured = run(&settings(None), vec![Failing]).await.unwrap();
        assert_eq!((measured.operations, measured.latency.len()), (0, 0));
        assert!(measured.error_count() > 0);
        assert!(measured.errors.keys().all(|text| text == "Unavailable: down"));
    }

    #[test]
    fn operations_that_never_ran_count_as_late() {
        let recorder = Recorder::new(Duration::ZERO, Duration::from_secs(1));
        recorder.latency(0, Duration::from_millis(1));
        let measured = recorder.finish(None, Duration::ZERO, Some(4));
        assert_eq!(measured.missed, 3);
        assert!(measured.quantile_ms(0.5) >= DRAIN.as_secs_f64() * 1000.0);
    }

    #[test]
    fn a_schedule_knows_how_many_operations_are_due() {
        let begin = Instant::now();
        let schedule = Schedule::new(begin, begin + Duration::from_secs(3), 1000.0);
        assert_eq!(schedule.total, 3000);
        let (start, end) = (begin + Duration::from_secs(1), begin + Duration::from_secs(3));
        assert!((1999..=2001).contains(&schedule.count_between(start, end)));
    }
}
