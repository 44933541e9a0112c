//! How a member is reached. The owner of the node brings it, so that nothing here knows of certificates.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Status, body::Body, transport::Endpoint};
use tower::{Service, ServiceExt as _, util::BoxCloneSyncService};

/// A connection to a member.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> PeerStream for T {}

pub trait Connect: Send + Sync + 'static {
    /// Opens a connection to a peer URL. It is to fail when what was sent has not arrived for an election timeout: that
    /// nobody is there any more is noticed much later by pings, which wait behind what was sent before.
    fn connect(&self, url: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>>;
}

/// How requests reach the other members.
#[derive(Clone)]
pub enum Reach {
    /// As HTTP/2, over connections that this opens.
    Connections(Arc<dyn Connect>),
    /// Handed over as they are, to the member at these URLs: a simulation's network.
    Requests(Arc<dyn Fn(&[String]) -> PeerChannel + Send + Sync>),
}

/// What carries requests to one member, and the answers back.
pub type PeerChannel = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Status>;

impl Reach {
    /// Over connections: to any of the member's URLs, the first, and after a failure the next, as etcd picks them. The
    /// channel connects when it is used.
    pub fn channel(&self, endpoint: &Endpoint, urls: &[String]) -> PeerChannel {
        match self {
            Reach::Connections(connect) => BoxCloneSyncService::new(over_connections(endpoint, urls, connect)),
            Reach::Requests(channel) => channel(urls),
        }
    }
}

fn over_connections(
    endpoint: &Endpoint,
    urls: &[String],
    connect: &Arc<dyn Connect>,
) -> impl Service<http::Request<Body>, Response = http::Response<Body>, Error = Status, Future: Send>
+ Clone
+ Sync
+ Send
+ use<> {
    let (urls, connect, failures) = (Arc::<[String]>::from(urls), connect.clone(), Arc::new(AtomicUsize::new(0)));
    let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let failures = failures.clone();
        let picked = urls.get(failures.load(Ordering::Relaxed) % urls.len().max(1)).cloned();
        let connect = connect.clone();
        async move {
            let url = picked.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the member has no peer URL"))?;
            let stream = connect.connect(url).await.inspect_err(|_| {
                failures.fetch_add(1, Ordering::Relaxed);
            })?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    }));
    channel.map_err(|error| Status::from_error(error.into()))
}
