//! Two Auth Services on one backend: either is killed under load, in turn, and nothing that was acknowledged is lost, the
//! audit chain is one, and proxies and agents that name both, and people, go on with the other.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use wayleave_audit::{Chain, Envelope};
use wayleave_runtime::SystemClock;
use wayleave_scenario::{
    AuthFile, Cluster, Daemon, EtcdServer, Invitation, OneTimeCodes, PostgresServer, Program, Running, Way,
    canary, free_port, note_canary, wait_until,
};
use wayleave_store::{
    Backend, EtcdBackend, EtcdOptions, HistoryLimits, Key, PostgresAddress, PostgresBackend, PostgresOptions,
};
use wayleave_vocab::ClusterName;

/// Each instance is killed once.
const ROUNDS: usize = 2;
const WRITERS: usize = 3;
/// So many writes are acknowledged before an instance is killed, and again while it is dead.
const WRITES_PER_STEP: usize = 8;

#[test]
fn either_auth_may_die_on_postgresql() {
    let server = PostgresServer::start(&[]);
    let url = server.url("postgres", "");
    let storage = ["storage:".into(), "  type: postgresql".into(), format!("  conn_string: {url}")];
    check("auth_instances_postgresql", &storage, || async {
        let options = PostgresOptions::new(PostgresAddress::parse(&url).unwrap());
        Arc::new(PostgresBackend::open(options, Arc::new(SystemClock::new())).await.unwrap())
            as Arc<dyn Backend>
    });
}

#[test]
fn either_auth_may_die_on_etcd() {
    let server = EtcdServer::start(1, &[]);
    let storage =
        ["storage:".into(), "  type: etcd".into(), format!("  peers: [{}]", server.urls().join(", "))];
    check("auth_instances_etcd", &storage, || async {
        let options = EtcdOptions {
            peers: server.urls(),
            prefix: Key::parse("/wayleave").unwrap(),
            tls: None,
            login: None,
            history: HistoryLimits::default(),
        };
        Arc::new(EtcdBackend::open(options, Arc::new(SystemClock::new())).await.unwrap()) as Arc<dyn Backend>
    });
}

fn check<F: Future<Output = Arc<dyn Backend>>>(name: &str, storage: &[String], open: impl FnOnce() -> F) {
    let mut pair = Pair::start(name, storage);
    let load = Load::default();
    let mut sessions = [0, 1].map(|proxy| pair.session(proxy));
    for round in 0..ROUNDS {
        let (victim, survivor) = (round % 2, (round + 1) % 2);
        let admins = [pair.admin(0), pair.admin(1)];
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            (0..WRITERS).for_each(|writer| {
                let (load, admins, is_over) = (&load, &admins, &is_over);
                scope.spawn(move || load.write(admins, &format!("{round}-{writer}"), is_over));
            });
            load.wait_more(WRITES_PER_STEP);
            pair.instance(victim).kill();
            pair.check_people(survivor, round);
            for session in &mut sessions {
                session.write(format!("without {victim}\n"));
                session.wait_for_stdout(&format!("without {victim}"));
            }
            load.wait_more(WRITES_PER_STEP);
            // Agents and proxies have found the other, and people get in by either proxy.
            pair.check_life(survivor);
            pair.check_joins(survivor, round);
            is_over.store(true, Ordering::Release);
        });
        pair.instance(victim).start();
        pair.wait_instance(victim);
    }
    for mut session in sessions {
        session.close_input();
        assert_eq!(session.wait().succeeded().stdout_text(), "begun\nwithout 0\nwithout 1\n");
    }
    let acknowledged = load.acknowledged.lock().unwrap().clone();
    for instance in [0, 1] {
        let there = roles(&pair.admin(instance));
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "instance {instance} has lost {lost:?}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async { check_chain(&*open().await, &acknowledged).await });
    drop(pair);
}

/// A cluster with a second Auth Service.
struct Pair {
    // Ends before the directory goes that it works in.
    second: Daemon,
    second_config: PathBuf,
    cluster: Cluster,
    /// Where the Auth Services listen.
    auths: [SocketAddr; 2],
}

