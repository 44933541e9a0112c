//! A small ext4 of a node's own, on a file without a name.
//!
//! Its power can be cut: `EXT4_IOC_SHUTDOWN` without flushing the journal stops all writing at once, so that after
//! unmounting and mounting again there is what had been synced, and of the rest what had been written back by chance.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::{
        fd::{AsRawFd as _, FromRawFd as _},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    ptr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    failing_disk::FailingDisk,
    fuse::{Content, Served},
    loop_device::LoopDevice,
    system::{c_path, check},
};

/// `_IOR('X', 125, __u32)`
const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587D;
const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;
/// What a process that has just been killed had open may still keep the file system busy.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(20);
const UNMOUNT_PAUSE: Duration = Duration::from_millis(2);
const INODES: &str = "8192";

/// Where the image is, and what stands between it and the node.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// In a file beside the mount point, and not in memory
    pub in_file: bool,
    /// With a [`FailingDisk`]
    pub failing: bool,
}

/// The fields are dropped in this order: each uses the next.
pub struct Disk {
    device: Option<LoopDevice>,
    backing: File,
    failing: Option<(Served, Arc<FailingDisk>)>,
    mount_point: PathBuf,
}

impl Disk {
    /// A fresh file system on a file without a name, mounted at a folder that is made for it.
    pub fn new(mount_point: &Path, kind: Kind, bytes: u64) -> Result<Disk> {
        let beside = mount_point.parent().context("a mount point is below some folder")?;
        let image = if kind.in_file { tempfile::tempfile_in(beside)? } else { in_memory()? };
        image.set_len(bytes).context("cannot size the image")?;
        fs::create_dir_all(mount_point)?;
        let mut disk = Disk { device: None, backing: image, failing: None, mount_point: mount_point.to_path_buf() };
        // Much is written here, and nothing of it can be lost yet.
        disk.format()?;
        if kind.failing {
            disk.fail_as_told()?;
        }
        disk.mount()?;
        Ok(disk)
    }

    /// Puts a [`FailingDisk`] between the image and whoever uses it.
    fn fail_as_told(&mut self) -> Result<()> {
        let content = Arc::new(FailingDisk::new(self.backing.try_clone()?)?);
        let served = Served::start(&self.mount_point.with_extension("disk"), Arc::clone(&content) as Arc<dyn Content>)?;
        self.backing = served.open()?;
        // Only then does the kernel know the file's size.
        self.backing.metadata()?;
        self.failing = Some((served, content));
        Ok(())
    }

    /// What is told to fail, if the disk is of that kind.
    pub fn failing(&self) -> Result<&FailingDisk> {
        let (_, content) = self.failing.as_ref().context("this disk cannot be told to fail")?;
        Ok(content)
    }

    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    fn format(&self) -> Result<()> {
        let device = LoopDevice::attach(&self.backing)?;
        let options = ["-q", "-F", "-N", INODES, "-E", "lazy_itable_init=0,nodiscard"];
        let output = Command::new("mkfs.ext4").args(options).arg(device.path()).output();
        let output = output.context("mkfs.ext4 is missing: run script/setup")?;
        ensure!(output.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    pub fn mount(&mut self) -> Result<()> {
        ensure!(self.device.is_none(), "{} is mounted twice", self.mount_point.display());
        let device = LoopDevice::attach(&self.backing)?;
        let (source, target) = (c_path(device.path())?, c_path(&self.mount_point)?);
        let flags = libc::MS_NOATIME;
        // SAFETY: all strings outlive the call; there are no options.
        check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), c"ext4".as_ptr(), flags, ptr::null()) })
            .with_context(|| format!("cannot mount {}", self.mount_point.display()))?;
        self.device = Some(device);
        Ok(())
    }

    /// Waits until nothing uses the file system any more.
    pub fn unmount(&mut self) -> Result<()> {
        let target = c_path(&self.mount_point)?;
        let begin = Instant::now();
        loop {
            // SAFETY: the string outlives the call.
            match check(unsafe { libc::umount2(target.as_ptr(), 0) }) {
                Ok(_) => break,
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && begin.elapsed() < UNMOUNT_LIMIT => {
                    thread::sleep(UNMOUNT_PAUSE);
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot unmount {}", self.mount_point.display()));
                }
            }
        }
        self.device = None;
        Ok(())
    }

    /// From now on nothing reaches the disk. What had not been synced is lost with the next unmounting.
    pub fn cut_power(&self) -> Result<()> {
        let root = File::open(&self.mount_point)?;
        let flags = EXT4_GOING_FLAGS_NOLOGFLUSH;
        // SAFETY: the flags are what this call reads.
        check(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &flags) })
            .context("this kernel's ext4 cannot be shut down")?;
        Ok(())
    }

    /// Makes a fresh, empty file system of it.
    pub fn wipe(&mut self) -> Result<()> {
        self.unmount()?;
        self.format()?;
        self.mount()
    }

    /// How many bytes are written but not synced.
    pub fn unsynced_bytes(&self) -> Result<u64> {
        let mut pages = 0;
        visit(&self.mount_point, &mut |path| {
            pages += unsynced_pages(&File::open(path)?)?;
            Ok(())
        })?;
        Ok(pages * page_bytes())
    }

    pub fn free_bytes(&self) -> Result<u64> {
        let target = c_path(&self.mount_point)?;
        // SAFETY: all zeros is a valid answer, which this call fills.
        let stat = unsafe {
            let mut stat: libc::statvfs = std::mem::zeroed();
            check(libc::statvfs(target.as_ptr(), &mut stat))?;
            stat
        };
        Ok(stat.f_bavail as u64 * stat.f_frsize as u64)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.device.is_some()
            && let Err(error) = self.unmount()
        {
            eprintln!("{error:#}");
        }
    }
}

