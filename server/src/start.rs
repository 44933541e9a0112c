//! A member's life: everything put together, served, and ended in order.
//!
//! ```text
//! bind listeners ─> data directory ─> store ─> Raft node ─> peers served ─> caught up, published ─> clients served
//! signal, or removal ─> listeners close, streams end ─> leadership handed over, log and store flushed ─> exit 0
//! this node's failure ─> exit 1
//! ```

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use anyhow::{anyhow, bail};
use axum::Router;
use proto::command::{MemberAttributes, command::Op};
use storage::host;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    access,
    bootstrap::DataDir,
    compactor,
    config::{Config, Listen},
    console,
    context::Context,
    corruption,
    gates::Gate,
    gateway,
    grpc::GRPC_OVERHEAD_BYTES,
    http,
    listen::{self, Listener},
    member::{Machine, Member},
    metrics,
    peer_http::PeerHttp,
    serve::Server,
    systemd,
    tls::Tls,
    tracing_export::Tracing,
    urls, version,
};

/// What open requests get to end in after the signal.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// The node's own part of the shutdown is bounded, too; this is for a disk that hangs.
const SHUTDOWN_MAX: Duration = Duration::from_secs(30);

/// All that is listened on, bound before anything is written.
struct Listeners {
    client: Vec<Listener>,
    client_http: Vec<Listener>,
    peer: Vec<Listener>,
    metrics: Vec<Listener>,
}

impl Listeners {
    fn bind(config: &Config) -> Result<Listeners, listen::BindError> {
        let bind = |listen: &[Listen]| {
            listen
                .iter()
                .map(|listen| Listener::bind(listen, config.connections.reuse_port))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Listeners {
            peer: bind(&config.listen_peer)?,
            client: bind(&config.listen_client)?,
            client_http: bind(&config.listen_client_http)?,
            metrics: bind(&config.listen_metrics)?,
        })
    }
}

/// Runs until a signal (then all is well) or a failure of this node. `ready` is called before clients are served.
pub async fn run(config: Config, ready: impl FnOnce()) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    config.tuning.apply_to_process()?;
    tracing::info!(
        etcd_version = crate::ETCD_VERSION,
        pintle_version = env!("CARGO_PKG_VERSION"),
        name = config.name,
        data_dir = %config.data_dir.display(),
        "starting"
    );
    // What is wrong with the files shows before anything is written.
    let dialer = Tls::open(&config, false)?.dialer;
    let listeners = Listeners::bind(&config)?;
    let connections_max = listen::connections_max()?;
    let peer_http = PeerHttp::new(dialer);
    // Looking for the other members may take for ever.
    let dir = tokio::select! {
        dir = DataDir::open(&config, &peer_http) => dir?,
        signal = signals.next() => {
            tracing::info!(signal, "received a signal before the other members were found; stopping");
            return Ok(());
        }
    };
    let tls = Tls::open(&config, true)?;
    tracing::info!(
        local_member_id = %dir.identity.member,
        cluster_id = %dir.identity.cluster,
        is_restart = dir.is_restart,
        "opened the data directory"
    );
    let member = Member::start(&config, &dir, Machine::this(tls.dialer.clone(), config.election_timeout)).await?;
    let services = member.grpc(&config).await?;
    drop((member.hub, member.clock));
    let (ctx, mut failures, backups) = (member.ctx.clone(), member.failures, member.backups);
    let (node, shutdown) = (ctx.node.clone(), ctx.shutdown.clone());
    ctx.quota.log();
    if dir.is_restart && ctx.gates.is_on(Gate::InitialCorruptCheck) {
        corruption::initial_check(&ctx).await?;
    }

    let server = Server::new(config.connections, shutdown.clone()).with_limit(connections_max);
    for listener in listeners.metrics {
        server.start(listener, http::metrics_routes(ctx.clone()).fallback(http::not_found), tls.metrics.as_ref());
    }
    let spans = config.tracing.as_ref().map(Tracing::start).transpose()?;
    let mut grpc = services.clone().routes();
    if let Some(spans) = &spans {
        grpc = grpc.layer(spans.layer());
    }
    // A span is made on the way by the routes.
    let direct = spans.is_none().then_some(services);
    let access = access::Control { access: config.access.clone(), with_gateway: config.json_gateway, ctx: ctx.clone() };
    let access = Arc::new(access);
    let gateway = if config.json_gateway {
        let request_bytes_max = config.limits.max_request_bytes.saturating_add(GRPC_OVERHEAD_BYTES);
        Some(gateway::routes(grpc.clone(), request_bytes_max)?)
    } else {
        None
    };
    let console = member.writes.map(|writes| console::routes(ctx.clone(), writes));
    let web = [gateway, console].into_iter().flatten().fold(Router::new(), Router::merge);
    let http = http::client_routes(ctx.clone(), access.clone(), web);
    let peer = node.peer_routes().prepare().into_axum_router().merge(http::peer_routes(ctx.clone()));
    let peer = peer.merge(console::peer_routes(ctx.clone()));
    let peer = peer.fallback(http::not_found);
    // The other members are served until the node has stopped: handing leadership over takes their answers.
    let peer_stop = CancellationToken::new();
    let peer_server = Server::for_members(config.connections, peer_stop.clone());
    for listener in listeners.peer {
        peer_server.start(listener, peer.clone(), tls.peer.as_ref());
    }
    host::spawn(metrics::count_leaders(ctx.metrics.clone(), node.watch_status()));
    if let Some(retention) = config.retention {
        host::spawn(compactor::run(ctx.clone(), retention));
    }
    corruption::start(&ctx, config.corruption_checks);
    version::start(&ctx, config.downgrade_check);
    let published = host::spawn(publish(ctx.clone(), config.name.clone(), urls::to_strings(&config.advertise_client)));

    let serving = async {
        wait_until_ready(&ctx, published).await;
        ready();
        let with_http = listeners.client_http.is_empty();
        for listener in listeners.client {
            let routes = if with_http { grpc.clone().merge(http.clone()) } else { grpc.clone() };
            let routes = http::with_not_found(routes, access.clone());
            server.start_with(direct.clone(), listener, routes, tls.client.as_ref());
        }
        for listener in listeners.client_http {
            server.start(listener, http::with_not_found(http.clone(), access.clone()), tls.client.as_ref());
        }
        tracing::info!(client_urls = urls::join(&config.advertise_client), "ready to serve client requests");
        systemd::notify(systemd::READY);
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = serving => unreachable!("serving has no end"),
        signal = signals.next() => tracing::info!(signal, "received a signal; shutting down"),
        () = removal(&node) => {
            // In etcd's words: a removed member ends well, and is not to come back.
            tracing::warn!(error = "the member has been permanently removed from the cluster", "server error");
            tracing::warn!("data-dir used by this member must be removed");
        }
        failure = stopped_by(&node, &mut failures) => {
            shutdown.cancel();
            bail!("{failure}");
        }
    }

    systemd::notify(systemd::STOPPING);
    // A second signal is for those who cannot wait.
    host::spawn(async move {
        let signal = signals.next().await;
        tracing::warn!(signal, "received a second signal; exiting at once");
        end(libc::EXIT_FAILURE);
    });
    shutdown.cancel();
    if tokio::time::timeout(DRAIN_MAX, server.ended()).await.is_err() {
        tracing::warn!("some client connections are still open; closing them");
    }
    if let Some(spans) = spans {
        // It says itself why it failed.
        let _ = host::blocking(move || spans.stop()).await;
    }
    let stopped = tokio::time::timeout(SHUTDOWN_MAX, node.shutdown()).await;
    peer_stop.cancel();
    if let Some(backups) = backups
        && tokio::time::timeout(DRAIN_MAX, backups.stop()).await.is_err()
    {
        tracing::warn!("the end of the log could not be archived in time");
    }
    stopped.map_err(|_| anyhow!("the node has not stopped within {} s", SHUTDOWN_MAX.as_secs()))??;
    tracing::info!("stopped");
    Ok(())
}

