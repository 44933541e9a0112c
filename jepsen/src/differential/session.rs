//! The sequence of requests: what is sent when, and what is done with the answers.

mod watching;

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::future::join_all;
use proto::etcdserverpb as pb;

use self::watching::Watching;
use super::{
    Arguments,
    coverage::Coverage,
    generate::{Blocked, Generator, KEYS, Step},
    history::History,
    json::Form,
    known,
    normal::same,
    peer::Peer,
    request::{Answer, Call, Caller, Request},
};

/// Reads that are sent together.
const READS_TOGETHER_MAX: usize = 16;
const PRINTED_CHARACTERS_MAX: usize = 3_000;

/// The revisions up to the last one whose hashes are compared at the end.
const LAST_HASHES: i64 = 100;

const EXPIRING_LEASE: i64 = 9_000_001;
const EXPIRING_TTL_SECONDS: i64 = 2;

pub struct Session {
    etcd: Peer,
    pintle: Peer,
    generator: Generator,
    history: History,
    watching: Watching,
    report: Report,
    sent: u64,
}

/// Differences found and ground covered.
pub struct Report {
    seed: u64,
    /// The number of the request that is being compared.
    request: u64,
    differences: usize,
    differences_max: usize,
    coverage: Coverage,
}

impl Report {
    /// Prints a difference; an error after the last that is wanted.
    fn difference(&mut self, what: &str, etcd: &str, pintle: &str) -> Result<()> {
        self.differences += 1;
        println!("DIFFERENCE {} (seed {}, request {}): {what}", self.differences, self.seed, self.request);
        println!("    etcd:   {etcd}");
        println!("    pintle: {pintle}");
        if self.differences >= self.differences_max {
            bail!("{} differences (seed {})", self.differences, self.seed);
        }
        Ok(())
    }
}

impl Session {
    pub async fn new(etcd: Peer, pintle: Peer, arguments: &Arguments) -> Result<Session> {
        let (seed, differences_max) = (arguments.seed, arguments.max_differences);
        let history = History::follow(&etcd).await?;
        let watching = Watching::start(&etcd, &pintle).await?;
        let report = Report { seed, request: 0, differences: 0, differences_max, coverage: Coverage::default() };
        let generator = Generator::new(seed, &arguments.without, known::shunned(etcd.version));
        Ok(Session { etcd, pintle, generator, history, watching, report, sent: 0 })
    }

    pub async fn run(&mut self, requests: u64) -> Result<()> {
        let mut reads = Vec::new();
        // A script left halfway would leave an alarm raised.
        while self.sent < requests || self.generator.is_in_script() {
            match self.generator.step() {
                Step::Call(call) if call.request.is_read() => {
                    self.sent += 1;
                    reads.push(call);
                    if reads.len() == READS_TOGETHER_MAX {
                        self.call_together(std::mem::take(&mut reads)).await?;
                    }
                }
                Step::Call(call) => {
                    self.sent += 1;
                    self.call_together(std::mem::take(&mut reads)).await?;
                    self.call(call).await?;
                }
                Step::Blocked(blocked) => {
                    self.sent += 1 + blocked.meanwhile.len() as u64;
                    self.call_together(std::mem::take(&mut reads)).await?;
                    self.call_blocked(blocked).await?;
                }
                Step::Watches(round) => {
                    self.call_together(std::mem::take(&mut reads)).await?;
                    self.rest().await?;
                    let revision = self.generator.revision();
                    let compacted = self.generator.compacted();
                    self.watching.round(round, &self.etcd, &self.pintle, revision, compacted, &mut self.report).await?;
                }
            }
        }
        self.call_together(reads).await?;
        self.expire_a_lease().await.context("while a lease expires")?;
        self.compare_everything().await
    }

    pub fn coverage(&self) -> &Coverage {
        &self.report.coverage
    }

