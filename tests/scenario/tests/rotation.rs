//! Authorities rotate under running processes: in every phase there are new sessions, running ones go on, and nothing is
//! restarted.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use serde_json::Value;
use std::path::PathBuf;
use wayleave_scenario::{Cluster, Running, wait_until};

const PHASES: [&str; 4] = ["init", "update_clients", "update_servers", "standby"];
const RENEWED: &str = "the certificates were renewed";

#[test]
fn authorities_rotate_while_everybody_works() {
    let cluster = Cluster::builder("rotation").proxies(2).nodes(&["web-1"]).peering(1).start();
    let mut running = session(&cluster);
    for ca_type in ["user", "policy"] {
        for phase in PHASES {
            step(&cluster, ca_type, phase);
        }
    }
    for phase in PHASES {
        step(&cluster, "host", phase);
    }
    // There and back again: those who have renewed renew once more.
    for phase in ["init", "update_clients", "update_servers", "rollback", "standby"] {
        step(&cluster, "host", phase);
    }
    assert!(renewals(&cluster).iter().skip(1).all(|count| *count >= 1));
    assert!(!running.is_ended(), "the session from before the rotations goes on");
}

/// Certificates that were renewed, by each process.
fn renewals(cluster: &Cluster) -> Vec<usize> {
    cluster.daemons().map(|daemon| daemon.log_text().matches(RENEWED).count()).collect()
}

/// Takes a step, and enters the node through both proxies with a certificate of the moment.
fn step(cluster: &Cluster, ca_type: &str, phase: &str) {
    let arguments = ["auth", "rotate", "--type", ca_type, "--phase", phase, "--format", "json"];
    // The step that ends trust in a host key is refused while a process holds certificates of it.
    wait_until(&format!("{ca_type} to reach {phase}"), || {
        cluster.admin().args(arguments).output().code == Some(0)
    });
    let authorities = cluster.status()["cas"].clone();
    let stands = |ca: &Value| ca["type"] == ca_type && ca["phase"] == phase;
    assert!(authorities.as_array().unwrap().iter().any(stands), "{authorities}");
    wait_until(&format!("both proxies to lead to the node in phase {phase} of {ca_type}"), || {
        let identity = identity(cluster);
        (0..2).all(|proxy| {
            cluster.way(&identity, proxy).args(["ssh", "root@web-1", "true"]).output().code == Some(0)
        })
    });
    let out = cluster.ssh(&identity(cluster), 0).run("web-1", &[], "echo entered").output();
    out.succeeded().printed("entered");
}

fn identity(cluster: &Cluster) -> PathBuf {
    cluster.sign("alice", "1h")
}

fn session(cluster: &Cluster) -> Running {
    let mut running =
        cluster.ssh(&cluster.identity(), 0).run("web-1", &[], "echo begun; exec sleep 1000").start();
    running.wait_for_stdout("begun");
    running
}
