//! Counts RPCs by method, and by code when they end.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::body::{Body, Bytes};
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use prometheus::IntCounterVec;
use tonic::Code;
use tower::{Layer, Service};

use crate::metrics::Metrics;

#[derive(Clone)]
pub struct CountLayer(pub Arc<Metrics>);

impl<S> Layer<S> for CountLayer {
    type Service = Count<S>;

    fn layer(&self, inner: S) -> Count<S> {
        Count { inner, metrics: self.0.clone() }
    }
}

#[derive(Clone)]
pub struct Count<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

/// Service, method and type of an RPC.
struct Labels {
    path: String,
    slash: usize,
    kind: &'static str,
}

impl Labels {
    /// None where the path is none of an RPC.
    fn of(path: &str) -> Option<Labels> {
        let path = path.strip_prefix('/')?;
        let (_, method) = path.split_once('/')?;
        let kind = match method {
            "Watch" | "LeaseKeepAlive" | "ServerReflectionInfo" => "bidi_stream",
            "Snapshot" | "RangeStream" | "Observe" => "server_stream",
            _ => "unary",
        };
        Some(Labels { slash: path.find('/')?, path: path.into(), kind })
    }

    fn service(&self) -> &str {
        &self.path[..self.slash]
    }

    fn method(&self) -> &str {
        &self.path[self.slash + 1..]
    }
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
        let Some(labels) = Labels::of(request.uri().path()) else { return self.inner.call(request).boxed() };
        self.metrics.rpc_started.with_label_values(&[labels.kind, labels.service(), labels.method()]).inc();
        // From here on the end is counted in any case: when the client goes away, on drop.
        let mut end = End { labels, handled: self.metrics.rpc_handled.clone(), is_counted: false };
        let answer = self.inner.call(request);
        async move {
            let response = answer.await?;
            if let Some(code) = code(response.headers()) {
                end.count(code);
                return Ok(response);
            }
            Ok(response.map(|body| Body::new(Counted { body, end })))
        }
        .boxed()
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()))
}

struct End {
    labels: Labels,
    handled: IntCounterVec,
    is_counted: bool,
}

impl End {
    fn count(&mut self, code: Code) {
        if !self.is_counted {
            self.is_counted = true;
            // As Go prints a code, which is its name here too, but for these.
            let code = match code {
                Code::Ok => "OK".into(),
                Code::Cancelled => "Canceled".into(),
                other => format!("{other:?}"),
            };
            let Labels { kind, .. } = self.labels;
            self.handled.with_label_values(&[kind, self.labels.service(), self.labels.method(), &code]).inc();
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.count(Code::Cancelled);
    }
}

/// A body whose trailers tell the code.
struct Counted {
    body: Body,
    end: End,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(code) = frame.trailers_ref().and_then(code)
        {
            self.end.count(code);
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

    async fn call(path: &str, response: Response<Body>) -> (Arc<Metrics>, Response<Body>) {
        let metrics = Metrics::new(0).unwrap();
        let headers = response.headers().clone();
        let inner = tower::service_fn(move |_| {
            let mut response = Response::new(Body::empty());
            *response.headers_mut() = headers.clone();
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        });
        let service = CountLayer(metrics.clone()).layer(inner);
        let response = service.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        (metrics, response)
    }

    fn handled(metrics: &Metrics, code: &str) -> u64 {
        metrics.rpc_handled.with_label_values(&["unary", "etcdserverpb.KV", "Put", code]).get()
    }

    #[tokio::test]
    async fn an_answer_without_a_body_has_its_code_in_the_headers() {
        let refused = Response::builder().header("grpc-status", "3").body(Body::empty()).unwrap();
        let (metrics, _) = call("/etcdserverpb.KV/Put", refused).await;
        assert_eq!(handled(&metrics, "InvalidArgument"), 1);
        assert_eq!(metrics.rpc_started.with_label_values(&["unary", "etcdserverpb.KV", "Put"]).get(), 1);
    }

    #[tokio::test]
    async fn a_call_whose_client_goes_away_is_cancelled() {
        let (metrics, response) = call("/etcdserverpb.KV/Put", Response::new(Body::empty())).await;
        assert_eq!(handled(&metrics, "Canceled"), 0);
        drop(response);
        assert_eq!(handled(&metrics, "Canceled"), 1);
    }
}
