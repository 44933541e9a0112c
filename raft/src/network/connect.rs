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
use tonic::transport::{Channel, Endpoint};

/// A connection to a member.
pub trait PeerStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> PeerStream for T {}

pub trait Connect: Send + Sync + 'static {
    /// Opens a connection to a peer URL.
    fn connect(&self, url: String) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>>;
}

/// A channel over connections to any of a member's URLs: the first, and after a failure the next, as etcd picks them.
/// The channel connects when it is used.
pub fn channel(endpoint: &Endpoint, urls: &[String], connect: &Arc<dyn Connect>) -> Channel {
    let (urls, connect, failures) = (Arc::<[String]>::from(urls), connect.clone(), Arc::new(AtomicUsize::new(0)));
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
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
    }))
}
