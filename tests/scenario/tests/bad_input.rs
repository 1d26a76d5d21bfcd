//! What goes wrong around a process: ports in use, data directories that cannot be used, a backend that is busy,
//! and commands that make no sense. Each is answered clearly, and nothing is lost.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wayleave_scenario::{Cluster, check_all, free_port, wait_until};

#[test]
fn what_goes_wrong_around_a_process() {
    let mut cluster = Cluster::builder("bad_input").proxies(1).nodes(&["web-1"]).peering(1).start();
    let mut checks = wayleave_scenario::Checks::default();
    check_all!(checks, &cluster;
        a_port_in_use_is_named,
        a_second_process_on_one_data_directory_is_refused,
        a_data_directory_that_is_a_file_is_told,
        commands_that_make_no_sense_are_usage,
        identity_files_that_cannot_be_used_are_told,
        resources_that_cannot_be_read_change_nothing,
        an_unreachable_proxy_is_told_with_its_address,
        strict_recording_is_refused_at_write,
    );
    check_all!(checks, &mut cluster;
        a_damaged_identity_is_told_and_kept,
        what_else_is_damaged_is_told_or_made_anew,
        a_busy_backend_loses_nothing,
        a_damaged_backend_is_refused_untouched,
        what_the_cluster_is_cannot_change_by_a_file,
    );
    checks.end();
}

fn a_port_in_use_is_named(cluster: &Cluster) {
    let taken = TcpListener::bind(free_port()).unwrap();
    let address = taken.local_addr().unwrap();
    let mut file = cluster.auth_file.clone();
    file.data_dir = cluster.scene.path("second-auth");
    file.listen = address;
    let config = cluster.scene.write("second-auth.yaml", file.text());
    let told = cluster.scene.wayleave().args(["start", "-c"]).arg(config).output().ended_with(1);
    assert!(told.stderr_text().contains(&address.to_string()), "{told}");
    for port in ["web", "ssh", "peer"] {
        let mut file = cluster.proxy_file(&format!("taken-{port}"));
        match port {
            "web" => (file.web, file.public) = (address, address),
            "ssh" => file.ssh = address,
            _ => file.peer = address,
        }
        let config = cluster.scene.write("taken.yaml", file.text());
        let told = cluster.scene.wayleave().args(["start", "-c"]).arg(config).output().ended_with(1);
        assert!(told.stderr_text().contains(&address.to_string()), "{told}");
    }
}

fn a_second_process_on_one_data_directory_is_refused(cluster: &Cluster) {
    let mut file = cluster.auth_file.clone();
    file.listen = free_port();
    let config = cluster.scene.write("same-data.yaml", file.text());
    let told = cluster.scene.wayleave().args(["start", "-c"]).arg(config).output().ended_with(1);
    assert!(!told.stderr_text().is_empty(), "{told}");
    assert_eq!(cluster.status()["cluster_name"], "scenario");
}

fn a_data_directory_that_is_a_file_is_told(cluster: &Cluster) {
    let mut file = cluster.auth_file.clone();
    file.data_dir = cluster.scene.write("a-file", "not a directory");
    file.listen = free_port();
    let config = cluster.scene.write("a-file.yaml", file.text());
    let told = cluster.scene.wayleave().args(["start", "-c"]).arg(config).output().ended_with(1);
    let _told = told.complaining("a-file");
    let mut file = cluster.node_file("in-a-file");
    file.data_dir = cluster.scene.path("a-file");
    let config = cluster.scene.write("a-file.yaml", file.text());
    let told = cluster.scene.wayleave().args(["start", "-c"]).arg(config).output().ended_with(1);
    let _told = told.complaining("a-file");
    assert_eq!(fs::read_to_string(cluster.scene.path("a-file")).unwrap(), "not a directory");
}

fn commands_that_make_no_sense_are_usage(cluster: &Cluster) {
    for arguments in [
        &["ssh"][..],
        &["nonsense"],
        &["tokens", "add", "--type", "king"],
        &["tokens", "add", "--type", "node", "--ttl", "soon"],
        &["users", "add"],
        &["locks", "add"],
        &["ls", "--format", "xml"],
        &["auth", "sign", "--out", "x"],
        &["get"],
    ] {
        let told = cluster.admin().args(arguments).output().ended_with(2);
        assert!(told.stderr_text().starts_with("error:"), "{told}");
    }
    let _told =
        cluster.admin().args(["get", "role/no-such-role"]).output().ended_with(4).complaining("no-such-role");
    let _told = cluster.admin().args(["rm", "user/no-such-user"]).output().ended_with(4);
    let _told = cluster.admin().args(["users", "add", "alice", "--roles", "access"]).output().ended_with(1);
    let _told = cluster.admin().args(["users", "add", "zed", "--roles", "no-such-role"]).output().failed();
    let _told =
        cluster.admin().args(["auth", "sign", "--user", "no-such-user", "--out", "x"]).output().ended_with(4);
    assert!(!cluster.scene.path("x").exists());
}

