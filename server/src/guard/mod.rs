//! Clients that do harm. What stands between a connection and hyper is here: a client that sends nothing is not waited
//! for without end, and one that pings too often is sent away.
//!
//! ```text
//! frames.rs      HTTP/2 frame headers in a stream of bytes
//! pings.rs       how often a client may ping
//! requests.rs    a bound on the bytes of requests
//! answers.rs     a bound on the bytes of answers that a client does not take
//! ```

pub mod answers;
mod frames;
pub mod pings;
pub mod requests;

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use frames::Frames;
use pings::Pings;
use proto::http2::{PREFACE, frame::ENHANCE_YOUR_CALM};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// What a client that is sent away gets to read the reason in, as in grpc-go.
pub const LEAVE_MAX: Duration = Duration::from_secs(1);

/// A connection under guard.
pub struct Guard<T> {
    io: T,
    state: State,
    pings: Option<Pings>,
    received: Frames,
    sent: Frames,
}

enum State {
    /// So many bytes of the preface have come.
    Beginning {
        matched: usize,
        until: Pin<Box<Sleep>>,
    },
    /// HTTP/1, which hyper bounds itself; or HTTP/2 on a listener without a policy.
    Free,
    Http2,
    /// The client is sent away: what is still to be written, whether the connection is shut, and until when is waited.
    Leaving {
        goaway: Vec<u8>,
        is_shut: bool,
        until: Pin<Box<Sleep>>,
    },
}

impl<T> Guard<T> {
    /// The client must begin within `begin_max`. `ping_min_time` is the time between two pings; none for no limit.
    pub fn new(io: T, begin_max: Duration, ping_min_time: Option<Duration>) -> Guard<T> {
        let state = State::Beginning { matched: 0, until: Box::pin(sleep(begin_max)) };
        let pings = ping_min_time.map(Pings::new);
        Guard { io, state, pings, received: Frames::default(), sent: Frames::default() }
    }

    /// Looks at what the client has sent. The connection may have to end for it.
    fn look(&mut self, mut bytes: &[u8]) {
        if let State::Beginning { matched, .. } = &mut self.state {
            let taken = (PREFACE.len() - *matched).min(bytes.len());
            if PREFACE[*matched..*matched + taken] != bytes[..taken] {
                self.state = State::Free;
                return;
            }
            *matched += taken;
            if *matched < PREFACE.len() {
                return;
            }
            bytes = &bytes[taken..];
            self.state = if self.pings.is_some() { State::Http2 } else { State::Free };
        }
        let (State::Http2, Some(pings)) = (&self.state, &mut self.pings) else { return };
        let (now, mut is_calm) = (Instant::now(), true);
        self.received.follow(bytes, |head| is_calm &= pings.received(head, now));
        if !is_calm {
            // In the midst of a frame nothing can be said: then the connection ends without a reason.
            let says = self.sent.is_between();
            let goaway = frames::goaway(pings.last_stream(), ENHANCE_YOUR_CALM, "too_many_pings");
            let goaway = if says { goaway } else { Vec::new() };
            self.state = State::Leaving { goaway, is_shut: false, until: Box::pin(sleep(LEAVE_MAX)) };
            tracing::debug!("a client pings too often; closing its connection");
        }
    }

