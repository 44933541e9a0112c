//! What is to be written to a connection: small frames one behind the other, large contents where they lie.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use proto::http2::frame::{HEAD_BYTES, Head};
use tokio::io::AsyncWrite;

/// Content from this size on is not copied.
const LARGE: usize = 4096;
/// Pieces of one write.
const PIECES: usize = 64;
/// A buffer that has grown beyond this is not kept.
const KEPT_MAX: usize = 64 << 10;

#[derive(Default)]
pub struct Out {
    pieces: VecDeque<Bytes>,
    /// Behind all pieces.
    tail: Vec<u8>,
    /// Of the tail.
    written: usize,
    len: usize,
}

impl Out {
    /// Bytes that are not written yet.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn put(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    pub fn put_head(&mut self, length: usize, kind: u8, flags: u8, stream: u32) {
        self.put(&Head { length, kind, flags, stream }.bytes());
    }

    pub fn put_frame(&mut self, kind: u8, flags: u8, stream: u32, content: &[u8]) {
        debug_assert!(content.len() < 1 << 24);
        self.tail.reserve(HEAD_BYTES + content.len());
        self.put_head(content.len(), kind, flags, stream);
        self.put(content);
    }

    pub fn put_shared(&mut self, bytes: Bytes) {
        if bytes.len() < LARGE {
            return self.put(&bytes);
        }
        if self.tail.len() > self.written {
            let tail = Bytes::from(std::mem::take(&mut self.tail));
            self.pieces.push_back(tail.slice(self.written..));
        }
        self.tail.clear();
        self.written = 0;
        self.len += bytes.len();
        self.pieces.push_back(bytes);
    }

    /// Writes all there is.
    pub fn poll_write<T: AsyncWrite + Unpin>(&mut self, io: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.len > 0 {
            let written = if self.pieces.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.tail[self.written..]))?
            } else {
                let mut slices = [IoSlice::new(&[]); PIECES];
                let tail = Some(&self.tail[self.written..]).filter(|tail| !tail.is_empty());
                let all = self.pieces.iter().map(|piece| &piece[..]).chain(tail);
                let count = slices.iter_mut().zip(all).map(|(slice, bytes)| *slice = IoSlice::new(bytes)).count();
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pass(written);
        }
        Poll::Ready(Ok(()))
    }

    fn pass(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(first) = self.pieces.front_mut() {
            if written < first.len() {
                return first.advance(written);
            }
            written -= first.len();
            self.pieces.pop_front();
        }
        self.written += written;
        if self.written == self.tail.len() {
            self.written = 0;
            self.tail.clear();
            if self.tail.capacity() > KEPT_MAX {
                self.tail = Vec::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;

    use super::*;

    /// Takes so many bytes at once.
    struct Taken(usize, Vec<u8>);

    impl AsyncWrite for Taken {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.0);
            self.1.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let mut taken = 0;
            for slice in slices {
                let piece = slice.len().min(self.0 - taken);
                self.1.extend_from_slice(&slice[..piece]);
                taken += piece;
            }
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn all_is_written_in_order_however_little_is_taken() {
        for at_once in [1, 7, 4095, 4096, 10_000, usize::MAX] {
            let (mut out, mut io, mut expected) = (Out::default(), Taken(at_once, Vec::new()), Vec::new());
            for (i, size) in
                [3, LARGE, LARGE + 1, 5, 100, 3 * LARGE, LARGE - 1, 1].into_iter().cycle().take(200).enumerate()
            {
                let bytes = vec![i as u8; size];
                expected.extend_from_slice(&bytes);
                if i % 3 == 0 {
                    out.put(&bytes)
                } else {
                    out.put_shared(bytes.into())
                }
                if i % 50 == 49 {
                    assert!(out.poll_write(&mut io, &mut Context::from_waker(noop_waker_ref())).is_ready());
                }
            }
            assert_eq!(out.len(), 0);
            assert!(io.1 == expected, "{at_once} bytes at once");
        }
    }
}
