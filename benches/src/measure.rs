//! What a run is measured by: operations, latencies, errors, and what the servers and the load generator used.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tonic::Status;

use crate::{Shape, node, report::mib};

/// How long operations may be late at the end before they are given up, as missed or as errors.
pub const DRAIN: Duration = Duration::from_secs(10);

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
    /// What the servers used, where their pids are known.
    pub server: Option<Usage>,
    /// CPU time of the load generator.
    pub own_cpu: Duration,
    /// Keys and values put within the measured time, bytes.
    pub put_bytes: u64,
    /// Syncs of the servers' logs per second, warm-up included, where they count them.
    pub fsyncs_per_second: Option<f64>,
}

/// What the servers used, summed over them.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub cpu: Duration,
    pub memory: node::Memory,
    /// Bytes they made the kernel write to disks.
    pub disk_bytes: u64,
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }

    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }

    fn each(&self, cpu: Duration) -> Option<f64> {
        (self.operations > 0).then(|| cpu.as_secs_f64() * 1e6 / self.operations as f64)
    }

    pub fn cpu_us_per_operation(&self) -> Option<f64> {
        self.each(self.server.as_ref()?.cpu)
    }

    pub fn own_cpu_us_per_operation(&self) -> Option<f64> {
        self.each(self.own_cpu)
    }

    /// Bytes written to disk for each byte put.
    pub fn written_per_put(&self) -> Option<f64> {
        let written = self.server?.disk_bytes;
        (self.put_bytes > 0).then(|| written as f64 / self.put_bytes as f64)
    }

    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        writeln!(f, "operations   {} in {seconds:.2} s, {:.0}/s", self.operations, self.per_second())?;
        let q = |quantile| self.quantile_ms(quantile);
        let max = self.latency.max() as f64 / 1000.0;
        writeln!(
            f,
            "latency ms   p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {max:.3}",
            q(0.5),
            q(0.9),
            q(0.99),
            q(0.999),
        )?;
        if let (Some(server), Some(each)) = (&self.server, self.cpu_us_per_operation()) {
            writeln!(f, "server CPU   {each:.1} us/operation, {:.2} cores", server.cpu.as_secs_f64() / seconds)?;
            let (rss, anon) = (mib(server.memory.rss_bytes), mib(server.memory.anon_bytes));
            writeln!(f, "server RSS   {rss:.1} MiB, of it anonymous {anon:.1} MiB")?;
        }
        if let Some(ratio) = self.written_per_put() {
            writeln!(f, "disk         {ratio:.2} bytes written per byte put")?;
        }
        if let Some(fsyncs) = self.fsyncs_per_second {
            writeln!(f, "log syncs    {fsyncs:.0}/s")?;
        }
        let own = self.own_cpu.as_secs_f64() / seconds;
        write!(f, "load CPU     {:.2} us/operation, {own:.2} cores", self.own_cpu_us_per_operation().unwrap_or(0.0))?;
        if self.missed > 0 {
            write!(f, "\nmissed       {} operations were due and did not run", self.missed)?;
        }
        for (error, count) in &self.errors {
            write!(f, "\nerror        {count} x {error}")?;
        }
        Ok(())
    }
}

/// CPU time of the servers and our own, and what was written, at one moment.
struct Moment {
    server_cpu: Duration,
    own_cpu: Duration,
    disk_bytes: u64,
}

impl Moment {
    fn now(pids: &[u32]) -> anyhow::Result<Moment> {
        Ok(Moment {
            server_cpu: node::cpu_time(pids)?,
            own_cpu: node::own_cpu_time(),
            disk_bytes: node::written_bytes(pids)?,
        })
    }
}

/// What happens is written here while the run lasts.
pub struct Recorder {
    pub start: Instant,
    pub end: Instant,
    pids: Vec<u32>,
    operations: u64,
    put_bytes: u64,
    latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    /// Operations that were due in the measured time and came to an end, whichever.
    ended_due: u64,
    started: Option<Moment>,
    ended: Option<(Moment, node::Memory)>,
}

impl Recorder {
    pub fn new(warmup: Duration, duration: Duration, pids: Vec<u32>) -> Recorder {
        let start = Instant::now() + warmup;
        Recorder {
            start,
            end: start + duration,
            pids,
            operations: 0,
            put_bytes: 0,
            latency: latencies(),
            errors: BTreeMap::new(),
            ended_due: 0,
            started: None,
            ended: None,
        }
    }

    pub fn measures(&self, at: Instant) -> bool {
        (self.start..self.end).contains(&at)
    }

    /// Counts `count` operations answered at `now`, if that is within the measured time.
    pub fn complete(&mut self, count: u64, put_bytes: u64, now: Instant) {
        if self.measures(now) {
            self.operations += count;
            self.put_bytes += put_bytes;
        }
    }

    pub fn latency(&mut self, latency: Duration) {
        self.latency.saturating_record(micros(latency).max(1));
    }

    pub fn error(&mut self, status: &Status) {
        let text = format!("{:?}: {}", status.code(), status.message());
        *self.errors.entry(text).or_default() += 1;
    }

    /// An operation that was due in the measured time has come to an end.
    pub fn ended(&mut self) {
        self.ended_due += 1;
    }

    /// Takes what was used so far when the measured time begins and when it ends. Returns when to be asked again;
    /// `None`: it is over.
    pub fn observe(&mut self, now: Instant) -> anyhow::Result<Option<Instant>> {
        if self.started.is_none() && now >= self.start {
            self.started = Some(Moment::now(&self.pids)?);
        }
        if self.ended.is_none() && now >= self.end {
            self.ended = Some((Moment::now(&self.pids)?, node::memory(&self.pids)?));
        }
        Ok(match (&self.started, &self.ended) {
            (None, _) => Some(self.start),
            (_, None) => Some(self.end),
            _ => None,
        })
    }

    /// `due`: how many operations were due in the measured time of an open loop.
    pub fn finish(mut self, due: Option<u64>) -> Measured {
        let missed = due.map_or(0, |due| due.saturating_sub(self.ended_due));
        // They were late by at least this much. Left out, they would make an overloaded server look fast.
        if missed > 0 {
            self.latency.saturating_record_n(micros(DRAIN), missed);
        }
        let used = self.started.zip(self.ended);
        let own_cpu = used.as_ref().map(|(before, (after, _))| after.own_cpu.saturating_sub(before.own_cpu));
        let server = used.filter(|_| !self.pids.is_empty()).map(|(before, (after, memory))| Usage {
            cpu: after.server_cpu.saturating_sub(before.server_cpu),
            memory,
            disk_bytes: after.disk_bytes.saturating_sub(before.disk_bytes),
        });
        Measured {
            elapsed: self.end - self.start,
            operations: self.operations,
            missed,
            latency: self.latency,
            errors: self.errors,
            server,
            own_cpu: own_cpu.unwrap_or_default(),
            put_bytes: self.put_bytes,
            fsyncs_per_second: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_that_never_ran_count_as_late() {
        let mut recorder = Recorder::new(Duration::ZERO, Duration::from_secs(1), Vec::new());
        recorder.latency(Duration::from_millis(1));
        recorder.ended();
        let measured = recorder.finish(Some(4));
        assert_eq!(measured.missed, 3);
        assert!(measured.quantile_ms(0.5) >= DRAIN.as_secs_f64() * 1000.0);
    }
}
