//! The console: a web page about the cluster, with `--console`. It shows, and changes nothing.
//!
//! ```text
//! GET /console/               the page: HTML, CSS and JavaScript of page/, compiled in
//! GET /console/api/overview   members and their states, alarms                   members.rs
//! GET /console/api/series     a second-by-second record of this member            series.rs
//! GET /console/api/prefixes   keys, bytes and writes below a prefix               prefixes.rs, writes.rs
//! GET /console/api/history    the versions of a key                               storage's history.rs
//! POST /v3/…                  keys, watches, log-in: the gateway's
//! ```
//!
//! It is on the client listeners, so that the gateway has its origin, with the TLS, host names and tokens of any client.
//! The policy in the page's headers forbids whatever is not of this origin.
//!
//! Invariant: what a caller may not read through the API, no answer here is made of.

mod members;
mod page;
mod prefixes;
mod series;
mod writes;

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use proto::{EtcdError, command::AuthInfo};
use serde::Serialize;
use storage::{AuthState, Right, host};
use tokio::sync::Semaphore;
use tonic::Status;

use self::series::Series;
pub use self::{members::peer_routes, writes::Writes};
use crate::{auth::Caller, context::Context, gateway};

const HISTORY_PAGE: usize = 50;

/// What the page asks is answered by this.
struct Console {
    ctx: Arc<Context>,
    series: Series,
    writes: Arc<Writes>,
    /// Sizes are found by reading: one reader at a time.
    scans: Semaphore,
}

type Parameters = Query<HashMap<String, String>>;

/// The page and its data. The record begins now, and goes on until the process stops.
pub fn routes(ctx: Arc<Context>, writes: Arc<Writes>) -> Router {
    let console = Arc::new(Console { ctx, series: Series::default(), writes, scans: Semaphore::new(1) });
    host::spawn(series::record(console.clone()));
    let api = Router::new()
        .route("/console/api/overview", get(overview))
        .route("/console/api/series", get(series_since))
        .route("/console/api/prefixes", get(prefixes_below))
        .route("/console/api/history", get(history))
        .with_state(console);
    api.merge(page::routes())
}

async fn overview(State(console): State<Arc<Console>>, headers: HeaderMap) -> Response {
    answer(async {
        console.ctx.auth.require_user(&caller(&console.ctx, &headers)).await?;
        Ok(members::overview(&console.ctx).await)
    })
    .await
}

async fn series_since(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    Query(parameters): Parameters,
) -> Response {
    answer(async {
        console.ctx.auth.require_user(&caller(&console.ctx, &headers)).await?;
        Ok(console.series.since(number(&parameters, "since")?))
    })
    .await
}

async fn prefixes_below(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    Query(parameters): Parameters,
) -> Response {
    answer(async {
        let prefix = key(&parameters, "prefix")?;
        let (start, end) = prefixes::range(&prefix);
        let _turn = console.scans.acquire().await.map_err(|_| EtcdError::Stopped)?;
        let read = prefixes::sizes(&console.ctx, &console.writes, prefix);
        let check = may_read(&start, &end);
        console.ctx.read_by(&caller(&console.ctx, &headers), check, read).await
    })
    .await
}

/// The versions of a key, for the page.
#[derive(Serialize)]
struct History {
    versions: Vec<Version>,
    more: bool,
    compacted: i64,
}

#[derive(Serialize)]
struct Version {
    revision: i64,
    /// None for a delete.
    value: Option<String>,
    version: i64,
    create_revision: i64,
    lease: String,
}

async fn history(State(console): State<Arc<Console>>, headers: HeaderMap, Query(parameters): Parameters) -> Response {
    answer(async {
        let (key, before) = (key(&parameters, "key")?, number(&parameters, "before")?);
        if key.is_empty() {
            return Err(EtcdError::EmptyKey.into());
        }
        let ctx = &console.ctx;
        let wanted = key.clone();
        let read = ctx.blocking(move |store| store.history(&wanted, before, HISTORY_PAGE));
        let (versions, more) = ctx.read_by(&caller(ctx, &headers), may_read(&key, b""), read).await?;
        let versions = versions.into_iter().map(Version::from).collect();
        Ok(History { versions, more, compacted: ctx.store.compacted_revision() })
    })
    .await
}

impl From<storage::Version> for Version {
    fn from(version: storage::Version) -> Version {
        let kv = version.kv.unwrap_or_default();
        Version {
            revision: version.revision.main,
            value: (kv.version > 0).then(|| BASE64.encode(&kv.value)),
            version: kv.version,
            create_revision: kv.create_revision,
            lease: format!("{:x}", kv.lease),
        }
    }
}

/// Refusals are in the gateway's form.
async fn answer<T: Serialize>(data: impl Future<Output = Result<T, Status>>) -> Response {
    match data.await {
        Ok(data) => ([(header::CACHE_CONTROL, "no-store")], Json(data)).into_response(),
        Err(status) => gateway::refusal(&status),
    }
}

/// As at the gateway, the token counts, and a certificate names nobody.
fn caller(ctx: &Context, headers: &HeaderMap) -> Caller {
    let mut request = tonic::Request::new(());
    if let Some(token) = headers.get(header::AUTHORIZATION).and_then(|token| token.to_str().ok()?.parse().ok()) {
        request.metadata_mut().insert("authorization", token);
    }
    ctx.auth.caller(&request)
}

fn may_read(start: &[u8], end: &[u8]) -> impl FnOnce(&AuthState, Option<&AuthInfo>) -> Result<(), EtcdError> {
    move |auth, info| auth.check_keys(info, start, end, Right::Read)
}

/// A key in the URL, as base64 for URLs.
fn key(parameters: &HashMap<String, String>, name: &str) -> Result<Bytes, Status> {
    let text = parameters.get(name).map_or("", String::as_str);
    let decoded = BASE64.decode(text.trim_end_matches('='));
    decoded.map(Bytes::from).map_err(|error| Status::invalid_argument(format!("{name}={text:?}: {error}")))
}

fn number(parameters: &HashMap<String, String>, name: &str) -> Result<i64, Status> {
    let Some(text) = parameters.get(name) else { return Ok(0) };
    text.parse().map_err(|_| Status::invalid_argument(format!("{name}={text:?} is no whole number")))
}
