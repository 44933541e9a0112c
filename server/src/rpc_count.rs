//! Counts RPCs by method and their messages, and by code when they end; tells of unary calls that took too long.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prometheus::IntCounter;
use tonic::{Code, Status};

use crate::{
    metrics::{Metrics, rpc::Method},
    unary::PREFIX_BYTES,
};

/// What the client says it is. (etcd: `api/v3rpc/rpctypes/metadatafields.go`.)
const CLIENT_VERSION: HeaderName = HeaderName::from_static("client-api-version");

#[derive(Clone)]
pub struct RpcCount {
    pub metrics: Arc<Metrics>,
    /// A unary call that takes longer is told of in the log.
    pub slow: Duration,
}

impl RpcCount {
    /// What counts the calls at a path with these headers. None where the path is none of an RPC.
    pub fn kind(&self, path: &str, headers: &HeaderMap) -> Option<Arc<Kind>> {
        let rpc = &self.metrics.rpc;
        let method = rpc.method(path)?;
        let version = headers.get(CLIENT_VERSION).and_then(|version| version.to_str().ok());
        let client = rpc.clients(method.is_unary, version);
        Some(Arc::new(Kind { method, client, slow: self.slow }))
    }
}

/// Counts the calls of one method by one kind of client.
pub struct Kind {
    method: Arc<Method>,
    client: IntCounter,
    slow: Duration,
}

impl Kind {
    /// Counts that a call begins; gives what counts the messages of its request, and its answer.
    pub fn begin(self: Arc<Self>) -> (Messages, Sent) {
        let method = &self.method;
        let received = Messages::new(method.received.clone(), method.received_bytes.clone());
        let messages = Messages::new(method.sent.clone(), method.sent_bytes.clone());
        (received, Sent { end: self.begun(), messages })
    }

    /// Counts that a unary call begins whose message, of so many bytes, is there.
    pub fn begin_unary(self: Arc<Self>, bytes: usize) -> Unary {
        self.method.received.inc();
        self.method.received_bytes.inc_by(bytes as u64);
        Unary(self.begun())
    }

    /// From here on the end is counted in any case: when the client goes away, on drop.
    fn begun(self: Arc<Self>) -> End {
        self.method.started.inc();
        self.client.inc();
        End { kind: self, began: Instant::now(), is_counted: false }
    }
}

/// Counts the answer to a unary call.
pub struct Unary(End);

impl Unary {
    /// Of a message of so many bytes with its prefix, or a refusal.
    pub fn end(mut self, answer: Result<usize, &Status>) {
        match answer {
            Ok(bytes) => {
                let method = &self.0.kind.method;
                method.sent.inc();
                method.sent_bytes.inc_by((bytes - PREFIX_BYTES) as u64);
                self.0.count(Code::Ok);
            }
            Err(status) => self.0.count(status.code()),
        }
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|status| Code::from_bytes(status.as_bytes()))
}

struct End {
    kind: Arc<Kind>,
    began: Instant,
    is_counted: bool,
}

impl End {
    fn count(&mut self, code: Code) {
        if self.is_counted {
            return;
        }
        self.is_counted = true;
        let Kind { method, slow, .. } = &*self.kind;
        method.handled(code).inc();
        let took = self.began.elapsed();
        if let Some(handling) = &method.handling {
            handling.observe(took.as_secs_f64());
        }
        if method.is_unary && took > *slow {
            tracing::warn!(
                time_spent = ?took,
                expected_duration = ?slow,
                response_type = method.path,
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
pub struct Messages {
    count: IntCounter,
    bytes: IntCounter,
    head: [u8; PREFIX_BYTES],
    head_len: usize,
    /// Bytes that the message still has.
    left: usize,
}

impl Messages {
    fn new(count: IntCounter, bytes: IntCounter) -> Self {
        Messages { count, bytes, head: [0; PREFIX_BYTES], head_len: 0, left: 0 }
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

/// The body of a request, counted.
pub struct Received<B> {
    pub body: B,
    pub messages: Option<Messages>,
}

impl<B: HttpBody<Data = Bytes> + Unpin> HttpBody for Received<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
        if let (Some(data), Some(messages)) = (data, &mut self.messages) {
            messages.see(data);
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

/// Counts what is answered, and by the code in the trailers how the call has ended.
pub struct Sent {
    end: End,
    messages: Messages,
}

impl Sent {
    /// None where the call has ended, as the headers say.
    pub fn unless_ended(mut self, headers: &HeaderMap) -> Option<Sent> {
        match code(headers) {
            Some(code) => {
                self.end.count(code);
                None
            }
            None => Some(self),
        }
    }

    pub fn see(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.messages.see(data);
        }
        if let Some(code) = frame.trailers_ref().and_then(code) {
            self.end.count(code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUT: &str = "/etcdserverpb.KV/Put";

    fn begun(path: &str) -> (Arc<Metrics>, Option<Sent>) {
        let metrics = Metrics::for_tests();
        let count = RpcCount { metrics: metrics.clone(), slow: Duration::from_secs(1) };
        let kind = count.kind(path, &HeaderMap::new());
        (metrics, kind.map(|kind| kind.begin().1))
    }

    fn handled(metrics: &Metrics, code: Code) -> u64 {
        metrics.rpc.method(PUT).unwrap().handled(code).get()
    }

    #[test]
    fn an_answer_without_a_body_has_its_code_in_the_headers() {
        let (metrics, sent) = begun(PUT);
        let headers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "3".parse().unwrap())]);
        assert!(sent.unwrap().unless_ended(&headers).is_none());
        assert_eq!(handled(&metrics, Code::InvalidArgument), 1);
        assert_eq!(metrics.rpc.method(PUT).unwrap().started.get(), 1);
    }

    #[test]
    fn a_call_whose_client_goes_away_is_cancelled() {
        let (metrics, sent) = begun(PUT);
        let sent = sent.unwrap().unless_ended(&HeaderMap::new()).unwrap();
        assert_eq!(handled(&metrics, Code::Cancelled), 0);
        drop(sent);
        assert_eq!(handled(&metrics, Code::Cancelled), 1);
    }

    #[test]
    fn a_path_that_is_no_method_counts_nowhere() {
        let (metrics, sent) = begun("/etcdserverpb.KV/Nonsense");
        assert!(sent.is_none() && metrics.rpc.method("/etcdserverpb.KV/Nonsense").is_none());
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
