//! The members of a run, and what is known of each.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use proto::{MemberId, etcdserverpb as pb, etcdserverpb::cluster_client::ClusterClient};
use rand::{Rng as _, rngs::StdRng};
use tokio::{task::AbortHandle, time::timeout};
use tonic::Status;

use super::{
    clients::{self, Endpoints},
    disk::SimDisk,
    member::{End, Place, Settings, SimMember, places, url_of},
    network::Network,
    world::World,
};

const CALL_LIMIT: Duration = Duration::from_secs(30);
/// The number by which the nemesis calls.
const NEMESIS: u64 = 900;

/// What must never go back, by member.
#[derive(Default)]
struct Seen {
    term: u64,
}

pub struct Cluster {
    pub world: Arc<World>,
    pub network: Arc<Network>,
    pub members: BTreeMap<u64, SimMember>,
    /// Of all members that there ever were.
    pub disks: Vec<Arc<SimDisk>>,
    /// Those whose disk is not to be trusted any more, until they are replaced.
    pub damaged: BTreeSet<u64>,
    /// Those that never start again.
    pub gone: BTreeSet<u64>,
    /// Those that may stop by themselves: a fault of their disk says so.
    pub may_stop: BTreeSet<u64>,
    pub endpoints: Endpoints,
    settings: Settings,
    watchers: BTreeMap<u64, AbortHandle>,
    /// Who led in each term.
    leaders: BTreeMap<u64, MemberId>,
    seen: BTreeMap<u64, Seen>,
    next_number: u64,
    quorum: Option<Quorum>,
}

/// Whether those are there without whom nothing may be answered.
struct Quorum {
    voters: BTreeSet<MemberId>,
    /// Those that vote as soon as they have caught up: a leader lets them without anybody asking for it.
    newcomers: BTreeSet<MemberId>,
    lost_at: Option<Duration>,
}

impl Quorum {
    /// Whether these are a majority of a membership: the one that needs the fewest others has just those newcomers that
    /// are among them.
    fn is_held_by<'a>(&self, members: impl Iterator<Item = &'a SimMember>) -> bool {
        let members: BTreeSet<MemberId> = members.map(|member| member.place.id).collect();
        let voters = self.voters.intersection(&members).count();
        let newcomers = self.newcomers.intersection(&members).count();
        2 * (voters + newcomers) > self.voters.len() + newcomers
    }
}

impl Cluster {
    /// A new cluster, started. Stores stand below `folder`.
    pub fn start(
        size: u64,
        folder: &Path,
        settings: Settings,
        world: &Arc<World>,
        network: &Arc<Network>,
        rng: &mut StdRng,
    ) -> Result<Cluster> {
        let numbers: Vec<u64> = (1..=size).collect();
        let places = places(&numbers, &settings)?;
        let mut cluster = Cluster {
            world: world.clone(),
            network: network.clone(),
            members: BTreeMap::new(),
            disks: Vec::new(),
            damaged: BTreeSet::new(),
            gone: BTreeSet::new(),
            may_stop: BTreeSet::new(),
            endpoints: Endpoints::default(),
            settings,
            watchers: BTreeMap::new(),
            leaders: BTreeMap::new(),
            seen: BTreeMap::new(),
            next_number: size + 1,
            quorum: None,
        };
        for (number, place) in std::iter::zip(numbers, places) {
            cluster.add(number, place, folder, rng)?;
        }
        Ok(cluster)
    }

    fn add(&mut self, number: u64, place: Place, folder: &Path, rng: &mut StdRng) -> Result<()> {
        let network = self.network.clone();
        let mut member = SimMember::new(number, place, folder, &self.settings, network, rng.random())?;
        member.disk.set_sync_time(Duration::from_micros(500)..=Duration::from_millis(5));
        member.start();
        self.disks.push(member.disk.clone());
        self.members.insert(number, member);
        self.endpoints.lock().push(number);
        let watcher = tokio::spawn(clients::watch(self.world.clone(), self.network.clone(), number));
        self.watchers.insert(number, watcher.abort_handle());
        Ok(())
    }

