//! Calls with messages in both directions, as they stand on the wire: a message is decoded where it lies, and answers
//! that are there at the same time go together. tonic has a buffer, a frame and some futures for each.

use std::{
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::{Stream, stream::BoxStream};
use hyper::body::Body as HttpBody;
use prost::Message;
use tonic::{Code, Status};

use crate::{
    grpc::BoxError,
    unary::{PREFIX_BYTES, length_in},
};

/// What is answered: whole messages with their prefixes, one or more at a time.
pub type Encoded = BoxStream<'static, Result<Bytes, Status>>;

/// The messages of a request. Nothing comes behind an error.
pub struct Requests<B, Q> {
    body: B,
    bytes_max: usize,
    come: Bytes,
    /// The beginning of a message of which `come` did not hold all.
    begun: BytesMut,
    has_failed: bool,
    message: PhantomData<fn() -> Q>,
}

impl<B, Q> Requests<B, Q>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    Q: Message + Default,
{
    /// Those of `body`, none of which may be longer than `bytes_max`.
    pub fn new(body: B, bytes_max: usize) -> Self {
        let (come, begun) = (Bytes::new(), BytesMut::new());
        Requests { body, bytes_max, come, begun, has_failed: false, message: PhantomData }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Q, Status>>> {
        loop {
            if let Some(message) = self.take()? {
                let decoded = Q::decode(message).map_err(|error| Status::internal(error.to_string()));
                return Poll::Ready(Some(decoded));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => self.come = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    let status = Status::from_error(error.into());
                    // The client is gone: that is an end, too.
                    return Poll::Ready((status.code() != Code::Cancelled).then_some(Err(status)));
                }
                None if self.begun.is_empty() => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(Status::internal("Unexpected EOF decoding stream.")))),
            }
        }
    }

    /// The next message, if all of it has come.
    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        if !self.begun.is_empty() {
            self.begun.extend_from_slice(&self.come);
            self.come = Bytes::new();
            if self.end_of_first(&self.begun)?.is_none() {
                return Ok(None);
            }
            self.come = std::mem::take(&mut self.begun).freeze();
        }
        match self.end_of_first(&self.come)? {
            Some(end) => {
                let mut message = self.come.split_to(end);
                message.advance(PREFIX_BYTES);
                Ok(Some(message))
            }
            None => {
                self.begun.extend_from_slice(&self.come);
                self.come = Bytes::new();
                Ok(None)
            }
        }
    }

    /// Where the first message ends, if `bytes` hold all of it.
    fn end_of_first(&self, bytes: &[u8]) -> Result<Option<usize>, Status> {
        let Some(prefix) = bytes.first_chunk() else { return Ok(None) };
        let end = PREFIX_BYTES + length_in(prefix, self.bytes_max)?;
        Ok((end <= bytes.len()).then_some(end))
    }
}

impl<B, Q> Stream for Requests<B, Q>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    Q: Message + Default,
{
    type Item = Result<Q, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.has_failed {
            return Poll::Ready(None);
        }
        let item = ready!(self.poll_message(cx));
        self.has_failed = matches!(item, Some(Err(_)));
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures::{StreamExt as _, stream};
    use proptest::prelude::*;
    use proto::etcdserverpb::LeaseKeepAliveRequest;

    use super::*;
    use crate::unary::with_prefix;

    const MAX: usize = 20;

    fn requests(pieces: Vec<Vec<u8>>) -> Requests<Body, LeaseKeepAliveRequest> {
        let pieces = pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        Requests::new(Body::from_stream(stream::iter(pieces)), MAX)
    }

    async fn read(pieces: Vec<Vec<u8>>) -> (Vec<i64>, Option<Status>) {
        let (mut ids, mut requests) = (Vec::new(), requests(pieces));
        while let Some(request) = requests.next().await {
            match request {
                Ok(request) => ids.push(request.id),
                Err(status) => {
                    assert!(requests.next().await.is_none());
                    return (ids, Some(status));
                }
            }
        }
        (ids, None)
    }

    fn encoded(ids: &[i64]) -> Vec<u8> {
        ids.iter().flat_map(|&id| with_prefix(&LeaseKeepAliveRequest { id }).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn messages_in_any_pieces_are_read(ids: Vec<i64>, cuts in prop::collection::vec(1..40usize, 1..20)) {
            let bytes = encoded(&ids);
            let (mut rest, mut pieces) = (&bytes[..], Vec::new());
            for cut in cuts.iter().cycle() {
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece.to_vec());
                rest = behind;
                if rest.is_empty() {
                    break;
                }
            }
            let (read, failed) = futures::executor::block_on(read(pieces));
            prop_assert_eq!(read, ids);
            prop_assert!(failed.is_none());
        }
    }

    #[tokio::test]
    async fn what_is_no_message_ends_it_behind_those_before() {
        for (bad, text) in [
            (vec![0, 0], "Unexpected EOF"),
            (vec![0, 0, 0, 0, 2, 8], "Unexpected EOF"),
            (vec![0, 0, 0, 0, MAX as u8 + 1], "received message larger than max (21 vs. 20)"),
            (vec![1, 0, 0, 0, 0], "compressed"),
            (vec![7, 0, 0, 0, 0], "flag 7"),
            (vec![0, 0, 0, 0, 1, 0xff], "decode"),
        ] {
            let together = [encoded(&[3, 4]), bad.clone()].concat();
            for pieces in [vec![together], vec![encoded(&[3, 4]), bad]] {
                let (ids, failed) = read(pieces).await;
                assert_eq!(ids, [3, 4]);
                let message = failed.expect("it is refused").message().to_string();
                assert!(message.contains(text), "{message}");
            }
        }
    }
}
