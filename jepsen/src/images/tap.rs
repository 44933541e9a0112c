//! What members promise each other, read where it leaves them: whoever has been told may count on it.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Frame, SizeHint};
use prost::Message as _;
use proto::peer::{AppendRequest, AppendResponse, VoteResponse, append_response};
use raft::recovered::{Ballot, EntryId};
use tonic::body::Body;
use tower::{Layer, Service};

use super::trace::{Mark, mark};

/// Of a message before its content: whether it is compressed, and its length. (gRPC over HTTP/2.)
const PREFIX_LEN: usize = 5;

/// Listens to what `member` is asked and answers.
#[derive(Clone)]
pub struct Tap {
    pub member: usize,
}

impl<S> Layer<S> for Tap {
    type Service = Tapped<S>;

    fn layer(&self, inner: S) -> Tapped<S> {
        Tapped { inner, member: self.member }
    }
}

#[derive(Clone)]
pub struct Tapped<S> {
    inner: S,
    member: usize,
}

impl<S> Service<Request<Body>> for Tapped<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let member = self.member;
        // A stream of entries is of one leader.
        let leader_term = Arc::new(AtomicU64::new(0));
        let of_responses = leader_term.clone();
        match request.uri().path() {
            "/peer.Peer/AppendStream" => {
                let request = request.map(|body| listen(body, move |message| follows(member, message, &leader_term)));
                let response = self.inner.call(request);
                Box::pin(async move {
                    let matches = move |message| matches(member, message, &of_responses);
                    Ok(response.await?.map(|body| listen(body, matches)))
                })
            }
            "/peer.Peer/Vote" => {
                let response = self.inner.call(request);
                Box::pin(
                    async move { Ok(response.await?.map(|body| listen(body, move |message| voted(member, message)))) },
                )
            }
            _ => Box::pin(self.inner.call(request)),
        }
    }
}

/// A leader sends what it has when a quorum has voted for it, itself among that.
fn follows(member: usize, message: Bytes, leader_term: &AtomicU64) {
    let Some(leader) = AppendRequest::decode(message).ok().and_then(|request| request.leader) else { return };
    if leader_term.fetch_max(leader.term, Ordering::SeqCst) < leader.term {
        mark(Mark::Follows { member, term: leader.term });
        if let Some(other) = leader.member.checked_sub(1) {
            let ballot = Ballot { term: leader.term, member: leader.member, is_leader: true };
            mark(Mark::Voted { member: other as usize, ballot });
        }
    }
}

fn matches(member: usize, message: Bytes, leader_term: &AtomicU64) {
    let response = AppendResponse::decode(message).ok().and_then(|response| response.result);
    if let Some(append_response::Result::Matching(matching)) = response
        && let Some(id) = matching.id
    {
        // Between members indexes count from 0.
        let last = EntryId { term: id.term, index: id.index + 1 };
        mark(Mark::Matches { member, leader_term: leader_term.load(Ordering::SeqCst), last });
    }
}

fn voted(member: usize, message: Bytes) {
    let Ok(VoteResponse { vote: Some(vote), granted: true, .. }) = VoteResponse::decode(message) else { return };
    let ballot = Ballot { term: vote.term, member: vote.member, is_leader: vote.committed };
    mark(Mark::Voted { member, ballot });
}

fn listen(body: Body, hears: impl FnMut(Bytes) + Send + Unpin + 'static) -> Body {
    Body::new(Listening { body, unread: BytesMut::new(), ready: VecDeque::new(), hears })
}

/// Lets a body pass, message by message: whole ones are heard before any byte of them goes on.
struct Listening<F> {
    body: Body,
    unread: BytesMut,
    ready: VecDeque<Bytes>,
    hears: F,
}

impl<F: FnMut(Bytes)> Listening<F> {
    fn take(&mut self, data: Bytes) {
        self.unread.extend_from_slice(&data);
        while let Some(len) = self.unread.get(1..PREFIX_LEN).map(|mut len| len.get_u32() as usize)
            && self.unread.len() >= PREFIX_LEN + len
        {
            let message = self.unread.split_to(PREFIX_LEN + len).freeze();
            (self.hears)(message.slice(PREFIX_LEN..));
            self.ready.push_back(message);
        }
    }
}

impl<F: FnMut(Bytes) + Send + Unpin> hyper::body::Body for Listening<F> {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(message))));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else { return Poll::Pending };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.take(data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
