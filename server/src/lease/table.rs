//! When each lease is due: a function of what was applied, of who leads, and of the time it is told.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound::{self, Excluded, Unbounded},
    time::{Duration, Instant},
};

use proto::LeaseId;
use storage::{LeaseChange, LeaseInfo, planted};

/// What became of a keep-alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// For this many seconds.
    Renewed { ttl: i64 },
    /// There is no such lease.
    Unknown,
    /// Its time has run out; it is about to be revoked.
    Expired,
    /// A checkpoint holds less than its full time: it has to go first, or the next leader would not know of the renewal.
    Checkpointed,
    /// This member does not lead in that term.
    NotLeading,
}

/// What is left of a lease, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLeft {
    /// Below zero when it is overdue.
    pub left: i64,
    pub granted: i64,
}

#[derive(Debug, Default)]
pub struct Table {
    leases: HashMap<LeaseId, Lease>,
    /// While leading: every lease, by when it expires or by an earlier time, at which it is put where it belongs: a
    /// renewal moves nothing here.
    due: BTreeSet<(Instant, LeaseId)>,
    /// While leading: the long leases, by when what is left of them is to be noted.
    checkpoints: BTreeSet<(Instant, LeaseId)>,
    /// None: nothing is noted.
    checkpoint_interval: Option<Duration>,
    leading: Option<u64>,
}

#[derive(Debug)]
struct Lease {
    ttl: i64,
    /// Left at the last checkpoint; 0 when there was none.
    checkpoint: i64,
    /// While leading.
    expiry: Option<Instant>,
    /// Where it stands in `due`.
    queued: Option<Instant>,
    /// Where it stands in `checkpoints`.
    next_checkpoint: Option<Instant>,
}

impl Lease {
    /// How long it lasts from when nothing newer is known of it.
    fn lasts(&self) -> Duration {
        let seconds = if self.checkpoint > 0 { self.checkpoint } else { self.ttl };
        Duration::from_secs(seconds.max(0) as u64)
    }
}

impl Table {
    /// The term in which this member leads.
    pub fn leading(&self) -> Option<u64> {
        self.leading
    }

    pub fn apply(&mut self, change: LeaseChange, now: Instant) {
        match change {
            LeaseChange::Granted { id, ttl } => self.add(LeaseInfo { id, ttl, remaining_ttl: 0 }, now),
            LeaseChange::Revoked { id } => {
                if let Some(lease) = self.leases.remove(&id) {
                    self.forget_times(id, &lease);
                }
            }
            LeaseChange::Checkpointed { id, remaining_ttl } => {
                if let Some(lease) = self.leases.get_mut(&id) {
                    lease.checkpoint = remaining_ttl;
                }
                self.schedule_checkpoint(id, now);
            }
        }
    }

    /// Forgets all leases but these.
    pub fn replace(&mut self, leases: Vec<LeaseInfo>, now: Instant) {
        self.leases.clear();
        self.due.clear();
        self.checkpoints.clear();
        for lease in leases {
            self.add(lease, now);
        }
    }

    /// Begins to lead in `term`: every lease has its time from now on, and `extension` on top.
    pub fn lead(&mut self, term: u64, extension: Duration, now: Instant) {
        self.leading = Some(term);
        self.due.clear();
        for (&id, lease) in &mut self.leases {
            let lasts = if planted!(LeaseShortened) { lease.lasts() / 4 } else { lease.lasts() + extension };
            let expiry = now + lasts;
            (lease.expiry, lease.queued) = (Some(expiry), Some(expiry));
            self.due.insert((expiry, id));
        }
        if self.checkpoint_interval.is_some() {
            for id in self.leases.keys().copied().collect::<Vec<_>>() {
                self.schedule_checkpoint(id, now);
            }
        }
    }

    /// Does not lead any more.
    pub fn follow(&mut self) {
        self.leading = None;
        self.due.clear();
        self.checkpoints.clear();
        for lease in self.leases.values_mut() {
            (lease.expiry, lease.queued, lease.next_checkpoint) = (None, None, None);
        }
    }

    /// What is left of leases that last longer is to be noted this often.
    pub fn checkpoint_every(&mut self, interval: Duration) {
        self.checkpoint_interval = Some(interval);
    }

    /// When something is to be noted next.
    pub fn next_checkpoint(&self) -> Option<Instant> {
        self.checkpoints.first().map(|&(at, _)| at)
    }

