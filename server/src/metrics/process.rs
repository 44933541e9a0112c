//! What the kernel says of this process, beside what the Prometheus crate reads.
//! Source: etcd, `pkg/runtime/fds_linux.go`; Go's Prometheus client, `process_collector_procfsenabled.go`.

use prometheus::{Error, IntCounter, IntGauge};

use super::families::{Families, advance};

pub struct ProcessMetrics {
    descriptors: IntGauge,
    descriptors_max: IntGauge,
    address_space_max: IntGauge,
    received: IntCounter,
    sent: IntCounter,
}

impl ProcessMetrics {
    pub fn new(make: &Families<'_>) -> Result<ProcessMetrics, Error> {
        Ok(ProcessMetrics {
            descriptors: make.gauge("os_fd_used", "File descriptors in use.")?,
            descriptors_max: make.gauge("os_fd_limit", "File descriptors that may be in use.")?,
            address_space_max: make
                .gauge("process_virtual_memory_max_bytes", "Address space that may be in use; -1 for no bound.")?,
            received: make
                .counter("process_network_receive_bytes_total", "Bytes received by this network namespace.")?,
            sent: make.counter("process_network_transmit_bytes_total", "Bytes sent by this network namespace.")?,
        })
    }

    /// What cannot be read stays as it was.
    pub fn show(&self) {
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            self.descriptors.set(entries.count() as i64);
        }
        self.descriptors_max.set(limit(libc::RLIMIT_NOFILE));
        self.address_space_max.set(limit(libc::RLIMIT_AS));
        if let Ok(text) = std::fs::read_to_string("/proc/self/net/netstat")
            && let Some((received, sent)) = octets(&text)
        {
            advance(&self.received, received);
            advance(&self.sent, sent);
        }
    }
}

fn limit(resource: libc::__rlimit_resource_t) -> i64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes to the one structure it is given.
    let done = unsafe { libc::getrlimit(resource, &mut limit) };
    match (done, limit.rlim_cur) {
        (0, libc::RLIM_INFINITY) => -1,
        (0, max) => i64::try_from(max).unwrap_or(i64::MAX),
        _ => 0,
    }
}

/// `InOctets` and `OutOctets` of the two lines that begin with `IpExt`: names, then values.
fn octets(netstat: &str) -> Option<(u64, u64)> {
    let mut lines = netstat.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |name: &str| {
        let at = names.split_whitespace().position(|found| found == name)?;
        values.split_whitespace().nth(at)?.parse().ok()
    };
    Some((value("InOctets")?, value("OutOctets")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_stand_under_their_names() {
        let text = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 7 8\n";
        assert_eq!(octets(text), Some((7, 8)));
        assert_eq!(octets("nothing"), None);
    }

    #[test]
    fn there_are_descriptors_in_use() {
        assert!(limit(libc::RLIMIT_NOFILE) != 0);
    }
}
