//! A clock of a node's own: libfaketime, told anew through a file.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// Where Debian and its kin install it, by architecture.
const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

fn library() -> Result<&'static str> {
    let found = LIBRARIES.into_iter().find(|path| Path::new(path).is_file());
    found.context("there is no libfaketime: run script/setup")
}

/// An error if a server's clock cannot be changed.
pub fn check(binary: &Path) -> Result<()> {
    library()?;
    let program = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let contains = |text: &[u8]| program.windows(text.len()).any(|window| window == text);
    // Go asks the kernel, whatever it is linked with.
    let asks_c_library = contains(b"clock_gettime") && contains(b"/ld-") && !contains(b"Go buildinf:");
    ensure!(
        asks_c_library,
        "{} does not ask the C library for the time, so its clock cannot be changed",
        binary.display()
    );
    Ok(())
}

/// How far a clock is from the machine's, and how fast it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    pub offset_seconds: f64,
    pub rate: f64,
}

pub const TRUE: Setting = Setting { offset_seconds: 0.0, rate: 1.0 };

impl Setting {
    /// As libfaketime reads it.
    fn text(&self) -> String {
        let Setting { offset_seconds, rate } = self;
        if *rate == 1.0 { format!("{offset_seconds:+}\n") } else { format!("{offset_seconds:+} x{rate}\n") }
    }
}

/// The clock of one node, or the two: that of the day, and the monotonic one, which by right never jumps.
pub struct Clock {
    file: PathBuf,
    monotonic_too: bool,
}

impl Clock {
    pub fn new(file: PathBuf, monotonic_too: bool) -> Result<Clock> {
        let clock = Clock { file, monotonic_too };
        clock.set(TRUE)?;
        Ok(clock)
    }

    pub fn set(&self, setting: Setting) -> Result<()> {
        // A file that is being written must not be read.
        let new = self.file.with_extension("new");
        fs::write(&new, setting.text())?;
        fs::rename(&new, &self.file).with_context(|| format!("cannot set the clock {}", self.file.display()))
    }

    /// What a process must be told to go by it.
    pub fn environment(&self) -> Result<Vec<(String, OsString)>> {
        let set = |name: &str, value: OsString| (name.to_owned(), value);
        Ok(vec![
            set("LD_PRELOAD", library()?.into()),
            set("FAKETIME_TIMESTAMP_FILE", self.file.clone().into()),
            // Looked at each second.
            set("FAKETIME_CACHE_DURATION", "1".into()),
            set("FAKETIME_DONT_FAKE_MONOTONIC", if self.monotonic_too { "0" } else { "1" }.into()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_written_as_libfaketime_reads_it() {
        assert_eq!(TRUE.text(), "+0\n");
        assert_eq!(Setting { offset_seconds: -12.5, rate: 1.0 }.text(), "-12.5\n");
        assert_eq!(Setting { offset_seconds: 3.0, rate: 1.5 }.text(), "+3 x1.5\n");
    }
}
