//! The network between simulated hosts: calls over HTTP, handed over as they are, and what a network does to them.
//!
//! ```text
//! channel(from, to) ─ packets ─> link from→to ─> the target's service, in a task of its host
//!                  <─ packets ─  link to→from <─ its answer
//! ```
//!
//! There is no TCP and no HTTP/2 below, but what they promise holds: the messages of one call and one direction arrive
//! in order, none twice, none missing before another; different calls overtake each other. What is sent over a blocked
//! link waits until it is open again, or until both ends find, after the keep-alive time, that the connection is dead.
//! Two things are harsher than TCP: a request or an answer that is one message may be lost for good, and some requests
//! may come twice. Both are what Raft allows for.
//!
//! All chance comes from the seed, and all that happens goes by simulated time: within a tokio runtime of one thread
//! whose time is paused, the same calls on a network of the same seed give the same trace. Delays are in steps of
//! tokio's timers, 1 ms; what arrives in the same step arrives in the order of its exact times.

mod body;
mod call;
mod link;
mod serve;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    future::poll_fn,
    sync::{Arc, Weak, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use raft::PeerChannel;
use rand::{SeedableRng as _, rngs::StdRng};
use storage::host::{self, Host};
use tokio::{task::AbortHandle, time::Instant};
use tonic::Status;
use tower::util::BoxCloneSyncService;

pub use self::link::Link;
use self::{
    body::Sender,
    call::{Caller, Head, Received},
    wire::{Event, Serving, Wire, unavailable},
};

/// What took effect since the network was made. A message is what was sent at one time: a whole request or answer, or a
/// part of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkCounts {
    pub calls: u64,
    pub sent: u64,
    pub bytes: u64,
    pub delivered: u64,
    /// Messages that never arrived.
    pub lost: u64,
    /// Messages of streams that came late instead.
    pub retransmitted: u64,
    /// Requests that came twice.
    pub duplicated: u64,
    /// Messages that overtook an earlier one on their link.
    pub reordered: u64,
    /// Messages that waited for a blocked link.
    pub stalled: u64,
    /// Calls that the network broke.
    pub broken: u64,
    /// Calls whose target heard that the caller had gone.
    pub cancelled: u64,
    /// Calls to a node on which nobody listens.
    pub refused: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    Delivered,
    Duplicated,
    Lost,
    Retransmitted,
    Stalled,
    Broken,
    Cancelled,
    Refused,
}

/// One thing that happened to a message, or to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Trace<'a> {
    /// Since the network was made.
    pub at: Duration,
    pub what: What,
    /// Counts up.
    pub call: u64,
    pub from: u64,
    pub to: u64,
    pub path: &'a str,
    pub bytes: usize,
}

/// How a node's process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Its system tells the others: their calls break, new ones are refused.
    Kill,
    /// Nothing tells them: they wait for the keep-alive time, or until the node is there again and knows nothing of
    /// their calls.
    PowerCut,
}

