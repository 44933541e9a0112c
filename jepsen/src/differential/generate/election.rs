//! Elections and locks: two campaigners, of whom one waits for the other.

use bytes::Bytes;
use proto::{
    etcdserverpb as pb,
    v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest},
    v3lockpb::{LockRequest, UnlockRequest},
};

use super::{Blocked, Generator, Request, Step};
use crate::differential::request::Call;

/// Leases of the two campaigners, and one that nobody has.
const FIRST: i64 = 0x100_001;
const SECOND: i64 = 0x100_002;
const NOBODY: i64 = 0x100_003;
const TTL_SECONDS: i64 = 5_000;

const ELECTION: &[u8] = b"e";
const LOCK: &[u8] = b"l";

/// The key of a campaigner.
fn key(name: &[u8], lease: i64) -> Bytes {
    [name, format!("/{lease:x}").as_bytes()].concat().into()
}

fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

fn leader(lease: i64, rev: i64) -> Option<LeaderKey> {
    Some(LeaderKey { name: ELECTION.into(), key: key(ELECTION, lease), rev, lease })
}

fn campaign(lease: i64, value: &'static str) -> Request {
    Request::Campaign(CampaignRequest { name: ELECTION.into(), lease, value: value.into() })
}

impl Generator {
    pub(super) fn election(&mut self) {
        for id in [FIRST, SECOND] {
            self.play(Request::LeaseGrant(pb::LeaseGrantRequest { id, ttl: TTL_SECONDS }));
        }
        match self.pieces / 2 % 2 {
            0 => self.campaigns(),
            _ => self.locks(),
        }
        for id in [FIRST, SECOND] {
            self.play(Request::LeaseRevoke(pb::LeaseRevokeRequest { id }));
        }
    }

    fn play(&mut self, request: Request) {
        let call = self.through_some_door(request.into());
        self.script.push_back(Step::Call(call));
    }

    fn campaigns(&mut self) {
        let name = Bytes::from_static(ELECTION);
        // The grants change no revision, so the first campaigner's key is created by the next one.
        let first_revision = self.revision + 1;
        self.play(Request::Leader(LeaderRequest { name: name.clone() }));
        self.play(campaign(NOBODY, "nobody"));
        self.play(campaign(FIRST, "one"));
        self.play(campaign(FIRST, "one again"));
        self.play(Request::Leader(LeaderRequest { name: name.clone() }));
        self.script.push_back(Step::Call(Request::Observe(LeaderRequest { name: name.clone() }).into()));
        let proclaim = |leader, value: &'static str| {
            Request::Proclaim(ProclaimRequest { leader, value: Bytes::from_static(value.as_bytes()) })
        };
        self.play(proclaim(leader(FIRST, first_revision), "two"));
        self.play(proclaim(leader(FIRST, 1), "with the wrong revision"));
        self.play(proclaim(None, "without a leader"));
        self.play(Request::Leader(LeaderRequest { name }));
        let call = self.through_some_door(campaign(SECOND, "three").into());
        let resign = |leader| Call::from(Request::Resign(ResignRequest { leader }));
        let meanwhile = vec![
            proclaim(leader(FIRST, first_revision), "four").into(),
            resign(leader(FIRST, 1)),
            resign(None),
            resign(leader(FIRST, first_revision)),
        ];
        self.script.push_back(Step::Blocked(Blocked { call, prefix: prefix(ELECTION), keys: 2, meanwhile }));
        self.play(proclaim(leader(FIRST, first_revision), "five"));
        self.play(Request::Leader(LeaderRequest { name: ELECTION.into() }));
    }

    fn locks(&mut self) {
        let lock = |lease| Request::Lock(LockRequest { name: LOCK.into(), lease });
        let unlock = |lease| Request::Unlock(UnlockRequest { key: key(LOCK, lease) });
        self.play(lock(NOBODY));
        self.play(unlock(FIRST));
        self.play(lock(FIRST));
        self.play(lock(FIRST));
        let call = self.through_some_door(lock(SECOND).into());
        let meanwhile = vec![unlock(NOBODY).into(), unlock(FIRST).into()];
        self.script.push_back(Step::Blocked(Blocked { call, prefix: prefix(LOCK), keys: 2, meanwhile }));
        self.play(unlock(SECOND));
        self.play(unlock(SECOND));
    }
}
