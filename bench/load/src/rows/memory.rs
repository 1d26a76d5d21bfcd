//! Row 6: what a process keeps in memory when nothing happens any more.

use crate::cluster::{ALL_ROLES, AllRoles, NODE};
use crate::daemon::{Daemon, pause};
use crate::place::Place;
use crate::proc_fs::{Memory, memory_of_all};
use crate::report::{Findings, Judgement};
use crate::sample::Series;
use crate::watched;
use anyhow::Result;

const AGENT_MAX_MIB: f64 = 12.0;
const ALL_ROLES_MAX_MIB: f64 = 30.0;

/// A process with all roles, and an agent in one of its own that is connected to it.
struct Couple {
    agent: Daemon,
    daemon: Daemon,
    all_roles: AllRoles,
}

/// All couples stand side by side, so that they idle at the same time.
pub(super) fn measure(place: &mut Place<'_>) -> Result<Findings> {
    place.clear();
    let (runs, sessions, idle) = (place.options.runs, place.options.sessions, place.options.idle);
    let mut couples = Vec::new();
    for _ in 0..runs {
        let all_roles = AllRoles::new(place.site()?)?;
        let daemon = all_roles.start()?;
        let agent = all_roles.start_agent()?;
        couples.push(Couple { agent, daemon, all_roles });
    }
    eprintln!("  {idle:?} idle");
    pause(idle);
    let fresh_agents = memories(&couples, |couple| &couple.agent)?;
    let fresh = memories(&couples, |couple| &couple.daemon)?;
    eprintln!("  {sessions} sessions on each of {} agents", 2 * couples.len());
    for couple in &couples {
        for node in [NODE, ALL_ROLES] {
            for _ in 0..sessions {
                watched::time(couple.all_roles.ssh(node)?.arg("true"))?;
            }
        }
    }
    let busy_agents = memories(&couples, |couple| &couple.agent)?;
    eprintln!("  {idle:?} idle");
    pause(idle);
    let agents = memories(&couples, |couple| &couple.agent)?;
    let used = memories(&couples, |couple| &couple.daemon)?;
    let mut findings = Findings::default();
    findings.notes.push(format!(
        "{sessions} sessions of `ssh node true` on each agent, then {} s idle; one proxy carries both. VmRSS = RssAnon \
         + RssFile, of the process and of the one that its sessions are forked from; the goal is held against VmRSS, in which pages of the program count, though processes share them. \
         An idle process gives back free memory and lets go of pages of its program, which stay in the kernel's cache: \
         what the agent had right after the sessions is shown too.",
        idle.as_secs()
    ));
    let agent = series("agent after the sessions", &agents)?;
    let one = series("proxy + Auth + SSH after the sessions", &used)?;
    for (series, goal) in [(&agent, AGENT_MAX_MIB), (&one, ALL_ROLES_MAX_MIB)] {
        let [resident, ..] = series;
        findings
            .judgements
            .push(Judgement::at_most(resident.name.clone(), resident.median, goal).in_unit("MiB"));
    }
    let busy_agent = series("agent right after the sessions", &busy_agents)?;
    let fresh_agent = series("agent before any session", &fresh_agents)?;
    let fresh = series("proxy + Auth + SSH before (one session)", &fresh)?;
    Ok(findings.with([agent, one, busy_agent, fresh_agent, fresh].into_iter().flatten().collect()))
}

fn memories(couples: &[Couple], which: impl Fn(&Couple) -> &Daemon) -> Result<Vec<Memory>> {
    couples.iter().map(|couple| memory_of_all(which(couple).pid())).collect()
}

fn series(name: &str, memories: &[Memory]) -> Result<[Series; 3]> {
    let of = |what: &str, value: fn(&Memory) -> f64| {
        Series::new(format!("{name}, {what}"), "MiB", memories.iter().map(value).collect())
    };
    Ok([
        of("VmRSS", |m| m.resident_mib)?,
        of("RssAnon", |m| m.anonymous_mib)?,
        of("RssFile", |m| m.file_mib)?,
    ])
}
