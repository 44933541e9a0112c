//! A server that does what it is told: watch streams follow scripts, requests are counted and answered, refused or left
//! without an answer.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use client::{
    mvccpb::{Event, KeyValue},
    pb::{
        self, ResponseHeader, WatchRequest, WatchResponse,
        kv_server::{Kv, KvServer},
        lease_server::{Lease, LeaseServer},
        watch_request::RequestUnion,
        watch_server::{Watch, WatchServer},
    },
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// One step of a watch stream.
pub enum Act {
    Send(WatchResponse),
    /// Ends the stream so.
    Fail(Status),
    /// Leaves the stream open, with nothing more in it.
    Hold,
}

pub struct Fake {
    url: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    scripts: Mutex<VecDeque<Vec<Act>>>,
    watches_from: Mutex<Vec<i64>>,
    refusal: Mutex<Option<Status>>,
    hangs: AtomicBool,
    puts: AtomicUsize,
    gets: AtomicUsize,
    renewals: AtomicUsize,
}

impl Fake {
    /// A server whose watch streams follow these scripts, one after the other.
    pub async fn start(scripts: impl IntoIterator<Item = Vec<Act>>) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State { scripts: Mutex::new(scripts.into_iter().collect()), ..State::default() });
        let serve = Server::builder()
            .add_service(WatchServer::from_arc(state.clone()))
            .add_service(KvServer::from_arc(state.clone()))
            .add_service(LeaseServer::from_arc(state.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Fake { url, state, task }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The revisions the watches were asked to begin with.
    pub fn watches_from(&self) -> Vec<i64> {
        self.state.watches_from.lock().unwrap().clone()
    }

    pub fn puts(&self) -> usize {
        self.state.puts.load(Ordering::SeqCst)
    }

    pub fn gets(&self) -> usize {
        self.state.gets.load(Ordering::SeqCst)
    }

    /// Every request is refused so from now on.
    pub fn answer_with(&self, status: Status) {
        *self.state.refusal.lock().unwrap() = Some(status);
    }

    /// No request is answered from now on.
    pub fn hang(&self) {
        self.state.hangs.store(true, Ordering::SeqCst);
    }

    /// This many keep-alives are answered, with a TTL of a second; the others are not.
    pub fn renew_leases(&self, count: usize) {
        self.state.renewals.store(count, Ordering::SeqCst);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An endpoint where nobody listens.
pub async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

pub fn created(revision: i64) -> WatchResponse {
    WatchResponse { created: true, ..events(revision, &[]) }
}

pub fn canceled(reason: &str, compact_revision: i64) -> WatchResponse {
    WatchResponse { canceled: true, cancel_reason: reason.to_string(), compact_revision, ..Default::default() }
}

pub fn events(store_revision: i64, mod_revisions: &[i64]) -> WatchResponse {
    let event = |mod_revision: &i64| Event {
        kv: Some(KeyValue { key: "k".into(), mod_revision: *mod_revision, ..Default::default() }),
        ..Default::default()
    };
    WatchResponse {
        header: Some(ResponseHeader { revision: store_revision, ..Default::default() }),
        events: mod_revisions.iter().map(event).collect(),
        ..Default::default()
    }
}

impl State {
    async fn answer<T: Default>(&self) -> Result<Response<T>, Status> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        match &*self.refusal.lock().unwrap() {
            Some(status) => Err(Status::new(status.code(), status.message())),
            None => Ok(Response::new(T::default())),
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Watch for State {
    type WatchStream = Answers<WatchResponse>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        assert_eq!(request.metadata().get("hasleader").unwrap(), "true");
        let first = request.into_inner().message().await?.unwrap();
        let Some(RequestUnion::CreateRequest(create)) = first.request_union else { panic!("a create comes first") };
        self.watches_from.lock().unwrap().push(create.start_revision);
        let script = self.scripts.lock().unwrap().pop_front().expect("one script per watch");
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            for act in script {
                match act {
                    Act::Send(response) => sender.send(Ok(response)).await.unwrap(),
                    Act::Fail(status) => sender.send(Err(status)).await.unwrap(),
                    Act::Hold => sender.closed().await,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

#[tonic::async_trait]
impl Kv for State {
    type RangeStreamStream = Answers<pb::RangeStreamResponse>;

    async fn range(&self, _: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.answer().await
    }

    async fn put(&self, _: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.answer().await
    }

    async fn range_stream(&self, _: Request<pb::RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn delete_range(
        &self,
        _: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn txn(&self, _: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn compact(&self, _: Request<pb::CompactionRequest>) -> Result<Response<pb::CompactionResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

#[tonic::async_trait]
impl Lease for State {
    type LeaseKeepAliveStream = Answers<pb::LeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let id = request.into_inner().message().await?.unwrap().id;
        let left = self.renewals.load(Ordering::SeqCst);
        if left == 0 {
            return Ok(Response::new(Box::pin(tokio_stream::pending())));
        }
        self.renewals.store(left - 1, Ordering::SeqCst);
        let answer = pb::LeaseKeepAliveResponse { id, ttl: 1, header: None };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(answer)))))
    }

    async fn lease_grant(&self, _: Request<pb::LeaseGrantRequest>) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn lease_revoke(
        &self,
        _: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn lease_leases(
        &self,
        _: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}
