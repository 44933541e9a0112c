//! A log file that is put aside when it is full, by the rules of lumberjack, which etcd uses.
//!
//! ```text
//! etcd.log                                the file that is written
//! etcd-2026-11-21T11-14-31.483.log        one that was full then
//! etcd-2026-11-20T09-00-00.001.log.gz     the same, compressed
//! ```
//!
//! What is put aside goes when there are more than `maxbackups` of them, or after `maxage` days; 0 stands for no bound.
//! That and compressing are done by a thread, since the writer holds up whoever logs.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, SystemTime},
};

use serde::Deserialize;

use super::LoggingError;

const DEFAULT_MEGABYTES: u64 = 100;
const MEGABYTE: u64 = 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const COMPRESSED: &str = ".gz";

/// `--log-rotation-config-json`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Rotation {
    /// Megabytes; 0 stands for 100.
    maxsize: u64,
    /// Days.
    maxage: u64,
    maxbackups: usize,
    /// Names are in local time, not in UTC.
    localtime: bool,
    compress: bool,
}

impl Default for Rotation {
    fn default() -> Rotation {
        Rotation { maxsize: DEFAULT_MEGABYTES, maxage: 0, maxbackups: 0, localtime: false, compress: false }
    }
}

impl Rotation {
    pub fn parse(json: &str) -> Result<Rotation, LoggingError> {
        serde_json::from_str(json).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => LoggingError::RotationType(error.to_string()),
            _ => LoggingError::RotationSyntax(error.to_string()),
        })
    }

    fn max_bytes(&self) -> u64 {
        if self.maxsize == 0 { DEFAULT_MEGABYTES * MEGABYTE } else { self.maxsize.saturating_mul(MEGABYTE) }
    }
}

/// The file, and those put aside beside it.
pub struct File {
    path: PathBuf,
    rotation: Rotation,
    file: fs::File,
    /// Bytes.
    size: u64,
    /// One message asks for one round over what is put aside. A full queue has one waiting, which is enough.
    tidy: mpsc::SyncSender<()>,
}

impl File {
    /// Appends to the file, unless it is full already.
    pub fn open(path: &str, rotation: Rotation) -> io::Result<File> {
        let path = PathBuf::from(path);
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file =
            file.map_err(|error| io::Error::new(error.kind(), format!("--log-outputs={}: {error}", path.display())))?;
        let size = file.metadata()?.len();
        let (tidy, asked) = mpsc::sync_channel(1);
        let names = Names::of(&path);
        std::thread::Builder::new().name("log-rotation".into()).spawn(move || {
            while asked.recv().is_ok() {
                // There is no log to complain to; the next round tries again.
                let _ = names.tidy(&rotation, SystemTime::now());
            }
        })?;
        let mut opened = File { path, rotation, file, size, tidy };
        if opened.size >= opened.rotation.max_bytes() {
            opened.rotate()?;
        }
        Ok(opened)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let names = Names::of(&self.path);
        let now = SystemTime::now();
        // Two in the same millisecond must not become one.
        let mut aside = (0..).map(|later| names.aside(now + Duration::from_millis(later), self.rotation.localtime));
        let free = aside.find(|path| !path.exists() && !compressed(path).exists());
        fs::rename(&self.path, free.expect("time has no end"))?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.size = 0;
        let _ = self.tidy.try_send(());
        Ok(())
    }
}

impl Write for File {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.size > 0 && self.size + line.len() as u64 > self.rotation.max_bytes() {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn compressed(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(COMPRESSED);
    name.into()
}

/// How files that are put aside are called: the file's name with a time before its extension.
struct Names {
    folder: PathBuf,
    prefix: String,
    extension: String,
}

impl Names {
    fn of(path: &Path) -> Names {
        let text = |part: Option<&OsStr>| part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default();
        let extension = path.extension().map(|extension| format!(".{}", extension.to_string_lossy()));
        Names {
            folder: match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder.into(),
                _ => ".".into(),
            },
            prefix: format!("{}-", text(path.file_stem())),
            extension: extension.unwrap_or_default(),
        }
    }

    fn aside(&self, time: SystemTime, is_local: bool) -> PathBuf {
        self.folder.join(format!("{}{}{}", self.prefix, stamp(time, is_local), self.extension))
    }

    /// The time in a name of a file that was put aside.
    fn time_of<'a>(&self, name: &'a str) -> Option<&'a str> {
        let name = name.strip_suffix(COMPRESSED).unwrap_or(name);
        let time = name.strip_prefix(self.prefix.as_str())?.strip_suffix(self.extension.as_str())?;
        is_stamp(time).then_some(time)
    }

    /// Removes what is too old or too much, and compresses the rest if asked to.
    fn tidy(&self, rotation: &Rotation, now: SystemTime) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(time) = self.time_of(&name) {
                files.push((time.to_string(), name.clone()));
            }
        }
        // The newest first: the times in the names sort as they are.
        files.sort_unstable_by(|a, b| b.cmp(a));
        let mut times: Vec<&str> = files.iter().map(|(time, _)| time.as_str()).collect();
        times.dedup();
        let kept = if rotation.maxbackups == 0 { times.len() } else { times.len().min(rotation.maxbackups) };
        let age = DAY * u32::try_from(rotation.maxage).unwrap_or(u32::MAX);
        let oldest = now.checked_sub(age).filter(|_| rotation.maxage > 0).map(|time| stamp(time, rotation.localtime));
        for (time, name) in &files {
            let path = self.folder.join(name);
            let is_old = oldest.as_ref().is_some_and(|oldest| time < oldest);
            if is_old || !times[..kept].contains(&time.as_str()) {
                fs::remove_file(path)?;
            } else if rotation.compress && !name.ends_with(COMPRESSED) {
                compress(&path)?;
            }
        }
        Ok(())
    }
}

