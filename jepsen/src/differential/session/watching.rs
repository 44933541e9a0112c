//! The watches of both servers side by side.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use bytes::Bytes;
use proto::{etcdserverpb as pb, mvccpb};

use super::{Report, printed};
use crate::differential::{
    coverage::WatchFact,
    generate::{Create, STREAMS, WatchRound},
    history::{History, create_request},
    peer::Peer,
    watch::{Due, Interest, Stream},
};

pub struct Watching {
    streams: Vec<Pair>,
    /// For [`Watching::settle`] only.
    probe: Pair,
    /// Whether a watcher may still be looking for past events though it has delivered all there are.
    unsettled: bool,
}

/// The same stream on both.
struct Pair {
    etcd: Stream,
    pintle: Stream,
    interests: BTreeMap<i64, Interest>,
    /// Fragments of these streams that have been counted.
    fragments: u64,
    /// Since a difference the two are not in the same state: not compared any more, and opened anew.
    spoiled: bool,
}

impl Pair {
    async fn open(etcd: &Peer, pintle: &Peer) -> Result<Pair> {
        let (etcd, pintle) = tokio::try_join!(Stream::open(etcd), Stream::open(pintle))?;
        Ok(Pair { etcd, pintle, interests: BTreeMap::new(), fragments: 0, spoiled: false })
    }

    /// Sends a creation or cancel to both; gives etcd's answers.
    async fn control(&mut self, request: pb::WatchRequest, report: &mut Report) -> Result<Vec<pb::WatchResponse>> {
        let (etcd, pintle) =
            tokio::try_join!(self.etcd.control(request.clone()), self.pintle.control(request.clone()))?;
        if etcd != pintle {
            self.spoiled = true;
            report.difference(&printed(&request), &printed(&etcd), &printed(&pintle))?;
        }
        Ok(etcd)
    }

    async fn create(&mut self, request: &pb::WatchCreateRequest, now: Now, report: &mut Report) -> Result<()> {
        if self.spoiled {
            return Ok(());
        }
        for answer in self.control(create_request(request.clone()), report).await? {
            let fact = match answer.cancel_reason.as_str() {
                "" => WatchFact::Created,
                reason if reason.contains("range is empty") => WatchFact::EmptyRange,
                reason if reason.contains("duplicate") => WatchFact::DuplicateId,
                _ => WatchFact::NegativeRevision,
            };
            report.coverage.count_watch(fact, 1);
            if !answer.canceled {
                self.interests.insert(answer.watch_id, Interest::new(request.clone(), now.revision, now.compacted));
            }
        }
        Ok(())
    }
}

/// The state of the store when a watcher is created.
#[derive(Clone, Copy)]
struct Now {
    revision: i64,
    compacted: i64,
}

