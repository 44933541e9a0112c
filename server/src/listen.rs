//! Listeners, on TCP ports and on Unix sockets, and the streams that come in. Source: etcd,
//! `client/pkg/transport/unix_listener.go`, `server/embed/etcd.go` (configureClientListeners).

use std::{
    fs, io,
    mem::MaybeUninit,
    net::SocketAddr,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream},
};
use tokio_rustls::server::TlsStream;

use crate::{config::Listen, urls::Address};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// After so long without a word the kernel asks whether the other end is still there, and again: a connection whose other
/// end has vanished is closed. (etcd: `keepalive_listener.go`)
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The first byte of a TLS connection: a record that holds a handshake message.
const TLS_HANDSHAKE: u8 = 22;

#[derive(Debug, thiserror::Error)]
#[error("--{flag}: cannot listen on {address}: {error}; stop what listens there, or give another address")]
pub struct BindError {
    flag: &'static str,
    address: Address,
    error: io::Error,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "file descriptor limit of the process is too low; please set higher: it is {limit}, and {RESERVED_FILES} at least are for the store and the other members"
)]
pub struct TooFewFiles {
    limit: u64,
}

/// Open files that clients' connections leave at least, as in etcd (`reservedInternalFDNum`).
const RESERVED_FILES: u64 = 150;
/// The store opens many files where it is large, so a quarter is left, up to what it may have open.
const STORE_FILES_MAX: u64 = 4096;

/// How many connections of clients the process's limit of open files allows.
pub fn connections_max() -> Result<usize, TooFewFiles> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is writable. It cannot fail: the resource is one of the system's.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    let limit = limit.rlim_cur;
    let left = connections_within(limit).ok_or(TooFewFiles { limit })?;
    Ok(usize::try_from(left).unwrap_or(usize::MAX))
}

fn connections_within(limit: u64) -> Option<u64> {
    let reserved = RESERVED_FILES.max((limit / 4).min(STORE_FILES_MAX));
    limit.checked_sub(reserved).filter(|left| *left > 0)
}

/// A bound address.
pub struct Listener {
    pub is_plain: bool,
    pub is_tls: bool,
    kind: Kind,
}

enum Kind {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: RemovedAtEnd },
}

/// The file of a Unix socket.
struct RemovedAtEnd(PathBuf);

impl Drop for RemovedAtEnd {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "removing a Unix socket");
        }
    }
}

impl Listener {
    /// Binds without accepting yet.
    pub fn bind(listen: &Listen, reuse_port: bool) -> Result<Listener, BindError> {
        let kind = match &listen.address {
            Address::Tcp(address) => bind_tcp(*address, reuse_port).map(Kind::Tcp),
            Address::Unix(path) => {
                bind_unix(path).map(|listener| Kind::Unix { listener, _file: RemovedAtEnd(path.clone()) })
            }
        };
        let refused = |error| BindError { flag: listen.flag, address: listen.address.clone(), error };
        Ok(Listener { is_plain: listen.is_plain, is_tls: listen.is_tls, kind: kind.map_err(refused)? })
    }

    /// The next connection, and the address of its other end, which a Unix socket has not.
    pub async fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Small answers go out at once.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY");
                }
                Ok((Socket::Tcp(stream), Some(address)))
            }
            Kind::Unix { listener, .. } => Ok((Socket::Unix(listener.accept().await?.0), None)),
        }
    }
}

fn bind_tcp(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if reuse_port {
        socket.set_reuseport(true)?;
    }
    // Connections that come in have what the listener has.
    SockRef::from(&socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(SILENCE_MAX).with_interval(SILENCE_MAX))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A socket that an earlier process left behind is removed, as in etcd; a file of another kind is not.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// A connection as it came in.
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Waits for the first byte, and leaves it where it is.
    pub async fn begins_with_tls(&self) -> bool {
        let mut first = [MaybeUninit::uninit(); 1];
        let read = match self {
            Socket::Tcp(stream) => stream.async_io(Interest::READABLE, || SockRef::from(stream).peek(&mut first)).await,
            Socket::Unix(stream) => {
                stream.async_io(Interest::READABLE, || SockRef::from(stream).peek(&mut first)).await
            }
        };
        // SAFETY: `peek` has written the one byte.
        matches!(read, Ok(1)) && unsafe { first[0].assume_init() } == TLS_HANDSHAKE
    }
}

/// A connection as it is read and written.
pub enum Io {
    Plain(Socket),
    Tls(Box<TlsStream<Socket>>),
}

/// Both enums pass on what a stream is asked.
macro_rules! pass_on {
    ($name:ident: $($variant:ident),*) => {
        impl AsyncRead for $name {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $($name::$variant(stream) => Pin::new(stream).poll_read(cx, buf),)*
                }
            }
        }

        impl AsyncWrite for $name {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $($name::$variant(stream) => Pin::new(stream).poll_write(cx, bytes),)*
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                slices: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $($name::$variant(stream) => Pin::new(stream).poll_write_vectored(cx, slices),)*
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    $($name::$variant(stream) => stream.is_write_vectored(),)*
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $($name::$variant(stream) => Pin::new(stream).poll_flush(cx),)*
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $($name::$variant(stream) => Pin::new(stream).poll_shutdown(cx),)*
                }
            }
        }
    };
}

pass_on!(Socket: Tcp, Unix);
pass_on!(Io: Plain, Tls);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_store() {
        assert_eq!(connections_within(150), None);
        assert_eq!(connections_within(400), Some(250));
        assert_eq!(connections_within(1024), Some(768));
        assert_eq!(connections_within(1_000_000), Some(1_000_000 - 4096));
    }

    #[tokio::test]
    async fn a_connection_that_came_in_is_asked_whether_it_is_alive() {
        let listener = bind_tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let _other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap()),
            (SILENCE_MAX, SILENCE_MAX)
        );
    }
}
