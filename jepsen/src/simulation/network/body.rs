//! Sends a body, and what goes before it, in as few packets as it comes in.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::Body;
use tonic::Status;

use super::call::{Call, Direction, End, Head, Packet, Part};

const PACKET_BYTES_MAX: usize = 64 << 10;
const PACKET_PARTS_MAX: usize = 64;

pub struct Sender<B> {
    call: Arc<Call>,
    direction: Direction,
    packet: Packet,
    body: Pin<Box<B>>,
}

impl<B> Sender<B>
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    /// `attempt` is that of the request which this answers.
    pub fn new(call: Arc<Call>, attempt: usize, head: Head, body: B) -> Sender<B> {
        let direction = match head {
            Head::Request(_) => Direction::Request,
            Head::Answer(_) => Direction::Answer,
        };
        let packet = Packet { attempt, head: Some(head), ..Packet::default() };
        Sender { call, direction, packet, body: Box::pin(body) }
    }

    /// Sends what there is. Ready at the end.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while ready!(self.call.poll_window(self.direction, context)) {
            match self.body.as_mut().poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => self.packet.parts.extend(match frame.into_data() {
                    Ok(bytes) => Some(Part::Data(bytes)),
                    Err(frame) => frame.into_trailers().ok().map(Part::Trailers),
                }),
                Poll::Ready(Some(Err(error))) => {
                    // HTTP/2 says that the stream is reset, and no more.
                    self.packet.end = Some(End::Broken(Status::cancelled(format!("the body broke: {error}"))));
                }
                Poll::Ready(None) => self.packet.end = Some(End::Complete),
                Poll::Pending => {
                    if self.packet.head.is_some() || !self.packet.parts.is_empty() {
                        self.send();
                    }
                    return Poll::Pending;
                }
            }
            let is_end = self.packet.end.is_some();
            if is_end || self.packet.parts.len() >= PACKET_PARTS_MAX || self.packet.bytes() >= PACKET_BYTES_MAX {
                self.send();
            }
            if is_end {
                return Poll::Ready(());
            }
        }
        Poll::Ready(())
    }

    fn send(&mut self) {
        let Packet { number, attempt, .. } = self.packet;
        let next = Packet { number: number + 1, attempt, parts: VecDeque::new(), ..Packet::default() };
        let packet = std::mem::replace(&mut self.packet, next);
        if let Some(wire) = self.call.wire.upgrade() {
            wire.send(&self.call, self.direction, packet);
        }
    }

    pub async fn run(mut self) {
        poll_fn(|context| self.poll(context)).await;
    }
}
