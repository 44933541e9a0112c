//! The loop that issues operations: one thread, all connections.
//!
//! *Closed loop*: every client sends its next operation when the last is answered; the server's speed sets the rate.
//! *Open loop* (`rate`): operation *i* is due at `start + i/rate`, whatever became of the ones before it, and its
//! latency counts from the moment it was **due**, not from when a client got round to sending it. A server that stalls
//! for a second therefore shows a second of latency on all operations due meanwhile, and not on one only
//! ("coordinated omission"). The number of clients bounds how many are under way.
//!
//! ```text
//!  |-- warm-up --|------------ measured: latencies, CPU time of the servers and our own ------------|-- drain --|
//! ```
//!
//! An answer's time is that of the read that brought it, before anything in it is looked at.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tokio::sync::oneshot;
use tonic::Status;

use crate::{
    measure::{DRAIN, Measured, Recorder, Settings},
    node,
    schedule::Schedule,
    wire::{Event, Lane, Socket, epoll::Epoll},
};

/// A client waits this long after an error, so that a dead server is not hammered.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);
const SETTLE_WITHIN: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 1 << 20;

/// What a client sends next.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// `/package.Service/Method`.
    pub path: &'static str,
    pub lane: Lane,
}

impl Call {
    pub const fn unary(path: &'static str) -> Call {
        Call { path, lane: Lane::Unary }
    }

    /// A message on the client's stream, which is opened by the first.
    pub const fn stream(path: &'static str) -> Call {
        Call { path, lane: Lane::Stream }
    }
}

/// What an answer means for the operation under way.
#[derive(Debug)]
pub enum Answer {
    /// The operation is done, and has put so many bytes of keys and values.
    Done { put_bytes: u64 },
    /// It goes on with another request.
    Next,
    /// It goes on with another request after a while.
    After(Duration),
    /// Nothing is to be sent: there is more to come.
    Listen,
    /// Done, but not an operation that counts: the run's background.
    Aside,
}

impl Answer {
    pub const DONE: Answer = Answer::Done { put_bytes: 0 };
}

/// One client of the loop: it has one operation under way at a time.
pub trait Client: Send {
    /// Writes the next request. `due` is when the operation was to begin.
    fn request(&mut self, due: Instant, message: &mut Vec<u8>) -> Call;

    /// Looks at an answer, which came at `now`. An error is counted, and the operation is over.
    fn answer(&mut self, message: &[u8], now: Instant, recorder: &mut Recorder) -> Result<Answer, Status>;

    /// Not one of those that are measured: it begins at once, sets its own pace, is not waited for at the end, and must
    /// not fail.
    fn background(&self) -> bool {
        false
    }
}

/// Answers that are not what was put are errors of the server, too.
pub fn wrong(text: impl Into<String>) -> Status {
    Status::data_loss(text)
}

/// Runs the clients for the warm-up and the measured time, on a thread of their own.
pub async fn run(settings: &Settings, clients: Vec<Box<dyn Client>>) -> anyhow::Result<Measured> {
    let before = node::fsyncs(&settings.endpoints).await;
    let begin = Instant::now();
    let (sender, ended) = oneshot::channel();
    let thread_settings = settings.clone();
    std::thread::Builder::new().name("load".to_string()).spawn(move || {
        let result = Drive::new(&thread_settings, clients).and_then(Drive::run);
        // Nobody waits any more when the whole program is ending.
        let _ = sender.send(result);
    })?;
    let mut measured = ended.await.context("the load generator's thread panicked")??;
    let elapsed = begin.elapsed().as_secs_f64();
    let after = node::fsyncs(&settings.endpoints).await;
    measured.fsyncs_per_second = before.zip(after).map(|(before, after)| (after - before) / elapsed);
    Ok(measured)
}

struct Slot {
    client: Box<dyn Client>,
    background: bool,
    socket: usize,
    /// The stream that stays open, if this client has one.
    stream: Option<u32>,
    /// The answer of a unary call, which counts when the status says so.
    answer: Option<Result<Answer, Status>>,
    due: Instant,
    under_way: bool,
}