    fn wrote(&mut self, bytes: &[u8]) {
        if let (State::Http2, Some(pings)) = (&self.state, &mut self.pings) {
            self.sent.follow(bytes, |head| pings.sent(head));
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Guard<T> {
    /// Says why, and takes what still comes, so that the reason is not lost with a reset. Then the stream ends.
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State::Leaving { goaway, is_shut, until } = &mut self.state else { return Poll::Ready(Ok(())) };
        if until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        while !goaway.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, goaway))?;
            goaway.drain(..written);
        }
        if !*is_shut {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            *is_shut = true;
        }
        loop {
            let mut scratch = [0; 1024];
            let mut scratch = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut scratch))?;
            if scratch.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        if let State::Leaving { .. } = guard.state {
            return guard.poll_leave(cx);
        }
        let before = buf.filled().len();
        match Pin::new(&mut guard.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {
                let State::Beginning { until, .. } = &mut guard.state else { return Poll::Pending };
                ready!(until.as_mut().poll(cx));
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not begin")));
            }
        }
        guard.look(&buf.filled()[before..]);
        if let State::Leaving { .. } = guard.state {
            buf.set_filled(before);
            return guard.poll_leave(cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        if let State::Leaving { .. } = guard.state {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut guard.io).poll_write(cx, bytes))?;
        guard.wrote(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let guard = self.get_mut();
        if let State::Leaving { .. } = guard.state {
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        let written = ready!(Pin::new(&mut guard.io).poll_write_vectored(cx, slices))?;
        let mut left = written;
        for slice in slices {
            let part = left.min(slice.len());
            guard.wrote(&slice[..part]);
            left -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// For `crate::fuzzing`: the frames in these bytes, and whether the client would be sent away.
#[cfg(fuzzing)]
pub fn fuzzing(pieces: &[&[u8]]) -> (Vec<frames::Head>, bool) {
    let (mut frames, mut pings) = (Frames::default(), Pings::new(Duration::from_secs(5)));
    let (mut heads, mut stays, now) = (Vec::new(), true, std::time::Instant::now().into());
    for piece in pieces {
        frames.follow(piece, |head| {
            heads.push(head);
            stays &= pings.received(head, now);
        });
    }
    (heads, stays)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const MIN: Duration = Duration::from_secs(5);
    const PING: [u8; 17] = [0, 0, 8, proto::http2::frame::PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    #[tokio::test]
    async fn a_client_that_pings_too_often_is_told_so_and_sent_away() {
        let (mut client, server) = duplex(1 << 16);
        let mut guard = Guard::new(server, MIN, Some(MIN));
        client.write_all(PREFACE).await.unwrap();
        let mut received = vec![0; 1024];
        assert_eq!(guard.read(&mut received).await.unwrap(), PREFACE.len());
        for _ in 0..3 {
            client.write_all(&PING).await.unwrap();
            assert_eq!(guard.read(&mut received).await.unwrap(), PING.len());
        }
        client.write_all(&PING).await.unwrap();
        let begin = Instant::now();
        assert_eq!(guard.read(&mut received).await.unwrap(), 0, "the stream ends");
        assert!(begin.elapsed() >= LEAVE_MAX, "the client does not leave by itself");
        drop(guard);
        let mut told = Vec::new();
        client.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, frames::goaway(0, ENHANCE_YOUR_CALM, "too_many_pings"));
    }

    #[tokio::test]
    async fn a_client_that_does_not_begin_is_not_waited_for() {
        for sent in [&b""[..], b"PRI * HTTP/2"] {
            let (mut client, server) = duplex(1 << 16);
            let mut guard = Guard::new(server, MIN / 100, Some(MIN));
            client.write_all(sent).await.unwrap();
            let mut received = Vec::new();
            let error = guard.read_to_end(&mut received).await.unwrap_err();
            assert_eq!((error.kind(), &received[..]), (io::ErrorKind::TimedOut, sent));
        }
    }

    #[tokio::test]
    async fn http1_and_listeners_without_a_policy_pass() {
        for (sent, min_time) in [(&b"GET / HTTP/1.1\r\n"[..], Some(MIN)), (PREFACE, None)] {
            let (mut client, server) = duplex(1 << 16);
            let mut guard = Guard::new(server, MIN, min_time);
            client.write_all(sent).await.unwrap();
            let mut received = vec![0; 1024];
            assert_eq!(guard.read(&mut received).await.unwrap(), sent.len());
            for _ in 0..10 {
                client.write_all(&PING).await.unwrap();
                assert_eq!(guard.read(&mut received).await.unwrap(), PING.len());
            }
        }
    }
}
