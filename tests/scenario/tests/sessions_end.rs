//! Live sessions end when a lock, a role, a certificate or silence says so, and not otherwise.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wayleave_scenario::{Checks, Cluster, EchoServer, Running, check_all, free_port, wait_until};

/// Within so much a decision of Auth must have ended a session.
const END_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn j_live_sessions_end() {
    let cluster = Cluster::builder("sessions_end").proxies(2).nodes(&["web-1"]).peering(1).start();
    let mut checks = Checks::default();
    check_all!(checks, &cluster; j_a_lock_on_a_login_a_role_and_a_node_ends_sessions);
    let expiring = Expiring::begin(&cluster);
    check_all!(checks, &cluster;
        j_a_lock_on_a_user_ends_his_sessions,
        j_a_lock_that_ends_lets_in_again,
        j_a_role_that_is_taken_away_ends_sessions,
        j_a_role_that_is_taken_from_a_user_ends_his_sessions,
        j_a_role_that_says_less_ends_sessions,
        j_a_user_who_is_removed_ends,
        j_forwards_without_a_session_end_too,
        j_silence_ends_sessions_where_that_is_asked_for,
    );
    checks.run("j_a_certificate_that_runs_out_ends_sessions_where_that_is_asked_for", || {
        j_a_certificate_that_runs_out_ends_sessions_where_that_is_asked_for(&cluster, expiring);
    });
    checks.end();
}

/// A user of their own, with a role of their own; gives the identity file.
fn user(cluster: &Cluster, name: &str, options: &str, ttl: &str) -> PathBuf {
    write_role(cluster, name, options, "root");
    cluster.add_user(name, name, "root");
    let identity = cluster.sign(name, ttl);
    let way = cluster.way(&identity, 0);
    wait_until("the agent to know the new role", || {
        way.clone().args(["ssh", "root@web-1", "true"]).output().code == Some(0)
    });
    identity
}

fn write_role(cluster: &Cluster, name: &str, options: &str, logins: &str) {
    let role = format!(
        "kind: role\nversion: v7\nmetadata:\n  name: {name}\nspec:\n  options: {{{options}}}\n  allow:\n    logins: \
         [{logins}]\n    node_labels:\n      '*': '*'\n"
    );
    let _made = cluster.create(&role).succeeded();
}

/// A session of stock ssh that says `begun` and then nothing.
fn session(cluster: &Cluster, identity: &Path) -> Running {
    let ssh = cluster.ssh(identity, 0);
    let mut running = ssh.run("web-1", &[], "echo begun; exec sleep 1000").start();
    running.wait_for_stdout("begun");
    running
}

/// The same by `way`, through the other proxy.
fn session_of_way(cluster: &Cluster, identity: &Path) -> Running {
    let mut running =
        cluster.way(identity, 1).args(["ssh", "root@web-1", "echo begun; exec sleep 1000"]).start();
    running.wait_for_stdout("begun");
    running
}

#[track_caller]
fn assert_ends(mut running: Running, since: Instant) -> String {
    let output = running.wait();
    assert!(since.elapsed() < END_LIMIT, "{:?}: {output}", since.elapsed());
    assert_eq!(output.code, Some(255), "{output}");
    output.stderr_text()
}

/// The session of the user whom every cluster has goes on through all of this.
#[track_caller]
fn assert_refused(cluster: &Cluster, identity: &Path) {
    wait_until("new sessions to be refused", || {
        cluster.way(identity, 0).args(["ssh", "root@web-1", "true"]).output().code == Some(255)
    });
}

fn j_a_lock_on_a_user_ends_his_sessions(cluster: &Cluster) {
    let identity = user(cluster, "locked", "", "1h");
    let running = [session(cluster, &identity), session_of_way(cluster, &identity)];
    let mut other = session(cluster, &cluster.identity());
    let begin = Instant::now();
    let _set = cluster
        .admin()
        .args(["locks", "add", "--user", "locked", "--message", "ask Zoe"])
        .output()
        .succeeded();
    for session in running {
        let complaint = assert_ends(session, begin);
        assert!(complaint.contains("lock") || complaint.contains("ask Zoe"), "{complaint}");
    }
    assert_refused(cluster, &identity);
    assert!(!other.is_ended());
}