fn in_memory() -> Result<File> {
    // SAFETY: the name is a constant C string, and the descriptor is owned from here on.
    let fd = check(unsafe { libc::memfd_create(c"pintle-jepsen".as_ptr(), libc::MFD_CLOEXEC) });
    Ok(unsafe { File::from_raw_fd(fd.context("cannot make a file in memory")?) })
}

/// Does something with each file below a folder. Files may vanish meanwhile.
pub fn visit(folder: &Path, act: &mut dyn FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    let vanished = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(folder) {
        Err(error) if vanished(&error) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let outcome = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => visit(&path, act),
            Ok(metadata) if metadata.is_file() => act(&path),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        match outcome {
            Err(error) if vanished(&error) => (),
            outcome => outcome?,
        }
    }
    Ok(())
}

/// Which bytes of the disk hold a file, in the file's order.
pub fn extents(file: &Path) -> io::Result<Vec<Range<u64>>> {
    const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B;
    const FIEMAP_FLAG_SYNC: u32 = 1;
    const EXTENTS_MAX: usize = 64;
    /// `struct fiemap_extent` of linux/fiemap.h.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Extent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved: [u64; 2],
        flags: u32,
        reserved_too: [u32; 3],
    }
    /// `struct fiemap`.
    #[repr(C)]
    struct Map {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        room: u32,
        reserved: u32,
        extents: [Extent; EXTENTS_MAX],
    }
    let mut map = Map {
        start: 0,
        length: u64::MAX,
        flags: FIEMAP_FLAG_SYNC,
        mapped: 0,
        room: EXTENTS_MAX as u32,
        reserved: 0,
        extents: [Extent::default(); EXTENTS_MAX],
    };
    let file = File::open(file)?;
    // SAFETY: the map has room for as many extents as it says.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) })?;
    let mapped = &map.extents[..map.mapped as usize];
    Ok(mapped.iter().map(|extent| extent.physical..extent.physical + extent.length).collect())
}

/// `cachestat(2)`, of Linux 6.5 and later.
fn unsynced_pages(file: &File) -> io::Result<u64> {
    const CACHESTAT: libc::c_long = 451;
    /// `struct cachestat` of linux/mman.h.
    #[repr(C)]
    #[derive(Default)]
    struct Pages {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = [0u64, file.metadata()?.size()];
    let mut pages = Pages::default();
    // SAFETY: the call reads the range and fills the answer.
    let outcome = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), &raw mut pages, 0) };
    check(outcome as libc::c_int)?;
    Ok(pages.dirty + pages.writeback)
}

fn page_bytes() -> u64 {
    // SAFETY: plain library call.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

/// Copies what a folder holds for someone to look at, without giving room to its holes.
pub fn keep(folder: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let status = Command::new("cp").args(["-a", "--sparse=always"]).arg(folder).arg(to).status()?;
    if !status.success() {
        bail!("cannot copy {} to {}", folder.display(), to.display());
    }
    Ok(())
}
