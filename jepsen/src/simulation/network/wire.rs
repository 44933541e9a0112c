//! What is on its way, and what happens to it: a queue of events in simulated time, and the one task that takes them.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{Arc, OnceLock, Weak, atomic},
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng as _, rngs::StdRng};
use storage::host::{Host, spawn_on};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use super::{
    NetworkCounts, Trace, What,
    call::{Call, Direction, Flight, Head, Packet, Part, Received},
    link::{Link, LinkState},
    serve,
};

/// How late a segment comes that TCP sends again.
const RETRANSMISSION_MS: std::ops::RangeInclusive<u64> = 200..=1_000;
/// One of so many lost messages of a stream breaks it.
const BREAKS_ONE_OF: u32 = 8;
/// How late a request comes a second time.
const DUPLICATE_MS_MAX: u64 = 500;

pub enum Event {
    Arrives(Flight),
    /// A request arrives once more.
    ArrivesAgain(Arc<Call>, Box<http::request::Parts>, VecDeque<Part>),
    Cancelled(Arc<Call>),
    /// Both ends see this: by themselves, or because of what this one of them says.
    Breaks {
        call: Arc<Call>,
        by: Option<u64>,
        status: Status,
    },
    /// What has heard nothing for the keep-alive time is broken.
    KeepAlive,
}

struct Queued {
    at: Instant,
    number: u64,
    event: Event,
}

impl Queued {
    fn key(&self) -> (Instant, u64) {
        (self.at, self.number)
    }
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    /// The heap gives the greatest first: that is the earliest.
    fn cmp(&self, other: &Queued) -> Ordering {
        other.key().cmp(&self.key())
    }
}

/// Whether, and how, a node answers.
#[derive(Clone)]
pub enum Serving {
    Service {
        host: Arc<dyn Host>,
        service: axum::Router,
    },
    /// The system is there, and refuses what is for the process.
    Refused,
    /// Nothing is there.
    Silent,
}

pub struct Node {
    pub serving: Serving,
    pub paused_since: Option<Instant>,
}

pub struct State {
    pub rng: StdRng,
    pub default_link: Link,
    pub links: BTreeMap<(u64, u64), LinkState>,
    pub nodes: BTreeMap<u64, Node>,
    /// In the order of their ids. Those that have ended are taken out now and then.
    calls: Vec<Weak<Call>>,
    calls_max: usize,
    next_call: u64,
    events: BinaryHeap<Queued>,
    next_event: u64,
    driver: Option<Waker>,
    /// When the driver looks next.
    wakes_at: Option<Instant>,
    pub counts: NetworkCounts,
}

