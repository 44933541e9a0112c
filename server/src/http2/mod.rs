//! HTTP/2 for clients: one task for each connection, which reads what has come, carries calls out where it is, and writes
//! at once what has gathered.
//!
//! ```text
//! socket ─> protocol.rs ─ a request ──> a unary call whose message came with it ──> tasks.rs ─┐
//!           head.rs, body.rs          └> any other, with a body that is read as it comes ────┤
//! socket <─ out.rs <─ protocol.rs <── answers: messages, frames, trailers <──────────────────┘
//! ```
//! hyper serves HTTP/1, and members. Why it does not serve clients: `docs/decisions/0033`.

mod body;
mod head;
mod out;
mod protocol;
mod tasks;
#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, Stream, future::BoxFuture};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use hyper::body::{Body as _, Frame};
use proto::http2::{frame, hpack};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Sleep, sleep},
};
use tokio_util::{io::poll_read_buf, sync::CancellationToken};
use tonic::Status;

pub use self::{body::Body, head::Head};
use self::{
    body::Credits,
    protocol::{Broken, Connection, End, Event},
    tasks::{Place, Tasks},
};
use crate::{
    config::Connections,
    grpc::BoxError,
    guard::{LEAVE_MAX, answers::Held, pings::Pings},
    unary,
};

/// What is read at once, at most.
const READ_BYTES: usize = 64 << 10;
/// Nothing more is read while so much waits to be written: a client that takes no answers is asked nothing.
const OUT_MAX: usize = 1 << 20;

/// The body of an answer.
pub type Content = UnsyncBoxBody<Bytes, BoxError>;

/// The answer to a unary call: a message with its prefix, and what counts it until it is sent.
pub type Message = Result<(Bytes, Option<Arc<Held>>), Status>;

/// What carries requests out.
pub trait Handler: Send + 'static {
    /// A kind of unary call that is carried out when its message is there.
    type Unary: Clone + Send;

    /// Whether a request is such a call. Asked once for those whose heads are the same.
    fn unary(&self, head: &Head) -> Option<Self::Unary>;

    /// Carries it out, and gives what `end` makes of the answer. In a box of its own, which is what the call needs and
    /// not what the largest of all does.
    fn carry_out<O: Send + 'static>(
        &self,
        call: Self::Unary,
        message: Bytes,
        end: impl FnOnce(Message) -> O + Send + 'static,
    ) -> BoxFuture<'static, O>;

    /// Carries any request out.
    fn answer(&self, request: Request<Body>) -> impl Future<Output = Response<Content>> + Send + 'static;
}

/// What a connection keeps with a stream.
struct Call<U> {
    /// A unary call that waits for its message.
    awaiting: Option<(U, Arc<Head>)>,
    /// What runs for it: a call, or the answer, of which more is asked for when what it gave is on its way.
    place: Option<Place>,
    body: Option<body::Sender>,
    _held: Option<Arc<Held>>,
}

impl<U> Default for Call<U> {
    fn default() -> Self {
        Call { awaiting: None, place: None, body: None, _held: None }
    }
}

/// What has been computed for a stream.
struct Done {
    stream: u32,
    what: What,
}

enum What {
    /// The server stops.
    Stopped,
    Message(Message),
    Answer(Response<Content>),
    /// Of the answer; None behind the last. `is_end`: it is the last.
    Frame {
        frame: Option<Result<Frame<Bytes>, BoxError>>,
        is_end: bool,
    },
}

/// How far the end of a connection has come that the server stops.
#[derive(PartialEq, Eq)]
enum Leaving {
    No,
    /// Requests that are under way may come, until the client has answered a ping.
    Announced,
    /// No request is taken any more; those that were are carried out.
    Ending,
}

struct Driver<T, H: Handler> {
    io: T,
    /// Nothing more comes.
    is_read: bool,
    input: BytesMut,
    connection: Connection<Call<H::Unary>>,
    handler: H,
    /// What the heads that were seen last are.
    known: Vec<(Arc<Head>, Option<H::Unary>)>,
    tasks: Tasks<Done>,
    credits: Arc<Credits>,
    keep_alive: Option<KeepAlive>,
    leaving: Leaving,
    is_flushed: bool,
    // Buffers.
    ended: Vec<(Place, Done)>,
    drained: Vec<u32>,
}

enum Ended {
    Broken(Broken),
    Io(io::Error),
    /// The client does not answer pings.
    Silent,
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Ended {
        Ended::Io(error)
    }
}

