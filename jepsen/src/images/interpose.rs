//! The C library's functions that change files, as this program has them: they do what they are named for, and tell
//! [`super::trace`].
//!
//! RocksDB and Rust's standard library are linked into this program and call these functions by name, so a definition
//! here comes before the C library's. Where nothing is recorded they are the system call and one look at a flag. What
//! the C library calls within itself does not come by here; a recording is compared with the directory for that reason.
#![allow(
    unknown_lints,
    invalid_runtime_symbol_definitions,
    reason = "open takes its third argument by the C library's `...`, which stable Rust cannot define; where this runs it \
              comes in the same register as a named one. Compilers before 1.99 do not know the lint"
)]

use std::{
    ffi::CStr,
    os::fd::RawFd,
    path::{Path, PathBuf},
};

use libc::{c_char, c_int, c_long, c_uint, c_void, iovec, mode_t, off_t, size_t, ssize_t};

use super::trace::{self, Recorder};

/// # Safety
/// `path` is a C string, as each of these functions demands.
unsafe fn text<'a>(path: *const c_char) -> &'a Path {
    use std::os::unix::ffi::OsStrExt as _;
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) };
    Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()))
}

/// Tells the recorder of a call that succeeded.
fn tell(result: c_long, tell: impl FnOnce(&mut Recorder)) -> c_long {
    if result >= 0 {
        trace::with(tell);
    }
    result
}

fn resolved(recorder: &Recorder, dir: RawFd, path: &Path) -> PathBuf {
    match recorder.path_of_dir(dir) {
        Some(parent) if path.is_relative() => parent.join(path),
        _ => path.to_path_buf(),
    }
}

unsafe fn opened(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the arguments are the caller's.
    let fd = unsafe { libc::syscall(libc::SYS_openat, dir, path, flags, mode) };
    tell(fd, |recorder| {
        // SAFETY: the system call has read it.
        let path = resolved(recorder, dir, unsafe { text(path) });
        recorder.opened(fd as RawFd, &path, flags);
    }) as c_int
}

// `mode` is there with O_CREAT only. On the platforms that Linux runs on, what was not passed is read as garbage that
// the system call then ignores.
#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { opened(libc::AT_FDCWD, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { opened(libc::AT_FDCWD, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { opened(dir, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the arguments are the caller's.
    unsafe { opened(dir, path, flags, mode) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    // Before the call: afterwards the number may be another file's.
    trace::with(|recorder| recorder.closed(fd));
    // SAFETY: the descriptor is the caller's.
    unsafe { libc::syscall(libc::SYS_close, fd) as c_int }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, data: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: the buffer is the caller's.
    let written = unsafe { libc::syscall(libc::SYS_write, fd, data, len) };
    tell(written, |recorder| {
        // SAFETY: the system call has read so much of it.
        recorder.appended(fd, &[unsafe { std::slice::from_raw_parts(data.cast(), written as usize) }]);
    }) as ssize_t
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the buffers are the caller's.
    let written = unsafe { libc::syscall(libc::SYS_writev, fd, parts, count) };
    tell(written, |recorder| {
        let mut left = written as usize;
        // SAFETY: the system call has read so much of them.
        let parts = unsafe { std::slice::from_raw_parts(parts, count as usize) }.iter().map(|part| {
            let len = left.min(part.iov_len);
            left -= len;
            // SAFETY: as above.
            unsafe { std::slice::from_raw_parts(part.iov_base.cast::<u8>(), len) }
        });
        recorder.appended(fd, &parts.filter(|part| !part.is_empty()).collect::<Vec<_>>());
    }) as ssize_t
}

