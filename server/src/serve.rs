//! Listeners and connections: gRPC and HTTP on one port, told apart by their paths.

use std::{convert::Infallible, future::Future, io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use proto::{
    etcdserverpb::{
        auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
        maintenance_server::MaintenanceServer,
    },
    raw::watch_server::WatchServer,
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    body::Body,
    server::NamedService,
    service::{Routes, RoutesBuilder},
};
use tower::Service;

use crate::{
    cluster::ClusterService,
    concurrency::{self, ElectionService, LockService},
    config::{Connections, Listen},
    context::Context,
    kv::KvService,
    lease::{self, LeaseService},
    maintenance::MaintenanceService,
    rpc_count::CountLayer,
    too_large,
    unimplemented::Missing,
    watch::{self, WatchService},
};

/// What a request may be longer than `--max-request-bytes` on the wire, as in etcd.
pub const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// What a client may send ahead, so that a large request is not slowed down by round trips.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Streams that a client may give up before they are looked at. A client that drops many calls at once is no attacker.
const PENDING_RESETS_MAX: usize = 1024;
/// After an error of accept, such as too many open files: the time for connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
#[error("--{flag}: cannot listen on {address}: {error}; stop what listens there, or give another address")]
pub struct BindError {
    flag: &'static str,
    address: std::net::SocketAddr,
    error: io::Error,
}

/// Binds without accepting yet.
pub fn bind(listen: &Listen, reuse_port: bool) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = if listen.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        if reuse_port {
            socket.set_reuseport(true)?;
        }
        socket.bind(listen.address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|error| BindError { flag: listen.flag, address: listen.address, error })
}

/// The gRPC services for clients.
pub async fn grpc_routes(ctx: Arc<Context>, hub: Arc<watch::Hub>, clock: Arc<lease::Clock>) -> anyhow::Result<Router> {
    let max = ctx.limits.max_request_bytes.saturating_add(GRPC_OVERHEAD_BYTES);
    let local = concurrency::Local::new(ctx.clone(), hub.clone(), clock.clone());
    let mut routes = Routes::builder();
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    // Answers are of any size, as in etcd.
    macro_rules! add {
        ($($server:ident: $service:expr;)*) => {
            $(add(&mut routes, $server::new($service).max_decoding_message_size(max).max_encoding_message_size(usize::MAX));)*
        };
    }
    add! {
        KvServer: KvService::new(ctx.clone());
        WatchServer: WatchService::new(ctx.clone(), hub);
        LeaseServer: LeaseService::new(ctx.clone(), clock);
        ClusterServer: ClusterService::new(ctx.clone());
        MaintenanceServer: MaintenanceService::new(ctx.clone(), health);
        AuthServer: Missing;
        ElectionServer: ElectionService::new(local.clone());
        LockServer: LockService::new(local);
    }
    add(&mut routes, health_server);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    add(&mut routes, reflection().build_v1()?);
    add(&mut routes, reflection().build_v1alpha()?);
    let metrics = ctx.metrics.clone();
    let routes = routes.routes().prepare().into_axum_router();
    Ok(routes.layer(axum::middleware::map_response(too_large::in_etcds_words)).layer(CountLayer(metrics)))
}

fn add<S>(routes: &mut RoutesBuilder, service: S)
where
    S: Service<::http::Request<Body>, Response = ::http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    routes.add_service(service);
}

/// Serves connections until told to stop; then lets them end what they are at.
#[derive(Clone)]
pub struct Server {
    connections: Connections,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    pub fn new(connections: Connections, stop: CancellationToken) -> Self {
        Server { connections, stop, tasks: TaskTracker::new() }
    }

    /// Begins to accept. The routes have a fallback.
    pub fn start(&self, listener: TcpListener, routes: Router) {
        self.tasks.spawn(self.clone().accept(listener, routes));
    }

    /// Returns when all connections have ended.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn accept(self, listener: TcpListener, routes: Router) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, _)) => {
                    self.tasks.spawn(self.clone().serve(stream, routes.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn serve(self, stream: TcpStream, routes: Router) -> impl Future<Output = ()> + Send {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new());
        let mut http2 = builder.http2();
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.connections.max_concurrent_streams)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .keep_alive_interval(self.connections.keepalive_interval)
            .keep_alive_timeout(self.connections.keepalive_timeout);
        async move {
            // Small answers go out at once.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY");
            }
            let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
            tokio::pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = self.stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error, "a connection ended");
            }
        }
    }
}
