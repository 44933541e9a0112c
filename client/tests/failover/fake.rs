//! A server that does what it is told: watch streams follow scripts, requests are counted and answered, refused or left
//! without an answer.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
};

use client::{
    EtcdError,
    mvccpb::{Event, KeyValue},
    pb::{
        self, ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse,
        auth_server::{Auth, AuthServer},
        kv_server::{Kv, KvServer},
        lease_server::{Lease, LeaseServer},
        watch_request::RequestUnion,
        watch_server::{Watch, WatchServer},
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// One step of a watch stream.
pub enum Act {
    Send(WatchResponse),
    /// What is for all watchers of the stream.
    SendToAll(WatchResponse),
    /// One response for each revision from the one asked for up to this one.
    SendUpTo(i64),
    /// Ends the stream so.
    Fail(Status),
    /// Waits for the test.
    Await(oneshot::Receiver<()>),
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
    txns: AtomicI64,
    gets: AtomicUsize,
    renewals: Arc<AtomicUsize>,
    lease_lists: AtomicUsize,
    lease_lists_asked: tokio::sync::watch::Sender<usize>,
    lease_streams: AtomicUsize,
    lease_requests: tokio::sync::watch::Sender<usize>,
    watch_streams: AtomicUsize,
    canceled: tokio::sync::watch::Sender<Vec<i64>>,
    /// How many tokens were given out. Where auth is on, the last one alone is good.
    tokens: AtomicUsize,
    is_auth_on: AtomicBool,
}

impl Fake {
    /// A server whose watch streams follow these scripts, one after the other.
    pub async fn start(scripts: impl IntoIterator<Item = Vec<Act>>) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State { scripts: Mutex::new(scripts.into_iter().collect()), ..State::default() });
        let serve = Server::builder()
            .add_service(WatchServer::new(Watches(state.clone())))
            .add_service(AuthServer::from_arc(state.clone()))
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

    /// Only the last token given out is good from now on.
    pub fn turn_auth_on(&self) {
        self.state.is_auth_on.store(true, Ordering::SeqCst);
    }

    /// Tokens given out until now are not good any more.
    pub fn forget_tokens(&self) {
        self.state.tokens.fetch_add(1000, Ordering::SeqCst);
    }

    pub fn tokens(&self) -> usize {
        self.state.tokens.load(Ordering::SeqCst)
    }

    pub fn watch_streams(&self) -> usize {
        self.state.watch_streams.load(Ordering::SeqCst)
    }

    /// Returns once so many watches have been canceled.
    pub async fn canceled(&self, count: usize) {
        let mut canceled = self.state.canceled.subscribe();
        canceled.wait_for(|canceled| canceled.len() >= count).await.expect("the server is there");
    }

    pub fn lease_streams(&self) -> usize {
        self.state.lease_streams.load(Ordering::SeqCst)
    }

    pub fn lease_requests(&self) -> usize {
        *self.state.lease_requests.borrow()
    }

    /// Returns once a renewal was asked for so many times.
    pub async fn renewals_asked(&self, count: usize) {
        let mut requests = self.state.lease_requests.subscribe();
        requests.wait_for(|requests| *requests >= count).await.expect("the server is there");
    }

    /// The leases, which are none, are listed so many times; then there is no answer.
    pub fn list_leases(&self, count: usize) {
        self.state.lease_lists.store(count, Ordering::SeqCst);
    }

    /// Returns once the leases were asked for so many times.
    pub async fn lease_lists_asked(&self, count: usize) {
        let mut asked = self.state.lease_lists_asked.subscribe();
        asked.wait_for(|asked| *asked >= count).await.expect("the server is there");
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
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if !self.is_auth_on.load(Ordering::SeqCst) {
            return Ok(());
        }
        let good = format!("token.{}", self.tokens.load(Ordering::SeqCst));
        match request.metadata().get("token") {
            Some(token) if token == good.as_str() => Ok(()),
            Some(_) => Err(EtcdError::InvalidAuthToken.into()),
            None => Err(EtcdError::UserEmpty.into()),
        }
    }

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

/// Its streams outlive the call that opens them.
struct Watches(Arc<State>);

#[tonic::async_trait]
impl Watch for Watches {
    type WatchStream = Answers<WatchResponse>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        assert_eq!(request.metadata().get("hasleader").unwrap(), "true");
        self.0.watch_streams.fetch_add(1, Ordering::SeqCst);
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(1);
        let state = self.0.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                match request.request_union.unwrap() {
                    RequestUnion::CreateRequest(create) => {
                        state.watches_from.lock().unwrap().push(create.start_revision);
                        let script = state.scripts.lock().unwrap().pop_front().expect("one script per watch");
                        tokio::spawn(play(script, create, sender.clone()));
                    }
                    RequestUnion::CancelRequest(cancel) => state.canceled.send_modify(|ids| ids.push(cancel.watch_id)),
                    RequestUnion::ProgressRequest(_) => {
                        let _ = sender.send(Ok(WatchResponse { watch_id: -1, ..events(100, &[]) })).await;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn play(script: Vec<Act>, create: WatchCreateRequest, sender: mpsc::Sender<Result<WatchResponse, Status>>) {
    let WatchCreateRequest { watch_id, start_revision, .. } = create;
    for act in script {
        // Sending fails when the client has had enough.
        match act {
            Act::Send(response) => {
                let _ = sender.send(Ok(WatchResponse { watch_id, ..response })).await;
            }
            Act::SendToAll(response) => {
                let _ = sender.send(Ok(WatchResponse { watch_id: -1, ..response })).await;
            }
            Act::SendUpTo(last) => {
                for revision in start_revision..=last {
                    let _ = sender.send(Ok(WatchResponse { watch_id, ..events(last, &[revision]) })).await;
                }
            }
            Act::Fail(status) => {
                let _ = sender.send(Err(status)).await;
            }
            Act::Await(signal) => signal.await.expect("the test gives it"),
            Act::Hold => sender.closed().await,
        }
    }
}

#[tonic::async_trait]
impl Kv for State {
    type RangeStreamStream = Answers<pb::RangeStreamResponse>;

    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        self.check(&request)?;
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.answer().await
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        self.check(&request)?;
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

    /// Each is a revision.
    async fn txn(&self, _: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let revision = self.txns.fetch_add(1, Ordering::SeqCst) + 1;
        let header = Some(ResponseHeader { revision, ..Default::default() });
        Ok(Response::new(pb::TxnResponse { header, succeeded: true, ..Default::default() }))
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
        self.lease_streams.fetch_add(1, Ordering::SeqCst);
        let (left, requests) = (self.renewals.clone(), self.lease_requests.clone());
        let answers = request.into_inner().filter_map(move |request| {
            let id = request.ok()?.id;
            requests.send_modify(|requests| *requests += 1);
            let take_one = |left: usize| left.checked_sub(1);
            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_one).ok()?;
            Some(Ok(pb::LeaseKeepAliveResponse { id, ttl: 1, header: None }))
        });
        Ok(Response::new(Box::pin(answers)))
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
        self.lease_lists_asked.send_modify(|asked| *asked += 1);
        let take_one = |left: usize| left.checked_sub(1);
        if self.lease_lists.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_one).is_err() {
            std::future::pending::<()>().await;
        }
        self.answer().await
    }
}

/// RPCs that no test calls.
macro_rules! not_here {
    ($($name:ident($request:ident) -> $response:ident;)*) => {$(
        fn $name<'a, 'async_trait>(
            &'a self,
            _: Request<pb::$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<pb::$response>, Status>> + Send + 'async_trait>>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented("not in this test")) })
        }
    )*};
}

#[tonic::async_trait]
impl Auth for State {
    async fn authenticate(
        &self,
        _: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let token = format!("token.{}", self.tokens.fetch_add(1, Ordering::SeqCst) + 1);
        // A delay: that others ask, too, is what must not happen, so there is nothing to wait for.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        Ok(Response::new(pb::AuthenticateResponse { token, header: None }))
    }

    not_here! {
        auth_enable(AuthEnableRequest) -> AuthEnableResponse;
        auth_disable(AuthDisableRequest) -> AuthDisableResponse;
        auth_status(AuthStatusRequest) -> AuthStatusResponse;
        user_add(AuthUserAddRequest) -> AuthUserAddResponse;
        user_get(AuthUserGetRequest) -> AuthUserGetResponse;
        user_list(AuthUserListRequest) -> AuthUserListResponse;
        user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
        user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse;
        user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
        user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
        role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
        role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
        role_list(AuthRoleListRequest) -> AuthRoleListResponse;
        role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
        role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
        role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
    }
}
