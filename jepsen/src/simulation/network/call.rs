//! One call, with its two flows of messages: the request's, and the answer's.
//!
//! A flow is what HTTP/2 makes of a stream: a head, frames in order, an end; and a window, so that who sends waits for
//! who reads.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use super::wire::Wire;

/// What may be on its way, or wait to be read, of one flow. As the members have it.
const WINDOW_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Request,
    Answer,
}

#[derive(Debug, Clone)]
pub enum Head {
    Request(Box<http::request::Parts>),
    Answer(Box<http::response::Parts>),
}

#[derive(Debug, Clone)]
pub enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Part {
    pub fn len(&self) -> usize {
        match self {
            Part::Data(bytes) => bytes.len(),
            Part::Trailers(_) => 0,
        }
    }
}

#[derive(Debug, Clone)]
pub enum End {
    Complete,
    Broken(Status),
}

/// What goes over a link as one.
#[derive(Debug, Clone, Default)]
pub struct Packet {
    /// Counts up within its flow.
    pub number: u64,
    /// Which of the deliveries of a request this answers; 0 for requests.
    pub attempt: usize,
    pub head: Option<Head>,
    pub parts: VecDeque<Part>,
    pub end: Option<End>,
}

impl Packet {
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// Whether this is all of its flow.
    pub fn is_whole(&self) -> bool {
        self.number == 0 && matches!(self.end, Some(End::Complete))
    }
}

/// A packet on its way.
#[derive(Debug)]
pub struct Flight {
    pub call: Arc<Call>,
    pub direction: Direction,
    pub packet: Packet,
}

impl Flight {
    /// The nodes that it goes from and to.
    pub fn ends(&self) -> (u64, u64) {
        self.call.ends(self.direction)
    }
}

#[derive(Debug, Default)]
struct Flow {
    /// The number of the packet that is next to arrive.
    next: u64,
    /// Those that arrived before it.
    early: BTreeMap<u64, Packet>,
    head: Option<Head>,
    parts: VecDeque<Part>,
    end: Option<End>,
    /// Whether the sender has sent the end.
    is_sent: bool,
    /// Sent and not read yet.
    unread_bytes: usize,
    reader: Option<Waker>,
    has_reader: bool,
    writer: Option<Waker>,
}

impl Flow {
    fn wake(&mut self) {
        [self.reader.take(), self.writer.take()].into_iter().flatten().for_each(Waker::wake);
    }

    fn read(&mut self, bytes: usize) {
        self.unread_bytes -= bytes;
        if let Some(writer) = self.writer.take_if(|_| self.unread_bytes < WINDOW_BYTES) {
            writer.wake();
        }
    }

    /// Puts a packet to what can be read. Those before it are there.
    fn take(&mut self, packet: Packet) {
        self.next += 1;
        match self.has_reader {
            false => self.read(packet.bytes()),
            true => self.parts.extend(packet.parts),
        }
        if packet.head.is_some() {
            self.head = packet.head;
        }
        if packet.end.is_some() {
            self.end = packet.end;
        }
    }
}

#[derive(Debug, Default)]
struct State {
    request: Flow,
    answer: Flow,
    /// The delivery of the request whose answer came first.
    answered: Option<usize>,
    /// Whoever answers, for each delivery of the request.
    servers: [Option<Waker>; 2],
}

impl State {
    fn flow(&mut self, direction: Direction) -> &mut Flow {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Answer => &mut self.answer,
        }
    }
}

#[derive(Debug)]
pub struct Call {
    pub id: u64,
    pub from: u64,
    pub to: u64,
    pub uri: http::Uri,
    pub began: Instant,
    pub wire: Weak<Wire>,
    state: Mutex<State>,
    /// Nothing more comes of it: broken, or cancelled.
    is_over: AtomicBool,
    /// The request and the answer are one message each, as far as they have been sent.
    pub is_unary: AtomicBool,
    /// The process at this end is gone.
    pub caller_died: AtomicBool,
    pub target_died: AtomicBool,
}

