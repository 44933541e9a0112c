use std::{
    future::Future,
    sync::atomic::{AtomicBool, AtomicU64},
    task::Waker,
    time::Instant as HostInstant,
};

use axum::{Router, body::Body, extract::State, routing::post};
use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use proto::etcdserverpb::{
    WatchCancelRequest, WatchRequest, WatchResponse, watch_client::WatchClient, watch_request::RequestUnion,
    watch_server,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tonic::{Code, Request, Response, Streaming};
use tower::ServiceExt as _;

use super::*;

const KEEP_ALIVE: Duration = Duration::from_secs(5);
const CLIENT: u64 = 1_000;
const MEMBER: u64 = 1;

#[derive(Default)]
struct SimHost {
    is_paused: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Host for SimHost {
    fn system_time(&self) -> std::time::SystemTime {
        std::time::SystemTime::UNIX_EPOCH
    }

    fn adopt(&self, task: AbortHandle) {
        self.tasks.lock().push(task);
    }

    fn is_running(&self, waker: &Waker) -> bool {
        let is_paused = self.is_paused.load(Ordering::Relaxed);
        if is_paused {
            self.waiting.lock().push(waker.clone());
        }
        !is_paused
    }

    fn now(&self) -> HostInstant {
        Instant::now().into_std()
    }
}

impl SimHost {
    fn end(&self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }

    fn pause(&self) {
        self.is_paused.store(true, Ordering::Relaxed);
    }

    fn resume(&self) {
        self.is_paused.store(false, Ordering::Relaxed);
        self.waiting.lock().drain(..).for_each(Waker::wake);
    }
}

/// What a service did.
#[derive(Debug, Default)]
struct Seen {
    begun: AtomicU64,
    /// Handlers, and streams, that were dropped before their end.
    dropped: AtomicU64,
    received: Mutex<Vec<i64>>,
    error: Mutex<Option<Code>>,
}

struct OnDrop(Arc<Seen>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl Seen {
    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Answers with what it was asked.
async fn echo(State(seen): State<Arc<Seen>>, body: Bytes) -> Bytes {
    seen.begun.fetch_add(1, Ordering::Relaxed);
    body
}

/// Answers after as many seconds as the body has bytes.
async fn slow(State(seen): State<Arc<Seen>>, body: Bytes) -> &'static str {
    seen.begun.fetch_add(1, Ordering::Relaxed);
    let on_drop = OnDrop(seen);
    // A delay, of simulated time: it is what the answer takes.
    tokio::time::sleep(Duration::from_secs(body.len() as u64)).await;
    std::mem::forget(on_drop);
    "done"
}

async fn panics() -> &'static str {
    panic!("as it is meant to");
}

/// Answers each request of a stream with the same watch.
struct Echo(Arc<Seen>);

#[tonic::async_trait]
impl watch_server::Watch for Echo {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (seen, on_drop) = (self.0.clone(), OnDrop(self.0.clone()));
        seen.begun.fetch_add(1, Ordering::Relaxed);
        let answers = request.into_inner().map(move |request| {
            let _ = &on_drop;
            let request = request.inspect_err(|status| *seen.error.lock() = Some(status.code()))?;
            let Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })) = request.request_union else {
                return Err(Status::invalid_argument("not a cancellation"));
            };
            seen.received.lock().push(watch_id);
            Ok(WatchResponse { watch_id, ..Default::default() })
        });
        Ok(Response::new(answers.boxed()))
    }
}

struct World {
    network: Arc<Network>,
    host: Arc<SimHost>,
    seen: Arc<Seen>,
}

impl World {
    fn new(seed: u64) -> World {
        let network = Network::new(seed, KEEP_ALIVE);
        let world = World { network, host: Arc::default(), seen: Arc::default() };
        world.start();
        world
    }

    fn start(&self) {
        let peer = |name: &str| format!("/peer.Peer/{name}");
        let router = Router::new()
            .route("/echo", post(echo))
            .route(&peer("Vote"), post(echo))
            .route(&peer("Propose"), post(echo))
            .route("/slow", post(slow))
            .route("/panics", post(panics))
            .with_state(self.seen.clone());
        let watch = tonic::service::Routes::new(watch_server::WatchServer::new(Echo(self.seen.clone())));
        self.network.serve(MEMBER, self.host.clone(), router.merge(watch.into_axum_router()));
    }

