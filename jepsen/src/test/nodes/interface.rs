//! Network interfaces: addresses, and TUN devices, whose other end is a file.

use std::{
    fs::{File, OpenOptions},
    io, mem,
    net::Ipv4Addr,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use super::system::check;

const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const NAME: &str = "pintle0";
/// As large as jumbo frames: fewer packets for the switch to carry.
pub const MTU: usize = 9000;
/// What waits to be carried before the sender is held up.
const QUEUE_PACKETS: libc::c_int = 4096;

/// Makes a TUN device in the calling thread's network, with an address of a /24. What is sent through it is read from
/// the file, a packet at a time, and what is written to the file arrives.
pub fn tun(address: Ipv4Addr) -> io::Result<File> {
    let tun = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = request(NAME);
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is what this call reads.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &request) })?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    set(libc::SIOCSIFADDR, &request)?;
    request.ifr_ifru.ifru_netmask = socket_address(NETMASK);
    set(libc::SIOCSIFNETMASK, &request)?;
    request.ifr_ifru.ifru_mtu = MTU as libc::c_int;
    set(libc::SIOCSIFMTU, &request)?;
    request.ifr_ifru.ifru_metric = QUEUE_PACKETS;
    set(libc::SIOCSIFTXQLEN, &request)?;
    up(NAME)?;
    Ok(tun)
}

pub fn up(name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    set(libc::SIOCSIFFLAGS, &request)
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn set(what: libc::Ioctl, request: &libc::ifreq) -> io::Result<()> {
    // SAFETY: the socket is owned from here on.
    let socket = unsafe {
        let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, flags, 0))?)
    };
    // SAFETY: the request outlives the call, which reads it.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what, request) }).map(drop)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: both are plain data of one size.
    unsafe {
        let mut socket: libc::sockaddr_in = mem::zeroed();
        socket.sin_family = libc::AF_INET as libc::sa_family_t;
        socket.sin_addr.s_addr = u32::from(address).to_be();
        mem::transmute(socket)
    }
}
