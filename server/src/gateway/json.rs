//! Messages in JSON: one in a request, or one after the other.
//!
//! The rules are protojson's: fields by their names in the .proto file or in lowerCamelCase, 64-bit numbers as strings or
//! as numbers, bytes in either base64, enums by name or number; unknown fields are passed over. Answers have the names
//! of the .proto files, and leave out what has its default.

use axum::body::{Body, BodyDataStream};
use bytes::BytesMut;
use futures::{Stream, StreamExt as _};
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use tonic::Status;

const READ: DeserializeOptions = DeserializeOptions::new().deny_unknown_fields(false);
const WRITE: SerializeOptions = SerializeOptions::new().use_proto_field_name(true);

/// Reads the one message of a request. No body at all is an empty message; what follows the message is passed over.
pub async fn message(body: Body, descriptor: &MessageDescriptor, bytes_max: usize) -> Result<DynamicMessage, Status> {
    let bytes = read(body, bytes_max).await?;
    decode(descriptor, &bytes)
}

async fn read(body: Body, bytes_max: usize) -> Result<BytesMut, Status> {
    let mut chunks = body.into_data_stream();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| Status::invalid_argument(error.to_string()))?);
        if bytes.len() > bytes_max {
            let text = format!("grpc: received message larger than max ({} vs. {bytes_max})", bytes.len());
            return Err(Status::resource_exhausted(text));
        }
    }
    Ok(bytes)
}

fn decode(descriptor: &MessageDescriptor, bytes: &[u8]) -> Result<DynamicMessage, Status> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(DynamicMessage::new(descriptor.clone()));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    DynamicMessage::deserialize_with_options(descriptor.clone(), &mut json, &READ)
        .map_err(|error| Status::invalid_argument(format!("proto: {error}")))
}

/// Appends the message as JSON.
pub fn encode(message: &DynamicMessage, to: &mut Vec<u8>) -> Result<(), Status> {
    message
        .serialize_with_options(&mut serde_json::Serializer::new(to), &WRITE)
        .map_err(|error| Status::internal(error.to_string()))
}

/// Reads the messages of a request as they come. As in grpc-gateway, one that cannot be read ends them, and the call
/// goes on.
pub fn messages(
    body: Body,
    descriptor: MessageDescriptor,
    bytes_max: usize,
) -> impl Stream<Item = DynamicMessage> + Send + 'static {
    let reader = Reader {
        chunks: body.into_data_stream(),
        descriptor,
        bytes_max,
        bytes: BytesMut::new(),
        boundary: Boundary::default(),
    };
    futures::stream::unfold(reader, |mut reader| async {
        let message = reader.next().await?;
        Some((message, reader))
    })
}

struct Reader {
    chunks: BodyDataStream,
    descriptor: MessageDescriptor,
    bytes_max: usize,
    bytes: BytesMut,
    boundary: Boundary,
}

impl Reader {
    async fn next(&mut self) -> Option<DynamicMessage> {
        loop {
            if let Some(end) = self.boundary.find(&self.bytes) {
                self.boundary = Boundary::default();
                let bytes = self.bytes.split_to(end);
                let message = decode(&self.descriptor, &bytes);
                return message.inspect_err(|status| tracing::debug!(error = status.message(), "JSON")).ok();
            }
            if self.bytes.len() > self.bytes_max {
                return None;
            }
            self.bytes.extend_from_slice(&self.chunks.next().await?.ok()?);
        }
    }
}

/// Looks for the end of a JSON object as its bytes come in.
#[derive(Default)]
struct Boundary {
    seen: usize,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl Boundary {
    /// `bytes` is what came before, and more.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(&byte) = bytes.get(self.seen) {
            self.seen += 1;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_string => self.is_escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(self.seen);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost_reflect::DescriptorPool;

    use super::*;

    fn descriptor(name: &str) -> MessageDescriptor {
        DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).unwrap().get_message_by_name(name).unwrap()
    }

    /// What is read, as it is written.
    fn written(name: &str, json: &str) -> String {
        let mut to = Vec::new();
        encode(&decode(&descriptor(name), json.as_bytes()).unwrap(), &mut to).unwrap();
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn a_message_is_written_by_protojsons_rules() {
        let range = r#"{"rangeEnd":"_w","key":"Zm9v","limit":7,"revision":"9","sort_order":"DESCEND","sort_target":2,"none":[1],"keys_only":false,"min_mod_revision":null}"#;
        assert_eq!(
            written("etcdserverpb.RangeRequest", range),
            r#"{"key":"Zm9v","range_end":"/w==","limit":"7","revision":"9","sort_order":"DESCEND","sort_target":"CREATE"}"#
        );
        assert_eq!(written("etcdserverpb.LeaseGrantRequest", r#"{"TTL":"5","ID":6}"#), r#"{"TTL":"5","ID":"6"}"#);
        assert_eq!(
            written("etcdserverpb.TxnRequest", r#"{"success":[{"requestPut":{"key":"YQ"}}],"failure":[{}]}"#),
            r#"{"success":[{"request_put":{"key":"YQ=="}}],"failure":[{}]}"#
        );
        assert_eq!(written("etcdserverpb.RangeRequest", " \n"), "{}");
        assert_eq!(written("etcdserverpb.RangeRequest", "{} and more"), "{}");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for json in ["{", "[]", "7", r#"{"key":3}"#, r#"{"key":"*"}"#, r#"{"limit":"x"}"#, "null"] {
            let status = decode(&descriptor("etcdserverpb.RangeRequest"), json.as_bytes()).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{json}");
        }
    }

    async fn read_all(chunks: &[&'static str]) -> Vec<String> {
        let chunks = chunks.iter().map(|chunk| Ok::<_, std::convert::Infallible>(Bytes::from_static(chunk.as_bytes())));
        let body = Body::from_stream(futures::stream::iter(chunks.collect::<Vec<_>>()));
        let messages = messages(body, descriptor("etcdserverpb.AuthUserAddRequest"), 100);
        messages.map(|message| message.get_field_by_name("name").unwrap().as_str().unwrap().into()).collect().await
    }

    #[tokio::test]
    async fn messages_come_one_after_the_other_however_they_are_cut() {
        assert_eq!(
            read_all(&[r#"{"name":"a"}{"na"#, r#"me":"b}\"{"#, "\"}\n\n", r#" {"name":"c"}"#]).await,
            ["a", "b}\"{", "c"]
        );
    }

    #[tokio::test]
    async fn a_message_that_cannot_be_read_ends_them() {
        assert_eq!(read_all(&[r#"{"name":"a"}{"name":7}{"name":"c"}"#]).await, ["a"]);
        assert_eq!(read_all(&[r#"{"name":"a"}{"name":"#]).await, ["a"]);
    }

    #[tokio::test]
    async fn a_long_message_is_refused() {
        let long = || Body::from(format!(r#"{{"name":"{}"}}"#, "x".repeat(100)));
        let status = message(long(), &descriptor("etcdserverpb.AuthUserAddRequest"), 100).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }
}