/// Serves a connection whose client has begun with the preface; `input` is what has come behind it. After `stop` no
/// further request is taken.
pub async fn serve<T, H>(io: T, input: BytesMut, handler: H, connections: &Connections, stop: &CancellationToken)
where
    T: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    let mut driver = Driver {
        io,
        is_read: false,
        input,
        connection: Connection::new(connections.max_concurrent_streams, connections.ping_min_time.map(Pings::new)),
        handler,
        known: Vec::new(),
        tasks: Tasks::default(),
        credits: Arc::default(),
        keep_alive: connections
            .keepalive_interval
            .map(|interval| KeepAlive::new(interval, connections.keepalive_timeout)),
        leaving: Leaving::No,
        is_flushed: true,
        ended: Vec::new(),
        drained: Vec::new(),
    };
    let stopped = stop.clone().cancelled_owned();
    driver.tasks.add(async move {
        stopped.await;
        Done { stream: 0, what: What::Stopped }
    });
    match poll_fn(|cx| driver.poll(cx)).await {
        Ok(()) => {}
        Err(Ended::Broken(broken)) => {
            tracing::debug!(%broken, "a client breaks HTTP/2; closing its connection");
            driver.connection.put_broken(broken);
            // Who has gone needs no reason.
            drop(tokio::time::timeout(LEAVE_MAX, driver.leave()).await);
        }
        Err(Ended::Io(error)) => tracing::debug!(%error, "a connection ended"),
        Err(Ended::Silent) => tracing::debug!("a client does not answer pings; closing its connection"),
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin, H: Handler> Driver<T, H> {
    /// Ready when the connection has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        self.credits.task.register(cx.waker());
        loop {
            let mut goes_on = self.decode()?;
            goes_on |= self.poll_tasks(cx);
            for (stream, bytes) in self.credits.take() {
                self.connection.read(stream, bytes);
            }
            goes_on |= self.pump();
            goes_on |= self.poll_write(cx)?;
            if self.is_read || (self.leaving == Leaving::Ending && self.is_done()) {
                return self.poll_close(cx);
            }
            goes_on |= self.poll_read(cx)?;
            if !goes_on {
                break;
            }
        }
        match &mut self.keep_alive {
            Some(keep_alive) => keep_alive.poll(cx, &mut self.connection.out).map(Err),
            None => Poll::Pending,
        }
    }

    fn is_done(&self) -> bool {
        self.connection.streams() == 0 && self.connection.out.len() == 0
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        match ready!(Pin::new(&mut self.io).poll_shutdown(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            // It may have been closed from the other end.
            Err(_) if self.is_read => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        if self.connection.out.len() >= OUT_MAX {
            return Ok(false);
        }
        self.input.reserve(READ_BYTES / 4);
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input) {
            Poll::Ready(read) => {
                self.is_read = read? == 0;
                if let Some(keep_alive) = &mut self.keep_alive {
                    keep_alive.has_heard = true;
                }
                Ok(true)
            }
            Poll::Pending => Ok(false),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        let mut goes_on = false;
        if self.connection.out.len() > 0 {
            self.is_flushed = false;
            match self.connection.out.poll_write(&mut self.io, cx)? {
                Poll::Ready(()) => goes_on = self.connection.can_pump() || !self.input.is_empty(),
                Poll::Pending => return Ok(false),
            }
        }
        if !self.is_flushed {
            self.is_flushed = Pin::new(&mut self.io).poll_flush(cx)?.is_ready();
        }
        Ok(goes_on)
    }

    /// Takes what has come. True if there was something.
    fn decode(&mut self) -> Result<bool, Ended> {
        let mut has_come = false;
        while self.connection.out.len() < OUT_MAX
            && let Some(event) = self.connection.receive(&mut self.input).map_err(Ended::Broken)?
        {
            has_come = true;
            self.take(event);
        }
        Ok(has_come)
    }

    fn take(&mut self, event: Event<Call<H::Unary>>) {
        match event {
            Event::Request { stream, head, end } => match self.unary(&head) {
                Some(unary) if !end => {
                    let call = self.connection.data(stream).expect("it has just begun");
                    call.awaiting = Some((unary, head));
                }
                _ => self.begin(stream, head, None, end),
            },
            Event::Data { stream, bytes, end } => {
                let Some(call) = self.connection.data(stream) else { return };
                if let Some((unary, head)) = call.awaiting.take() {
                    return match unary::whole(&bytes).filter(|_| end) {
                        Some(message) => {
                            let end = move |message| Done { stream, what: What::Message(message) };
                            let done = self.handler.carry_out(unary, message, end);
                            call.place = Some(self.tasks.add_boxed(done));
                            self.connection.read_on_connection(bytes.len());
                        }
                        None => self.begin(stream, head, Some(bytes), end),
                    };
                }
                if let Some(body) = &call.body {
                    body.send(bytes);
                    if end {
                        body.end(Ok(()));
                    }
                }
            }
            Event::End { stream } => {
                let Some(call) = self.connection.data(stream) else { return };
                match call.awaiting.take() {
                    Some((_, head)) => self.begin(stream, head, None, true),
                    None => call.body.iter().for_each(|body| body.end(Ok(()))),
                }
            }
            Event::Reset(call) => {
                if let Some(place) = call.place {
                    self.tasks.remove(place);
                }
            }
            Event::Pong => {
                if self.leaving == Leaving::Announced {
                    self.connection.go_away(true);
                    self.leaving = Leaving::Ending;
                }
            }
        }
    }

    /// The unary call that a request is, if it is one.
    fn unary(&mut self, head: &Arc<Head>) -> Option<H::Unary> {
        if let Some((_, unary)) = self.known.iter().find(|(known, _)| Arc::ptr_eq(known, head)) {
            return unary.clone();
        }
        let unary = self.handler.unary(head);
        if self.known.len() == head::KNOWN_MAX {
            self.known.remove(0);
        }
        self.known.push((head.clone(), unary.clone()));
        unary
    }

    /// Begins a request whose body is read as it comes; `bytes` of it have.
    fn begin(&mut self, stream: u32, head: Arc<Head>, bytes: Option<Bytes>, end: bool) {
        let (sender, body) = body::channel(stream, self.credits.clone());
        bytes.into_iter().for_each(|bytes| sender.send(bytes));
        if end {
            sender.end(Ok(()));
        }
        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = head.uri.clone();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = head.headers.clone();
        let answer = self.handler.answer(request);
        let place = self.tasks.add(answer.map(move |answer| Done { stream, what: What::Answer(answer) }));
        let call = self.connection.data(stream).expect("it has just begun");
        (call.body, call.place) = (Some(sender), Some(place));
    }

    /// True if something has been computed.
    fn poll_tasks(&mut self, cx: &mut Context<'_>) -> bool {
        let mut ended = std::mem::take(&mut self.ended);
        let was_woken = self.tasks.poll(cx, &mut ended).is_ready();
        for (_, Done { stream, what }) in ended.drain(..) {
            self.done(stream, what);
        }
        self.ended = ended;
        was_woken
    }

    fn done(&mut self, stream: u32, what: What) {
        if let What::Stopped = what {
            return self.announce_leave();
        }
        let Some(call) = self.connection.data(stream) else { return };
        match what {
            What::Stopped => {}
            What::Message(Ok((message, held))) => {
                (call.place, call._held) = (None, held);
                self.connection.begin_success(stream);
                self.connection.send_last(stream, message);
            }
            What::Message(Err(status)) => self.begin_answer(stream, status.into_http::<Content>()),
            What::Answer(answer) => self.begin_answer(stream, answer),
            What::Frame { frame, is_end } => self.go_on(stream, frame, is_end),
        }
    }

    fn begin_answer(&mut self, stream: u32, answer: Response<Content>) {
        let (parts, content) = answer.into_parts();
        let is_grpc = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(GRPC));
        let date =
            (!is_grpc && !parts.headers.contains_key(header::DATE)).then(|| httpdate::fmt_http_date(SystemTime::now()));
        let has_length = is_grpc || parts.headers.contains_key(header::CONTENT_LENGTH) || has_no_body(parts.status);
        let length = content.size_hint().exact().filter(|_| !has_length).map(|length| length.to_string());
        let status = parts.status;
        let fields = [(&b":status"[..], status.as_str().as_bytes())]
            .into_iter()
            .chain(fields(&parts.headers))
            .chain(date.iter().map(|date| (&b"date"[..], date.as_bytes())))
            .chain(length.iter().map(|length| (&b"content-length"[..], length.as_bytes())));
        let is_end = content.is_end_stream();
        let Some(call) = self.connection.data(stream) else { return };
        call.place = (!is_end).then(|| self.tasks.add_items(frames(stream, content)));
        self.connection.begin(stream, fields, is_end);
    }

    fn go_on(&mut self, stream: u32, frame: Option<Result<Frame<Bytes>, BoxError>>, is_end: bool) {
        let end = match frame {
            None => Some(End::Plain),
            Some(Err(error)) => {
                tracing::debug!(%error, "an answer failed");
                self.drop_answer(stream);
                self.connection.reset(stream, frame::INTERNAL_ERROR);
                return;
            }
            Some(Ok(frame)) => match frame.into_data().map_err(Frame::into_trailers) {
                Ok(data) if data.is_empty() && !is_end => return self.ask_for_more(stream),
                Ok(data) => {
                    if !data.is_empty() {
                        self.connection.send(stream, data);
                    }
                    is_end.then_some(End::Plain)
                }
                Err(Ok(trailers)) => Some(ending(&trailers)),
                Err(Err(_)) => return self.ask_for_more(stream),
            },
        };
        if let Some(end) = end {
            self.drop_answer(stream);
            self.connection.finish(stream, end);
        }
    }

    fn ask_for_more(&mut self, stream: u32) {
        if let Some(place) = self.connection.data(stream).and_then(|call| call.place) {
            self.tasks.ask(place);
        }
    }

    fn drop_answer(&mut self, stream: u32) {
        if let Some(place) = self.connection.data(stream).and_then(|call| call.place.take()) {
            self.tasks.remove(place);
        }
    }

    /// Puts what there is room for where it is written from, and asks for more of the answers that it was all of.
    fn pump(&mut self) -> bool {
        self.connection.pump();
        let mut drained = std::mem::take(&mut self.drained);
        self.connection.take_drained(&mut drained);
        let goes_on = !drained.is_empty();
        for stream in drained.drain(..) {
            self.ask_for_more(stream);
        }
        self.drained = drained;
        goes_on
    }

    fn announce_leave(&mut self) {
        self.connection.go_away(false);
        self.connection.put_ping();
        self.leaving = Leaving::Announced;
    }

    /// Says why, and takes what still comes, so that the reason is not lost with a reset.
    async fn leave(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.connection.out.poll_write(&mut self.io, cx)).await?;
        self.io.shutdown().await?;
        let mut scratch = [0; 1024];
        while self.io.read(&mut scratch).await? > 0 {}
        Ok(())
    }
}

