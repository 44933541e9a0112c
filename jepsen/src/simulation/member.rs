//! One simulated member: the real server without its listeners, on a host, a disk and a network of the simulation.
//!
//! The log is on the simulated disk. The store is RocksDB's own business and stands in a directory of the machine,
//! which should be in memory; a crash leaves of it what RocksDB has flushed, as it does with its own log switched off.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::Router;
use parking_lot::Mutex;
use proto::{ClusterId, MemberId};
use raft::Reach;
use server::{
    bootstrap::DataDir,
    config::Config,
    flags::Flags,
    identity::Identity,
    member::{Machine, Member},
    start,
};
use storage::host::{self, Host};

use super::{
    disk::{NameRule, SimDisk},
    host::SimHost,
    network::{Network, Stop},
};

/// Small, so that the log is cut often.
const SEGMENT_BYTES: u64 = 16 << 10;
const WAL: &str = "/wal";
/// What members call of each other; the rest is for clients.
const PEER_PATHS: &str = "/peer.Peer/";

/// How a member ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The process; what it wrote stays.
    Kill,
    /// The power; what it did not sync may be lost.
    PowerCut,
}

/// What all members of a run have in common.
#[derive(Debug, Clone)]
pub struct Settings {
    pub heartbeat: Duration,
    pub election_timeout: Duration,
    /// Entries between two looks at whether the log can be cut.
    pub snapshot_count: u64,
    pub catch_up_entries: u64,
    pub names: NameRule,
}

/// Where a member stands in its life.
pub enum Life {
    Down,
    Starting,
    Up(Arc<Member>),
    /// It could not start, or go on, and said why.
    Failed(String),
}

/// Who a member is to the cluster.
#[derive(Debug, Clone)]
pub struct Place {
    pub id: MemberId,
    pub cluster: ClusterId,
    /// The members that it begins with, or joins.
    pub members: Vec<raft::Member>,
    pub is_joining: bool,
}

pub struct SimMember {
    pub number: u64,
    pub place: Place,
    pub disk: Arc<SimDisk>,
    pub host: Arc<SimHost>,
    pub is_paused: bool,
    /// It has written something once.
    has_run: bool,
    /// What its identity says.
    has_log: Arc<AtomicBool>,
    config: Arc<Config>,
    dir: PathBuf,
    network: Arc<Network>,
    life: Arc<Mutex<Life>>,
}

pub fn url_of(number: u64) -> String {
    format!("http://n{number}:2380")
}

fn number_of(url: &str) -> Option<u64> {
    url.strip_prefix("http://n")?.strip_suffix(":2380")?.parse().ok()
}

/// The places of the members of a new cluster, by number.
pub fn places(numbers: &[u64], settings: &Settings) -> Result<Vec<Place>> {
    let cluster = numbers.iter().map(|n| format!("n{n}={}", url_of(*n))).collect::<Vec<_>>().join(",");
    let identity = |n: &u64| {
        let config = config_of(*n, Path::new("/"), settings, &[format!("--initial-cluster={cluster}")])?;
        Ok(Identity::new(&config.name, &config.cluster))
    };
    let identities = numbers.iter().map(identity).collect::<Result<Vec<Identity>>>()?;
    let mut members: Vec<raft::Member> = std::iter::zip(&identities, numbers)
        .map(|(identity, n)| raft::Member {
            id: identity.member,
            name: identity.name.clone(),
            peer_urls: vec![url_of(*n)],
            client_urls: Vec::new(),
            is_learner: false,
        })
        .collect();
    members.sort_by_key(|member| member.id);
    let place = |identity: Identity| Place {
        id: identity.member,
        cluster: identity.cluster,
        members: members.clone(),
        is_joining: false,
    };
    Ok(identities.into_iter().map(place).collect())
}

