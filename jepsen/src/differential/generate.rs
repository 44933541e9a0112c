//! Random requests, the same for the same seed and the same answers.
//!
//! The generator knows as much as a client would: the newest revision it has seen, the newest compaction it asked for,
//! the leases that it was granted. It aims revisions around these, so that the borders are hit and not only the middle.

mod auth;
mod election;
mod kv;
mod lease;
mod pieces;
mod txn;
mod watches;

use std::{collections::VecDeque, ops::RangeInclusive};

use bytes::Bytes;
use proto::etcdserverpb as pb;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    area::Area,
    known::Shunned,
    request::{Answer, Call, Door, Reply, Request},
};

pub use watches::{Create, STREAMS, WatchRound};

/// Every key that is ever written, besides the two that elections hold at a time. At most twelve together: Go's sort is
/// stable up to that length and unstable beyond it, so sorted answers with ties stay comparable.
pub const KEYS: [&[u8]; 10] = [b"\0", b"a", b"a\0", b"aa", b"ab", b"b", b"c", b"c/1", b"\xfe", b"\xff\xff"];
const NEVER_WRITTEN: [&[u8]; 3] = [b"\0\0", b"bb", b"zz"];
const RANGE_ENDS: [&[u8]; 8] = [b"\0", b"\0\0", b"b", b"c", b"c0", b"d", b"\xff", b"\xff\xff\xff"];

/// A piece of the script comes at every multiple of this many requests, so that rare things happen in every run.
const PIECE_INTERVAL: u64 = 80;
const WATCH_ROUND_INTERVAL: u64 = 150;
const GATEWAY_SHARE: f64 = 0.1;

/// What is to be done next.
#[derive(Debug)]
pub enum Step {
    Call(Call),
    /// A call that is answered only because of what is called after it.
    Blocked(Blocked),
    Watches(WatchRound),
}

#[derive(Debug)]
pub struct Blocked {
    pub call: Call,
    /// As long as fewer keys begin with it, the call is not yet waiting.
    pub prefix: Bytes,
    pub keys: i64,
    pub meanwhile: Vec<Call>,
}

pub struct Generator {
    rng: StdRng,
    without: Vec<Area>,
    shunned: Shunned,
    /// The newest revision seen in an answer.
    revision: i64,
    /// The newest compaction that was granted.
    compacted: i64,
    leases: Vec<i64>,
    sent: u64,
    script: VecDeque<Step>,
    pieces: u64,
    watch_ids: watches::Ids,
    watch_round_due: bool,
}

