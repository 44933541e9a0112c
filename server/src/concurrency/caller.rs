//! This member's own KV, Watch and Lease services, called within the process in the name of a client.
//!
//! The calls pass by all that a client's own call passes by, with the client's metadata (its token, whether it wants a
//! leader) and what is known of its connection; so a client gets no further through a lock than by itself.

use std::sync::Arc;

use proto::{
    etcdserverpb::{
        DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, RangeRequest, RangeResponse, TxnRequest,
        TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse, kv_client::KvClient, kv_server::KvServer,
        lease_client::LeaseClient, lease_server::LeaseServer, watch_client::WatchClient, watch_request::RequestUnion,
    },
    raw::watch_server::WatchServer,
};
use tonic::{
    Code, Extensions, Request, Status, Streaming,
    metadata::{KeyRef, MetadataMap},
    service::Routes,
};

use crate::{
    context::Context,
    kv::KvService,
    lease::{self, LeaseService},
    watch::{self, WatchService},
};

/// The TTL of a lease that the client leaves to the service. (etcd: `concurrency/session.go`.)
const SESSION_TTL_SECONDS: i64 = 60;

/// The services, for whichever client.
#[derive(Clone)]
pub struct Local {
    services: Routes,
}

impl Local {
    pub fn new(ctx: Arc<Context>, hub: Arc<watch::Hub>, clock: Arc<lease::Clock>) -> Local {
        let mut services = Routes::builder();
        // The client's message was bounded when it came in.
        let kv = KvServer::new(KvService::new(ctx.clone())).max_decoding_message_size(usize::MAX);
        services.add_service(kv);
        services.add_service(WatchServer::new(WatchService::new(ctx.clone(), hub)));
        services.add_service(LeaseServer::new(LeaseService::new(ctx, clock)));
        Local { services: services.routes().prepare() }
    }

    /// The services for the client that sent `request`.
    pub(super) fn for_caller<T>(&self, request: Request<T>) -> (Caller, T) {
        let (metadata, extensions, message) = request.into_parts();
        (Caller { services: self.services.clone(), metadata: passed_on(&metadata), extensions }, message)
    }
}

/// What a client sent, but for what describes the one message that it was sent with.
fn passed_on(metadata: &MetadataMap) -> MetadataMap {
    let mut headers = metadata.clone().into_headers();
    for key in metadata.keys() {
        let name = match key {
            KeyRef::Ascii(key) => key.as_str(),
            KeyRef::Binary(key) => key.as_str(),
        };
        if name.starts_with("grpc-") || name.starts_with("content-") || name == "te" {
            headers.remove(name);
        }
    }
    MetadataMap::from_headers(headers)
}

/// The services in the name of one client.
#[derive(Clone)]
pub(super) struct Caller {
    services: Routes,
    metadata: MetadataMap,
    extensions: Extensions,
}

impl Caller {
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        self.answer(self.kv().range(self.request(request)).await)
    }

    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.answer(self.kv().txn(self.request(request)).await)
    }

    pub async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Status> {
        self.answer(self.kv().delete_range(self.request(request)).await)
    }

    pub async fn watch(&self, create: WatchCreateRequest) -> Result<Streaming<WatchResponse>, Status> {
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        // A watch outlives its stream of requests.
        let request = self.request(futures::stream::iter([create]));
        let mut client = WatchClient::new(self.services.clone()).max_decoding_message_size(usize::MAX);
        self.answer(client.watch(request).await)
    }

    /// The lease that was asked for, or a new one where the client leaves that to the service.
    pub async fn session(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let grant = LeaseGrantRequest { ttl: SESSION_TTL_SECONDS, id: 0 };
        let mut client = LeaseClient::new(self.services.clone());
        Ok(self.answer(client.lease_grant(self.request(grant)).await)?.id)
    }

    fn kv(&self) -> KvClient<Routes> {
        KvClient::new(self.services.clone()).max_decoding_message_size(usize::MAX)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        Request::from_parts(self.metadata.clone(), self.extensions.clone(), message)
    }

    fn answer<T>(&self, answer: Result<tonic::Response<T>, Status>) -> Result<T, Status> {
        answer.map(tonic::Response::into_inner).map_err(|status| in_etcds_code(&status))
    }
}

/// etcd's own client is between these services and the others, and the code of an error does not pass through it:
/// whatever went wrong has the code of an error that gRPC does not know.
pub(super) fn in_etcds_code(status: &Status) -> Status {
    Status::new(Code::Unknown, status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_token_is_passed_on_and_its_messages_form_is_not() {
        let mut metadata = MetadataMap::new();
        metadata.insert("token", "t".parse().unwrap());
        metadata.insert("hasleader", "true".parse().unwrap());
        metadata.insert("grpcgateway-accept", "*/*".parse().unwrap());
        metadata.insert("grpc-encoding", "gzip".parse().unwrap());
        metadata.insert("content-length", "7".parse().unwrap());
        metadata.insert("te", "trailers".parse().unwrap());
        let passed = passed_on(&metadata).into_headers();
        let mut names: Vec<&str> = passed.keys().map(|name| name.as_str()).collect();
        names.sort();
        assert_eq!(names, ["grpcgateway-accept", "hasleader", "token"]);
    }
}
