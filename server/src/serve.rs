//! Listeners and connections: gRPC and HTTP on one port, told apart by their paths.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use bytes::{Bytes, BytesMut};
use futures::{
    FutureExt as _,
    future::{BoxFuture, Either},
};
use http::{Extensions, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use proto::http2::PREFACE;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::metadata::MetadataMap;
use tower::ServiceExt as _;

use crate::{
    config::Connections,
    grpc::{BoxError, Grpc, Unary},
    guard::{Guard, answers::Answers},
    http2,
    listen::{Io, Listener, Socket},
    rpc_count::Kind,
    tls::{self, ClientCertificate},
};

/// What a member may send ahead, so that a large request is not slowed down by round trips.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Each connection may fill its window with what is not read yet.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// What is read at once of what a client begins with.
const BEGIN_BYTES: usize = 4096;
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
        let opened = async {
            let mut accepted = door.open(socket, remote).await?;
            let begun = match door.grpc {
                Some(_) => timeout(BEGIN_MAX, begin(&mut accepted.io)).await.ok()?.ok()?,
                None => BytesMut::new(),
            };
            Some((accepted, begun))
        };
        let Some(Some((accepted, mut begun))) = self.stop.run_until_cancelled(opened).await else { return };
        let Accepted { io, is_secured, certificate } = accepted;
        let client = Client { routes: door.routes, answers: Answers::new(), is_secured, certificate };
        match door.grpc {
            Some(grpc) if begun.starts_with(PREFACE) => {
                let input = begun.split_off(PREFACE.len());
                http2::serve(io, input, Caller { grpc, client }, &self.connections, &self.stop).await;
            }
            _ => self.serve_with_hyper(Prefixed { begun, io }, client).await,
        }
    }

    async fn serve_with_hyper(&self, io: Prefixed, client: Client) {
        let io = Guard::new(io, BEGIN_MAX, self.connections.ping_min_time);
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| client.route(request));
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

/// What a client has begun with: as much as tells HTTP/2 from 1, and what came with it.
async fn begin(io: &mut Io) -> io::Result<BytesMut> {
    let mut begun = BytesMut::with_capacity(BEGIN_BYTES);
    while begun.len() < PREFACE.len() && PREFACE.starts_with(&begun) {
        if io.read_buf(&mut begun).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(begun)
}

/// A stream of which some has been read already.
struct Prefixed {
    begun: BytesMut,
    io: Io,
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.begun.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let length = self.begun.len().min(buf.remaining());
        buf.put_slice(&self.begun.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The other end of a connection.
#[derive(Clone)]
struct Client {
    routes: Router,
    answers: Arc<Answers>,
    is_secured: bool,
    certificate: Option<ClientCertificate>,
}

impl Client {
    /// Adds what is known of who makes a request, and the answers of the connection.
    fn mark(&self, extensions: &mut Extensions) {
        self.mark_caller(extensions);
        extensions.insert(self.answers.clone());
    }

    fn mark_caller(&self, extensions: &mut Extensions) {
        if self.is_secured {
            extensions.insert(tls::Secured);
        }
        if let Some(certificate) = &self.certificate {
            extensions.insert(certificate.clone());
        }
    }

    fn route<B>(
        &self,
        mut request: Request<B>,
    ) -> impl Future<Output = Result<Response<axum::body::Body>, Infallible>> + Send + use<B>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.mark(request.extensions_mut());
        self.routes.clone().oneshot(request.map(axum::body::Body::new))
    }
}

/// The other end of a connection, by HTTP/2.
struct Caller {
    grpc: Grpc,
    client: Client,
}

/// A kind of unary call: found once for all whose headers are the same.
struct Call {
    call: Unary,
    kind: Arc<Kind>,
    metadata: MetadataMap,
}

impl http2::Handler for Caller {
    type Unary = Arc<Call>;

    fn unary(&self, head: &http2::Head) -> Option<Arc<Call>> {
        let (call, kind) = self.grpc.unary(head.uri.path(), &head.headers)?;
        let mut metadata = MetadataMap::new();
        // What the services ask for.
        for name in ["hasleader", "token", "authorization", "grpcgateway-accept"] {
            if let Some(value) = head.headers.get(name) {
                metadata.as_mut().insert(name, value.clone());
            }
        }
        Some(Arc::new(Call { call, kind, metadata }))
    }

    fn carry_out<O: Send + 'static>(
        &self,
        call: Arc<Call>,
        message: Bytes,
        end: impl FnOnce(http2::Message) -> O + Send + 'static,
    ) -> BoxFuture<'static, O> {
        let mut request = tonic::Request::from_parts(call.metadata.clone(), Extensions::new(), message);
        self.client.mark_caller(request.extensions_mut());
        if call.call.may_answer_much() {
            request.extensions_mut().insert(self.client.answers.clone());
        }
        self.grpc.carry_out((call.call, call.kind.clone()), request, end)
    }

    fn answer(
        &self,
        mut request: Request<http2::Body>,
    ) -> impl Future<Output = Response<http2::Content>> + Send + 'static {
        if Grpc::is_direct(request.uri().path()) {
            self.client.mark(request.extensions_mut());
            let answer = self.grpc.answer(request);
            return Either::Left(answer.map(|answer| answer.map(boxed)));
        }
        let answer = self.client.route(request);
        Either::Right(answer.map(|answer| answer.unwrap_or_else(|never| match never {}).map(boxed)))
    }
}

fn boxed<B>(body: B) -> http2::Content
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
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
