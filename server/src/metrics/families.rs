//! Making metrics and registering them in one go.

use prometheus::{
    Error, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

pub struct Families<'a>(pub &'a Registry);

impl Families<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> Result<C, Error> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, Error> {
        self.register(IntGauge::new(name, help)?)
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.register(IntCounter::new(name, help)?)
    }

    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    /// With bounds from `first`, each twice the one before.
    pub fn histogram(&self, name: &str, help: &str, first: f64, bounds: usize) -> Result<Histogram, Error> {
        let bounds = prometheus::exponential_buckets(first, 2.0, bounds)?;
        self.register(Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds))?)
    }

    pub fn histograms(&self, name: &str, help: &str, labels: &[&str], bounds: Vec<f64>) -> Result<HistogramVec, Error> {
        self.register(HistogramVec::new(HistogramOpts::new(name, help).buckets(bounds), labels)?)
    }
}

/// Brings a counter to what something else has counted.
pub fn advance(counter: &IntCounter, counted: u64) {
    counter.inc_by(counted.saturating_sub(counter.get()));
}
