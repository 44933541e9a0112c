//! What of an HTTP request's headers goes into the call. Source: grpc-gateway 2, `runtime/context.go`, `mux.go`.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, Uri, header};
use base64::{Engine as _, prelude::BASE64_STANDARD, prelude::BASE64_STANDARD_NO_PAD};
use tonic::{
    Status,
    metadata::{AsciiMetadataKey, BinaryMetadataKey, MetadataMap, MetadataValue},
};

/// Headers with this prefix are metadata without it.
const METADATA: &str = "grpc-metadata-";
/// What the headers that HTTP knows are called as metadata.
const FORWARDED: &str = "grpcgateway-";
const TIMEOUT: &str = "grpc-timeout";

/// The headers that pass with [`FORWARDED`] before their names.
const PERMANENT: &[&str] = &[
    "accept",
    "accept-charset",
    "accept-language",
    "accept-ranges",
    "authorization",
    "cache-control",
    "content-type",
    "cookie",
    "date",
    "expect",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-schedule-tag-match",
    "if-unmodified-since",
    "max-forwards",
    "origin",
    "pragma",
    "referer",
    "user-agent",
    "via",
    "warning",
];

/// How long the call may take; zero and none are both for as long as it takes.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(TIMEOUT).filter(|value| !value.is_empty()) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    match parse_timeout(&text) {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Status::invalid_argument(format!("invalid grpc-timeout: {text}"))),
    }
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let count: u64 = text.strip_suffix(unit)?.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(count.saturating_mul(3600)),
        'M' => Duration::from_secs(count.saturating_mul(60)),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// The call's metadata: the client's token in `authorization`, what it sent as metadata, and its plain headers.
pub fn metadata(headers: &HeaderMap, uri: &Uri) -> Result<MetadataMap, Status> {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        if name == header::AUTHORIZATION {
            append(&mut metadata, name.as_str(), value.as_bytes());
        }
        if PERMANENT.contains(&name.as_str()) {
            append(&mut metadata, &format!("{FORWARDED}{name}"), value.as_bytes());
        } else if let Some(key) = name.as_str().strip_prefix(METADATA) {
            append_own(&mut metadata, key, name, value.as_bytes())?;
        }
    }
    let forwarded = headers.get("x-forwarded-host").map(|host| host.as_bytes());
    let host = headers.get(header::HOST).map(|host| host.as_bytes());
    let host = forwarded.or(host).or(uri.authority().map(|authority| authority.as_str().as_bytes()));
    if let Some(host) = host {
        append(&mut metadata, "x-forwarded-host", host);
    }
    Ok(metadata)
}

/// What is not printable ASCII cannot be metadata, and is left out.
fn append(metadata: &mut MetadataMap, key: &str, value: &[u8]) {
    if let (Ok(key), Ok(value)) = (AsciiMetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(value)) {
        metadata.append(key, value);
    }
}

fn append_own(metadata: &mut MetadataMap, key: &str, name: &HeaderName, value: &[u8]) -> Result<(), Status> {
    if !key.ends_with("-bin") {
        // What gRPC keeps for itself is not a client's to say.
        if !key.starts_with("grpc-") {
            append(metadata, key, value);
        }
        return Ok(());
    }
    // With padding or without, as it comes.
    let engine = if value.len().is_multiple_of(4) { BASE64_STANDARD } else { BASE64_STANDARD_NO_PAD };
    let value = engine
        .decode(value)
        .map_err(|error| Status::invalid_argument(format!("invalid binary header {name}: {error}")))?;
    if let Ok(key) = BinaryMetadataKey::from_bytes(key.as_bytes()) {
        metadata.append_bin(key, MetadataValue::from_bytes(&value));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn a_token_passes_and_other_headers_change_their_names() {
        let headers = headers(&[
            ("authorization", "token"),
            ("accept", "*/*"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-metadata-a-bin", "AAE"),
            ("grpc-metadata-grpc-encoding", "gzip"),
            ("x-other", "no"),
            ("host", "h:1"),
        ]);
        let metadata = metadata(&headers, &Uri::from_static("/v3/kv/range")).unwrap();
        for (key, value) in [
            ("authorization", "token"),
            ("grpcgateway-authorization", "token"),
            ("grpcgateway-accept", "*/*"),
            ("hasleader", "true"),
            ("x-forwarded-host", "h:1"),
        ] {
            assert_eq!(metadata.get(key).unwrap(), value, "{key}");
        }
        assert_eq!(metadata.get_bin("a-bin").unwrap().to_bytes().unwrap(), &b"\0\x01"[..]);
        assert!(!metadata.contains_key("x-other") && !metadata.contains_key("grpc-encoding"));
    }

    #[test]
    fn a_timeout_has_a_unit() {
        for (text, millis) in [("1S", 1000), ("2M", 120_000), ("1H", 3_600_000), ("7m", 7), ("7000u", 7), ("0S", 0)] {
            let timeout = Duration::from_millis(millis);
            assert_eq!(parse_timeout(text), Some(timeout), "{text}");
        }
        for text in ["", "S", "1", "1x", "x1S"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
        let status = timeout(&headers(&[("grpc-timeout", "zz")])).unwrap_err();
        assert_eq!(status.message(), "invalid grpc-timeout: zz");
    }
}
