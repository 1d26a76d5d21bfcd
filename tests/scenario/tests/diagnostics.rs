//! What the processes of a cluster show of themselves, and that the dashboard, the alert rules and the reference name
//! nothing else.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use wayleave_scenario::{Cluster, Daemon, check_all, wait_until};

/// A listener on any port, and a section behind it: traces are switched on, and none are made.
const DIAGNOSTICS: &str = "diag_addr: 127.0.0.1:0\ntracing_service:\n  exporter_url: http://127.0.0.1:1\n  \
     sampling_rate_per_million: 0";

#[test]
fn processes_show_what_they_do() {
    let mut cluster = Cluster::builder("diagnostics")
        .proxies(2)
        .nodes(&["web-1"])
        .peering(1)
        .instance_lines(&["shutdown_timeout: 2s", DIAGNOSTICS])
        .start();
    check_all!(&mut cluster;
        sessions_and_dials_are_counted,
        the_reference_names_every_metric,
        dashboard_and_rules_name_metrics_that_exist,
        without_auth_proxies_go_on_and_say_so,
        a_draining_proxy_is_not_ready_and_an_agent_without_proxies_neither,
    );
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where a process says that its diagnostics are, in its newest life.
fn address(daemon: &Daemon) -> SocketAddr {
    let mut found = None;
    wait_until("the diagnostics listener", || {
        let log = daemon.log_text();
        let line = log.lines().rev().find(|line| line.contains("diagnostics: /metrics"));
        found = line.and_then(|line| line.rsplit("address=").next()?.trim().parse().ok());
        found.is_some()
    });
    found.expect("it was found")
}

fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

fn metrics(daemon: &Daemon) -> String {
    get(address(daemon), "/metrics").expect("metrics are served").1
}

fn readiness(daemon: &Daemon) -> Option<(u16, Value)> {
    let (status, body) = get(address(daemon), "/readyz")?;
    Some((status, serde_json::from_str(&body).expect("reasons are JSON")))
}

fn has_reason(readiness: &Option<(u16, Value)>, status: u16, code: &str) -> bool {
    let Some((found, body)) = readiness else { return false };
    let reasons = body["reasons"].as_array().expect("a list");
    *found == status && reasons.iter().any(|reason| reason["code"] == code)
}

fn has_line(text: &str, start: &str) -> bool {
    text.lines().any(|line| line.starts_with(start))
}

fn daemons(cluster: &Cluster) -> Vec<&Daemon> {
    cluster.daemons().collect()
}

fn sessions_and_dials_are_counted(cluster: &mut Cluster) {
    for proxy in 0..2 {
        let _done = cluster.ssh(&cluster.identity(), proxy).run("web-1", &[], "true").output().ended_with(0);
    }
    for daemon in daemons(cluster) {
        wait_until(&format!("{} to be well", daemon.name()), || {
            readiness(daemon).is_some_and(|(status, body)| status == 200 && body["status"] == "ok")
        });
        assert_eq!(get(address(daemon), "/healthz").expect("it is served").0, 200);
    }
    let both: String = cluster.proxies.iter().map(|proxy| metrics(&proxy.daemon)).collect();
    for line in [
        "wayleave_reverse_tunnels_connected 1",
        "wayleave_reverse_tunnels_connected 0",
        "proxy_peer_client_connections{state=\"READY\"} 1",
        "proxy_routes{state=\"fresh\"} 1",
    ] {
        assert!(has_line(&both, line), "{line} in {both}");
    }
    for way in ["tunnel", "peer-tunnel"] {
        let line = format!("dials_total{{way=\"{way}\",result=\"ok\"}} ");
        let count =
            |line: &str| line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
        let dialled: u64 = both.lines().filter(|found| found.starts_with(&line)).map(count).sum();
        assert!(dialled > 0, "{way}");
    }
    let node = metrics(&cluster.nodes[0].daemon);
    assert!(has_line(&node, "agent_tunnels_connected 1") && !has_line(&node, "ssh_sessions_begun_total 0"));
    let auth = metrics(&cluster.auth);
    let called = "grpc_server_handled_total{grpc_service=\"wayleave.auth.v1.Public\",grpc_method=\"Join\",grpc_code=\"OK\"} 3";
    assert!(has_line(&auth, called), "{auth}");
    assert!(has_line(&auth, "wayleave_connected_resources{type=\"node\"} 1"));
    for daemon in daemons(cluster) {
        let text = metrics(daemon);
        for name in ["web-1", "alice", "127.0.0.1"] {
            assert!(!text.contains(name), "{} tells {name}", daemon.name());
        }
    }
}

/// Every metric of the cluster, with its type and meaning.
fn families(cluster: &Cluster) -> BTreeMap<String, (String, String)> {
    let mut families = BTreeMap::new();
    for daemon in daemons(cluster) {
        let text = metrics(daemon);
        let mut help = "";
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                help = rest.split_once(' ').expect("a name and a text").1;
            } else if let Some((name, kind)) =
                line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
            {
                families.insert(name.to_owned(), (kind.to_owned(), help.to_owned()));
            }
        }
    }
    families
}

