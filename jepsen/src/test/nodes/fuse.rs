//! A file whose every read, write and sync is answered by us, by the protocol of FUSE.
//!
//! The root of the file system is the file itself, so that little of the protocol is needed: `linux/fuse.h` has all of
//! it. The kernel keeps nothing of the file (`FOPEN_DIRECT_IO`), so what it asks for is what its user asks for.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};

use super::system::{c_path, check};

const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const FORGET: u32 = 2;
const BATCH_FORGET: u32 = 42;

const VERSION: (u32, u32) = (7, 31);
const ASYNC_READ: u32 = 1 << 0;
const BIG_WRITES: u32 = 1 << 5;
const MAX_PAGES: u32 = 1 << 22;
const FOPEN_DIRECT_IO: u32 = 1 << 0;
const MAX_WRITE_BYTES: u32 = 1 << 20;
const MAX_WRITE_PAGES: u16 = 256;
const HEADER_BYTES: usize = 40;
const ANSWER_HEADER_BYTES: usize = 16;
const INIT_ANSWER_BYTES: usize = 64;
/// A sync that takes long must not hold up all reads.
const THREADS: usize = 6;

/// What stands behind the file.
pub trait Content: Send + Sync + 'static {
    fn bytes(&self) -> u64;
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
}

/// The file while it is served.
pub struct Served {
    path: PathBuf,
    threads: Vec<JoinHandle<()>>,
}

impl Served {
    /// Makes the file at `path`, which must not be there.
    pub fn start(path: &Path, content: Arc<dyn Content>) -> Result<Served> {
        File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("no FUSE")?;
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0\0", device.as_raw_fd());
        let target = c_path(path)?;
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        // SAFETY: all strings outlive the call.
        check(unsafe {
            libc::mount(c"pintle-jepsen".as_ptr(), target.as_ptr(), c"fuse".as_ptr(), flags, options.as_ptr().cast())
        })
        .with_context(|| format!("cannot mount {}", path.display()))?;
        let device = Arc::new(device);
        let thread = |_| {
            let (device, content) = (Arc::clone(&device), Arc::clone(&content));
            thread::Builder::new().name("fuse".to_owned()).spawn(move || serve(&device, &*content))
        };
        let threads = (0..THREADS).map(thread).collect::<io::Result<Vec<_>>>()?;
        let served = Served { path: path.to_path_buf(), threads };
        // A close asks for a flush until one was answered with "there is no such thing". This process must never be
        // asked while it ends: its threads would not answer any more, and it would wait for ever.
        drop(served.open()?);
        Ok(served)
    }

    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&self.path)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Ok(path) = c_path(&self.path) {
            // With the last user of the file gone, this ends the connection and with it the threads.
            // SAFETY: the string outlives the call.
            if let Err(error) = check(unsafe { libc::umount2(path.as_ptr(), 0) }) {
                eprintln!("cannot unmount {}: {error}", self.path.display());
                return;
            }
        }
        for thread in self.threads.drain(..) {
            // It has no result, and its panic has been printed.
            let _ = thread.join();
        }
        if let Err(error) = fs::remove_file(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// A request of the kernel.
struct Request<'a> {
    operation: u32,
    unique: u64,
    body: &'a [u8],
}

impl Request<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.body[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.body[at..at + 8].try_into().expect("eight bytes"))
    }
}

/// Answers until the file is unmounted.
fn serve(mut device: &File, content: &dyn Content) {
    let mut buffer = vec![0; MAX_WRITE_BYTES as usize + 4096];
    loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            // What was asked is not wanted any more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => continue,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
            Err(error) => {
                eprintln!("a FUSE file is served no longer: {error}");
                return;
            }
        };
        let header = Request { operation: 0, unique: 0, body: &buffer[..HEADER_BYTES.min(length)] };
        let (operation, unique) = (header.u32(4), header.u64(8));
        let request = Request { operation, unique, body: &buffer[HEADER_BYTES..length] };
        let Some(answer) = answer(&request, content) else { continue };
        // The one who asked may be gone.
        let _ = device.write(&framed(request.unique, answer));
    }
}

fn framed(unique: u64, answer: Result<Vec<u8>, i32>) -> Vec<u8> {
    let (error, body) = match answer {
        Ok(body) => (0, body),
        Err(error) => (-error, Vec::new()),
    };
    let length = (ANSWER_HEADER_BYTES + body.len()) as u32;
    let mut framed = Fields::default();
    framed.u32(length).u32(error as u32).u64(unique);
    framed.0.extend(body);
    framed.0
}

