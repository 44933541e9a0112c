//! A unary call: one message in, one message out. What tonic does for streams, a buffer that grows and a box for each
//! part, is left out: mostly a message has come whole, in one frame, and is decoded where it lies.
//! Source: gRPC over HTTP/2 (`PROTOCOL-HTTP2.md`), Length-Prefixed-Message.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures::{
    FutureExt as _,
    future::{BoxFuture, ready},
};
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::Body as HttpBody;
use prost::Message;
use tonic::{Response, Status};

use crate::{grpc::BoxError, too_large};

/// A flag and four bytes of length.
pub const PREFIX_BYTES: usize = 5;

/// Whether the message of a request with these headers stands there as it is.
pub fn is_plain(headers: &HeaderMap) -> bool {
    headers.get("grpc-encoding").is_none_or(|encoding| encoding == "identity")
}

/// The answer to a call, as a message with its prefix.
pub type Encoded = Result<Response<Bytes>, Status>;

/// Decodes the message of a call, carries the call out, and gives what `end` makes of the answer. Bytes that are no
/// message are answered with a refusal.
pub fn carry_out<Q, F, O>(
    request: tonic::Request<Bytes>,
    call: impl FnOnce(tonic::Request<Q>) -> F,
    end: impl FnOnce(Encoded) -> O + Send + 'static,
) -> BoxFuture<'static, O>
where
    Q: Message + Default,
    F: Future<Output = Encoded> + Send + 'static,
    O: Send + 'static,
{
    match decode(request) {
        Ok(request) => call(request).map(end).boxed(),
        Err(refusal) => {
            let output = end(Err(refusal));
            ready(output).boxed()
        }
    }
}

/// Encodes an answer.
///
/// # Errors
/// As [`set_prefix`].
pub fn encoded(answer: Response<impl Message>) -> Encoded {
    let (metadata, answer, extensions) = answer.into_parts();
    Ok(Response::from_parts(metadata, with_prefix(&answer)?, extensions))
}

fn decode<Q: Message + Default>(request: tonic::Request<Bytes>) -> Result<tonic::Request<Q>, Status> {
    let (metadata, extensions, message) = request.into_parts();
    let message = Q::decode(message).map_err(|error| Status::internal(error.to_string()))?;
    Ok(tonic::Request::from_parts(metadata, extensions, message))
}

/// The message that these bytes are, if they are one and no more.
pub fn whole(bytes: &Bytes) -> Option<Bytes> {
    let [0, length @ ..] = *bytes.first_chunk::<PREFIX_BYTES>()? else { return None };
    (u32::from_be_bytes(length) as usize == bytes.len() - PREFIX_BYTES).then(|| bytes.slice(PREFIX_BYTES..))
}

/// The one message of a body. What comes behind it is passed over.
///
/// # Errors
/// When what comes is no message, or one of more than `bytes_max`.
pub async fn receive<B>(mut body: B, bytes_max: usize) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut come = next(&mut body).await?.ok_or_else(|| Status::internal("Missing request message."))?;
    if come.len() < PREFIX_BYTES {
        come = gather(&mut body, come, PREFIX_BYTES).await?;
    }
    let length = length_in(come.first_chunk().expect("it has been gathered"), bytes_max)?;
    if come.len() < PREFIX_BYTES + length {
        come = gather(&mut body, come, PREFIX_BYTES + length).await?;
    }
    while !body.is_end_stream() && next(&mut body).await?.is_some() {}
    Ok(come.slice(PREFIX_BYTES..PREFIX_BYTES + length))
}

/// The length of the message behind a prefix.
///
/// # Errors
/// When it is above `bytes_max`, or the prefix is that of no message in plain bytes.
pub fn length_in(&[flag, ref length @ ..]: &[u8; PREFIX_BYTES], bytes_max: usize) -> Result<usize, Status> {
    let length = u32::from_be_bytes(*length) as usize;
    match flag {
        0 if length <= bytes_max => Ok(length),
        0 => Err(too_large::refusal(length, bytes_max)),
        1 => Err(Status::internal("the message is compressed, but no grpc-encoding is named")),
        _ => Err(Status::internal(format!("a message begins with the flag {flag}, and not with 0 or 1"))),
    }
}