struct Drive {
    epoll: Epoll,
    sockets: Vec<Socket>,
    slots: Vec<Slot>,
    recorder: Recorder,
    schedule: Option<Schedule>,
    /// Clients without an operation (open loop).
    idle: VecDeque<usize>,
    /// Clients that go on later.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Operations that are to be waited for.
    under_way: usize,
    message: Vec<u8>,
}

/// Waits until every server has sent its settings.
fn settle(sockets: &mut [Socket], epoll: &mut Epoll) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE_WITHIN;
    let (mut buffer, mut ready) = (vec![0; READ_BYTES], Vec::new());
    while sockets.iter().any(|socket| !socket.http.settled()) {
        ensure!(Instant::now() < deadline, "the server does not answer in HTTP/2 within {SETTLE_WITHIN:?}");
        for socket in sockets.iter_mut() {
            socket.flush(epoll)?;
        }
        epoll.wait(deadline.saturating_duration_since(Instant::now()), &mut ready)?;
        for &token in &ready {
            let length = sockets[token].read(&mut buffer)?;
            // There is no call yet, so there are no events.
            sockets[token].next(&buffer[..length], &mut 0)?;
        }
    }
    Ok(())
}

impl Drive {
    fn new(settings: &Settings, clients: Vec<Box<dyn Client>>) -> anyhow::Result<Drive> {
        ensure!(!settings.endpoints.is_empty() && settings.connections > 0, "an endpoint is needed");
        let mut epoll = Epoll::new()?;
        let mut sockets = Vec::with_capacity(settings.connections);
        for (token, url) in settings.endpoints.iter().cycle().take(settings.connections).enumerate() {
            sockets.push(Socket::connect(url, &epoll, token).with_context(|| format!("connect to {url}"))?);
        }
        settle(&mut sockets, &mut epoll)?;
        let recorder = Recorder::new(settings.warmup, settings.duration, settings.pids.clone());
        let begin = recorder.start - settings.warmup;
        let slot = |(index, client): (usize, Box<dyn Client>)| Slot {
            background: client.background(),
            client,
            socket: index % settings.connections,
            stream: None,
            answer: None,
            due: begin,
            under_way: false,
        };
        Ok(Drive {
            epoll,
            sockets,
            slots: clients.into_iter().enumerate().map(slot).collect(),
            schedule: settings.rate.map(|rate| Schedule::new(begin, recorder.end, rate)),
            recorder,
            idle: VecDeque::new(),
            timers: BinaryHeap::new(),
            under_way: 0,
            message: Vec::new(),
        })
    }

    fn run(mut self) -> anyhow::Result<Measured> {
        let mut buffer = vec![0; READ_BYTES];
        let mut ready = Vec::new();
        let now = Instant::now();
        for slot in 0..self.slots.len() {
            self.has_none(slot, now)?;
        }
        let give_up = self.recorder.end + DRAIN;
        loop {
            let now = Instant::now();
            let mark = self.recorder.observe(now)?;
            self.go_on(now)?;
            if mark.is_none() && (self.under_way == 0 || now >= give_up) {
                break;
            }
            for socket in &mut self.sockets {
                socket.flush(&self.epoll)?;
            }
            let next_due = self.schedule.as_ref().and_then(Schedule::next_due).filter(|_| !self.idle.is_empty());
            let next_timer = self.timers.peek().map(|Reverse((at, _))| *at);
            let wake = [mark, next_due, next_timer].into_iter().flatten().fold(give_up, Instant::min);
            self.epoll.wait(wake.saturating_duration_since(Instant::now()), &mut ready)?;
            for &socket in &ready {
                self.receive(socket, &mut buffer)?;
                self.sockets[socket].flush(&self.epoll)?;
            }
        }
        let unanswered = Status::deadline_exceeded(format!("no answer {} s after the end", DRAIN.as_secs()));
        for _ in 0..self.under_way {
            self.recorder.error(&unanswered);
        }
        let (start, end) = (self.recorder.start, self.recorder.end);
        let due = self.schedule.map(|schedule| schedule.count_between(start, end));
        Ok(self.recorder.finish(due))
    }

    /// Lets clients go on whose time has come, and begins operations that are due.
    fn go_on(&mut self, now: Instant) -> anyhow::Result<()> {
        while let Some(&Reverse((at, slot))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            if self.slots[slot].under_way { self.send(slot)? } else { self.has_none(slot, now)? }
        }
        while let (Some(schedule), Some(&slot)) = (&mut self.schedule, self.idle.front()) {
            let Some(due) = schedule.take(now) else { break };
            self.idle.pop_front();
            self.begin(slot, due)?;
        }
        Ok(())
    }

