//! Short scripts for what chance would seldom bring: alarms, members, sizes at the limit, short leases.

use bytes::Bytes;
use proto::etcdserverpb as pb;
use rand::Rng as _;

use super::{Create, Generator, KEYS, Request, Step, WatchRound, auth};
use crate::differential::{
    area::Area,
    peer::{ADDED_MEMBER, OWN_MEMBER, OWN_URL},
};

/// etcd's --max-request-bytes.
const REQUEST_BYTES_MAX: usize = 1_572_864;
/// What gRPC lets pass beyond it.
const GRPC_OVERHEAD_BYTES: usize = 524_288;

/// Below the shortest TTL that a server grants.
const TTL_TOO_SHORT: [i64; 3] = [1, 0, -5];

const PIECES: u64 = 9;
/// Alarm, key, value: any member id is accepted in an alarm.
const ALARMED_MEMBER: u64 = 77;

impl Generator {
    pub(super) fn next_piece(&mut self) {
        let piece = self.pieces % PIECES;
        self.pieces += 1;
        let requests = match piece {
            0 => self.short_leases(),
            1 if self.has(Area::Alarms) => self.alarms(),
            2 if self.has(Area::Members) => self.members(),
            3 if self.has(Area::Sizes) => self.sizes(),
            4 if self.has(Area::Auth) => auth::requests(),
            5 if self.has(Area::Auth) => return self.enforcement(),
            6 if self.has(Area::Elections) => return self.election(),
            7 if self.has(Area::Maintenance) => maintenance(),
            _ => return self.compaction_and_watch(),
        };
        for request in requests {
            let call = self.through_some_door(request.into());
            self.script.push_back(Step::Call(call));
        }
    }

    /// A compaction, and a watcher that is to begin before it.
    fn compaction_and_watch(&mut self) {
        let revision = self.past_revision();
        let key = self.written_key();
        let request = pb::WatchCreateRequest { key, start_revision: revision - 1, ..Default::default() };
        self.script.push_back(Step::Call(Request::Compact(pb::CompactionRequest { revision, physical: true }).into()));
        self.script.push_back(Step::Watches(WatchRound {
            creations: vec![Create { stream: 1, request }],
            ..Default::default()
        }));
    }

    /// Revoked at once, long before they could expire.
    fn short_leases(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        for ttl in TTL_TOO_SHORT {
            let id = 1_000_000 + self.within(0..=1_000_000);
            requests.push(Request::LeaseGrant(pb::LeaseGrantRequest { ttl, id }));
            requests.push(Request::LeaseRevoke(pb::LeaseRevokeRequest { id }));
            requests.push(Request::LeaseRevoke(pb::LeaseRevokeRequest { id }));
        }
        requests
    }

    fn alarms(&mut self) -> Vec<Request> {
        use pb::alarm_request::AlarmAction::{Activate, Deactivate, Get};
        let mut requests = Vec::new();
        for kind in [pb::AlarmType::Nospace, pb::AlarmType::Corrupt] {
            requests.push(alarm(Activate, kind));
            requests.push(alarm(Get, pb::AlarmType::None));
            requests.push(alarm(Get, kind));
            requests.push(alarm(Activate, kind));
            requests.push(Request::Status(pb::StatusRequest {}));
            requests.push(Request::Put(pb::PutRequest {
                key: self.written_key(),
                value: Bytes::from_static(b"alarmed"),
                ..Default::default()
            }));
            requests.push(Request::Range(self.range()));
            requests
                .push(Request::DeleteRange(pb::DeleteRangeRequest { key: self.written_key(), ..Default::default() }));
            let nests = !self.shunned.nested_txn_without_space;
            requests.push(Request::Txn(if nests { self.txn() } else { self.flat_txn() }));
            requests.push(Request::LeaseGrant(pb::LeaseGrantRequest { ttl: 5_000, id: self.within(1..=40) }));
            requests.push(Request::HashKv(pb::HashKvRequest { revision: 0 }));
            requests.push(Request::LeaseTimeToLive(pb::LeaseTimeToLiveRequest { id: self.lease_id(), keys: true }));
            requests.push(alarm(Deactivate, kind));
            requests.push(alarm(Deactivate, kind));
        }
        requests.push(alarm(Get, pb::AlarmType::None));
        requests
    }

    /// With a write between any two: Raft drops a change of members, and etcd leaves the call unanswered, as long as it
    /// has not taken note that the change before is applied. It has when another entry is.
    fn members(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        // A member's id is made of its URL and the second: with the same URL it could be that of the one just removed.
        for request in member_requests(2 + self.pieces % 1_000) {
            requests.push(request);
            requests.push(Request::Put(pb::PutRequest { key: self.written_key(), ..Default::default() }));
        }
        requests
    }