    fn stop(&self, stop: Stop) {
        self.network.stop_serving(MEMBER, stop);
        self.host.end();
    }

    fn call(&self, path: &str, body: &'static str) -> JoinHandle<Result<Bytes, Status>> {
        self.call_from(CLIENT, path, body)
    }

    fn call_from(&self, from: u64, path: &str, body: &'static str) -> JoinHandle<Result<Bytes, Status>> {
        let channel = self.network.channel(from, MEMBER);
        let body = tonic::body::Body::new(http_body_util::Full::new(Bytes::from_static(body.as_bytes())));
        let request = http::Request::post(path).body(body).unwrap();
        tokio::spawn(async move {
            let response = channel.oneshot(request).await?;
            assert_eq!(response.status(), 200);
            Ok(response.into_body().collect().await?.to_bytes())
        })
    }

    async fn stream(&self) -> (mpsc::Sender<i64>, Streaming<WatchResponse>) {
        let (sender, receiver) = mpsc::channel(1_000);
        let requests = tokio_stream::wrappers::ReceiverStream::new(receiver).map(|watch_id| WatchRequest {
            request_union: Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })),
        });
        sender.send(0).await.unwrap();
        let mut answers =
            WatchClient::new(self.network.channel(CLIENT, MEMBER)).watch(requests).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().watch_id, 0);
        (sender, answers)
    }

    fn counts(&self) -> NetworkCounts {
        self.network.counts()
    }
}

fn simulated<F: Future>(seed: u64, act: impl FnOnce(World) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { act(World::new(seed)).await })
}

fn unavailable_after(began: Instant, result: Result<impl std::fmt::Debug, Status>) -> Duration {
    assert_eq!(result.unwrap_err().code(), Code::Unavailable);
    began.elapsed()
}

/// Simulated time, which passes at once when all others wait: how long links take is what is tested.
async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

#[test]
fn a_call_takes_the_time_of_its_links() {
    simulated(1, async |world| {
        let ms = Duration::from_millis;
        world.network.set_link(CLIENT, MEMBER, Link { delay: ms(30)..=ms(40), ..Link::default() });
        world.network.set_link(MEMBER, CLIENT, Link { delay: ms(5)..=ms(6), ..Link::default() });
        let began = Instant::now();
        assert_eq!(world.call("/echo", "hello").await.unwrap().unwrap(), "hello");
        assert!((ms(35)..=ms(48)).contains(&began.elapsed()), "{:?}", began.elapsed());
        let counts = world.counts();
        assert_eq!((counts.calls, counts.sent, counts.delivered), (1, 2, 2));
    });
}

#[test]
fn a_stream_keeps_its_order_while_calls_overtake_each_other() {
    simulated(1, async |world| {
        world.network.set_default_link(Link::clogged());
        let (sender, mut answers) = world.stream().await;
        let calls: Vec<_> = (0..20).map(|_| world.call("/echo", "x")).collect();
        for id in 1..200 {
            sender.send(id).await.unwrap();
            pass(0.01).await;
        }
        for id in 1..200 {
            assert_eq!(answers.message().await.unwrap().unwrap().watch_id, id);
        }
        for call in calls {
            call.await.unwrap().unwrap();
        }
        drop(sender);
        assert!(answers.message().await.unwrap().is_none());
        assert!(world.counts().reordered > 10, "{:?}", world.counts());
    });
}

#[test]
fn what_is_sent_over_a_blocked_link_arrives_when_it_is_open() {
    simulated(1, async |world| {
        let (sender, mut answers) = world.stream().await;
        world.network.block(CLIENT, MEMBER);
        let call = world.call("/echo", "hello");
        for id in 1..10 {
            sender.send(id).await.unwrap();
            pass(0.1).await;
        }
        assert_eq!(world.seen.received.lock().len(), 1);
        world.network.unblock(CLIENT, MEMBER);
        for id in 10..20 {
            sender.send(id).await.unwrap();
        }
        for id in 1..20 {
            assert_eq!(answers.message().await.unwrap().unwrap().watch_id, id);
        }
        assert_eq!(call.await.unwrap().unwrap(), "hello");
        assert!(world.counts().stalled >= 10 && world.counts().broken == 0);
    });
}

