//! What reports have in common: the machine they were made on, ratios, and numbers as people read them.

use std::{fmt, fs, path::Path, process::Command};

/// The least, the middle and the greatest of a few values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// `None` without values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Spread { min, median, max })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} / {:.2} / {:.2}", self.min, self.median, self.max)
    }
}

/// Three significant digits, and no decimals from a thousand on.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// Processor, memory, kernel and the file system of the data, as lines of a Markdown list.
pub fn machine(data_parent: &Path) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let unknown = || "unknown".to_string();
    let processor = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(unknown);
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_else(unknown);
    let kernel = read("/proc/sys/kernel/osrelease");
    let file_system = Command::new("stat")
        .args(["-f", "-c", "%T"])
        .arg(data_parent)
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map_or_else(unknown, |output| String::from_utf8_lossy(&output.stdout).trim().to_string());
    let kernel = kernel.trim();
    format!("- machine: {processor}, {cores} cores, {memory} memory, Linux {kernel}, data on {file_system}\n")
}

/// The day, in UTC, as `date` prints it.
pub fn today() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_string(),
        _ => "unknown date".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_of_odd_and_even_counts() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]), Some(Spread { min: 1.0, median: 2.5, max: 4.0 }));
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(
            ["12346", "12.3", "1.23", "0.123"],
            [12345.6, 12.34, 1.234, 0.1234].map(number).each_ref().map(String::as_str)
        );
    }
}
