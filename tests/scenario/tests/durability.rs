//! What Auth acknowledged is there after it was killed, also when its disk is full, and a damaged store is refused
//! untouched.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use wayleave_scenario::{Cluster, Program, wait_until};

const ROUNDS: usize = 4;
const WRITERS: usize = 4;
/// So many writes are acknowledged before Auth is killed in the middle of more.
const WRITES_PER_ROUND: usize = 12;

#[test]
fn nothing_acknowledged_is_lost_by_a_killed_auth() {
    let mut cluster = Cluster::builder("durability_kill").start_auth();
    let acknowledged: Mutex<BTreeSet<String>> = Mutex::default();
    let attempted: Mutex<BTreeSet<String>> = Mutex::default();
    for round in 0..ROUNDS {
        let is_over = AtomicBool::new(false);
        let done = AtomicUsize::new(0);
        let admin = cluster.admin();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (admin, is_over, done) = (&admin, &is_over, &done);
                let (acknowledged, attempted) = (&acknowledged, &attempted);
                scope.spawn(move || {
                    for number in 0.. {
                        let name = format!("role-{round}-{writer}-{number}");
                        attempted.lock().unwrap().insert(name.clone());
                        if create_role(admin, &name) {
                            acknowledged.lock().unwrap().insert(name);
                            done.fetch_add(1, Ordering::AcqRel);
                        }
                        if is_over.load(Ordering::Acquire) {
                            return;
                        }
                    }
                });
            }
            wait_until("some writes to be acknowledged", || done.load(Ordering::Acquire) >= WRITES_PER_ROUND);
            cluster.auth.kill();
            is_over.store(true, Ordering::Release);
        });
        cluster.auth.start();
        cluster.wait_auth();
        let there = roles(&cluster);
        let lost: Vec<_> = acknowledged.lock().unwrap().difference(&there).cloned().collect();
        assert!(lost.is_empty(), "round {round} lost {lost:?}");
        let unasked: Vec<_> = there
            .into_iter()
            .filter(|name| name.starts_with("role-") && !attempted.lock().unwrap().contains(name))
            .collect();
        assert!(unasked.is_empty(), "nobody asked for {unasked:?}");
    }
    assert!(acknowledged.lock().unwrap().len() >= ROUNDS * WRITES_PER_ROUND);
}

/// True when Auth acknowledged it.
fn create_role(admin: &Program, name: &str) -> bool {
    let role =
        format!("kind: role\nversion: v7\nmetadata:\n  name: {name}\nspec:\n  allow:\n    logins: [x]\n");
    admin.clone().args(["create", "-"]).input(role).output().code == Some(0)
}

fn roles(cluster: &Cluster) -> BTreeSet<String> {
    let listed = cluster.admin().args(["get", "roles", "--format", "json"]).json();
    let names = listed.as_array().unwrap().iter();
    names.map(|role| role["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// A data directory on a disk of its own that is full.
#[test]
fn a_full_disk_refuses_writes_loses_nothing_and_recovers() {
    let Some(disk) = SmallDisk::mount("16m") else { return };
    let mut cluster = Cluster::builder("durability_full")
        .auth_instance_lines(&[
            "storage:",
            "  type: sqlite",
            &format!("  path: {}", disk.path().join("db").display()),
        ])
        .start_auth();
    cluster.scene.expect_error("disk");
    cluster.scene.expect_error("backend");
    cluster.scene.expect_error("database");
    let admin = cluster.admin();
    let mut there: BTreeSet<String> = (0..5).map(|number| format!("before-{number}")).collect();
    assert!(there.iter().all(|name| create_role(&admin, name)));
    let ballast = disk.path().join("ballast");
    fill(&ballast);
    let mut refused = None;
    wait_until("a write to be refused", || {
        let name = format!("during-{}", there.len());
        let role =
            format!("kind: role\nversion: v7\nmetadata:\n  name: {name}\nspec:\n  allow:\n    logins: [x]\n");
        let output = admin.clone().args(["create", "-"]).input(role).output();
        if output.code == Some(0) {
            there.insert(name);
            // Preallocated space may hold some more.
            fill(&ballast);
        } else {
            refused = Some(output);
        }
        refused.is_some()
    });
    let refused = refused.unwrap().ended_with(1);
    assert!(!refused.stderr_text().is_empty());
    // Reading goes on.
    assert!(roles(&cluster).is_superset(&there));
    fs::remove_file(&ballast).unwrap();
    wait_until("writes to be taken again", || create_role(&admin, "after"));
    there.insert("after".into());
    assert!(roles(&cluster).is_superset(&there));
    assert_eq!(cluster.auth.stop(), Some(0), "{}", cluster.auth.tail());
    cluster.auth.start();
    cluster.wait_auth();
    assert!(roles(&cluster).is_superset(&there));
}

/// A file system in memory; unmounted when this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where mounting is not allowed.
    fn mount(size: &str) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("wayleave-disk-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let mount =
            Program::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs"]);
        let mounted = mount.arg(&path).output();
        if mounted.code != Some(0) {
            assert!(!nix::unistd::geteuid().is_root(), "root cannot mount: {mounted}");
            fs::remove_dir(&path).unwrap();
            return None;
        }
        Some(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Program::new("umount").arg("-l").arg(&self.0).output();
        let _removed = fs::remove_dir(&self.0);
    }
}

/// Writes zeros until there is no room.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    for size in [64 * 1024, 4096, 512] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}
