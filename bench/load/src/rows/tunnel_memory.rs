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
/// Tunnels that are there before the first look: what the process needs for the first ones is not of each.
const FIRST: u64 = 100;

pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    place.clear();
    let (count, idle) = (place.options.tunnels, place.options.idle);
    eprintln!("  starting Auth, a proxy and {count} simulated agents");
    let mut fleet = Fleet::start(place.site()?, count + FIRST, 1)?;
    fleet.connect(0, 0, FIRST)?;
    fleet.sweep(0, 0, FIRST)?;
    pause(idle.min(std::time::Duration::from_secs(10)));
    let proxy = fleet.proxy(0)?.daemon.pid();
    let (before, sockets_before) = (memory(proxy)?, socket_memory_kib()?);
    let connected = fleet.connect(0, FIRST, count)?;
    let up = memory(proxy)?;
    let swept = fleet.sweep(0, FIRST, count)?;
    let busy = memory(proxy)?;
    eprintln!("  {idle:?} idle");
    pause(idle);
    let (after, sockets_after) = (memory(proxy)?, socket_memory_kib()?);
    let each = |mib: f64| (mib - before.anonymous_mib) * KIB_PER_MIB / count as f64;
    let mut findings = Findings { is_single: true, ..Findings::default() };
    let seconds = |report| number(report, "seconds");
    findings.notes.push(format!(
        "{count} tunnels, connected in {:.0} s ({:.0} a second, TLS of both ends on the same cores), each dialled once \
         ({:.0} s), then {} s idle. Growth of RssAnon beyond {FIRST} tunnels.",
        seconds(&connected)?,
        count as f64 / seconds(&connected)?,
        seconds(&swept)?,
        idle.as_secs()
    ));
    findings.notes.push(format!(
        "Kernel memory of TCP sockets (both ends, /proc/net/sockstat) grew by {:.1} KiB a tunnel.",
        (sockets_after - sockets_before) / count as f64
    ));
    let series = [
        ("RssAnon of a tunnel, idle after a dial", each(after.anonymous_mib)),
        ("RssAnon of a tunnel, just after the dials", each(busy.anonymous_mib)),
        ("RssAnon of a tunnel, connected and not dialled", each(up.anonymous_mib)),
    ];
    for (name, value) in series {
        findings.series.push(Series::new(name, "KiB", vec![value])?);
    }
    let value = each(after.anonymous_mib);
    let what = "memory of an idle tunnel".to_owned();
    findings.judgements.push(Judgement::at_most(what.clone(), value, TUNNEL_MAX_KIB).in_unit("KiB"));
    findings.judgements.push(Judgement::at_most(what, value, TUNNEL_STRETCH_KIB).in_unit("KiB").stretched());
    Ok(findings)
}
