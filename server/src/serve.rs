//! Listeners and connections: gRPC and HTTP on one port, told apart by their paths.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use futures::{FutureExt as _, future::Either};
use http_body_util::Either as EitherBody;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Connections,
    grpc::Grpc,
    guard::{Guard, answers::Answers},
    listen::{Io, Listener, Socket},
    tls::{self, ClientCertificate},
};

/// What a client may send ahead, so that a large request is not slowed down by round trips.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Each connection may fill its window with what is not read yet.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Streams that a client may give up before they are looked at. A client that drops many calls at once is no attacker.
const PENDING_RESETS_MAX: usize = 1024;
/// What a client gets to say whether it speaks HTTP/1 or 2. hyper gives it as long for the headers of HTTP/1.
const BEGIN_MAX: Duration = Duration::from_secs(30);
/// After an error of accept, such as too many open files: the time for connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until told to stop; then lets them end what they are at.
#[derive(Clone)]
pub struct Server {
    connections: Connections,
    /// Of all listeners together; none for members, who are few.
    limit: Option<Arc<Semaphore>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// How a connection may come in at a listener.
#[derive(Clone)]
struct Door {
    grpc: Option<Grpc>,
    routes: Router,
    is_plain: bool,
    tls: Option<Arc<tls::Acceptor>>,
}

/// An encrypted connection, or a plain one, and what is known of its other end.
struct Accepted {
    io: Io,
    is_secured: bool,
    certificate: Option<ClientCertificate>,
}

impl Server {
    pub fn new(connections: Connections, stop: CancellationToken) -> Self {
        Server { connections, limit: None, stop, tasks: TaskTracker::new() }
    }

    /// One that members use among themselves: they ping as often as they need to.
    pub fn for_members(connections: Connections, stop: CancellationToken) -> Self {
        Server::new(Connections { ping_min_time: None, ..connections }, stop)
    }

    /// One that serves no more than `limit` connections at once. The next ones wait to be accepted.
    pub fn with_limit(self, limit: usize) -> Self {
        Server { limit: Some(Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)))), ..self }
    }

    /// Begins to accept. The routes have a fallback. A listener for TLS needs an acceptor.
    pub fn start(&self, listener: Listener, routes: Router, tls: Option<&Arc<tls::Acceptor>>) {
        self.start_with(None, listener, routes, tls);
    }

    /// Like [`Server::start`]; calls of the services that are called often do not go by the routes.
    pub fn start_with(&self, grpc: Option<Grpc>, listener: Listener, routes: Router, tls: Option<&Arc<tls::Acceptor>>) {
        let door = Door { grpc, routes, is_plain: listener.is_plain, tls: tls.filter(|_| listener.is_tls).cloned() };
        self.tasks.spawn(self.clone().accept(listener, door));
    }

    /// Returns when all connections have ended.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn accept(self, listener: Listener, door: Door) {
        let next = async || {
            let permit = match &self.limit {
                Some(limit) => Some(limit.clone().acquire_owned().await.expect("the limit is never closed")),
                None => None,
            };
            (permit, listener.accept().await)
        };
        while let Some((permit, accepted)) = self.stop.run_until_cancelled(next()).await {
            match accepted {
                Ok((socket, remote)) => {
                    let (server, door) = (self.clone(), door.clone());
                    self.tasks.spawn(async move {
                        server.serve(socket, remote, door).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // A delay: that a file is closed somewhere, so that there is room for a connection, is told to nobody.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self, socket: Socket, remote: Option<SocketAddr>, door: Door) {
        let Some(Some(accepted)) = self.stop.run_until_cancelled(door.open(socket, remote)).await else { return };
        let (grpc, routes) = (door.grpc, TowerToHyperService::new(door.routes));
        let Accepted { io, is_secured, certificate } = accepted;
        let answers = Answers::new();
        let io = Guard::new(io, BEGIN_MAX, self.connections.ping_min_time);
        let service = hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            if is_secured {
                request.extensions_mut().insert(tls::Secured);
            }
            if let Some(certificate) = &certificate {
                request.extensions_mut().insert(certificate.clone());
            }
            request.extensions_mut().insert(answers.clone());
            match &grpc {
                Some(grpc) if Grpc::is_direct(request.uri().path()) => {
                    Either::Left(grpc.answer(request).map(|answer| Ok::<_, Infallible>(answer.map(EitherBody::Left))))
                }
                _ => {
                    let answer = hyper::service::Service::call(&routes, request);
                    Either::Right(answer.map(|answer| answer.map(|answer| answer.map(EitherBody::Right))))
                }
            }
        });
        let builder = self.builder();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
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

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.connections.max_concurrent_streams)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .keep_alive_interval(self.connections.keepalive_interval)
            .keep_alive_timeout(self.connections.keepalive_timeout);
        builder
    }
}

impl Door {
    /// The connection in the way it comes in; `None` when there is no one to serve.
    async fn open(&self, socket: Socket, remote: Option<SocketAddr>) -> Option<Accepted> {
        let tls = match &self.tls {
            Some(tls) if !self.is_plain => tls,
            Some(tls) if timeout(BEGIN_MAX, socket.begins_with_tls()).await.ok()? => tls,
            _ => return Some(Accepted { io: Io::Plain(socket), is_secured: false, certificate: None }),
        };
        let (stream, certificate) = tls.accept(socket, remote).await?;
        Some(Accepted { io: Io::Tls(Box::new(stream)), is_secured: true, certificate })
    }
}
