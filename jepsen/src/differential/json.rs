//! The JSON gateway as a client sees it: a request as JSON over HTTP, and the answer with its outward form.
//!
//! An answer is compared twice: as the message that it holds, like an answer over gRPC, and by its [`Form`].

use std::sync::LazyLock;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::Value;
use tokio::net::TcpStream;
use tonic::Code;

use super::request::{Answer, Failure, Request};

static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).expect("the descriptors were written by the compiler")
});

/// The packages in which a message may be.
const PACKAGES: [&str; 3] = ["etcdserverpb", "v3electionpb", "v3lockpb"];

/// Values that differ from server to server: only their kind is compared.
const OWN_VALUES: [&str; 17] = [
    "cluster_id",
    "member_id",
    "raft_term",
    "ID",
    "TTL",
    "hash",
    "version",
    "dbSize",
    "dbSizeInUse",
    "leader",
    "raftIndex",
    "raftAppliedIndex",
    "raftTerm",
    "token",
    "peerURLs",
    "clientURLs",
    "errors",
];

/// What of an HTTP answer the message does not show: status, types, names, how values are written. Lists are sorted, for
/// some have no order.
#[derive(Debug, PartialEq)]
pub struct Form {
    status: StatusCode,
    content_type: String,
    metadata: Vec<String>,
    body: Value,
}

fn descriptor(message: &str) -> MessageDescriptor {
    // The one name that is spelt otherwise in Rust.
    let message = message.replace("HashKv", "HashKV");
    let mut found =
        PACKAGES.iter().filter_map(|package| DESCRIPTORS.get_message_by_name(&format!("{package}.{message}")));
    found.next().expect("every request and answer is a message of etcd's")
}

/// The request's JSON, as a client writes it that names fields as the .proto files do.
fn body(request: &Request) -> Result<Vec<u8>> {
    let message = DynamicMessage::decode(descriptor(request.messages().0), request.encoded().as_slice())?;
    let mut json = serde_json::Serializer::new(Vec::new());
    message.serialize_with_options(&mut json, &SerializeOptions::new().use_proto_field_name(true))?;
    Ok(json.into_inner())
}

/// Sends a request to a server's gateway; of a stream the first answer counts.
pub async fn call(address: &str, request: &Request, token: Option<&str>) -> Result<(Answer, Form)> {
    let path = request.path().context("the gateway has no such request")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    // Ends with the connection, whose failures the answer shows.
    tokio::spawn(connection);
    let mut http = hyper::Request::post(path).header("Host", address).header("Content-Type", "application/json");
    if let Some(token) = token {
        http = http.header("Authorization", token);
    }
    let response = sender.send_request(http.body(Full::new(Bytes::from(body(request)?)))?).await?;
    answer(request, response).await
}

async fn answer(request: &Request, response: Response<Incoming>) -> Result<(Answer, Form)> {
    let (head, mut body) = response.into_parts();
    let text = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap_or("not text")).to_owned();
    let metadata = head.headers.keys().filter(|name| name.as_str().starts_with("grpc-")).map(|name| name.to_string());
    let is_stream = matches!(request, Request::KeepAlive(_));
    let bytes = match is_stream {
        true => first_line(&mut body).await?,
        false => body.collect().await?.to_bytes().to_vec(),
    };
    let value: Value = serde_json::from_slice(&bytes)
        .with_context(|| format!("{}: not JSON: {}", head.status, String::from_utf8_lossy(&bytes)))?;
    let mut form = Form {
        status: head.status,
        content_type: text("content-type"),
        metadata: metadata.collect(),
        body: value.clone(),
    };
    form.metadata.sort();
    normalise(&mut form.body);

    let (result, error) = match head.status.is_success() {
        // A stream that is refused before it begins is refused like any other call.
        true if is_stream => (value.get("result").cloned(), value.get("error").cloned()),
        true => (Some(value), None),
        false => (None, Some(value.get("error").filter(|error| error.is_object()).unwrap_or(&value).clone())),
    };
    let answer = match (result, error) {
        (Some(result), None) => {
            let options = DeserializeOptions::new().deny_unknown_fields(true);
            let message = DynamicMessage::deserialize_with_options(descriptor(request.messages().1), result, &options)?;
            Ok(request.decode_reply(&message.encode_to_vec())?)
        }
        (None, Some(error)) => Err(failure(&error)?),
        _ => return Err(anyhow::anyhow!("neither a result nor an error: {}", String::from_utf8_lossy(&bytes))),
    };
    Ok((answer, form))
}

fn failure(error: &Value) -> Result<Failure> {
    let code = error.get("code").and_then(Value::as_i64).with_context(|| format!("no code in {error}"))?;
    let message =
        error.get("message").map_or(Some(""), Value::as_str).with_context(|| format!("a text in {error}?"))?;
    Ok(Failure { code: format!("{:?}", Code::from_i32(code as i32)), message: message.to_owned() })
}

async fn first_line(body: &mut Incoming) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    while !line.contains(&b'\n') {
        let Some(frame) = body.frame().await else { break };
        line.extend_from_slice(frame?.data_ref().context("trailers in place of data")?);
    }
    ensure!(!line.is_empty(), "the stream ended without an answer");
    line.truncate(line.iter().position(|byte| *byte == b'\n').unwrap_or(line.len()));
    Ok(line)
}

/// Replaces what differs from server to server by its kind.
fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match OWN_VALUES.contains(&name.as_str()) {
                    true => *field = kind(field),
                    false => normalise(field),
                }
            }
        }
        Value::Array(values) => {
            values.iter_mut().for_each(normalise);
            values.sort_by_cached_key(Value::to_string);
        }
        _ => {}
    }
}

fn kind(value: &Value) -> Value {
    Value::from(match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(text) if text.parse::<i128>().is_ok() => "a number in quotes",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    })
}
