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

use axum::body::{Body, Bytes};
use futures::{FutureExt as _, future::BoxFuture};
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame};
use parking_lot::Mutex;
use proto::EtcdError;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::Status;
use tower::{Layer, Service};

/// Of all large messages together. A command is copied a few times on its way to the disk.
const BYTES_MAX: usize = 512 << 20;
/// Messages below this are not counted.
const SMALL: usize = 16 << 10;
/// What a client gets to send a large message in, once it has its share.
const RECEIVE_MAX: Duration = Duration::from_secs(60);
/// A flag and four bytes of length.
const PREFIX_BYTES: usize = 5;

#[derive(Clone)]
pub struct RequestsLayer {
    budget: Arc<Semaphore>,
    message_max: usize,
    receive_max: Duration,
}

impl RequestsLayer {
    /// Messages above `message_max` are refused at their first bytes anyway, and take no share.
    pub fn new(message_max: usize) -> RequestsLayer {
        RequestsLayer { budget: Arc::new(Semaphore::new(BYTES_MAX)), message_max, receive_max: RECEIVE_MAX }
    }

    /// The share that a message needs, as far as the whole holds it.
    fn share(&self, bytes: usize) -> Option<u32> {
        let is_counted = bytes >= SMALL && bytes <= self.message_max;
        is_counted.then(|| u32::try_from(bytes.min(BYTES_MAX)).expect("the budget is below 4 GiB"))
    }
}

impl<S> Layer<S> for RequestsLayer {
    type Service = Requests<S>;

    fn layer(&self, inner: S) -> Requests<S> {
        Requests { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
pub struct Requests<S> {
    inner: S,
    layer: RequestsLayer,
}

/// The share of a call's message: from its first bytes until the call is carried out, or the next message begins.
type Share = Arc<Mutex<Option<OwnedSemaphorePermit>>>;

impl<S> Service<Request<Body>> for Requests<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let share = Share::default();
        let layer = self.layer.clone();
        let request = request.map(|body| Body::new(Metered::new(body, layer, share.clone())));
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await;
            // A unary call has been carried out; a stream goes on with what it holds.
            share.lock().take();
            answer
        }
        .boxed()
    }
}

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

struct Metered {
    body: Body,
    layer: RequestsLayer,
    share: Share,
    messages: Messages,
    until: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    fn new(body: Body, layer: RequestsLayer, share: Share) -> Metered {
        Metered { body, layer, share, messages: Messages::default(), until: None }
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(end) => return Poll::Ready(end),
            Poll::Pending => {
                let Some(until) = &mut this.until else { return Poll::Pending };
                ready!(until.as_mut().poll(cx));
                let late = Status::deadline_exceeded("the rest of the message has not come in time");
                return Poll::Ready(Some(Err(axum::Error::new(late))));
            }
        };
        let Ok(data) = frame.into_data() else { return Poll::Ready(None) };
        let begins = this.messages.follow(&data);
        if let Some(bytes) = begins {
            // The message before has been taken.
            this.share.lock().take();
            if let Some(share) = this.layer.share(bytes) {
                let Ok(permit) = this.layer.budget.clone().try_acquire_many_owned(share) else {
                    let refused = Status::from(EtcdError::RequestTooManyRequests);
                    return Poll::Ready(Some(Err(axum::Error::new(refused))));
                };
                *this.share.lock() = Some(permit);
                this.until = Some(Box::pin(sleep(this.layer.receive_max)));
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
    use futures::{StreamExt as _, stream};

    use super::*;

    const MESSAGE: usize = 1 << 20;

    fn begun(bytes: usize) -> Bytes {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        [&[0][..], &length, &[b'x'; 100]].concat().into()
    }

    fn metered(layer: &RequestsLayer, pieces: Vec<Bytes>) -> (Metered, Share) {
        let pieces = stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>)).chain(stream::pending());
        let share = Share::default();
        (Metered::new(Body::from_stream(pieces), layer.clone(), share.clone()), share)
    }

    async fn frame(body: &mut Metered) -> Option<Result<usize, axum::Error>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap().len()))
    }

    #[tokio::test]
    async fn a_large_message_takes_its_share_and_a_small_one_passes() {
        let layer = RequestsLayer::new(2 * MESSAGE);
        let mut bodies: Vec<_> = (0..BYTES_MAX / MESSAGE).map(|_| metered(&layer, vec![begun(MESSAGE)])).collect();
        for (body, _) in &mut bodies {
            assert_eq!(frame(body).await.unwrap().unwrap(), 105);
        }
        let (mut small, _) = metered(&layer, vec![begun(SMALL - 1)]);
        assert_eq!(frame(&mut small).await.unwrap().unwrap(), 105);
        let (mut too_large, _) = metered(&layer, vec![begun(2 * MESSAGE + 1)]);
        assert_eq!(frame(&mut too_large).await.unwrap().unwrap(), 105, "it takes no share");
        let (mut next, _) = metered(&layer, vec![begun(MESSAGE)]);
        let refused = Status::from_error(Box::new(frame(&mut next).await.unwrap().unwrap_err()));
        assert_eq!(refused.message(), "etcdserver: too many requests");
        bodies[0].1.lock().take();
        let (mut next, _) = metered(&layer, vec![begun(MESSAGE)]);
        assert_eq!(frame(&mut next).await.unwrap().unwrap(), 105);
    }

    #[tokio::test]
    async fn who_has_a_share_must_send_the_rest() {
        let receive_max = Duration::from_millis(50);
        let layer = RequestsLayer { receive_max, ..RequestsLayer::new(2 * MESSAGE) };
        let (mut body, _) = metered(&layer, vec![begun(MESSAGE), vec![0; 100].into()]);
        assert!(frame(&mut body).await.unwrap().is_ok() && frame(&mut body).await.unwrap().is_ok());
        assert!(frame(&mut body).await.unwrap().unwrap_err().to_string().contains("in time"));
        let (mut body, share) = metered(&layer, vec![begun(SMALL + 100), vec![0; SMALL].into(), begun(5)]);
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
