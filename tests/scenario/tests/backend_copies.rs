//! Backups, restores and moves of a whole cluster, while its proxies and agents run on: they believe what comes out.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use wayleave_runtime::SystemClock;
use wayleave_scenario::{
    AuthFile, Cluster, EtcdServer, Output, PostgresServer, Scene, free_port, wait_until,
};
use wayleave_store::{Backend, Operation, SqliteBackend, SqliteOptions};

#[test]
fn a_restored_cluster_is_believed_by_agents_that_have_seen_newer_policy() {
    let mut cluster = Cluster::builder("backend_restore").nodes(&["web-1"]).start();
    create_role(&cluster, "before");
    let file = cluster.scene.path("backup");
    let saved = backend(&cluster, &["backup"]).arg(&file).output().succeeded();
    assert!(saved.stdout_text().contains("records of the cluster scenario"), "{saved}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = backend(&cluster, &["backup"]).arg(&file).output().ended_with(1);
    assert!(again.stderr_text().contains("exists"), "an older backup is kept: {again}");

    create_role(&cluster, "after");
    let lock = ["locks", "add", "--user", "alice", "--message", "later than the backup"];
    let _locked = cluster.admin().args(lock).output().succeeded();
    let ssh = cluster.ssh(&cluster.identity(), 0);
    wait_until("the lock to be in force", || ssh.run("web-1", &[], "true").output().code != Some(0));

    let running = restore(&cluster, &file, true).ended_with(1);
    assert!(running.stderr_text().contains("in use"), "{running}");
    assert_eq!(cluster.auth.stop(), Some(0), "{}", cluster.auth.tail());
    let full = restore(&cluster, &file, false).ended_with(1);
    assert!(full.stderr_text().contains("--replace"), "{full}");
    check_damaged(&cluster, &file);

    let restored = restore(&cluster, &file, true).succeeded();
    assert!(restored.stdout_text().contains("generation"), "{restored}");
    cluster.auth.start();
    cluster.wait_auth();
    assert!(generation(&cluster) > 1_700_000_000, "{}", cluster.status());
    assert!(has_role(&cluster, "before") && !has_role(&cluster, "after"));
    // The lock came after the backup: the agent has to believe a snapshot that no longer has it.
    cluster.wait_reachable(0, "web-1");
    let _locked = cluster.admin().args(lock).output().succeeded();
    wait_until("the next lock to be in force", || ssh.run("web-1", &[], "true").output().code != Some(0));
    remove_locks(&cluster);
    // A proxy's next life comes after those that the backup does not know of.
    let _ended = cluster.proxies[0].daemon.stop();
    cluster.proxies[0].daemon.start();
    cluster.wait_reachable(0, "web-1");
}

#[test]
fn i_an_event_that_was_changed_in_the_backend_is_found() {
    let mut cluster = Cluster::builder("backend_verify").start();
    create_role(&cluster, "before");
    let running = backend(&cluster, &["verify-events"]).output().succeeded();
    assert!(running.stdout_text().contains("is whole"), "{running}");
    assert_eq!(cluster.auth.stop(), Some(0), "{}", cluster.auth.tail());
    let whole = backend(&cluster, &["verify-events", "--format", "json"]).json();
    assert!(whole["is_whole"] == true && whole["entries"].as_u64() > Some(1), "{whole}");

    change_an_event(&cluster.scene.path("auth/backend"), "before", "beside");

    let broken = backend(&cluster, &["verify-events"]).output().ended_with(1);
    assert!(broken.stderr_text().contains("does not follow from those before it"), "{broken}");
    let json = backend(&cluster, &["verify-events", "--format", "json"]).output().ended_with(1);
    let json: serde_json::Value = serde_json::from_str(&json.stdout_text()).unwrap();
    assert!(json["is_whole"] == false && json["first_fault"].is_string(), "{json}");
}

/// Replaces a word in the entries of the audit log.
fn change_an_event(directory: &Path, word: &str, by: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = SqliteOptions::new(directory.to_owned());
        let backend = SqliteBackend::open(&options, Arc::new(SystemClock::new())).unwrap();
        let page = backend.range(&"/audit/events".parse().unwrap(), None, 1000).await.unwrap();
        let mut changed = 0;
        for item in page.items {
            let text = String::from_utf8(item.value.to_vec()).unwrap();
            if text.contains(word) {
                let value = text.replace(word, by).into();
                backend
                    .batch(vec![], vec![Operation::Put { key: item.key, value, lease: None }])
                    .await
                    .unwrap();
                changed += 1;
            }
        }
        assert!(changed > 0);
        backend.close().await;
    });
}

/// Whatever is wrong with a file, nothing is done.
fn check_damaged(cluster: &Cluster, file: &Path) {
    let whole = std::fs::read(file).unwrap();
    let middle = whole.len() / 2;
    let mut changed = whole.clone();
    changed[middle] ^= 1;
    let without_end = whole[..middle].to_vec();
    let doubled = [whole.clone(), whole].concat();
    for bytes in [changed, without_end, doubled, Vec::new(), b"nothing of ours\n".to_vec()] {
        let damaged = cluster.scene.write("damaged", bytes);
        let refused = restore(cluster, &damaged, true).ended_with(1);
        assert!(refused.stderr_text().contains("no usable backup"), "{refused}");
    }
}

