//! Streams that need a leader: those whose client sent `hasleader: true`.

use std::time::Duration;

use raft::Status as RaftStatus;
use tokio::sync::watch::Receiver;
use tonic::metadata::MetadataMap;

use crate::context::Context;

/// Election timeouts without a leader after which such a stream is ended. (etcd: `v3rpc/interceptor.go`.)
const TIMEOUTS_WITHOUT_LEADER: u32 = 3;

/// Ready when a stream must end for want of a leader: never when its client does not care.
pub(crate) fn leader_lost(context: &Context, metadata: &MetadataMap) -> impl Future<Output = ()> + Send + use<> {
    let required = metadata.get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
    let status = required.then(|| context.node.watch_status());
    let patience = context.election_timeout * TIMEOUTS_WITHOUT_LEADER;
    async move {
        match status {
            Some(status) => without_leader(status, patience).await,
            None => std::future::pending().await,
        }
    }
}

/// Ready when there has been no leader for `patience`.
async fn without_leader(mut status: Receiver<RaftStatus>, patience: Duration) {
    loop {
        // An error: the node is gone, and with it the leader it knew.
        if status.wait_for(|status| status.leader.is_none()).await.is_err() {
            return;
        }
        match tokio::time::timeout(patience, status.wait_for(|status| status.leader.is_some())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proto::MemberId;
    use tokio::sync::watch;

    use super::*;

    fn led_by(leader: Option<u64>) -> RaftStatus {
        RaftStatus { leader: leader.map(MemberId), ..Default::default() }
    }

    #[tokio::test]
    async fn a_long_time_without_a_leader_ends_a_stream() {
        let (sender, receiver) = watch::channel(led_by(Some(1)));
        let began = Instant::now();
        let patience = Duration::from_millis(30);
        sender.send(led_by(None)).unwrap();
        without_leader(receiver, patience).await;
        assert!(began.elapsed() >= patience);
    }

    #[tokio::test]
    async fn a_leader_that_comes_back_in_time_does_not() {
        let (sender, receiver) = watch::channel(led_by(None));
        let mut lost = Box::pin(without_leader(receiver, Duration::from_secs(3600)));
        assert!(futures::poll!(&mut lost).is_pending());
        sender.send(led_by(Some(2))).unwrap();
        assert!(futures::poll!(&mut lost).is_pending());
        // Only the end of the node is left to end it.
        drop(sender);
        lost.await;
    }
}
