//! `way top`: how the cluster is doing now, again and again.

use crate::access::{Access, call};
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::output::{print, print_bytes, show, table};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;
use wayleave_api::auth::{GetOverviewRequest, GetOverviewResponse, ProxyOverview, ProxyStatusReport};

/// Time between two looks, in seconds.
const INTERVAL_SECONDS_MIN: u64 = 1;
const INTERVAL_SECONDS_MAX: u64 = 3600;
/// How long `--once` waits for the second look that rates need.
const RATE_WAIT: Duration = Duration::from_millis(2500);
/// Moves to the upper left corner and clears what is below.
const HOME_AND_CLEAR: &str = "\x1b[H\x1b[J";

/// Watch how the cluster is doing: proxies, tunnels, dials, streams, peers, Auth
///
/// way top                        every two seconds, until Ctrl-C
/// way top --interval 10          less often
/// way top --once --format json   once, for programs
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct TopArgs {
    /// Print once and end.
    #[arg(long)]
    once: bool,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(INTERVAL_SECONDS_MIN..=INTERVAL_SECONDS_MAX))]
    interval: u64,
}

/// The cluster, as programs read it.
#[derive(Debug, Serialize)]
struct ClusterView {
    cluster_name: String,
    auth: AuthView,
    nodes: CountView,
    proxies: Vec<ProxyView>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct AuthView {
    version: String,
    backend: String,
    policy_revision: String,
    audit_queue: u64,
    calls: u64,
}

#[derive(Debug, Serialize)]
struct CountView {
    registered: u64,
    online: u64,
}

#[derive(Debug, Serialize)]
struct ProxyView {
    name: String,
    host_id: String,
    version: String,
    zone: String,
    state: &'static str,
    uptime_seconds: u64,
    agents: u64,
    tunnels: u64,
    client_streams: u64,
    tunnel_streams: u64,
    dials: u64,
    dials_failed: u64,
    /// Between the last two reports; absent while there is one only.
    dials_per_second: Option<f64>,
    bytes_per_second: Option<f64>,
    routes_fresh: u64,
    routes_suspect: u64,
    peers_ready: u64,
    peers_not_ready: u64,
    report_age_seconds: Option<u64>,
}

/// The last report of each proxy but one, for rates.
type Before = BTreeMap<String, ProxyStatusReport>;

pub(crate) async fn top(args: &TopArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let access = Access::find(global)?;
    let mut before = Before::new();
    let mut answer = ask(&access).await?;
    if args.once {
        remember(&mut before, &answer);
        tokio::time::sleep(RATE_WAIT).await;
        let view = ClusterView::new(ask(&access).await?, &before);
        show(global.format(), &view, || text(&view))?;
        return Ok(Exit::Done);
    }
    if !std::io::stdout().is_terminal() {
        return Err(Failure::usage("way top shows itself on a terminal")
            .hint("write `way top --once`, with --format json for programs"));
    }
    loop {
        let mut shown = answer.clone();
        shown.proxies.sort_by(|a, b| name(a).cmp(name(b)));
        let view = ClusterView::new(shown, &before);
        print_bytes(HOME_AND_CLEAR.as_bytes())?;
        print(&format!("{}\nEvery {} s; Ctrl-C ends.\n", text(&view), args.interval))?;
        remember(&mut before, &answer);
        tokio::time::sleep(Duration::from_secs(args.interval)).await;
        answer = ask(&access).await?;
    }
}

async fn ask(access: &Access) -> Result<GetOverviewResponse, Failure> {
    call(access.admin()?.get_overview(GetOverviewRequest {})).await
}

/// Keeps reports until a newer one has come.
fn remember(before: &mut Before, answer: &GetOverviewResponse) {
    for proxy in &answer.proxies {
        let (Some(record), Some(report)) = (&proxy.record, &proxy.report) else { continue };
        before.insert(record.host_id.clone(), *report);
    }
}

fn name(proxy: &ProxyOverview) -> &str {
    proxy.record.as_ref().map_or("", |record| record.name.as_str())
}

impl ClusterView {
    fn new(answer: GetOverviewResponse, before: &Before) -> Self {
        let mut problems = answer.problems;
        for proxy in &answer.proxies {
            let told = proxy.record.iter().flat_map(|record| &record.problems);
            problems.extend(told.map(|problem| format!("{}: {problem}", name(proxy))));
        }
        Self {
            cluster_name: answer.cluster_name,
            auth: AuthView {
                version: answer.version,
                backend: answer.backend,
                policy_revision: format!("{}.{}", answer.policy_generation, answer.policy_counter),
                audit_queue: answer.audit_queue,
                calls: answer.calls,
            },
            nodes: CountView { registered: answer.nodes_registered, online: answer.nodes_online },
            proxies: answer.proxies.iter().map(|proxy| ProxyView::new(proxy, before)).collect(),
            problems,
        }
    }
}

impl ProxyView {
    fn new(proxy: &ProxyOverview, before: &Before) -> Self {
        let record = proxy.record.clone().unwrap_or_default();
        let report = proxy.report.unwrap_or_default();
        let state = match (proxy.online, record.draining || report.draining) {
            (false, _) => "offline",
            (true, true) => "draining",
            (true, false) => "up",
        };
        let earlier = before.get(&record.host_id).filter(|earlier| {
            earlier.incarnation == report.incarnation && earlier.uptime_ms < report.uptime_ms
        });
        let rate = |count: fn(&ProxyStatusReport) -> u64| {
            let earlier = earlier?;
            let seconds = Duration::from_millis(report.uptime_ms.saturating_sub(earlier.uptime_ms));
            let more = count(&report).saturating_sub(count(earlier));
            let rate = more as f64 / seconds.as_secs_f64();
            Some((rate * 10.0).round() / 10.0)
        };
        Self {
            dials_per_second: rate(|report| report.dials_ok.saturating_add(report.dials_failed)),
            bytes_per_second: rate(|r| r.bytes_from_clients.saturating_add(r.bytes_to_clients)),
            name: record.name,
            host_id: record.host_id,
            version: record.version,
            zone: record.zone,
            state,
            uptime_seconds: report.uptime_ms / 1000,
            agents: report.agents,
            tunnels: report.tunnels,
            client_streams: report.client_streams,
            tunnel_streams: report.tunnel_streams,
            dials: report.dials_ok.saturating_add(report.dials_failed),
            dials_failed: report.dials_failed,
            routes_fresh: report.routes_fresh,
            routes_suspect: report.routes_suspect,
            peers_ready: report.peers_ready,
            peers_not_ready: report.peers_connecting.saturating_add(report.peers_failing),
            report_age_seconds: proxy.report.as_ref().map(|_| proxy.report_age_ms / 1000),
        }
    }
}

fn text(view: &ClusterView) -> String {
    let online = view.proxies.iter().filter(|proxy| proxy.state != "offline").count();
    let mut text = format!(
        "{}   Auth {} on {}, policy {}, {} calls, {} changes waiting\n{} of {} nodes online, {online} of {} proxies\n\n",
        view.cluster_name,
        view.auth.version,
        view.auth.backend,
        view.auth.policy_revision,
        view.auth.calls,
        view.auth.audit_queue,
        view.nodes.online,
        view.nodes.registered,
        view.proxies.len(),
    );
    let rows: Vec<Vec<String>> = view.proxies.iter().map(row).collect();
    let header = [
        "Proxy", "State", "Up", "Agents", "Streams", "Dials/s", "Failed", "Bytes/s", "Routes", "Peers",
        "Seen",
    ];
    text.push_str(&table(&header, &rows));
    if !view.problems.is_empty() {
        text.push('\n');
    }
    for problem in &view.problems {
        text.push_str(&format!("! {}\n", problem.replace(char::is_control, " ")));
    }
    text
}

fn row(proxy: &ProxyView) -> Vec<String> {
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
    let with = |all: u64, some: u64, word: &str| match some {
        0 => all.to_string(),
        some => format!("{all} ({some} {word})"),
    };
    vec![
        proxy.name.clone(),
        proxy.state.to_owned(),
        duration(proxy.uptime_seconds),
        proxy.agents.to_string(),
        proxy.client_streams.to_string(),
        rate(proxy.dials_per_second),
        proxy.dials_failed.to_string(),
        proxy.bytes_per_second.map_or_else(|| "-".to_owned(), bytes),
        with(proxy.routes_fresh.saturating_add(proxy.routes_suspect), proxy.routes_suspect, "suspect"),
        with(proxy.peers_ready, proxy.peers_not_ready, "missing"),
        proxy.report_age_seconds.map_or_else(|| "never".to_owned(), |age| format!("{age} s ago")),
    ]
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let (mut count, mut unit) = (count, 0);
    while count >= 1024.0 && unit < units.len().saturating_sub(1) {
        count /= 1024.0;
        unit += 1;
    }
    format!("{count:.1} {}", units.get(unit).copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wayleave_api::auth::ProxyRecord;

    fn overview(uptime_ms: u64, dials_ok: u64) -> GetOverviewResponse {
        let record = ProxyRecord {
            host_id: "id".to_owned(),
            name: "proxy-1".to_owned(),
            problems: vec!["at lb:3021 another proxy answers".to_owned()],
            ..ProxyRecord::default()
        };
        let report = ProxyStatusReport {
            incarnation: 1,
            uptime_ms,
            dials_ok,
            peers_ready: 2,
            routes_fresh: 5,
            routes_suspect: 1,
            ..ProxyStatusReport::default()
        };
        GetOverviewResponse {
            cluster_name: "demo".to_owned(),
            nodes_registered: 7,
            nodes_online: 6,
            proxies: vec![ProxyOverview {
                record: Some(record),
                report: Some(report),
                online: true,
                report_age_ms: 1500,
            }],
            ..GetOverviewResponse::default()
        }
    }

    #[test]
    fn rates_are_between_two_reports_of_one_life() {
        let mut before = Before::new();
        assert_eq!(ClusterView::new(overview(1_000, 10), &before).proxies[0].dials_per_second, None);
        remember(&mut before, &overview(1_000, 10));
        let view = ClusterView::new(overview(3_000, 25), &before);
        assert_eq!(view.proxies[0].dials_per_second, Some(7.5));
        let again = ClusterView::new(overview(1_000, 10), &before);
        assert_eq!(again.proxies[0].dials_per_second, None, "the same report says nothing");
    }

    #[test]
    fn the_view_for_people_has_what_they_look_for() {
        let shown = text(&ClusterView::new(overview(90_000, 10), &Before::new()));
        for part in ["6 of 7 nodes online, 1 of 1 proxies", "proxy-1 up    1m", "6 (1 suspect)", "1 s ago"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(shown.ends_with("! proxy-1: at lb:3021 another proxy answers\n"), "{shown}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!((bytes(0.0), bytes(1536.0)), ("0.0 B".to_owned(), "1.5 KiB".to_owned()));
        assert_eq!(
            (duration(59), duration(3_660), duration(90_000)),
            ("59s".into(), "1h01m".into(), "1d01h".into())
        );
    }
}
