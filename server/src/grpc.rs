//! The gRPC services for clients, found by the path of a request.
//!
//! ```text
//! request ── counted, metered ──> a unary call of KV: message in, message out
//!                             ├─> LeaseKeepAlive, Watch: a stream of messages, encoded where they are made
//!                             ├─> what else there is of KV, Lease and Watch: called at once
//!                             └─> the others, which are called seldom: a router
//! answer  <── etcd's words, counted, held until it is sent
//! ```
//! What happens to every request is done here in one place and not by layers: each layer would put request, answer and
//! what computes it into boxes of its own, which costs as much as the work it does.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Either},
};
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use proto::{
    etcdserverpb::{
        auth_server::AuthServer,
        cluster_server::ClusterServer,
        kv_server::{Kv as _, KvServer},
        lease_server::LeaseServer,
        maintenance_server::MaintenanceServer,
    },
    raw::watch_server::WatchServer,
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};
use tonic::{Status, body::Body, metadata::MetadataMap, server::NamedService, service::RoutesBuilder};
use tower::Service;

use crate::{
    auth::AuthService,
    cluster::ClusterService,
    concurrency::{self, ElectionService, LockService},
    context::Context,
    guard::{
        answers::{self, Held},
        requests::{Metered, Requests, Share},
    },
    http2,
    kv::KvService,
    lease::{self, LeaseService},
    maintenance::MaintenanceService,
    rpc_count::{Kind, Received, RpcCount, Sent},
    streaming::{self, Encoded},
    too_large, unary,
    watch::{self, WatchService},
};

/// What a request may be longer than `--max-request-bytes` on the wire, as in etcd.
pub const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;

const GRPC_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body as the services read it.
type RequestBody<B> = Received<Metered<B>>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Grpc {
    kv_service: Arc<KvService>,
    /// What of it is no unary call in plain bytes.
    kv: KvServer<KvService>,
    lease_service: Arc<LeaseService>,
    lease: LeaseServer<LeaseService>,
    watch_service: Arc<WatchService>,
    watch: WatchServer<WatchService>,
    others: Router,
    names: Arc<Vec<&'static str>>,
    requests: Requests,
    count: RpcCount,
    message_bytes_max: usize,
}

impl Grpc {
    /// `slow`: a unary call that takes longer is told of in the log.
    pub async fn new(
        ctx: Arc<Context>,
        hub: Arc<watch::Hub>,
        clock: Arc<lease::Clock>,
        slow: Duration,
    ) -> anyhow::Result<Grpc> {
        let max = ctx.limits.max_request_bytes.saturating_add(GRPC_OVERHEAD_BYTES);
        let local = concurrency::Local::new(ctx.clone(), hub.clone(), clock.clone());
        // Answers are of any size, as in etcd.
        macro_rules! limited {
            ($server:ident, $service:expr) => {
                limited!($server, new, $service)
            };
            ($server:ident, $new:ident, $service:expr) => {
                $server::$new($service).max_decoding_message_size(max).max_encoding_message_size(usize::MAX)
            };
        }
        let (health, health_server) = tonic_health::server::health_reporter();
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let mut others = Others::default();
        others.add(limited!(ClusterServer, ClusterService::new(ctx.clone())));
        others.add(limited!(MaintenanceServer, MaintenanceService::new(ctx.clone(), health)));
        others.add(limited!(AuthServer, AuthService::new(ctx.clone())));
        others.add(limited!(ElectionServer, ElectionService::new(local.clone())));
        others.add(limited!(LockServer, LockService::new(local)));
        others.add(health_server);
        others.add(reflection().build_v1()?);
        others.add(reflection().build_v1alpha()?);
        let kv = Arc::new(KvService::new(ctx.clone()));
        let watch = Arc::new(WatchService::new(ctx.clone(), hub));
        let lease = Arc::new(LeaseService::new(ctx.clone(), clock));
        Ok(Grpc {
            message_bytes_max: max,
            count: RpcCount { metrics: ctx.metrics.clone(), slow },
            requests: Requests::new(max),
            kv: limited!(KvServer, from_arc, kv.clone()),
            kv_service: kv,
            watch: limited!(WatchServer, from_arc, watch.clone()),
            watch_service: watch,
            lease: limited!(LeaseServer, from_arc, lease.clone()),
            lease_service: lease,
            others: others.routes.routes().prepare().into_axum_router(),
            names: Arc::new(others.names),
        })
    }

    /// Whether this path is one of those that are called often, and so worth a way of its own.
    pub fn is_direct(path: &str) -> bool {
        Direct::of(path).is_some()
    }

    /// The services as routes among others.
    pub fn routes(self) -> Router {
        let direct =
            [KvServer::<KvService>::NAME, LeaseServer::<LeaseService>::NAME, WatchServer::<WatchService>::NAME];
        let names = self.names.clone();
        let add = |routes: Router, name: &&str| routes.route_service(&format!("/{name}/{{*method}}"), self.clone());
        names.iter().chain(&direct).fold(Router::new(), add)
    }

