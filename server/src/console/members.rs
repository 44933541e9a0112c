//! The members and their states. The browser reaches one member only, so this one asks the others, on their peer ports,
//! where members know each other.

use std::{sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, routing::get};
use proto::{MemberId, etcdserverpb::AlarmMember};
use raft::Member;
use serde::{Deserialize, Serialize};

use crate::{ETCD_VERSION, context::Context, maintenance};

const PATH: &str = "/pintle/state";
/// A member that takes longer is shown as one that does not answer.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What one member says of itself. Ids are in hexadecimal, as etcd writes them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberState {
    pintle: String,
    leader: String,
    term: u64,
    last_log_index: u64,
    committed_index: u64,
    applied_index: u64,
    revision: i64,
    compacted: i64,
    keys: usize,
    size_bytes: i64,
    size_in_use_bytes: i64,
    quota_bytes: i64,
    problems: Vec<String>,
}

#[derive(Serialize)]
pub struct Overview {
    cluster: String,
    /// The one that answers.
    member: String,
    etcd: &'static str,
    members: Vec<Seen>,
    alarms: Vec<Alarm>,
}

#[derive(Serialize)]
struct Seen {
    id: String,
    name: String,
    peer_urls: Vec<String>,
    client_urls: Vec<String>,
    is_learner: bool,
    state: Option<MemberState>,
    /// Why there is no state.
    error: Option<String>,
}

#[derive(Serialize)]
struct Alarm {
    member: String,
    kind: &'static str,
}

/// What the other members ask.
pub fn peer_routes(ctx: Arc<Context>) -> Router {
    let state = |State(ctx): State<Arc<Context>>| async move { own(&ctx).map(Json).map_err(|error| error.to_string()) };
    Router::new().route(PATH, get(state)).with_state(ctx)
}

pub async fn overview(ctx: &Arc<Context>) -> Overview {
    let members = futures::future::join_all(ctx.node.members().into_iter().map(|member| look_at(ctx, member))).await;
    let alarm =
        |alarm: AlarmMember| Alarm { member: MemberId(alarm.member_id).to_string(), kind: alarm.alarm().as_str_name() };
    Overview {
        cluster: ctx.cluster.to_string(),
        member: ctx.member.to_string(),
        etcd: ETCD_VERSION,
        members,
        alarms: ctx.store.alarms().into_iter().map(alarm).collect(),
    }
}

async fn look_at(ctx: &Context, member: Member) -> Seen {
    let state = if member.id == ctx.member {
        own(ctx).map_err(|error| error.to_string())
    } else {
        ask(ctx, &member.peer_urls).await
    };
    let (state, error) = match state {
        Ok(state) => (Some(state), None),
        Err(error) => (None, Some(error)),
    };
    Seen {
        id: member.id.to_string(),
        name: member.name,
        peer_urls: member.peer_urls,
        client_urls: member.client_urls,
        is_learner: member.is_learner,
        state,
        error,
    }
}

/// The state of another member, by the first of its URLs that answers.
async fn ask(ctx: &Context, peer_urls: &[String]) -> Result<MemberState, String> {
    let mut reason = String::from("it has no peer URL");
    for url in peer_urls {
        match ctx.peer_http.get(url, PATH, PATIENCE).await {
            Ok(answer) => return answer.json(),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}

fn own(ctx: &Context) -> Result<MemberState, storage::StorageError> {
    let (status, size) = (ctx.node.status(), ctx.store.size()?);
    Ok(MemberState {
        pintle: env!("CARGO_PKG_VERSION").into(),
        leader: status.leader.map_or_else(String::new, |leader| leader.to_string()),
        term: status.term,
        last_log_index: status.last_log_index,
        committed_index: status.committed_index,
        applied_index: status.applied_index,
        revision: ctx.store.revision(),
        compacted: ctx.store.compacted_revision(),
        keys: ctx.store.key_count(),
        size_bytes: size.on_disk,
        size_in_use_bytes: size.in_use,
        quota_bytes: ctx.limits.quota_backend_bytes,
        problems: maintenance::problems(&status, &ctx.store.alarms()),
    })
}