    /// The members' numbers.
    pub fn numbers(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    /// Those that take part now: up, and not paused.
    pub fn working(&self) -> Vec<u64> {
        let works = |member: &&SimMember| member.up().is_some() && !member.is_paused;
        self.members.values().filter(works).map(|member| member.number).collect()
    }

    /// Who leads in the highest term.
    pub fn leader(&self) -> Option<u64> {
        let leading = |member: &SimMember| {
            let status = member.up()?.ctx.node.status();
            status.is_leader.then_some((status.term, member.number))
        };
        self.members.values().filter(|member| !member.is_paused).filter_map(leading).max().map(|(_, number)| number)
    }

    /// Whether all members are voters that work and are about as far as the leader.
    pub fn is_in_step(&self) -> bool {
        let Some(leader) = self.leader().and_then(|number| self.members[&number].up()) else { return false };
        let (committed, voters) = (leader.ctx.node.status().committed_index, leader.ctx.node.voters());
        self.members.values().all(|member| {
            let applied = member.up().map(|up| up.ctx.node.status().applied_index);
            !member.is_paused
                && voters.contains(&member.place.id)
                && applied.is_some_and(|applied| applied + 20 >= committed)
        })
    }

    pub fn member(&mut self, number: u64) -> &mut SimMember {
        self.members.get_mut(&number).expect("a member's number")
    }

    pub async fn end(&mut self, number: u64, end: End) -> Result<()> {
        let member = self.member(number);
        member.end(end).await.with_context(|| format!("the files of n{number}"))
    }

    /// Looks at every member: has it stopped, and does what may never go back go back?
    pub async fn look(&mut self) -> Result<()> {
        for number in self.numbers() {
            if let Some(reason) = self.member(number).take_failure() {
                self.stopped(number, reason).await?;
            }
            // It may just have been forgotten.
            let Some(member) = self.members.get(&number).and_then(SimMember::up) else { continue };
            let status = member.ctx.node.status();
            if status.is_leader {
                let leader = *self.leaders.entry(status.term).or_insert(member.ctx.member);
                if leader != member.ctx.member {
                    self.world.violated(format!("{leader} and n{number} lead in term {}", status.term));
                }
            }
            let seen = self.seen.entry(number).or_default();
            if status.term < seen.term {
                self.world.violated(format!("n{number} went back from term {} to {}", seen.term, status.term));
            }
            seen.term = status.term;
        }
        Ok(())
    }

    /// From now on it is checked that nothing is answered without a majority of those who vote, now or in any
    /// membership that may still come of itself.
    pub fn watch_quorum(&mut self) {
        let leader = self.leader().and_then(|number| self.members[&number].up());
        self.quorum = leader.map(|leader| {
            let voters = leader.ctx.node.voters();
            let members = leader.ctx.node.members().into_iter().filter(|member| !member.is_learner);
            let newcomers = members.map(|member| member.id).filter(|id| !voters.contains(id)).collect();
            Quorum { voters, newcomers, lost_at: None }
        });
    }

    /// To be called whenever a member may have been started or ended.
    pub fn look_at_quorum(&mut self) {
        let Some(quorum) = &mut self.quorum else { return };
        let now = self.world.now();
        let is_up = quorum.is_held_by(self.members.values().filter(|member| member.up().is_some()));
        quorum.lost_at = (!is_up).then(|| quorum.lost_at.unwrap_or(now));
        // What was asked before may be answered as long as a client waits. Who starts may be up at any moment.
        let is_over = quorum.lost_at.is_some_and(|lost_at| now > lost_at + clients::CALL_LIMIT)
            && !quorum.is_held_by(self.members.values().filter(|member| member.is_alive()));
        let was_over = std::mem::replace(&mut self.world.oracle().is_without_quorum, is_over);
        if is_over && !was_over {
            self.world.mark("quorums lost");
        }
    }

    /// A member has stopped by itself.
    async fn stopped(&mut self, number: u64, reason: String) -> Result<()> {
        // Tables hold times and random ids: the checksums in RocksDB's complaints are others in each run.
        let told = reason.split("Corruption").next().unwrap_or_default();
        self.world.trace(format_args!("n{number} has stopped: {told}"));
        if reason == "removed" {
            // The answer to its removal was lost.
            self.world.mark("removed members that stopped");
            return self.forget(number).await;
        } else if self.damaged.contains(&number) || self.may_stop.contains(&number) && is_of_disk(&reason) {
            self.world.mark("members that stopped for their disk");
        } else if reason.contains("already been bootstrapped") {
            self.world.mark("members that were refused without their data");
        } else {
            self.world.violated(format!("n{number} stopped without a reason of ours: {reason}"));
        }
        self.end(number, End::Kill).await
    }

    /// Compares the members that have come equally far.
    pub fn compare(&self) {
        let mut hashes: BTreeMap<(i64, i64), (u64, u32)> = BTreeMap::new();
        for member in self.members.values().filter(|member| !self.damaged.contains(&member.number)) {
            let Some(up) = member.up() else { continue };
            let store = &up.ctx.store;
            match store.hash_kv(0) {
                Ok(hash) => {
                    self.world.mark("hashes compared");
                    let at = (hash.revision, hash.compact_revision);
                    let (other, known) = *hashes.entry(at).or_insert((member.number, hash.hash));
                    if known != hash.hash {
                        self.world.violated(format!("n{other} and n{} differ at revision {}", member.number, at.0));
                    }
                }
                Err(error) => self.world.violated(format!("n{}: {error:?}", member.number)),
            }
        }
    }

    fn client(&self, number: u64) -> ClusterClient<raft::PeerChannel> {
        ClusterClient::new(self.network.channel(NEMESIS, number))
    }

    /// The members as one of those that work knows them.
    pub async fn list(&self) -> Option<Vec<pb::Member>> {
        let asked = *self.working().first()?;
        let request = pb::MemberListRequest { linearizable: true };
        let answer = timeout(CALL_LIMIT, async { self.client(asked).member_list(request).await }).await.ok()?;
        Some(answer.ok()?.into_inner().members)
    }

    /// Removes a member, and ends its process if it does not do so itself. Whether that is certain.
    pub async fn remove(&mut self, number: u64) -> Result<bool> {
        let id = self.members[&number].place.id.0;
        let Some(asked) = self.working().into_iter().find(|other| *other != number) else { return Ok(false) };
        let request = pb::MemberRemoveRequest { id };
        let call = async { self.client(asked).member_remove(request).await };
        let answer = timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| Err(Status::unavailable("no answer")));
        self.world.trace(format_args!("remove n{number}: {:?}", answer.as_ref().map(drop).map_err(Status::message)));
        let is_gone = match answer {
            Ok(_) => true,
            // It may have been done: then the list says so.
            Err(_) => self.list().await.is_some_and(|members| members.iter().all(|member| member.id != id)),
        };
        if is_gone {
            self.forget(number).await?;
        }
        Ok(is_gone)
    }