fn j_a_lock_on_a_login_a_role_and_a_node_ends_sessions(cluster: &Cluster) {
    let identity = user(cluster, "targeted", "", "1h");
    let targets = [["--role", "targeted"], ["--node", "web-1"], ["--login", "root"]];
    for target in targets {
        let running = session(cluster, &identity);
        let begin = Instant::now();
        let _set = cluster.admin().args(["locks", "add"]).args(target).output().succeeded();
        let _complaint = assert_ends(running, begin);
        assert_refused(cluster, &identity);
        remove_locks(cluster, target[1]);
        wait_until("the way to be free again", || {
            cluster.way(&identity, 0).args(["ssh", "root@web-1", "true"]).output().code == Some(0)
        });
    }
}

/// Removes the locks whose target is named so.
fn remove_locks(cluster: &Cluster, target: &str) {
    let locks = cluster.admin().args(["locks", "ls", "--format", "json"]).json();
    let node = cluster.list().iter().find(|node| node["name"] == target).map(|node| node["host_id"].clone());
    let node = node.and_then(|id| id.as_str().map(str::to_owned)).unwrap_or_else(|| target.to_owned());
    let locks = locks.as_array().unwrap().clone();
    let about = locks.iter().filter(|lock| {
        let text = lock["target"].as_str().unwrap();
        text.contains(target) || text.contains(&node)
    });
    let mut removed = 0;
    for lock in about {
        let _removed =
            cluster.admin().args(["locks", "rm", lock["name"].as_str().unwrap()]).output().succeeded();
        removed += 1;
    }
    assert!(removed > 0, "no lock is about {target}: {locks:?}");
}

fn j_a_lock_that_ends_lets_in_again(cluster: &Cluster) {
    let identity = user(cluster, "briefly", "", "1h");
    let running = session(cluster, &identity);
    let begin = Instant::now();
    let _set =
        cluster.admin().args(["locks", "add", "--user", "briefly", "--ttl", "4s"]).output().succeeded();
    let _complaint = assert_ends(running, begin);
    wait_until("the lock to end", || {
        cluster.way(&identity, 0).args(["ssh", "root@web-1", "true"]).output().code == Some(0)
    });
    assert!(begin.elapsed() > Duration::from_secs(3), "{:?}", begin.elapsed());
}

fn j_a_role_that_is_taken_away_ends_sessions(cluster: &Cluster) {
    let identity = user(cluster, "stripped", "", "1h");
    let running = session(cluster, &identity);
    let begin = Instant::now();
    let _removed = cluster.admin().args(["users", "rm", "stripped"]).output().succeeded();
    let _removed = cluster.admin().args(["rm", "role/stripped"]).output().succeeded();
    let _complaint = assert_ends(running, begin);
    assert_refused(cluster, &identity);
}

fn j_a_role_that_is_taken_from_a_user_ends_his_sessions(cluster: &Cluster) {
    write_role(cluster, "spare", "", "nobody");
    let identity = user(cluster, "demoted", "", "1h");
    cluster.add_user("colleague", "demoted", "root");
    let mut colleague = session(cluster, &cluster.sign("colleague", "1h"));
    let running = [session(cluster, &identity), session_of_way(cluster, &identity)];
    let begin = Instant::now();
    give_role(cluster, "demoted", "spare");
    for session in running {
        let _complaint = assert_ends(session, begin);
    }
    assert_refused(cluster, &identity);
    assert!(!colleague.is_ended(), "{}", colleague.stderr_so_far());

    give_role(cluster, "demoted", "demoted");
    wait_until("the role that was given back to count", || {
        cluster.way(&identity, 0).args(["ssh", "root@web-1", "true"]).output().code == Some(0)
    });
}

/// The user holds this role and no other.
fn give_role(cluster: &Cluster, name: &str, role: &str) {
    let user = format!(
        "kind: user\nversion: v2\nmetadata:\n  name: {name}\nspec:\n  roles: [{role}]\n  traits:\n    logins: [root]\n"
    );
    let _written = cluster.create(&user).succeeded();
}