    /// Carries a request out.
    pub fn answer<B>(&self, request: Request<B>) -> impl Future<Output = Response<Answer>> + Send + use<B>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let counts = self.count.kind(request.uri().path(), request.headers()).map(Kind::begin);
        let share = Share::default();
        let (received, sent) = counts.unzip();
        let request = request.map(|body| {
            let body = Metered::new(body, self.requests.clone(), share.clone());
            Received { body, messages: received }
        });
        let answer = self.call(request);
        async move {
            let response = answer.await;
            // A unary call has been carried out; a stream goes on with what it holds.
            share.lock().take();
            let mut response = too_large::in_etcds_words(response);
            let held = answers::held(&mut response);
            let sent = sent.and_then(|sent: Sent| sent.unless_ended(response.headers()));
            response.map(|content| Answer { content, sent, _held: held })
        }
    }

    fn call<B>(&self, request: Request<RequestBody<B>>) -> impl Future<Output = Response<Content>> + Send + use<B>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let of_service = |answer: Result<Response<Body>, Infallible>| infallible(answer).map(Content::Stream);
        let answer = match Direct::of(request.uri().path()) {
            Some(Direct::Unary(call)) if unary::is_plain(request.headers()) => {
                return Either::Left(Either::Left(self.call_unary(call, request)));
            }
            Some(Direct::Streaming(call)) if unary::is_plain(request.headers()) => {
                return Either::Left(Either::Right(std::future::ready(self.call_streaming(call, request))));
            }
            Some(Direct::Unary(_) | Direct::Kv) => self.kv.clone().call(request),
            Some(Direct::Streaming(Streaming::KeepAlive) | Direct::Lease) => self.lease.clone().call(request),
            Some(Direct::Streaming(Streaming::Watch) | Direct::Watch) => self.watch.clone().call(request),
            None => {
                let answer = self.others.clone().call(request.map(axum::body::Body::new));
                let answer = answer.map(|answer| infallible(answer).map(|body| Content::Stream(Body::new(body))));
                return Either::Right(Either::Right(answer));
            }
        };
        Either::Right(Either::Left(answer.map(of_service)))
    }

    fn call_unary<B>(
        &self,
        call: Unary,
        request: Request<RequestBody<B>>,
    ) -> impl Future<Output = Response<Content>> + Send + use<B>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (kv, max) = (self.kv_service.clone(), self.message_bytes_max);
        async move {
            let (parts, body) = request.into_parts();
            let message = match unary::receive(body, max).await {
                Ok(message) => message,
                Err(status) => return status.into_http(),
            };
            let metadata = MetadataMap::from_headers(parts.headers);
            let request = tonic::Request::from_parts(metadata, parts.extensions, message);
            match call.carry_out(kv, request, std::convert::identity).await {
                Ok(answer) => {
                    let (metadata, message, extensions) = answer.into_parts();
                    let mut answer = answer_of(Content::Message(message));
                    answer.headers_mut().extend(metadata.into_headers());
                    *answer.extensions_mut() = extensions;
                    answer
                }
                Err(status) => status.into_http(),
            }
        }
    }

    fn call_streaming<B>(&self, call: Streaming, request: Request<RequestBody<B>>) -> Response<Content>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let (metadata, max) = (MetadataMap::from_headers(parts.headers), self.message_bytes_max);
        macro_rules! requests {
            () => {
                tonic::Request::from_parts(metadata, parts.extensions, streaming::Requests::new(body, max))
            };
        }
        let answers = match call {
            Streaming::KeepAlive => self.lease_service.keep_alives_encoded(requests!()),
            Streaming::Watch => self.watch_service.watch_encoded(requests!()),
        };
        match answers {
            Ok(answers) => answer_of(Content::Messages(answers)),
            Err(status) => status.into_http(),
        }
    }

    /// The unary call at a path, if it is one that [`Grpc::carry_out`] does, and what counts it.
    pub fn unary(&self, path: &str, headers: &HeaderMap) -> Option<(Unary, Arc<Kind>)> {
        match Direct::of(path)? {
            Direct::Unary(call) if unary::is_plain(headers) => Some((call, self.count.kind(path, headers)?)),
            _ => None,
        }
    }

    /// Carries a unary call out, whose message is there, counts it, and gives what `end` makes of the answer.
    pub fn carry_out<O: Send + 'static>(
        &self,
        (call, kind): (Unary, Arc<Kind>),
        request: tonic::Request<Bytes>,
        end: impl FnOnce(http2::Message) -> O + Send + 'static,
    ) -> BoxFuture<'static, O> {
        let counted = kind.begin_unary(request.get_ref().len());
        call.carry_out(self.kv_service.clone(), request, |answer| {
            counted.end(answer.as_ref().map(|answer| answer.get_ref().len()));
            end(answer.map(|answer| {
                let (_, message, mut extensions) = answer.into_parts();
                (message, answers::held_in(&mut extensions))
            }))
        })
    }
}