#[test]
fn a_link_that_stays_blocked_breaks_what_is_open_at_both_ends() {
    for (from, to) in [(CLIENT, MEMBER), (MEMBER, CLIENT)] {
        simulated(1, async |world| {
            let (sender, mut answers) = world.stream().await;
            pass(10.0).await;
            let began = Instant::now();
            world.network.block(from, to);
            let call = world.call("/echo", "hello");
            let took = unavailable_after(began, answers.message().await);
            assert!(took.abs_diff(KEEP_ALIVE) <= Duration::from_millis(1), "{took:?}");
            assert_eq!(unavailable_after(began, call.await.unwrap()).as_secs(), 5);
            pass(0.0).await;
            assert_eq!(*world.seen.error.lock(), None, "the service is dropped before it looks");
            assert_eq!(world.seen.dropped(), 1);
            // The request arrived if the way back was blocked.
            assert_eq!(world.seen.begun(), 1 + u64::from(from == MEMBER));

            // Later calls, too, and those after the link is open go through.
            let began = Instant::now();
            assert_eq!(unavailable_after(began, world.call("/echo", "hello").await.unwrap()).as_secs(), 5);
            world.network.heal();
            assert_eq!(world.call("/echo", "again").await.unwrap().unwrap(), "again");
            assert!(sender.send(1).await.is_err(), "nobody takes requests of a broken call");
        });
    }
}

#[test]
fn a_lost_message_is_never_answered() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..50 {
        simulated(seed, async |world| {
            world.network.set_default_link(Link::unreliable(0.3, 0.0));
            let began = Instant::now();
            let result = world.call("/echo", "hello").await.unwrap();
            let is_lost = result.is_err();
            if is_lost {
                assert_eq!(unavailable_after(began, result).as_secs(), 5);
            }
            assert_eq!(world.counts().lost, u64::from(is_lost));
            outcomes.insert((is_lost, world.seen.begun()));
        });
    }
    assert_eq!(outcomes, [(false, 1), (true, 0), (true, 1)].into());
}

#[test]
fn a_stream_over_a_lossy_link_is_late_or_breaks_and_has_no_gap() {
    let (mut broken, mut complete) = (0, 0);
    for seed in 0..40 {
        simulated(seed, async |world| {
            let (sender, mut answers) = world.stream().await;
            world.network.set_default_link(Link::unreliable(0.2, 0.0));
            let mut next = 1;
            for id in 1..20 {
                // A broken call takes no requests.
                let _ = sender.send(id).await;
                pass(0.01).await;
            }
            drop(sender);
            let end = loop {
                match answers.message().await {
                    Ok(Some(answer)) => assert_eq!(answer.watch_id, next),
                    Ok(None) => break Ok(()),
                    Err(status) => break Err(status.code()),
                }
                next += 1;
            };
            match end {
                Ok(()) => complete += u64::from(next == 20 && world.counts().retransmitted > 0),
                Err(code) => broken += u64::from(code == Code::Unavailable),
            }
        });
    }
    assert!(broken > 5 && complete > 5 && broken + complete == 40, "{broken} {complete}");
}

#[test]
fn only_requests_that_may_be_asked_twice_come_twice() {
    for (name, times) in [("Vote", 2), ("Propose", 1)] {
        simulated(1, async |world| {
            world.network.set_default_link(Link::unreliable(0.0, 1.0));
            let path = format!("/peer.Peer/{name}");
            let channel = world.network.channel(2, MEMBER);
            let body = tonic::body::Body::new(http_body_util::Full::new(Bytes::from_static(b"me")));
            let answer = channel.oneshot(http::Request::post(path).body(body).unwrap()).await.unwrap();
            // Held until the second has been answered: the first answer is the answer.
            pass(2.0).await;
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "me");
            assert_eq!((world.seen.begun(), world.counts().duplicated), (times, times - 1));
        });
    }
}

