//! The body of a request, as it comes.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures::task::AtomicWaker;
use hyper::body::{Body as HttpBody, Frame};
use parking_lot::Mutex;

/// Bytes that were read of a stream, from which on the client is told that there is room again.
const CREDIT: usize = 256 << 10;

/// The client has given the request up, or the connection has ended.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the request was given up by the client")]
pub struct GivenUp;

/// What was read of bodies, by stream, and is to be told to the client.
#[derive(Default)]
pub struct Credits {
    read: Mutex<Vec<(u32, usize)>>,
    pub task: AtomicWaker,
}

impl Credits {
    fn add(&self, stream: u32, bytes: usize) {
        if bytes > 0 {
            self.read.lock().push((stream, bytes));
            self.task.wake();
        }
    }

    pub fn take(&self) -> Vec<(u32, usize)> {
        std::mem::take(&mut self.read.lock())
    }
}

/// Where a connection puts what comes of a body.
pub struct Sender(Arc<Shared>);

/// What a service reads.
pub struct Body(Arc<Shared>);

struct Shared {
    stream: u32,
    credits: Arc<Credits>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    come: VecDeque<Bytes>,
    /// Nothing more comes.
    end: Option<Result<(), GivenUp>>,
    reader: Option<Waker>,
    /// Read, and not told to the client yet.
    read: usize,
    /// Nobody reads any more.
    is_closed: bool,
}

pub fn channel(stream: u32, credits: Arc<Credits>) -> (Sender, Body) {
    let shared = Arc::new(Shared { stream, credits, state: Mutex::default() });
    (Sender(shared.clone()), Body(shared))
}

impl Sender {
    pub fn send(&self, bytes: Bytes) {
        let mut state = self.0.state.lock();
        if state.is_closed {
            drop(state);
            return self.0.credits.add(self.0.stream, bytes.len());
        }
        state.come.push_back(bytes);
        wake(state);
    }

    pub fn end(&self, end: Result<(), GivenUp>) {
        let mut state = self.0.state.lock();
        if state.end.is_none() {
            state.end = Some(end);
            wake(state);
        }
    }
}

/// The reader runs when the lock is free.
fn wake(mut state: parking_lot::MutexGuard<'_, State>) {
    let reader = state.reader.take();
    drop(state);
    reader.into_iter().for_each(Waker::wake);
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.end(Err(GivenUp));
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        let mut state = self.0.state.lock();
        if let Some(bytes) = state.come.pop_front() {
            state.read += bytes.len();
            // Once all has come, nobody waits for room on this stream.
            let told = if state.read >= CREDIT || state.end.is_some() { std::mem::take(&mut state.read) } else { 0 };
            drop(state);
            self.0.credits.add(self.0.stream, told);
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match state.end {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(given_up)) => Poll::Ready(Some(Err(given_up))),
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.0.state.lock();
        state.come.is_empty() && matches!(state.end, Some(Ok(())))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.is_closed = true;
        let unread: usize = state.come.drain(..).map(|bytes| bytes.len()).sum();
        let told = unread + std::mem::take(&mut state.read);
        drop(state);
        self.0.credits.add(self.0.stream, told);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_body_comes_piece_by_piece_and_what_was_read_is_told() {
        let credits = Arc::new(Credits::default());
        let (sender, mut body) = channel(3, credits.clone());
        let reading = tokio::spawn(async move {
            let mut sizes = Vec::new();
            while let Some(frame) = body.frame().await {
                sizes.push(frame.unwrap().into_data().unwrap().len());
            }
            (sizes, body.is_end_stream())
        });
        for size in [10, CREDIT, 5] {
            sender.send(vec![0; size].into());
            tokio::task::yield_now().await;
        }
        sender.end(Ok(()));
        assert_eq!(reading.await.unwrap(), (vec![10, CREDIT, 5], true));
        assert_eq!(
            credits.take().iter().map(|(stream, bytes)| stream / 3 * *bytes as u32).sum::<u32>(),
            CREDIT as u32 + 15
        );
    }

    #[tokio::test]
    async fn what_nobody_reads_is_told_and_a_lost_connection_is_an_error() {
        let credits = Arc::new(Credits::default());
        let (sender, mut body) = channel(1, credits.clone());
        sender.send(vec![0; 7].into());
        drop(sender);
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_err());
        let (sender, body) = channel(1, credits.clone());
        sender.send(vec![0; 9].into());
        drop(body);
        sender.send(vec![0; 11].into());
        let told: usize = credits.take().iter().map(|(_, bytes)| bytes).sum();
        assert!(told >= 20, "{told}");
    }
}