impl Generator {
    pub fn new(seed: u64, without: &[Area], shunned: Shunned) -> Generator {
        Generator {
            without: without.to_vec(),
            shunned,
            rng: StdRng::seed_from_u64(seed),
            revision: 1,
            compacted: 0,
            leases: Vec::new(),
            sent: 0,
            script: VecDeque::new(),
            pieces: 0,
            watch_ids: watches::Ids::default(),
            watch_round_due: true,
        }
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// Whether the next step belongs together with the one before.
    pub fn is_in_script(&self) -> bool {
        !self.script.is_empty()
    }

    pub fn step(&mut self) -> Step {
        if let Some(step) = self.script.pop_front() {
            return step;
        }
        if std::mem::take(&mut self.watch_round_due) {
            return Step::Watches(self.watch_round());
        }
        self.sent += 1;
        self.watch_round_due = self.sent.is_multiple_of(WATCH_ROUND_INTERVAL);
        if self.sent.is_multiple_of(PIECE_INTERVAL) {
            self.next_piece();
            return self.step();
        }
        let call = Call::from(self.request());
        Step::Call(self.through_some_door(call))
    }

    /// Takes note of what an answer says about the state.
    pub fn learn(&mut self, request: &Request, answer: &Answer) {
        let Ok(reply) = answer else { return };
        if let Some(header) = reply.header() {
            self.revision = self.revision.max(header.revision);
        }
        match (request, reply) {
            (Request::Compact(request), _) => {
                self.compacted = self.compacted.max(request.revision);
                if !request.physical {
                    // Refused, but only when the compaction at work is done: until then HashKV may answer either way.
                    let wait = pb::CompactionRequest { physical: true, ..*request };
                    self.script.push_front(Step::Call(Request::Compact(wait).into()));
                }
            }
            (Request::LeaseGrant(_), Reply::LeaseGrant(granted)) => self.leases.push(granted.id),
            (Request::LeaseRevoke(request), _) => self.leases.retain(|id| *id != request.id),
            _ => {}
        }
    }

    fn request(&mut self) -> Request {
        match self.rng.random_range(0..1000) {
            0..280 => Request::Range(self.lone_range()),
            280..500 => Request::Put(self.put()),
            500..560 => Request::DeleteRange(self.delete()),
            560..780 => Request::Txn(self.txn()),
            780..784 => Request::Compact(self.compaction()),
            784..830 => Request::HashKv(pb::HashKvRequest { revision: self.read_revision() }),
            830..860 => self.lease_grant(),
            860..875 => Request::LeaseRevoke(pb::LeaseRevokeRequest { id: self.lease_id() }),
            875..915 => Request::LeaseTimeToLive(pb::LeaseTimeToLiveRequest {
                id: self.lease_id(),
                keys: self.rng.random_bool(0.7),
            }),
            915..935 => Request::KeepAlive(pb::LeaseKeepAliveRequest { id: self.lease_id() }),
            935..945 => Request::LeaseLeases(pb::LeaseLeasesRequest {}),
            945..950 => Request::MemberList(pb::MemberListRequest { linearizable: self.rng.random_bool(0.5) }),
            950..955 => Request::Status(pb::StatusRequest {}),
            955..957 => Request::Hash(pb::HashRequest {}),
            _ if self.has(Area::Auth) => self.auth_request(),
            _ => Request::Put(self.put()),
        }
    }

    /// Sends a share of the calls through the gateway.
    fn through_some_door(&mut self, call: Call) -> Call {
        let has_door = call.request.path().is_some() && self.has(Area::Gateway);
        let door = if has_door && self.chance(GATEWAY_SHARE) { Door::Json } else { Door::Grpc };
        Call { door, ..call }
    }

    fn has(&self, area: Area) -> bool {
        !self.without.contains(&area)
    }

    fn chance(&mut self, probability: f64) -> bool {
        self.rng.random_bool(probability)
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        *choices.choose(&mut self.rng).expect("there is a choice")
    }

    fn within(&mut self, range: RangeInclusive<i64>) -> i64 {
        self.rng.random_range(range)
    }

    fn written_key(&mut self) -> Bytes {
        Bytes::from_static(self.pick(&KEYS))
    }

    fn key(&mut self) -> Bytes {
        match self.rng.random_range(0..100) {
            0..2 => Bytes::new(),
            2..6 => Bytes::from_static(self.pick(&NEVER_WRITTEN)),
            _ => self.written_key(),
        }
    }

    /// Half of the time none: a single key.
    fn range_end(&mut self) -> Bytes {
        match self.rng.random_range(0..100) {
            0..50 => Bytes::new(),
            50..65 => Bytes::from_static(b"\0"),
            65..85 => Bytes::from_static(self.pick(&RANGE_ENDS)),
            _ => self.written_key(),
        }
    }

    fn value(&mut self) -> Bytes {
        match self.rng.random_range(0..20) {
            0..3 => Bytes::new(),
            3 => Bytes::from(vec![b'x'; self.rng.random_range(100..3000)]),
            _ => Bytes::from(self.rng.random_range(0..6).to_string()),
        }
    }

    /// A revision to read at: mostly the current one, else around the borders of what can be read.
    fn read_revision(&mut self) -> i64 {
        match self.rng.random_range(0..100) {
            0..45 => 0,
            45..48 => self.within(-3..=-1),
            48..55 => self.revision,
            55..60 => self.revision + self.within(1..=3),
            60..63 => i64::MAX - self.within(0..=1),
            63..66 => self.compacted - 1,
            66..71 => self.compacted,
            71..76 => self.compacted + 1,
            _ => self.past_revision(),
        }
    }

    /// A revision between the compaction and now.
    fn past_revision(&mut self) -> i64 {
        let from = self.compacted.max(1).max(self.revision - 300);
        self.within(from..=self.revision.max(from))
    }
}
