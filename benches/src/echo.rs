//! A server that does nothing: gRPC alone, with requests and answers as large as those of the workloads. What it reaches
//! is the most that any server on this stack can.
//!
//! It is run as Pintle runs: the same allocator, as many worker threads, the same windows.

use std::{
    future::ready,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use futures::{
    Stream, StreamExt as _,
    stream::{self, Empty},
};
use prost::Message as _;
use proto::{
    etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest,
        LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseLeasesResponse,
        LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest,
        PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader, ResponseOp, TxnRequest,
        TxnResponse, WatchRequest,
        kv_server::{Kv, KvServer},
        lease_server::{Lease, LeaseServer},
        response_op::Response::ResponsePut,
        watch_request::RequestUnion,
    },
    mvccpb::{Event, KeyValue},
    raw::{
        WatchResponse,
        watch_server::{Watch, WatchServer},
    },
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::workload;

/// As Pintle's client listeners have them.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// What is printed when it serves, before the address.
pub const READY: &str = "echo: serving on ";

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 29_300)]
    port: u16,
    /// Size of the value that a Range answers, bytes.
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// Keys that a Range over several answers.
    #[arg(long, default_value_t = 10_000)]
    keys: usize,
}

/// Serves until it is stopped.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    println!("{READY}http://{address}");
    serve(listener, Echo::new(options.value_size, options.keys), |server| server).await
}

pub async fn serve(listener: TcpListener, echo: Echo, tuned: impl FnOnce(Server) -> Server) -> anyhow::Result<()> {
    let server = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    // A listener of our own makes the sockets, so it is here that they are told not to wait.
    let incoming = TcpListenerStream::new(listener)
        .map(|socket| socket.and_then(|socket| socket.set_nodelay(true).map(|()| socket)));
    tuned(server)
        .add_service(KvServer::new(echo.clone()))
        .add_service(LeaseServer::new(echo.clone()))
        .add_service(WatchServer::new(echo))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}

#[derive(Clone)]
pub struct Echo {
    value: Bytes,
    keys: usize,
    /// The streams of watchers. A put is answered when each has room for its event.
    watched: Arc<Mutex<Vec<mpsc::Sender<Bytes>>>>,
}

impl Echo {
    pub fn new(value_size: usize, keys: usize) -> Echo {
        Echo { value: workload::value(value_size), keys, watched: Arc::default() }
    }

    fn pair(&self, key: Bytes) -> KeyValue {
        let value = self.value.clone();
        KeyValue { key, value, create_revision: 1_000_000, mod_revision: 1_000_001, version: 2, ..Default::default() }
    }
}

/// Digits of a place among the keys, which the last key of a page ends with.
const PLACE: usize = 10;
/// Events that wait for a stream of watchers.
const EVENTS_AHEAD: usize = 16;

/// Which place a page begins at: behind the key that the one before ended with.
fn place(key: &[u8]) -> usize {
    let digits = key.strip_suffix(b"\0").and_then(|key| key.last_chunk::<PLACE>());
    digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
}

/// As long as those of a server that has run for a while.
fn header() -> Option<ResponseHeader> {
    let (cluster_id, member_id) = (u64::MAX / 3, u64::MAX / 5);
    Some(ResponseHeader { cluster_id, member_id, revision: 1_000_001, raft_term: 2 })
}

