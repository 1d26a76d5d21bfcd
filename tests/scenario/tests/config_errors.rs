//! Configuration files that must not start anything: each is answered with its place, its key and what was
//! expected; nothing is created, and no secret is repeated.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::PathBuf;
use wayleave_scenario::{Checks, Output, Scene, canary};

/// What starts nothing: a name, the file (`DIR` stands for the scene's directory), and parts of the complaint.
const BROKEN: &[(&str, &str, &[&str])] = &[
    ("empty", "", &["broken.yaml"]),
    ("only_a_comment", "# nothing\n", &["broken.yaml"]),
    ("not_yaml", "auth_service: [\n", &["broken.yaml:"]),
    ("a_list", "- auth_service\n", &["broken.yaml:1"]),
    ("a_tab", "auth_service:\n\tenabled: yes\n", &["broken.yaml:2"]),
    ("unknown_section", "auth_servce: {}\n", &["broken.yaml:1", "auth_service?"]),
    ("unknown_key", "auth_service:\n  cluter_name: x\n", &["broken.yaml:2", "cluster_name?"]),
    (
        "a_key_twice",
        "auth_service:\n  cluster_name: a\n  cluster_name: b\n",
        &["broken.yaml:3", "cluster_name"],
    ),
    (
        "an_alias_twice",
        "wayleave: {data_dir: DIR/d}\nteleport: {data_dir: DIR/e}\nauth_service: {}\n",
        &["teleport"],
    ),
    ("a_wrong_version", "version: v9\nauth_service: {}\n", &["broken.yaml:1", "version"]),
    ("no_service", "wayleave: {data_dir: DIR/d}\n", &["service"]),
    ("every_service_off", "auth_service: {enabled: no}\n", &["service"]),
    ("a_wrong_type", "auth_service:\n  listen_addr: [1]\n", &["broken.yaml:2", "listen_addr"]),
    ("a_bad_address", "auth_service:\n  listen_addr: nowhere\n", &["broken.yaml:2", "listen_addr"]),
    ("a_bad_port", "auth_service:\n  listen_addr: 127.0.0.1:70000\n", &["listen_addr"]),
    ("a_bad_duration", "wayleave: {shutdown_timeout: soon}\nauth_service: {}\n", &["shutdown_timeout"]),
    ("a_bad_name", "auth_service: {cluster_name: 'a b'}\n", &["cluster_name"]),
    ("a_relative_path", "wayleave: {data_dir: data}\nauth_service: {}\n", &["data_dir", "absolute"]),
    (
        "a_bad_pin",
        "wayleave: {auth_server: 'a:1', ca_pin: 'sha256:xyz', auth_token: t}\nproxy_service: {}\n",
        &["ca_pin"],
    ),
    ("a_node_with_nobody_to_join", "ssh_service: {}\n", &["proxy_server"]),
    ("a_proxy_with_nobody_to_join", "proxy_service: {}\n", &["auth_server"]),
    (
        "two_ways",
        "wayleave: {auth_server: 'a:1', proxy_server: 'b:2'}\nssh_service: {}\n",
        &["auth_server", "proxy_server"],
    ),
    (
        "a_service_that_is_not_built",
        "kubernetes_service: {enabled: yes}\nauth_service: {}\n",
        &["kubernetes_service"],
    ),
    ("strict_recording", "auth_service: {session_recording: node-sync}\n", &["session_recording"]),
    (
        "a_second_factor_that_is_not_built",
        "auth_service: {authentication: {second_factor: webauthn}}\n",
        &["second_factor"],
    ),
    (
        "a_listening_agent",
        "wayleave: {proxy_server: 'a:1', auth_token: t}\nssh_service: {listen_addr: '127.0.0.1:22'}\n",
        &["listen_addr"],
    ),
    (
        "a_proxy_header_from_anybody",
        "wayleave: {auth_server: 'a:1'}\nproxy_service: {proxy_protocol: on}\n",
        &["proxy_protocol_from"],
    ),
    (
        "several_mistakes",
        "auth_service:\n  listen_addr: x\n  cluster_name: 'a b'\n  nonsense: 1\n",
        &["broken.yaml:2", "broken.yaml:3", "broken.yaml:4"],
    ),
];

