//! The HTTP endpoints beside gRPC: health, version, metrics, and the member list for the other members.
//! Source: etcd, `server/etcdserver/api/etcdhttp`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    handler::HandlerWithoutStateExt as _,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use proto::{
    EtcdError,
    etcdserverpb::{AlarmType, MemberPromoteRequest, RangeRequest, cluster_server::Cluster as _},
};
use serde::Serialize;
use serde_json::json;
use tonic::Status;
use tower::Layer as _;

use crate::{
    ETCD_VERSION, access,
    cluster::ClusterService,
    context::Context,
    corruption, debug_vars,
    join::{CLUSTER_HEADER, PeerMember},
    metrics::Now,
    version,
};

type Ctx = State<Arc<Context>>;

/// What `/livez` and `/readyz` look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    DataCorruption,
    LinearizableRead,
    NonLearner,
    SerializableRead,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
            Check::SerializableRead => "serializable_read",
        }
    }
}

const LIVEZ: (&str, &[Check]) = ("livez", &[Check::SerializableRead]);
const READYZ: (&str, &[Check]) =
    ("readyz", &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner]);

/// The endpoints on the client listeners: those of gateway and console, if there are any, and what gives the member's
/// state.
pub fn client_routes(ctx: Arc<Context>, control: Arc<access::Control>, web: Router) -> Router {
    let routes = Router::new().route("/version", get(version)).route("/debug/vars", get(debug_vars));
    let routes = routes.method_not_allowed_fallback(method_not_allowed).with_state(ctx.clone());
    let routes = routes.merge(metrics_routes(ctx)).merge(web);
    routes.layer(middleware::from_fn_with_state(control, access::control))
}

/// Adds what answers a path that nobody has, to HTTP clients by the rules of `control`.
pub fn with_not_found(routes: Router, control: Arc<access::Control>) -> Router {
    let control = middleware::from_fn_with_state(control, access::control);
    routes.fallback_service(control.layer(not_found.into_service()))
}

/// The endpoints on `--listen-metrics-urls`.
pub fn metrics_routes(ctx: Arc<Context>) -> Router {
    let mut routes = Router::new().route("/metrics", get(metrics)).route("/health", get(health));
    for (kind, checks) in [LIVEZ, READYZ] {
        routes = routes.route(
            &format!("/{kind}"),
            get(move |State(ctx): Ctx, request: Request| async move {
                let query = Query::of(&request);
                let wanted = checks.iter().copied().filter(|check| !query.excludes(check.name())).collect();
                checked(&ctx, kind, wanted, query.has("verbose")).await
            }),
        );
        for &check in checks {
            let handler = move |State(ctx): Ctx, request: Request| async move {
                checked(&ctx, kind, vec![check], Query::of(&request).has("verbose")).await
            };
            routes = routes.route(&format!("/{kind}/{}", check.name()), get(handler));
        }
    }
    routes.method_not_allowed_fallback(method_not_allowed).with_state(ctx)
}

/// The endpoints on the peer listeners, beside what members say to each other.
pub fn peer_routes(ctx: Arc<Context>) -> Router {
    Router::new()
        .route("/version", get(version))
        .route("/members", get(members))
        .route(corruption::PATH, get(corruption::answer))
        .route("/members/promote/{id}", post(promote))
        .route(version::ENABLED_PATH, get(version::is_enabled))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(ctx)
}

/// What answers a path that nobody has: gRPC clients in their own way.
pub async fn not_found(uri: Uri, headers: HeaderMap) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if kind.starts_with(b"application/grpc") {
        let service = uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
        return Status::unimplemented(format!("unknown service {service}")).into_http();
    }
    error(StatusCode::NOT_FOUND, "404 page not found")
}

async fn debug_vars(State(ctx): Ctx) -> Response {
    debug_vars::page(&ctx)
}

async fn method_not_allowed() -> Response {
    error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
}

/// etcd's fields in etcd's order, and Pintle's own.
#[derive(Serialize)]
struct Version {
    etcdserver: &'static str,
    etcdcluster: String,
    storage: String,
    pintle: &'static str,
}