#[tonic::async_trait]
impl Kv for Echo {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        if request.range_end.is_empty() {
            let kvs = vec![self.pair(request.key)];
            return Ok(Response::new(RangeResponse { header: header(), kvs, count: 1, more: false }));
        }
        let from = place(&request.key);
        let left = self.keys.saturating_sub(from);
        let page = usize::try_from(request.limit).ok().filter(|limit| (1..left).contains(limit)).unwrap_or(left);
        let mut kvs: Vec<KeyValue> = (0..page).map(|_| self.pair(request.key.clone())).collect();
        if let Some(last) = kvs.last_mut().filter(|_| page < left) {
            last.key = [&request.key[..], format!("{:0PLACE$}", from + page).as_bytes()].concat().into();
        }
        Ok(Response::new(RangeResponse { header: header(), kvs, count: left as i64, more: page < left }))
    }

    type RangeStreamStream = Empty<Result<RangeStreamResponse, Status>>;

    async fn range_stream(&self, _request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("the echo server does not stream ranges"))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let PutRequest { key, value, .. } = request.into_inner();
        if key.is_empty() {
            return Err(Status::invalid_argument("etcdserver: key is not provided"));
        }
        let mut watched = self.watched.lock().await;
        if !watched.is_empty() {
            let event = Event { kv: Some(KeyValue { value, ..self.pair(key) }), ..Default::default() };
            let event = Bytes::from(event.encode_to_vec());
            let mut open = Vec::with_capacity(watched.len());
            for stream in watched.drain(..) {
                if stream.send(event.clone()).await.is_ok() {
                    open.push(stream);
                }
            }
            *watched = open;
        }
        Ok(Response::new(PutResponse { header: header(), prev_kv: None }))
    }

    async fn delete_range(
        &self,
        _request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Ok(Response::new(DeleteRangeResponse { header: header(), deleted: 1, ..Default::default() }))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        // All that is asked for here is puts.
        let put = || ResponsePut(PutResponse { header: header(), prev_kv: None });
        let responses = request.get_ref().success.iter().map(|_| ResponseOp { response: Some(put()) }).collect();
        Ok(Response::new(TxnResponse { header: header(), succeeded: true, responses }))
    }

    async fn compact(&self, _request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Ok(Response::new(CompactionResponse { header: header() }))
    }
}

#[tonic::async_trait]
impl Watch for Echo {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    /// Every watch is told of every put.
    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        self.watched.lock().await.push(sender);
        let watches = Arc::new(AtomicI64::new(0));
        let counted = watches.clone();
        let response = |watch_id| WatchResponse { header: header(), watch_id, ..Default::default() };
        let answers = request.into_inner().filter_map(move |request| {
            let is_create =
                matches!(&request, Ok(WatchRequest { request_union: Some(RequestUnion::CreateRequest(_)) }));
            let created = is_create.then(|| counted.fetch_add(1, Ordering::Relaxed));
            ready(created.map(|id| Ok(WatchResponse { created: true, ..response(id) })))
        });
        let told = ReceiverStream::new(events).flat_map(move |event| {
            let watches = 0..watches.load(Ordering::Relaxed);
            stream::iter(watches.map(move |id| Ok(WatchResponse { events: vec![event.clone()], ..response(id) })))
        });
        Ok(Response::new(Box::pin(stream::select(answers, told))))
    }
}