/// Ends the process at once. The usual exit destroys what RocksDB has for all stores: a thread that still works in one,
/// on a defragmentation for example, is waited for, or aborts the process.
pub fn end(code: i32) -> ! {
    // Who reads it is told what was said, if it is still there.
    let _ = io::stdout().flush();
    // SAFETY: it may be called at any time.
    unsafe { libc::_exit(code) }
}

/// Waits until this member has applied all that is committed, and the cluster knows its name and client URLs, as etcd
/// does. Clients' connections wait in the listeners' queues meanwhile; but not without end, since a member without a leader still has health and its own state to tell.
async fn wait_until_ready(ctx: &Context, published: JoinHandle<()>) {
    let caught_up = async {
        let mut status = ctx.node.watch_status();
        while ctx.node.read_index().await.is_err() {
            // Worth another try when something has changed; the wait is bounded for changes that came in between.
            // Without Raft the process is about to stop.
            if let Ok(Err(_)) = tokio::time::timeout(ctx.election_timeout, status.changed()).await {
                return;
            }
        }
        // It fails when the process is stopping only.
        let _ = published.await;
    };
    if tokio::time::timeout(3 * ctx.election_timeout, caught_up).await.is_err() {
        tracing::warn!("there is no leader yet; only serializable requests are served");
    }
}

/// Tells the cluster this member's name and client URLs, until it has worked once. Saying it twice does no harm.
pub async fn publish(ctx: Arc<Context>, name: String, client_urls: Vec<String>) {
    let attributes = MemberAttributes { id: ctx.member.0, name, client_urls };
    if ctx.store.member_attributes().contains(&attributes) {
        return;
    }
    let mut status = ctx.node.watch_status();
    loop {
        let propose = async {
            // Without Raft the process stops; the proposal tells.
            let _ = status.wait_for(|status| status.leader.is_some()).await;
            ctx.propose(Op::MemberAttributes(attributes.clone())).await
        };
        let Some(published) = ctx.shutdown.run_until_cancelled(propose).await else { return };
        match published {
            Ok(_) => break,
            Err(error) => {
                tracing::warn!(error = error.message(), "could not publish the member's name and URLs; trying again")
            }
        }
        // Without Raft no try will ever succeed.
        if let Ok(Err(_)) = tokio::time::timeout(ctx.election_timeout, status.changed()).await {
            return;
        }
    }
    tracing::info!(name = attributes.name, "published the member's name and client URLs");
}

/// Returns when this member has been removed from the cluster. Without Raft the process stops for that reason.
async fn removal(node: &raft::Node) {
    if node.watch_status().wait_for(|status| status.is_removed).await.is_err() {
        std::future::pending().await
    }
}

/// Returns why this node cannot go on.
async fn stopped_by(node: &raft::Node, failures: &mut mpsc::Receiver<String>) -> String {
    let mut status = node.watch_status();
    let failed = async {
        match status.wait_for(|status| status.fatal.is_some()).await {
            Ok(status) => status.fatal.clone().unwrap_or_default(),
            Err(_) => "Raft has stopped".into(),
        }
    };
    tokio::select! {
        reason = failed => reason,
        Some(reason) = failures.recv() => reason,
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupt",
            _ = self.terminate.recv() => "terminated",
        }
    }
}