fn identity_files_that_cannot_be_used_are_told(cluster: &Cluster) {
    let good = fs::read_to_string(cluster.identity()).unwrap();
    let files = [
        ("empty", String::new()),
        ("noise", "\u{1}\u{2}noise\n".repeat(100)),
        ("truncated", good[..good.len() / 2].to_owned()),
        ("later", good.replacen("version: 1", "version: 99", 1)),
        ("endless", "# filler\n".repeat(100_000)),
    ];
    for (name, text) in files {
        let path = cluster.scene.write(&format!("{name}.id"), text);
        let told = cluster.way(&path, 0).arg("ls").output().ended_with(1);
        assert!(told.stderr_text().contains("identity file"), "{name}: {told}");
    }
    let _told = cluster.way(&cluster.scene.path("missing.id"), 0).arg("ls").output().ended_with(4);
    let open = cluster.scene.write("open.id", &good);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let _told = cluster.way(&open, 0).arg("ls").output().ended_with(1).complaining("open.id");
}

fn resources_that_cannot_be_read_change_nothing(cluster: &Cluster) {
    let before = cluster.admin().args(["get", "roles"]).stdout();
    for (text, part) in [
        ("", ""),
        ("kind: role\n", "version"),
        ("kind: throne\nversion: v1\nmetadata: {name: x}\nspec: {}\n", "throne"),
        ("kind: role\nversion: v7\nmetadata: {name: x}\nspec: {allow: {lgins: [root]}}\n", "lgins"),
        ("kind: role\nversion: v7\nmetadata: {name: 'a b'}\nspec: {}\n", "name"),
        (
            "kind: role\nversion: v7\nmetadata: {name: x}\nspec: {allow: {node_labels: {env: '^([$'}}}\n",
            "env",
        ),
        (
            "kind: role\nversion: v7\nmetadata: {name: good}\nspec: {}\n---\nkind: role\nversion: v7\nmetadata: {name: x}\nspec: 7\n",
            "spec",
        ),
        ("{\"kind\": \"role\"", ""),
    ] {
        let told = cluster.create(text).failed();
        assert!(told.stderr_text().contains(part), "{part:?}: {told}");
    }
    assert_eq!(cluster.admin().args(["get", "roles"]).stdout(), before);
}

fn an_unreachable_proxy_is_told_with_its_address(cluster: &Cluster) {
    let nobody = free_port().to_string();
    let way = || cluster.scene.way().arg("-i").arg(cluster.identity()).args(["--proxy", &nobody]);
    for arguments in
        [&["ls"][..], &["proxy", "ssh", "root@web-1:22"], &["scp", "root@web-1:/etc/hostname", "x"]]
    {
        let _told = way().args(arguments).output().ended_with(5).complaining(&nobody);
    }
    let _told = way().args(["ssh", "root@web-1", "true"]).output().ended_with(255).complaining(&nobody);
    // Somebody is there, but no Wayleave.
    let somebody = wayleave_scenario::EchoServer::start();
    let other = cluster
        .scene
        .way()
        .arg("-i")
        .arg(cluster.identity())
        .args(["--proxy", &somebody.address().to_string()]);
    let begin = Instant::now();
    let _told = other.arg("ls").output().ended_with(5);
    assert!(begin.elapsed() < Duration::from_secs(45), "{:?}", begin.elapsed());
}

fn strict_recording_is_refused_at_write(cluster: &Cluster) {
    let role = "kind: role\nversion: v7\nmetadata: {name: recorded}\nspec: {options: {record_session: {ssh: strict}}}\n";
    let told = cluster.create(role).failed();
    assert!(told.stderr_text().contains("record"), "{told}");
}

/// Every file below a directory.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn enters(cluster: &Cluster) {
    cluster.wait_reachable(0, "web-1");
}

fn a_damaged_identity_is_told_and_kept(cluster: &mut Cluster) {
    let identity = cluster.node("web-1").file.data_dir.join("identity");
    assert_eq!(cluster.node("web-1").daemon.stop(), Some(0));
    for file in files_below(&identity) {
        let good = fs::read(&file).unwrap();
        for damaged in [Vec::new(), good[..good.len() / 2].to_vec(), b"\x00noise".repeat(20)] {
            fs::write(&file, &damaged).unwrap();
            let daemon = &mut cluster.node("web-1").daemon;
            let mark = daemon.log_mark();
            daemon.start();
            let code = daemon.wait_failure();
            let log = daemon.log_since(mark);
            assert!(
                code == 1 && log.contains("error: ") && log.contains("identity"),
                "{}: {log}",
                file.display()
            );
            assert_eq!(fs::read(&file).unwrap(), damaged, "{} was written", file.display());
        }
        fs::write(&file, &good).unwrap();
    }
    cluster.node("web-1").daemon.start();
    enters(cluster);
}

