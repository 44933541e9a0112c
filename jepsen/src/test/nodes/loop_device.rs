//! A file as a block device.

use std::{
    fs::{File, OpenOptions},
    mem,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use super::system::check;

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
/// Freed with its last user, however that ends.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Others on this machine may take the device that was found free.
const ATTEMPTS: u32 = 50;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// An attached device. It is freed when this is dropped and nothing on it is mounted any more.
pub struct LoopDevice {
    path: PathBuf,
    open: File,
}

impl LoopDevice {
    pub fn attach(backing: &File) -> Result<LoopDevice> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").context("no loop devices")?;
        for _ in 0..ATTEMPTS {
            // SAFETY: plain system call.
            let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path)?;
            // SAFETY: all zeros is a valid configuration.
            let mut config: LoopConfig = unsafe { mem::zeroed() };
            config.fd = backing.as_raw_fd() as u32;
            config.info.flags = LO_FLAGS_AUTOCLEAR;
            // SAFETY: the configuration is what this call reads.
            match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) }) {
                Ok(_) => return Ok(LoopDevice { path, open: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => (),
                Err(error) => return Err(error).with_context(|| format!("cannot set up {}", path.display())),
            }
        }
        bail!("found no free loop device in {ATTEMPTS} attempts")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Frees it at once, or marks it to be freed with its last user.
        // SAFETY: plain system call.
        let _ = unsafe { libc::ioctl(self.open.as_raw_fd(), LOOP_CLR_FD) };
    }
}