pub struct Wire {
    pub state: Mutex<State>,
    pub keep_alive: Duration,
    began: Instant,
    pub trace: OnceLock<Box<dyn Fn(&Trace<'_>) + Send + Sync>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl State {
    pub fn new(rng: StdRng) -> State {
        State {
            rng,
            default_link: Link::default(),
            links: BTreeMap::new(),
            nodes: BTreeMap::new(),
            calls: Vec::new(),
            calls_max: 64,
            next_call: 0,
            events: BinaryHeap::new(),
            next_event: 0,
            driver: None,
            wakes_at: None,
            counts: NetworkCounts::default(),
        }
    }

    pub fn link(&mut self, from: u64, to: u64) -> &mut LinkState {
        self.links.entry((from, to)).or_insert_with(|| LinkState::new(self.default_link.clone()))
    }

    pub fn node(&mut self, node: u64) -> &mut Node {
        self.nodes.entry(node).or_insert(Node { serving: Serving::Refused, paused_since: None })
    }

    pub fn push(&mut self, at: Instant, event: Event) {
        self.events.push(Queued { at, number: self.next_event, event });
        self.next_event += 1;
        if self.wakes_at.is_none_or(|wakes_at| at < wakes_at)
            && let Some(driver) = self.driver.take()
        {
            driver.wake();
        }
    }

    /// Calls that are open.
    pub fn calls(&self) -> Vec<Arc<Call>> {
        self.calls.iter().filter_map(Weak::upgrade).filter(|call| !call.is_over()).collect()
    }

    fn is_blocked(&self, from: u64, to: u64) -> bool {
        self.links.get(&(from, to)).is_some_and(|link| link.blocked_since.is_some())
    }

    /// Since when nothing is heard between two nodes: keep-alive needs both directions, and both processes.
    fn quiet_since(&self, a: u64, b: u64) -> Option<Instant> {
        let blocked = |from, to| self.links.get(&(from, to)).and_then(|link| link.blocked_since);
        let paused = |node| self.nodes.get(&node).and_then(|node| node.paused_since);
        [blocked(a, b), blocked(b, a), paused(a), paused(b)].into_iter().flatten().min()
    }

    fn send(&mut self, call: &Arc<Call>, direction: Direction, packet: Packet, keep_alive: Duration) -> Fate {
        let (ends, bytes, now) = (call.ends(direction), packet.bytes(), Instant::now());
        self.counts.sent += 1;
        self.counts.bytes += bytes as u64;
        let fate = self.fate(call, direction, &packet);
        match fate {
            Fate::Lost => {
                // The caller knows when it has heard nothing for long enough.
                let status = unavailable("the connection was lost");
                self.push(now + keep_alive, Event::Breaks { call: call.clone(), by: None, status });
                return fate;
            }
            Fate::Breaks => {
                self.push_break(call.clone(), ends.0, unavailable("the connection broke"));
                return fate;
            }
            Fate::Arrives | Fate::Late => {}
        }
        let again = if direction == Direction::Request { self.duplicate(call, &packet) } else { None };
        let State { rng, links, default_link, .. } = self;
        let link = links.entry(ends).or_insert_with(|| LinkState::new(default_link.clone()));
        let (mut at, overtakes) = link.arrival(now, bytes, rng);
        self.counts.reordered += u64::from(overtakes);
        if fate == Fate::Late {
            at += Duration::from_millis(self.rng.random_range(RETRANSMISSION_MS));
        }
        self.push(at, Event::Arrives(Flight { call: call.clone(), direction, packet }));
        if let Some(again) = again {
            let late = Duration::from_millis(self.rng.random_range(0..=DUPLICATE_MS_MAX));
            self.push(at + late, again);
        }
        fate
    }

    fn fate(&mut self, call: &Call, direction: Direction, packet: &Packet) -> Fate {
        let is_unary = match direction {
            Direction::Request => packet.is_whole(),
            Direction::Answer => packet.is_whole() && call.is_unary.load(atomic::Ordering::Relaxed),
        };
        call.is_unary.store(is_unary, atomic::Ordering::Relaxed);
        let (from, to) = call.ends(direction);
        let loss = self.link(from, to).link.loss;
        if loss <= 0.0 || !self.rng.random_bool(loss) {
            return Fate::Arrives;
        }
        if !is_unary && !self.rng.random_ratio(1, BREAKS_ONE_OF) {
            self.counts.retransmitted += 1;
            return Fate::Late;
        }
        self.counts.lost += 1;
        if is_unary { Fate::Lost } else { Fate::Breaks }
    }

    /// The same request once more, if it is one that may be.
    fn duplicate(&mut self, call: &Arc<Call>, packet: &Packet) -> Option<Event> {
        let Some(Head::Request(parts)) = &packet.head else { return None };
        let duplication = self.link(call.from, call.to).link.duplication;
        if duplication <= 0.0 || !packet.is_whole() || !may_be_asked_twice(call.uri.path()) {
            return None;
        }
        if !self.rng.random_bool(duplication) {
            return None;
        }
        self.counts.duplicated += 1;
        Some(Event::ArrivesAgain(call.clone(), parts.clone(), packet.parts.clone()))
    }

    /// A break that `by` causes, as soon as the other end can hear of it.
    pub fn push_break(&mut self, call: Arc<Call>, by: u64, status: Status) {
        let to = if by == call.from { call.to } else { call.from };
        let State { rng, links, default_link, .. } = self;
        let link = links.entry((by, to)).or_insert_with(|| LinkState::new(default_link.clone()));
        let at = Instant::now() + link.delay(rng);
        self.push(at, Event::Breaks { call, by: Some(by), status });
    }
}

impl Wire {
    pub fn new(rng: StdRng, keep_alive: Duration) -> Wire {
        let began = Instant::now();
        Wire { state: Mutex::new(State::new(rng)), keep_alive, began, trace: OnceLock::new() }
    }

    fn tell(&self, what: What, call: &Call, (from, to): (u64, u64), bytes: usize) {
        if let Some(trace) = self.trace.get() {
            let at = Instant::now() - self.began;
            trace(&Trace { at, what, call: call.id, from, to, path: call.uri.path(), bytes });
        }
    }

