//! Which tier may use which: dependencies point down only.

use super::Report;
use crate::workspace::{Crate, Workspace, tier};

/// Most direct dependencies on crates of this workspace; composition roots and tests are exempt.
const WORKSPACE_DEPENDENCIES_MAX: usize = 10;
/// The same for services, which compose core and platform: docs/decisions/0009-dependencies-of-services.md.
const SERVICE_DEPENDENCIES_MAX: usize = 14;
const WORKSPACE_DEPENDENCIES_AIM: usize = 5;

const FORBIDDEN_NAMES: [&str; 8] =
    ["common", "util", "utils", "helper", "helpers", "misc", "manager", "managers"];

/// Crates with effects: nothing in core and wire may link them outside tests.
const EFFECT_CRATES: [&str; 16] = [
    "futures",
    "getrandom",
    "h2",
    "hyper",
    "hyper-util",
    "libc",
    "mio",
    "nix",
    "rand",
    "rusqlite",
    "rustix",
    "socket2",
    "tempfile",
    "tokio",
    "tokio-util",
    "tonic",
];

/// What a crate of the tier may depend on. `wire` is open to services and platform as well as to adapters:
/// a dial request is spoken by all three, and platform/net frames tunnels. Composition roots build what they
/// bind, so they name platform and core too.
fn allowed(from: &str) -> &'static [&'static str] {
    match from {
        "bin" => &["services", "adapters", "api", "platform", "wire", "core"],
        "services" => &["api", "platform", "wire", "core"],
        "adapters" => &["platform", "wire", "core"],
        "platform" => &["platform", "wire", "core"],
        "api" => &["core"],
        "wire" => &["core/vocab"],
        "core" => &["core"],
        "tests" | "bench" => &["services", "adapters", "api", "platform", "wire", "core", "tests", "bench"],
        "xtask" => &["core"],
        _ => &[],
    }
}

pub(super) fn check(workspace: &Workspace, report: &mut Report) {
    for krate in &workspace.crates {
        check_edges(workspace, krate, report);
        check_manifest(workspace, krate, report);
        check_count(workspace, krate, report);
        if krate.name.split(['-', '_']).any(|part| FORBIDDEN_NAMES.contains(&part)) {
            report.problem("names", &krate.name, "a crate is named for what it is, not for being shared");
        }
    }
}

fn check_edges(workspace: &Workspace, krate: &Crate, report: &mut Report) {
    let from = workspace.directory(krate);
    for dependency in &krate.dependencies {
        let place = format!("{from}/Cargo.toml");
        match &dependency.path {
            Some(path) => {
                let to = workspace.relative(path);
                if !is_allowed(&from, &to) {
                    report.problem("tiers", place, refusal(&from, &to));
                }
            }
            None if matches!(tier(&from), "core" | "wire")
                && !dependency.is_dev()
                && EFFECT_CRATES.contains(&dependency.name.as_str()) =>
            {
                let message = format!("{} has effects: {} decides only", dependency.name, tier(&from));
                report.problem("purity", place, message);
            }
            None => {}
        }
    }
}

fn is_allowed(from: &str, to: &str) -> bool {
    allowed(tier(from)).iter().any(|entry| *entry == tier(to) || *entry == to)
}

fn refusal(from: &str, to: &str) -> String {
    let open = allowed(tier(from)).join(", ");
    format!("depends on {to}; {} may use {open}", tier(from))
}

fn check_manifest(workspace: &Workspace, krate: &Crate, report: &mut Report) {
    let place = format!("{}/Cargo.toml", workspace.directory(krate));
    let manifest = std::fs::read_to_string(&krate.manifest_path).unwrap_or_default();
    let inherits = manifest.parse::<toml::Table>().is_ok_and(|table| {
        table.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool)
            == Some(true)
    });
    if !inherits {
        report.problem("lints", &place, "[lints] workspace = true is missing");
    }
    if krate.license.is_none() {
        report.problem("licences", &place, "license.workspace = true is missing");
    }
}

fn check_count(workspace: &Workspace, krate: &Crate, report: &mut Report) {
    let directory = workspace.directory(krate);
    if matches!(tier(&directory), "bin" | "tests" | "bench") {
        return;
    }
    let count = krate.dependencies.iter().filter(|d| d.path.is_some() && !d.is_dev()).count();
    let most =
        if tier(&directory) == "services" { SERVICE_DEPENDENCIES_MAX } else { WORKSPACE_DEPENDENCIES_MAX };
    let message = format!(
        "{count} direct dependencies on workspace crates (aim {WORKSPACE_DEPENDENCIES_AIM}, at most {most})"
    );
    if count > most {
        report.problem("dependencies", directory, message);
    } else if count > WORKSPACE_DEPENDENCIES_AIM {
        report.warning("dependencies", directory, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, to: &str, expected: bool) {
        assert_eq!(is_allowed(from, to), expected, "{from} -> {to}");
    }

    #[test]
    fn dependencies_point_down() {
        check("bin/wayleave", "services/auth", true);
        check("bin/wayleave", "adapters/ssh", true);
        check("bin/wayleave", "wire/dial", true);
        check("services/proxy", "platform/net", true);
        check("services/proxy", "wire/dial", true);
        check("services/proxy", "adapters/ssh", false);
        check("services/proxy", "services/auth", false);
        check("adapters/ssh", "adapters/app", false);
        check("adapters/ssh", "services/agent", false);
        check("adapters/ssh", "api/proto", false);
        check("platform/net", "wire/mux", true);
        check("platform/net", "services/proxy", false);
        check("api/proto", "core/vocab", true);
        check("api/proto", "platform/net", false);
        check("wire/ssh", "core/vocab", true);
        check("wire/ssh", "core/identity", false);
        check("wire/sftp", "wire/ssh", false);
        check("core/policy", "core/identity", true);
        check("core/policy", "wire/ssh", false);
        check("core/policy", "platform/store", false);
        check("xtask", "core/config", true);
        check("unheard-of/x", "core/vocab", false);
    }
}
