//! What a member asks the leader about leases, since only the leader knows when they expire.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::{
    LeaseId,
    etcdserverpb::{LeaseKeepAliveRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse},
};
use raft::LeaderHandler;
use tonic::Status;

use super::Clock;

/// One of the two.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    #[prost(message, optional, tag = "1")]
    pub keep_alive: Option<LeaseKeepAliveRequest>,
    #[prost(message, optional, tag = "2")]
    pub time_to_live: Option<LeaseTimeToLiveRequest>,
}

/// The answer to the same.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    /// TTL in seconds; 0 when there is no such lease.
    #[prost(int64, optional, tag = "1")]
    pub keep_alive: Option<i64>,
    #[prost(message, optional, tag = "2")]
    pub time_to_live: Option<LeaseTimeToLiveResponse>,
}

/// Answers what other members ask, where this member leads.
pub fn leader_handler(clock: Arc<Clock>) -> Arc<dyn LeaderHandler> {
    Arc::new(Handler(clock))
}

struct Handler(Arc<Clock>);

#[tonic::async_trait]
impl LeaderHandler for Handler {
    async fn handle(&self, request: Bytes) -> Result<Bytes, Status> {
        let request = Request::decode(request).map_err(|error| unknown(&error))?;
        Ok(answer(&self.0, request).await?.encode_to_vec().into())
    }
}

pub async fn answer(clock: &Clock, request: Request) -> Result<Answer, Status> {
    match request {
        Request { keep_alive: Some(LeaseKeepAliveRequest { id }), .. } => {
            let ttl = clock.keep_alive(LeaseId(id)).await?;
            Ok(Answer { keep_alive: Some(ttl), time_to_live: None })
        }
        Request { time_to_live: Some(LeaseTimeToLiveRequest { id, keys }), .. } => {
            let response = clock.time_to_live(LeaseId(id), keys).await?;
            Ok(Answer { keep_alive: None, time_to_live: Some(response) })
        }
        Request { keep_alive: None, time_to_live: None } => Err(unknown(&"it asks for nothing")),
    }
}

/// What another member said makes no sense here: it runs another release.
pub fn unknown(why: &dyn std::fmt::Display) -> Status {
    Status::unimplemented(format!("a member's message about leases is not known here: {why}"))
}