impl Call {
    pub fn new(id: u64, (from, to): (u64, u64), uri: http::Uri, began: Instant, wire: Weak<Wire>) -> Call {
        let flow = || Flow { has_reader: true, ..Flow::default() };
        let state = State { request: flow(), answer: flow(), ..State::default() };
        let state = Mutex::new(state);
        let (is_over, is_unary, caller_died, target_died) = Default::default();
        Call { id, from, to, uri, began, wire, state, is_over, is_unary, caller_died, target_died }
    }

    pub fn ends(&self, direction: Direction) -> (u64, u64) {
        match direction {
            Direction::Request => (self.from, self.to),
            Direction::Answer => (self.to, self.from),
        }
    }

    /// Whether who would send in this direction, and who would receive, are there.
    pub fn is_alive(&self, direction: Direction) -> (bool, bool) {
        let caller = !self.caller_died.load(Ordering::Relaxed);
        let target = !self.target_died.load(Ordering::Relaxed);
        match direction {
            Direction::Request => (caller, target),
            Direction::Answer => (target, caller),
        }
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// A packet has arrived. Gives the head and the body of a request that begins with it.
    pub fn accept(&self, direction: Direction, packet: Packet) -> Option<Box<http::request::Parts>> {
        let mut state = self.state.lock();
        if direction == Direction::Answer && *state.answered.get_or_insert(packet.attempt) != packet.attempt {
            state.answer.read(packet.bytes());
            return None;
        }
        let flow = state.flow(direction);
        if packet.number != flow.next {
            flow.early.insert(packet.number, packet);
            return None;
        }
        flow.take(packet);
        while let Some(packet) = flow.early.remove(&flow.next) {
            flow.take(packet);
        }
        if let Some(reader) = flow.reader.take() {
            reader.wake();
        }
        match flow.head.take_if(|head| matches!(head, Head::Request(_))) {
            Some(Head::Request(parts)) => Some(parts),
            _ => None,
        }
    }

    /// Both ends see the connection break.
    pub fn fail(&self, status: &Status) {
        self.is_over.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        for direction in [Direction::Request, Direction::Answer] {
            let flow = state.flow(direction);
            if !matches!(flow.end, Some(End::Complete)) {
                flow.end = Some(End::Broken(status.clone()));
            }
            flow.early.clear();
            flow.wake();
        }
        state.servers.iter_mut().filter_map(Option::take).for_each(Waker::wake);
    }

    /// Whether the caller can send a cancellation that matters.
    pub fn is_cancellable(&self) -> bool {
        !self.is_over() && !self.caller_died.load(Ordering::Relaxed) && !self.state.lock().answer.is_sent
    }

    /// The caller has let go.
    pub fn drop_caller(&self) {
        let mut state = self.state.lock();
        let flow = &mut state.answer;
        flow.has_reader = false;
        let unread = std::mem::take(&mut flow.parts).iter().map(Part::len).sum();
        flow.read(unread);
        // Whoever sends the rest of the request stops.
        state.request.writer.take().into_iter().for_each(Waker::wake);
    }

    fn drop_request_reader(&self) {
        let mut state = self.state.lock();
        let flow = &mut state.request;
        flow.has_reader = false;
        let unread = std::mem::take(&mut flow.parts).iter().map(Part::len).sum();
        flow.read(unread);
    }

    /// Ready when there is room to send; or with false when sending is of no use any more.
    pub fn poll_window(&self, direction: Direction, context: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.state.lock();
        let is_left = direction == Direction::Request && (!state.answer.has_reader || state.answer.end.is_some());
        let flow = state.flow(direction);
        if is_left || self.is_over() {
            return Poll::Ready(false);
        }
        flow.writer = Some(context.waker().clone());
        if flow.unread_bytes < WINDOW_BYTES { Poll::Ready(true) } else { Poll::Pending }
    }

    pub fn note_sent(&self, direction: Direction, packet: &Packet) {
        let mut state = self.state.lock();
        let flow = state.flow(direction);
        flow.unread_bytes += packet.bytes();
        flow.is_sent |= packet.end.is_some();
    }

    /// So much of what was sent was read without the flow.
    pub fn release(&self, direction: Direction, bytes: usize) {
        self.state.lock().flow(direction).read(bytes);
    }

    /// The head of the answer.
    pub fn poll_answer(&self, context: &mut Context<'_>) -> Poll<Result<http::response::Parts, Status>> {
        let flow = &mut self.state.lock().answer;
        if let Some(Head::Answer(parts)) = flow.head.take() {
            return Poll::Ready(Ok(*parts));
        }
        match &flow.end {
            Some(End::Broken(status)) => Poll::Ready(Err(status.clone())),
            Some(End::Complete) => Poll::Ready(Err(Status::internal("the answer has no head"))),
            None => {
                flow.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn poll_part(&self, direction: Direction, context: &mut Context<'_>) -> Poll<Option<Result<Part, Status>>> {
        let mut state = self.state.lock();
        let flow = state.flow(direction);
        if let Some(part) = flow.parts.pop_front() {
            flow.read(part.len());
            return Poll::Ready(Some(Ok(part)));
        }
        match &flow.end {
            Some(End::Complete) => Poll::Ready(None),
            Some(End::Broken(status)) => Poll::Ready(Some(Err(status.clone()))),
            None => {
                flow.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn has_ended(&self, direction: Direction) -> bool {
        let mut state = self.state.lock();
        let flow = state.flow(direction);
        flow.parts.is_empty() && matches!(flow.end, Some(End::Complete))
    }

    /// Resolves when nobody waits for the answer any more.
    pub fn poll_over(&self, attempt: usize, context: &mut Context<'_>) -> Poll<()> {
        if self.is_over() {
            return Poll::Ready(());
        }
        self.state.lock().servers[attempt] = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The caller's end of a call: dropped before the answer is complete, it cancels the call.
#[derive(Debug)]
pub struct Caller(pub Arc<Call>);

impl Drop for Caller {
    fn drop(&mut self) {
        if self.0.is_cancellable()
            && let Some(wire) = self.0.wire.upgrade()
        {
            wire.cancel(&self.0);
        }
        self.0.drop_caller();
    }
}

/// The target's end of a request.
#[derive(Debug)]
struct Request(Arc<Call>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.drop_request_reader();
    }
}

#[derive(Debug)]
enum Source {
    Request(Request),
    Answer(Caller),
    /// A request that came again.
    Copy(VecDeque<Part>),
}

/// A body that comes over the network.
#[derive(Debug)]
pub struct Received {
    source: Source,
    has_failed: bool,
}

impl Received {
    pub fn answer(caller: Caller) -> Received {
        Received { source: Source::Answer(caller), has_failed: false }
    }

    pub fn request(call: Arc<Call>) -> Received {
        Received { source: Source::Request(Request(call)), has_failed: false }
    }

    pub fn copy(parts: VecDeque<Part>) -> Received {
        Received { source: Source::Copy(parts), has_failed: false }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_failed {
            return Poll::Ready(None);
        }
        let polled = match &mut self.source {
            Source::Request(request) => request.0.poll_part(Direction::Request, context),
            Source::Answer(caller) => caller.0.poll_part(Direction::Answer, context),
            Source::Copy(parts) => Poll::Ready(parts.pop_front().map(Ok)),
        };
        self.has_failed = matches!(polled, Poll::Ready(Some(Err(_))));
        polled.map_ok(|part| match part {
            Part::Data(bytes) => Frame::data(bytes),
            Part::Trailers(trailers) => Frame::trailers(trailers),
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Request(request) => request.0.has_ended(Direction::Request),
            Source::Answer(caller) => caller.0.has_ended(Direction::Answer),
            Source::Copy(parts) => parts.is_empty(),
        }
    }
}
