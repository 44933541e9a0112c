//! `/members/hashkv` on the peer port: one member's HashKV, asked for by another outside of Raft.
//! Source: etcd, `server/etcdserver/corrupt.go` (hashKVHandler, getPeerHashKVs, HashByRev).

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use proto::{EtcdError, MemberId};
use serde::{Deserialize, Serialize};
use storage::HashKv;

use crate::{context::Context, http, join::CLUSTER_HEADER};

pub const PATH: &str = "/members/hashkv";
const OTHER_CLUSTER: &str = "cluster ID mismatch";
/// Beside two election timeouts. (etcd: `config.go`, ReqTimeout.)
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What a member had to say.
pub struct PeerHash {
    pub member: MemberId,
    pub answer: Result<HashKv, Unanswered>,
}

/// Why there is no hash of a member.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("{}", EtcdError::FutureRev)]
    FutureRevision,
    #[error("{}", EtcdError::Compacted)]
    Compacted,
    #[error("{OTHER_CLUSTER}")]
    OtherCluster,
    #[error("{0}")]
    Other(String),
}

#[derive(Serialize, Deserialize)]
struct Question {
    #[serde(default)]
    revision: i64,
}

/// As Go writes etcd's HashKVResponse.
#[derive(Serialize, Deserialize)]
struct Answer {
    header: Header,
    #[serde(default, skip_serializing_if = "is_zero")]
    hash: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    compact_revision: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    hash_revision: i64,
}

#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(default)]
    revision: i64,
}

fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}

impl From<HashKv> for Answer {
    fn from(HashKv { hash, revision, hash_revision, compact_revision }: HashKv) -> Answer {
        Answer { header: Header { revision }, hash, compact_revision, hash_revision }
    }
}

impl From<Answer> for HashKv {
    fn from(Answer { header, hash, compact_revision, hash_revision }: Answer) -> HashKv {
        HashKv { hash, revision: header.revision, hash_revision, compact_revision }
    }
}

/// How long an answer of another member is waited for.
pub fn patience(ctx: &Context) -> Duration {
    REQUEST_TIMEOUT + 2 * ctx.election_timeout
}

/// Asks all other members at once for their hash at `revision`.
pub async fn ask(ctx: &Context, revision: i64) -> Vec<PeerHash> {
    let others =
        ctx.node.members().into_iter().filter(|member| member.id != ctx.member && !member.peer_urls.is_empty());
    let asked = others.map(|member| async move {
        PeerHash { member: member.id, answer: ask_one(ctx, member.id, &member.peer_urls, revision).await }
    });
    futures::future::join_all(asked).await
}

async fn ask_one(ctx: &Context, member: MemberId, urls: &[String], revision: i64) -> Result<HashKv, Unanswered> {
    let mut last = Unanswered::Other("there is no URL of the member".into());
    for url in urls {
        match ask_url(ctx, url, revision).await {
            Ok(hash) => return Ok(hash),
            Err(error) => {
                tracing::warn!(
                    local_member_id = %ctx.member,
                    remote_member_id = %member,
                    requested_revision = revision,
                    remote_peer_endpoint = url,
                    %error,
                    "failed hash kv request"
                );
                last = error;
            }
        }
    }
    Err(last)
}

async fn ask_url(ctx: &Context, url: &str, revision: i64) -> Result<HashKv, Unanswered> {
    let other = |error: &dyn std::fmt::Display| Unanswered::Other(error.to_string());
    let question = serde_json::to_vec(&Question { revision }).map_err(|error| other(&error))?;
    let headers = [(CLUSTER_HEADER, ctx.cluster.to_string())];
    let answer = ctx.peer_http.get_with(url, PATH, &headers, question, patience(ctx)).await;
    let answer = answer.map_err(|error| other(&error))?;
    match (answer.status, answer.text()) {
        (StatusCode::BAD_REQUEST, text) if text.contains(without_name(EtcdError::Compacted.message())) => {
            Err(Unanswered::Compacted)
        }
        (StatusCode::BAD_REQUEST, text) if text.contains(without_name(EtcdError::FutureRev.message())) => {
            Err(Unanswered::FutureRevision)
        }
        (StatusCode::PRECONDITION_FAILED, text) if text.contains(OTHER_CLUSTER) => Err(Unanswered::OtherCluster),
        _ => answer.json::<Answer>().map(HashKv::from).map_err(|error| other(&error)),
    }
}

/// Answers another member.
pub async fn answer(State(ctx): State<Arc<Context>>, headers: HeaderMap, body: Bytes) -> Response {
    let cluster = ctx.cluster.to_string();
    if headers.get(CLUSTER_HEADER).is_some_and(|asked| !asked.is_empty() && asked.as_bytes() != cluster.as_bytes()) {
        return http::error(StatusCode::PRECONDITION_FAILED, OTHER_CLUSTER);
    }
    let Ok(Question { revision }) = serde_json::from_slice(&body) else {
        return http::error(StatusCode::BAD_REQUEST, "error unmarshalling request");
    };
    match ctx.blocking(move |store| store.hash_kv(revision)).await {
        Ok(hash) => ([(CLUSTER_HEADER, cluster)], Json(Answer::from(hash))).into_response(),
        Err(status) => {
            tracing::warn!(requested_revision = revision, error = status.message(), "failed to get hashKV");
            http::error(StatusCode::BAD_REQUEST, without_name(status.message()))
        }
    }
}

/// Between members, etcd's text of an error does not begin with its name.
fn without_name(text: &str) -> &str {
    text.strip_prefix("etcdserver: ").unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_written_as_etcd_writes_it() {
        let hash = HashKv { hash: 7, revision: 5, hash_revision: 4, compact_revision: -1 };
        let text = serde_json::to_string(&Answer::from(hash)).unwrap();
        assert_eq!(text, r#"{"header":{"revision":5},"hash":7,"compact_revision":-1,"hash_revision":4}"#);
        // What etcd 3.5 sends has no hash_revision.
        let read: Answer = serde_json::from_str(r#"{"header":{"revision":5},"hash":7,"compact_revision":-1}"#).unwrap();
        assert_eq!(HashKv::from(read), HashKv { hash_revision: 0, ..hash });
    }
}
