//! What a node counts itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::test::nodes::Nodes;

const LIMIT: Duration = Duration::from_secs(5);

/// The sum of a metric over all its labels.
pub async fn sum(nodes: &Nodes, node: usize, metric: &str) -> Result<u64> {
    let endpoint = nodes.cluster.nodes[node].endpoint();
    let address = endpoint.strip_prefix("http://").context("metrics are read without TLS")?;
    let text = timeout(LIMIT, get(address)).await.with_context(|| format!("no metrics from {address}"))??;
    Ok(sum_of(&text, metric) as u64)
}

async fn get(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    // Version 1.0, so that the answer ends with the connection and comes in one piece.
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.") && answer.contains(" 200 "), "{}", answer.lines().next().unwrap_or_default());
    Ok(answer)
}

fn sum_of(text: &str, metric: &str) -> f64 {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once("} ")?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.trim().parse::<f64>().ok()
    });
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_is_no_other() {
        let text = "# HELP snap x\nsnap{From=\"a b\"} 2\nsnap{From=\"c\"} 3\nsnap_total 100\nplain 7\n";
        assert_eq!(sum_of(text, "snap"), 5.0);
        assert_eq!(sum_of(text, "plain"), 7.0);
        assert_eq!(sum_of(text, "none"), 0.0);
    }
}
