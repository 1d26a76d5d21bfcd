//! What operators use: `way top`, `way get routes`, traces at a collector, and the doctor on set-ups that are really broken.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wayleave_scenario::{Checks, Cluster, Output, check_all, free_port, wait_until, wayleave};

/// The doctor waits for what does not answer.
const DOCTOR_LIMIT: Duration = Duration::from_secs(90);

/// Spans as they came, without what surrounds them.
type Spans = Arc<Mutex<Vec<Value>>>;

#[test]
fn operators_see_what_happens_and_what_is_wrong() {
    let (collector, spans) = start_collector();
    let tracing = format!(
        "connection_limits:\n    max_connections: 5000\ntracing_service:\n  exporter_url: http://{collector}\n  \
         sampling_rate_per_million: 1000000"
    );
    let mut cluster = Cluster::builder("operating")
        .proxies(2)
        .nodes(&["web-1"])
        .peering(1)
        .instance_lines(&["shutdown_timeout: 2s", &tracing])
        .start();
    let mut checks = Checks::default();
    checks.run("a_connection_is_traced_through_two_proxies_and_the_agent", || {
        a_connection_is_traced_through_two_proxies_and_the_agent(&mut cluster, &spans);
    });
    checks.run("a_trace_begins_in_the_client_where_the_environment_names_a_collector", || {
        a_trace_begins_in_the_client(&mut cluster, collector, &spans);
    });
    check_all!(checks, &mut cluster;
        top_shows_proxies_and_needs_a_role,
        routes_say_who_holds_a_tunnel,
        the_doctor_finds_nothing_where_nothing_is_wrong,
        the_doctor_names_unknown_names_and_wrong_pins,
        the_doctor_compares_the_clock_with_that_of_the_cluster,
        the_doctor_finds_what_loses_large_packets,
        the_doctor_finds_a_balancer_that_ends_tls,
        the_doctor_finds_small_limits_and_open_directories,
        the_doctor_finds_peers_that_are_not_reached,
    );
    checks.end();
}

fn enters(cluster: &Cluster, proxy: usize) {
    let done = cluster.ssh(&cluster.identity(), proxy).run("web-1", &[], "true").output();
    let _entered = done.ended_with(0);
}

fn top_shows_proxies_and_needs_a_role(cluster: &mut Cluster) {
    enters(cluster, 0);
    let mut top = Value::Null;
    wait_until("both proxies to report", || {
        top = cluster.admin().args(["top", "--once", "--format", "json"]).json();
        let proxies = top["proxies"].as_array().expect("a list");
        let dials: u64 = proxies.iter().filter_map(|proxy| proxy["dials"].as_u64()).sum();
        let agents: u64 = proxies.iter().filter_map(|proxy| proxy["agents"].as_u64()).sum();
        // Rates come with the second report.
        let is_told = |proxy: &Value| proxy["peers_ready"] == 1 && proxy["dials_per_second"].is_number();
        dials > 0 && agents == 1 && proxies.iter().all(is_told)
    });
    assert_eq!(top["nodes"]["online"], 1, "{top:#}");
    for proxy in top["proxies"].as_array().expect("a list") {
        assert_eq!(proxy["state"], "up", "{top:#}");
    }
    let text = cluster.admin().args(["top", "--once"]).stdout();
    assert!(text.contains("1 of 1 nodes online, 2 of 2 proxies") && text.contains("proxy-1"), "{text}");
    let piped = cluster.admin().arg("top").output().ended_with(2);
    assert!(piped.stderr_text().contains("--once"), "{piped}");
    let alice = cluster.way(&cluster.identity(), 0);
    let _denied = alice.args(["top", "--once"]).output().ended_with(3);
    let _denied = cluster.way(&cluster.identity(), 0).args(["get", "routes"]).output().ended_with(3);
}

fn routes_say_who_holds_a_tunnel(cluster: &mut Cluster) {
    let routes = cluster.admin().args(["get", "routes", "--format", "json"]).json();
    assert_eq!(routes.as_array().map(Vec::len), Some(1), "{routes:#}");
    assert_eq!(routes[0]["name"], "web-1");
    let holder = cluster.holders("web-1");
    let wanted = format!("proxy-{}", holder[0] + 1);
    assert_eq!(routes[0]["proxies"][0]["name"], wanted.as_str(), "{routes:#}");
    let text = cluster.admin().args(["get", "routes"]).stdout();
    assert!(text.lines().any(|line| line.starts_with("web-1 ") && line.ends_with(&wanted)), "{text}");
}

