//! The counters at one moment, for whoever wants to know what came between two of them.

use prometheus::{Histogram, core::Collector as _, proto::Histogram as Buckets};

use super::Metrics;

/// Counts since the process began; of requests, those that were carried out and those that were not.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    pub reads: Times,
    /// Whatever goes through the log.
    pub writes: Times,
    pub log_syncs: Times,
    pub commits: Times,
    /// Sent to watchers.
    pub events: u64,
    /// Requests without success.
    pub failed: u64,
    /// At this moment.
    pub watchers: i64,
}

/// How many took how long: upper bounds in seconds, and how many took no longer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Times {
    buckets: Vec<(f64, u64)>,
    count: u64,
}

impl Metrics {
    pub fn sample(&self) -> Sample {
        let mut sample = Sample {
            log_syncs: Times::of(self.network.log_syncs()),
            commits: Times::of(self.store.commits()),
            ..Sample::default()
        };
        for family in self.requests.collect() {
            for metric in family.get_metric() {
                let has = |value: &str| metric.get_label().iter().any(|label| label.value() == value);
                let times = if has("Range") { &mut sample.reads } else { &mut sample.writes };
                times.add(metric.get_histogram());
                if has("false") {
                    sample.failed += metric.get_histogram().get_sample_count();
                }
            }
        }
        if let Some((hub, _)) = self.sources.get() {
            let traffic = hub.traffic();
            (sample.events, sample.watchers) = (traffic.events, traffic.watchers as i64);
        }
        sample
    }
}

impl Times {
    fn of(histogram: &Histogram) -> Times {
        let mut times = Times::default();
        for family in histogram.collect() {
            family.get_metric().iter().for_each(|metric| times.add(metric.get_histogram()));
        }
        times
    }

    /// Histograms of one family have the same bounds.
    fn add(&mut self, histogram: &Buckets) {
        self.count += histogram.get_sample_count();
        let buckets = histogram.get_bucket();
        self.buckets.resize(buckets.len(), (0.0, 0));
        for (sum, bucket) in self.buckets.iter_mut().zip(buckets) {
            *sum = (bucket.upper_bound(), sum.1 + bucket.cumulative_count());
        }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// What came after `before`.
    pub fn since(&self, before: &Times) -> Times {
        let earlier = |i: usize| before.buckets.get(i).map_or(0, |bucket| bucket.1);
        let buckets =
            self.buckets.iter().enumerate().map(|(i, (bound, count))| (*bound, count.saturating_sub(earlier(i))));
        Times { buckets: buckets.collect(), count: self.count.saturating_sub(before.count) }
    }

    /// In seconds, as Prometheus' `histogram_quantile` has it: evenly spread within a bucket, and the highest bound for
    /// what is above it. None without a request.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.count as f64;
        let (mut below, mut bound_below) = (0, 0.0);
        for &(bound, count) in &self.buckets {
            if count > below && count as f64 >= rank {
                return Some(bound_below + (bound - bound_below) * (rank - below as f64) / (count - below) as f64);
            }
            (below, bound_below) = (count, bound);
        }
        (self.count > 0).then_some(bound_below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_of_what_came_between() {
        let before = Times { buckets: vec![(1.0, 5), (2.0, 5), (4.0, 5)], count: 5 };
        let after = Times { buckets: vec![(1.0, 5), (2.0, 15), (4.0, 15)], count: 16 };
        let between = after.since(&before);
        assert_eq!(between.count(), 11);
        assert_eq!(between.quantile(0.5), Some(1.55));
        assert_eq!(between.quantile(1.0), Some(4.0), "what is above all bounds");
        assert_eq!(after.since(&after).quantile(0.5), None);
        assert_eq!(Times::default().quantile(0.5), None);
    }

    #[test]
    fn requests_are_reads_or_writes() {
        let metrics = Metrics::for_tests();
        metrics.request("Range").done();
        metrics.request("Put").done();
        drop(metrics.request("Txn"));
        let sample = metrics.sample();
        assert_eq!((sample.reads.count(), sample.writes.count(), sample.failed), (1, 2, 1));
    }
}
