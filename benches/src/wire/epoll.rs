//! Waiting for sockets, with timeouts finer than a millisecond, which an open loop needs.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
    time::Duration,
};

const EVENTS_MAX: usize = 256;

pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made just now and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Epoll { fd, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Waits for the socket to be readable from now on.
    pub fn add(&self, socket: &impl AsRawFd, token: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket, token, libc::EPOLLIN)
    }

    /// Says whether to wait for room to write, too.
    pub fn set_writable(&self, socket: &impl AsRawFd, token: usize, writable: bool) -> io::Result<()> {
        let events = if writable { libc::EPOLLIN | libc::EPOLLOUT } else { libc::EPOLLIN };
        self.control(libc::EPOLL_CTL_MOD, socket, token, events)
    }

    fn control(&self, operation: i32, socket: &impl AsRawFd, token: usize, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token as u64 };
        // SAFETY: the event lives through the call, and the kernel keeps no pointer to it.
        match unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, socket.as_raw_fd(), &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits at most so long. The tokens of the sockets that can be read or written, or that have failed, which
    /// reading will tell.
    pub fn wait(&mut self, timeout: Duration, ready: &mut Vec<usize>) -> io::Result<()> {
        ready.clear();
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().min(3600) as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        // SAFETY: the buffer has room for as many events as are asked for, the timeout lives through the call, and no
        // signal mask is given.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX as libc::c_int,
                &raw const timeout,
                ptr::null::<libc::sigset_t>(),
                size_of::<libc::c_ulong>(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        };
        // SAFETY: the kernel has written so many.
        unsafe { self.events.set_len(count) };
        ready.extend(self.events.iter().map(|event| event.u64 as usize));
        Ok(())
    }
}