/// What `pintle` would make of the flags.
fn config_of(number: u64, dir: &Path, settings: &Settings, more: &[String]) -> Result<Config> {
    let mut arguments = vec![
        format!("--name=n{number}"),
        format!("--data-dir={}", dir.display()),
        format!("--initial-advertise-peer-urls={}", url_of(number)),
        format!("--heartbeat-interval={}", settings.heartbeat.as_millis()),
        format!("--election-timeout={}", settings.election_timeout.as_millis()),
        format!("--snapshot-count={}", settings.snapshot_count),
        format!("--snapshot-catchup-entries={}", settings.catch_up_entries),
        "--quota-backend-bytes=-1".into(),
        "--compaction-batch-limit=5".into(),
        "--compaction-sleep-interval=20ms".into(),
        "--bcrypt-cost=4".into(),
    ];
    arguments.extend_from_slice(more);
    if !more.iter().any(|flag| flag.starts_with("--initial-cluster=")) {
        arguments.push(format!("--initial-cluster=n{number}={}", url_of(number)));
    }
    let flags = Flags::read(arguments.into_iter(), []).map_err(|e| anyhow::anyhow!("{e}"))?;
    Config::from_flags(&flags).map_err(|e| anyhow::anyhow!("{e}"))
}

impl SimMember {
    /// One that has not been started. Its files stand below `folder`.
    pub fn new(
        number: u64,
        place: Place,
        folder: &Path,
        settings: &Settings,
        network: Arc<Network>,
        seed: u64,
    ) -> Result<SimMember> {
        let dir = folder.join(format!("n{number}"));
        fs::create_dir_all(dir.join("member").join("store")).with_context(|| dir.display().to_string())?;
        Ok(SimMember {
            number,
            place,
            disk: SimDisk::new(seed, settings.names),
            host: SimHost::new(),
            is_paused: false,
            has_run: false,
            has_log: Arc::default(),
            config: Arc::new(config_of(number, &dir, settings, &[])?),
            dir,
            network,
            life: Arc::new(Mutex::new(Life::Down)),
        })
    }

    fn store(&self) -> PathBuf {
        self.dir.join("member").join("store")
    }

    /// The member, while it is up.
    pub fn up(&self) -> Option<Arc<Member>> {
        match &*self.life.lock() {
            Life::Up(member) => Some(member.clone()),
            _ => None,
        }
    }

    /// Whether there is a process, paused or not.
    pub fn is_alive(&self) -> bool {
        matches!(&*self.life.lock(), Life::Up(_) | Life::Starting)
    }

    /// Whether it has ended, and that has been seen to.
    pub fn is_down(&self) -> bool {
        matches!(&*self.life.lock(), Life::Down)
    }

    /// Why it has stopped by itself, told once.
    pub fn take_failure(&self) -> Option<String> {
        let mut life = self.life.lock();
        match std::mem::replace(&mut *life, Life::Down) {
            Life::Failed(reason) => Some(reason),
            other => {
                *life = other;
                None
            }
        }
    }

    /// Starts the process. Whether it gets ready shows later.
    pub fn start(&mut self) {
        self.host = SimHost::of(&self.host);
        self.is_paused = false;
        *self.life.lock() = Life::Starting;
        let (has_log, is_restart) = (self.has_log.load(Ordering::Relaxed), self.has_run);
        let name = self.config.name.clone();
        let identity = Identity { member: self.place.id, cluster: self.place.cluster, name, has_log };
        let (members, is_joining) = (self.place.members.clone(), self.place.is_joining);
        let of_member = self.has_log.clone();
        let keep = move |identity: &Identity| {
            of_member.store(identity.has_log, Ordering::Relaxed);
            Ok(())
        };
        let data = DataDir::private(identity, is_restart, members, is_joining, self.store(), WAL.into(), keep);
        self.has_run = true;
        let (network, number) = (self.network.clone(), self.number);
        let reach = {
            let network = network.clone();
            Reach::Requests(Arc::new(move |urls: &[String]| {
                let to = urls.iter().find_map(|url| number_of(url)).unwrap_or_default();
                network.channel(number, to)
            }))
        };
        let machine = Machine::simulated(self.disk.mount(), reach, SEGMENT_BYTES);
        let (config, life, of_host) = (self.config.clone(), self.life.clone(), self.host.clone() as Arc<dyn Host>);
        let live = async move {
            let reason =
                match live(&config, &data, machine, &life, |routes| network.serve(number, of_host, routes)).await {
                    Ok(reason) => reason,
                    Err(error) => format!("{error:#}"),
                };
            *life.lock() = Life::Failed(reason);
        };
        host::spawn_on(&(self.host.clone() as Arc<dyn Host>), live);
    }

