//! The dashboard and the alert rules ask for metrics that are there, and what to do about each alert is written down.

mod member;

use std::collections::{BTreeMap, BTreeSet};

use member::{Places, post};
use proto::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use serde_json::Value;

const RULES: &str = include_str!("../packaging/monitoring/alerts.yaml");
const DASHBOARD: &str = include_str!("../packaging/monitoring/grafana.json");
const OPERATIONS: &str = include_str!("../../docs/operations.md");
/// Names that metrics begin with.
const PREFIXES: [&str; 5] = ["etcd_", "pintle_", "grpc_", "process_", "os_fd_"];
/// What Prometheus adds to what it scrapes.
const ADDED: [&str; 3] = ["job", "instance", "le"];

/// Labels by name of the samples of all members.
fn samples(pages: &[String]) -> BTreeMap<String, BTreeSet<String>> {
    let mut samples: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in pages.iter().flat_map(|page| page.lines()).filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once('='));
        samples.entry(name.into()).or_default().extend(labels.map(|(name, _)| name.to_string()));
    }
    samples
}

fn words(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Labels in `by (…)` and before a comparison within braces.
fn labels(expression: &str) -> BTreeSet<&str> {
    let lists = expression.split("by (").skip(1).map(|rest| rest.split(')').next().unwrap());
    let mut labels: BTreeSet<&str> = lists.flat_map(words).collect();
    let matchers = expression.split('{').skip(1).flat_map(|rest| rest.split('}').next().unwrap().split(','));
    labels.extend(matchers.map(|matcher| matcher.split(['=', '!', '~']).next().unwrap().trim()));
    labels
}

fn expressions_of_rules() -> Vec<&'static str> {
    RULES.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect()
}

fn expressions_of_dashboard(dashboard: &Value) -> Vec<&str> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn every_metric_and_label_that_is_asked_for_is_there() {
    let places = Places::new();
    let members = places.start_all(&[]);
    let mut kv = KvClient::connect(members[0].endpoint()).await.unwrap();
    for _ in 0..3 {
        kv.put(PutRequest { key: "a".into(), ..Default::default() }).await.unwrap();
        kv.range(RangeRequest { key: "a".into(), ..Default::default() }).await.unwrap();
    }
    let alarm = r#"{"action":"ACTIVATE","memberID":"1","alarm":"NOSPACE"}"#;
    assert_eq!(post(members[0].client, "/v3/maintenance/alarm", &[], alarm).0, 200);
    let pages: Vec<String> = members.iter().map(|member| member.get("/metrics").1).collect();
    let samples = samples(&pages);
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let expressions: Vec<&str> =
        expressions_of_rules().into_iter().chain(expressions_of_dashboard(&dashboard)).collect();
    assert!(expressions.len() > 50, "{}", expressions.len());
    for expression in expressions {
        let names: Vec<&str> = words(expression).filter(|word| samples.contains_key(*word)).collect();
        let known: BTreeSet<&str> =
            names.iter().flat_map(|name| &samples[*name]).map(String::as_str).chain(ADDED).collect();
        let labels = labels(expression);
        assert!(!names.is_empty() || words(expression).any(|word| word == "up"), "{expression} asks for nothing");
        for word in words(expression).filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix))) {
            assert!(samples.contains_key(word) || labels.contains(word), "{expression}: there is no {word}");
        }
        for label in labels {
            assert!(known.contains(label), "{expression}: there is no label {label}, but {known:?}");
        }
    }
}

#[test]
fn what_to_do_about_each_alert_is_written_down() {
    let alerts: Vec<&str> = RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(alerts.len(), expressions_of_rules().len());
    for alert in alerts {
        assert!(OPERATIONS.contains(&format!("| `{alert}` |")), "docs/operations.md does not tell of {alert}");
    }
}
