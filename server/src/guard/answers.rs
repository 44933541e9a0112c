//! A client that asks for much and takes little: its answers wait in memory. So a connection on which many bytes of
//! answers wait gets no further reads until some are gone, and reads no more than a few large ranges at once. Other
//! connections notice nothing.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::{Extensions, Response};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// Bytes of answers that wait on a connection, from which on it gets no further reads.
const UNSENT_MAX: usize = 64 << 20;
/// Large ranges that are read for a connection at once.
const RANGES_MAX: usize = 16;
/// Answers below this are not counted.
const SMALL: usize = 16 << 10;

/// The answers of one connection: an extension of each of its requests.
pub struct Answers {
    unsent: AtomicUsize,
    sent: Notify,
    ranges: Semaphore,
}

impl Answers {
    pub fn new() -> Arc<Answers> {
        Arc::new(Answers { unsent: AtomicUsize::new(0), sent: Notify::new(), ranges: Semaphore::new(RANGES_MAX) })
    }

    /// Waits until a read may begin.
    pub async fn room(&self) {
        let mut sent = std::pin::pin!(self.sent.notified());
        loop {
            // Before the look, so that nothing that is sent in between is missed.
            sent.as_mut().enable();
            if self.unsent.load(Ordering::Acquire) < UNSENT_MAX {
                return;
            }
            sent.as_mut().await;
            sent.set(self.sent.notified());
        }
    }

    /// Waits until a read that may bring much may begin; it holds the place while it reads.
    pub async fn room_for_range(&self) -> SemaphorePermit<'_> {
        let place = self.ranges.acquire().await.expect("it is never closed");
        self.room().await;
        place
    }

    /// Counts an answer; none where it is small. What is returned goes into the response's extensions.
    fn hold(self: &Arc<Self>, bytes: usize) -> Option<Arc<Held>> {
        (bytes >= SMALL).then(|| {
            self.unsent.fetch_add(bytes, Ordering::AcqRel);
            Arc::new(Held { answers: self.clone(), bytes })
        })
    }
}

/// Those of the connection that a request came on. A call of this process itself came on none.
pub fn of<T>(request: &tonic::Request<T>) -> Option<Arc<Answers>> {
    request.extensions().get::<Arc<Answers>>().cloned()
}

/// A response that counts until it is sent.
pub fn counted<M: prost::Message>(message: M, answers: Option<&Arc<Answers>>) -> tonic::Response<M> {
    let bytes = message.encoded_len();
    counted_bytes(message, bytes, answers)
}

/// The same of one whose size is known.
pub fn counted_bytes<M>(message: M, bytes: usize, answers: Option<&Arc<Answers>>) -> tonic::Response<M> {
    let held = answers.and_then(|answers| answers.hold(bytes));
    let mut response = tonic::Response::new(message);
    if let Some(held) = held {
        response.extensions_mut().insert(held);
    }
    response
}

/// An answer that is not sent yet.
pub struct Held {
    answers: Arc<Answers>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.answers.unsent.fetch_sub(self.bytes, Ordering::AcqRel);
        self.answers.sent.notify_waiters();
    }
}

/// Takes out of a response what counts it: to be dropped when its body has gone.
pub fn held<B>(response: &mut Response<B>) -> Option<Arc<Held>> {
    held_in(response.extensions_mut())
}

/// The same of a response's extensions.
pub fn held_in(extensions: &mut Extensions) -> Option<Arc<Held>> {
    extensions.remove::<Arc<Held>>()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn reads_wait_while_too_much_is_unsent() {
        let answers = Answers::new();
        assert!(answers.hold(SMALL - 1).is_none());
        let mut response = Response::new(());
        response.extensions_mut().insert(answers.hold(UNSENT_MAX).unwrap());
        let unsent = held(&mut response).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), answers.room()).await.is_err());
        let waiting = tokio::spawn({
            let answers = answers.clone();
            async move { drop(answers.room_for_range().await) }
        });
        tokio::task::yield_now().await;
        drop(unsent);
        waiting.await.unwrap();
        answers.room().await;
    }
}
