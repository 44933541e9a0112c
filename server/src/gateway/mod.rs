//! The JSON gateway: etcd's RPCs as POST requests below `/v3/`.
//!
//! ```text
//! POST /v3/kv/range {"key":"Zm9v"}
//!   ── path ──> method and its messages (descriptors of the .proto files)
//!   ── JSON ──> message ──> the gRPC services, within the process ──> message ──> JSON
//! 200 {"header":{…},"kvs":[…],"count":"1"}
//! ```
//! Nothing here knows an RPC: [`paths`] has their paths, the descriptors have their messages. The calls pass by all that
//! a gRPC client's calls pass by; they are without a client certificate, and with `grpcgateway-accept` among their
//! metadata, as in etcd.
//!
//! Sources: etcd, `server/embed/serve.go`, `api/etcdserverpb/gw`; grpc-gateway 2, `runtime`; protojson.

mod answer;
mod codec;
mod headers;
pub(crate) mod json;
mod paths;
mod websocket;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Method as HttpMethod, StatusCode, header, uri::PathAndQuery},
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use prost_reflect::{DescriptorError, DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use tokio::time::Instant;
use tonic::{Extensions, Status, Streaming, client::Grpc, metadata::MetadataMap, service::Routes};

pub use answer::refusal;
use codec::DynamicCodec;

/// JSON is longer than the message it stands for: base64 by a third, numbers and names by more.
const JSON_EXPANSION: usize = 2;

#[derive(Clone)]
struct Gateway {
    services: Routes,
    methods: Arc<HashMap<&'static str, Method>>,
    /// The longest message in JSON. How long it may be in gRPC is for the services to say.
    json_bytes_max: usize,
}

/// What a path stands for.
struct Method {
    rpc: PathAndQuery,
    input: MessageDescriptor,
    output: MessageDescriptor,
    takes_stream: bool,
    gives_stream: bool,
}

/// The gateway's paths. `grpc` serves the calls; `request_bytes_max` is how long one may be.
pub fn routes(grpc: Router, request_bytes_max: usize) -> Result<Router, DescriptorError> {
    let gateway = Gateway {
        services: Routes::from(grpc),
        methods: Arc::new(methods()?),
        json_bytes_max: request_bytes_max.saturating_mul(JSON_EXPANSION),
    };
    let mut routes = Router::new().route("/v3", any(moved));
    for below in ["/v3/", "/v3/{*path}", "/v3beta/", "/v3beta/{*path}"] {
        routes = routes.route(below, any(serve));
    }
    Ok(routes.with_state(gateway))
}

fn methods() -> Result<HashMap<&'static str, Method>, DescriptorError> {
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET)?;
    let services: Vec<_> = pool.services().collect();
    let method = |rpc: &str| {
        let (service, method) = rpc.split_once('/')?;
        let service = services.iter().find(|found| found.full_name() == service)?;
        service.methods().find(|found| found.name() == method)
    };
    let methods = paths::PATHS.iter().map(|&(path, rpc)| {
        let found = method(rpc).expect("the RPCs of the table are in the .proto files");
        (path, Method::of(rpc, &found))
    });
    Ok(methods.collect())
}

impl Method {
    fn of(rpc: &str, method: &MethodDescriptor) -> Method {
        Method {
            rpc: format!("/{rpc}").parse().expect("a service and a method make a path"),
            input: method.input(),
            output: method.output(),
            takes_stream: method.is_client_streaming(),
            gives_stream: method.is_server_streaming(),
        }
    }
}

/// As Go's router answers the path of a folder without its slash.
async fn moved() -> Response {
    (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, HeaderValue::from_static("/v3/"))]).into_response()
}

async fn serve(State(gateway): State<Gateway>, request: Request) -> Response {
    if websocket::is_asked_for(request.headers()) {
        return websocket::accept(gateway, request);
    }
    gateway.answer(request).await
}

/// A call as the services take it, but for its messages.
struct Call {
    metadata: MetadataMap,
    deadline: Option<Instant>,
}

impl Call {
    fn request<T>(self, message: T) -> tonic::Request<T> {
        tonic::Request::from_parts(self.metadata, Extensions::default(), message)
    }
}

impl Gateway {
    fn method(&self, path: &str) -> Option<&Method> {
        // etcd rewrites the path of its times before 3.4.
        let rewritten = path.strip_prefix("/v3beta/").map(|rest| format!("/v3/{rest}"));
        self.methods.get(rewritten.as_deref().unwrap_or(path))
    }