    /// Ends the process at once, wherever it is.
    pub async fn end(&mut self, end: End) -> io::Result<()> {
        self.network.stop_serving(
            self.number,
            match end {
                End::Kill => Stop::Kill,
                End::PowerCut => Stop::PowerCut,
            },
        );
        match end {
            End::Kill => self.disk.kill(),
            End::PowerCut => self.disk.crash(),
        }
        // RocksDB flushes when it is closed: what it writes from now on never was.
        let image = self.dir.join("image");
        copy(&self.store(), &image)?;
        self.host.resume();
        self.is_paused = false;
        *self.life.lock() = Life::Down;
        self.host.end().await;
        fs::remove_dir_all(self.store())?;
        fs::rename(image, self.store())
    }

    pub fn pause(&mut self) {
        self.is_paused = true;
        self.network.pause(self.number);
        self.host.pause();
    }

    pub fn resume(&mut self) {
        self.is_paused = false;
        self.network.resume(self.number);
        self.host.resume();
    }

    /// The member, which is down, loses all that it had.
    pub fn wipe(&mut self) -> io::Result<()> {
        self.disk.wipe();
        self.has_run = false;
        self.has_log = Arc::default();
        fs::remove_dir_all(&self.dir)?;
        fs::create_dir_all(self.store())
    }

    /// The member, which is down, loses its log, and keeps its store.
    pub fn lose_log(&mut self) {
        self.disk.wipe();
    }

    /// The member, which is down, loses its store, and keeps its log.
    pub fn lose_store(&mut self) -> io::Result<()> {
        fs::remove_dir_all(self.store())?;
        fs::create_dir_all(self.store())
    }

    /// The files of RocksDB that hold data, by size: which gets which number depends on where things lie in memory.
    pub fn tables(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.store()];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "sst") {
                    found.push(path);
                }
            }
        }
        found.sort_by_cached_key(|path| (fs::metadata(path).map_or(0, |metadata| metadata.len()), path.clone()));
        found
    }
}

/// A member's whole life, until it cannot go on. The reason.
async fn live(
    config: &Config,
    data: &DataDir,
    machine: Machine,
    life: &Mutex<Life>,
    serve: impl FnOnce(Router),
) -> Result<String> {
    let mut member = Member::start(config, data, machine).await?;
    let (_, none) = tokio::sync::mpsc::channel(1);
    let mut failures = std::mem::replace(&mut member.failures, none);
    let routes = apart(member.peer_routes(), member.client_routes(config).await?);
    let mut status = member.ctx.node.watch_status();
    serve(routes);
    host::spawn(start::publish(member.ctx.clone(), config.name.clone(), Vec::new()));
    *life.lock() = Life::Up(Arc::new(member));
    let fatal = async {
        match status.wait_for(|status| status.fatal.is_some() || status.is_removed).await {
            Ok(status) if status.is_removed => "removed".into(),
            Ok(status) => status.fatal.clone().unwrap_or_default(),
            Err(_) => "Raft has stopped".into(),
        }
    };
    Ok(tokio::select! {
        reason = fatal => reason,
        Some(reason) = failures.recv() => reason,
    })
}

/// What members call goes to the one, the rest to the other.
fn apart(peers: Router, clients: Router) -> Router {
    Router::new().fallback_service(tower::service_fn(move |request: http::Request<axum::body::Body>| {
        let of_peers = request.uri().path().starts_with(PEER_PATHS);
        let mut routes = if of_peers { peers.clone() } else { clients.clone() };
        tower::Service::call(&mut routes, request)
    }))
}

/// A directory as it is now. RocksDB's tables never change, and are linked.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().expect("an entry has a name"));
        let result = match path.is_dir() {
            true => copy(&path, &target),
            false if path.extension().is_some_and(|extension| extension == "sst") => fs::hard_link(&path, &target),
            false => fs::copy(&path, &target).map(drop),
        };
        // A file that RocksDB has removed meanwhile is one that it does not need.
        result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    }
    Ok(())
}
