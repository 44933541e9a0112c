//! The endpoints of a client, and which one the next request goes to.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::RwLock;

use crate::endpoint::Member;

/// How requests are spread over the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Balance {
    /// All go to one endpoint until a request fails there; then they go to the next healthy one.
    #[default]
    UntilFailure,
    /// Each goes to the healthy endpoint after the one before.
    RoundRobin,
}

#[derive(Debug)]
pub(crate) struct Endpoints {
    set: RwLock<Arc<[Arc<Member>]>>,
    /// The place in the set of the endpoint in use, or of the one whose turn it is.
    current: AtomicUsize,
    balance: Balance,
}

impl Endpoints {
    /// At least one.
    pub fn new(members: Vec<Arc<Member>>, balance: Balance) -> Endpoints {
        assert!(!members.is_empty(), "a client has at least one endpoint");
        Endpoints { set: RwLock::new(members.into()), current: AtomicUsize::new(0), balance }
    }

    pub fn all(&self) -> Arc<[Arc<Member>]> {
        self.set.read().clone()
    }

    /// Where the next request goes.
    pub fn next(&self) -> Arc<Member> {
        let set = self.all();
        let current = match self.balance {
            Balance::UntilFailure => self.current.load(Ordering::Relaxed) % set.len(),
            Balance::RoundRobin => {
                let turn = self.current.fetch_add(1, Ordering::Relaxed) % set.len();
                first_healthy(&set, turn)
            }
        };
        set[current].clone()
    }

    /// The endpoint failed. Of many requests that failed there, one makes the move to another.
    pub fn give_up(&self, member: &Arc<Member>) {
        member.failed();
        if self.balance == Balance::RoundRobin {
            return;
        }
        let set = self.all();
        let now = self.current.load(Ordering::Relaxed);
        if !Arc::ptr_eq(&set[now % set.len()], member) {
            return;
        }
        let next = first_healthy(&set, (now % set.len() + 1) % set.len());
        // A failure to exchange means that another request has moved already.
        let _ = self.current.compare_exchange(now, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Other endpoints from now on. Those in use keep their connections and what is known of their health.
    pub fn replace(&self, members: Vec<Arc<Member>>) {
        assert!(!members.is_empty(), "a client has at least one endpoint");
        let mut set = self.set.write();
        let in_use = &set[self.current.load(Ordering::Relaxed) % set.len()];
        let stays = members.iter().position(|member| member.url == in_use.url);
        self.current.store(stays.unwrap_or(0), Ordering::Relaxed);
        *set = members.into();
    }
}

/// The first healthy one from there on; that one itself when none is.
fn first_healthy(set: &[Arc<Member>], from: usize) -> usize {
    (from..from + set.len()).map(|index| index % set.len()).find(|index| set[*index].is_healthy()).unwrap_or(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;

    fn endpoints(balance: Balance) -> Endpoints {
        let members = ["a:1", "b:1", "c:1"].map(|url| Member::new(url, &Options::default()).unwrap());
        Endpoints::new(members.into(), balance)
    }

    #[tokio::test]
    async fn requests_that_failed_together_move_the_client_by_one_endpoint() {
        let endpoints = endpoints(Balance::UntilFailure);
        let first = endpoints.next();
        endpoints.give_up(&first);
        endpoints.give_up(&first);
        assert_eq!(endpoints.next().url, "b:1");
        endpoints.give_up(&endpoints.next());
        endpoints.give_up(&endpoints.next());
        assert_eq!(endpoints.next().url, "a:1", "when none is healthy they are tried in turn");
    }

    #[tokio::test]
    async fn the_turn_goes_round_the_healthy_ones() {
        let endpoints = endpoints(Balance::RoundRobin);
        let turns = |count: usize| (0..count).map(|_| endpoints.next().url.clone()).collect::<Vec<_>>();
        assert_eq!(turns(4), ["a:1", "b:1", "c:1", "a:1"]);
        let all = endpoints.all();
        endpoints.give_up(&all[1]);
        assert!(!turns(6).contains(&"b:1".to_string()));
        all[1].works();
        assert!(turns(3).contains(&"b:1".to_string()));
    }

    #[tokio::test]
    async fn the_endpoint_in_use_stays_when_others_come_and_go() {
        let endpoints = endpoints(Balance::UntilFailure);
        endpoints.give_up(&endpoints.next());
        let kept = endpoints.next();
        endpoints.replace(vec![Member::new("d:1", &Options::default()).unwrap(), kept.clone()]);
        assert!(Arc::ptr_eq(&endpoints.next(), &kept));
        endpoints.replace(vec![Member::new("e:1", &Options::default()).unwrap()]);
        assert_eq!(endpoints.next().url, "e:1");
    }
}