#[test]
fn a_cluster_moves_from_one_backend_to_the_next_and_its_agents_follow() {
    let postgresql = PostgresServer::start(&[]);
    let etcd = EtcdServer::start(1, &[]);
    let mut cluster = Cluster::builder("backend_clone").nodes(&["web-1"]).start();
    create_role(&cluster, "from-the-beginning");
    let sqlite = cluster.scene.path("moved");
    let etcd_url = etcd.urls().remove(0);
    let places = [
        (
            postgresql.url("postgres", ""),
            vec!["type: postgresql".into(), format!("conn_string: {}", postgresql.url("postgres", ""))],
        ),
        (
            format!("etcd+{etcd_url}/moved"),
            vec!["type: etcd".into(), format!("peers: [{etcd_url}]"), "prefix: /moved".into()],
        ),
        (
            format!("sqlite:{}", sqlite.display()),
            vec!["type: sqlite".into(), format!("path: {}", sqlite.display())],
        ),
    ];
    let mut generations = vec![generation(&cluster)];
    for (place, storage) in places {
        assert_eq!(cluster.auth.stop(), Some(0), "{}", cluster.auth.tail());
        let copied = cluster.scene.wayleave().args(["backend", "clone", "--from"]).arg(&cluster.auth_config);
        let copied = copied.args(["--to", &place]).output().succeeded();
        assert!(copied.stdout_text().contains("records of the cluster scenario"), "{copied}");
        move_to(&mut cluster, &storage);
        generations.push(generation(&cluster));
        assert!(has_role(&cluster, "from-the-beginning"));
        cluster.wait_reachable(0, "web-1");
        create_role(&cluster, &format!("generation-{}", generations.len()));
    }
    assert!(generations.is_sorted_by(|a, b| a < b), "{generations:?}");
    assert!(has_role(&cluster, "generation-2") && has_role(&cluster, "generation-3"));
    let full = cluster.scene.wayleave().args(["backend", "clone", "--from"]).arg(&cluster.auth_config);
    let full = full.args(["--to", &postgresql.url("postgres", "")]).output().ended_with(1);
    assert!(full.stderr_text().contains("--replace"), "{full}");
}

#[test]
fn doctor_asks_the_server_of_the_backend() {
    let server = PostgresServer::start(&[]);
    let scene = Scene::new("backend_doctor");
    let diagnosed = |url: &str| {
        let file = AuthFile {
            data_dir: scene.path("auth"),
            cluster_name: "scenario".into(),
            listen: free_port(),
            tokens: Vec::new(),
            lines: Vec::new(),
            instance_lines: vec![
                "storage:".into(),
                "  type: postgresql".into(),
                format!("  conn_string: {url}"),
            ],
        };
        let config = scene.write("auth.yaml", file.text());
        scene.wayleave().args(["doctor", "-c"]).arg(config).output()
    };
    let url = server.url("postgres", "");
    let well = diagnosed(&url);
    assert!(well.stdout_text().contains("/postgres answers"), "{well}");
    for (wrong, said) in [
        (url.replace("/postgres?", "/nowhere?"), "nowhere"),
        (url.replace("not-a-secret", "wrong"), "password"),
        (url.replace("sslmode=disable", "sslmode=require"), "verify-full"),
        (url.replace("sslmode=disable", ""), "TLS"),
    ] {
        let ill = diagnosed(&wrong).ended_with(1);
        let text = ill.stdout_text();
        assert!(text.contains("PROBLEM") && text.contains(said) && !text.contains("not-a-secret"), "{ill}");
    }
}

/// Starts Auth again with another backend.
fn move_to(cluster: &mut Cluster, storage: &[String]) {
    cluster.auth_file.instance_lines.retain(|line| !line.starts_with("storage:") && !line.starts_with("  "));
    cluster.auth_file.instance_lines.push("storage:".into());
    cluster.auth_file.instance_lines.extend(storage.iter().map(|line| format!("  {line}")));
    let text = cluster.auth_file.text();
    cluster.scene.write("auth.yaml", text);
    cluster.auth.start();
    cluster.wait_auth();
}

fn backend(cluster: &Cluster, words: &[&str]) -> wayleave_scenario::Program {
    cluster.scene.wayleave().arg("backend").args(words).arg("-c").arg(&cluster.auth_config)
}

fn restore(cluster: &Cluster, file: &Path, replace: bool) -> Output {
    let command = backend(cluster, &["restore"]).arg(file);
    let command = if replace { command.arg("--replace") } else { command };
    command.output()
}

fn generation(cluster: &Cluster) -> u64 {
    let status = cluster.status();
    let revision = status["policy_revision"].as_str().unwrap();
    revision.split('.').next().unwrap().parse().unwrap()
}

fn create_role(cluster: &Cluster, name: &str) {
    let role =
        format!("kind: role\nversion: v7\nmetadata:\n  name: {name}\nspec:\n  allow:\n    logins: [x]\n");
    let _created = cluster.create(&role).succeeded();
}

fn has_role(cluster: &Cluster, name: &str) -> bool {
    let roles = cluster.admin().args(["get", "roles", "--format", "json"]).json();
    roles.as_array().unwrap().iter().any(|role| role["metadata"]["name"] == name)
}

fn remove_locks(cluster: &Cluster) {
    let locks = cluster.admin().args(["locks", "ls", "--format", "json"]).json();
    for lock in locks.as_array().unwrap() {
        let name = lock["name"].as_str().unwrap();
        let _removed = cluster.admin().args(["locks", "rm", name]).output().succeeded();
    }
}
