//! Leases kept alive: each client has one lease, and a stream on which it renews it.

use std::time::Instant;

use proto::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest};
use tonic::Status;

use super::encode;
use crate::{
    drive::{Answer, Call, Client, wrong},
    measure::Recorder,
    wire::protobuf,
};

pub const GRANT: Call = Call::unary("/etcdserverpb.Lease/LeaseGrant");
const KEEP_ALIVE: Call = Call::stream("/etcdserverpb.Lease/LeaseKeepAlive");
const TTL_SECONDS: i64 = 600;

/// The first operation grants the lease, too.
#[derive(Default)]
pub struct KeepAlive {
    lease: Option<i64>,
}

impl Client for KeepAlive {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        match self.lease {
            None => {
                encode(&LeaseGrantRequest { ttl: TTL_SECONDS, id: 0 }, message);
                GRANT
            }
            Some(id) => {
                encode(&LeaseKeepAliveRequest { id }, message);
                KEEP_ALIVE
            }
        }
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        // Both answers have the lease's id and its time to live in the same fields.
        let (id, ttl) = (protobuf::number(message, 2), protobuf::number(message, 3));
        match self.lease {
            None => {
                self.lease = Some(id);
                Ok(Answer::Next)
            }
            Some(lease) if lease == id && ttl > 0 => Ok(Answer::DONE),
            Some(_) => Err(wrong("the lease has expired")),
        }
    }
}
