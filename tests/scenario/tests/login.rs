//! Invitations, login, lockout and reset, as people do them.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use wayleave_scenario::{
    Cluster, Forwarder, Invitation, OneTimeCodes, Output, Program, Terminal, canary, check_all, is_canary_in,
    wait_until,
};

#[test]
fn login() {
    let cluster = Cluster::builder("login").proxies(1).nodes(&["web-1"]).start();
    check_all!(&cluster;
        an_invitation_leads_to_a_login,
        an_invitation_works_once,
        d_without_a_pin_nothing_is_sent,
        weak_passwords_are_refused_and_the_invitation_stays,
        a_wrong_password_and_a_wrong_code_are_told_alike,
        a_code_is_good_once,
        n_five_failures_lock_a_user,
        a_reset_takes_password_and_codes_away,
        a_login_from_a_terminal_shows_no_password,
        the_life_of_a_certificate_is_capped,
        nobody_is_logged_in_before_a_login,
        e_an_editor_gives_no_role_that_he_lacks,
        who_may_not_enter_is_told_why,
        n_attempts_from_one_address_are_limited,
    );
}

/// A person with a home and a wire of their own. Whoever listens on the wire hears no secret.
struct Person<'a> {
    cluster: &'a Cluster,
    name: &'static str,
    password: String,
    codes: Option<OneTimeCodes>,
    used_codes: Vec<String>,
    wire: Forwarder,
}

impl<'a> Person<'a> {
    fn new(cluster: &'a Cluster, name: &'static str) -> Self {
        // Attempts are counted by address, so that each person has one.
        let last = name.bytes().fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
        Self {
            cluster,
            name,
            password: canary("password"),
            codes: None,
            used_codes: Vec::new(),
            wire: Forwarder::start_from(Ipv4Addr::new(127, 0, 9, last), cluster.web(0)),
        }
    }

    fn invited(cluster: &'a Cluster, name: &'static str, roles: &str) -> (Self, Invitation) {
        (Self::new(cluster, name), cluster.add_user(name, roles, "root"))
    }

    /// Invited and logged in.
    fn accepted(cluster: &'a Cluster, name: &'static str, roles: &str) -> Self {
        let (mut person, invitation) = Self::invited(cluster, name, roles);
        let _done = person.accept(&invitation).succeeded();
        person
    }

    fn way(&self) -> Program {
        self.cluster.scene.way().env("WAY_HOME", self.cluster.scene.path(&format!("home-{}", self.name)))
    }

    fn pin(&self) -> String {
        self.cluster.pins.join(",")
    }

    fn proxy(&self) -> String {
        self.wire.address().to_string()
    }

    fn show(&mut self, invitation: &Invitation) {
        let show = self.way().args([
            "invite",
            "show",
            &invitation.url,
            "--proxy",
            &self.proxy(),
            "--format",
            "json",
        ]);
        self.codes = Some(OneTimeCodes::from_uri(show.json()["totp_uri"].as_str().unwrap()));
    }

    fn next_code(&mut self) -> String {
        let code = self.codes.as_mut().unwrap().next_code();
        self.used_codes.push(code.clone());
        code
    }

    fn wrong_code(&self) -> String {
        self.codes.as_ref().unwrap().wrong_code()
    }

    fn accept(&mut self, invitation: &Invitation) -> Output {
        self.show(invitation);
        let (password, code) = (self.password.clone(), self.next_code());
        self.accept_with(invitation, &password, &code)
    }

    fn accept_with(&self, invitation: &Invitation, password: &str, code: &str) -> Output {
        let accept = self.way().args(["invite", "accept", &invitation.url, "--proxy", &self.proxy()]);
        accept.args(["--password-stdin", "--totp", code]).input(format!("{password}\n")).output()
    }

    fn login(&mut self) -> Output {
        let (password, code) = (self.password.clone(), self.next_code());
        self.login_with(&password, &code)
    }

    fn login_with(&self, password: &str, code: &str) -> Output {
        let login = self.login_program(code).args(["--ca-pin", &self.pin()]);
        login.input(format!("{password}\n")).output()
    }

    fn login_program(&self, code: &str) -> Program {
        let login = self.way().args(["login", "--proxy", &self.proxy(), "--user", self.name]);
        login.args(["--password-stdin", "--totp", code])
    }
}

impl Drop for Person<'_> {
    fn drop(&mut self) {
        let recorded = self.wire.recorded();
        let heard = |secret: &String| recorded.windows(secret.len()).any(|part| part == secret.as_bytes());
        let is_heard = is_canary_in(&recorded).is_some() || self.used_codes.iter().any(heard);
        if !std::thread::panicking() {
            assert!(!is_heard, "a secret of {} was on the wire", self.name);
        }
    }
}

