//! Control groups, version 1 or 2: to freeze a node, and to give it little time or memory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

const FREEZE_LIMIT: Duration = Duration::from_secs(10);
const FREEZE_PAUSE: Duration = Duration::from_millis(1);
const PERIOD_MICROSECONDS: u64 = 100_000;
const PREFIX: &str = "pintle-jepsen-";

/// Where the hierarchies that concern us are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hierarchies {
    freezer: Option<Place>,
    cpu: Option<Place>,
    memory: Option<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    root: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Hierarchies {
    pub fn find() -> Result<Hierarchies> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("no list of mounts")?;
        Ok(Hierarchies::of(&mounts, |root| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()))
    }

    fn of(mounts: &str, controllers_of: impl Fn(&Path) -> String) -> Hierarchies {
        let mut found = Hierarchies::default();
        for line in mounts.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(root) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
            let kind = after.split(' ').next().unwrap_or_default();
            let (version, controllers) = match kind {
                "cgroup" => (Version::One, after.rsplit(' ').next().unwrap_or_default().replace(',', " ")),
                // The second version freezes without any controller.
                "cgroup2" => (Version::Two, format!("freezer {}", controllers_of(&root))),
                _ => continue,
            };
            let place = Place { root, version };
            for controller in controllers.split_whitespace() {
                match controller {
                    "freezer" => found.freezer.get_or_insert_with(|| place.clone()),
                    "cpu" => found.cpu.get_or_insert_with(|| place.clone()),
                    "memory" => found.memory.get_or_insert_with(|| place.clone()),
                    _ => continue,
                };
            }
        }
        found
    }

    /// Removes the groups of harnesses that are gone: only a folder outlives a harness that was killed.
    pub fn sweep(&self) -> Result<()> {
        for place in [&self.freezer, &self.cpu, &self.memory].into_iter().flatten() {
            for entry in fs::read_dir(&place.root)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                let Some((process, _)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else {
                    continue;
                };
                if !Path::new("/proc").join(process).exists() {
                    remove(&place.root.join(&name)).with_context(|| format!("cannot remove {name}"))?;
                }
            }
        }
        Ok(())
    }

    pub fn freezes(&self) -> bool {
        self.freezer.is_some()
    }

    pub fn limits_cpu(&self) -> bool {
        self.cpu.is_some()
    }

    pub fn limits_memory(&self) -> bool {
        self.memory.is_some()
    }
}

/// The groups of one node, one in each hierarchy; removed when this is dropped.
pub struct Group {
    freezer: Option<Folder>,
    cpu: Option<Folder>,
    memory: Option<Folder>,
}

#[derive(Clone)]
struct Folder {
    path: PathBuf,
    version: Version,
}

impl Group {
    pub fn create(hierarchies: &Hierarchies, name: &str) -> Result<Group> {
        let create = |place: &Option<Place>, controller: &str| -> Result<Option<Folder>> {
            let Some(place) = place else { return Ok(None) };
            let path = place.root.join(format!("{PREFIX}{}-{name}", process::id()));
            if place.version == Version::Two && controller != "freezer" {
                let enabled = fs::write(place.root.join("cgroup.subtree_control"), format!("+{controller}"));
                enabled.with_context(|| format!("cannot use the {controller} controller"))?;
            }
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
            Ok(Some(Folder { path, version: place.version }))
        };
        Ok(Group {
            freezer: create(&hierarchies.freezer, "freezer")?,
            cpu: create(&hierarchies.cpu, "cpu")?,
            memory: create(&hierarchies.memory, "memory")?,
        })
    }

    /// Files through which a process that writes `0` moves into the groups.
    pub fn doors(&self) -> Result<Vec<File>> {
        let mut paths: Vec<PathBuf> = self.folders().map(|folder| folder.path.join("cgroup.procs")).collect();
        paths.dedup();
        let open = |path: &PathBuf| OpenOptions::new().write(true).open(path);
        paths.iter().map(|path| open(path).with_context(|| path.display().to_string())).collect()
    }

    fn folders(&self) -> impl Iterator<Item = &Folder> {
        [&self.freezer, &self.cpu, &self.memory].into_iter().flatten()
    }

    /// Freezes all processes of the group, and waits until they are.
    pub fn freeze(&self) -> Result<()> {
        let freezer = self.freezer.as_ref().context("no freezer")?;
        let (file, word) = match freezer.version {
            Version::One => ("freezer.state", "FROZEN"),
            Version::Two => ("cgroup.freeze", "1"),
        };
        freezer.write(file, word)?;
        let begin = Instant::now();
        while !freezer.is_frozen()? {
            ensure!(begin.elapsed() < FREEZE_LIMIT, "{} does not freeze", freezer.path.display());
            thread::sleep(FREEZE_PAUSE);
        }
        Ok(())
    }

    pub fn thaw(&self) -> Result<()> {
        let freezer = self.freezer.as_ref().context("no freezer")?;
        match freezer.version {
            Version::One => freezer.write("freezer.state", "THAWED"),
            Version::Two => freezer.write("cgroup.freeze", "0"),
        }
    }

