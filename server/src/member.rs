//! A member put together: store, Raft node, watches, leases, and what its services share. Nothing is listened on here.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use raft::{Reach, disk::Disk};
use storage::{Store, host};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    auth::{Auth, Passwords, Tokens},
    backup::{self, Backups, RunningBackups, Tap},
    bootstrap::DataDir,
    config::Config,
    console,
    context::{Context, Fatal},
    grpc::Grpc,
    identity::Identity,
    lease,
    metrics::Metrics,
    observer::Observer,
    peer_http::PeerHttp,
    quota::Quota,
    snapshot::Snapshots,
    tls::{self, Dialer},
    tuning::Tuning,
    watch,
};

/// What a member runs on.
pub struct Machine {
    /// Where the log is.
    pub disk: Arc<dyn Disk>,
    /// How Raft reaches the other members.
    pub reach: Reach,
    /// How questions outside Raft do.
    pub dialer: Arc<Dialer>,
    /// Of one file of the log.
    pub segment_bytes: u64,
    /// RocksDB's block cache.
    pub cache_bytes: usize,
}

impl Machine {
    /// This process's, with its network and file system.
    pub fn this(dialer: Arc<Dialer>, election_timeout: Duration) -> Machine {
        let for_raft = tls::dial::ForRaft { dialer: dialer.clone(), silence_max: election_timeout };
        Machine {
            disk: Arc::new(raft::disk::FileSystem),
            reach: Reach::Connections(Arc::new(for_raft)),
            dialer,
            segment_bytes: raft::SEGMENT_BYTES,
            cache_bytes: 256 << 20,
        }
    }

    /// A simulated one. Its members ask each other nothing outside Raft.
    pub fn simulated(disk: Arc<dyn Disk>, reach: Reach, segment_bytes: u64) -> Machine {
        let dialer = Arc::new(Dialer::plain());
        Machine { disk, reach, dialer, segment_bytes, cache_bytes: 8 << 20 }
    }
}

/// A member that takes part in the cluster.
pub struct Member {
    pub ctx: Arc<Context>,
    pub hub: Arc<watch::Hub>,
    pub clock: Arc<lease::Clock>,
    /// What the console tells of writes, where there is one.
    pub writes: Option<Arc<console::Writes>>,
    /// Why this member cannot go on.
    pub failures: mpsc::Receiver<String>,
    /// To be stopped when nothing is applied any more.
    pub backups: Option<RunningBackups>,
}

impl Member {
    /// # Errors
    /// When the store or the log is damaged, cannot be read, or they do not fit to each other.
    pub async fn start(config: &Config, dir: &DataDir, machine: Machine) -> anyhow::Result<Member> {
        let (fatal, failures) = Fatal::new();
        let (hub, clock) = (watch::Hub::new(), lease::Clock::new());
        let tokens = Arc::new(Tokens::new(&config.auth.tokens)?);
        let metrics = Metrics::new(dir.identity.member, config.tuning.metrics, &config.gates)?;
        let writes = config.console.then(Arc::default);
        let tap = config.backup.is_some().then(Arc::<Tap>::default);
        let observer = Observer::new(&hub, &clock, &tokens, &metrics);
        let observer = observer.with_writes(writes.clone()).with_tap(tap.clone());
        let store = open_store(dir, observer, config.tuning, machine.cache_bytes).await?;
        dir.prepare_log(&machine.disk, machine.segment_bytes, store.applied().index).await?;
        let backups = start_backups(config, dir, &store, tap, &metrics)?;
        hub.attach(store.clone());
        metrics.attach(hub.clone(), clock.clone());
        let peer_http = PeerHttp::new(machine.dialer.clone());
        let node_config = node_config(config, dir, &metrics, machine);
        let node = raft::Node::start(node_config, store.clone(), lease::leader_handler(clock.clone())).await?;
        let backups = backups.map(|backups| backups.run_beside(&node));
        let passwords = Passwords::new(config.auth.bcrypt_cost);
        let auth = Auth::new(store.clone(), node.clone(), tokens, passwords, config.auth.trusts_certificates);
        let ctx = Arc::new(Context {
            auth,
            store,
            node,
            cluster: dir.identity.cluster,
            member: dir.identity.member,
            limits: config.limits,
            change_policy: config.change_policy,
            gates: config.gates.clone(),
            quota: Quota::new(config.limits.quota_backend_bytes),
            peer_http,
            watch_progress_interval: config.watch_progress_interval,
            election_timeout: config.election_timeout,
            metrics,
            fatal,
            snapshots: Snapshots::new(config.data_dir.join("member").join("snapshots")),
            shutdown: CancellationToken::new(),
        });
        clock.attach(ctx.clone());
        Ok(Member { ctx, hub, clock, writes, failures, backups })
    }

    /// What clients call.
    pub async fn grpc(&self, config: &Config) -> anyhow::Result<Grpc> {
        Grpc::new(self.ctx.clone(), self.hub.clone(), self.clock.clone(), config.tuning.slow_request).await
    }

    /// The same as routes.
    pub async fn client_routes(&self, config: &Config) -> anyhow::Result<Router> {
        Ok(self.grpc(config).await?.routes())
    }

    /// What the other members' Raft calls.
    pub fn peer_routes(&self) -> Router {
        self.ctx.node.peer_routes().prepare().into_axum_router()
    }
}

async fn open_store(dir: &DataDir, observer: Observer, tuning: Tuning, cache_bytes: usize) -> anyhow::Result<Store> {
    let options = storage::Options { observer: Arc::new(observer), cache_bytes };
    let path = dir.store.clone();
    let open = move || {
        let store = Store::open(&path, options)?;
        tuning.apply_to_store(&store)?;
        Ok::<_, storage::StorageError>(store)
    };
    let store = host::blocking(open).await.context("opening the store")??;
    tracing::info!(
        revision = store.revision(),
        compacted_revision = store.compacted_revision(),
        keys = store.key_count(),
        applied_index = store.applied().index,
        "opened the store"
    );
    Ok(store)
}

fn start_backups(
    config: &Config,
    dir: &DataDir,
    store: &Store,
    tap: Option<Arc<Tap>>,
    metrics: &Metrics,
) -> anyhow::Result<Option<Backups>> {
    let (Some(settings), Some(tap)) = (&config.backup, tap) else { return Ok(None) };
    let Identity { member, cluster, name, .. } = dir.identity.clone();
    let owner = backup::Owner { cluster: cluster.0, member: member.0, name };
    let backups = Backups::start(settings, owner, &config.data_dir, store.clone(), tap, metrics.backup.clone());
    Ok(Some(backups.context("making member/backup in the data directory")?))
}

fn node_config(config: &Config, dir: &DataDir, metrics: &Arc<Metrics>, machine: Machine) -> raft::Config {
    raft::Config {
        member: dir.identity.member,
        cluster: dir.identity.cluster,
        initial_members: dir.members.clone(),
        is_joining: dir.is_joining,
        force_new_cluster: config.force_new_cluster,
        data_dir: config.data_dir.clone(),
        wal_dir: dir.wal.clone(),
        disk: machine.disk,
        segment_bytes: machine.segment_bytes,
        heartbeat: config.heartbeat,
        election_timeout: config.election_timeout,
        snapshot_count: config.snapshot_count,
        catch_up_entries: config.tuning.catch_up_entries,
        is_log_synced: config.tuning.is_log_synced,
        meter: metrics.network.clone(),
        reach: machine.reach,
    }
}
