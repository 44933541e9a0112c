//! Tells systemd that the member is ready, and that it stops, for units of `Type=notify`.
//! Source: sd_notify(3); etcd, `server/etcdmain/main.go` (notifySystemd), which tells of being ready.

use std::{
    ffi::OsString,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Clients are served from now on.
pub const READY: &str = "READY=1";
pub const STOPPING: &str = "STOPPING=1";

/// Without systemd this does nothing.
pub fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = send(&socket, state) {
        tracing::error!(%error, state, socket = %socket.display(), "failed to notify systemd");
    }
}

fn send(socket: &OsString, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_reach_sockets_with_a_path_and_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("@pintle-test-{}", std::process::id());
        let unnamed = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        let sockets = [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (name.clone().into(), UnixDatagram::bind_addr(&unnamed).unwrap()),
        ];
        for (address, socket) in sockets {
            send(&address, READY).unwrap();
            let mut told = [0; 64];
            let bytes = socket.recv(&mut told).unwrap();
            assert_eq!(&told[..bytes], READY.as_bytes());
        }
        assert!(send(&"/nowhere/at/all".into(), READY).is_err());
    }
}
