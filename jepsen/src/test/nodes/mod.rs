//! A cluster of real processes, each on a machine of its own as far as Linux can make it so.
//!
//! A node has a network namespace whose one interface ends in our [`switch`], a small ext4 on a loop device whose power
//! can be cut ([`disk`]), and control groups ([`cgroup`]). The harness is in a network and a mount table of its own
//! too ([`sandbox`]), so that nothing of all this is seen outside, and nothing is left of it when the harness is gone.
//!
//! [`Nodes`] does to nodes what nemeses ask for, and knows which nodes should be running: an exit that nobody ordered is
//! an error.

pub mod cgroup;
pub mod clock;
pub mod damage;
pub mod disk;
pub mod failing_disk;
mod fuse;
mod interface;
pub mod link;
mod loop_device;
pub mod machine;
mod namespace;
mod needs;
pub mod sandbox;
mod segment;
mod status;
pub mod switch;
mod system;

use std::{
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, try_join_all};
use proto::etcdserverpb::{Member, StatusResponse};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::watch,
    task::block_in_place,
    time::{sleep, timeout},
};

use crate::{
    load::Endpoints,
    process::{Cluster, Node, Target},
    reconfigure::membership,
};
use cgroup::Hierarchies;
use link::Link;
use machine::{Excuse, HARNESS_ADDRESS, Machine};
pub use needs::Needs;
use switch::Switch;

const STATUS_LIMIT: Duration = Duration::from_secs(1);
/// Between two questions: a member tells how far it is only when it is asked.
pub const STATUS_PAUSE: Duration = Duration::from_millis(20);
const LEADER_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How a cluster is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Members at the start
    pub size: usize,
    /// Further flags for each node
    pub flags: Vec<String>,
    pub disk_bytes: u64,
    /// Whether the disks are in files of the run's folder, and not in memory
    pub disk_in_file: bool,
    /// What the nemeses of the run need
    pub needs: Needs,
    /// Whether clocks that jump take the monotonic ones with them
    pub monotonic_clock_too: bool,
    /// Decides which packets are lost
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            size: 3,
            flags: Vec::new(),
            disk_bytes: 512 << 20,
            disk_in_file: false,
            needs: Needs::default(),
            monotonic_clock_too: false,
            seed: 1,
        }
    }
}

/// The running cluster. Dropping it ends its processes and takes everything down.
pub struct Nodes {
    pub cluster: Cluster,
    /// As many as there are nodes, in the same order.
    machines: Vec<Machine>,
    switch: Switch,
    endpoints: watch::Sender<Vec<String>>,
    hierarchies: Hierarchies,
    target: Target,
    dir: PathBuf,
    options: Options,
    numbered: u8,
    random: StdRng,
}

/// What a power cut took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lost {
    /// Not yet given to the disk
    pub unsynced_bytes: u64,
    /// In the cache of a disk that fails as told
    pub blocks: u64,
}

impl Nodes {
    /// Starts members with their logs in files of `dir` and waits until all serve. The harness must be in its
    /// [`sandbox`].
    pub async fn start(target: &Target, dir: &Path, options: Options) -> Result<Nodes> {
        let hierarchies = Hierarchies::find()?;
        hierarchies.sweep()?;
        options.needs.check(&hierarchies, target.binary())?;
        let switch = Switch::start(options.seed)?;
        let tun = interface::tun(HARNESS_ADDRESS).context("cannot make the harness's own TUN device")?;
        switch.connect(HARNESS_ADDRESS, tun);
        let numbered = u8::try_from(options.size).context("too many nodes")?;
        let machines = block_in_place(|| {
            let set_up = |number| Machine::set_up(number, dir, &options, &hierarchies, &switch);
            (1..=numbered).map(set_up).collect::<Result<Vec<Machine>>>()
        })?;
        let flags = flags(target, &options);
        let nodes = machines.iter().map(|machine| machine.node(target, &flags)).collect::<Result<Vec<Node>>>()?;
        let cluster = Cluster::on_hosts(target, nodes, dir, &flags);
        let (endpoints, _) = watch::channel(cluster.endpoints());
        let (target, dir) = (target.clone(), dir.to_path_buf());
        let random = StdRng::seed_from_u64(options.seed);
        let mut nodes =
            Nodes { cluster, machines, switch, endpoints, hierarchies, target, dir, options, numbered, random };
        if let Err(error) = nodes.cluster.start_stopped().await {
            return Err(error.context(nodes.log_tails()));
        }
        Ok(nodes)
    }

