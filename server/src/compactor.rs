//! Compaction that goes by itself: the leader keeps some hours, or some revisions, of history.
//! Source: etcd, `server/etcdserver/api/v3compactor` and `parseCompactionRetention` in `server/embed/etcd.go`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use proto::{EtcdError, command::command::Op, etcdserverpb::CompactionRequest};
use tokio::time::Instant;

use crate::{context::Context, duration};

const HOUR: Duration = Duration::from_secs(3600);
/// In mode `revision`.
const REVISION_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// In mode `periodic`: revisions noted in one period.
const NOTES_PER_PERIOD: u32 = 10;

/// The history to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    Period(Duration),
    Revisions(i64),
}

/// Which flag is wrong, and what it takes.
#[derive(Debug, PartialEq, Eq)]
pub struct RetentionError {
    pub flag: &'static str,
    pub takes: &'static str,
}

impl Retention {
    /// None where compaction is off.
    pub fn parse(mode: &str, retention: &str) -> Result<Option<Retention>, RetentionError> {
        let whole = retention.parse::<u32>().ok();
        let wrong = |takes| RetentionError { flag: "auto-compaction-retention", takes };
        let retention = match mode {
            "periodic" => {
                let hours = whole.map(|hours| HOUR * hours);
                let period = hours.or_else(|| duration::parse(retention));
                Retention::Period(period.ok_or_else(|| wrong("hours, or a duration such as 30m"))?)
            }
            "revision" => Retention::Revisions(whole.ok_or_else(|| wrong("a number of revisions"))?.into()),
            _ => return Err(RetentionError { flag: "auto-compaction-mode", takes: "periodic or revision" }),
        };
        let is_off = matches!(retention, Retention::Period(Duration::ZERO) | Retention::Revisions(0));
        Ok(Some(retention).filter(|_| !is_off))
    }

    fn interval(self) -> Duration {
        match self {
            Retention::Period(period) => period.min(HOUR) / NOTES_PER_PERIOD,
            Retention::Revisions(_) => REVISION_INTERVAL,
        }
    }
}

/// When to compact, and up to where: without a clock of its own.
#[derive(Debug)]
enum Plan {
    Periodic {
        period: Duration,
        /// What is waited for since the last success: at first a whole period, then an hour at most.
        wait: Duration,
        /// The oldest is of one period ago, once so much time has passed.
        noted: VecDeque<i64>,
        succeeded: Instant,
        last: i64,
    },
    Revision {
        keep: i64,
        last: i64,
    },
}

impl Plan {
    fn new(retention: Retention, now: Instant) -> Plan {
        match retention {
            Retention::Period(period) => {
                Plan::Periodic { period, wait: period, noted: VecDeque::new(), succeeded: now, last: 0 }
            }
            Retention::Revisions(keep) => Plan::Revision { keep, last: 0 },
        }
    }

    /// At the beginning of each interval: the revision now.
    fn note(&mut self, revision: i64) {
        if let Plan::Periodic { period, noted, .. } = self {
            let interval = Retention::Period(*period).interval();
            let notes_max = (period.as_nanos() / interval.as_nanos().max(1)) as usize + 1;
            noted.push_back(revision);
            if noted.len() > notes_max {
                noted.pop_front();
            }
        }
    }

    /// At the end of each interval, on the leader: up to where to compact now.
    fn due(&mut self, now: Instant, revision: i64) -> Option<i64> {
        match self {
            Plan::Periodic { period, wait, noted, succeeded, last } => {
                let oldest = *noted.front()?;
                if now.duration_since(*succeeded) < *wait || oldest == *last {
                    return None;
                }
                *wait = (*period).min(HOUR);
                Some(oldest)
            }
            Plan::Revision { keep, last } => Some(revision - *keep).filter(|&up_to| up_to > 0 && up_to != *last),
        }
    }

    fn done(&mut self, now: Instant, compacted: i64) {
        match self {
            Plan::Periodic { succeeded, last, .. } => (*succeeded, *last) = (now, compacted),
            Plan::Revision { last, .. } => *last = compacted,
        }
    }
}

/// Compacts until the process stops.
pub async fn run(ctx: Arc<Context>, retention: Retention) {
    let mut plan = Plan::new(retention, Instant::now());
    loop {
        plan.note(ctx.store.revision());
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            () = tokio::time::sleep(retention.interval()) => {}
        }
        if !ctx.node.status().is_leader {
            continue;
        }
        let Some(revision) = plan.due(Instant::now(), ctx.store.revision()) else { continue };
        tracing::info!(revision, "starting auto compaction");
        match ctx.propose(Op::Compact(CompactionRequest { revision, physical: false })).await {
            Err(status) if status.message() != EtcdError::Compacted.message() => {
                tracing::warn!(revision, error = status.message(), "failed auto compaction");
            }
            _ => {
                tracing::info!(revision, "completed auto compaction");
                plan.done(Instant::now(), revision);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_retention_is_read_as_etcd_reads_it() {
        let parse = |mode, text| Retention::parse(mode, text);
        assert_eq!(parse("periodic", "2"), Ok(Some(Retention::Period(2 * HOUR))));
        assert_eq!(parse("periodic", "10m"), Ok(Some(Retention::Period(10 * MINUTE))));
        assert_eq!(parse("revision", "1000"), Ok(Some(Retention::Revisions(1000))));
        assert_eq!(parse("periodic", "0"), Ok(None));
        assert_eq!(parse("revision", "10m").unwrap_err().flag, "auto-compaction-retention");
        assert_eq!(parse("hourly", "1").unwrap_err().flag, "auto-compaction-mode");
    }

    /// Runs a plan for some intervals in which the revision grows by 10; what it compacts to, by interval.
    fn run(retention: Retention, intervals: i64) -> Vec<(i64, i64)> {
        let start = Instant::now();
        let mut plan = Plan::new(retention, start);
        let mut compacted = Vec::new();
        for i in 0..intervals {
            plan.note(1 + 10 * i);
            let now = start + retention.interval() * (i as u32 + 1);
            if let Some(revision) = plan.due(now, 1 + 10 * (i + 1)) {
                plan.done(now, revision);
                compacted.push((i, revision));
            }
        }
        compacted
    }

    #[test]
    fn a_short_period_is_compacted_once_a_period_to_where_it_began() {
        assert_eq!(run(Retention::Period(10 * MINUTE), 31), [(9, 1), (19, 91), (29, 191)]);
    }

    #[test]
    fn a_long_period_is_compacted_hourly_after_the_first() {
        assert_eq!(run(Retention::Period(3 * HOUR), 50), [(29, 1), (39, 91), (49, 191)]);
    }

    #[test]
    fn the_newest_revisions_are_kept_by_number() {
        assert_eq!(run(Retention::Revisions(25), 5), [(2, 6), (3, 16), (4, 26)]);
    }
}
