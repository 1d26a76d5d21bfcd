//! Wall clocks that jump an hour while processes run, forward and back: sessions go on, agents stay reachable or the
//! refusal names the clock, and everything is as before when the clock is right again, without a restart.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};
use wayleave_scenario::{
    Cluster, Daemon, Output, Running, WallClock, check_all, wait_for, wait_until, wait_until_within,
};

const AHEAD: &str = "+1h";
const BEHIND: &str = "-1h";
/// How long a clock is wrong.
const WRONG: Duration = Duration::from_secs(10);
/// The same for that of Auth: longer than a lease on routes (20 s) and than its word on the policy is the newest (15 s).
const WRONG_AT_AUTH: Duration = Duration::from_secs(25);
/// Processes look every minute whether something is to be renewed, and try again as often.
const RENEWAL: Duration = Duration::from_secs(200);
const NODES: [&str; 2] = ["web-1", "db-1"];

/// The clocks of one process of each kind; the others are right all the time.
struct Jumps {
    cluster: Cluster,
    auth: WallClock,
    /// Of the first.
    proxy: WallClock,
    /// Of `web-1`.
    agent: WallClock,
}

/// Whose clock is wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Auth,
    Proxy,
    Agent,
}

#[test]
fn clocks_jump() {
    let mut jumps = Jumps::start("clock-jumps");
    check_all!(&mut jumps;
        an_agent_an_hour_ahead,
        an_agent_an_hour_behind,
        a_proxy_an_hour_ahead,
        a_proxy_an_hour_behind,
        auth_an_hour_ahead,
        auth_an_hour_behind,
    );
}

#[test]
fn what_a_wrong_clock_issued() {
    let mut jumps = Jumps::start("clock-jumps-issued");
    check_all!(&mut jumps;
        certificates_that_a_wrong_clock_renewed,
        a_machine_that_is_to_join_while_auth_is_ahead,
    );
}

fn an_agent_an_hour_ahead(jumps: &mut Jumps) {
    jumps.check(Whose::Agent, AHEAD);
}

fn an_agent_an_hour_behind(jumps: &mut Jumps) {
    jumps.check(Whose::Agent, BEHIND);
}

fn a_proxy_an_hour_ahead(jumps: &mut Jumps) {
    jumps.check(Whose::Proxy, AHEAD);
}

fn a_proxy_an_hour_behind(jumps: &mut Jumps) {
    jumps.check(Whose::Proxy, BEHIND);
}

fn auth_an_hour_ahead(jumps: &mut Jumps) {
    jumps.check(Whose::Auth, AHEAD);
}

fn auth_an_hour_behind(jumps: &mut Jumps) {
    jumps.check(Whose::Auth, BEHIND);
}

/// Far enough for certificates to be renewed; what Auth issues meanwhile is not valid yet by the agent's clock, and by its
/// own when that is right again.
fn certificates_that_a_wrong_clock_renewed(jumps: &mut Jumps) {
    jumps.wait_whole();
    let node = &jumps.cluster.nodes[0].daemon;
    let mark = node.log_mark();
    let administrator = jumps.cluster.auth_file.data_dir.join("admin-identity");
    let before = std::fs::read(&administrator).unwrap();
    jumps.auth.set("+114h");
    jumps.agent.set("+113h");
    wait_until_within(RENEWAL, "a renewal by Auth and one that the agent does not take", || {
        let refused = "the Auth Service issued is not valid yet by the clock of this machine";
        std::fs::read(&administrator).unwrap() != before && node.log_since(mark).contains(refused)
    });
    jumps.auth.set("+0");
    jumps.agent.set("+0");
    wait_until_within(RENEWAL, "Auth to answer its administrator", || {
        jumps.cluster.admin().arg("ls").output().code == Some(0)
    });
    jumps.wait_whole();
    let _in = jumps.enter(&jumps.cluster.sign("bob", "30m"), 0, "web-1").succeeded();
}

/// Its own clock is right. It says what is wrong, and joins as soon as that is over.
fn a_machine_that_is_to_join_while_auth_is_ahead(jumps: &mut Jumps) {
    jumps.wait_whole();
    let scene = &jumps.cluster.scene;
    let config = scene.write("late-1.yaml", jumps.cluster.node_file("late-1").text());
    let identity = jumps.cluster.sign("bob", "30m");
    jumps.auth.set(AHEAD);
    let mut late = scene.daemon("late-1", &config);
    late.start();
    late.wait_for_log(0, "s ahead of that of this machine");
    jumps.auth.set("+0");
    wait_until("the machine to have joined", || jumps.enter(&identity, 0, "late-1").code == Some(0));
    assert_eq!(late.stop(), Some(0));
}

impl Jumps {
    fn start(name: &str) -> Self {
        let mut cluster = Cluster::builder(name)
            .proxies(2)
            .nodes(&NODES)
            .peering(1)
            .instance_lines(&["shutdown_timeout: 2s", "diag_addr: 127.0.0.1:0"])
            .start();
        let auth = WallClock::of(&mut cluster.auth, &cluster.scene);
        cluster.wait_auth();
        let proxy = WallClock::of(&mut cluster.proxies[0].daemon, &cluster.scene);
        let agent = WallClock::of(&mut cluster.nodes[0].daemon, &cluster.scene);
        // Longer than the clocks jump.
        let _identity = cluster.sign("alice", "8h");
        let _invitation = cluster.add_user("bob", "access", "root");
        Self { cluster, auth, proxy, agent }
    }

