//! Keeps leases alive, all of a client on one stream.
//!
//! A lease is renewed whenever a third of its time is over. Its time is counted from the moment the renewal was sent, which
//! is before the server's clock for it started: so whoever keeps it hears that it is lost before others see its keys go.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use proto::{
    LeaseId,
    etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse, lease_client::LeaseClient},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use crate::{Error, Result, connection::Route, retry::Backoff};

/// Answers that wait to be looked at.
const QUEUE: usize = 64;

#[derive(Debug, Clone)]
enum State {
    /// Not renewed yet.
    Unknown,
    Renewed(LeaseKeepAliveResponse),
    Gone,
}

/// Keeps a lease alive. Dropping it ends the renewals, not the lease.
#[derive(Debug)]
pub struct LeaseKeeper {
    id: LeaseId,
    renewals: watch::Receiver<State>,
}

impl LeaseKeeper {
    /// The lease's id.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// Whether the lease is gone, as [`LeaseKeeper::next`] would say.
    pub fn is_gone(&self) -> bool {
        matches!(*self.renewals.borrow(), State::Gone)
    }

    /// Waits for the next renewal. Of several since the last call it gives the newest.
    ///
    /// [`Error::LeaseGone`] when the server says that there is no such lease, or when nobody could be asked for as long
    /// as the lease lasts: whoever relies on the lease must then let go of what it stands for.
    pub async fn next(&mut self) -> Result<LeaseKeepAliveResponse> {
        loop {
            if self.is_gone() {
                return Err(Error::LeaseGone(self.id));
            }
            // At once where there was one since the last call. The hub lets go of a lease only after it has reported that
            // it is gone.
            self.renewals.changed().await.map_err(|_| Error::LeaseGone(self.id))?;
            if let State::Renewed(answer) = &*self.renewals.borrow_and_update() {
                return Ok(*answer);
            }
        }
    }

    /// Waits until the lease is gone.
    pub async fn gone(&self) {
        // Fails only when the hub has ended, and then the lease is gone, too.
        let _ = self.renewals.clone().wait_for(|state| matches!(state, State::Gone)).await;
    }
}

/// Where leases are given to the task that renews them.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    /// Not bounded: what waits is leases that somebody keeps anyway.
    task: Mutex<Option<mpsc::UnboundedSender<Lease>>>,
}

impl Hub {
    pub fn keep(&self, route: &Route, id: LeaseId, expires: Option<Instant>) -> LeaseKeeper {
        let (state, renewals) = watch::channel(State::Unknown);
        let lease = Lease { id, state, due: Instant::now(), sent: None, expires };
        let mut task = self.task.lock();
        let unsent = match &*task {
            Some(task) => task.send(lease).err().map(|error| error.0),
            None => Some(lease),
        };
        if let Some(lease) = unsent {
            let (sender, leases) = mpsc::unbounded_channel();
            sender.send(lease).unwrap_or_else(|_| unreachable!("the receiver is here"));
            tokio::spawn(Renewals::new(route.clone(), leases).run());
            *task = Some(sender);
        }
        LeaseKeeper { id, renewals }
    }
}

#[derive(Debug)]
struct Lease {
    id: LeaseId,
    state: watch::Sender<State>,
    /// When it is to be renewed.
    due: Instant,
    /// When the renewal was sent that is not answered yet.
    sent: Option<Instant>,
    /// None: nobody has said how long it lasts.
    expires: Option<Instant>,
}

impl Lease {
    /// When a renewal that is not answered counts as lost: early enough to ask another member.
    fn lost_at(&self, within: Duration) -> Option<Instant> {
        let sent = self.sent?;
        let left = self.expires.map_or(within, |expires| expires.saturating_duration_since(sent));
        Some(sent + left.min(within) / 2)
    }

    fn wakes_at(&self, within: Duration) -> Instant {
        let next = self.lost_at(within).unwrap_or(self.due);
        self.expires.map_or(next, |expires| expires.min(next))
    }
}