/// Writes the compressed file whole before the other goes.
fn compress(path: &Path) -> io::Result<()> {
    let to = compressed(path);
    let mut encoder = flate2::write::GzEncoder::new(fs::File::create(&to)?, flate2::Compression::default());
    let done = io::copy(&mut fs::File::open(path)?, &mut encoder).and_then(|_| encoder.finish());
    if let Err(error) = done {
        fs::remove_file(&to)?;
        return Err(error);
    }
    fs::remove_file(path)
}

/// A time as names have it: `2026-11-21T11-14-31.483`.
fn stamp(time: SystemTime, is_local: bool) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() as libc::time_t;
    // SAFETY: all zeros are a valid tm, and both functions write only to the one they are given.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        match is_local {
            true => libc::localtime_r(&seconds, &mut tm),
            false => libc::gmtime_r(&seconds, &mut tm),
        };
        tm
    };
    let (year, month) = (tm.tm_year + 1900, tm.tm_mon + 1);
    let (day, hour, minute, second) = (tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}.{:03}", since.subsec_millis())
}

fn is_stamp(text: &str) -> bool {
    let shape = b"0000-00-00T00-00-00.000";
    let fits = |(byte, shape): (u8, u8)| if shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
    text.len() == shape.len() && text.bytes().zip(shape.iter().copied()).all(fits)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, time::Instant};

    use super::*;

    fn rotation(json: &str) -> Rotation {
        Rotation::parse(json).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_file_is_put_aside_under_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs").join("etcd.log");
        let mut file = File::open(path.to_str().unwrap(), rotation(r#"{"maxsize": 1}"#)).unwrap();
        let line = vec![b'x'; 700 * 1024];
        for _ in 0..3 {
            file.write_all(&line).unwrap();
        }
        let names = names(path.parent().unwrap());
        assert_eq!(names.len(), 3, "{names:?}");
        let own = Names::of(&path);
        assert!(own.time_of(&names[0]).is_some() && own.time_of(&names[1]).is_some());
        assert_eq!(names[2], "etcd.log");
        assert_eq!(fs::metadata(&path).unwrap().len(), line.len() as u64);
    }

    #[test]
    fn a_file_that_is_there_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcd.log");
        fs::write(&path, "before\n").unwrap();
        let mut file = File::open(path.to_str().unwrap(), Rotation::default()).unwrap();
        file.write_all(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before\nafter\n");
    }

    #[test]
    fn what_is_too_old_or_too_much_goes_and_the_rest_is_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let own = Names::of(&dir.path().join("etcd.log"));
        let now = SystemTime::now();
        let days = |days: u32| now - DAY * days;
        for age in 1..=4 {
            fs::write(own.aside(days(age), false), "text").unwrap();
        }
        fs::write(dir.path().join("etcd-other.log"), "not a log of ours").unwrap();
        own.tidy(&rotation(r#"{"maxage": 3, "compress": true}"#), now + Duration::from_secs(1)).unwrap();
        let left = names(dir.path());
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(left[0].ends_with(".log.gz") && left[1].ends_with(".log.gz") && left[2] == "etcd-other.log");
        let mut text = String::new();
        let packed = fs::File::open(compressed(&own.aside(days(1), false))).unwrap();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        own.tidy(&rotation(r#"{"maxbackups": 1}"#), now).unwrap();
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn the_thread_tidies_after_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcd.log");
        let mut file = File::open(path.to_str().unwrap(), rotation(r#"{"maxsize": 1, "maxbackups": 1}"#)).unwrap();
        for _ in 0..4 {
            file.write_all(&vec![b'x'; 1024 * 1024]).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while names(dir.path()).len() != 2 {
            assert!(Instant::now() < deadline, "{:?}", names(dir.path()));
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_settings_are_etcds() {
        assert_eq!(rotation("{}"), Rotation::default());
        assert_eq!(rotation(r#"{"maxsize": 0}"#).max_bytes(), 100 * MEGABYTE);
        assert!(matches!(Rotation::parse("{"), Err(LoggingError::RotationSyntax(_))));
        assert!(matches!(Rotation::parse(r#"{"maxsize": true}"#), Err(LoggingError::RotationType(_))));
    }

    #[test]
    fn names_hold_the_time_in_utc_or_in_local_time() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_259_671_483);
        assert_eq!(stamp(time, false), "2026-11-21T11-14-31.483");
        assert!(is_stamp(&stamp(time, true)) && !is_stamp("2026-11-21T11-14-31"));
    }
}
