//! The quota on the size of the store: what needs room is refused, and the NOSPACE alarm raised, before it is proposed.
//! Source: etcd, `server/storage/quota.go` and `server/etcdserver/api/v3rpc/quota.go`.
//!
//! The size is that of RocksDB, files and memory ([`storage::Size::on_disk`]). Asking for it takes a lock in RocksDB,
//! so it is not asked for with every put: the last measurement, and what was let through since, stand for it, until it
//! is old or would refuse.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use proto::{
    EtcdError,
    command::command::Op,
    etcdserverpb::{AlarmRequest, AlarmType, alarm_request::AlarmAction},
};
use tonic::Status;

use crate::context::Context;

/// What 0 stands for in `--quota-backend-bytes`.
pub const DEFAULT_BYTES: i64 = 2 << 30;
/// A larger one is warned of.
const RECOMMENDED_BYTES_MAX: i64 = 8 << 30;
/// Other members' puts are seen in a measurement only.
const MEASUREMENT_AGE_MAX: Duration = Duration::from_millis(100);

pub struct Quota {
    /// None: no quota.
    limit: Option<i64>,
    measured: Mutex<Option<Measured>>,
}

struct Measured {
    at: Instant,
    size: i64,
    /// Let through since.
    admitted: i64,
}

impl Quota {
    /// `bytes` as `--quota-backend-bytes` gives them, with the default put in; negative for none.
    pub fn new(bytes: i64) -> Quota {
        Quota { limit: (bytes >= 0).then_some(bytes), measured: Mutex::new(None) }
    }

    /// Tells what is enforced.
    pub fn log(&self) {
        match self.limit {
            None => tracing::info!("disabled backend quota"),
            Some(DEFAULT_BYTES) => {
                tracing::info!(quota_size_bytes = DEFAULT_BYTES, "enabled backend quota with default value")
            }
            Some(bytes) => {
                if bytes > RECOMMENDED_BYTES_MAX {
                    tracing::warn!(
                        quota_size_bytes = bytes,
                        quota_maximum_size_bytes = RECOMMENDED_BYTES_MAX,
                        "quota exceeds the maximum value"
                    );
                }
                tracing::info!(quota_size_bytes = bytes, "enabled backend quota");
            }
        }
    }

    fn has_room<E>(&self, cost: u64, now: Instant, measure: impl FnOnce() -> Result<i64, E>) -> Result<bool, E> {
        let Some(limit) = self.limit.filter(|_| cost > 0) else { return Ok(true) };
        let cost = cost as i64;
        let mut measured = self.measured.lock();
        if let Some(known) = measured.as_mut()
            && now.duration_since(known.at) < MEASUREMENT_AGE_MAX
            && known.size + known.admitted + cost < limit
        {
            known.admitted += cost;
            return Ok(true);
        }
        let size = measure()?;
        let has_room = size + cost < limit;
        *measured = Some(Measured { at: now, size, admitted: if has_room { cost } else { 0 } });
        Ok(has_room)
    }
}

/// Refuses a request that asks for more room than there is, and lets the cluster know.
pub async fn check(ctx: &Arc<Context>, cost: u64) -> Result<(), Status> {
    if ctx
        .quota
        .has_room(cost, Instant::now(), || ctx.store.size_on_disk())
        .map_err(|error| ctx.storage_error(error))?
    {
        return Ok(());
    }
    let alarm = AlarmType::Nospace as i32;
    if !ctx.store.alarms().iter().any(|active| active.member_id == ctx.member.0 && active.alarm == alarm) {
        let request = AlarmRequest { action: AlarmAction::Activate as i32, member_id: ctx.member.0, alarm };
        if let Err(error) = Box::pin(ctx.propose(Op::Alarm(request))).await {
            tracing::warn!(error = error.message(), "could not raise the alarm NOSPACE");
        }
    }
    Err(EtcdError::NoSpace.into())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_size_is_measured_again_before_anything_is_refused() {
        let (quota, size, measured, now) = (Quota::new(1000), Cell::new(0), Cell::new(0), Instant::now());
        let has_room = |cost| {
            let measure = || {
                measured.set(measured.get() + 1);
                Ok::<_, ()>(size.get())
            };
            quota.has_room(cost, now, measure).unwrap()
        };
        assert!(has_room(400) && has_room(400));
        let before = measured.get();
        assert!(has_room(400), "what was let through is not in the store yet");
        assert!(measured.get() > before);
        size.set(600);
        assert!(!has_room(600));
        assert!(!has_room(400), "the quota itself is not to be reached");
        assert!(has_room(399));
        size.set(100);
        assert!(has_room(800));
        assert!(has_room(0), "what costs nothing is never refused");
    }

    #[test]
    fn a_negative_quota_is_none() {
        assert_eq!(Quota::new(-1).has_room(u64::MAX, Instant::now(), || Err("not measured")), Ok(true));
    }
}