async fn version(State(ctx): Ctx) -> Json<Version> {
    Json(Version {
        etcdserver: ETCD_VERSION,
        etcdcluster: version::cluster_text(&ctx.store),
        storage: version::storage_text(&ctx.store),
        pintle: env!("CARGO_PKG_VERSION"),
    })
}

async fn members(State(ctx): Ctx) -> impl IntoResponse {
    let members: Vec<PeerMember> = ctx.node.members().into_iter().map(PeerMember::from).collect();
    (cluster_header(&ctx), Json(members))
}

fn cluster_header(ctx: &Context) -> [(&'static str, String); 1] {
    [(CLUSTER_HEADER, ctx.cluster.to_string())]
}

/// What `Cluster.MemberPromote` does, for etcd's members; the id is decimal. A token stands in `Authorization`.
async fn promote(State(ctx): Ctx, Path(text): Path<String>, headers: HeaderMap) -> Response {
    let Ok(id) = text.parse() else {
        let unknown = error(StatusCode::NOT_FOUND, &format!("member {text} not found in cluster"));
        return (cluster_header(&ctx), unknown).into_response();
    };
    let mut request = tonic::Request::new(MemberPromoteRequest { id });
    if let Some(token) = headers.get(header::AUTHORIZATION).and_then(|token| token.to_str().ok()?.parse().ok()) {
        request.metadata_mut().insert("token", token);
    }
    let response = match ClusterService::new(ctx.clone()).member_promote(request).await {
        Ok(promoted) => {
            let members: Vec<PeerMember> = promoted.into_inner().members.into_iter().map(PeerMember::from).collect();
            Json(members).into_response()
        }
        Err(status) => promotion_refused(&status),
    };
    (cluster_header(&ctx), response).into_response()
}

/// The texts are those of etcd's `membership` package, which clients never see.
fn promotion_refused(status: &Status) -> Response {
    match EtcdError::from_message(status.message()) {
        Some(EtcdError::MemberNotFound) => error(StatusCode::NOT_FOUND, "membership: ID not found"),
        Some(EtcdError::MemberNotLearner) => {
            error(StatusCode::PRECONDITION_FAILED, "membership: can only promote a learner member")
        }
        Some(EtcdError::LearnerNotReady) => error(StatusCode::PRECONDITION_FAILED, status.message()),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "message": "Internal Server Error" }))).into_response(),
    }
}

async fn metrics(State(ctx): Ctx) -> Response {
    let (size, engine) = match ctx.blocking(|store| Ok((store.size()?, store.engine()?))).await {
        Ok(read) => read,
        Err(status) => return error(StatusCode::SERVICE_UNAVAILABLE, status.message()),
    };
    let now = Now {
        status: ctx.node.status(),
        size,
        keys: ctx.store.key_count(),
        revision: ctx.store.revision(),
        compacted: ctx.store.compacted_revision(),
        members: ctx.node.members().iter().map(|member| member.id).collect(),
        stats: ctx.store.stats(),
        engine,
        auth_revision: ctx.store.auth().revision(),
        alarms: ctx
            .store
            .alarms()
            .iter()
            .map(|alarm| (proto::MemberId(alarm.member_id), alarm.alarm().as_str_name().into()))
            .collect(),
        cluster_version: version::of_cluster(&ctx.store).map_or_else(String::new, |version| version.to_string()),
    };
    match ctx.metrics.page(&now) {
        Ok(page) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response(),
        Err(reason) => error(StatusCode::INTERNAL_SERVER_ERROR, &reason.to_string()),
    }
}

async fn health(State(ctx): Ctx, request: Request) -> Response {
    let query = Query::of(&request);
    let reason = unhealthy(&ctx, &query).await;
    let body =
        json!({ "health": if reason.is_none() { "true" } else { "false" }, "reason": reason.as_deref().unwrap_or("") });
    if reason.is_none() {
        ctx.metrics.health_success.inc();
        return body.to_string().into_response();
    }
    ctx.metrics.health_failures.inc();
    tracing::warn!(output = %body, "/health error");
    error(StatusCode::SERVICE_UNAVAILABLE, &body.to_string())
}

