//! Row 10: what an idle tunnel costs the proxy that holds it.

use crate::daemon::pause;
use crate::fleet::Fleet;
use crate::loader::number;
use crate::place::Place;
use crate::proc_fs::{memory, socket_memory_kib};
use crate::report::{Findings, Judgement};
use crate::sample::Series;
use anyhow::Result;

const TUNNEL_MAX_KIB: f64 = 20.0;
const TUNNEL_STRETCH_KIB: f64 = 12.0;
const KIB_PER_MIB: f64 = 1_024.0;
/// Tunnels of a proxy that are there before the first look: what the process needs for the first ones is not of each.
const FIRST: u64 = 100;
/// Proxies of the larger cluster.
const PROXIES: usize = 4;

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    let mut findings = Findings { is_single: true, ..Findings::default() };
    for proxies in [1, PROXIES] {
        measure_with(place, proxies, &mut findings)?;
    }
    Ok(findings)
}

fn measure_with(place: &mut Place<'_>, proxies: usize, findings: &mut Findings) -> Result<()> {
    place.clear();
    let (each, idle) = (place.options.tunnels, place.options.idle);
    let all = each * proxies as u64;
    eprintln!("  starting Auth, {proxies} proxies and {all} simulated agents");
    let mut fleet = Fleet::start(place.site()?, all, proxies)?;
    let firsts = |proxy: usize| proxy as u64 * each;
    for proxy in 0..proxies {
        fleet.connect(proxy, firsts(proxy), FIRST)?;
        fleet.sweep(proxy, firsts(proxy), FIRST)?;
    }
    pause(idle.min(std::time::Duration::from_secs(10)));
    let (before, sockets_before) = (anonymous_kib(&fleet)?, socket_memory_kib()?);
    let (mut connecting, mut dialling) = (0.0, 0.0);
    for proxy in 0..proxies {
        let connected = fleet.connect(proxy, firsts(proxy) + FIRST, each - FIRST)?;
        connecting += number(&connected, "seconds")?;
    }
    let up = anonymous_kib(&fleet)?;
    for proxy in 0..proxies {
        dialling += number(&fleet.sweep(proxy, firsts(proxy) + FIRST, each - FIRST)?, "seconds")?;
    }
    let busy = anonymous_kib(&fleet)?;
    eprintln!("  {idle:?} idle");
    pause(idle);
    let (after, sockets_after) = (anonymous_kib(&fleet)?, socket_memory_kib()?);
    let count = (all - FIRST * proxies as u64) as f64;
    let name = if proxies == 1 { "one proxy".to_owned() } else { format!("{proxies} proxies") };
    findings.notes.push(format!(
        "{name}, {each} tunnels each, connected in {connecting:.0} s ({:.0} a second, TLS of both ends on the same cores), \
         each dialled once ({dialling:.0} s), then {} s idle. Growth of RssAnon beyond {FIRST} tunnels a proxy.",
        count / connecting,
        idle.as_secs()
    ));
    findings.notes.push(format!(
        "{name}: kernel memory of TCP sockets (both ends, /proc/net/sockstat) grew by {:.1} KiB a tunnel.",
        (sockets_after - sockets_before) / count
    ));
    for (what, kib) in [
        ("RssAnon of a tunnel, idle after a dial", after),
        ("RssAnon of a tunnel, just after the dials", busy),
        ("RssAnon of a tunnel, connected and not dialled", up),
    ] {
        findings.series.push(Series::new(format!("{name}: {what}"), "KiB", vec![(kib - before) / count])?);
    }
    let (what, value) = (format!("{name}: memory of an idle tunnel"), (after - before) / count);
    findings.judgements.push(Judgement::at_most(what.clone(), value, TUNNEL_MAX_KIB).in_unit("KiB"));
    findings.judgements.push(Judgement::at_most(what, value, TUNNEL_STRETCH_KIB).in_unit("KiB").stretched());
    Ok(())
}

/// Of all proxies together.
fn anonymous_kib(fleet: &Fleet) -> Result<f64> {
    fleet.proxies.iter().map(|proxy| Ok(memory(proxy.daemon.pid())?.anonymous_mib * KIB_PER_MIB)).sum()
}