/// The task that renews. It ends when nobody keeps a lease any more.
struct Renewals {
    route: Route,
    given: mpsc::UnboundedReceiver<Lease>,
    leases: HashMap<LeaseId, Vec<Lease>>,
    stream: Option<Stream>,
    backoff: Backoff,
    /// Not before this is another stream opened.
    pause_until: Instant,
}

enum Woken {
    Given(Option<Lease>),
    Answer(Option<Result<LeaseKeepAliveResponse, Status>>),
    Time,
}

impl Renewals {
    fn new(route: Route, given: mpsc::UnboundedReceiver<Lease>) -> Renewals {
        let (leases, backoff) = (HashMap::new(), Backoff::default());
        Renewals { route, given, leases, stream: None, backoff, pause_until: Instant::now() }
    }

    async fn run(mut self) {
        loop {
            self.take_given();
            self.let_go();
            if self.leases.is_empty() {
                // Whoever gives a lease from now on starts another task.
                self.given.close();
                self.take_given();
                if self.leases.is_empty() {
                    return;
                }
            }
            self.send_due();
            let wake_at = self.wake_at();
            let woken = tokio::select! {
                lease = self.given.recv(), if !self.given.is_closed() => Woken::Given(lease),
                answer = answer(&mut self.stream) => Woken::Answer(answer),
                () = sleep_until(wake_at) => Woken::Time,
            };
            match woken {
                Woken::Given(lease) => lease.into_iter().for_each(|lease| self.add(lease)),
                Woken::Answer(Some(Ok(answer))) => self.renewed(answer),
                Woken::Answer(failure) => self.broken(failure),
                Woken::Time => self.look_for_lost(),
            }
        }
    }

    fn take_given(&mut self) {
        while let Ok(lease) = self.given.try_recv() {
            self.add(lease);
        }
    }