    /// What is left of up to `max` leases that it is time to note, in seconds. They come again later, whether it is
    /// noted or not.
    pub fn due_checkpoints(&mut self, max: usize, now: Instant) -> Vec<(LeaseId, i64)> {
        let mut due = Vec::new();
        while let Some(&(_, id)) = self.checkpoints.first().filter(|(at, _)| *at <= now && due.len() < max) {
            self.schedule_checkpoint(id, now);
            let lease = &self.leases[&id];
            let expiry = lease.expiry.expect("every lease of a leader expires");
            let left = expiry.saturating_duration_since(now).as_secs_f64().ceil() as i64;
            // One that has just been renewed needs no note, and one that is overdue is being revoked.
            if (1..lease.ttl).contains(&left) {
                due.push((id, left));
            }
        }
        due
    }

    /// Extends a lease, on behalf of the leader of `term`.
    pub fn renew(&mut self, id: LeaseId, term: u64, now: Instant) -> Renewal {
        if self.leading != Some(term) {
            return Renewal::NotLeading;
        }
        let Some(lease) = self.leases.get_mut(&id) else { return Renewal::Unknown };
        let expiry = lease.expiry.expect("every lease of a leader expires");
        if expiry <= now {
            return Renewal::Expired;
        }
        if lease.checkpoint > 0 {
            return Renewal::Checkpointed;
        }
        // Extended at the election, it may last longer already.
        lease.expiry = Some(expiry.max(now + lease.lasts()));
        Renewal::Renewed { ttl: lease.ttl }
    }

    /// What is left of a lease; None when there is none, or this member does not lead.
    pub fn time_left(&self, id: LeaseId, now: Instant) -> Option<TimeLeft> {
        let lease = self.leases.get(&id)?;
        let expiry = lease.expiry?;
        let left = match expiry.checked_duration_since(now) {
            Some(left) => left.as_secs() as i64,
            None => -(now.duration_since(expiry).as_secs() as i64),
        };
        Some(TimeLeft { left, granted: lease.ttl })
    }

    /// When the next lease expires.
    pub fn next_due(&mut self) -> Option<Instant> {
        self.due_behind(Unbounded).map(|(expiry, _)| expiry)
    }

    /// Up to `max` leases whose time has run out, the oldest first.
    pub fn due(&mut self, max: usize, now: Instant) -> Vec<LeaseId> {
        let (mut due, mut behind) = (Vec::new(), Unbounded);
        while due.len() < max
            && let Some(next) = self.due_behind(behind).filter(|(expiry, _)| *expiry <= now)
        {
            due.push(next.1);
            behind = Excluded(next);
        }
        due
    }

    /// The first lease in `due` behind a place. Those that were renewed are put where they belong on the way there.
    fn due_behind(&mut self, behind: Bound<(Instant, LeaseId)>) -> Option<(Instant, LeaseId)> {
        while let Some(&(at, id)) = self.due.range((behind, Unbounded)).next() {
            let lease = self.leases.get_mut(&id).expect("only leases are due");
            let expiry = lease.expiry.expect("every lease of a leader expires");
            if expiry == at {
                return Some((at, id));
            }
            lease.queued = Some(expiry);
            self.due.remove(&(at, id));
            self.due.insert((expiry, id));
        }
        None
    }

