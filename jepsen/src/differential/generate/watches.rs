//! What is done to the watches between two stretches of requests.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use rand::Rng as _;

use super::Generator;

/// How many Watch streams are open at a time.
pub const STREAMS: usize = 3;
/// Watchers asked for on one stream before it is closed and opened anew.
const ASKED_PER_STREAM_MAX: usize = 24;

/// First the cancels, then the creations. Everything already due is delivered before a round begins.
#[derive(Debug, Default)]
pub struct WatchRound {
    pub reopen: Option<usize>,
    pub cancels: Vec<(usize, i64)>,
    pub creations: Vec<Create>,
    pub progress: Option<usize>,
}

#[derive(Clone, Debug)]
pub struct Create {
    pub stream: usize,
    pub request: pb::WatchCreateRequest,
}

/// The ids that are likely to be in use on each stream.
#[derive(Default)]
pub struct Ids(BTreeMap<usize, Vec<i64>>);

impl Generator {
    pub(super) fn watch_round(&mut self) -> WatchRound {
        let mut round = WatchRound::default();
        for (stream, ids) in &mut self.watch_ids.0 {
            if ids.len() >= ASKED_PER_STREAM_MAX {
                ids.clear();
                round.reopen = Some(*stream);
                break;
            }
        }
        for _ in 0..self.rng.random_range(0..3) {
            let stream = self.rng.random_range(0..STREAMS);
            let id = self.watch_id_in_use(stream);
            round.cancels.push((stream, id));
        }
        for _ in 0..self.rng.random_range(1..4) {
            let stream = self.rng.random_range(0..STREAMS);
            round.creations.push(Create { stream, request: self.watch_create(stream) });
        }
        if self.chance(0.5) {
            round.progress = Some(self.rng.random_range(0..STREAMS));
        }
        round
    }

    fn watch_id_in_use(&mut self, stream: usize) -> i64 {
        let assigned = self.within(0..=9);
        let ids = self.watch_ids.0.entry(stream).or_default();
        match ids.is_empty() || self.rng.random_bool(0.2) {
            true => assigned,
            false => ids[self.rng.random_range(0..ids.len())],
        }
    }

    fn watch_create(&mut self, stream: usize) -> pb::WatchCreateRequest {
        let mut request = pb::WatchCreateRequest {
            key: self.key(),
            range_end: self.range_end(),
            prev_kv: self.chance(0.5),
            fragment: self.chance(0.3),
            progress_notify: self.chance(0.1),
            ..Default::default()
        };
        request.start_revision = match self.rng.random_range(0..20) {
            0 => self.within(-3..=-1),
            1 => self.revision + self.within(1..=200),
            2 => self.compacted - 1,
            3 => self.compacted,
            4 => self.compacted + 1,
            5 => self.revision,
            6..11 => self.past_revision(),
            _ => 0,
        };
        if self.chance(0.05) {
            (request.key, request.range_end) = (Bytes::from_static(b"c"), self.pick(&[b"c", b"a"]).to_vec().into());
        }
        if self.chance(0.25) {
            request.filters = (0..self.rng.random_range(1..=2)).map(|_| self.pick(&[0, 1, 5])).collect();
        }
        match self.rng.random_range(0..10) {
            0 => request.watch_id = self.watch_id_in_use(stream),
            1 => request.watch_id = self.pick(&[-7, i64::MAX]),
            2..5 => request.watch_id = self.within(1..=20),
            _ => {}
        }
        let next = request.watch_id;
        let ids = self.watch_ids.0.entry(stream).or_default();
        let assigned = ids.len() as i64;
        ids.push(if next == 0 { assigned } else { next });
        request
    }
}