fn j_a_role_that_says_less_ends_sessions(cluster: &Cluster) {
    let identity = user(cluster, "narrowed", "", "1h");
    let running = session(cluster, &identity);
    let begin = Instant::now();
    write_role(cluster, "narrowed", "", "nobody");
    let _complaint = assert_ends(running, begin);
    assert_refused(cluster, &identity);
}

fn j_a_user_who_is_removed_ends(cluster: &Cluster) {
    let identity = user(cluster, "removed", "", "1h");
    let running = session(cluster, &identity);
    let begin = Instant::now();
    let _removed = cluster.admin().args(["users", "rm", "removed"]).output().succeeded();
    let _complaint = assert_ends(running, begin);
    assert_refused(cluster, &identity);
}

fn j_forwards_without_a_session_end_too(cluster: &Cluster) {
    let identity = user(cluster, "forwarder", "", "1h");
    let (echo, port) = (EchoServer::start(), free_port());
    let forward = format!("{port}:{}", echo.address());
    let running = cluster.ssh(&identity, 1).run("web-1", &["-N", "-L", &forward], "").start();
    wait_until("the forward", || EchoServer::is_behind(port));
    let begin = Instant::now();
    let _set = cluster.admin().args(["locks", "add", "--user", "forwarder"]).output().succeeded();
    let _complaint = assert_ends(running, begin);
    assert!(!EchoServer::is_behind(port));
}

/// Two sessions whose certificates run out in a minute, the shortest life that there is; other checks fill it.
struct Expiring {
    begin: Instant,
    ends: Running,
    stays: Running,
    lenient: PathBuf,
}

impl Expiring {
    fn begin(cluster: &Cluster) -> Self {
        user(cluster, "strict", "disconnect_expired_cert: true", "1h");
        user(cluster, "lenient", "disconnect_expired_cert: false", "1h");
        let begin = Instant::now();
        let (strict, lenient) = (cluster.sign("strict", "1m"), cluster.sign("lenient", "1m"));
        Self { begin, ends: session(cluster, &strict), stays: session(cluster, &lenient), lenient }
    }
}

fn j_a_certificate_that_runs_out_ends_sessions_where_that_is_asked_for(
    cluster: &Cluster,
    expiring: Expiring,
) {
    let Expiring { begin, mut ends, mut stays, lenient } = expiring;
    let output = ends.wait_end(Duration::from_secs(90)).unwrap();
    let lived = begin.elapsed();
    assert!(lived > Duration::from_secs(55) && lived < Duration::from_secs(75), "{lived:?}: {output}");
    assert!(output.stderr_text().contains("expired"), "{output}");
    wait_until("both certificates to have run out", || {
        cluster.way(&lenient, 0).args(["ssh", "root@web-1", "true"]).output().code == Some(255)
    });
    assert!(!stays.is_ended(), "{}", stays.stderr_so_far());
    let told = cluster.way(&lenient, 0).arg("ls").output();
    let _expired = told.ended_with(6).complaining("expired");
}

fn j_silence_ends_sessions_where_that_is_asked_for(cluster: &Cluster) {
    let identity = user(cluster, "silent", "client_idle_timeout: 3s", "1h");
    let begin = Instant::now();
    let mut silent = session(cluster, &identity);
    let ssh = cluster.ssh(&identity, 0);
    let mut busy = ssh.run("web-1", &["-tt"], "stty -echo; echo begun; cat").start();
    busy.wait_for_stdout("begun");
    // Types now and then until the silent one has ended.
    wait_until("the silent session to end", || {
        busy.write("typed\r");
        silent.is_ended()
    });
    let lived = begin.elapsed();
    assert!(lived > Duration::from_millis(2500) && lived < END_LIMIT, "{lived:?}");
    let complaint = silent.wait().stderr_text();
    assert!(complaint.contains("silent"), "{complaint}");
    assert!(!busy.is_ended(), "{}", busy.stderr_so_far());
}