    /// Where clients reach the members, as they come and go.
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints.subscribe()
    }

    pub fn len(&self) -> usize {
        self.machines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    pub fn name(&self, node: usize) -> &str {
        self.cluster.nodes[node].name()
    }

    /// The names of some nodes, for descriptions.
    pub fn names(&self, nodes: &[usize]) -> String {
        nodes.iter().map(|node| self.name(*node)).collect::<Vec<&str>>().join(", ")
    }

    pub fn machine(&self, node: usize) -> &Machine {
        &self.machines[node]
    }

    pub fn machine_mut(&mut self, node: usize) -> &mut Machine {
        &mut self.machines[node]
    }

    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    pub fn log_tails(&self) -> String {
        self.cluster.log_tails()
    }

    /// What a node answers about itself, if it answers.
    pub async fn status(&self, node: usize) -> Option<StatusResponse> {
        let node = &self.cluster.nodes[node];
        if !node.is_running() {
            return None;
        }
        timeout(STATUS_LIMIT, status::ask(node.channel())).await.ok()?.ok()
    }

    /// The node that leads the latest term, of those that answer. Waits for one.
    pub async fn leader(&self) -> Result<usize> {
        let wait = async {
            loop {
                let statuses = join_all((0..self.len()).map(|node| self.status(node))).await;
                if let Some(leader) = status::leading(&statuses) {
                    return leader;
                }
                sleep(STATUS_PAUSE).await;
            }
        };
        timeout(LEADER_LIMIT, wait).await.with_context(|| format!("nobody led within {LEADER_LIMIT:?}"))
    }

    /// How far the leader has applied its log.
    pub async fn applied_by_leader(&self) -> Result<u64> {
        let leader = self.leader().await?;
        Ok(self.status(leader).await.context("the leader does not answer")?.raft_applied_index)
    }

    pub async fn has_applied(&self, node: usize, index: u64) -> bool {
        self.status(node).await.is_some_and(|status| status.raft_applied_index >= index)
    }

    pub async fn until_applied(&self, node: usize, index: u64, limit: Duration) -> Result<()> {
        let applied = async {
            while !self.has_applied(node, index).await {
                sleep(STATUS_PAUSE).await;
            }
        };
        timeout(limit, applied).await.with_context(|| format!("{} has not all after {limit:?}", self.name(node)))
    }

    /// An error if a node has ended that nobody ended and that had no excuse.
    pub async fn check_running(&mut self) -> Result<()> {
        for (node, machine) in self.cluster.nodes.iter_mut().zip(&self.machines) {
            if !node.is_running() || !node.has_exited()? {
                continue;
            }
            node.log_copied().await;
            let (name, tail) = (node.name(), node.log_tail());
            let excuse = machine.excuse.as_ref().with_context(|| format!("{name} ended by itself\n{tail}"))?;
            let log = node.log_from(excuse.log_from)?;
            let says = excuse.words.is_empty() || excuse.words.iter().any(|word| log.contains(word.as_str()));
            ensure!(says, "{name} ended without saying any of {:?}\n{tail}", excuse.words);
        }
        Ok(())
    }

    /// From now on a node may end by itself, if it says one of these, or anything when there are none.
    pub fn may_end(&mut self, node: usize, words: &[&str]) {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        self.machines[node].excuse = Some(Excuse { words, log_from: self.cluster.nodes[node].log_length() });
    }

    /// From now on nodes have no excuse to end. Gives those that had ended; they are not started.
    pub async fn must_run(&mut self, nodes: &[usize]) -> Result<Vec<usize>> {
        self.check_running().await?;
        let mut ended = Vec::new();
        for index in nodes {
            let node = &mut self.cluster.nodes[*index];
            if node.is_running() && node.has_exited()? {
                node.exited().await?;
                ended.push(*index);
            }
            self.machines[*index].excuse = None;
        }
        Ok(ended)
    }

    /// Waits until nodes have ended that may. An error if they do not, or say something else.
    pub async fn await_end(&mut self, nodes: &[usize], limit: Duration) -> Result<()> {
        for node in nodes {
            let process = &mut self.cluster.nodes[*node];
            let ended = timeout(limit, process.wait()).await;
            ended.with_context(|| format!("{} goes on after {limit:?}\n{}", process.name(), process.log_tail()))??;
        }
        let ended = self.must_run(nodes).await?;
        ensure!(ended.len() == nodes.len(), "of {nodes:?} only {ended:?} ended");
        Ok(())
    }

    /// Takes the disks of nodes that are down out and puts them in again, so that nothing of them is cached.
    pub fn remount(&mut self, nodes: &[usize]) -> Result<()> {
        block_in_place(|| {
            nodes.iter().try_for_each(|node| {
                let disk = &mut self.machines[*node].disk;
                disk.unmount()?;
                disk.mount()
            })
        })
    }

    /// Ends nodes with SIGKILL, and waits until they are gone.
    pub async fn kill(&mut self, victims: &[usize]) -> Result<()> {
        self.check_running().await?;
        for victim in victims {
            // One that had an excuse may have ended.
            if !self.cluster.nodes[*victim].has_exited()? {
                self.cluster.nodes[*victim].kill()?;
            }
        }
        self.bury(victims).await
    }

    /// Waits until nodes that got SIGKILL are gone.
    async fn bury(&mut self, victims: &[usize]) -> Result<()> {
        for victim in victims {
            // The first version of control groups keeps a frozen process from dying.
            self.resume(*victim)?;
            if self.cluster.nodes[*victim].is_running() {
                self.cluster.nodes[*victim].exited().await?;
            }
        }
        Ok(())
    }

    /// Cuts the power of nodes: what they have not synced is lost, or, with disks that fail as told, any part of it. The
    /// disks are left unmounted.
    pub async fn cut_power(&mut self, victims: &[usize]) -> Result<Lost> {
        self.check_running().await?;
        for victim in victims {
            // They must not see their disks fail.
            if !self.cluster.nodes[*victim].has_exited()? {
                self.cluster.nodes[*victim].freeze().await?;
            }
        }
        let mut lost = Lost::default();
        block_in_place(|| {
            for victim in victims {
                let disk = &self.machines[*victim].disk;
                lost.unsynced_bytes += disk.unsynced_bytes()?;
                disk.cut_power()?;
            }
            anyhow::Ok(())
        })?;
        self.kill(victims).await?;
        block_in_place(|| {
            for victim in victims {
                let disk = &mut self.machines[*victim].disk;
                disk.unmount()?;
                if self.options.needs.failing_disk {
                    let before = disk.failing()?.damage();
                    let damage = disk.failing()?.lose_cache(&mut self.random)?;
                    lost.blocks += damage.blocks_lost - before.blocks_lost;
                }
            }
            Ok(lost)
        })
    }

    /// Mounts the disks of nodes whose power was cut.
    pub fn restore_power(&mut self, victims: &[usize]) -> Result<()> {
        block_in_place(|| victims.iter().try_for_each(|victim| self.machines[*victim].disk.mount()))
    }

    /// Starts whichever nodes are down, and waits until they serve.
    pub async fn start_stopped(&mut self) -> Result<()> {
        if let Err(error) = self.cluster.start_stopped().await {
            return Err(error.context(self.log_tails()));
        }
        Ok(())
    }

    /// Asks a node to stop and waits for it.
    pub async fn stop(&mut self, node: usize) -> Result<()> {
        self.check_running().await?;
        terminate(&mut self.cluster.nodes[node]).await
    }

    /// Lets a node do nothing until it is resumed.
    pub fn pause(&mut self, node: usize) -> Result<()> {
        match self.hierarchies.freezes() {
            true => block_in_place(|| self.machines[node].group.freeze())?,
            false => self.cluster.nodes[node].signal(libc::SIGSTOP)?,
        }
        self.machines[node].frozen = true;
        Ok(())
    }

    pub fn resume(&mut self, node: usize) -> Result<()> {
        if !self.machines[node].frozen {
            return Ok(());
        }
        match self.hierarchies.freezes() {
            true => self.machines[node].group.thaw()?,
            false => self.cluster.nodes[node].signal(libc::SIGCONT)?,
        }
        self.machines[node].frozen = false;
        Ok(())
    }

    /// Adds a member on a machine of its own, starts it, and promotes it if it is a learner. Gives its index, the last.
    pub async fn add_member(&mut self, learner: bool) -> Result<usize> {
        self.numbered = self.numbered.checked_add(1).context("too many nodes")?;
        let machine = block_in_place(|| {
            Machine::set_up(self.numbered, &self.dir, &self.options, &self.hierarchies, &self.switch)
        })?;
        let mut node = machine.node(&self.target, &flags(&self.target, &self.options))?;
        let first = self.random.random_range(0..self.len());
        let log_lengths: Vec<u64> = self.cluster.nodes.iter().map(Node::log_length).collect();
        let (id, members) = membership::add(&self.cluster.nodes, first, &node.peer_url(), learner).await?;
        node.join(initial_cluster(&members, &node));
        self.cluster.nodes.push(node);
        self.machines.push(machine);
        let added = self.len() - 1;
        self.start_stopped().await?;
        self.endpoints.send_replace(self.cluster.endpoints());
        match learner {
            true => membership::promote(&self.cluster.nodes, first, id).await?,
            false => self.await_vote(id, &log_lengths).await?,
        }
        Ok(added)
    }

    /// Waits until a new voter votes: Pintle's does so only when it has caught up, and until then the others cannot
    /// spare one more (`docs/decisions/0009-members.md`). Whichever member leads says so in its log.
    async fn await_vote(&self, id: u64, log_from: &[u64]) -> Result<()> {
        if !self.target.is_pintle() {
            return Ok(());
        }
        let (member, votes) = (format!("{id:x}"), "votes now");
        let begin = Instant::now();
        loop {
            for (node, from) in self.cluster.nodes.iter().zip(log_from) {
                if node.log_from(*from)?.lines().any(|line| line.contains(votes) && line.contains(&member)) {
                    return Ok(());
                }
            }
            ensure!(
                begin.elapsed() < membership::CATCH_UP_LIMIT,
                "{member} was added and does not vote after {:?}",
                membership::CATCH_UP_LIMIT
            );
            sleep(STATUS_PAUSE).await;
        }
    }

    /// Removes a member, which then ends by itself if it runs, and takes its machine down.
    pub async fn remove_member(&mut self, node: usize) -> Result<()> {
        let first = self.random.random_range(0..self.len());
        let id = membership::id_of(&self.cluster.nodes, first, &self.cluster.nodes[node].peer_url()).await?;
        self.may_end(node, &[]);
        membership::remove(&self.cluster.nodes, first, id).await?;
        let mut process = self.cluster.nodes.remove(node);
        if process.is_running() {
            let ended = timeout(STOP_LIMIT, process.exited()).await;
            let status = ended.with_context(|| format!("{} goes on after its removal", process.name()))??;
            ensure!(status.success(), "{}, removed, ended with {status}\n{}", process.name(), process.log_tail());
        }
        let machine = self.machines.remove(node);
        self.switch.disconnect(machine.address);
        block_in_place(|| drop(machine));
        self.endpoints.send_replace(self.cluster.endpoints());
        Ok(())
    }

    /// Ends a member for good, as if its machine had been lost, and puts another in its place.
    pub async fn replace_member(&mut self, node: usize, learner: bool) -> Result<()> {
        self.must_run(&[node]).await?;
        self.kill(&[node]).await?;
        self.remove_member(node).await?;
        self.add_member(learner).await.map(drop)
    }

    /// What is wrong from now on with what one node sends to another.
    pub fn set_link(&self, from: usize, to: usize, link: Link) {
        self.switch.set(self.machines[from].address, self.machines[to].address, link);
    }

    /// Makes all links between nodes sound.
    pub fn heal_links(&self) {
        for from in 0..self.len() {
            for to in (0..self.len()).filter(|to| *to != from) {
                self.set_link(from, to, Link::default());
            }
        }
    }

    /// Ends all nodes in order and takes everything down.
    pub async fn shutdown(mut self) -> Result<()> {
        self.heal_links();
        self.check_running().await?;
        for node in 0..self.len() {
            self.resume(node)?;
        }
        // Together: one after the other, the last would look in vain for another leader.
        let running = self.cluster.nodes.iter_mut().filter(|node| node.is_running());
        try_join_all(running.map(terminate)).await?;
        Ok(())
    }

    /// Copies what the nodes have on their disks to a folder for someone to look at.
    pub fn keep(&self, to: &Path) -> Result<()> {
        block_in_place(|| self.machines.iter().try_for_each(|machine| disk::keep(machine.disk.path(), to)))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // A disk can be unmounted only when nothing runs on it any more.
        for (node, machine) in self.cluster.nodes.iter_mut().zip(&mut self.machines) {
            if node.is_running() {
                // It may have ended, and then there is nothing to do.
                let _ = node.kill();
            }
            if machine.frozen {
                let _ = machine.group.thaw();
            }
        }
    }
}

/// What all nodes are started with.
fn flags(target: &Target, options: &Options) -> Vec<String> {
    let mut flags = options.flags.clone();
    if options.needs.short_log {
        // etcd 3.5 had not settled on the second.
        let experimental = if target.is_pintle() { "" } else { "experimental-" };
        flags.push("--snapshot-count=100".to_owned());
        flags.push(format!("--{experimental}snapshot-catchup-entries=10"));
    }
    flags
}

/// What a new member is told of its cluster. It is the one without a name so far.
fn initial_cluster(members: &[Member], new: &Node) -> String {
    let urls = members.iter().flat_map(|member| {
        let name = if member.name.is_empty() { new.name() } else { &member.name };
        member.peer_ur_ls.iter().map(move |url| format!("{name}={url}"))
    });
    urls.collect::<Vec<String>>().join(",")
}

async fn terminate(node: &mut Node) -> Result<()> {
    let status = node.terminate(STOP_LIMIT).await?;
    // etcd ends by the signal that it handled.
    let ordered = status.success() || status.signal() == Some(libc::SIGTERM);
    ensure!(ordered, "{} was asked to stop and ended with {status}\n{}", node.name(), node.log_tail());
    Ok(())
}
