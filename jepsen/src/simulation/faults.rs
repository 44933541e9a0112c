//! The nemesis of the simulation: what goes wrong, when, and for how long. Several things at once.
//!
//! Whatever stops and comes back may hit everybody. What destroys data hits a minority at most, and who was hit is
//! replaced by a new member: within that, the cluster must stay correct, and come back when it is left alone. A run
//! beyond the quorum ends with a majority destroyed: then the cluster need not come back, but it must not lie.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{cluster::Cluster, member::End, network::Link, world::World};

/// What a run may do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Between two faults.
    pub every: (Duration, Duration),
    pub with_clocks: bool,
    pub with_disks: bool,
    pub with_members: bool,
    pub members_max: usize,
}

/// What comes back at a time, or ends then.
#[derive(Debug, Clone)]
enum Due {
    Start(u64),
    Resume(u64),
    Heal,
    FastDisk(u64),
    Replace(u64),
    Promote,
}

pub struct Nemesis {
    plan: Plan,
    rng: StdRng,
    world: Arc<World>,
    folder: PathBuf,
    /// In order of time.
    due: Vec<(Duration, Due)>,
    next: Duration,
    /// A majority is destroyed: nobody can be replaced any more.
    is_beyond: bool,
    pub faults: u64,
}

impl Nemesis {
    pub fn new(plan: Plan, rng: StdRng, world: Arc<World>, folder: PathBuf) -> Nemesis {
        let next = Duration::from_secs(5);
        Nemesis { plan, rng, world, folder, due: Vec::new(), next, is_beyond: false, faults: 0 }
    }

    fn seconds(&mut self, from: f64, to: f64) -> Duration {
        Duration::from_secs_f64(self.rng.random_range(from..to))
    }

    fn after(&mut self, wait: Duration, due: Due) {
        let at = self.world.now() + wait;
        let place = self.due.partition_point(|(other, _)| *other <= at);
        self.due.insert(place, (at, due));
    }