    pub fn begin(self: &Arc<Self>, from: u64, to: u64, uri: http::Uri) -> Arc<Call> {
        let state = &mut *self.state.lock();
        let now = Instant::now();
        let call = Arc::new(Call::new(state.next_call, (from, to), uri, now, Arc::downgrade(self)));
        state.next_call += 1;
        state.counts.calls += 1;
        if state.calls.len() >= state.calls_max {
            state.calls.retain(|call| call.strong_count() > 0);
            state.calls_max = 64.max(2 * state.calls.len());
        }
        state.calls.push(Arc::downgrade(&call));
        if state.quiet_since(from, to).is_some() {
            state.push(now + self.keep_alive, Event::KeepAlive);
        }
        call
    }

    pub fn send(&self, call: &Arc<Call>, direction: Direction, packet: Packet) {
        if call.is_over() || !call.is_alive(direction).0 {
            return;
        }
        call.note_sent(direction, &packet);
        let (ends, bytes) = (call.ends(direction), packet.bytes());
        let fate = self.state.lock().send(call, direction, packet, self.keep_alive);
        match fate {
            Fate::Arrives => {}
            Fate::Late => self.tell(What::Retransmitted, call, ends, bytes),
            Fate::Lost | Fate::Breaks => self.tell(What::Lost, call, ends, bytes),
        }
    }

    /// The caller has let go: the target hears of it.
    pub fn cancel(&self, call: &Arc<Call>) {
        let state = &mut *self.state.lock();
        let State { rng, links, default_link, .. } = state;
        let link = links.entry((call.from, call.to)).or_insert_with(|| LinkState::new(default_link.clone()));
        let at = Instant::now() + link.delay(rng);
        state.push(at, Event::Cancelled(call.clone()));
    }

    fn break_now(&self, call: &Arc<Call>, status: &Status) {
        if !call.is_over() {
            self.state.lock().counts.broken += 1;
            self.tell(What::Broken, call, (call.from, call.to), 0);
            call.fail(status);
        }
    }

    /// Breaks open calls that `which` picks.
    pub fn break_calls(&self, status: &Status, which: impl Fn(&State, &Call) -> bool) {
        let calls = {
            let state = self.state.lock();
            let mut calls = state.calls();
            calls.retain(|call| which(&state, call));
            calls
        };
        calls.iter().for_each(|call| self.break_now(call, status));
        if !calls.is_empty() {
            self.drop_stalled();
        }
    }

    /// Lets go of what waits for a link and belongs to calls that are over.
    fn drop_stalled(&self) {
        let mut dropped: Vec<VecDeque<Flight>> = Vec::new();
        for link in self.state.lock().links.values_mut() {
            let (over, open) = std::mem::take(&mut link.stalled).into_iter().partition(|flight| flight.call.is_over());
            link.stalled = open;
            dropped.push(over);
        }
    }

    fn handle(self: &Arc<Self>, event: Event) {
        match event {
            Event::Arrives(flight) => self.arrive(flight),
            Event::ArrivesAgain(call, parts, body) => {
                let ends = (call.from, call.to);
                if !call.is_over() && !self.state.lock().is_blocked(ends.0, ends.1) {
                    self.tell(What::Duplicated, &call, ends, body.iter().map(Part::len).sum());
                    self.serve(&call, 1, *parts, Received::copy(body));
                }
            }
            Event::Cancelled(call) if self.is_heard(&call, call.from) => {
                self.state.lock().counts.cancelled += 1;
                self.tell(What::Cancelled, &call, (call.from, call.to), 0);
                call.fail(&Status::cancelled("the caller has gone"));
            }
            Event::Breaks { call, by, status } if by.is_none_or(|by| self.is_heard(&call, by)) => {
                self.break_now(&call, &status);
            }
            Event::Cancelled(_) | Event::Breaks { .. } => self.later(event),
            Event::KeepAlive => {
                let (now, keep_alive) = (Instant::now(), self.keep_alive);
                self.break_calls(&unavailable("keep-alive timed out"), |state, call| {
                    let quiet_since = state.quiet_since(call.from, call.to);
                    quiet_since.is_some_and(|since| since.max(call.began) + keep_alive <= now)
                });
            }
        }
    }