/// The unary calls that are made often.
#[derive(Debug, Clone, Copy)]
pub enum Unary {
    Range,
    Put,
    DeleteRange,
    Txn,
}

impl Unary {
    /// Whether the answer may be large.
    pub fn may_answer_much(self) -> bool {
        !matches!(self, Unary::Put)
    }

    fn carry_out<O: Send + 'static>(
        self,
        kv: Arc<KvService>,
        request: tonic::Request<Bytes>,
        end: impl FnOnce(unary::Encoded) -> O + Send + 'static,
    ) -> BoxFuture<'static, O> {
        match self {
            Unary::Range => unary::carry_out(request, |request| kv.range_encoded(request), end),
            Unary::Put => unary::carry_out(request, |request| kv.put_encoded(request), end),
            Unary::DeleteRange => {
                unary::carry_out(request, async move |request| unary::encoded(kv.delete_range(request).await?), end)
            }
            Unary::Txn => unary::carry_out(request, async move |request| unary::encoded(kv.txn(request).await?), end),
        }
    }
}

/// The calls with messages in both directions.
#[derive(Clone, Copy)]
enum Streaming {
    KeepAlive,
    Watch,
}

enum Direct {
    Unary(Unary),
    Streaming(Streaming),
    Kv,
    Lease,
    Watch,
}

impl Direct {
    fn of(path: &str) -> Option<Direct> {
        let (service, method) = path.strip_prefix("/etcdserverpb.")?.split_once('/')?;
        Some(match (service, method) {
            ("KV", "Range") => Direct::Unary(Unary::Range),
            ("KV", "Put") => Direct::Unary(Unary::Put),
            ("KV", "DeleteRange") => Direct::Unary(Unary::DeleteRange),
            ("KV", "Txn") => Direct::Unary(Unary::Txn),
            ("KV", _) => Direct::Kv,
            ("Lease", "LeaseKeepAlive") => Direct::Streaming(Streaming::KeepAlive),
            ("Lease", _) => Direct::Lease,
            ("Watch", "Watch") => Direct::Streaming(Streaming::Watch),
            ("Watch", _) => Direct::Watch,
            _ => return None,
        })
    }
}

fn answer_of(content: Content) -> Response<Content> {
    let mut answer = Response::new(content);
    answer.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
    answer
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    result.unwrap_or_else(|never| match never {})
}

#[derive(Default)]
struct Others {
    routes: RoutesBuilder,
    names: Vec<&'static str>,
}

impl Others {
    fn add<S>(&mut self, service: S)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.routes.add_service(service);
        self.names.push(S::NAME);
    }
}

impl Service<Request<axum::body::Body>> for Grpc {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Answer>, Infallible>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<axum::body::Body>) -> Self::Future {
        self.answer(request).map(Ok).boxed()
    }
}

/// What a service answers.
#[derive(Default)]
enum Content {
    /// One message, and that the call has succeeded.
    Message(Bytes),
    /// The message has been sent.
    Success,
    /// Messages, one or more at a time, and then that the call has succeeded or why not.
    Messages(Encoded),
    Stream(Body),
    /// All has been said in the headers.
    #[default]
    Nothing,
}

/// The body of an answer: what a service gives, counted, and held until it is sent.
pub struct Answer {
    content: Content,
    sent: Option<Sent>,
    _held: Option<Arc<Held>>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match std::mem::take(&mut self.content) {
            Content::Message(message) => {
                self.content = Content::Success;
                Some(Ok(Frame::data(message)))
            }
            Content::Success => Some(Ok(Frame::trailers(success()))),
            Content::Messages(mut messages) => {
                let next = messages.poll_next_unpin(cx);
                if matches!(next, Poll::Pending | Poll::Ready(Some(Ok(_)))) {
                    self.content = Content::Messages(messages);
                }
                Some(Ok(match std::task::ready!(next) {
                    Some(Ok(bytes)) => Frame::data(bytes),
                    Some(Err(status)) => Frame::trailers(refusal(&status)),
                    None => Frame::trailers(success()),
                }))
            }
            Content::Stream(mut body) => {
                let frame = Pin::new(&mut body).poll_frame(cx);
                self.content = Content::Stream(body);
                std::task::ready!(frame)
            }
            Content::Nothing => None,
        };
        if let (Some(Ok(frame)), Some(sent)) = (&frame, &mut self.sent) {
            sent.see(frame);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Message(_) | Content::Success | Content::Messages(_) => false,
            Content::Stream(body) => body.is_end_stream(),
            Content::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            // Trailers follow: nobody needs to know the length beforehand.
            Content::Message(_) | Content::Success | Content::Messages(_) => SizeHint::default(),
            Content::Stream(body) => body.size_hint(),
            Content::Nothing => SizeHint::with_exact(0),
        }
    }
}

fn refusal(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers).expect("a status stands in headers");
    trailers
}

fn success() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}