#[test]
fn broken_configurations_are_answered_and_nothing_starts() {
    let scene = Scene::new("config_errors");
    let mut checks = Checks::default();
    for (name, text, parts) in BROKEN {
        checks.run(name, || check(&scene, text, parts));
    }
    checks.run("a_missing_file", || {
        let output = start(&scene, scene.path("missing.yaml")).ended_with(2).complaining("missing.yaml");
        assert!(output.stderr_text().contains("wayleave configure"), "{output}");
    });
    checks.run("a_directory", || {
        let _told = start(&scene, scene.path("")).ended_with(2);
    });
    checks.run("not_text", || {
        let path = scene.write("broken.yaml", [0xff, 0xfe, 0, b'a', 0x80]);
        let _told = start(&scene, path).ended_with(2).complaining("broken.yaml");
    });
    checks.run("too_large", || {
        let path = scene.write("broken.yaml", vec![b'#'; 3 * 1024 * 1024]);
        let _told = start(&scene, path).ended_with(2).complaining("broken.yaml");
    });
    checks.run("m_a_secret_in_a_broken_file_is_not_repeated", || m_a_secret_is_not_repeated(&scene));
    checks.run("files_that_a_file_names_must_be_there", || files_that_a_file_names_must_be_there(&scene));
    checks.run("what_configure_prints_is_read", || what_configure_prints_is_read(&scene));
    checks.run("doctor_says_the_same", || doctor_says_the_same(&scene));
    checks.end();
}

fn start(scene: &Scene, path: PathBuf) -> Output {
    scene.wayleave().args(["start", "-c"]).arg(path).output()
}

fn check(scene: &Scene, text: &str, parts: &[&str]) {
    let directory = scene.path("");
    let text = text.replace("DIR", directory.to_str().unwrap().trim_end_matches('/'));
    let path = scene.write("broken.yaml", text);
    let output = start(scene, path).ended_with(2);
    for part in parts {
        assert!(output.stderr_text().contains(part), "{part:?}: {output}");
    }
    assert!(output.stderr_text().lines().count() <= 20, "{output}");
    assert!(!scene.path("d").exists() && !scene.path("e").exists(), "a data directory was made");
}

fn m_a_secret_is_not_repeated(scene: &Scene) {
    let secret = canary("in-config");
    for text in [
        format!("wayleave:\n  proxy_server: a:1\n  auth_token: [{secret}]\nssh_service: {{}}\n"),
        format!("wayleave:\n  proxy_server: a:1\n  auth_tokne: {secret}\nssh_service: {{}}\n"),
        format!("auth_service:\n  tokens:\n    - \"nonsense:{secret}\"\n"),
        format!("auth_service:\n  tokens: {secret}\n"),
        format!("wayleave:\n  auth_token: \"{secret}\n"),
        format!("wayleave:\n  join_params: {secret}\nssh_service: {{}}\n"),
    ] {
        let output = start(scene, scene.write("broken.yaml", text)).ended_with(2);
        assert!(!output.stderr_text().contains(&secret), "a secret was repeated");
        assert!(output.stdout.is_empty());
    }
}

/// Found only when they are opened; still before anything is started.
fn files_that_a_file_names_must_be_there(scene: &Scene) {
    let directory = scene.path("named").display().to_string();
    let data = format!("data_dir: {directory}/data");
    let files = [
        (
            format!(
                "wayleave: {{{data}, proxy_server: '127.0.0.1:1', auth_token: {directory}/token}}\nssh_service: {{}}\n"
            ),
            "auth_token",
        ),
        (
            format!(
                "wayleave: {{{data}, proxy_server: '127.0.0.1:1', ca_pin: {directory}/pin, auth_token: t}}\nssh_service: {{}}\n"
            ),
            "ca_pin",
        ),
        (
            format!(
                "wayleave: {{{data}}}\nauth_service: {{listen_addr: '127.0.0.1:0', tokens: ['node:{directory}/token']}}\n"
            ),
            "tokens",
        ),
    ];
    for (text, key) in files {
        let output = start(scene, scene.write("names.yaml", text)).failed();
        assert!(
            output.stderr_text().contains(key) && output.stderr_text().contains("named"),
            "{key}: {output}"
        );
        assert!(!output.stderr_text().contains("panicked"), "{output}");
    }
    let empty = scene.write("empty-token", "\n");
    let text = format!(
        "wayleave: {{{data}, proxy_server: '127.0.0.1:1', auth_token: {}}}\nssh_service: {{}}\n",
        empty.display()
    );
    let _told = start(scene, scene.write("names.yaml", text)).failed().complaining("empty");
}

fn what_configure_prints_is_read(scene: &Scene) {
    for roles in ["auth", "proxy", "node", "auth,proxy", "auth,proxy,node", "proxy,node"] {
        let text = scene
            .wayleave()
            .args(["configure", "--roles", roles, "--data-dir"])
            .arg(scene.path("x"))
            .stdout();
        let path = scene.write("printed.yaml", text);
        let report = scene.wayleave().args(["doctor", "-c"]).arg(path).output();
        assert!(report.stdout_text().contains("printed.yaml can be read"), "{roles}: {report}");
    }
}

fn doctor_says_the_same(scene: &Scene) {
    let path = scene.write("broken.yaml", "auth_service:\n  cluter_name: x\n");
    let report = scene.wayleave().args(["doctor", "-c"]).arg(path).output().failed();
    assert!(report.stdout_text().contains("cluster_name?"), "{report}");
}
