//! Range, Put, DeleteRange and Compact.

use proto::etcdserverpb as pb;
use rand::Rng as _;

use super::Generator;

/// In no enum.
const UNKNOWN: [i32; 3] = [-1, 5, 77];

impl Generator {
    /// A Range of its own, which may ask for an order that some versions refuse: there is nothing else in it to refuse.
    pub(super) fn lone_range(&mut self) -> pb::RangeRequest {
        let mut request = self.range();
        if self.chance(0.01) {
            request.sort_order = self.pick(&UNKNOWN);
        }
        request
    }

    pub(super) fn range(&mut self) -> pb::RangeRequest {
        let mut request = pb::RangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            revision: self.read_revision(),
            serializable: self.chance(0.3),
            keys_only: self.chance(0.15),
            count_only: self.chance(0.1),
            ..Default::default()
        };
        if self.chance(0.4) {
            request.limit = self.within(-1..=6);
        }
        if self.chance(0.4) {
            request.sort_order = self.within(0..=2) as i32;
            request.sort_target = self.within(0..=4) as i32;
        }
        if !self.shunned.unknown_sort_options && self.chance(0.03) {
            match self.chance(0.5) {
                true => request.sort_order = self.pick(&UNKNOWN),
                false => request.sort_target = self.pick(&UNKNOWN),
            }
        }
        if self.chance(0.2) {
            let bound = self.past_revision();
            match self.rng.random_range(0..5) {
                0 => request.min_mod_revision = bound,
                1 => request.max_mod_revision = bound,
                2 => request.min_create_revision = bound,
                3 => request.max_create_revision = bound,
                _ => {
                    request.min_mod_revision = bound - self.within(0..=40);
                    request.max_mod_revision = bound;
                    request.min_create_revision = bound - self.within(0..=400);
                    request.max_create_revision = bound;
                }
            }
        }
        request
    }

    pub(super) fn put(&mut self) -> pb::PutRequest {
        let mut request = pb::PutRequest {
            key: if self.chance(0.01) { Default::default() } else { self.written_key() },
            value: self.value(),
            prev_kv: self.chance(0.3),
            ..Default::default()
        };
        if self.chance(0.25) {
            request.lease = self.lease_id();
        }
        if self.chance(0.06) {
            request.ignore_value = true;
            if self.chance(0.8) {
                request.value.clear();
            }
        }
        if self.chance(0.06) {
            request.ignore_lease = true;
            if self.chance(0.8) {
                request.lease = 0;
            }
        }
        request
    }

    pub(super) fn delete(&mut self) -> pb::DeleteRangeRequest {
        // Wide deletes are rare, else there would seldom be more than a key or two.
        let range_end = if self.chance(0.25) { self.range_end() } else { Default::default() };
        pb::DeleteRangeRequest { key: self.key(), range_end, prev_kv: self.chance(0.4) }
    }

    pub(super) fn compaction(&mut self) -> pb::CompactionRequest {
        let revision = match self.rng.random_range(0..20) {
            0 => self.within(-2..=0),
            1 => self.compacted,
            2 => self.compacted - 1,
            3 => self.revision + self.within(1..=3),
            4 => i64::MAX,
            5..8 => self.revision,
            8..10 => self.compacted + 1,
            _ => self.past_revision(),
        };
        pb::CompactionRequest { revision, physical: self.chance(0.6) }
    }
}