async fn unhealthy(ctx: &Arc<Context>, query: &Query) -> Option<String> {
    let is_serializable = query.first("serializable") == Some("true");
    for alarm in ctx.store.alarms() {
        let name = match alarm.alarm() {
            AlarmType::Nospace => "NOSPACE",
            AlarmType::Corrupt => "CORRUPT",
            AlarmType::None => "UNKNOWN",
        };
        if !query.excludes(name) {
            return Some(format!("ALARM {name}"));
        }
    }
    if !is_serializable && ctx.node.status().leader.is_none() {
        return Some("RAFT NO LEADER".into());
    }
    read(ctx, is_serializable).await.err().map(|status| format!("RANGE ERROR:{}", status.message()))
}

/// Runs the checks and answers as etcd does: the details when one fails, or when asked.
async fn checked(ctx: &Arc<Context>, kind: &str, checks: Vec<Check>, is_verbose: bool) -> Response {
    let (mut details, mut is_good) = (String::new(), true);
    for check in checks {
        let result = run(ctx, check).await;
        ctx.metrics.checked(kind, check.name(), result.is_ok());
        is_good &= result.is_ok();
        details += &match result {
            Ok(()) => format!("[+]{} ok\n", check.name()),
            Err(reason) => format!("[-]{} failed: {reason}\n", check.name()),
        };
    }
    if !is_good {
        tracing::error!(path = format!("/{kind}"), reason = details, "Health check error");
        return error(StatusCode::SERVICE_UNAVAILABLE, &details);
    }
    let details = if is_verbose { details } else { String::new() };
    text(StatusCode::OK, format!("{details}ok\n"))
}

async fn run(ctx: &Arc<Context>, check: Check) -> Result<(), String> {
    match check {
        Check::DataCorruption => {
            let is_corrupt = ctx.store.alarms().iter().any(|alarm| alarm.alarm() == AlarmType::Corrupt);
            if is_corrupt { Err("alarm activated: CORRUPT".into()) } else { Ok(()) }
        }
        Check::NonLearner if ctx.node.status().is_learner => Err("not supported for learner".into()),
        Check::NonLearner => Ok(()),
        Check::LinearizableRead => read(ctx, false).await.map_err(|status| status.message().to_string()),
        Check::SerializableRead => read(ctx, true).await.map_err(|status| status.message().to_string()),
    }
}

async fn read(ctx: &Arc<Context>, is_serializable: bool) -> Result<(), Status> {
    if ctx.shutdown.is_cancelled() {
        return Err(EtcdError::Stopped.into());
    }
    if !is_serializable {
        ctx.read_barrier().await?;
    }
    let request = RangeRequest { key: "\0".into(), limit: 1, keys_only: true, ..Default::default() };
    ctx.blocking(move |store| store.range(&request)).await.map(|_| ())
}

/// The query of a URL, as pairs. Values are plain words here, so nothing is decoded.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(request: &Request) -> Query {
        Query::parse(request.uri().query().unwrap_or(""))
    }

    fn parse(query: &str) -> Query {
        let pair = |text: &str| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            (name.to_string(), value.to_string())
        };
        Query(query.split('&').filter(|text| !text.is_empty()).map(pair).collect())
    }

    fn has(&self, name: &str) -> bool {
        self.first(name).is_some()
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn excludes(&self, check: &str) -> bool {
        self.0.iter().any(|(name, value)| name == "exclude" && value == check)
    }
}

fn text(code: StatusCode, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (code, headers, body).into_response()
}

/// As Go's `http.Error`.
pub fn error(code: StatusCode, reason: &str) -> Response {
    text(code, format!("{reason}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_may_exclude_several_checks() {
        let query = Query::parse("exclude=a&verbose&exclude=b&serializable=true");
        assert!(query.excludes("a") && query.excludes("b") && !query.excludes("verbose"));
        assert!(query.has("verbose") && !query.has("a"));
        assert_eq!(query.first("serializable"), Some("true"));
    }

    #[tokio::test]
    async fn an_unknown_path_is_answered_in_the_clients_way() {
        let grpc = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))]);
        let uri = Uri::from_static("/some.Service/Method");
        let status = Status::from_header_map(not_found(uri.clone(), grpc).await.headers()).unwrap();
        assert_eq!((status.code(), status.message()), (tonic::Code::Unimplemented, "unknown service some.Service"));
        assert_eq!(not_found(uri, HeaderMap::new()).await.status(), StatusCode::NOT_FOUND);
    }
}