    /// Values around the limits, and a transaction whose events, with the values before, do not fit into one fragment.
    fn sizes(&mut self) -> Vec<Request> {
        let put = |key: Bytes, bytes: usize, fill: u8| pb::PutRequest {
            key,
            value: Bytes::from(vec![fill; bytes]),
            ..Default::default()
        };
        let (key, range_end) = (Bytes::from_static(KEYS[1]), Bytes::from_static(KEYS[4]));
        let request = pb::WatchCreateRequest { key, range_end, prev_kv: true, fragment: true, ..Default::default() };
        self.script.push_back(Step::Watches(WatchRound {
            creations: vec![Create { stream: 0, request }],
            ..Default::default()
        }));
        let key = self.written_key();
        let mut requests = vec![
            Request::Put(put(key.clone(), REQUEST_BYTES_MAX, b'l')),
            Request::Put(put(key.clone(), REQUEST_BYTES_MAX + GRPC_OVERHEAD_BYTES, b'g')),
        ];
        let fill = self.rng.random_range(b'a'..=b'z');
        for _ in 0..2 {
            let success = KEYS[1..4]
                .iter()
                .map(|key| put(Bytes::from_static(key), REQUEST_BYTES_MAX / 3 - 1_000, fill))
                .map(|put| pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) })
                .collect();
            requests.push(Request::Txn(pb::TxnRequest { success, ..Default::default() }));
        }
        // So that not every later range answer carries megabytes.
        requests.push(Request::DeleteRange(pb::DeleteRangeRequest {
            key: Bytes::from_static(KEYS[1]),
            range_end: Bytes::from_static(KEYS[4]),
            prev_kv: true,
        }));
        requests
    }
}

fn alarm(action: pb::alarm_request::AlarmAction, kind: pb::AlarmType) -> Request {
    Request::Alarm(pb::AlarmRequest { action: action as i32, member_id: ALARMED_MEMBER, alarm: kind as i32 })
}

/// A learner comes and goes; nothing else may be added, for one started member is the whole quorum.
fn member_requests(port: u64) -> Vec<Request> {
    let add = |url: &str, is_learner| {
        Request::MemberAdd(pb::MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner })
    };
    let update =
        |id, url: &str| Request::MemberUpdate(pb::MemberUpdateRequest { id, peer_ur_ls: vec![url.to_owned()] });
    let list = || Request::MemberList(pb::MemberListRequest { linearizable: true });
    // Nothing listens there: the learner never starts.
    let (absent, moved) = (&format!("http://127.0.0.1:{port}"), "http://127.0.0.1:1");
    vec![
        add("no url", false),
        add("ftp://127.0.0.1:1", true),
        add(OWN_URL, false),
        add(OWN_URL, true),
        Request::MemberRemove(pb::MemberRemoveRequest { id: 12345 }),
        Request::MemberPromote(pb::MemberPromoteRequest { id: 12345 }),
        Request::MemberPromote(pb::MemberPromoteRequest { id: OWN_MEMBER }),
        update(12345, absent),
        add(absent, true),
        list(),
        add(moved, true),
        update(ADDED_MEMBER, OWN_URL),
        update(ADDED_MEMBER, moved),
        list(),
        Request::MemberPromote(pb::MemberPromoteRequest { id: ADDED_MEMBER }),
        Request::MemberRemove(pb::MemberRemoveRequest { id: ADDED_MEMBER }),
        Request::MemberRemove(pb::MemberRemoveRequest { id: ADDED_MEMBER }),
        Request::MemberPromote(pb::MemberPromoteRequest { id: ADDED_MEMBER }),
        list(),
        Request::MoveLeader(pb::MoveLeaderRequest { target_id: 12345 }),
        Request::MoveLeader(pb::MoveLeaderRequest { target_id: 0 }),
        Request::MoveLeader(pb::MoveLeaderRequest { target_id: OWN_MEMBER }),
    ]
}

fn maintenance() -> Vec<Request> {
    use pb::downgrade_request::DowngradeAction::{Cancel, Enable, Validate};
    let downgrade = |action: pb::downgrade_request::DowngradeAction, version: &str| {
        Request::Downgrade(pb::DowngradeRequest { action: action as i32, version: version.to_owned() })
    };
    vec![
        Request::Defragment(pb::DefragmentRequest {}),
        Request::HashKv(pb::HashKvRequest { revision: 0 }),
        Request::Hash(pb::HashRequest {}),
        Request::Status(pb::StatusRequest {}),
        Request::Snapshot(pb::SnapshotRequest {}),
        downgrade(Validate, "no version"),
        downgrade(Validate, "1.0.0"),
        downgrade(Enable, "no version"),
        downgrade(Cancel, ""),
    ]
}