fn a_connection_is_traced_through_two_proxies_and_the_agent(cluster: &mut Cluster, spans: &Spans) {
    let home = cluster.holders("web-1")[0];
    enters(cluster, 1 - home);
    let mut chain = None;
    wait_until("the spans of one connection through both proxies", || {
        let spans = spans.lock().expect("no thread panics");
        chain = spans.iter().filter(|span| span["name"] == "proxy.peer_dial").find_map(|peer| {
            let of = |name: &str| {
                let mine = spans.iter().find(|s| s["name"] == name && s["traceId"] == peer["traceId"]);
                mine.cloned()
            };
            Some([of("proxy.dial")?, of("proxy.attempt")?, peer.clone(), of("agent.stream")?])
        });
        chain.is_some()
    });
    let [dial, attempt, peer, agent] = chain.expect("it was found");
    assert_eq!(dial["parentSpanId"], Value::Null);
    assert_eq!(attempt["parentSpanId"], dial["spanId"]);
    assert_eq!(peer["parentSpanId"], attempt["spanId"]);
    assert_eq!(agent["parentSpanId"], peer["spanId"]);
    let way = dial["attributes"].as_array().expect("attributes").iter().find(|a| a["key"] == "wayleave.way");
    assert_eq!(way.map(|way| &way["value"]["stringValue"]), Some(&"peer-tunnel".into()));
    for span in [&dial, &attempt, &peer, &agent] {
        let text = span.to_string();
        assert!(!text.contains("web-1") && !text.contains("alice"), "no names: {text}");
        assert_eq!(span["traceId"].as_str().map(str::len), Some(32));
    }
}

fn a_trace_begins_in_the_client(cluster: &mut Cluster, collector: SocketAddr, spans: &Spans) {
    let ssh = |endpoint: &str, name: &str| {
        let way = cluster.way(&cluster.identity(), 0).env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        way.args(["ssh", &format!("root@{name}"), "true"]).output()
    };
    let _entered = ssh(&format!("http://{collector}"), "web-1").ended_with(0);
    let _unknown = ssh(&format!("http://{collector}"), "web-9").ended_with(255);
    let badly = ssh("collector", "web-1").ended_with(0);
    assert!(badly.stderr_text().contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{badly}");
    let mut chain = None;
    wait_until("the spans of a connection from the client to the agent", || {
        let spans = spans.lock().expect("no thread panics");
        let of = |name: &str, trace: &Value| {
            spans.iter().find(|span| span["name"] == name && span["traceId"] == *trace).cloned()
        };
        let roots = spans.iter().filter(|span| span["name"] == "way.dial");
        let chains = roots.map(|root| {
            let trace = &root["traceId"];
            (root.clone(), of("way.connect", trace), of("proxy.dial", trace), of("agent.stream", trace))
        });
        let chains = chains.collect::<Vec<_>>();
        chain = chains.iter().find(|(.., agent)| agent.is_some()).cloned();
        chains.len() == 2 && chain.is_some()
    });
    let (root, connect, dial, _) = chain.expect("it was found");
    assert_eq!(root["parentSpanId"], Value::Null);
    for child in [connect, dial] {
        assert_eq!(child.expect("it came with the agent's")["parentSpanId"], root["spanId"]);
    }
    let spans = spans.lock().expect("no thread panics");
    for span in spans.iter().filter(|span| span["name"] == "way.dial") {
        let text = span.to_string();
        assert!(!text.contains("web-") && !text.contains("alice"), "no names: {text}");
    }
    let failed = |span: &&Value| span["name"] == "way.dial" && span["status"]["message"] == "exit 4";
    assert_eq!(spans.iter().filter(failed).count(), 1);
}

/// Takes what processes export, as a collector does.
fn start_collector() -> (SocketAddr, Spans) {
    let address = free_port();
    let listener = TcpListener::bind(address).expect("a free port");
    let spans = Spans::default();
    let kept_by_thread = spans.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if let Some(body) = take_request(stream) {
                let mut kept = kept_by_thread.lock().expect("no thread panics");
                for resource in body["resourceSpans"].as_array().into_iter().flatten() {
                    for scope in resource["scopeSpans"].as_array().into_iter().flatten() {
                        kept.extend(scope["spans"].as_array().into_iter().flatten().cloned());
                    }
                }
            }
        }
    });
    (address, spans)
}