/// The answer to a request that wants one.
fn answer(request: &Request<'_>, content: &dyn Content) -> Option<Result<Vec<u8>, i32>> {
    let done = |outcome: io::Result<()>| outcome.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO));
    Some(match request.operation {
        INIT => Ok(greeting()),
        GETATTR | SETATTR => Ok(attributes(content.bytes())),
        OPEN => Ok(Fields::default().u64(0).u32(FOPEN_DIRECT_IO).u32(0).take()),
        READ => {
            let (offset, size) = (request.u64(8), u64::from(request.u32(16)));
            let mut data = vec![0; size.min(content.bytes().saturating_sub(offset)) as usize];
            done(content.read(offset, &mut data)).map(|()| data)
        }
        WRITE => {
            let (offset, size) = (request.u64(8), request.u32(16));
            let data = &request.body[HEADER_BYTES..];
            done(content.write(offset, data)).map(|()| Fields::default().u32(size).u32(0).take())
        }
        FSYNC => done(content.sync()).map(|()| Vec::new()),
        STATFS => Ok(vec![0; 80]),
        RELEASE => Ok(Vec::new()),
        FORGET | BATCH_FORGET | INTERRUPT => return None,
        _ => Err(libc::ENOSYS),
    })
}

fn greeting() -> Vec<u8> {
    let mut fields = Fields::default();
    fields.u32(VERSION.0).u32(VERSION.1).u32(0).u32(ASYNC_READ | BIG_WRITES | MAX_PAGES);
    fields.u16(64).u16(48).u32(MAX_WRITE_BYTES).u32(1).u16(MAX_WRITE_PAGES).u16(0);
    fields.0.resize(INIT_ANSWER_BYTES, 0);
    fields.take()
}

/// `struct fuse_attr_out`, good for an hour.
fn attributes(bytes: u64) -> Vec<u8> {
    let mut fields = Fields::default();
    fields.u64(3600).u32(0).u32(0);
    fields.u64(1).u64(bytes).u64(bytes / 512);
    // Three times in seconds and nanoseconds.
    fields.u64(0).u64(0).u64(0).u32(0).u32(0).u32(0);
    fields.u32(libc::S_IFREG | 0o600).u32(1).u32(0).u32(0).u32(0).u32(4096).u32(0);
    fields.take()
}

/// Numbers one behind another, in the machine's order.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u16(&mut self, number: u16) -> &mut Fields {
        self.0.extend(number.to_ne_bytes());
        self
    }

    fn u32(&mut self, number: u32) -> &mut Fields {
        self.0.extend(number.to_ne_bytes());
        self
    }

    fn u64(&mut self, number: u64) -> &mut Fields {
        self.0.extend(number.to_ne_bytes());
        self
    }

    fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Constant;

    impl Content for Constant {
        fn bytes(&self) -> u64 {
            10
        }

        fn read(&self, _: u64, buffer: &mut [u8]) -> io::Result<()> {
            buffer.fill(7);
            Ok(())
        }

        fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        }

        fn sync(&self) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }

    fn ask(operation: u32, offset: u64, size: u32) -> Option<Result<Vec<u8>, i32>> {
        let mut body = Fields::default();
        body.u64(0).u64(offset).u32(size);
        body.0.resize(HEADER_BYTES, 0);
        answer(&Request { operation, unique: 1, body: &body.take() }, &Constant)
    }

    #[test]
    fn answers_have_the_sizes_that_the_kernel_wants() {
        assert_eq!(ask(INIT, 0, 0).unwrap().unwrap().len(), 64);
        assert_eq!(ask(GETATTR, 0, 0).unwrap().unwrap().len(), 104);
        assert_eq!(ask(OPEN, 0, 0).unwrap().unwrap().len(), 16);
        assert_eq!(framed(9, Ok(vec![1, 2]))[..4], 18_u32.to_ne_bytes());
    }

    #[test]
    fn a_read_ends_with_the_file() {
        assert_eq!(ask(READ, 6, 100).unwrap(), Ok(vec![7; 4]));
        assert_eq!(ask(READ, 20, 100).unwrap(), Ok(vec![]));
    }

    #[test]
    fn what_fails_behind_the_file_fails_for_its_user() {
        assert_eq!(ask(FSYNC, 0, 0).unwrap(), Err(libc::EIO));
        assert_eq!(ask(WRITE, 0, 0).unwrap(), Err(libc::ENOSPC));
        assert_eq!(framed(9, Err(libc::EIO))[4..8], (-libc::EIO).to_ne_bytes());
        assert!(ask(FORGET, 0, 0).is_none());
    }
}
