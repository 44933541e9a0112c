//! Counts RPCs by method and their messages, and by code when they end; tells of unary calls that took too long.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes};
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prometheus::IntCounter;
use tonic::Code;
use tower::{Layer, Service};

use crate::metrics::{Metrics, rpc::Method};

/// What the client says it is. (etcd: `api/v3rpc/rpctypes/metadatafields.go`.)
const CLIENT_VERSION: &str = "client-api-version";

#[derive(Clone)]
pub struct CountLayer {
    pub metrics: Arc<Metrics>,
    /// A unary call that takes longer is told of in the log.
    pub slow: Duration,
}

impl<S> Layer<S> for CountLayer {
    type Service = Count<S>;

    fn layer(&self, inner: S) -> Count<S> {
        Count { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
pub struct Count<S> {
    inner: S,
    layer: CountLayer,
}

impl<S> Service<Request<Body>> for Count<S>
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
        let rpc = &self.layer.metrics.rpc;
        let Some(method) = rpc.method(request.uri().path()) else { return self.inner.call(request).boxed() };
        method.started.inc();
        let version = request.headers().get(CLIENT_VERSION).and_then(|version| version.to_str().ok());
        rpc.count_client(method.is_unary, version);
        let path = request.uri().path().to_string();
        let received = Messages::new(method.received.clone(), rpc.received_bytes.clone());
        let sent = Messages::new(method.sent.clone(), rpc.sent_bytes.clone());
        // From here on the end is counted in any case: when the client goes away, on drop.
        let mut end = End { method, path, slow: self.layer.slow, began: Instant::now(), is_counted: false };
        let request = request.map(|body| Body::new(Received { body, messages: received }));
        let answer = self.inner.call(request);
        async move {
            let response = answer.await?;
            if let Some(code) = code(response.headers()) {
                end.count(code);
                return Ok(response);
            }
            Ok(response.map(|body| Body::new(Sent { body, end, messages: sent })))
        }
        .boxed()
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()))
}

struct End {
    method: Arc<Method>,
    path: String,
    slow: Duration,
    began: Instant,
    is_counted: bool,
}

impl End {
    fn count(&mut self, code: Code) {
        if self.is_counted {
            return;
        }
        self.is_counted = true;
        self.method.handled(code).inc();
        let took = self.began.elapsed();
        if let Some(handling) = &self.method.handling {
            handling.observe(took.as_secs_f64());
        }
        if self.method.is_unary && took > self.slow {
            tracing::warn!(
                time_spent = ?took,
                expected_duration = ?self.slow,
                response_type = self.path,
                code = ?code,
                "request stats"
            );
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.count(Code::Cancelled);
    }
}

/// Finds the messages in a body: each begins with a byte of flags and its length in four bytes.
struct Messages {
    count: IntCounter,
    bytes: IntCounter,
    head: [u8; 5],
    head_len: usize,
    /// Bytes that the message still has.
    left: usize,
}

impl Messages {
    fn new(count: IntCounter, bytes: IntCounter) -> Self {
        Messages { count, bytes, head: [0; 5], head_len: 0, left: 0 }
    }

    fn see(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(data.len());
                self.left -= skipped;
                data = &data[skipped..];
                continue;
            }
            let taken = (self.head.len() - self.head_len).min(data.len());
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&data[..taken]);
            self.head_len += taken;
            data = &data[taken..];
            if self.head_len == self.head.len() {
                let [_, length @ ..] = self.head;
                self.left = u32::from_be_bytes(length) as usize;
                self.head_len = 0;
                self.count.inc();
                self.bytes.inc_by(self.left as u64);
            }
        }
    }
}

struct Received {
    body: Body,
    messages: Messages,
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.messages.see(data);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body whose trailers tell the code.
struct Sent {
    body: Body,
    end: End,
    messages: Messages,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                self.messages.see(data);
            }
            if let Some(code) = frame.trailers_ref().and_then(code) {
                self.end.count(code);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::*;

    const PUT: &str = "/etcdserverpb.KV/Put";

    async fn call(path: &str, response: Response<Body>) -> (Arc<Metrics>, Response<Body>) {
        let metrics = Metrics::for_tests();
        let headers = response.headers().clone();
        let inner = tower::service_fn(move |_| {
            let mut response = Response::new(Body::empty());
            *response.headers_mut() = headers.clone();
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        });
        let layer = CountLayer { metrics: metrics.clone(), slow: Duration::from_secs(1) };
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = layer.layer(inner).oneshot(request).await.unwrap();
        (metrics, response)
    }

    fn handled(metrics: &Metrics, code: Code) -> u64 {
        metrics.rpc.method(PUT).unwrap().handled(code).get()
    }

    #[tokio::test]
    async fn an_answer_without_a_body_has_its_code_in_the_headers() {
        let refused = Response::builder().header("grpc-status", "3").body(Body::empty()).unwrap();
        let (metrics, _) = call(PUT, refused).await;
        assert_eq!(handled(&metrics, Code::InvalidArgument), 1);
        assert_eq!(metrics.rpc.method(PUT).unwrap().started.get(), 1);
    }

    #[tokio::test]
    async fn a_call_whose_client_goes_away_is_cancelled() {
        let (metrics, response) = call(PUT, Response::new(Body::empty())).await;
        assert_eq!(handled(&metrics, Code::Cancelled), 0);
        drop(response);
        assert_eq!(handled(&metrics, Code::Cancelled), 1);
    }

    #[tokio::test]
    async fn a_path_that_is_no_method_counts_nowhere() {
        let (metrics, _) = call("/etcdserverpb.KV/Nonsense", Response::new(Body::empty())).await;
        assert!(metrics.rpc.method("/etcdserverpb.KV/Nonsense").is_none());
    }

    #[test]
    fn messages_are_found_however_the_body_is_cut() {
        let body: Vec<u8> = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[0, 0, 0, 0, 1], b"d"].concat();
        for part in 1..=body.len() {
            let counter = |name: &str| IntCounter::new(name, "of a test").unwrap();
            let mut messages = Messages::new(counter("count"), counter("bytes"));
            body.chunks(part).for_each(|data| messages.see(data));
            assert_eq!((messages.count.get(), messages.bytes.get()), (3, 4), "in parts of {part}");
        }
    }
}