fn an_invitation_leads_to_a_login(cluster: &Cluster) {
    let mut person = Person::accepted(cluster, "bob", "access");
    let status = person.way().args(["status", "--format", "json"]).json();
    assert_eq!(
        (&status["active"]["username"], &status["active"]["roles"][0]),
        (&"bob".into(), &"access".into())
    );
    assert!(person.way().arg("ls").stdout().contains("web-1"));
    person.way().args(["ssh", "root@web-1", "echo in"]).output().succeeded().printed("in");
    // The configuration for stock ssh, by the login.
    let config = person.way().arg("config").stdout();
    let config = cluster.scene.write("bob.config", config);
    let ssh =
        cluster.scene.program("ssh").env("WAY_HOME", cluster.scene.path("home-bob")).arg("-F").arg(config);
    ssh.args(["-o", "BatchMode=yes", "root@web-1.scenario", "echo stock"])
        .output()
        .succeeded()
        .printed("stock");
    let _out = person.way().arg("logout").output().succeeded();
    let _nobody = person.way().arg("ls").output().ended_with(3).complaining("not logged in");
    let _again = person.login().succeeded();
    let home = cluster.scene.path("home-bob");
    for entry in walk(&home) {
        let mode = std::fs::metadata(&entry).unwrap().permissions().mode() & 0o077;
        assert_eq!(mode, 0, "{} is open to others", entry.display());
    }
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = vec![directory.to_owned()];
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

fn an_invitation_works_once(cluster: &Cluster) {
    let (mut person, invitation) = Person::invited(cluster, "carol", "access");
    let _done = person.accept(&invitation).succeeded();
    let (password, code) = (person.password.clone(), person.next_code());
    let _refused = person.accept_with(&invitation, &password, &code).failed().complaining("invitation");
    let (address, pin) = invitation.url.split_once('#').unwrap();
    let unknown = Invitation { url: format!("{}0000#{pin}", &address[..address.len() - 4]) };
    let _refused = person.accept_with(&unknown, &password, &code).failed().complaining("invitation");
}

fn d_without_a_pin_nothing_is_sent(cluster: &Cluster) {
    let mut person = Person::accepted(cluster, "dave", "access");
    let code = person.next_code();
    let login = |pin: &[&str]| {
        let login =
            person.login_program(&code).env("WAY_HOME", cluster.scene.path("home-stranger")).args(pin);
        login.input(format!("{}\n", person.password)).output()
    };
    let _refused = login(&[]).ended_with(3).complaining("pin");
    let wrong = format!("sha256:{}", "0f".repeat(32));
    let _refused = login(&["--ca-pin", &wrong]).failed().complaining("pin");
    // The code was not used up: it never left.
    let _done = login(&["--ca-pin", &person.pin()]).succeeded();
}

fn weak_passwords_are_refused_and_the_invitation_stays(cluster: &Cluster) {
    let (mut person, invitation) = Person::invited(cluster, "erin", "access");
    person.show(&invitation);
    let code = person.next_code();
    let _refused = person.accept_with(&invitation, "short", &code).failed().complaining("12");
    let _refused = person.accept_with(&invitation, "", &code).failed();
    let wrong = person.wrong_code();
    let password = person.password.clone();
    let _refused = person.accept_with(&invitation, &password, &wrong).failed().complaining("code");
    let _done = person.accept_with(&invitation, &password, &code).succeeded();
}

fn a_wrong_password_and_a_wrong_code_are_told_alike(cluster: &Cluster) {
    let mut person = Person::accepted(cluster, "frank", "access");
    let code = person.next_code();
    let wrong_password = person.login_with(&canary("wrong"), &code);
    let wrong_code = person.login_with(&person.password, &person.wrong_code());
    let nobody = Person::new(cluster, "no-such-user");
    let unknown_user = nobody.login_with(&nobody.password, "123456");
    let texts = [wrong_password, wrong_code, unknown_user].map(|output| output.ended_with(3).stderr_text());
    assert_eq!(texts[0], texts[1]);
    assert_eq!(texts[0], texts[2]);
    let _still_good = person.login().succeeded();
}

fn a_code_is_good_once(cluster: &Cluster) {
    let mut person = Person::accepted(cluster, "grace", "access");
    let code = person.next_code();
    let _done = person.login_with(&person.password, &code).succeeded();
    let _refused = person.login_with(&person.password, &code).ended_with(3);
}

fn n_five_failures_lock_a_user(cluster: &Cluster) {
    let mut person = Person::accepted(cluster, "heidi", "access");
    let code = person.next_code();
    for _ in 0..5 {
        let _refused = person.login_with(&canary("guess"), &person.wrong_code()).ended_with(3);
    }
    // Right now, and locked all the same.
    let _locked = person.login_with(&person.password, &code).ended_with(3);
    let users = cluster.admin().args(["users", "ls", "--format", "json"]).json();
    let heidi = users.as_array().unwrap().iter().find(|user| user["name"] == "heidi").unwrap().clone();
    assert!(heidi["locked_until"].is_string(), "{heidi}");
    // Whom the lock is not about goes on.
    let _entered =
        cluster.way(&cluster.identity(), 0).args(["ssh", "root@web-1", "true"]).output().succeeded();
}

fn a_reset_takes_password_and_codes_away(cluster: &Cluster) {
    let mut person = Person::accepted(cluster, "ivan", "access");
    let reset = cluster.admin().args(["users", "reset", "ivan", "--format", "json"]).json();
    let invitation = Invitation::read(&reset);
    let _refused = person.login().ended_with(3);
    person.password = canary("second-password");
    let _done = person.accept(&invitation).succeeded();
    let _done = person.login().succeeded();
}

fn a_login_from_a_terminal_shows_no_password(cluster: &Cluster) {
    let mut person = Person::accepted(cluster, "judy", "access");
    let code = person.next_code();
    let login =
        person.way().args(["login", "--proxy", &person.proxy(), "--user", "judy", "--ca-pin", &person.pin()]);
    let terminal = Terminal::start(&cluster.scene, "login", &login);
    terminal.wait_for_screen("Password");
    terminal.line(&person.password);
    terminal.wait_for_screen("code");
    terminal.line(&code);
    let screen = terminal.wait_for_screen("[ended 0]");
    assert!(!screen.contains(&person.password) && screen.contains("judy"), "{screen}");
}

fn the_life_of_a_certificate_is_capped(cluster: &Cluster) {
    let role = "kind: role\nversion: v7\nmetadata:\n  name: brief\nspec:\n  options:\n    max_session_ttl: 30m\n  allow:\n    \
                logins: [root]\n    node_labels:\n      '*': '*'\n";
    let _made = cluster.create(role).succeeded();
    let mut person = Person::accepted(cluster, "kim", "brief");
    let code = person.next_code();
    let login = person.login_program(&code).args(["--ca-pin", &person.pin(), "--ttl", "20h"]);
    let text = login.input(format!("{}\n", person.password)).stdout();
    assert!(text.contains("valid for 30m") || text.contains("valid for 29m"), "{text}");
}

fn nobody_is_logged_in_before_a_login(cluster: &Cluster) {
    let nobody = || cluster.scene.way().env("WAY_HOME", cluster.scene.path("home-nobody"));
    for arguments in
        [&["ls"][..], &["ssh", "root@web-1", "true"], &["config"], &["status"], &["tokens", "ls"]]
    {
        let refused = nobody().args(arguments).output();
        let expected = if arguments[0] == "ssh" { 255 } else { 3 };
        let _told = refused.ended_with(expected).complaining("way login");
    }
}

fn e_an_editor_gives_no_role_that_he_lacks(cluster: &Cluster) {
    let person = Person::accepted(cluster, "lars", "editor");
    let way = || person.way();
    // May write users and roles, but may not enter nodes, nor make himself one who may.
    let _refused = way().args(["ssh", "root@web-1", "true"]).output().ended_with(255).complaining("denied");
    let grab = cluster.scene.write(
        "grab.yaml",
        "kind: user\nversion: v2\nmetadata:\n  name: lars\nspec:\n  roles: [editor, access]\n  traits:\n    logins: [root]\n",
    );
    let _refused = way().arg("create").arg("-f").arg(&grab).output().ended_with(3);
    let wide = cluster.scene.write(
        "wide.yaml",
        "kind: role\nversion: v7\nmetadata:\n  name: editor\nspec:\n  allow:\n    logins: [root]\n    node_labels:\n      '*': '*'\n",
    );
    let _refused = way().arg("create").arg("-f").arg(&wide).output().ended_with(3);
    let _refused = way().args(["ssh", "root@web-1", "true"]).output().ended_with(255);
}

fn n_attempts_from_one_address_are_limited(cluster: &Cluster) {
    let nobody = Person::new(cluster, "no-such-user");
    let login = nobody.login_program("123456").args(["--ca-pin", &nobody.pin()]);
    let login = login.input(format!("{}\n", nobody.password));
    wait_until("too many attempts", || login.clone().output().stderr_text().contains("too many attempts"));
    // Whoever is known already is not held up by that.
    let _entered =
        cluster.way(&cluster.identity(), 0).args(["ssh", "root@web-1", "true"]).output().succeeded();
    assert!(cluster.list().iter().any(|node| node["name"] == "web-1"));
}

fn who_may_not_enter_is_told_why(cluster: &Cluster) {
    cluster.add_user("mallory", "auditor", "root");
    let identity = cluster.sign("mallory", "1h");
    let _refused = cluster
        .way(&identity, 0)
        .args(["ssh", "root@web-1", "true"])
        .output()
        .ended_with(255)
        .complaining("denied");
    let explain = |user: &str, target: &str| cluster.admin().args(["explain", user, "ssh", target]).output();
    let denied = explain("mallory", "root@web-1").ended_with(3);
    assert!(
        denied.stdout_text().contains("auditor") || denied.stdout_text().to_lowercase().contains("no role"),
        "{denied}"
    );
    let allowed = explain("alice", "root@web-1").succeeded();
    assert!(allowed.stdout_text().contains("access"), "{allowed}");
    let _unknown = explain("alice", "root@web-9").ended_with(4);
    let _unknown = explain("nobody-known", "root@web-1").ended_with(4);
}
