//! How a server tells who has started it that it is ready: as systemd is told. (sd_notify(3); etcd:
//! `server/etcdmain/main.go`, notifySystemd.)

use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::{self, Command},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Where one server's word is awaited.
pub struct Readiness(UnixDatagram);

impl Readiness {
    /// Of the server that `command` is to start.
    pub fn of(command: &mut Command) -> Readiness {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("pintle-test-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        command.env("NOTIFY_SOCKET", format!("@{name}"));
        Readiness(socket)
    }

    /// Waits for its word; false when it does not come.
    pub fn wait(&self) -> bool {
        let mut told = [0; 64];
        self.0.recv(&mut told).is_ok_and(|bytes| &told[..bytes] == b"READY=1")
    }
}