    fn begin(&mut self, slot: usize, due: Instant) -> anyhow::Result<()> {
        self.slots[slot].due = due;
        self.slots[slot].under_way = true;
        self.under_way += usize::from(!self.slots[slot].background);
        self.send(slot)
    }

    fn end(&mut self, slot: usize) {
        let Slot { background, under_way, due, .. } = &mut self.slots[slot];
        *under_way = false;
        self.under_way -= usize::from(!*background);
        if self.recorder.measures(*due) {
            self.recorder.ended();
        }
    }

    /// The client has no operation: it begins one, or waits until one is due.
    fn has_none(&mut self, slot: usize, now: Instant) -> anyhow::Result<()> {
        if self.schedule.is_some() && !self.slots[slot].background {
            self.idle.push_back(slot);
        } else if now < self.recorder.end {
            self.begin(slot, now)?;
        }
        Ok(())
    }

    fn send(&mut self, index: usize) -> anyhow::Result<()> {
        let slot = &mut self.slots[index];
        self.message.clear();
        let call = slot.client.request(slot.due, &mut self.message);
        let http = &mut self.sockets[slot.socket].http;
        match (call.lane, slot.stream) {
            (Lane::Stream, Some(stream)) => http.send(stream, &self.message),
            (Lane::Stream, None) => {
                let stream = http.call(index, call.lane, call.path, &self.message);
                slot.stream = Some(stream.context("the server's bound on streams is below what this workload needs")?);
            }
            (Lane::Unary, _) => {
                http.call(index, call.lane, call.path, &self.message);
            }
        }
        Ok(())
    }

    fn receive(&mut self, socket: usize, buffer: &mut [u8]) -> anyhow::Result<()> {
        let length = self.sockets[socket].read(buffer)?;
        let now = Instant::now();
        let input = &buffer[..length];
        let mut at = 0;
        while let Some(event) = self.sockets[socket].next(input, &mut at)? {
            match event {
                Event::Message { owner, lane, message } => {
                    let slot = &mut self.slots[owner];
                    let answer = slot.client.answer(&message, now, &mut self.recorder);
                    self.sockets[socket].http.recycle(message);
                    match lane {
                        Lane::Stream => self.answered(owner, answer, now)?,
                        Lane::Unary => slot.answer = Some(answer),
                    }
                }
                Event::Ended { owner, lane: Lane::Unary, result } => {
                    let answer = self.slots[owner].answer.take();
                    let answer =
                        result.and_then(|()| answer.unwrap_or_else(|| Err(wrong("a status without an answer"))));
                    self.answered(owner, answer, now)?;
                }
                Event::Ended { owner, lane: Lane::Stream, result } => {
                    self.slots[owner].stream = None;
                    let error = result.err().unwrap_or_else(|| Status::unavailable("the server ended the stream"));
                    self.answered(owner, Err(error), now)?;
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, index: usize, answer: Result<Answer, Status>, now: Instant) -> anyhow::Result<()> {
        let slot = &self.slots[index];
        match answer {
            Ok(Answer::Listen) => Ok(()),
            Ok(Answer::Next) => self.send(index),
            Ok(Answer::After(pause)) => {
                self.timers.push(Reverse((now + pause, index)));
                Ok(())
            }
            Ok(Answer::Done { put_bytes }) => {
                self.recorder.complete(1, put_bytes, now);
                if self.recorder.measures(if self.schedule.is_some() { slot.due } else { now }) {
                    self.recorder.latency(now - slot.due);
                }
                self.end(index);
                self.has_none(index, now)
            }
            Ok(Answer::Aside) => {
                self.end(index);
                self.has_none(index, now)
            }
            Err(status) if slot.background => Err(status).context("a client that must not fail has failed"),
            Err(status) => {
                self.recorder.error(&status);
                if slot.under_way {
                    self.end(index);
                    self.timers.push(Reverse((now + PAUSE_AFTER_ERROR, index)));
                }
                Ok(())
            }
        }
    }
}