    pub fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// In order of expiry where that is known, then of ids.
    pub fn ids(&self) -> Vec<LeaseId> {
        let mut ids: Vec<_> = self.leases.iter().map(|(&id, lease)| (lease.expiry, id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    fn schedule_checkpoint(&mut self, id: LeaseId, now: Instant) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        if let Some(at) = lease.next_checkpoint.take() {
            self.checkpoints.remove(&(at, id));
        }
        let is_long = |interval: &Duration| self.leading.is_some() && lease.lasts() > *interval;
        if let Some(interval) = self.checkpoint_interval.filter(is_long) {
            lease.next_checkpoint = Some(now + interval);
            self.checkpoints.insert((now + interval, id));
        }
    }

    /// Of a lease that is gone.
    fn forget_times(&mut self, id: LeaseId, lease: &Lease) {
        if let Some(at) = lease.queued {
            self.due.remove(&(at, id));
        }
        if let Some(at) = lease.next_checkpoint {
            self.checkpoints.remove(&(at, id));
        }
    }

    fn add(&mut self, lease: LeaseInfo, now: Instant) {
        let LeaseInfo { id, ttl, remaining_ttl } = lease;
        let mut lease = Lease { ttl, checkpoint: remaining_ttl, expiry: None, queued: None, next_checkpoint: None };
        if self.leading.is_some() {
            let expiry = now + lease.lasts();
            (lease.expiry, lease.queued) = (Some(expiry), Some(expiry));
            self.due.insert((expiry, id));
        }
        if let Some(replaced) = self.leases.insert(id, lease) {
            self.forget_times(id, &replaced);
        }
        self.schedule_checkpoint(id, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENSION: Duration = Duration::from_secs(1);

    fn id(id: i64) -> LeaseId {
        LeaseId(id)
    }

    fn granted(lease: i64, ttl: i64) -> LeaseChange {
        LeaseChange::Granted { id: id(lease), ttl }
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_lease_is_due_when_its_time_has_run_out() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.lead(3, EXTENSION, start);
        table.apply(granted(1, 10), start);
        table.apply(granted(2, 5), start);
        assert_eq!(table.next_due(), Some(start + seconds(5.0)));
        assert_eq!(table.due(9, start + seconds(4.9)), []);
        assert_eq!(table.due(9, start + seconds(5.0)), [id(2)]);
        assert_eq!(table.due(9, start + seconds(20.0)), [id(2), id(1)]);
        assert_eq!(table.due(1, start + seconds(20.0)), [id(2)]);
        table.apply(LeaseChange::Revoked { id: id(2) }, start);
        assert_eq!(table.due(9, start + seconds(20.0)), [id(1)]);
        assert!(!table.contains(id(2)) && table.contains(id(1)));
    }

    #[test]
    fn leases_are_due_in_order_whatever_was_renewed() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.lead(3, EXTENSION, start);
        for (lease, ttl) in [(1, 5), (2, 10), (3, 7), (4, 6)] {
            table.apply(granted(lease, ttl), start);
        }
        assert_eq!(table.renew(id(1), 3, start + seconds(4.0)), Renewal::Renewed { ttl: 5 });
        assert_eq!(table.renew(id(4), 3, start + seconds(4.0)), Renewal::Renewed { ttl: 6 });
        table.apply(LeaseChange::Revoked { id: id(4) }, start + seconds(5.0));
        assert_eq!(table.due(9, start + seconds(8.5)), [id(3)]);
        assert_eq!(table.due(2, start + seconds(20.0)), [id(3), id(1)]);
        assert_eq!(table.due(9, start + seconds(20.0)), [id(3), id(1), id(2)]);
        assert_eq!(table.next_due(), Some(start + seconds(7.0)));
    }

    #[test]
    fn what_is_left_of_long_leases_is_noted_now_and_then() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.checkpoint_every(seconds(300.0));
        table.apply(granted(1, 1000), start);
        table.apply(granted(2, 300), start);
        assert_eq!(table.next_checkpoint(), None, "a follower notes nothing");
        table.lead(3, EXTENSION, start);
        table.apply(granted(3, 900), start + seconds(1.0));
        let due = |table: &mut Table, at| table.due_checkpoints(9, start + seconds(at));
        assert_eq!(due(&mut table, 299.0), []);
        assert_eq!(due(&mut table, 301.5), [(id(1), 700), (id(3), 600)]);
        table.apply(LeaseChange::Checkpointed { id: id(1), remaining_ttl: 700 }, start + seconds(302.0));
        assert_eq!(table.renew(id(3), 3, start + seconds(601.4)), Renewal::Renewed { ttl: 900 });
        // The third has its full time again, and the first is noted until it is short.
        assert_eq!(due(&mut table, 602.0), [(id(1), 399)]);
        table.apply(LeaseChange::Checkpointed { id: id(1), remaining_ttl: 299 }, start + seconds(603.0));
        table.apply(LeaseChange::Revoked { id: id(3) }, start + seconds(603.0));
        assert_eq!(table.next_checkpoint(), None);
    }

    #[test]
    fn a_member_that_does_not_lead_expires_and_renews_nothing() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.apply(granted(1, 1), start);
        let late = start + seconds(100.0);
        assert_eq!((table.next_due(), table.due(9, late)), (None, vec![]));
        assert_eq!(table.renew(id(1), 3, start), Renewal::NotLeading);
        assert_eq!(table.time_left(id(1), start), None);
        table.lead(3, EXTENSION, start);
        table.follow();
        assert_eq!((table.next_due(), table.due(9, late)), (None, vec![]));
        assert_eq!(table.renew(id(1), 3, start), Renewal::NotLeading);
    }

    #[test]
    fn a_new_leader_gives_every_lease_its_full_time_again() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.apply(granted(1, 10), start);
        let elected = start + seconds(9.0);
        table.lead(3, EXTENSION, elected);
        assert_eq!(table.next_due(), Some(elected + seconds(11.0)));
        // A keep-alive takes nothing of the extension away.
        assert_eq!(table.renew(id(1), 3, elected), Renewal::Renewed { ttl: 10 });
        assert_eq!(table.next_due(), Some(elected + seconds(11.0)));
        assert_eq!(table.renew(id(1), 4, elected), Renewal::NotLeading);
        // And again in the next term.
        table.lead(4, EXTENSION, elected + seconds(5.0));
        assert_eq!(table.next_due(), Some(elected + seconds(16.0)));
    }