    pub fn differences(&self) -> usize {
        self.report.differences
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    pub fn log_tails(&self) -> String {
        format!("etcd: {}pintle: {}", self.etcd.log_tail(), self.pintle.log_tail())
    }

    /// Sends one request to both and compares the answers.
    async fn call(&mut self, call: impl Into<Call>) -> Result<()> {
        let call = call.into();
        // While auth is enabled there is no compaction that changes anything, and no watch for nobody.
        if matches!(call.request, Request::Compact(_)) && call.caller == Caller::Nobody {
            // A watcher that is still looking for past events would be ended or not, as the race goes.
            self.rest().await?;
            self.watching.settle(self.generator.revision()).await?;
        }
        let (etcd, pintle) = tokio::join!(self.etcd.call(call.clone()), self.pintle.call(call.clone()));
        self.compare(&call, &etcd, &pintle)
    }

    async fn call_together(&mut self, calls: Vec<Call>) -> Result<()> {
        let (etcd, pintle) = tokio::join!(
            join_all(calls.iter().map(|call| self.etcd.call(call.clone()))),
            join_all(calls.iter().map(|call| self.pintle.call(call.clone())))
        );
        for ((call, etcd), pintle) in calls.iter().zip(etcd).zip(pintle) {
            self.compare(call, &etcd, &pintle)?;
        }
        Ok(())
    }

    /// Sends a request that waits, then those that end its wait.
    async fn call_blocked(&mut self, blocked: Blocked) -> Result<()> {
        let Blocked { call, prefix, keys, meanwhile } = blocked;
        let waiting = async { tokio::join!(self.etcd.call(call.clone()), self.pintle.call(call.clone())) };
        let others = async {
            tokio::try_join!(self.etcd.await_keys(&prefix, keys), self.pintle.await_keys(&prefix, keys))?;
            let mut answers = Vec::new();
            for call in &meanwhile {
                answers.push(tokio::join!(self.etcd.call(call.clone()), self.pintle.call(call.clone())));
            }
            anyhow::Ok(answers)
        };
        let ((etcd, pintle), others) = tokio::join!(waiting, others);
        for (call, (etcd, pintle)) in meanwhile.iter().zip(others?) {
            self.compare(call, &etcd, &pintle)?;
        }
        self.compare(&call, &etcd, &pintle)
    }

    fn compare(&mut self, call: &Call, etcd: &(Answer, Option<Form>), pintle: &(Answer, Option<Form>)) -> Result<()> {
        self.report.request += 1;
        let ((etcd, etcd_form), (pintle, pintle_form)) = (etcd, pintle);
        if let (Err(etcd), Err(pintle)) = (etcd, pintle)
            && etcd.is_of_transport()
            && pintle.is_of_transport()
        {
            bail!("neither server answers {}: {etcd:?}", printed(call));
        }
        self.generator.learn(&call.request, etcd);
        self.report.coverage.count(call, etcd);
        if !same(etcd, pintle) {
            if let Some(reason) = known::reason(self.etcd.version, &call.request, etcd, pintle) {
                self.report.coverage.count_forgiven(reason);
                return Ok(());
            }
            return self.report.difference(&printed(call), &printed(etcd), &printed(pintle));
        }
        if etcd_form != pintle_form {
            return self.report.difference(&printed(call), &printed(etcd_form), &printed(pintle_form));
        }
        Ok(())
    }

    /// Waits until all watchers have delivered all that is due, and compares what they delivered.
    async fn rest(&mut self) -> Result<()> {
        self.history.read_to(self.generator.revision()).await?;
        self.watching.rest(&self.history, &mut self.report).await
    }

    /// The only part in which a lease runs out: nothing else may be sent meanwhile.
    async fn expire_a_lease(&mut self) -> Result<()> {
        self.rest().await?;
        let revision = self.generator.revision();
        self.watching.watch_everything(revision, &mut self.report).await?;
        self.call(Request::LeaseGrant(pb::LeaseGrantRequest { id: EXPIRING_LEASE, ttl: EXPIRING_TTL_SECONDS })).await?;
        for key in KEYS[..4].iter().rev() {
            let key = Bytes::from_static(key);
            let value = Bytes::from_static(b"expires");
            self.call(Request::Put(pb::PutRequest { key, value, lease: EXPIRING_LEASE, ..Default::default() })).await?;
        }
        let expiry = self.generator.revision() + 1;
        self.history.read_to(expiry).await?;
        let expired = self.history.events().iter().rev().take_while(|event| event.revision == expiry).count();
        self.report.coverage.expired_keys += expired;
        self.watching.rest(&self.history, &mut self.report).await?;
        self.call(Request::LeaseTimeToLive(pb::LeaseTimeToLiveRequest { id: EXPIRING_LEASE, keys: true })).await
    }

    async fn compare_everything(&mut self) -> Result<()> {
        let everything = Bytes::from_static(b"\0");
        let range = pb::RangeRequest { key: everything.clone(), range_end: everything, ..Default::default() };
        let now = self.generator.revision();
        let first = self.generator.compacted().max(now - LAST_HASHES).max(1);
        let mut requests: Vec<Call> = vec![Request::Range(range.clone()).into()];
        for revision in first..=now {
            requests.push(Request::Range(pb::RangeRequest { revision, ..range.clone() }).into());
            requests.push(Request::HashKv(pb::HashKvRequest { revision }).into());
        }
        requests.push(Request::LeaseLeases(pb::LeaseLeasesRequest {}).into());
        self.call_together(requests).await?;
        self.rest().await
    }
}

/// A value as far as it is worth reading.
fn printed(value: &impl std::fmt::Debug) -> String {
    let mut text = String::new();
    write!(text, "{value:?}").expect("writing to a string does not fail");
    if let Some((end, _)) = text.char_indices().nth(PRINTED_CHARACTERS_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}