/// The next bytes of a body that is none of trailers.
async fn next<B>(body: &mut B) -> Result<Option<Bytes>, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    while let Some(frame) = Pin::new(&mut *body).frame().await {
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// What has come, and what comes until there are `bytes` at least.
async fn gather<B>(body: &mut B, come: Bytes, bytes: usize) -> Result<Bytes, Status>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut gathered = BytesMut::with_capacity(bytes);
    gathered.extend_from_slice(&come);
    while gathered.len() < bytes {
        let data = next(body).await?.ok_or_else(|| Status::internal("Unexpected EOF decoding stream."))?;
        gathered.extend_from_slice(&data);
    }
    Ok(gathered.freeze())
}

/// Encodes a message behind its prefix.
pub fn with_prefix(message: &impl Message) -> Result<Bytes, Status> {
    let mut encoded = Vec::with_capacity(PREFIX_BYTES + message.encoded_len());
    append(&mut encoded, |out| message.encode_raw(out))?;
    Ok(encoded.into())
}

/// Appends the message that `encode` appends, behind its prefix.
///
/// # Errors
/// As [`set_prefix`].
pub fn append(out: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), Status> {
    let begin = out.len();
    out.extend([0; PREFIX_BYTES]);
    encode(out);
    set_prefix(&mut out[begin..])
}

/// Sets the prefix of an encoded message, for which there is room before it.
///
/// # Errors
/// When the message is longer than a prefix can say.
pub fn set_prefix(encoded: &mut [u8]) -> Result<(), Status> {
    let bytes = encoded.len() - PREFIX_BYTES;
    let length = u32::try_from(bytes)
        .map_err(|_| Status::resource_exhausted(format!("an answer of {bytes} bytes is longer than gRPC takes")))?;
    encoded[0] = 0;
    encoded[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures::stream;
    use proto::etcdserverpb::{RangeRequest, RangeResponse};
    use tonic::Code;

    use super::*;

    const MAX: usize = 1 << 20;

    async fn answer(pieces: Vec<Vec<u8>>) -> Result<Bytes, Status> {
        let pieces = pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let message = receive(Body::from_stream(stream::iter(pieces)), MAX).await?;
        let call = async |request: tonic::Request<RangeRequest>| {
            let count = request.get_ref().key.len() as i64;
            encoded(Response::new(RangeResponse { count, ..Default::default() }))
        };
        carry_out(tonic::Request::new(message), call, std::convert::identity).await.map(Response::into_inner)
    }

    fn range(key_bytes: usize) -> Vec<u8> {
        with_prefix(&RangeRequest { key: vec![b'k'; key_bytes].into(), ..Default::default() }).unwrap().to_vec()
    }

    #[tokio::test]
    async fn a_message_is_read_however_it_is_cut() {
        for key_bytes in [0, 1, 100, 40_000] {
            let sent = range(key_bytes);
            let expected = with_prefix(&RangeResponse { count: key_bytes as i64, ..Default::default() }).unwrap();
            for piece in [1, 2, 4, 5, 6, 7, 99, sent.len()] {
                let pieces = sent.chunks(piece).map(<[u8]>::to_vec).collect();
                assert_eq!(answer(pieces).await.unwrap(), expected, "{key_bytes} bytes in pieces of {piece}");
            }
        }
    }

    #[test]
    fn one_message_and_no_more_is_whole() {
        let sent = Bytes::from(range(100));
        assert_eq!(whole(&sent).unwrap(), sent[PREFIX_BYTES..]);
        for other in [sent.slice(..99), sent.slice(..3), [&sent[..], &[0]].concat().into(), vec![1, 0, 0, 0, 0].into()]
        {
            assert_eq!(whole(&other), None);
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let cut = range(100)[..50].to_vec();
        let long = [&[0][..], &(MAX as u32 + 1).to_be_bytes()].concat();
        for (pieces, code, text) in [
            (vec![], Code::Internal, "Missing request message."),
            (vec![vec![0, 0]], Code::Internal, "Unexpected EOF"),
            (vec![cut], Code::Internal, "Unexpected EOF"),
            (vec![vec![1, 0, 0, 0, 0]], Code::Internal, "compressed"),
            (vec![vec![7, 0, 0, 0, 0]], Code::Internal, "flag 7"),
            (vec![vec![0, 0, 0, 0, 1, 0xff]], Code::Internal, "decode"),
            (vec![long], Code::ResourceExhausted, "received message larger than max (1048577 vs. 1048576)"),
        ] {
            let status = answer(pieces).await.unwrap_err();
            assert!(status.code() == code && status.message().contains(text), "{status:?}");
        }
    }
}
