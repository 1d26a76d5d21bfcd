//! Licences and sources of third-party crates, against the lists in `deny.toml`, which `cargo deny` reads too.

use crate::process::{cargo, output_of, root, succeeds};
use crate::spdx;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeSet;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
const OWN_LICENCE: &str = "Apache-2.0";

#[derive(Deserialize)]
struct DenyFile {
    licenses: LicenceLists,
}

#[derive(Deserialize)]
struct LicenceLists {
    allow: BTreeSet<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

/// Prints what is wrong, or with `list` every crate; true when nothing is wrong.
pub(crate) fn run(list: bool) -> Result<bool> {
    let text = std::fs::read_to_string(root().join("deny.toml")).context("cannot read deny.toml")?;
    let lists = toml::from_str::<DenyFile>(&text).context("deny.toml")?.licenses;
    let packages = packages()?;
    let mut problems = Vec::new();
    for package in &packages {
        problems.extend(problem_with(package, &lists));
        if list && package.source.is_some() {
            println!("{} {} {}", package.name, package.version, package.license.as_deref().unwrap_or("none"));
        }
    }
    for exception in &lists.exceptions {
        if !packages.iter().any(|package| package.name == exception.name) {
            problems.push(format!("deny.toml: the exception for {} is used by nothing", exception.name));
        }
    }
    for problem in &problems {
        println!("licences: {problem}");
    }
    println!("licences: {} crates, {} problems", packages.len(), problems.len());
    Ok(problems.is_empty())
}

fn packages() -> Result<Vec<Package>> {
    let ask = || output_of(cargo().args(["metadata", "--offline", "--locked", "--format-version", "1"]));
    let json = match ask() {
        Ok(json) => json,
        // A cold cache: what is missing has to be fetched once.
        Err(first) => {
            if !succeeds(cargo().args(["fetch", "--locked"]))? {
                return Err(first);
            }
            ask()?
        }
    };
    let metadata: Metadata = serde_json::from_slice(&json).context("cargo metadata")?;
    if metadata.packages.is_empty() {
        bail!("cargo metadata names no crates");
    }
    Ok(metadata.packages)
}

fn problem_with(package: &Package, lists: &LicenceLists) -> Option<String> {
    let Package { name, version, license, source } = package;
    let Some(expression) = license else {
        return Some(format!("{name} {version} declares no licence"));
    };
    match source.as_deref() {
        None if expression == OWN_LICENCE => return None,
        None => return Some(format!("{name} is ours and must be {OWN_LICENCE}, not {expression}")),
        Some(CRATES_IO) => {}
        Some(other) => return Some(format!("{name} {version} comes from {other}, not from crates.io")),
    }
    let allowed = |licence: &str| {
        let exceptions = lists.exceptions.iter().filter(|exception| exception.name == *name);
        lists.allow.contains(licence) || exceptions.into_iter().any(|e| e.allow.contains(licence))
    };
    match spdx::is_satisfied(expression, &allowed) {
        Ok(true) => None,
        Ok(false) => Some(format!("{name} {version}: {expression} is not on the list of deny.toml")),
        Err(error) => Some(format!("{name} {version}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: Option<&str>, license: Option<&str>, fine: bool) {
        let lists = LicenceLists {
            allow: BTreeSet::from(["MIT".to_owned()]),
            exceptions: vec![Exception { name: "b".into(), allow: BTreeSet::from(["MPL-2.0".to_owned()]) }],
        };
        for (name, expected) in
            [("a", fine), ("b", fine || license == Some("MPL-2.0") && source == Some(CRATES_IO))]
        {
            let package = Package {
                name: name.into(),
                version: "1.0.0".into(),
                license: license.map(str::to_owned),
                source: source.map(str::to_owned),
            };
            assert_eq!(problem_with(&package, &lists).is_none(), expected, "{name} {source:?} {license:?}");
        }
    }

    #[test]
    fn licences_and_sources_are_decided() {
        check(Some(CRATES_IO), Some("MIT"), true);
        check(Some(CRATES_IO), Some("MPL-2.0"), false);
        check(Some(CRATES_IO), None, false);
        check(Some("git+https://example.com/x"), Some("MIT"), false);
        check(None, Some("Apache-2.0"), true);
        check(None, Some("MIT"), false);
    }
}