fn take_request(mut stream: TcpStream) -> Option<Value> {
    let mut received = Vec::new();
    let mut byte = [0];
    while !received.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        received.push(byte[0]);
    }
    let head = String::from_utf8(received).ok()?.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok()?;
    serde_json::from_slice(&body).ok()
}

/// What the doctor says of a configuration; its findings by check.
fn doctor(cluster: &Cluster, config: &Path) -> (Value, Output) {
    let program = cluster.scene.wayleave().args(["doctor", "--format", "json", "-c"]).arg(config);
    let output = program.limit(DOCTOR_LIMIT).output();
    (serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}")), output)
}

fn problems(report: &Value) -> Vec<(String, String)> {
    let findings = report["findings"].as_array().expect("findings").iter();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let bad = findings.filter(|finding| finding["status"] == "problem");
    bad.map(|finding| {
        assert!(!text(finding, "mend").is_empty(), "every problem says what to do: {finding}");
        (text(finding, "check"), text(finding, "found"))
    })
    .collect()
}

/// The one problem of a configuration is of this check and says this.
#[track_caller]
fn check(cluster: &Cluster, config: &Path, code: &str, part: &str) {
    let (report, output) = doctor(cluster, config);
    let problems = problems(&report);
    let found = problems.iter().any(|(check, text)| check == code && text.contains(part));
    assert!(found, "{code}: {part} in {report:#}");
    let _failed = output.ended_with(1);
}

fn node_config(cluster: &Cluster) -> PathBuf {
    cluster.scene.path("web-1.yaml")
}

/// The file of the agent, changed.
fn changed(cluster: &Cluster, name: &str, change: impl FnOnce(String) -> String) -> PathBuf {
    let text = std::fs::read_to_string(node_config(cluster)).expect("the file is there");
    let text = text.replace(
        &cluster.nodes[0].file.data_dir.display().to_string(),
        &cluster.scene.path("never-started").display().to_string(),
    );
    cluster.scene.write(name, change(text))
}

fn proxy_server(cluster: &Cluster) -> String {
    let text = std::fs::read_to_string(node_config(cluster)).expect("the file is there");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("proxy_server: "));
    line.expect("it names a proxy").to_owned()
}

fn the_doctor_finds_nothing_where_nothing_is_wrong(cluster: &mut Cluster) {
    for config in ["web-1.yaml", "proxy-1.yaml"] {
        let (report, output) = doctor(cluster, &cluster.scene.path(config));
        let found = problems(&report);
        // The machine that runs the tests may itself have little room.
        let others: Vec<_> = found.iter().filter(|(check, _)| check != "disk" && check != "limits").collect();
        assert!(others.is_empty(), "{config}: {report:#} {output}");
        for check in ["auth", "clock", "pins"] {
            let findings = report["findings"].as_array().expect("findings");
            assert!(findings.iter().any(|finding| finding["check"] == check), "{check} in {report:#}");
        }
    }
    let (report, _) = doctor(cluster, &cluster.scene.path("proxy-1.yaml"));
    let peers = report["findings"].as_array().expect("findings").iter().filter(|f| f["check"] == "peers");
    assert_eq!(peers.count(), 1, "the other proxy: {report:#}");
}

fn the_doctor_names_unknown_names_and_wrong_pins(cluster: &mut Cluster) {
    let address = proxy_server(cluster);
    let config = changed(cluster, "dns.yaml", |text| text.replace(&address, "proxy.invalid:3080"));
    check(cluster, &config, "dns", "proxy.invalid");
    let wrong = format!("sha256:{}", "0f".repeat(32));
    let pins = cluster.pins.clone();
    let config =
        changed(cluster, "pins.yaml", |text| pins.iter().fold(text, |text, pin| text.replace(pin, &wrong)));
    check(cluster, &config, "pins", "no pin of the cluster scenario");
}

fn the_doctor_compares_the_clock_with_that_of_the_cluster(cluster: &mut Cluster) {
    for (offset, part) in [("+90s", "ahead of that of Auth"), ("-90s", "behind that of Auth")] {
        let program = cluster.scene.program("faketime").args(["-f", offset]).arg(wayleave());
        let program = program.args(["doctor", "--format", "json", "-c"]).arg(node_config(cluster));
        let output = program.limit(DOCTOR_LIMIT).output();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output}"));
        let found = problems(&report);
        let clock = found.iter().find(|(check, _)| check == "clock");
        assert!(clock.is_some_and(|(_, text)| text.contains(part)), "{offset}: {report:#}");
    }
}