#[derive(Debug)]
pub struct Network {
    wire: Arc<Wire>,
    driver: AbortHandle,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Network {
    /// Within a tokio runtime of one thread. `keep_alive` is after how long without a sign from the other end a
    /// connection breaks, or one that cannot be made is given up.
    pub fn new(seed: u64, keep_alive: Duration) -> Arc<Network> {
        let wire = Arc::new(Wire::new(StdRng::seed_from_u64(seed), keep_alive));
        let driver = tokio::spawn(wire.clone().drive()).abort_handle();
        Arc::new(Network { wire, driver })
    }

    /// Calls `trace` for all that happens from now on. It must not use the network. The first one stays.
    pub fn trace(&self, trace: impl Fn(&Trace<'_>) + Send + Sync + 'static) {
        let is_first = self.wire.trace.set(Box::new(trace)).is_ok();
        assert!(is_first, "a network has one trace");
    }

    pub fn counts(&self) -> NetworkCounts {
        self.wire.state.lock().counts
    }

    /// From now on `service` answers the calls to `node`, in tasks of `host`.
    pub fn serve(&self, node: u64, host: Arc<dyn Host>, service: axum::Router) {
        let service = service.with_state(());
        let state = &mut *self.wire.state.lock();
        state.node(node).serving = Serving::Service { host, service };
        // Whoever waits for the process that was there before hears from this one that it is gone.
        for call in state.calls() {
            if is_dead_at(&call, node) {
                state.push_break(call, node, unavailable("connection reset by peer"));
            }
        }
    }

    /// The process of `node` has ended, and with it all calls that it answers or has made. This goes together with the
    /// end of its tasks, in the same step.
    pub fn stop_serving(&self, node: u64, stop: Stop) {
        let state = &mut *self.wire.state.lock();
        let host = state.node(node);
        host.paused_since = None;
        host.serving = match stop {
            Stop::Kill => Serving::Refused,
            Stop::PowerCut => Serving::Silent,
        };
        for call in state.calls() {
            if call.from != node && call.to != node || is_dead_at(&call, node) {
                continue;
            }
            call.caller_died.fetch_or(call.from == node, Ordering::Relaxed);
            call.target_died.fetch_or(call.to == node, Ordering::Relaxed);
            let status = unavailable("connection reset by peer");
            match stop {
                Stop::Kill => state.push_break(call, node, status),
                Stop::PowerCut => {
                    let at = Instant::now() + self.wire.keep_alive;
                    state.push(at, Event::Breaks { call, by: None, status });
                }
            }
        }
    }

    /// The process of `node` stands still: it answers no keep-alive. Its host must be paused in the same step.
    pub fn pause(&self, node: u64) {
        let state = &mut *self.wire.state.lock();
        let now = Instant::now();
        state.node(node).paused_since.get_or_insert(now);
        state.push(now + self.wire.keep_alive, Event::KeepAlive);
    }

    pub fn resume(&self, node: u64) {
        self.wire.state.lock().node(node).paused_since = None;
    }

    /// Calls from one node to another. A node that makes calls only, such as a client, needs nothing else.
    pub fn channel(&self, from: u64, to: u64) -> PeerChannel {
        let wire = Arc::downgrade(&self.wire);
        BoxCloneSyncService::new(tower::service_fn(move |request| call(wire.clone(), from, to, request)))
    }

    /// What all links are that have not been set.
    pub fn set_default_link(&self, link: Link) {
        let state = &mut *self.wire.state.lock();
        state.links.values_mut().for_each(|state| state.link = link.clone());
        state.default_link = link;
    }

    /// Sets one direction between two nodes.
    pub fn set_link(&self, from: u64, to: u64, link: Link) {
        self.wire.state.lock().link(from, to).link = link;
    }

    /// Nothing passes in this direction any more.
    pub fn block(&self, from: u64, to: u64) {
        let state = &mut *self.wire.state.lock();
        let now = Instant::now();
        state.link(from, to).blocked_since.get_or_insert(now);
        state.push(now + self.wire.keep_alive, Event::KeepAlive);
    }

    /// What waits passes.
    pub fn unblock(&self, from: u64, to: u64) {
        let state = &mut *self.wire.state.lock();
        let wire::State { rng, links, .. } = state;
        let Some(link) = links.get_mut(&(from, to)) else { return };
        link.blocked_since = None;
        let at = Instant::now() + link.delay(rng);
        let stalled = std::mem::take(&mut link.stalled);
        stalled.into_iter().for_each(|flight| state.push(at, Event::Arrives(flight)));
    }

    /// All links are open, and as the default is.
    pub fn heal(&self) {
        let links: Vec<(u64, u64)> = {
            let wire::State { links, default_link, .. } = &mut *self.wire.state.lock();
            links.values_mut().for_each(|state| state.link = default_link.clone());
            links.keys().copied().collect()
        };
        links.into_iter().for_each(|(from, to)| self.unblock(from, to));
    }

    /// All connections between two nodes break at once.
    pub fn reset(&self, a: u64, b: u64) {
        self.wire.break_calls(&unavailable("connection reset"), |_, call| {
            (call.from, call.to) == (a, b) || (call.from, call.to) == (b, a)
        });
    }
}

/// Whether this end of the call was in a process that has ended.
fn is_dead_at(call: &call::Call, node: u64) -> bool {
    let caller = call.from == node && call.caller_died.load(Ordering::Relaxed);
    caller || call.to == node && call.target_died.load(Ordering::Relaxed)
}

async fn call(
    wire: Weak<Wire>,
    from: u64,
    to: u64,
    request: http::Request<tonic::body::Body>,
) -> Result<http::Response<tonic::body::Body>, Status> {
    let call = wire.upgrade().ok_or_else(|| unavailable("the network is gone"))?;
    let (mut parts, body) = request.into_parts();
    // They are the process's own, and go over no wire.
    parts.extensions.clear();
    let call = call.begin(from, to, parts.uri.clone());
    let caller = Caller(call.clone());
    let mut sender = Sender::new(call.clone(), 0, Head::Request(Box::new(parts)), body);
    let is_sent = poll_fn(|context| Poll::Ready(sender.poll(context).is_ready())).await;
    if !is_sent {
        // It ends with the call, or with the caller's host.
        drop(host::spawn(sender.run()));
    }
    let mut parts = poll_fn(|context| call.poll_answer(context)).await?;
    parts.extensions.clear();
    Ok(http::Response::from_parts(parts, tonic::body::Body::new(Received::answer(caller))))
}