impl Pair {
    fn start(name: &str, storage: &[String]) -> Self {
        let lines: Vec<&str> = storage.iter().map(String::as_str).collect();
        let mut cluster = Cluster::builder(name).peering(1).auth_instance_lines(&lines).start_auth();
        let second_file = AuthFile {
            data_dir: cluster.scene.path("auth-2"),
            listen: free_port(),
            ..cluster.auth_file.clone()
        };
        let second_config = cluster.scene.write("auth-2.yaml", second_file.text());
        let mut second = cluster.scene.daemon("auth-2", &second_config);
        second.start();
        // Each proxy begins with another instance.
        let (one, other) = (cluster.auth_file.listen, second_file.listen);
        for (name, near, far) in [("proxy-1", one, other), ("proxy-2", other, one)] {
            let mut file = cluster.proxy_file(name);
            (file.auth_before, file.auth) = (vec![near], far);
            cluster.add_proxy(file);
        }
        wait_until("the proxies to be known", || cluster.known_proxies() == 2);
        let node = cluster.node_file("web-1");
        cluster.add_node(node);
        let mut node = cluster.node_file("db-1");
        node.way = Way::Auths(vec![other, one]);
        cluster.add_node(node);
        cluster.add_user("alice", "access", "root,nobody");
        cluster.sign("alice", "1h");
        let mut pair = Self { second, second_config, cluster, auths: [one, other] };
        pair.wait_instance(1);
        pair.check_life(0);
        pair.check_top();
        pair
    }

    fn admin(&self, instance: usize) -> Program {
        match instance {
            0 => self.cluster.admin(),
            _ => self.cluster.scene.way().arg("-c").arg(&self.second_config),
        }
    }

    fn instance(&mut self, instance: usize) -> &mut Daemon {
        if instance == 0 { &mut self.cluster.auth } else { &mut self.second }
    }

    fn wait_instance(&mut self, instance: usize) {
        let admin = self.admin(instance);
        wait_until("an Auth Service to answer", || {
            admin.clone().args(["status", "--format", "json"]).output().code == Some(0)
        });
    }

    /// Everything that a cluster is for, by one Auth Service alone.
    fn check_life(&mut self, survivor: usize) {
        for node in ["web-1", "db-1"] {
            self.cluster.wait_reachable(0, node);
            self.cluster.wait_reachable(1, node);
            self.cluster.wait_listed(node, true);
        }
        let identity = self.cluster.scene.path("bob.id");
        let admin = self.admin(survivor);
        let sign = ["auth", "sign", "--user", "alice", "--ttl", "1h", "--overwrite", "--out"];
        let _signed = admin.args(sign).arg(&identity).output().succeeded();
        let entered = self.cluster.way(&identity, 1).args(["ssh", "root@web-1", "echo", "entered"]);
        wait_until("a new certificate to be of use", || {
            entered.clone().output().stdout_text().contains("entered")
        });
    }

    /// Both show what every proxy does, whichever of them it talks to.
    fn check_top(&self) {
        for instance in [0, 1] {
            wait_until("both proxies' reports at either Auth Service", || {
                let top = self.admin(instance).args(["top", "--once", "--format", "json"]).json();
                let proxies = top["proxies"].as_array().expect("a list").clone();
                proxies.len() == 2 && proxies.iter().all(|proxy| proxy["dials_per_second"].is_number())
            });
        }
    }

    fn session(&self, proxy: usize) -> Running {
        let way = self.cluster.way(&self.cluster.identity(), proxy);
        let mut running = way.args(["ssh", "root@web-1", "echo begun; cat"]).start();
        running.wait_for_stdout("begun");
        running
    }

    /// Whoever comes at once after the other has died gets in at the first try: with what he has, by an invitation, and
    /// by password and code.
    fn check_people(&self, survivor: usize, round: usize) {
        let identity = self.cluster.identity();
        for (proxy, node) in [(0, "web-1"), (1, "web-1"), (0, "db-1"), (1, "db-1")] {
            let way = self.cluster.way(&identity, proxy).args(["ssh", &format!("root@{node}"), "echo in"]);
            way.output().succeeded().printed("in");
        }
        let name = format!("carol-{round}");
        let added = ["users", "add", &name, "--roles", "access", "--logins", "root", "--format", "json"];
        let invitation = Invitation::read(&self.admin(survivor).args(added).json());
        let way = self.cluster.scene.way().env("WAY_HOME", self.cluster.scene.path(&format!("home-{name}")));
        let [first, second] = [0, 1].map(|proxy| self.cluster.web(proxy).to_string());
        let shown = ["invite", "show", &invitation.url, "--proxy", &first, "--format", "json"];
        let shown = way.clone().args(shown).json();
        let mut codes = OneTimeCodes::from_uri(shown["totp_uri"].as_str().unwrap());
        let password = canary("password");
        let accepted = ["invite", "accept", &invitation.url, "--proxy", &first, "--password-stdin", "--totp"];
        let accepted = way.clone().args(accepted).arg(codes.next_code()).input(format!("{password}\n"));
        let _accepted = accepted.output().succeeded();
        let login = ["login", "--proxy", &second, "--user", &name, "--ca-pin", &self.cluster.pins.join(",")];
        let login = way.clone().args(login).args(["--password-stdin", "--totp", &codes.next_code()]);
        let _in = login.input(format!("{password}\n")).output().succeeded();
        way.args(["ssh", "root@web-1", "echo in"]).output().succeeded().printed("in");
    }