    #[test]
    fn a_checkpoint_shortens_only_what_the_next_leader_gives() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.lead(3, Duration::ZERO, start);
        table.apply(granted(1, 100), start);
        table.apply(LeaseChange::Checkpointed { id: id(1), remaining_ttl: 30 }, start);
        assert_eq!(table.next_due(), Some(start + seconds(100.0)));
        table.lead(4, Duration::ZERO, start);
        assert_eq!(table.next_due(), Some(start + seconds(30.0)));
        // It has to go before the lease is renewed.
        assert_eq!(table.renew(id(1), 4, start), Renewal::Checkpointed);
        table.apply(LeaseChange::Checkpointed { id: id(1), remaining_ttl: 0 }, start);
        assert_eq!(table.renew(id(1), 4, start), Renewal::Renewed { ttl: 100 });
        assert_eq!(table.next_due(), Some(start + seconds(100.0)));
    }

    #[test]
    fn a_keep_alive_extends_a_living_lease_only() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.lead(3, EXTENSION, start);
        table.apply(granted(1, 10), start);
        assert_eq!(table.renew(id(2), 3, start), Renewal::Unknown);
        assert_eq!(table.renew(id(1), 3, start + seconds(9.9)), Renewal::Renewed { ttl: 10 });
        assert_eq!(table.next_due(), Some(start + seconds(19.9)));
        assert_eq!(table.renew(id(1), 3, start + seconds(19.9)), Renewal::Expired);
        assert_eq!(table.due(9, start + seconds(19.9)), [id(1)]);
    }

    #[test]
    fn the_time_left_is_told_in_whole_seconds() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.lead(3, EXTENSION, start);
        table.apply(granted(1, 10), start);
        let left = |after| table.time_left(id(1), start + seconds(after)).map(|time| (time.left, time.granted));
        assert_eq!(left(0.0), Some((10, 10)));
        assert_eq!(left(0.5), Some((9, 10)));
        assert_eq!(left(9.5), Some((0, 10)));
        assert_eq!(left(10.5), Some((0, 10)));
        assert_eq!(left(12.5), Some((-2, 10)));
        assert_eq!(table.time_left(id(2), start), None);
    }

    #[test]
    fn a_snapshot_replaces_what_was_known() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.apply(granted(1, 10), start);
        table.replace(vec![LeaseInfo { id: id(2), ttl: 20, remaining_ttl: 5 }], start);
        assert_eq!(table.ids(), [id(2)]);
        table.lead(3, Duration::ZERO, start);
        assert_eq!(table.next_due(), Some(start + seconds(5.0)));
    }

    #[test]
    fn ids_come_in_order_of_expiry_on_the_leader_and_of_ids_elsewhere() {
        let (mut table, start) = (Table::default(), Instant::now());
        for (lease, ttl) in [(3, 10), (1, 30), (2, 20)] {
            table.apply(granted(lease, ttl), start);
        }
        assert_eq!(table.ids(), [id(1), id(2), id(3)]);
        table.lead(3, EXTENSION, start);
        assert_eq!(table.ids(), [id(3), id(2), id(1)]);
    }

    #[test]
    fn the_longest_ttl_there_is_can_be_granted() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.lead(3, EXTENSION, start);
        table.apply(granted(1, 9_000_000_000), start);
        assert_eq!(table.time_left(id(1), start).map(|time| time.left), Some(9_000_000_000));
    }
}
