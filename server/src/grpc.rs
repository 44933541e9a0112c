//! The gRPC services for clients, found by the path of a request.
//!
//! ```text
//! request ── counted, metered ──> KV, Lease, Watch: called at once
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
    FutureExt as _,
    future::{BoxFuture, Either},
};
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use proto::{
    etcdserverpb::{
        auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer, lease_server::LeaseServer,
        maintenance_server::MaintenanceServer,
    },
    raw::watch_server::WatchServer,
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};
use tonic::{Status, body::Body, server::NamedService, service::RoutesBuilder};
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
    kv::KvService,
    lease::{self, LeaseService},
    maintenance::MaintenanceService,
    rpc_count::{Received, RpcCount, Sent},
    too_large,
    watch::{self, WatchService},
};

/// What a request may be longer than `--max-request-bytes` on the wire, as in etcd.
pub const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body as the services read it.
type RequestBody<B> = Received<Metered<B>>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Grpc {
    kv: KvServer<KvService>,
    lease: LeaseServer<LeaseService>,
    watch: WatchServer<WatchService>,
    others: Router,
    names: Arc<Vec<&'static str>>,
    requests: Requests,
    count: RpcCount,
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
                $server::new($service).max_decoding_message_size(max).max_encoding_message_size(usize::MAX)
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
        Ok(Grpc {
            count: RpcCount { metrics: ctx.metrics.clone(), slow },
            requests: Requests::new(max),
            kv: limited!(KvServer, KvService::new(ctx.clone())),
            watch: limited!(WatchServer, WatchService::new(ctx.clone(), hub)),
            lease: limited!(LeaseServer, LeaseService::new(ctx, clock)),
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
        let counts = self.count.begin(&request);
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
            response.map(|body| Answer { body, sent, _held: held })
        }
    }

    fn call<B>(&self, request: Request<RequestBody<B>>) -> impl Future<Output = Response<Body>> + Send + use<B>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let answer = match Direct::of(request.uri().path()) {
            Some(Direct::Kv) => self.kv.clone().call(request),
            Some(Direct::Lease) => self.lease.clone().call(request),
            Some(Direct::Watch) => self.watch.clone().call(request),
            None => {
                let answer = self.others.clone().call(request.map(axum::body::Body::new));
                return Either::Right(answer.map(|answer| infallible(answer).map(Body::new)));
            }
        };
        Either::Left(answer.map(infallible))
    }
}

enum Direct {
    Kv,
    Lease,
    Watch,
}

impl Direct {
    fn of(path: &str) -> Option<Direct> {
        let (service, _) = path.strip_prefix("/etcdserverpb.")?.split_once('/')?;
        match service {
            "KV" => Some(Direct::Kv),
            "Lease" => Some(Direct::Lease),
            "Watch" => Some(Direct::Watch),
            _ => None,
        }
    }
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

/// The body of an answer: what a service gives, counted, and held until it is sent.
pub struct Answer {
    body: Body,
    sent: Option<Sent>,
    _held: Option<Arc<Held>>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(Ok(frame)), Some(sent)) = (&frame, &mut self.sent) {
            sent.see(frame);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