/// A wire on which the first packets of a connection get lost when they are too many.
fn the_doctor_finds_what_loses_large_packets(cluster: &mut Cluster) {
    let target: SocketAddr = proxy_server(cluster).parse().expect("an address");
    let narrow = free_port();
    let listener = TcpListener::bind(narrow).expect("a free port");
    std::thread::spawn(move || {
        let mut lost = Vec::new();
        for near in listener.incoming().map_while(Result::ok) {
            let mut first = [0; 1200];
            let Ok(count) = near.peek(&mut first) else { continue };
            if count == first.len() {
                lost.push(near);
                continue;
            }
            let Ok(far) = TcpStream::connect(target) else { continue };
            relay(near, far);
        }
    });
    let address = proxy_server(cluster);
    let config = changed(cluster, "mtu.yaml", |text| text.replace(&address, &narrow.to_string()));
    check(cluster, &config, "mtu", "not those of several packets");
}

fn relay(near: TcpStream, far: TcpStream) {
    let (Ok(mut from_near), Ok(mut from_far)) = (near.try_clone(), far.try_clone()) else { return };
    let (mut near, mut far) = (near, far);
    std::thread::spawn(move || std::io::copy(&mut from_near, &mut far));
    std::thread::spawn(move || std::io::copy(&mut from_far, &mut near));
}

fn the_doctor_finds_a_balancer_that_ends_tls(cluster: &mut Cluster) {
    let (key, certificate) = (cluster.scene.path("balancer.key"), cluster.scene.path("balancer.crt"));
    let openssl = || cluster.scene.program("openssl");
    let made = openssl()
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    let _made = made.ended_with(0);
    let address = free_port();
    let serving =
        openssl().args(["s_server", "-www", "-alpn", "http/1.1", "-accept"]).arg(address.to_string());
    let _serving = serving.arg("-key").arg(&key).arg("-cert").arg(&certificate).start();
    wait_until("the balancer", || TcpStream::connect(address).is_ok());
    let real = proxy_server(cluster);
    let config = changed(cluster, "alpn.yaml", |text| text.replace(&real, &address.to_string()));
    check(cluster, &config, "alpn", "does not let the protocols of Wayleave through");
}

fn the_doctor_finds_small_limits_and_open_directories(cluster: &mut Cluster) {
    let line = format!(
        "ulimit -n 1000; exec {} doctor --format json -c {}",
        wayleave().display(),
        node_config(cluster).display()
    );
    let output = cluster.scene.program("sh").args(["-c", &line]).limit(DOCTOR_LIMIT).output();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output}"));
    assert!(problems(&report).iter().any(|(check, _)| check == "limits"), "{report:#}");
    let open = cluster.scene.path("open-to-all");
    std::fs::create_dir(&open).expect("it is made");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&open, mode).expect("it is ours");
    let never = cluster.scene.path("never-started").display().to_string();
    let config = changed(cluster, "open.yaml", |text| text.replace(&never, &open.display().to_string()));
    check(cluster, &config, "data_dir", "open to others");
}

fn the_doctor_finds_peers_that_are_not_reached(cluster: &mut Cluster) {
    let of_proxies = |cluster: &Cluster, status: &str, part: &str| {
        let (report, _) = doctor(cluster, &cluster.auth_config);
        let findings = report["findings"].as_array().expect("findings").iter();
        let mut of_proxies = findings.filter(|f| f["check"] == "proxies" && f["status"] == status);
        of_proxies.any(|finding| finding["found"].as_str().is_some_and(|found| found.contains(part)))
    };
    assert!(of_proxies(cluster, "ok", "proxy-1") && of_proxies(cluster, "ok", "proxy-2"));
    cluster.proxies[1].daemon.kill();
    check(cluster, &cluster.scene.path("proxy-1.yaml"), "peers", "is not reached from here");
    // On the Auth host it is told what the other proxy sees.
    wait_until("the first proxy to miss the second", || {
        of_proxies(cluster, "problem", "the proxy proxy-1") && of_proxies(cluster, "problem", "proxy-2")
    });
    cluster.proxies[1].daemon.start();
    cluster.wait_reachable(1, "web-1");
}