#[tonic::async_trait]
impl Lease for Echo {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let ttl = request.get_ref().ttl;
        Ok(Response::new(LeaseGrantResponse { header: header(), id: 1, ttl, ..Default::default() }))
    }

    async fn lease_revoke(
        &self,
        _request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        Ok(Response::new(LeaseRevokeResponse { header: header() }))
    }

    type LeaseKeepAliveStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send + 'static>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let answers = request.into_inner().map(|request| {
            request.map(|request| LeaseKeepAliveResponse { header: header(), id: request.id, ttl: 600 })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let id = request.get_ref().id;
        Ok(Response::new(LeaseTimeToLiveResponse { header: header(), id, ttl: 600, ..Default::default() }))
    }

    async fn lease_leases(
        &self,
        _request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        Ok(Response::new(LeaseLeasesResponse { header: header(), leases: Vec::new() }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::{
        Shape,
        drive::{self, Answer, Call, Client},
        measure::{Measured, Recorder, Settings},
        workload::Spec,
    };

    /// A server that gives little room: what does not fit has to wait.
    async fn narrow(value_size: usize, keys: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let tuned = |server: Server| {
            server
                .initial_stream_window_size(Some(20_000))
                .initial_connection_window_size(Some(65_535))
                .max_concurrent_streams(Some(3))
        };
        tokio::spawn(serve(listener, Echo::new(value_size, keys), tuned));
        url
    }

    fn settings(url: &str, rate: Option<f64>) -> Settings {
        Settings {
            endpoints: vec![url.to_string()],
            connections: 1,
            warmup: Duration::from_millis(50),
            duration: Duration::from_millis(400),
            rate,
            pids: Vec::new(),
            shape: Shape { value_size: 100, keys: 10, objects: 10, txn_ops: 2, sequential: false },
        }
    }

    async fn run(settings: &Settings, client: impl Fn() -> Box<dyn Client>, count: usize) -> Measured {
        drive::run(settings, (0..count).map(|_| client()).collect()).await.unwrap()
    }

    struct LargePut;

    impl Client for LargePut {
        fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
            let put = PutRequest { key: "k".into(), value: workload::value(100_000), ..Default::default() };
            prost::Message::encode(&put, message).unwrap();
            Call::unary("/etcdserverpb.KV/Put")
        }

        fn answer(&mut self, _message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
            Ok(Answer::Done { put_bytes: 100_001 })
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn requests_larger_than_the_windows_and_more_than_the_streams_are_answered() {
        let url = narrow(1, 1).await;
        let measured = run(&settings(&url, None), || Box::new(LargePut), 10).await;
        assert!(measured.operations > 10, "{measured}");
        assert_eq!((measured.error_count(), measured.put_bytes), (0, measured.operations * 100_001));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn answers_of_many_frames_are_put_together() {
        let url = narrow(1000, 500).await;
        let mut settings = settings(&url, None);
        settings.shape.keys = 500;
        let measured = workload::run(&"list:5".parse::<Spec>().unwrap(), &settings).await;
        // The client library fills the key space first, and asks this server for its status, which it does not have.
        assert!(measured.is_err());
        let measured = run(&settings, || Box::new(workload::kv::List::new("/", 500)), 5).await;
        assert!(measured.operations > 5 && measured.error_count() == 0, "{measured}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn watchers_are_told_of_every_put_and_pages_follow_each_other() {
        let url = narrow(100, 1000).await;
        let mut settings = settings(&url, None);
        settings.shape.objects = 1000;
        for workload in ["watch:6", "kube-page:2"] {
            let spec = workload.parse::<Spec>().unwrap();
            let measured = workload::run_unfilled(&spec, &settings).await.unwrap();
            assert!(measured.operations > 20 && measured.error_count() == 0, "{workload}: {measured}");
        }
    }

    struct Nothing;

    impl Client for Nothing {
        fn request(&mut self, _due: Instant, _message: &mut Vec<u8>) -> Call {
            Call::unary("/etcdserverpb.KV/Put")
        }

        fn answer(&mut self, _message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
            unreachable!("a put of no key is refused")
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn errors_are_counted_with_their_text_and_are_no_operations() {
        let url = narrow(1, 1).await;
        let measured = run(&settings(&url, None), || Box::new(Nothing), 2).await;
        assert_eq!((measured.operations, measured.latency.len()), (0, 0));
        let texts: Vec<&String> = measured.errors.keys().collect();
        assert_eq!(texts, ["InvalidArgument: etcdserver: key is not provided"]);
        assert!(measured.error_count() > 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_open_loop_issues_what_is_due() {
        let url = narrow(1, 1).await;
        let get = || Box::new(workload::lease::KeepAlive::default()) as Box<dyn Client>;
        let measured = run(&settings(&url, Some(500.0)), get, 2).await;
        assert_eq!((measured.missed, measured.error_count()), (0, 0), "{measured}");
        assert_eq!(measured.latency.len(), 200);
    }

    /// Its 150th answer stops everything for a while.
    struct Stalling {
        answers: u64,
        client: workload::lease::KeepAlive,
    }

    impl Client for Stalling {
        fn request(&mut self, due: Instant, message: &mut Vec<u8>) -> Call {
            self.client.request(due, message)
        }

        fn answer(&mut self, message: &[u8], now: Instant, recorder: &mut Recorder) -> Result<Answer, Status> {
            self.answers += 1;
            if self.answers == 150 {
                // A delay: the stall itself is what the test is about.
                std::thread::sleep(Duration::from_millis(200));
            }
            self.client.answer(message, now, recorder)
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stall_counts_for_every_operation_that_was_due_meanwhile() {
        let url = narrow(1, 1).await;
        let client = || Box::new(Stalling { answers: 0, client: Default::default() }) as Box<dyn Client>;
        let measured = run(&settings(&url, Some(1000.0)), client, 1).await;
        assert_eq!((measured.missed, measured.latency.len()), (0, 400), "{measured}");
        let late = measured.latency.count_between(100_000, 60_000_000);
        assert!((80..=220).contains(&late), "about a hundred were due 100 ms before the stall ended: {late}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_no_grpc_server_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut held = Vec::new();
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                socket.shutdown().await.unwrap();
                held.push(socket);
            }
        });
        let error = drive::run(&settings(&url, None), vec![Box::new(LargePut)]).await.err().unwrap();
        assert!(format!("{error:#}").contains("it does not speak HTTP/2"), "{error:#}");
        let error = drive::run(&settings("https://h:1", None), vec![Box::new(LargePut)]).await.err().unwrap();
        assert!(format!("{error:#}").contains("http://host:port"), "{error:#}");
    }
}