/// The frames of an answer, and the end of one that does not say before that a frame is the last.
fn frames(stream: u32, content: Content) -> impl Stream<Item = Done> + Send {
    futures::stream::unfold(Some(content), move |content| async move {
        let mut content = content?;
        let frame = content.frame().await;
        let is_end = content.is_end_stream();
        let rest = frame.is_some().then_some(content);
        Some((Done { stream, what: What::Frame { frame, is_end } }, rest))
    })
}

const GRPC: &[u8] = b"application/grpc";

fn has_no_body(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// What of headers may stand in HTTP/2 (RFC 9113, section 8.2.2).
fn fields(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let is_of_connection = |name: &HeaderName| {
        [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE].contains(name)
            || name == "keep-alive"
            || name == "proxy-connection"
    };
    let lawful = headers.iter().filter(move |(name, _)| !is_of_connection(name));
    lawful.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

fn ending(trailers: &HeaderMap) -> End {
    if trailers.len() == 1 && trailers.get(Status::GRPC_STATUS).is_some_and(|status| status == "0") {
        return End::Success;
    }
    let mut block = Vec::new();
    fields(trailers).for_each(|(name, value)| hpack::put_field(&mut block, name, value));
    End::Trailers(block)
}

/// Pings a client of which nothing has been heard for a time.
struct KeepAlive {
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    /// Something was heard since the timer was set.
    has_heard: bool,
    has_pinged: bool,
}

impl KeepAlive {
    fn new(interval: Duration, timeout: Duration) -> KeepAlive {
        KeepAlive { interval, timeout, timer: Box::pin(sleep(interval)), has_heard: false, has_pinged: false }
    }

    /// Ready when the client is silent.
    fn poll(&mut self, cx: &mut Context<'_>, out: &mut out::Out) -> Poll<Ended> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let wait = if std::mem::take(&mut self.has_heard) {
                self.has_pinged = false;
                self.interval
            } else if self.has_pinged {
                return Poll::Ready(Ended::Silent);
            } else {
                self.has_pinged = true;
                out.put_frame(frame::PING, 0, 0, &[0; 8]);
                // To be written.
                cx.waker().wake_by_ref();
                self.timeout
            };
            self.timer.set(sleep(wait));
        }
        Poll::Pending
    }
}
