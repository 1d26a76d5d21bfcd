//! `wayleave demo`: what a stranger runs first.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::sys::signal::Signal;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use wayleave_scenario::{Scene, check_all, descendants, is_alive, wait_until};

#[test]
fn the_demo() {
    let scene = Scene::new("demo");
    check_all!(&scene;
        once_as_json_it_prints_one_object,
        once_as_text_it_shows_both_ways,
        a_command_that_fails_is_no_success,
        it_stays_until_it_is_interrupted_and_leaves_nothing,
        it_ends_with_its_terminal_and_leaves_nothing,
        a_directory_of_ones_own_is_kept,
    );
}

fn once_as_json_it_prints_one_object(scene: &Scene) {
    let report =
        scene.wayleave().args(["demo", "--once", "--format", "json", "--command", "echo $((6*7))"]).json();
    check_way(&report);
    let after = &report["after_kill"];
    check_way(after);
    let (ingress, home) = (&report["ingress_proxy"], &report["home_proxy"]);
    assert!(ingress != home && &after["ingress_proxy"] != ingress, "{report}");
    assert_eq!(&after["home_proxy"], home, "{report}");
    assert_eq!(after["agent"], report["agent"], "{report}");
}

fn check_way(way: &Value) {
    for key in ["target", "agent", "ingress_proxy", "home_proxy", "client", "command", "output"] {
        assert!(way[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {way}");
    }
    assert!(way["milliseconds"].as_u64().is_some(), "{way}");
    assert_eq!(way["output"], "42", "{way}");
    assert_eq!(way["client"], "ssh", "{way}");
}

fn once_as_text_it_shows_both_ways(scene: &Scene) {
    let text = scene.wayleave().args(["demo", "--once"]).stdout();
    for part in ["ingress proxy", "home proxy", "hello from", "Killed", " ms"] {
        assert!(text.contains(part), "{part:?} not in\n{text}");
    }
}

fn a_command_that_fails_is_no_success(scene: &Scene) {
    let output = scene.wayleave().args(["demo", "--once", "--command", "exit 7"]).output().failed();
    assert!(!output.stderr_text().is_empty(), "{output}");
}

fn it_stays_until_it_is_interrupted_and_leaves_nothing(scene: &Scene) {
    check_leaves_nothing(scene, "interrupted", Signal::SIGINT);
}

fn it_ends_with_its_terminal_and_leaves_nothing(scene: &Scene) {
    check_leaves_nothing(scene, "hung-up", Signal::SIGHUP);
}

fn check_leaves_nothing(scene: &Scene, name: &str, signal: Signal) {
    let temporary = scene.path(name);
    std::fs::create_dir(&temporary).unwrap();
    let mut demo = scene.wayleave().env("TMPDIR", &temporary).arg("demo").start();
    demo.wait_for_stdout("Ctrl-C");
    let below = descendants(demo.pid());
    assert!(below.len() >= 5, "{below:?}");
    demo.signal(signal);
    let output = demo.wait();
    assert_eq!(output.code, Some(0), "{output}");
    wait_until("everything to have ended", || below.iter().all(|pid| !is_alive(*pid)));
    let left: Vec<_> = std::fs::read_dir(&temporary).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn a_directory_of_ones_own_is_kept(scene: &Scene) {
    let directory = scene.path("kept");
    let demo = || scene.wayleave().args(["demo", "--once", "--data-dir"]).arg(&directory).output();
    let _done = demo().succeeded();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("token")), 0o600, "the token joins proxies");
    let files = directory.read_dir().unwrap().count();
    assert!(files > 0);
    let _told = demo().failed().complaining("remove it or name another directory");
    assert_eq!(directory.read_dir().unwrap().count(), files);
}