    /// Whether what `by` says reaches the other end of its call, or need not.
    fn is_heard(&self, call: &Call, by: u64) -> bool {
        let to = if by == call.from { call.to } else { call.from };
        call.is_over() || !self.state.lock().is_blocked(by, to)
    }

    /// Sends again what a blocked link did not let through.
    fn later(&self, event: Event) {
        let state = &mut *self.state.lock();
        let after = Duration::from_millis(state.rng.random_range(RETRANSMISSION_MS));
        state.push(Instant::now() + after, event);
    }

    fn arrive(self: &Arc<Self>, flight: Flight) {
        let (from, to) = flight.ends();
        let (call, bytes) = (flight.call.clone(), flight.packet.bytes());
        if call.is_over() || !call.is_alive(flight.direction).1 {
            return;
        }
        let is_blocked = self.state.lock().is_blocked(from, to);
        if is_blocked {
            self.tell(What::Stalled, &call, (from, to), bytes);
            let state = &mut *self.state.lock();
            state.counts.stalled += 1;
            state.link(from, to).stalled.push_back(flight);
            return;
        }
        self.state.lock().counts.delivered += 1;
        self.tell(What::Delivered, &call, (from, to), bytes);
        let mut packet = flight.packet;
        // Most requests are whole: their body needs no flow.
        if flight.direction == Direction::Request
            && packet.is_whole()
            && let Some(Head::Request(parts)) = packet.head.take()
        {
            call.release(Direction::Request, packet.bytes());
            return self.serve(&call, 0, *parts, Received::copy(packet.parts));
        }
        if let Some(parts) = call.accept(flight.direction, packet) {
            self.serve(&call, 0, *parts, Received::request(call.clone()));
        }
    }

    fn serve(self: &Arc<Self>, call: &Arc<Call>, attempt: usize, parts: http::request::Parts, body: Received) {
        let serving = self.state.lock().nodes.get(&call.to).map_or(Serving::Refused, |node| node.serving.clone());
        match serving {
            Serving::Service { host, service } => {
                let request = http::Request::from_parts(parts, axum::body::Body::new(body));
                // Nobody waits for the task: it ends with its host or with the call.
                drop(spawn_on(&host, serve::answer(call.clone(), attempt, service, request)));
            }
            Serving::Refused => {
                self.tell(What::Refused, call, (call.from, call.to), 0);
                let state = &mut *self.state.lock();
                state.counts.refused += 1;
                state.push_break(call.clone(), call.to, unavailable("connection refused"));
            }
            Serving::Silent => {
                let at = (call.began + self.keep_alive).max(Instant::now());
                let status = unavailable("no answer to the connection");
                self.state.lock().push(at, Event::Breaks { call: call.clone(), by: None, status });
            }
        }
    }

    /// Takes the events when their time has come.
    pub async fn drive(self: Arc<Self>) {
        let mut sleep = pin!(sleep_until(self.began));
        poll_fn(|context| {
            while let Some(event) = self.next_event(sleep.as_mut(), context) {
                self.handle(event);
            }
            Poll::<()>::Pending
        })
        .await;
    }

    fn next_event(&self, mut sleep: std::pin::Pin<&mut Sleep>, context: &mut Context<'_>) -> Option<Event> {
        let mut state = self.state.lock();
        loop {
            let Some(at) = state.events.peek().map(|queued| queued.at) else {
                (state.driver, state.wakes_at) = (Some(context.waker().clone()), None);
                return None;
            };
            if at <= Instant::now() {
                return state.events.pop().map(|queued| queued.event);
            }
            sleep.as_mut().reset(at);
            if sleep.as_mut().poll(context).is_pending() {
                (state.driver, state.wakes_at) = (Some(context.waker().clone()), Some(at));
                return None;
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    /// Sent again later.
    Late,
    Lost,
    Breaks,
}

pub fn unavailable(text: &str) -> Status {
    Status::unavailable(text)
}

/// Requests between members that may come twice. A proposal or a change of the members comes once or never, over HTTP/2
/// as here: twice, it would be done twice.
fn may_be_asked_twice(path: &str) -> bool {
    const REQUESTS: [&str; 6] = ["Vote", "PreVote", "TransferLeader", "ReadIndex", "IsBootstrapped", "AskLeader"];
    path.strip_prefix("/peer.Peer/").is_some_and(|name| REQUESTS.contains(&name))
}