#[test]
fn a_call_that_is_dropped_ends_at_the_target() {
    simulated(1, async |world| {
        let call = world.call("/slow", "xxxx");
        let (_sender, answers) = world.stream().await;
        pass(1.0).await;
        assert_eq!((world.seen.begun(), world.seen.dropped()), (2, 0));
        call.abort();
        drop(answers);
        pass(0.1).await;
        assert_eq!(world.seen.dropped(), 2);
        assert_eq!(world.counts().cancelled, 2);
    });
}

#[test]
fn a_call_that_is_answered_cancels_nothing() {
    simulated(1, async |world| {
        assert_eq!(world.call("/slow", "x").await.unwrap().unwrap(), "done");
        pass(1.0).await;
        assert_eq!((world.seen.dropped(), world.counts().cancelled, world.counts().broken), (0, 0, 0));
    });
}

#[test]
fn a_killed_process_is_noticed_and_refuses() {
    simulated(1, async |world| {
        let call = world.call("/slow", "xxxx");
        let (_sender, mut answers) = world.stream().await;
        let began = Instant::now();
        world.stop(Stop::Kill);
        assert!(unavailable_after(began, call.await.unwrap()) < Duration::from_millis(10));
        assert!(unavailable_after(began, answers.message().await) < Duration::from_millis(10));
        let began = Instant::now();
        assert!(unavailable_after(began, world.call("/echo", "x").await.unwrap()) < Duration::from_millis(10));
        assert_eq!((world.counts().refused, world.seen.dropped()), (1, 2));
        world.start();
        assert_eq!(world.call("/echo", "back").await.unwrap().unwrap(), "back");
    });
}

#[test]
fn a_node_without_power_is_silent() {
    simulated(1, async |world| {
        let call = world.call("/slow", "xxxxxxxxx");
        pass(1.0).await;
        let began = Instant::now();
        world.stop(Stop::PowerCut);
        let later = world.call("/echo", "x");
        assert_eq!(unavailable_after(began, call.await.unwrap()).as_secs(), 5);
        assert_eq!(unavailable_after(began, later.await.unwrap()).as_secs(), 5);

        world.start();
        let call = world.call("/slow", "xxxxxxxxx");
        pass(1.0).await;
        world.stop(Stop::PowerCut);
        pass(1.0).await;
        world.start();
        let began = Instant::now();
        let took = unavailable_after(began, call.await.unwrap());
        assert!(took < Duration::from_millis(10), "it is back and knows nothing of the call: {took:?}");
    });
}

#[test]
fn a_caller_that_is_killed_is_noticed() {
    simulated(1, async |world| {
        let caller = Arc::new(SimHost::default());
        let channel = world.network.channel(2, MEMBER);
        let request = http::Request::post("/slow").body(tonic::body::Body::new("xxxxxxxxx".to_owned())).unwrap();
        let host: Arc<dyn Host> = caller.clone();
        drop(host::spawn_on(&host, async move { channel.oneshot(request).await.map(drop) }));
        pass(1.0).await;
        world.network.stop_serving(2, Stop::Kill);
        caller.end();
        pass(0.1).await;
        assert_eq!((world.seen.begun(), world.seen.dropped()), (1, 1));
        assert_eq!((world.counts().cancelled, world.counts().broken), (0, 1));
    });
}

#[test]
fn a_reset_breaks_what_is_open_and_nothing_else() {
    simulated(1, async |world| {
        let (_sender, mut answers) = world.stream().await;
        let other = world.call_from(2, "/slow", "x");
        pass(0.1).await;
        let began = Instant::now();
        world.network.reset(MEMBER, CLIENT);
        assert!(unavailable_after(began, answers.message().await).is_zero());
        assert_eq!(other.await.unwrap().unwrap(), "done");
        assert_eq!(world.call("/echo", "x").await.unwrap().unwrap(), "x");
    });
}

#[test]
fn a_service_that_panics_breaks_the_call() {
    simulated(1, async |world| {
        let began = Instant::now();
        assert!(unavailable_after(began, world.call("/panics", "").await.unwrap()) < Duration::from_millis(10));
    });
}