    async fn answer(&self, request: Request) -> Response {
        let Some(method) = self.method(request.uri().path()) else {
            return answer::refusal(&Status::not_found("Not Found"));
        };
        if request.method() != HttpMethod::POST {
            return answer::refusal(&Status::unimplemented("Method Not Allowed"));
        }
        self.call(method, request).await.unwrap_or_else(|status| answer::refusal(&status))
    }

    async fn call(&self, method: &Method, request: Request) -> Result<Response, Status> {
        let timeout = headers::timeout(request.headers())?;
        let call = Call {
            metadata: headers::metadata(request.headers(), request.uri())?,
            deadline: timeout.filter(|timeout| !timeout.is_zero()).map(deadline),
        };
        let body = request.into_body();
        if method.takes_stream {
            let messages = json::messages(body, method.input.clone(), self.json_bytes_max);
            return Ok(self.stream(method, call, messages).await);
        }
        let message = json::message(body, &method.input, self.json_bytes_max).await?;
        if method.gives_stream {
            return Ok(self.stream(method, call, futures::stream::iter([message])).await);
        }
        self.unary(method, call, message).await
    }

    async fn unary(&self, method: &Method, call: Call, message: DynamicMessage) -> Result<Response, Status> {
        let mut client = self.client().await;
        let deadline = call.deadline;
        let codec = DynamicCodec::new(&method.output);
        let called = client.unary(call.request(message), method.rpc.clone(), codec);
        let message = before(deadline, called).await??.into_inner();
        answer::message(&message)
    }

    /// The answer begins with the first message: a call that is refused before it has the refusal's code.
    async fn stream(
        &self,
        method: &Method,
        call: Call,
        messages: impl Stream<Item = DynamicMessage> + Send + 'static,
    ) -> Response {
        let deadline = call.deadline;
        let opened = async {
            let mut client = self.client().await;
            let codec = DynamicCodec::new(&method.output);
            let streaming = client.streaming(call.request(messages), method.rpc.clone(), codec);
            let mut responses = before(deadline, streaming).await??.into_inner();
            let first = before(deadline, responses.message()).await??;
            Ok((first, responses))
        };
        match opened.await {
            // Without a message there is no header to pass on.
            Ok((None, _)) => StatusCode::OK.into_response(),
            Ok((Some(first), responses)) => {
                let first = futures::stream::iter([answer::part(&first)]);
                let parts = first.chain(rest(responses, deadline)).map(Ok::<Bytes, std::convert::Infallible>);
                answer::stream(Body::from_stream(parts))
            }
            Err(status) => answer::refused_stream(&status),
        }
    }

    async fn client(&self) -> Grpc<Routes> {
        let client = Grpc::new(self.services.clone());
        let mut client = client.max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);
        let Ok(()) = client.ready().await;
        client
    }
}

/// The rest of a stream, up to its end or its error.
fn rest(responses: Streaming<DynamicMessage>, deadline: Option<Instant>) -> impl Stream<Item = Bytes> + Send {
    futures::stream::unfold(Some(responses), move |responses| async move {
        let mut responses = responses?;
        match before(deadline, responses.message()).await.and_then(|message| message) {
            Ok(message) => Some((answer::part(&message?), Some(responses))),
            Err(status) => Some((answer::error_part(&status), None)),
        }
    })
}

/// A timeout that is too long for the clock is none that anyone lives to see.
fn deadline(timeout: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    Instant::now() + timeout.min(CENTURY)
}

async fn before<T>(deadline: Option<Instant>, call: impl Future<Output = T>) -> Result<T, Status> {
    let late = || Status::deadline_exceeded("context deadline exceeded");
    match deadline {
        None => Ok(call.await),
        // A call that is late already is not made.
        Some(deadline) if deadline <= Instant::now() => Err(late()),
        Some(deadline) => tokio::time::timeout_at(deadline, call).await.map_err(|_| late()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_of_etcds_services_has_a_path_but_one() {
        let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut without = Vec::new();
        for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let rpc = format!("{}/{}", method.parent_service().full_name(), method.name());
            if !paths::PATHS.iter().any(|(_, found)| *found == rpc) {
                without.push(rpc);
            }
        }
        assert_eq!(without, ["etcdserverpb.KV/RangeStream"]);
        assert_eq!(methods().unwrap().len(), paths::PATHS.len(), "no path is there twice");
    }

    #[test]
    fn only_watch_and_keep_alive_take_streams() {
        let mut taking: Vec<_> =
            methods().unwrap().into_iter().filter(|(_, method)| method.takes_stream).map(|(path, _)| path).collect();
        taking.sort();
        assert_eq!(taking, ["/v3/lease/keepalive", "/v3/watch"]);
    }
}
