//! Distributed tracing: a span for each call of a client, sent to a collector as OTLP over gRPC.
//! Source: etcd, `server/embed/config_tracing.go`, and the OpenTelemetry middleware for gRPC that it uses.
//!
//! A call that names a trace (`traceparent`, as W3C has it) belongs to it, and is sampled if the trace is; of the rest
//! `--distributed-tracing-sampling-rate` in a million are. Without `--enable-distributed-tracing` none of this is there.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes};
use futures::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::{
    KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider, Span},
};
use tonic::Code;
use tower::{Layer, Service};

use crate::flags::Flags;

const MILLION: i64 = 1_000_000;
/// What the last spans get to reach the collector in.
const FLUSH_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Host and port of the collector.
    address: String,
    service: String,
    /// Empty: none.
    instance: String,
    per_million: i64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("invalid value {0:?} for flag -distributed-tracing-sampling-rate: it takes a whole number")]
    NoNumber(String),
    #[error("distributed tracing configurition is not valid: (tracing sampling rate must be positive)")]
    Negative,
    #[error("distributed tracing configurition is not valid: (tracing sampling rate must be less than {MILLION})")]
    TooHigh,
}

impl Settings {
    /// None when it is off; then the other flags do not matter.
    pub fn from_flags(flags: &Flags) -> Result<Option<Settings>, SettingsError> {
        let rate = flags.get("distributed-tracing-sampling-rate");
        let per_million = rate.parse().map_err(|_| SettingsError::NoNumber(rate.into()))?;
        if !flags.is_true("enable-distributed-tracing") {
            return Ok(None);
        }
        match per_million {
            ..0 => return Err(SettingsError::Negative),
            0..=MILLION => {}
            _ => return Err(SettingsError::TooHigh),
        }
        Ok(Some(Settings {
            address: flags.get("distributed-tracing-address").into(),
            service: flags.get("distributed-tracing-service-name").into(),
            instance: flags.get("distributed-tracing-instance-id").into(),
            per_million,
        }))
    }

    fn sampler(&self) -> Sampler {
        let roots = match self.per_million {
            0 => Sampler::AlwaysOff,
            rate => Sampler::TraceIdRatioBased(rate as f64 / MILLION as f64),
        };
        Sampler::ParentBased(Box::new(roots))
    }
}

/// Sends spans until it is told to stop.
pub struct Tracing {
    provider: SdkTracerProvider,
}

impl Tracing {
    /// Within a runtime. The collector need not be there yet.
    pub fn start(settings: &Settings) -> anyhow::Result<Tracing> {
        let endpoint = format!("http://{}", settings.address);
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
        let mut attributes = vec![KeyValue::new("service.name", settings.service.clone())];
        if !settings.instance.is_empty() {
            attributes.push(KeyValue::new("service.instance.id", settings.instance.clone()));
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(Resource::builder_empty().with_attributes(attributes).build())
            .with_sampler(settings.sampler())
            .build();
        tracing::info!(
            address = settings.address,
            service_name = settings.service,
            service_instance_id = settings.instance,
            sampling_rate = settings.per_million,
            "distributed tracing enabled"
        );
        Ok(Tracing { provider })
    }

    pub fn layer(&self) -> TraceLayer {
        TraceLayer { tracer: self.provider.tracer("pintle") }
    }

    /// Sends what is left. Blocks.
    pub fn stop(self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_MAX) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

#[derive(Clone)]
pub struct TraceLayer {
    tracer: SdkTracer,
}

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner, tracer: self.tracer.clone() }
    }
}

#[derive(Clone)]
pub struct Traced<S> {
    inner: S,
    tracer: SdkTracer,
}

impl<S> Service<Request<Body>> for Traced<S>
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
        let mut call = Call { span: self.span(&request), is_ended: false };
        let answer = self.inner.call(request);
        async move {
            let response = answer.await?;
            if let Some(code) = code(response.headers()) {
                call.end(code);
                return Ok(response);
            }
            Ok(response.map(|body| Body::new(Answer { body, call })))
        }
        .boxed()
    }
}

impl<S> Traced<S> {
    fn span(&self, request: &Request<Body>) -> Span {
        let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
        let name = request.uri().path().trim_start_matches('/');
        let (service, method) = name.split_once('/').unwrap_or((name, ""));
        let attributes = vec![
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service.to_string()),
            KeyValue::new("rpc.method", method.to_string()),
        ];
        let builder = self.tracer.span_builder(name.to_string()).with_kind(SpanKind::Server);
        builder.with_attributes(attributes).start_with_context(&self.tracer, &parent)
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|status| Code::from_bytes(status.as_bytes()))
}

/// The span of a call, which ends with the answer, or when the client goes away.
struct Call {
    span: Span,
    is_ended: bool,
}

impl Call {
    fn end(&mut self, code: Code) {
        if self.is_ended {
            return;
        }
        self.is_ended = true;
        self.span.set_attribute(KeyValue::new("rpc.grpc.status_code", code as i64));
        // Those that are the server's fault. (OpenTelemetry's conventions for gRPC.)
        let is_fault = matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        );
        if is_fault {
            self.span.set_status(Status::error(code.description()));
        }
        self.span.end();
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// A body whose trailers tell the code.
struct Answer {
    body: Body,
    call: Call,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(code) = frame.trailers_ref().and_then(code)
        {
            self.call.end(code);
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
    use super::*;

    fn settings(arguments: &[&str]) -> Result<Option<Settings>, SettingsError> {
        Settings::from_flags(&Flags::read(arguments.iter().map(|a| a.to_string()), []).unwrap())
    }

    #[test]
    fn the_rate_is_bounded_when_it_is_on() {
        const ON: &str = "--enable-distributed-tracing";
        let rate = |rate: i64| format!("--distributed-tracing-sampling-rate={rate}");
        assert_eq!(settings(&[&rate(-1)]), Ok(None));
        assert_eq!(settings(&[ON, &rate(-1)]), Err(SettingsError::Negative));
        assert_eq!(settings(&[ON, &rate(1_000_001)]), Err(SettingsError::TooHigh));
        let all = settings(&[ON, &rate(1_000_000)]).unwrap().unwrap();
        assert_eq!((all.address.as_str(), all.service.as_str(), all.per_million), ("localhost:4317", "etcd", MILLION));
        assert_eq!(settings(&["--distributed-tracing-sampling-rate=x"]), Err(SettingsError::NoNumber("x".into())));
    }
}