    /// Gives the node so much of one processor, or as much as there is.
    pub fn limit_cpu(&self, percent: Option<u64>) -> Result<()> {
        let cpu = self.cpu.as_ref().context("no cpu controller")?;
        let quota = percent.map(|percent| PERIOD_MICROSECONDS * percent / 100);
        match cpu.version {
            Version::One => {
                cpu.write("cpu.cfs_period_us", &PERIOD_MICROSECONDS.to_string())?;
                cpu.write("cpu.cfs_quota_us", &quota.map_or("-1".to_owned(), |quota| quota.to_string()))
            }
            Version::Two => {
                let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                cpu.write("cpu.max", &format!("{quota} {PERIOD_MICROSECONDS}"))
            }
        }
    }

    /// How many periods ended with the node waiting for more.
    pub fn throttled_periods(&self) -> Result<u64> {
        let cpu = self.cpu.as_ref().context("no cpu controller")?;
        numbered(&cpu.read("cpu.stat")?, "nr_throttled")
    }

    /// What the node has in memory that is no cached file.
    pub fn memory_kept(&self) -> Result<u64> {
        let memory = self.memory.as_ref().context("no memory controller")?;
        numbered(&memory.read("memory.stat")?, if memory.version == Version::One { "rss" } else { "anon" })
    }

    /// Lets the node, its cached files included, have so much memory at most, or as much as there is.
    pub fn limit_memory(&self, bytes: Option<u64>) -> Result<()> {
        let memory = self.memory.as_ref().context("no memory controller")?;
        match memory.version {
            Version::One => memory.write("memory.limit_in_bytes", &bytes.map_or("-1".to_owned(), |b| b.to_string())),
            Version::Two => memory.write("memory.max", &bytes.map_or("max".to_owned(), |bytes| bytes.to_string())),
        }
    }

    /// How often the limit was hit.
    pub fn memory_limit_hits(&self) -> Result<u64> {
        let memory = self.memory.as_ref().context("no memory controller")?;
        match memory.version {
            Version::One => memory.read("memory.failcnt")?.trim().parse().context("not a number"),
            Version::Two => numbered(&memory.read("memory.events")?, "max"),
        }
    }
}

impl Folder {
    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path.join(file);
        let mut file = OpenOptions::new().write(true).open(&path).with_context(|| path.display().to_string())?;
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {text} to {}", path.display()))
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.path.join(file);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    fn is_frozen(&self) -> Result<bool> {
        Ok(match self.version {
            Version::One => self.read("freezer.state")?.trim() == "FROZEN",
            Version::Two => numbered(&self.read("cgroup.events")?, "frozen")? == 1,
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let mut paths: Vec<&Path> = self.folders().map(|folder| folder.path.as_path()).collect();
        paths.dedup();
        for path in paths {
            if let Err(error) = remove(path) {
                eprintln!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// Processes that have just ended keep their group for a moment.
fn remove(path: &Path) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && begin.elapsed() < FREEZE_LIMIT => {
                thread::sleep(FREEZE_PAUSE);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            outcome => return outcome,
        }
    }
}

/// The number behind a word, of lines of words and numbers.
fn numbered(lines: &str, word: &str) -> Result<u64> {
    for line in lines.lines() {
        if let Some((first, number)) = line.split_once(' ')
            && first == word
        {
            return number.trim().parse().with_context(|| format!("{word} is no number: {number}"));
        }
    }
    bail!("no {word} in {lines:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS_ONE: &str = "\
30 23 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct
31 23 0:27 / /sys/fs/cgroup/freezer rw,nosuid shared:12 - cgroup cgroup rw,freezer
32 23 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:13 - cgroup2 cgroup2 rw
33 23 0:29 / /proc rw - proc proc rw
";
    const MOUNTS_TWO: &str = "25 23 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn place(root: &str, version: Version) -> Option<Place> {
        Some(Place { root: PathBuf::from(root), version })
    }

    #[test]
    fn controllers_of_the_first_version_are_found_by_their_mounts() {
        let found = Hierarchies::of(MOUNTS_ONE, |_| String::new());
        assert_eq!(found.cpu, place("/sys/fs/cgroup/cpu,cpuacct", Version::One));
        assert_eq!(found.freezer, place("/sys/fs/cgroup/freezer", Version::One));
        assert!(!found.limits_memory());
    }

    #[test]
    fn controllers_of_the_second_version_are_those_that_it_names() {
        let found = Hierarchies::of(MOUNTS_TWO, |_| "cpuset cpu memory\n".to_owned());
        let expected = place("/sys/fs/cgroup", Version::Two);
        assert_eq!(found, Hierarchies { freezer: expected.clone(), cpu: expected.clone(), memory: expected });
    }

    #[test]
    fn without_mounts_nothing_is_offered() {
        let found = Hierarchies::of("", |_| String::new());
        assert!(!found.freezes() && !found.limits_cpu() && !found.limits_memory());
    }

    #[test]
    fn numbers_are_found_by_their_whole_words() {
        let text = "nr_periods 10\nnr_throttled 3\n";
        assert_eq!(numbered(text, "nr_throttled").unwrap(), 3);
        assert!(numbered(text, "throttled").is_err());
    }
}
