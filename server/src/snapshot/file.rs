//! The file that a backup is gathered in. It has no name, so that it is gone with the process that holds it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    os::fd::AsRawFd as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio_util::sync::CancellationToken;

/// What is left free for the store and the log: a disk that is full stops the member.
const LEFT_FREE_BYTES: u64 = 256 << 20;
/// Written between two looks at the free space, and at whether anyone still wants the file.
const LOOK_EVERY_BYTES: usize = 8 << 20;

/// Writes to a file without a name until the disk is nearly full, or nobody wants the file any more.
pub struct Gathering {
    file: File,
    unwanted: CancellationToken,
    until_look: usize,
}

/// Makes the file, in a folder that is on the disk of the store.
pub fn create(folder: &Path, unwanted: CancellationToken) -> io::Result<BufWriter<Gathering>> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let path = folder.join(format!("backup-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(BufWriter::with_capacity(1 << 20, Gathering { file, unwanted, until_look: 0 }))
}

/// The file, to be read from its beginning.
pub fn finish(gathered: BufWriter<Gathering>) -> io::Result<File> {
    let mut file = gathered.into_inner().map_err(|error| error.into_error())?.file;
    file.rewind()?;
    Ok(file)
}

impl Gathering {
    fn look(&self) -> io::Result<()> {
        if self.unwanted.is_cancelled() {
            return Err(io::Error::other("the client has gone"));
        }
        let free = free_bytes(&self.file)?;
        if free < LEFT_FREE_BYTES {
            let text = format!("the disk has {} MiB left, which are kept for the store", free >> 20);
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        Ok(())
    }
}

impl Write for Gathering {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.until_look == 0 {
            self.look()?;
            self.until_look = LOOK_EVERY_BYTES;
        }
        let written = self.file.write(bytes)?;
        self.until_look = self.until_look.saturating_sub(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Gathering {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// What the file system of a file still gives to this process.
fn free_bytes(file: &File) -> io::Result<u64> {
    // SAFETY: the descriptor is open as long as `file` is, and the struct is plain numbers that the call fills in.
    let (result, stat) = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::fstatvfs(file.as_raw_fd(), &mut stat), stat)
    };
    match result {
        0 => Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_file_has_no_name_and_is_read_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let mut gathering = create(folder.path(), CancellationToken::new()).unwrap();
        gathering.write_all(b"whole").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut text = String::new();
        finish(gathering).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "whole");
    }

    #[test]
    fn writing_ends_when_nobody_wants_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let unwanted = CancellationToken::new();
        let mut gathering = create(folder.path(), unwanted.clone()).unwrap();
        unwanted.cancel();
        let written = gathering.write_all(&vec![0; 2 * LOOK_EVERY_BYTES]);
        assert_eq!(written.unwrap_err().to_string(), "the client has gone");
    }
}