#[test]
fn a_paused_target_answers_later_or_is_given_up() {
    simulated(1, async |world| {
        let pause = || {
            world.network.pause(MEMBER);
            world.host.pause();
        };
        let resume = || {
            world.network.resume(MEMBER);
            world.host.resume();
        };
        pause();
        let call = world.call("/echo", "hello");
        pass(4.0).await;
        assert_eq!(world.seen.begun(), 0);
        resume();
        assert_eq!(call.await.unwrap().unwrap(), "hello");

        let (_sender, mut answers) = world.stream().await;
        pause();
        let began = Instant::now();
        assert_eq!(unavailable_after(began, answers.message().await).as_secs(), 5);
        pass(1.0).await;
        assert_eq!(world.seen.dropped(), 0, "nothing happens on a host that is paused");
        resume();
        pass(0.1).await;
        assert_eq!(world.seen.dropped(), 1);
        assert_eq!(world.call("/echo", "again").await.unwrap().unwrap(), "again");
    });
}

#[test]
fn who_sends_waits_for_who_does_not_read() {
    simulated(1, async |world| {
        let sent = Arc::new(AtomicU64::new(0));
        let counting = sent.clone();
        let endless = futures::stream::repeat_with(move || {
            counting.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Status>(Bytes::from_static(&[0; 1 << 10]))
        });
        let router = Router::new().route("/endless", post(|| async { Body::from_stream(endless) }));
        world.network.serve(2, world.host.clone(), router);
        let request = http::Request::post("/endless").body(tonic::body::Body::empty()).unwrap();
        let mut body = world.network.channel(CLIENT, 2).oneshot(request).await.unwrap().into_body();
        pass(10.0).await;
        let before = sent.load(Ordering::Relaxed);
        assert!((4 << 10..=(4 << 10) + 64).contains(&before), "{before} KiB");
        for _ in 0..100 {
            body.frame().await.unwrap().unwrap();
        }
        pass(1.0).await;
        let after = sent.load(Ordering::Relaxed);
        assert!((before + 64..=before + 200).contains(&after), "{before} {after}");
    });
}

#[test]
fn a_link_has_its_bandwidth() {
    simulated(1, async |world| {
        world.network.set_link(CLIENT, MEMBER, Link { bytes_per_second: Some(1 << 10), ..Link::default() });
        let began = Instant::now();
        let body = "0123456789abcdef".repeat(128).leak();
        let calls = [world.call("/echo", body), world.call("/echo", body)];
        for (call, seconds) in calls.into_iter().zip([2, 4]) {
            call.await.unwrap().unwrap();
            assert_eq!(began.elapsed().as_secs(), seconds);
        }
    });
}

/// All that happens on a network with faults of all kinds.
fn history(seed: u64) -> (Vec<String>, NetworkCounts) {
    simulated(seed, async |world| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let traced = log.clone();
        world.network.trace(move |trace| traced.lock().push(format!("{trace:?}")));
        world.network.set_default_link(Link::unreliable(0.05, 0.2));
        let (sender, answers) = world.stream().await;
        let mut calls = Vec::new();
        for round in 0..200 {
            calls.push(world.call(["/echo", "/peer.Peer/Vote", "/slow"][round % 3], "xx"));
            // A broken call takes no requests.
            let _ = sender.send(round as i64 + 1).await;
            match round % 40 {
                5 => world.network.block(CLIENT, MEMBER),
                15 => world.network.unblock(CLIENT, MEMBER),
                20 => calls[round - 3].abort(),
                25 => world.stop(Stop::Kill),
                30 => world.start(),
                35 => world.network.reset(CLIENT, MEMBER),
                _ => {}
            }
            pass(0.2).await;
        }
        drop(answers);
        for call in calls {
            // Most are answered, some are not: the trace says which.
            drop(call.await);
        }
        let log = std::mem::take(&mut *log.lock());
        (log, world.counts())
    })
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let (log, counts) = history(7);
    assert_eq!((log.clone(), counts), history(7));
    assert_ne!(log, history(8).0);
    let NetworkCounts { lost, duplicated, reordered, stalled, broken, cancelled, refused, .. } = counts;
    let all = [lost, duplicated, reordered, stalled, broken, cancelled, refused];
    assert!(all.iter().all(|count| *count > 0), "{counts:?}");
}