    /// A member, which is down, loses all that it had: whatever it knew, it will count from the beginning.
    pub fn wipe(&mut self, number: u64) -> Result<()> {
        self.seen.remove(&number);
        self.member(number).wipe().with_context(|| format!("the files of n{number}"))
    }

    async fn forget(&mut self, number: u64) -> Result<()> {
        self.end(number, End::Kill).await?;
        self.wipe(number)?;
        self.members.remove(&number);
        self.endpoints.lock().retain(|other| *other != number);
        if let Some(watcher) = self.watchers.remove(&number) {
            watcher.abort();
        }
        self.damaged.remove(&number);
        self.may_stop.remove(&number);
        self.world.mark("members removed");
        Ok(())
    }

    /// Adds a member under a new number. Whether it was done.
    pub async fn join(&mut self, is_learner: bool, folder: &Path, rng: &mut StdRng) -> Result<bool> {
        let Some(asked) = self.working().first().copied() else { return Ok(false) };
        let number = self.next_number;
        self.next_number += 1;
        let request = pb::MemberAddRequest { peer_ur_ls: vec![url_of(number)], is_learner };
        let call = async { self.client(asked).member_add(request).await };
        let answer = timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| Err(Status::unavailable("no answer")));
        self.world.trace(format_args!("add n{number}: {:?}", answer.as_ref().map(drop).map_err(Status::message)));
        let members = match answer {
            Ok(answer) => answer.into_inner().members,
            Err(_) => self.list().await.unwrap_or_default(),
        };
        let url = url_of(number);
        let Some(added) = members.iter().find(|member| member.peer_ur_ls.contains(&url)) else { return Ok(false) };
        let members: Vec<raft::Member> = members
            .iter()
            .map(|member| raft::Member {
                id: MemberId(member.id),
                name: member.name.clone(),
                peer_urls: member.peer_ur_ls.clone(),
                client_urls: Vec::new(),
                is_learner: member.is_learner,
            })
            .collect();
        let cluster = self.members.values().next().context("a cluster has members")?.place.cluster;
        let place = Place { id: MemberId(added.id), cluster, members, is_joining: true };
        self.add(number, place, folder, rng)?;
        self.world.mark(if is_learner { "learners added" } else { "voters added" });
        Ok(true)
    }

    /// Makes voters of the learners that have caught up.
    pub async fn promote(&mut self) {
        for member in self.list().await.unwrap_or_default().iter().filter(|member| member.is_learner) {
            let Some(asked) = self.working().first().copied() else { return };
            let request = pb::MemberPromoteRequest { id: member.id };
            let call = async { self.client(asked).member_promote(request).await };
            let answer = timeout(CALL_LIMIT, call).await;
            let told = answer.map(|answer| answer.map(drop).map_err(|status| status.message().to_string()));
            self.world.trace(format_args!("promote {:x}: {told:?}", member.id));
            if told == Ok(Ok(())) {
                self.world.mark("learners promoted");
            }
        }
    }

    /// Hands leadership to another member.
    pub async fn move_leader(&self, rng: &mut StdRng) {
        let Some(leader) = self.leader() else { return };
        let others: Vec<u64> = self.working().into_iter().filter(|number| *number != leader).collect();
        if others.is_empty() {
            return;
        }
        let target = self.members[&others[rng.random_range(0..others.len())]].place.id.0;
        let mut client = pb::maintenance_client::MaintenanceClient::new(self.network.channel(NEMESIS, leader));
        let request = pb::MoveLeaderRequest { target_id: target };
        if let Ok(Ok(_)) = timeout(CALL_LIMIT, client.move_leader(request)).await {
            self.world.mark("leadership handed over");
        }
    }
}

/// EIO and ENOSPC: nobody but a disk that was told to says so.
fn is_of_disk(reason: &str) -> bool {
    ["(os error 5)", "(os error 28)"].iter().any(|error| reason.contains(error))
}
