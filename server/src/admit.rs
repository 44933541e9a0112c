//! Whether a call is served at all by this member as it is now: before the request itself is looked at.
//! Source: etcd, `server/etcdserver/api/v3rpc/interceptor.go`.

use proto::EtcdError;
use raft::Standing;
use tonic::{Status, metadata::MetadataMap};

use crate::context::Context;

/// What a learner does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learner {
    Serves,
    Refuses,
}

/// Refuses what a learner does not serve, and what wants a leader (`hasleader: true`) while there is none.
pub fn admit(ctx: &Context, metadata: &MetadataMap, learner: Learner) -> Result<(), Status> {
    let needs_leader = metadata.get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
    decide(ctx.node.standing(), needs_leader, learner).map_err(Status::from)
}

fn decide(member: Standing, needs_leader: bool, learner: Learner) -> Result<(), EtcdError> {
    if member.is_learner && learner == Learner::Refuses {
        return Err(EtcdError::NotSupportedForLearner);
    }
    if needs_leader && !member.has_leader {
        return Err(EtcdError::NoLeader);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_refuses_all_but_what_it_serves() {
        let learner = Standing { is_learner: true, has_leader: true, ..Standing::default() };
        assert_eq!(decide(learner, false, Learner::Refuses), Err(EtcdError::NotSupportedForLearner));
        assert_eq!(decide(learner, true, Learner::Serves), Ok(()));
    }

    #[test]
    fn a_call_that_needs_a_leader_is_refused_while_there_is_none() {
        let alone = Standing::default();
        assert_eq!(decide(alone, true, Learner::Serves), Err(EtcdError::NoLeader));
        assert_eq!(decide(alone, false, Learner::Refuses), Ok(()));
    }
}