/// Beside its identity: what the agent keeps of events and policy.
fn what_else_is_damaged_is_told_or_made_anew(cluster: &mut Cluster) {
    let data = cluster.node("web-1").file.data_dir.clone();
    assert_eq!(cluster.node("web-1").daemon.stop(), Some(0));
    let identity = data.join("identity");
    let others: Vec<_> = files_below(&data).into_iter().filter(|file| !file.starts_with(&identity)).collect();
    assert!(!others.is_empty());
    for file in others {
        let good = fs::read(&file).unwrap();
        fs::write(&file, b"noise").unwrap();
        let daemon = &mut cluster.node("web-1").daemon;
        let mark = daemon.log_mark();
        daemon.start();
        wait_until("the agent to give up or to serve", || {
            !cluster.node("web-1").daemon.is_running()
                || cluster.node("web-1").daemon.log_since(mark).contains("a tunnel is up")
        });
        let daemon = &mut cluster.node("web-1").daemon;
        let log = daemon.log_since(mark);
        if daemon.is_running() {
            assert_eq!(daemon.stop(), Some(0));
        } else {
            let _code = daemon.wait_failure();
            assert!(log.contains("error: "), "{}: {log}", file.display());
        }
        assert!(!log.contains("panicked"), "{}: {log}", file.display());
        fs::write(&file, &good).unwrap();
    }
    cluster.node("web-1").daemon.start();
    enters(cluster);
}

fn database(cluster: &Cluster) -> PathBuf {
    let files = files_below(&cluster.auth_file.data_dir.join("backend"));
    files.into_iter().find(|file| fs::read(file).unwrap().starts_with(b"SQLite format 3")).unwrap()
}

/// Somebody else holds the database: a backup, an administrator with `sqlite3`.
fn a_busy_backend_loses_nothing(cluster: &mut Cluster) {
    let role = |name: &str| format!("kind: role\nversion: v7\nmetadata: {{name: {name}}}\nspec: {{}}\n");
    let mut other = cluster.scene.program("sqlite3").arg(database(cluster)).start();
    other.write(".timeout 1000\nBEGIN IMMEDIATE;\nSELECT 'held';\n");
    let held = wait_held(&mut other);
    let begin = Instant::now();
    let file = cluster.scene.write("busy.yaml", role("busy"));
    let mut writing = cluster.admin().args(["create", "-f"]).arg(file).start();
    if held {
        // It waits, or says so; then it goes on.
        other.write("COMMIT;\n");
    }
    other.close_input();
    let _ended = other.wait();
    let written = writing.wait();
    assert!(begin.elapsed() < Duration::from_secs(40), "{:?}", begin.elapsed());
    let _again = if written.code == Some(0) { written } else { cluster.create(&role("busy")).succeeded() };
    let _there = cluster.admin().args(["get", "role/busy"]).output().succeeded();
}

/// Whether the lock was got; a backend that keeps everybody out gives none.
fn wait_held(other: &mut wayleave_scenario::Running) -> bool {
    wait_until("the other to hold the database, or not", || {
        other.stdout_so_far().contains("held") || other.stderr_so_far().contains("locked")
    });
    !other.stderr_so_far().contains("locked")
}

fn a_damaged_backend_is_refused_untouched(cluster: &mut Cluster) {
    assert_eq!(cluster.auth.stop(), Some(0));
    let database = database(cluster);
    let good = fs::read(&database).unwrap();
    let mut head = good.clone();
    head[..100].fill(b'x');
    let mut middle = good.clone();
    let half = middle.len() / 2;
    middle[half..half + 4096].fill(0xA5);
    for damaged in [head, good[..good.len() / 3].to_vec(), b"not a database at all".to_vec(), middle] {
        fs::write(&database, &damaged).unwrap();
        let mark = cluster.auth.log_mark();
        cluster.auth.start();
        let ended = cluster.auth.wait_exit(Duration::from_secs(5));
        let log = cluster.auth.log_since(mark);
        match ended {
            Some(code) => {
                assert!(code == Some(1) && log.contains("error: "), "{code:?}: {log}");
                assert!(fs::read(&database).unwrap() == damaged, "a damaged database was written");
            }
            // A damage that is not met yet must not have been met silently.
            None => assert_eq!(cluster.auth.stop(), Some(0)),
        }
        assert!(!log.contains("panicked"), "{log}");
        for file in files_below(database.parent().unwrap()) {
            if file != database {
                fs::remove_file(file).unwrap();
            }
        }
    }
    fs::write(&database, &good).unwrap();
    cluster.auth.start();
    cluster.wait_auth();
    enters(cluster);
}

fn what_the_cluster_is_cannot_change_by_a_file(cluster: &mut Cluster) {
    assert_eq!(cluster.auth.stop(), Some(0));
    let mut file = cluster.auth_file.clone();
    file.cluster_name = "renamed".into();
    let config = cluster.scene.write("renamed.yaml", file.text());
    let told = cluster.scene.wayleave().args(["start", "-c"]).arg(config).output().failed();
    assert!(told.stderr_text().contains("renamed") && told.stderr_text().contains("scenario"), "{told}");
    cluster.auth.start();
    cluster.wait_auth();
    assert_eq!(cluster.status()["cluster_name"], "scenario");
}