fn the_reference_names_every_metric(cluster: &mut Cluster) {
    let page =
        std::fs::read_to_string(repository().join("docs/reference/metrics.md")).expect("the page is there");
    let rows: BTreeSet<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let wanted: BTreeSet<String> = families(cluster)
        .into_iter()
        .map(|(name, (kind, help))| format!("| `{name}` | {kind} | {help} |"))
        .collect();
    let wanted_rows: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
    let missing: Vec<_> = wanted_rows.difference(&rows).collect();
    let stale: Vec<_> = rows.difference(&wanted_rows).collect();
    assert!(missing.is_empty() && stale.is_empty(), "missing {missing:#?}\nnot there any more {stale:#?}");
}

fn dashboard_and_rules_name_metrics_that_exist(cluster: &mut Cluster) {
    let known = families(cluster);
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).expect(path);
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/wayleave.json")).expect("JSON");
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let targets = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        expressions
            .extend(targets.iter().map(|target| target["expr"].as_str().expect("an expression").to_owned()));
    }
    let rules = read("deploy/prometheus/wayleave.rules.yaml");
    expressions
        .extend(rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned));
    assert!(expressions.len() > 50, "{}", expressions.len());
    for expression in expressions {
        let named = metric_names(&expression);
        assert!(!named.is_empty(), "{expression}");
        for name in named.iter().filter(|name| *name != "up") {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let is_known = known.contains_key(name)
                || family
                    .is_some_and(|family| known.get(family).is_some_and(|(kind, _)| kind == "histogram"));
            assert!(is_known, "{name} in {expression}");
        }
    }
}

/// The names in an expression of PromQL that are no functions, operators or labels.
fn metric_names(expression: &str) -> Vec<String> {
    let mut rest = String::new();
    let mut depth = 0usize;
    for c in expression.chars() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            c if depth == 0 => rest.push(c),
            _ => {}
        }
    }
    // What stands behind `by` are labels.
    while let Some(start) = rest.find("by (") {
        let end = rest[start..].find(')').map_or(rest.len(), |end| start + end + 1);
        rest.replace_range(start..end, "");
    }
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut names = Vec::new();
    for word in rest.split(|c: char| !is_word(c)).filter(|word| !word.is_empty()) {
        let is_function = rest.contains(&format!("{word}("));
        let is_other = ["and", "or", "unless", "sum", "offset", "15m"].contains(&word);
        let is_number = word.starts_with(|c: char| c.is_ascii_digit());
        if !is_function && !is_other && !is_number {
            names.push(word.to_owned());
        }
    }
    names
}

fn without_auth_proxies_go_on_and_say_so(cluster: &mut Cluster) {
    cluster.auth.kill();
    for proxy in &cluster.proxies {
        wait_until("the proxy to notice", || has_reason(&readiness(&proxy.daemon), 200, "auth_unreachable"));
        assert!(has_line(&metrics(&proxy.daemon), "proxy_auth_connected{stream=\"cluster\"} 0"));
        assert!(has_line(&metrics(&proxy.daemon), "process_state 1"));
    }
    let _done = cluster.ssh(&cluster.identity(), 0).run("web-1", &[], "true").output().ended_with(0);
    cluster.auth.start();
    cluster.wait_auth();
    for proxy in &cluster.proxies {
        wait_until("the proxy to be well again", || {
            readiness(&proxy.daemon).is_some_and(|(_, body)| body["status"] == "ok")
        });
    }
}

fn a_draining_proxy_is_not_ready_and_an_agent_without_proxies_neither(cluster: &mut Cluster) {
    let proxies = &mut cluster.proxies;
    for proxy in proxies.iter() {
        proxy.daemon.signal(nix::sys::signal::Signal::SIGTERM);
    }
    wait_until("the agent to be cut off", || {
        has_reason(&readiness(&cluster.nodes[0].daemon), 503, "no_tunnels")
    });
    for proxy in proxies.iter_mut() {
        assert!(proxy.daemon.stop().is_some());
        proxy.daemon.start();
    }
    wait_until("the agent to be back", || {
        readiness(&cluster.nodes[0].daemon).is_some_and(|(status, _)| status == 200)
    });
}
