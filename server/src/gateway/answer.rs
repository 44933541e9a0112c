//! HTTP answers: a message, a stream of messages, or an error. Source: grpc-gateway 2, `runtime/handler.go`, `errors.go`.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use prost_reflect::DynamicMessage;
use serde::Serialize;
use tonic::{Code, Status};

use super::json;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The only header of the services' answers, as grpc-gateway passes it on.
const GRPC_CONTENT_TYPE: (&str, HeaderValue) =
    ("grpc-metadata-content-type", HeaderValue::from_static("application/grpc"));

pub fn message(message: &DynamicMessage) -> Result<Response, Status> {
    let mut bytes = Vec::new();
    json::encode(message, &mut bytes)?;
    Ok(stream(bytes.into()))
}

/// An answer that all goes well with so far.
pub fn stream(body: Body) -> Response {
    let mut response = response(StatusCode::OK, body);
    let (name, value) = GRPC_CONTENT_TYPE;
    response.headers_mut().insert(name, value);
    response
}

/// The error of a call with one answer.
pub fn refusal(status: &Status) -> Response {
    let mut response = response(http_status(status.code()), error(status).into());
    if status.code() == Code::Unauthenticated
        && let Ok(text) = HeaderValue::from_str(status.message())
    {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, text);
    }
    response
}

/// The error of a stream that has nothing before it.
pub fn refused_stream(status: &Status) -> Response {
    response(http_status(status.code()), error_part(status).into())
}

/// One message of a stream.
pub fn part(message: &DynamicMessage) -> Bytes {
    let mut bytes = br#"{"result":"#.to_vec();
    match json::encode(message, &mut bytes) {
        Ok(()) => {
            bytes.extend_from_slice(b"}\n");
            bytes.into()
        }
        Err(status) => error_part(&status),
    }
}

/// The error that ends a stream.
pub fn error_part(status: &Status) -> Bytes {
    [br#"{"error":"#.as_slice(), &error(status), b"}\n"].concat().into()
}

fn response(code: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// google.rpc.Status; etcd's errors have no details.
#[derive(Serialize)]
struct Error<'a> {
    code: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
}

fn error(status: &Status) -> Vec<u8> {
    let error = Error { code: status.code() as i32, message: status.message() };
    serde_json::to_vec(&error).expect("a number and a text are JSON")
}

fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // "Client closed request", which has no name in HTTP.
        Code::Cancelled => StatusCode::from_u16(499).expect("it has three digits"),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_code_and_a_text() {
        assert_eq!(error(&Status::not_found("Not Found")), br#"{"code":5,"message":"Not Found"}"#);
        assert_eq!(error(&Status::unknown("")), br#"{"code":2}"#);
        assert_eq!(error_part(&Status::unknown("<a>")), "{\"error\":{\"code\":2,\"message\":\"<a>\"}}\n");
    }

    #[test]
    fn a_missing_token_is_asked_for() {
        let response = refusal(&Status::unauthenticated("etcdserver: invalid auth token"));
        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()["www-authenticate"], "etcdserver: invalid auth token");
        assert_eq!(refused_stream(&Status::cancelled("")).status().as_u16(), 499);
    }
}