    fn check(&mut self, whose: Whose, by: &str) {
        self.wait_whole();
        let pids: Vec<i32> = self.cluster.daemons().map(Daemon::pid).collect();
        // Shorter than the clock jumps.
        let short = self.cluster.sign("bob", "30m");
        let ways = [0, 1].map(|proxy| NODES.map(|node| (proxy, node)));
        let mut sessions: Vec<Running> =
            ways.concat().into_iter().map(|(proxy, node)| self.session(proxy, node)).collect();

        self.clock(whose).set(by);
        let began = Instant::now();
        let long = if whose == Whose::Auth { WRONG_AT_AUTH } else { WRONG };
        let mut said = String::from("begun\n");
        wait_until("the clock to have been wrong for long enough", || {
            let line = format!("after {} ms\n", began.elapsed().as_millis());
            carry(&mut sessions, &line);
            said += &line;
            self.look_while_wrong(whose, by);
            began.elapsed() > long
        });
        if by == AHEAD && whose == Whose::Agent {
            let _told = self.enter(&short, 1, "web-1").failed().complaining("clock");
        }

        self.clock(whose).set("+0");
        let right = Instant::now();
        self.wait_whole();
        self.wait_confirmed(right);
        carry(&mut sessions, "after all\n");
        for mut session in sessions {
            session.close_input();
            assert_eq!(session.wait().succeeded().stdout_text(), format!("{said}after all\n"));
        }
        let _in = self.enter(&short, 0, "web-1").succeeded();
        let _in = self.enter(&self.cluster.sign("bob", "30m"), 1, "web-1").succeeded();
        assert_eq!(self.cluster.daemons().map(Daemon::pid).collect::<Vec<_>>(), pids);
    }

    fn clock(&self, whose: Whose) -> &WallClock {
        match whose {
            Whose::Auth => &self.auth,
            Whose::Proxy => &self.proxy,
            Whose::Agent => &self.agent,
        }
    }

    /// Nobody is offline, and whoever does not get in is told of the clock: only those whose certificates seem not valid
    /// yet.
    fn look_while_wrong(&self, whose: Whose, by: &str) {
        let listed = self.cluster.admin().args(["ls", "--format", "json"]).output();
        if whose == Whose::Auth && by == BEHIND && listed.code != Some(0) {
            let _told = listed.complaining("clock");
        } else {
            let listed: serde_json::Value = serde_json::from_slice(&listed.succeeded().stdout).unwrap();
            let listed = listed.as_array().unwrap();
            assert_eq!(listed.len(), NODES.len());
            assert!(listed.iter().all(|node| node["online"] == true), "{listed:?}");
        }
        for proxy in 0..2 {
            for node in NODES {
                let entered = self.enter(&self.cluster.identity(), proxy, node);
                let is_wrong = match whose {
                    Whose::Auth => false,
                    Whose::Proxy => proxy == 0,
                    Whose::Agent => node == "web-1",
                };
                if by == BEHIND && is_wrong && entered.code != Some(0) {
                    let _told = entered.complaining("clock");
                } else {
                    entered.succeeded().printed("in");
                }
            }
        }
    }

    fn enter(&self, identity: &Path, proxy: usize, node: &str) -> Output {
        self.cluster.way(identity, proxy).args(["ssh", &format!("root@{node}"), "echo in"]).output()
    }

    fn session(&self, proxy: usize, node: &str) -> Running {
        let way = self.cluster.way(&self.cluster.identity(), proxy);
        let mut running = way.args(["ssh", &format!("root@{node}"), "echo begun; cat"]).start();
        running.wait_for_stdout("begun");
        running
    }

    fn wait_whole(&self) {
        for node in NODES {
            (0..2).for_each(|proxy| self.cluster.wait_reachable(proxy, node));
            self.cluster.wait_listed(node, true);
        }
    }

    /// Proxies and agents hear from Auth that their policy is the newest, as before.
    fn wait_confirmed(&self, since: Instant) {
        for daemon in self.cluster.daemons().skip(1) {
            wait_until(&format!("the policy of {} to be confirmed", daemon.name()), || {
                policy_age(daemon) < since.elapsed()
            });
        }
    }
}

fn carry(sessions: &mut [Running], line: &str) {
    sessions.iter_mut().for_each(|session| session.write(line));
    sessions.iter_mut().for_each(|session| session.wait_for_stdout(line));
}

/// How long ago Auth confirmed what this process holds, as that says.
fn policy_age(daemon: &Daemon) -> Duration {
    let log = daemon.log_text();
    let shown = log.lines().rev().find(|line| line.contains("diagnostics: /metrics")).unwrap();
    let address = shown.rsplit("address=").next().unwrap().trim().to_owned();
    let seconds = wait_for("the metrics", || {
        let mut stream = TcpStream::connect(&address).ok()?;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let mut lines = answer.lines();
        lines.find_map(|line| line.strip_prefix("wayleave_policy_age_seconds ")?.parse().ok())
    });
    Duration::from_secs_f64(seconds)
}
