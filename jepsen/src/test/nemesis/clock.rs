//! Clocks that jump and drift.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{FutureExt as _, future::BoxFuture};
use proto::etcdserverpb::{DefragmentRequest, maintenance_client::MaintenanceClient};
use rand::{Rng as _, rngs::StdRng};
use tokio::time::{sleep, timeout};

use super::{Effect, Fault, Nemesis};
use crate::root::as_root;
use crate::test::nodes::{
    Needs, Nodes,
    clock::{Setting, TRUE},
};

/// Until a node surely looks at its clock anew.
const TAKES_EFFECT: Duration = Duration::from_millis(1100);
const DEFRAGMENT_LIMIT: Duration = Duration::from_secs(10);
const JUMP_SECONDS: std::ops::Range<f64> = 2.0..300.0;

/// The clocks of some nodes jump, or go at another rate.
#[derive(Default)]
pub struct Clocks {
    moved: Vec<usize>,
}

impl Nemesis for Clocks {
    fn name(&self) -> &'static str {
        "clock"
    }

    fn needs(&self) -> Needs {
        Needs { own_clock: true, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            self.moved = (0..nodes.len()).filter(|_| random.random_bool(0.6)).collect();
            if self.moved.is_empty() {
                self.moved.push(random.random_range(0..nodes.len()));
            }
            let at = Instant::now();
            let mut descriptions = Vec::new();
            for node in &self.moved {
                let setting = setting(random);
                let clock = nodes.machine(*node).clock.as_ref().context("a node goes by the machine's clock")?;
                clock.set(setting)?;
                let Setting { offset_seconds, rate } = setting;
                descriptions.push(format!("{} by {offset_seconds:+.1} s, rate {rate:.2}", nodes.name(*node)));
            }
            sleep(TAKES_EFFECT).await;
            Ok(Fault::new(nodes, &self.moved, at, format!("moved clocks: {}", descriptions.join("; "))))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let mut seen = 0;
            for node in &self.moved {
                seen += u64::from(tells_another_time(nodes, *node).await?);
                let clock = nodes.machine(*node).clock.as_ref().context("a node goes by the machine's clock")?;
                clock.set(TRUE)?;
            }
            sleep(TAKES_EFFECT).await;
            Ok(Effect::now("clocks are right again", &[("nodes that logged another time", seen)]))
        }
        .boxed()
    }
}

fn setting(random: &mut StdRng) -> Setting {
    let sign = if random.random() { 1.0 } else { -1.0 };
    match random.random_ratio(2, 3) {
        true => Setting { offset_seconds: (sign * random.random_range(JUMP_SECONDS)).round(), rate: 1.0 },
        false => Setting { offset_seconds: sign * 5.0, rate: f64::from(random.random_range(5..20)) / 10.0 },
    }
}

/// Whether what a node logs now bears another time than it is.
async fn tells_another_time(nodes: &Nodes, node: usize) -> Result<bool> {
    let process = &nodes.cluster.nodes[node];
    let log_from = process.log_length();
    // Something that both etcd and Pintle log. Whether it is done is no matter.
    let asked =
        async { MaintenanceClient::new(as_root(process.channel()).await?).defragment(DefragmentRequest {}).await };
    let _ = timeout(DEFRAGMENT_LIMIT, asked).await;
    let log = process.log_from(log_from)?;
    let now = time_of_day(std::time::SystemTime::now())?;
    Ok(log.lines().filter_map(logged_time).any(|logged| apart(now, logged) > 1))
}

/// The second of the day.
fn time_of_day(time: std::time::SystemTime) -> Result<i64> {
    let seconds = time.duration_since(std::time::UNIX_EPOCH).context("before 1970")?.as_secs();
    Ok((seconds % DAY_SECONDS as u64) as i64)
}

const DAY_SECONDS: i64 = 24 * 60 * 60;

fn apart(a: i64, b: i64) -> i64 {
    let apart = (a - b).rem_euclid(DAY_SECONDS);
    apart.min(DAY_SECONDS - apart)
}

/// The second of the day of a line of the log: `"ts":"2026-01-31T23:59:58.123Z"`.
fn logged_time(line: &str) -> Option<i64> {
    let (_, rest) = line.split_once("\"ts\":\"")?;
    let (_, time) = rest.split_once('T')?;
    let mut parts = time.get(..8)?.split(':').map(|part| part.parse::<i64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    Some((hours * 60 + minutes) * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_logged_line_is_read() {
        let line = r#"{"level":"info","ts":"2026-11-21T14:44:12.288314Z","caller":"x"}"#;
        assert_eq!(logged_time(line), Some((14 * 60 + 44) * 60 + 12));
        assert_eq!(logged_time("panic"), None);
    }

    #[test]
    fn midnight_lies_between_neighbours() {
        assert_eq!(apart(5, DAY_SECONDS - 5), 10);
        assert_eq!(apart(100, 40), 60);
    }
}