unsafe fn wrote_at(fd: c_int, data: *const c_void, len: size_t, offset: off_t) -> ssize_t {
    // SAFETY: the buffer is the caller's.
    let written = unsafe { libc::syscall(libc::SYS_pwrite64, fd, data, len, offset) };
    tell(written, |recorder| {
        // SAFETY: the system call has read so much of it.
        recorder.wrote(fd, offset as u64, unsafe { std::slice::from_raw_parts(data.cast(), written as usize) });
    }) as ssize_t
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, data: *const c_void, len: size_t, offset: off_t) -> ssize_t {
    // SAFETY: the arguments are the caller's.
    unsafe { wrote_at(fd, data, len, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(fd: c_int, data: *const c_void, len: size_t, offset: off_t) -> ssize_t {
    // SAFETY: the arguments are the caller's.
    unsafe { wrote_at(fd, data, len, offset) }
}

/// A sync covers what was written before it began.
unsafe fn synced(number: c_long, fd: c_int) -> c_int {
    let began = trace::len();
    // SAFETY: the descriptor is the caller's.
    let result = unsafe { libc::syscall(number, fd) };
    tell(result, |recorder| recorder.synced(fd, began)) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: the descriptor is the caller's.
    unsafe { synced(libc::SYS_fsync, fd) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: the descriptor is the caller's.
    unsafe { synced(libc::SYS_fdatasync, fd) }
}

/// It promises nothing about a crash. (Its manual page says so.)
#[unsafe(no_mangle)]
unsafe extern "C" fn sync_file_range(fd: c_int, offset: off_t, len: off_t, flags: c_uint) -> c_int {
    // SAFETY: the descriptor is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_sync_file_range, fd, offset, len, flags) };
    tell(result, |recorder| recorder.range_synced(fd)) as c_int
}

unsafe fn set_len(fd: c_int, len: off_t) -> c_int {
    // SAFETY: the descriptor is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_ftruncate, fd, len) };
    tell(result, |recorder| recorder.set_len(fd, len as u64)) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(fd: c_int, len: off_t) -> c_int {
    // SAFETY: the descriptor is the caller's.
    unsafe { set_len(fd, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, len: off_t) -> c_int {
    // SAFETY: the descriptor is the caller's.
    unsafe { set_len(fd, len) }
}

unsafe fn allocated(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    // SAFETY: the descriptor is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_fallocate, fd, mode, offset, len) };
    tell(result, |recorder| recorder.allocated(fd, mode, offset as u64, len as u64)) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    // SAFETY: the descriptor is the caller's.
    unsafe { allocated(fd, mode, offset, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fallocate64(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int {
    // SAFETY: the descriptor is the caller's.
    unsafe { allocated(fd, mode, offset, len) }
}

/// Gives the error instead of setting it. Where the file system cannot do it, it says so and writes no zeros itself.
unsafe fn posix_allocated(fd: c_int, offset: off_t, len: off_t) -> c_int {
    // SAFETY: the descriptor is the caller's.
    match unsafe { allocated(fd, 0, offset, len) } {
        0 => 0,
        _ => std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_fallocate(fd: c_int, offset: off_t, len: off_t) -> c_int {
    // SAFETY: the descriptor is the caller's.
    unsafe { posix_allocated(fd, offset, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_fallocate64(fd: c_int, offset: off_t, len: off_t) -> c_int {
    // SAFETY: the descriptor is the caller's.
    unsafe { posix_allocated(fd, offset, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    let at = libc::AT_FDCWD;
    // SAFETY: the strings are the caller's.
    let result = unsafe { libc::syscall(libc::SYS_renameat2, at, from, at, to, 0) };
    // SAFETY: the system call has read them.
    tell(result, |recorder| unsafe { recorder.renamed(text(from), text(to)) }) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn link(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the strings are the caller's.
    unsafe { linkat(libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn linkat(
    from_dir: c_int,
    from: *const c_char,
    to_dir: c_int,
    to: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: the strings are the caller's.
    let result = unsafe { libc::syscall(libc::SYS_linkat, from_dir, from, to_dir, to, flags) };
    tell(result, |recorder| {
        // SAFETY: the system call has read them.
        let (from, to) = unsafe { (text(from), text(to)) };
        let (from, to) = (resolved(recorder, from_dir, from), resolved(recorder, to_dir, to));
        recorder.linked(&from, &to);
    }) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    // SAFETY: the string is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_unlinkat, dir, path, flags) };
    tell(result, |recorder| {
        // SAFETY: the system call has read it.
        let path = resolved(recorder, dir, unsafe { text(path) });
        recorder.removed(&path);
    }) as c_int
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the string is the caller's.
    unsafe { unlinkat(libc::AT_FDCWD, path, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rmdir(path: *const c_char) -> c_int {
    // SAFETY: the string is the caller's.
    unsafe { unlinkat(libc::AT_FDCWD, path, libc::AT_REMOVEDIR) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the string is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) };
    // SAFETY: the system call has read it.
    tell(result, |recorder| recorder.made_dir(unsafe { text(path) })) as c_int
}
