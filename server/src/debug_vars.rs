//! `/debug/vars`: what etcd publishes through Go's expvar, but for the Go runtime's memory.
//! Sources: etcd, `server/etcdserver/api/etcdhttp/debug.go`, `server/etcdserver/server.go`, `server/etcdserver/raft.go`.

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::context::Context;

/// The part of Go's raft.Status that Pintle's Raft has, in its order. Ids are in hexadecimal there.
#[derive(Serialize)]
struct RaftStatus {
    id: String,
    term: u64,
    commit: u64,
    lead: String,
    #[serde(rename = "raftState")]
    raft_state: &'static str,
    applied: u64,
}

pub fn page(ctx: &Context) -> Response {
    let cmdline: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let vars = [
        ("cmdline", json!(cmdline).to_string()),
        ("file_descriptor_limit", file_descriptor_limit().to_string()),
        ("raft.status", raft_status(ctx)),
    ];
    let lines: Vec<String> = vars.iter().map(|(name, value)| format!("{}: {value}", Value::from(*name))).collect();
    let body = format!("{{\n{}\n}}\n", lines.join(",\n"));
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}

fn raft_status(ctx: &Context) -> String {
    let status = ctx.node.status();
    let raft_state = match (status.is_leader, status.leader) {
        (true, _) => "StateLeader",
        (false, Some(_)) => "StateFollower",
        // It looks for a leader.
        (false, None) => "StateCandidate",
    };
    let status = RaftStatus {
        id: ctx.member.to_string(),
        term: status.term,
        commit: status.committed_index,
        lead: status.leader.map_or("0".into(), |leader| leader.to_string()),
        raft_state,
        applied: status.applied_index,
    };
    serde_json::to_string(&status).expect("texts and numbers are JSON")
}

/// How many files the process may have open; 0 where the system does not tell, as in etcd.
fn file_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a structure of the type that is asked for, and outlives the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    if result == 0 { limit.rlim_cur } else { 0 }
}