    fn add(&mut self, lease: Lease) {
        self.leases.entry(lease.id).or_default().push(lease);
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Lease> {
        self.leases.values_mut().flatten()
    }

    /// Forgets leases that have run out, and those that nobody keeps any more.
    fn let_go(&mut self) {
        let now = Instant::now();
        for leases in self.leases.values_mut() {
            leases.retain(|lease| {
                let is_over = lease.expires.is_some_and(|expires| expires <= now);
                if is_over {
                    lease.state.send_replace(State::Gone);
                }
                !is_over && !lease.state.is_closed()
            });
        }
        self.leases.retain(|_, leases| !leases.is_empty());
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        if !self.all().any(|lease| lease.sent.is_none() && lease.due <= now) {
            return;
        }
        if self.stream.is_none() && now < self.pause_until {
            return;
        }
        let stream = self.stream.get_or_insert_with(|| Stream::open(&self.route));
        for (id, leases) in &mut self.leases {
            if !leases.iter().any(|lease| lease.sent.is_none() && lease.due <= now) {
                continue;
            }
            // One renewal serves all who keep the lease, also whoever comes while it is on its way: were another one sent,
            // the answer to the first would be taken for that of the second, and the lease for longer than it is.
            let on_its_way = leases.iter().find_map(|lease| lease.sent);
            // Fails when the stream has ended, which its answers will say.
            if on_its_way.is_some() || stream.requests.send(LeaseKeepAliveRequest { id: id.0 }).is_ok() {
                leases.iter_mut().for_each(|lease| lease.sent = Some(on_its_way.unwrap_or(now)));
            }
        }
    }

    fn wake_at(&mut self) -> Instant {
        let within = self.route.request_timeout();
        let (has_stream, pause_until) = (self.stream.is_some(), self.pause_until);
        let wake = |lease: &mut Lease| {
            let next = lease.wakes_at(within);
            // Without a stream nothing can be sent before the pause is over; but a lease may run out.
            if has_stream { next } else { next.max(pause_until).min(lease.expires.unwrap_or(pause_until.max(next))) }
        };
        // Those that nobody keeps any more are found in time.
        self.all().map(wake).min().unwrap_or_else(Instant::now)
    }

    fn renewed(&mut self, answer: LeaseKeepAliveResponse) {
        self.backoff.reset();
        let Some(leases) = self.leases.get_mut(&LeaseId(answer.id)) else { return };
        if answer.ttl <= 0 {
            for lease in self.leases.remove(&LeaseId(answer.id)).into_iter().flatten() {
                lease.state.send_replace(State::Gone);
            }
            return;
        }
        let ttl = Duration::from_secs(answer.ttl.unsigned_abs());
        for lease in leases {
            let Some(sent) = lease.sent.take() else { continue };
            lease.expires = Some(sent + ttl);
            lease.due = sent + ttl / 3;
            lease.state.send_replace(State::Renewed(answer));
        }
    }

    /// The stream has ended.
    fn broken(&mut self, failure: Option<Result<LeaseKeepAliveResponse, Status>>) {
        let status = failure.and_then(Result::err).unwrap_or_else(|| Status::unavailable("the stream was closed"));
        tracing::debug!(%status, "leases could not be renewed");
        self.pause_until = Instant::now() + self.backoff.wait();
        self.give_up();
    }

    /// A member that does not answer in time is left.
    fn look_for_lost(&mut self) {
        let (now, within) = (Instant::now(), self.route.request_timeout());
        if self.stream.is_some() && self.all().any(|lease| lease.lost_at(within).is_some_and(|at| at <= now)) {
            tracing::debug!("leases could not be renewed in time");
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.route.give_up(&stream.target);
        }
        let now = Instant::now();
        for lease in self.all().filter(|lease| lease.sent.is_some()) {
            lease.sent = None;
            lease.due = now;
        }
    }
}

/// The next answer, for as long as it takes. None: the stream has ended.
async fn answer(stream: &mut Option<Stream>) -> Option<Result<LeaseKeepAliveResponse, Status>> {
    match stream {
        Some(stream) => stream.answers.recv().await,
        None => std::future::pending().await,
    }
}

struct Stream {
    target: std::sync::Arc<crate::endpoint::Member>,
    /// Not bounded: a lease has one renewal on its way.
    requests: mpsc::UnboundedSender<LeaseKeepAliveRequest>,
    answers: mpsc::Receiver<Result<LeaseKeepAliveResponse, Status>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn open(route: &Route) -> Stream {
        let target = route.target();
        let (requests, to_send) = mpsc::unbounded_channel();
        let (sender, answers) = mpsc::channel(QUEUE);
        let reading = read(route.clone(), target.clone(), to_send, sender.clone());
        let reader = tokio::spawn(async move {
            if let Err(status) = reading.await {
                // Fails when the stream was given up, and nobody asks why it ended.
                let _ = sender.send(Err(status)).await;
            }
        });
        Stream { target, requests, answers, reader }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(
    route: Route,
    target: std::sync::Arc<crate::endpoint::Member>,
    requests: mpsc::UnboundedReceiver<LeaseKeepAliveRequest>,
    answers: mpsc::Sender<Result<LeaseKeepAliveResponse, Status>>,
) -> Result<(), Status> {
    let token = route.token(Instant::now() + route.request_timeout()).await;
    let token = token.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut client = LeaseClient::new(token.connection(target.channel.clone()));
    let ended: Result<(), Status> = async {
        let mut stream = client.lease_keep_alive(UnboundedReceiverStream::new(requests)).await?.into_inner();
        while let Some(answer) = stream.message().await? {
            target.works();
            // Fails when the stream was given up; then this task ends, too.
            let _ = answers.send(Ok(answer)).await;
        }
        Ok(())
    }
    .await;
    if let Err(status) = &ended {
        // The next stream is opened with another token.
        route.is_stale(&token, &Error::from(status.clone()));
    }
    ended
}
