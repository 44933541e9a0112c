//! A key in a queue, as long as it is not certain that its client gets to know of it.
//!
//! A client that goes away drops the call, wherever it stands. So what puts the key there runs as a task of its own, to
//! its end, and hands over a place; and a place that is dropped before it is kept is withdrawn.

use proto::{
    EtcdError,
    etcdserverpb::{ResponseHeader, TxnRequest},
};
use storage::host;
use tokio::runtime::Handle;
use tonic::Status;

use super::{caller::Caller, queue};

pub(super) type Header = Option<ResponseHeader>;

pub(super) struct Place {
    caller: Caller,
    key: Vec<u8>,
    create_revision: i64,
    is_kept: bool,
}

impl Place {
    /// The key that was created at `create_revision`. One that is kept stays when the place is dropped.
    pub fn new(caller: Caller, key: Vec<u8>, create_revision: i64, is_kept: bool) -> Place {
        Place { caller, key, create_revision, is_kept }
    }

    /// Waits until no key is before this one, and sees whether it is still there itself: its lease may have ended
    /// meanwhile. The header of that, if it is. From now on the place is withdrawn when it is dropped.
    pub async fn wait_for_turn(&mut self, prefix: &[u8]) -> Result<Option<Header>, Status> {
        self.is_kept = false;
        queue::wait_for_turn(&self.caller, prefix, self.create_revision - 1).await?;
        let own = self.caller.range(queue::single(&self.key)).await?;
        let is_there = own.kvs.first().is_some_and(|kv| kv.create_revision == self.create_revision);
        Ok(is_there.then_some(own.header))
    }

    pub fn create_revision(&self) -> i64 {
        self.create_revision
    }

    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Deletes the key, if it is still the one that was created then.
    pub async fn withdraw(mut self) {
        self.is_kept = true;
        withdraw(self.caller.clone(), withdrawal(&self.key, self.create_revision)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // Without a runtime the process is ending; the key goes with its lease.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(withdraw(self.caller.clone(), withdrawal(&self.key, self.create_revision)));
        }
    }
}

pub(super) fn withdrawal(key: &[u8], create_revision: i64) -> TxnRequest {
    TxnRequest {
        compare: vec![queue::created_at(key, create_revision)],
        success: vec![queue::delete_op(key)],
        failure: Vec::new(),
    }
}

async fn withdraw(caller: Caller, txn: TxnRequest) {
    if let Err(status) = caller.txn(txn).await {
        tracing::debug!(error = status.message(), "a waiter's key stays until its lease ends");
    }
}

/// Runs `enter` to its end, even when the client goes away meanwhile.
pub(super) async fn to_the_end<T: Send + 'static>(
    enter: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    match host::spawn(enter).await {
        Ok(entered) => entered,
        Err(_) => Err(Status::unknown(EtcdError::Stopped.message())),
    }
}