    /// Does what is due now.
    pub async fn turn(&mut self, cluster: &mut Cluster) -> Result<()> {
        let now = self.world.now();
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            let (_, due) = self.due.remove(0);
            self.come_back(due, cluster).await?;
        }
        for number in cluster.numbers() {
            let is_waited_for =
                self.due.iter().any(|(_, due)| matches!(due, Due::Start(n) | Due::Replace(n) if *n == number));
            if !cluster.members[&number].is_alive() && !is_waited_for && !cluster.gone.contains(&number) {
                // It has stopped by itself.
                let wait = self.seconds(0.1, 10.0);
                let is_to_go = cluster.damaged.contains(&number) && !self.is_beyond;
                let due = if is_to_go { Due::Replace(number) } else { Due::Start(number) };
                self.after(wait, due);
            }
        }
        if now >= self.next {
            let (least, most) = self.plan.every;
            self.next = now + self.seconds(least.as_secs_f64(), most.as_secs_f64());
            self.strike(cluster).await?;
        }
        Ok(())
    }

    async fn come_back(&mut self, due: Due, cluster: &mut Cluster) -> Result<()> {
        match due {
            Due::Start(number) if cluster.members.contains_key(&number) => {
                let member = cluster.member(number);
                member.disk.set_full(false);
                if member.is_down() {
                    member.start();
                    self.world.trace(format_args!("n{number} starts"));
                }
            }
            Due::Resume(number) if cluster.members.contains_key(&number) => {
                if cluster.members[&number].is_paused {
                    cluster.member(number).resume();
                    self.world.trace(format_args!("n{number} goes on"));
                }
            }
            Due::FastDisk(number) if cluster.members.contains_key(&number) => {
                cluster.member(number).disk.set_sync_time(Duration::from_micros(500)..=Duration::from_millis(5));
            }
            Due::Start(_) | Due::Resume(_) | Due::FastDisk(_) => {}
            Due::Heal => {
                cluster.network.heal();
                cluster.network.set_default_link(Link::default());
                self.world.trace(format_args!("the network is whole"));
            }
            Due::Replace(number) => self.replace(number, cluster).await?,
            Due::Promote => cluster.promote().await,
        }
        Ok(())
    }

    /// A member that has lost its data is removed, and a new one joins.
    async fn replace(&mut self, number: u64, cluster: &mut Cluster) -> Result<()> {
        if !cluster.members.contains_key(&number) {
            return Ok(());
        }
        if cluster.members[&number].is_alive() {
            cluster.end(number, End::Kill).await?;
        }
        let is_gone = cluster.remove(number).await?;
        let is_joined = is_gone && self.join(cluster).await?;
        if is_joined {
            self.world.mark("members replaced");
        } else if !is_gone {
            let wait = self.seconds(1.0, 5.0);
            self.after(wait, Due::Replace(number));
        }
        Ok(())
    }

    async fn join(&mut self, cluster: &mut Cluster) -> Result<bool> {
        let is_learner = self.rng.random();
        if is_learner {
            let wait = self.seconds(5.0, 30.0);
            self.after(wait, Due::Promote);
        }
        cluster.join(is_learner, &self.folder, &mut self.rng).await
    }

    /// Those that may be hit: a random one, often the leader, sometimes several.
    fn victims(&mut self, cluster: &Cluster) -> Vec<u64> {
        let alive: Vec<u64> = cluster.members.values().filter(|m| m.is_alive()).map(|m| m.number).collect();
        match self.rng.random_range(0..10) {
            0 => alive,
            1..4 => cluster.leader().into_iter().collect(),
            4 if alive.len() > 1 => alive.choose_multiple(&mut self.rng, 2).copied().collect(),
            _ => alive.choose(&mut self.rng).copied().into_iter().collect(),
        }
    }

    async fn strike(&mut self, cluster: &mut Cluster) -> Result<()> {
        self.faults += 1;
        match self.rng.random_range(0..100) {
            0..14 => self.stop(cluster, End::Kill).await,
            14..28 => self.stop(cluster, End::PowerCut).await,
            28..36 => self.pause(cluster),
            36..52 => self.partition(cluster),
            52..60 => self.degrade(cluster),
            60..64 => self.reset(cluster),
            64..70 if self.plan.with_clocks => self.clocks(cluster),
            70..79 if self.plan.with_disks => self.disk(cluster).await,
            79..86 if self.plan.with_disks && !self.is_beyond => self.damage(cluster).await,
            86..92 if self.plan.with_members && !self.is_beyond => self.change_members(cluster).await,
            92..97 => {
                cluster.move_leader(&mut self.rng).await;
                Ok(())
            }
            _ => self.stop(cluster, End::PowerCut).await,
        }
    }

    async fn stop(&mut self, cluster: &mut Cluster, end: End) -> Result<()> {
        let victims = self.victims(cluster);
        let leader = cluster.leader();
        for number in victims {
            self.world.trace(format_args!("n{number} ends: {end:?}"));
            self.world.mark(match (end, leader == Some(number)) {
                (End::Kill, true) => "leaders killed",
                (End::Kill, false) => "followers killed",
                (End::PowerCut, true) => "leaders that lost power",
                (End::PowerCut, false) => "followers that lost power",
            });
            let member = &cluster.members[&number];
            if member.up().is_none() {
                self.world.mark("stopped while starting");
            }
            let behind = member.up().map(|up| up.ctx.node.status());
            if behind.is_some_and(|status| status.applied_index < status.committed_index) {
                self.world.mark("stopped between commit and apply");
            }
            cluster.end(number, end).await?;
            let wait = self.seconds(0.0, 10.0);
            self.after(wait, Due::Start(number));
        }
        Ok(())
    }

    fn pause(&mut self, cluster: &mut Cluster) -> Result<()> {
        for number in self.victims(cluster) {
            if cluster.members[&number].is_paused {
                continue;
            }
            self.world.trace(format_args!("n{number} stands still"));
            self.world.mark("pauses");
            cluster.member(number).pause();
            let is_long = self.rng.random_range(0..6) == 0;
            let wait = if is_long { self.seconds(30.0, 120.0) } else { self.seconds(0.2, 15.0) };
            self.after(wait, Due::Resume(number));
        }
        Ok(())
    }

    fn partition(&mut self, cluster: &mut Cluster) -> Result<()> {
        let numbers = cluster.numbers();
        let (mut some, mut others): (Vec<u64>, Vec<u64>) = match (self.rng.random_range(0..3), cluster.leader()) {
            (0, Some(leader)) => (vec![leader], numbers.into_iter().filter(|n| *n != leader).collect()),
            (1, _) => numbers.into_iter().partition(|_| self.rng.random()),
            _ => {
                let one = *numbers.choose(&mut self.rng).expect("a cluster has members");
                (vec![one], numbers.into_iter().filter(|n| *n != one).collect())
            }
        };
        let is_one_way = self.rng.random_range(0..3) == 0;
        if self.rng.random() {
            std::mem::swap(&mut some, &mut others);
        }
        for &a in &some {
            for &b in &others {
                cluster.network.block(a, b);
                if !is_one_way {
                    cluster.network.block(b, a);
                }
            }
        }
        self.world.trace(format_args!("{some:?} are cut off from {others:?} (one way: {is_one_way})"));
        self.world.mark(if is_one_way { "one-way partitions" } else { "partitions" });
        let wait = self.seconds(0.5, 20.0);
        self.after(wait, Due::Heal);
        Ok(())
    }

    fn degrade(&mut self, cluster: &Cluster) -> Result<()> {
        match self.rng.random_range(0..3) {
            0 => {
                let (loss, duplication) = (self.rng.random_range(0.0..0.3), self.rng.random_range(0.0..0.3));
                cluster.network.set_default_link(Link::unreliable(loss, duplication));
                self.world.mark("lossy networks");
            }
            1 => {
                let numbers = cluster.numbers();
                let (a, b) = (numbers.choose(&mut self.rng), numbers.choose(&mut self.rng));
                if let (Some(&a), Some(&b)) = (a, b) {
                    cluster.network.set_link(a, b, Link::clogged());
                }
                self.world.mark("clogged links");
            }
            _ => {
                let most = self.seconds(0.01, 0.4);
                cluster.network.set_default_link(Link { delay: Duration::from_millis(1)..=most, ..Link::default() });
                self.world.mark("slow networks");
            }
        }
        let wait = self.seconds(1.0, 20.0);
        self.after(wait, Due::Heal);
        Ok(())
    }

    fn reset(&mut self, cluster: &Cluster) -> Result<()> {
        let numbers = cluster.numbers();
        for &a in &numbers {
            for &b in numbers.iter().filter(|b| **b > a) {
                if self.rng.random() {
                    cluster.network.reset(a, b);
                    self.world.mark("connections reset");
                }
            }
        }
        Ok(())
    }

    fn clocks(&mut self, cluster: &Cluster) -> Result<()> {
        let numbers = cluster.numbers();
        let Some(number) = numbers.choose(&mut self.rng) else { return Ok(()) };
        let host = &cluster.members[number].host;
        match self.rng.random_range(0..3) {
            0 => host.jump_ahead(self.seconds(0.1, 60.0)),
            1 => host.set_drift(self.rng.random_range(-200_000..200_000)),
            _ => host.set_wall_clock(self.rng.random_range(-3_600_000_000_000..3_600_000_000_000)),
        }
        self.world.trace(format_args!("the clock of n{number} is wrong"));
        self.world.mark("clocks set wrong");
        Ok(())
    }

    /// What a disk does without losing what it promised.
    async fn disk(&mut self, cluster: &mut Cluster) -> Result<()> {
        for number in self.victims(cluster) {
            match self.rng.random_range(0..3) {
                0 => {
                    let most = self.seconds(0.05, 1.5);
                    cluster.member(number).disk.set_sync_time(Duration::from_millis(5)..=most);
                    self.world.mark("slow disks");
                    let wait = self.seconds(1.0, 20.0);
                    self.after(wait, Due::FastDisk(number));
                }
                1 => {
                    cluster.member(number).disk.fail_next_sync();
                    cluster.may_stop.insert(number);
                    self.world.trace(format_args!("the next sync of n{number} fails"));
                    self.world.mark("failing syncs");
                }
                _ => {
                    cluster.member(number).disk.set_full(true);
                    cluster.may_stop.insert(number);
                    self.world.trace(format_args!("the disk of n{number} is full"));
                    self.world.mark("full disks");
                }
            }
        }
        Ok(())
    }

    /// A minority may lose what its disks promised.
    async fn damage(&mut self, cluster: &mut Cluster) -> Result<()> {
        let numbers = cluster.numbers();
        // With the one that is hit, and until it is replaced, a majority must be there that has all.
        if cluster.damaged.len() + 1 > (numbers.len() - 1) / 2 || !cluster.is_in_step() {
            return Ok(());
        }
        let Some(&number) = numbers.choose(&mut self.rng) else { return Ok(()) };
        match self.rng.random_range(0..5) {
            0 => {
                // It shows when the log is read again.
                cluster.damaged.insert(number);
                cluster.member(number).disk.misdirect_next_write();
                self.world.trace(format_args!("the next write of n{number} goes elsewhere"));
            }
            1 => {
                cluster.damaged.insert(number);
                cluster.end(number, End::Kill).await?;
                self.world.trace(format_args!("n{number} loses all that it had"));
                self.world.mark("disks wiped");
                cluster.wipe(number)?;
                cluster.member(number).start();
            }
            _ => {
                self.ruin(number, cluster).await?;
                cluster.member(number).start();
            }
        }
        let wait = self.seconds(5.0, 30.0);
        self.after(wait, Due::Replace(number));
        Ok(())
    }

    /// Destroys a part of what a member has, in a way that it must notice before it makes anything of the rest.
    async fn ruin(&mut self, number: u64, cluster: &mut Cluster) -> Result<()> {
        cluster.damaged.insert(number);
        cluster.end(number, End::Kill).await?;
        match self.rng.random_range(0..4) {
            0 => {
                cluster.member(number).lose_log();
                self.world.trace(format_args!("n{number} loses its log"));
                self.world.mark("logs lost");
            }
            1 => {
                cluster.member(number).lose_store()?;
                self.world.trace(format_args!("n{number} loses its store"));
                self.world.mark("stores lost");
            }
            2 if self.rot(number, cluster)? => {}
            _ => {
                let tables = cluster.members[&number].tables();
                if let Some(path) = tables.choose(&mut self.rng) {
                    let at = flip(path, &mut self.rng)?;
                    self.world.trace(format_args!("byte {at} of a table of n{number} rots"));
                    self.world.mark("tables rotten");
                }
            }
        }
        Ok(())
    }

    /// Destroys a majority. Nobody is replaced from now on; who can, starts again and again.
    pub async fn overwhelm(&mut self, cluster: &mut Cluster) -> Result<()> {
        self.is_beyond = true;
        self.due.clear();
        cluster.watch_quorum();
        let numbers = cluster.numbers();
        let count = self.rng.random_range(numbers.len() / 2 + 1..=numbers.len());
        let hit: Vec<u64> = numbers.choose_multiple(&mut self.rng, count).copied().collect();
        for number in hit {
            self.faults += 1;
            if self.rng.random() {
                cluster.damaged.insert(number);
                cluster.gone.insert(number);
                cluster.end(number, End::Kill).await?;
                self.world.trace(format_args!("n{number} is gone for good"));
                self.world.mark("members gone for good");
            } else {
                self.ruin(number, cluster).await?;
            }
        }
        self.go_on();
        Ok(())
    }

    /// Flips bits of the log, before its newest part: what is wrong in the very last batch looks like a torn write.
    fn rot(&mut self, number: u64, cluster: &Cluster) -> Result<bool> {
        let disk = &cluster.members[&number].disk;
        let mut logs = disk.files();
        logs.retain(|(path, _)| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        if logs.len() < 2 {
            return Ok(false);
        }
        let (path, size) = &logs[0];
        let flipped = disk.rot(path, 0..size / 2, self.rng.random_range(1..4))?;
        self.world.trace(format_args!("{flipped} bits of {} of n{number} rot", path.display()));
        self.world.mark("logs rotten");
        Ok(true)
    }

    async fn change_members(&mut self, cluster: &mut Cluster) -> Result<()> {
        let numbers = cluster.numbers();
        if numbers.len() >= self.plan.members_max || numbers.len() > 3 && self.rng.random() {
            // What is left must be a majority that has all.
            if let Some(&number) = numbers.choose(&mut self.rng)
                && cluster.damaged.is_empty()
                && cluster.is_in_step()
            {
                cluster.remove(number).await?;
            }
            return Ok(());
        }
        self.join(cluster).await.map(drop)
    }

    /// The time of rest is over.
    pub fn go_on(&mut self) {
        self.next = self.world.now() + self.plan.every.0;
    }

    /// Takes everything back, and lets nothing new happen for `quiet`.
    pub async fn heal(&mut self, cluster: &mut Cluster, quiet: Duration) -> Result<()> {
        self.next = self.world.now() + quiet;
        let due = std::mem::take(&mut self.due);
        self.world.trace(format_args!("all is taken back"));
        cluster.network.heal();
        cluster.network.set_default_link(Link::default());
        for number in cluster.numbers() {
            cluster.member(number).disk.set_sync_time(Duration::from_micros(500)..=Duration::from_millis(5));
            cluster.member(number).disk.set_full(false);
            if cluster.members[&number].is_paused {
                cluster.member(number).resume();
            }
            if cluster.members[&number].is_down() && !cluster.damaged.contains(&number) {
                cluster.member(number).start();
            }
        }
        for (_, due) in due {
            if let Due::Replace(_) | Due::Promote = due {
                let wait = self.seconds(1.0, 5.0);
                self.after(wait, due);
            }
        }
        Ok(())
    }
}

/// Flips a bit of a file. Where.
fn flip(path: &std::path::Path, rng: &mut StdRng) -> Result<usize> {
    let mut bytes = std::fs::read(path)?;
    let at = rng.random_range(0..bytes.len().max(1));
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << rng.random_range(0..8);
    }
    // Tables are linked to what a crash has left: a new file.
    std::fs::remove_file(path)?;
    std::fs::write(path, bytes)?;
    Ok(at)
}
