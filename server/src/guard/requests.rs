//! A bound on the bytes of requests that are being received or carried out, over all connections. A message says its
//! length first, so a large one takes its share before the rest of it is read, and is refused when there is none. It
//! could not wait for one: what has come of it fills the connection's window, and the messages before it, which have
//! their shares, would not get their rest. A small one passes: its call costs as much.
//!
//! Whoever has a share must send the rest in a set time: otherwise clients that begin and never end would keep the
//! others out.

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use proto::EtcdError;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::Status;

use crate::grpc::BoxError;

/// Of all large messages together. A command is copied a few times on its way to the disk.
const BYTES_MAX: usize = 512 << 20;
/// Messages below this are not counted.
const SMALL: usize = 16 << 10;
/// What a client gets to send a large message in, once it has its share.
const RECEIVE_MAX: Duration = Duration::from_secs(60);
/// A flag and four bytes of length.
const PREFIX_BYTES: usize = 5;

/// The bound. Cheap to clone.
#[derive(Clone)]
pub struct Requests {
    budget: Arc<Semaphore>,
    message_max: usize,
    receive_max: Duration,
}

impl Requests {
    /// Messages above `message_max` are refused at their first bytes anyway, and take no share.
    pub fn new(message_max: usize) -> Requests {
        Requests { budget: Arc::new(Semaphore::new(BYTES_MAX)), message_max, receive_max: RECEIVE_MAX }
    }

    /// The share that a message needs, as far as the whole holds it.
    fn share(&self, bytes: usize) -> Option<u32> {
        let is_counted = bytes >= SMALL && bytes <= self.message_max;
        is_counted.then(|| u32::try_from(bytes.min(BYTES_MAX)).expect("the budget is below 4 GiB"))
    }
}

/// The share of a call's message: from its first bytes until the call is carried out, or the next message begins.
pub type Share = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

/// Where in a message the bytes so far have ended.
#[derive(Default)]
struct Messages {
    prefix: [u8; PREFIX_BYTES],
    come: usize,
    left: usize,
}

impl Messages {
    /// The length of the largest message that begins with these bytes.
    fn follow(&mut self, mut bytes: &[u8]) -> Option<usize> {
        let mut largest = None;
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let taken = (PREFIX_BYTES - self.come).min(bytes.len());
            self.prefix[self.come..self.come + taken].copy_from_slice(&bytes[..taken]);
            self.come += taken;
            bytes = &bytes[taken..];
            if self.come == PREFIX_BYTES {
                let [_, a, b, c, d] = self.prefix;
                self.come = 0;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                largest = largest.max(Some(self.left));
            }
        }
        largest
    }
}

/// The body of a request, bounded.
pub struct Metered<B> {
    body: B,
    bound: Requests,
    share: Share,
    messages: Messages,
    until: Option<Pin<Box<Sleep>>>,
}

impl<B> Metered<B> {
    /// What is in `share` is to be taken out when the call has been carried out.
    pub fn new(body: B, bound: Requests, share: Share) -> Metered<B> {
        Metered { body, bound, share, messages: Messages::default(), until: None }
    }
}

impl<B> HttpBody for Metered<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(end) => return Poll::Ready(end.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => {
                let Some(until) = &mut this.until else { return Poll::Pending };
                ready!(until.as_mut().poll(cx));
                let late = Status::deadline_exceeded("the rest of the message has not come in time");
                return Poll::Ready(Some(Err(late.into())));
            }
        };
        let Ok(data) = frame.into_data() else { return Poll::Ready(None) };
        let begins = this.messages.follow(&data);
        if let Some(bytes) = begins {
            // The message before has been taken.
            this.share.lock().take();
            if let Some(share) = this.bound.share(bytes) {
                let Ok(permit) = this.bound.budget.clone().try_acquire_many_owned(share) else {
                    let refused = Status::from(EtcdError::RequestTooManyRequests);
                    return Poll::Ready(Some(Err(refused.into())));
                };
                *this.share.lock() = Some(permit);
                this.until = Some(Box::pin(sleep(this.bound.receive_max)));
            }
        }
        if this.messages.left == 0 {
            this.until = None;
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures::{StreamExt as _, stream};

    use super::*;

    const MESSAGE: usize = 1 << 20;

    fn begun(bytes: usize) -> Bytes {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        [&[0][..], &length, &[b'x'; 100]].concat().into()
    }

    fn metered(bound: &Requests, pieces: Vec<Bytes>) -> (Metered<Body>, Share) {
        let pieces = stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>)).chain(stream::pending());
        let share = Share::default();
        (Metered::new(Body::from_stream(pieces), bound.clone(), share.clone()), share)
    }

    async fn frame(body: &mut Metered<Body>) -> Option<Result<usize, BoxError>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap().len()))
    }

    #[tokio::test]
    async fn a_large_message_takes_its_share_and_a_small_one_passes() {
        let bound = Requests::new(2 * MESSAGE);
        let mut bodies: Vec<_> = (0..BYTES_MAX / MESSAGE).map(|_| metered(&bound, vec![begun(MESSAGE)])).collect();
        for (body, _) in &mut bodies {
            assert_eq!(frame(body).await.unwrap().unwrap(), 105);
        }
        let (mut small, _) = metered(&bound, vec![begun(SMALL - 1)]);
        assert_eq!(frame(&mut small).await.unwrap().unwrap(), 105);
        let (mut too_large, _) = metered(&bound, vec![begun(2 * MESSAGE + 1)]);
        assert_eq!(frame(&mut too_large).await.unwrap().unwrap(), 105, "it takes no share");
        let (mut next, _) = metered(&bound, vec![begun(MESSAGE)]);
        let refused = Status::from_error(frame(&mut next).await.unwrap().unwrap_err());
        assert_eq!(refused.message(), "etcdserver: too many requests");
        bodies[0].1.lock().take();
        let (mut next, _) = metered(&bound, vec![begun(MESSAGE)]);
        assert_eq!(frame(&mut next).await.unwrap().unwrap(), 105);
    }

    #[tokio::test]
    async fn who_has_a_share_must_send_the_rest() {
        let receive_max = Duration::from_millis(50);
        let bound = Requests { receive_max, ..Requests::new(2 * MESSAGE) };
        let (mut body, _) = metered(&bound, vec![begun(MESSAGE), vec![0; 100].into()]);
        assert!(frame(&mut body).await.unwrap().is_ok() && frame(&mut body).await.unwrap().is_ok());
        assert!(frame(&mut body).await.unwrap().unwrap_err().to_string().contains("in time"));
        let (mut body, share) = metered(&bound, vec![begun(SMALL + 100), vec![0; SMALL].into(), begun(5)]);
        for _ in 0..2 {
            assert!(frame(&mut body).await.unwrap().is_ok());
            assert!(share.lock().is_some());
        }
        assert!(frame(&mut body).await.unwrap().is_ok());
        assert!(share.lock().is_none(), "the next message begins");
        let idle = tokio::time::timeout(4 * receive_max, frame(&mut body)).await;
        assert!(idle.is_err(), "between messages a stream may wait");
    }
}