    /// Agents and a proxy join with a token of the survivor, by a proxy and by the addresses of both, the dead one first.
    fn check_joins(&mut self, survivor: usize, round: usize) {
        let token = self.admin(survivor).args(["tokens", "add", "--type", "node,proxy", "--ttl", "10m"]);
        let token = token.args(["--format", "json"]).json()["token"].as_str().unwrap().to_owned();
        note_canary(token.rsplit('.').next().unwrap());
        let auths = vec![self.auths[1 - survivor], self.auths[survivor]];
        let by_proxy = Way::Proxy(self.cluster.web(round % 2));
        for (way, kind) in [(by_proxy, "proxy"), (Way::Auths(auths.clone()), "auth")] {
            let mut node = self.cluster.node_file(&format!("joined-{round}-by-{kind}"));
            (node.way, node.token) = (way, token.clone());
            self.cluster.add_node(node);
        }
        let mut proxy = self.cluster.proxy_file(&format!("proxy-joined-{round}"));
        (proxy.auth_before, proxy.auth, proxy.token) = (vec![auths[0]], auths[1], token);
        self.cluster.add_proxy(proxy);
        for kind in ["proxy", "auth"] {
            for proxy in [0, 1, self.cluster.proxies.len() - 1] {
                self.cluster.wait_reachable(proxy, &format!("joined-{round}-by-{kind}"));
            }
        }
    }
}

#[derive(Default)]
struct Load {
    acknowledged: Mutex<BTreeSet<String>>,
    count: AtomicUsize,
}

impl Load {
    /// Writes by one Auth Service after the other.
    fn write(&self, admins: &[Program; 2], writer: &str, is_over: &AtomicBool) {
        for number in 0_usize.. {
            if is_over.load(Ordering::Acquire) {
                return;
            }
            let name = format!("role-{writer}-{number}");
            let role = format!(
                "kind: role\nversion: v7\nmetadata:\n  name: {name}\nspec:\n  allow:\n    logins: [x]\n"
            );
            let created = admins[number % 2].clone().args(["create", "-"]).input(role).output();
            if created.code == Some(0) {
                self.acknowledged.lock().unwrap().insert(name);
                self.count.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    fn wait_more(&self, writes: usize) {
        let until = self.count.load(Ordering::Acquire) + writes;
        wait_until("more writes to be acknowledged", || self.count.load(Ordering::Acquire) >= until);
    }
}

fn roles(admin: &Program) -> BTreeSet<String> {
    let listed = admin.clone().args(["get", "roles", "--format", "json"]).json();
    let names = listed.as_array().unwrap().iter();
    names.map(|role| role["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// The entries of both instances are one chain without a gap, and each acknowledged write stands in it.
async fn check_chain(backend: &dyn Backend, acknowledged: &BTreeSet<String>) {
    let mut chain = Chain::beginning(&ClusterName::parse("scenario").unwrap());
    let (mut after, mut hosts, mut noted) = (None, BTreeSet::new(), String::new());
    let events = Key::parse("/audit/events").unwrap();
    loop {
        let page = backend.range(&events, after.as_ref(), 500).await.unwrap();
        for item in &page.items {
            let end = item.value.iter().position(|byte| *byte == b'\n').unwrap();
            let (hash, bytes) = (&item.value[..end], &item.value[end + 1..]);
            let (next, entry) = chain.append(bytes.to_vec());
            assert_eq!(entry.hash.to_string().as_bytes(), hash, "{} breaks the chain", item.key);
            assert_eq!(item.key.name(), format!("{:020}", entry.index));
            hosts.insert(Envelope::decode(bytes).unwrap().origin.host_id);
            noted.push_str(&String::from_utf8_lossy(bytes));
            chain = next;
        }
        after = page.items.last().map(|item| item.key.clone());
        if !page.more {
            break;
        }
    }
    let head = backend.get(&Key::parse("/audit/head").unwrap()).await.unwrap().unwrap();
    let head: Chain = serde_json::from_slice(&head.value).unwrap();
    assert_eq!(head, chain);
    assert!(hosts.len() >= 3, "both instances and the agent have noted something: {hosts:?}");
    let missing: Vec<_> =
        acknowledged.iter().filter(|name| !noted.contains(&format!("\"{name}\""))).collect();
    assert!(missing.is_empty(), "{missing:?} are not in the audit log");
}