impl Watching {
    pub async fn start(etcd: &Peer, pintle: &Peer) -> Result<Watching> {
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            streams.push(Pair::open(etcd, pintle).await?);
        }
        Ok(Watching { streams, probe: Pair::open(etcd, pintle).await?, unsettled: false })
    }

    /// Closes, cancels, creates and asks for progress, on watchers that have delivered all that is due.
    pub async fn round(
        &mut self,
        round: WatchRound,
        etcd: &Peer,
        pintle: &Peer,
        revision: i64,
        compacted: i64,
        report: &mut Report,
    ) -> Result<()> {
        for (number, pair) in self.streams.iter_mut().enumerate() {
            if pair.spoiled || round.reopen == Some(number) {
                *pair = Pair::open(etcd, pintle).await?;
            }
        }
        for (stream, watch_id) in round.cancels {
            let pair = &mut self.streams[stream];
            if pair.spoiled {
                continue;
            }
            let cancel = pb::watch_request::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id });
            let answers = pair.control(pb::WatchRequest { request_union: Some(cancel) }, report).await?;
            let fact = if answers.is_empty() { WatchFact::CancelUnanswered } else { WatchFact::Canceled };
            report.coverage.count_watch(fact, 1);
            pair.interests.remove(&watch_id);
        }
        if let Some(first) = round.progress {
            self.ask_for_progress(first, revision, report).await?;
        }
        for Create { stream, request } in round.creations {
            self.unsettled |= (1..=revision).contains(&request.start_revision);
            self.streams[stream].create(&request, Now { revision, compacted }, report).await?;
        }
        Ok(())
    }

    /// Asks one stream for progress, of those that must answer: unanswered forever is such a request as long as one
    /// watcher waits for a later revision, or was ended by a compaction.
    async fn ask_for_progress(&mut self, first: usize, revision: i64, report: &mut Report) -> Result<()> {
        let answers = |pair: &&mut Pair| {
            let current = pair.interests.values().all(|interest| interest.is_current(revision));
            !pair.spoiled && !pair.interests.is_empty() && current
        };
        let (before, from) = self.streams.split_at_mut(first);
        let Some(pair) = from.iter_mut().chain(before).find(answers) else { return Ok(()) };
        let (etcd, pintle) = tokio::try_join!(pair.etcd.progress(), pair.pintle.progress())?;
        report.coverage.count_watch(WatchFact::Progress, u64::from(etcd.is_some()));
        if etcd != pintle || etcd.is_none() {
            pair.spoiled = true;
            report.difference("progress request", &printed(&etcd), &printed(&pintle))?;
        }
        Ok(())
    }

    /// A watcher of every key on the first stream.
    pub async fn watch_everything(&mut self, revision: i64, report: &mut Report) -> Result<()> {
        let everything = Bytes::from_static(b"\0");
        let request = pb::WatchCreateRequest {
            key: everything.clone(),
            range_end: everything,
            prev_kv: true,
            ..Default::default()
        };
        self.streams[0].create(&request, Now { revision, compacted: 0 }, report).await
    }

    /// Makes sure that no watcher is looking for past events any longer.
    ///
    /// A server looks for all watchers at once, so one that was created last and has delivered a past event shows that
    /// all are done.
    pub async fn settle(&mut self, revision: i64) -> Result<()> {
        if !std::mem::take(&mut self.unsettled) || revision <= 1 {
            return Ok(());
        }
        let everything = Bytes::from_static(b"\0");
        let create = create_request(pb::WatchCreateRequest {
            key: everything.clone(),
            range_end: everything,
            start_revision: revision,
            ..Default::default()
        });
        for stream in [&mut self.probe.etcd, &mut self.probe.pintle] {
            let answers = stream.control(create.clone()).await?;
            let watch_id = answers.first().map_or(-1, |created| created.watch_id);
            ensure!(
                stream.delivered(watch_id, Due::Events(1)).await?,
                "no event from revision {revision}: {answers:?}"
            );
            let cancel = pb::watch_request::RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id });
            stream.control(pb::WatchRequest { request_union: Some(cancel) }).await?;
        }
        Ok(())
    }

    /// Waits until every watcher has delivered all that is due, compares, and forgets what is compared.
    pub async fn rest(&mut self, history: &History, report: &mut Report) -> Result<()> {
        for (number, pair) in self.streams.iter_mut().enumerate() {
            if pair.spoiled {
                continue;
            }
            let before = report.differences;
            for (watch_id, interest) in &mut pair.interests {
                let due = interest.due(history);
                let (etcd, pintle) =
                    tokio::try_join!(pair.etcd.delivered(*watch_id, due), pair.pintle.delivered(*watch_id, due))?;
                let (etcd_has, pintle_has) =
                    (&pair.etcd.watchers().get(watch_id), &pair.pintle.watchers().get(watch_id));
                if !etcd || !pintle {
                    let delivered = |watcher: &Option<&_>| format!("{:?}", watcher.map(delivered_so_far));
                    let what = format!("stream {number}, watcher {watch_id}, due {due:?}: {interest:?}");
                    report.difference(&what, &delivered(etcd_has), &delivered(pintle_has))?;
                } else if let (Some(etcd), Some(pintle)) = (etcd_has, pintle_has) {
                    count(&etcd.events, report);
                    if let Some(index) = first_difference(&etcd.events, &pintle.events) {
                        let what = format!("stream {number}, watcher {watch_id}, event {index}: {interest:?}");
                        report.difference(
                            &what,
                            &printed(&etcd.events.get(index)),
                            &printed(&pintle.events.get(index)),
                        )?;
                    }
                    if etcd.compacted != pintle.compacted {
                        let what = format!("stream {number}, watcher {watch_id} ended by compaction: {interest:?}");
                        report.difference(&what, &printed(&etcd.compacted), &printed(&pintle.compacted))?;
                    }
                    report.coverage.count_watch(WatchFact::EndedByCompaction, u64::from(etcd.compacted.is_some()));
                }
            }
            report.coverage.count_watch(WatchFact::Fragment, pair.etcd.fragments - pair.fragments);
            pair.fragments = pair.etcd.fragments;
            let (etcd, pintle) = (pair.etcd.take_violations(), pair.pintle.take_violations());
            if etcd != pintle || !pintle.is_empty() {
                report.difference("what no watch may do", &printed(&etcd), &printed(&pintle))?;
            }
            pair.spoiled = report.differences > before;
            pair.etcd.forget_events();
            pair.pintle.forget_events();
        }
        Ok(())
    }
}

fn delivered_so_far(watcher: &crate::differential::watch::Watcher) -> (usize, &Option<pb::WatchResponse>) {
    (watcher.delivered, &watcher.compacted)
}

fn first_difference(etcd: &[mvccpb::Event], pintle: &[mvccpb::Event]) -> Option<usize> {
    if etcd == pintle {
        return None;
    }
    let common = etcd.iter().zip(pintle).take_while(|(etcd, pintle)| etcd == pintle).count();
    Some(common)
}

fn count(events: &[mvccpb::Event], report: &mut Report) {
    let puts = events.iter().filter(|event| event.r#type == mvccpb::event::EventType::Put as i32).count();
    let with_previous = events.iter().filter(|event| event.prev_kv.is_some()).count();
    report.coverage.count_watch(WatchFact::Put, puts as u64);
    report.coverage.count_watch(WatchFact::Delete, (events.len() - puts) as u64);
    report.coverage.count_watch(WatchFact::PreviousKv, with_previous as u64);
}
