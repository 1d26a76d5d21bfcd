//! Whether a process can do its work, and if not, why.
//!
//! Parts say what is wrong now whenever somebody asks ([`Health::check`]); nothing is remembered that could be out of
//! date. Only what keeps this process itself from its work makes it unready: a balancer that took every proxy away
//! because Auth is down would make a small failure a large one.

use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Findings of one answer; more are counted, not shown.
const FINDINGS_MAX: usize = 100;

/// How much something matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The process does its work, and somebody should look.
    Degraded,
    /// The process cannot take new work.
    Unready,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing, for programs.
    pub code: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong and what to do, for people.
    pub detail: String,
}

impl Finding {
    /// The process goes on.
    pub fn degraded(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, severity: Severity::Degraded, detail: detail.into() }
    }

    /// The process cannot take new work.
    pub fn unready(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, severity: Severity::Unready, detail: detail.into() }
    }
}

/// How a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not all services run yet.
    Starting,
    /// It cannot take new work.
    Unready,
    /// It works, and somebody should look.
    Degraded,
    /// All is well.
    Ok,
}

impl State {
    /// As the metric `process_state` says it.
    pub fn number(self) -> f64 {
        match self {
            Self::Ok => 0.0,
            Self::Degraded => 1.0,
            Self::Unready => 2.0,
            Self::Starting => 3.0,
        }
    }
}

/// How a process is, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// How it is.
    pub status: State,
    /// What is wrong, the worst first.
    pub reasons: Vec<Finding>,
}

type Check = Box<dyn Fn() -> Vec<Finding> + Send + Sync>;

/// The checks of a process. Clones are the same.
#[derive(Clone, Default)]
pub struct Health(Arc<Inner>);

#[derive(Default)]
struct Inner {
    has_started: AtomicBool,
    checks: Mutex<Vec<Check>>,
}

impl Health {
    /// Adds a check. It is called whenever somebody asks, and must be quick.
    pub fn check(&self, check: impl Fn() -> Vec<Finding> + Send + Sync + 'static) {
        self.lock().push(Box::new(check));
    }

    /// All services run.
    pub fn started(&self) {
        self.0.has_started.store(true, Ordering::Relaxed);
    }

    /// How the process is now.
    pub fn readiness(&self) -> Readiness {
        let mut reasons: Vec<Finding> = self.lock().iter().flat_map(|check| check()).collect();
        reasons.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.code.cmp(b.code)));
        let worst = reasons.first().map(|finding| finding.severity);
        let left_out = reasons.len().saturating_sub(FINDINGS_MAX);
        if left_out > 0 {
            reasons.truncate(FINDINGS_MAX);
            reasons.push(Finding::degraded("more", format!("{left_out} more findings are not shown")));
        }
        let status = match worst {
            _ if !self.0.has_started.load(Ordering::Relaxed) => State::Starting,
            Some(Severity::Unready) => State::Unready,
            Some(Severity::Degraded) => State::Degraded,
            None => State::Ok,
        };
        Readiness { status, reasons }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Check>> {
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_says_how_a_process_is() {
        let health = Health::default();
        assert_eq!(health.readiness().status, State::Starting);
        health.started();
        assert_eq!(health.readiness(), Readiness { status: State::Ok, reasons: Vec::new() });
        health.check(|| vec![Finding::degraded("auth_unreachable", "Auth does not answer")]);
        assert_eq!(health.readiness().status, State::Degraded);
        health.check(|| vec![Finding::unready("draining", "the process is ending")]);
        let readiness = health.readiness();
        assert_eq!(readiness.status, State::Unready);
        assert_eq!(readiness.reasons[0].code, "draining");
        let json = serde_json::to_string(&readiness).unwrap();
        assert!(json.starts_with("{\"status\":\"unready\",\"reasons\":[{\"code\":\"draining\""), "{json}");
    }

    #[test]
    fn f_an_answer_is_bounded() {
        let health = Health::default();
        health.check(|| (0..1000).map(|n| Finding::degraded("x", n.to_string())).collect());
        assert_eq!(health.readiness().reasons.len(), FINDINGS_MAX + 1);
    }
}
