//! Broken files and the exact answers to them.
//!
//! `golden/*.txt` holds blocks: a file, `>>>`, its whole report, an empty line. A report is part of
//! the product: change it on purpose. A run that differs writes what it got beside the test binary.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;
use wayleave_config::{Config, DEPTH_MAX, ERRORS_MAX, FILE_BYTES_MAX};

#[test]
fn syntax() {
    check_golden("syntax");
}

#[test]
fn empty_files() {
    check_golden("empty_files");
}

#[test]
fn keys_that_nobody_knows() {
    check_golden("keys_that_nobody_knows");
}

#[test]
fn keys_twice() {
    check_golden("keys_twice");
}

#[test]
fn wrong_types() {
    check_golden("wrong_types");
}

#[test]
fn addresses_networks_and_paths() {
    check_golden("addresses_networks_and_paths");
}

#[test]
fn durations_and_counts() {
    check_golden("durations_and_counts");
}

#[test]
fn the_way_to_the_cluster() {
    check_golden("the_way_to_the_cluster");
}

#[test]
fn what_the_field_has_and_we_have_not() {
    check_golden("what_the_field_has_and_we_have_not");
}

#[test]
fn f_a_huge_file_is_refused_unread() {
    let text = "#".repeat(FILE_BYTES_MAX + 1);
    check(&text, "w.yaml:1:1: found a file of 1048577 bytes; expected at most 1048576 bytes");
    let fits = format!("auth_service: {{}}\n{}", "#".repeat(FILE_BYTES_MAX - 17));
    assert_eq!(fits.len(), FILE_BYTES_MAX);
    check(&fits, "accepted");
}

#[test]
fn f_nesting_is_bounded() {
    let too_deep = "found nesting that is too deep; expected at most 32 maps and lists inside one another";
    let flow = |depth: usize| format!("a: {}{}\n", "[".repeat(depth), "]".repeat(depth));
    assert!(report(&flow(100_000)).ends_with(too_deep));
    check(&flow(DEPTH_MAX), &format!("w.yaml:1:35: {too_deep}"));
    assert!(report(&flow(DEPTH_MAX - 1)).contains("an unknown key"));
    let block: String = (0..1000).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    assert!(report(&block).ends_with(too_deep), "{}", report(&block));
    let dashes = "- ".repeat(100_000);
    assert!(report(&dashes).ends_with(too_deep), "{}", report(&dashes));
    // Each alias adds the height of what it stands for.
    let half = DEPTH_MAX / 2;
    let aliased = format!(
        "a: &a {}{}\nb: {}*a{}\n",
        "[".repeat(half),
        "]".repeat(half),
        "[".repeat(half),
        "]".repeat(half)
    );
    assert!(report(&aliased).ends_with(too_deep), "{}", report(&aliased));
}

#[test]
fn f_an_alias_bomb_is_refused_before_it_is_built() {
    let mut laughs = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for n in 1..30 {
        let again = format!("*a{}, ", n - 1).repeat(9);
        laughs.push_str(&format!("a{n}: &a{n} [{again}]\n"));
    }
    assert!(
        report(&laughs).contains("found too many values; expected at most 65536 values, aliases expanded")
    );
    let text = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a, ".repeat(10_000));
    assert!(report(&text).contains("found too much text"), "{}", report(&text));
    let many = format!("a: [{}]\n", "1,".repeat(70_000));
    assert!(report(&many).contains("found too many values"), "{}", report(&many));
}

#[test]
fn f_mistakes_are_counted_behind_a_bound() {
    let keys: String = (0..ERRORS_MAX + 20).map(|n| format!("cluster_nam{n}: x\n")).collect();
    let errors = Config::parse(&keys, "w.yaml").unwrap_err();
    assert_eq!((errors.errors.len(), errors.left_out), (ERRORS_MAX, 21));
    assert!(errors.to_string().ends_with("\nand 21 more"));
}

#[test]
fn control_characters_are_no_yaml_and_never_reach_a_terminal() {
    for text in [
        "auth_service: {}\0\n",
        "auth_service: {\"a\\nb\\e[31m\": \"\\e[31m\"}\n",
        "auth_service: {listen_addr: \"\\e[31m\"}\n",
    ] {
        let report = report(text);
        assert!(!report.chars().any(|c| c.is_control()), "{report:?}");
    }
}

#[test]
fn m_no_report_repeats_a_secret() {
    let canary = "canary-4711";
    for text in [
        "wayleave: {auth_token: 'canary-4711 x'}",
        "wayleave: {auth_token: [canary-4711]}",
        "wayleave: {auth_token: {x: canary-4711}}",
        "wayleave: {join_params: {token_name: 'canary-4711 ', token_secret: \"canary-4711\\n\"}}",
        "wayleave: {join_params: canary-4711}",
        "wayleave: {storage: {conn_string: 'postgres://u:canary-4711@h'}}",
        "wayleave:\n  auth_token canary-4711",
        "auth_service: {tokens: [canary-4711]}",
        "auth_service: {tokens: ['nod:canary-4711', 'canary-4711:x', 'node:canary-4711 x']}",
        "auth_service: {tokens: canary-4711}",
        "jamf_service: {password: canary-4711}",
        "wayleave: {auth_token: canary-4711, auth_token: canary-4711}",
    ] {
        let report = report(&format!("{text}\n"));
        assert_ne!(report, "accepted", "{text}");
        assert!(!report.contains(canary), "{text}\n{report}");
    }
    let config = Config::parse(
        "wayleave: {auth_token: canary-4711}\nauth_service: {tokens: ['node:canary-4711']}\n",
        "w.yaml",
    );
    assert!(!format!("{:?}", config.unwrap()).contains(canary));
}

#[test]
fn e_no_key_that_restricts_is_ignored() {
    // Each of these narrows access in the field. It must be read or refused.
    for text in [
        "auth_service: {authentication: {require_session_mfa: hardware_key}}",
        "auth_service: {authentication: {require_session_mfa: true}}",
        "auth_service: {authentication: {device_trust: {mode: required}}}",
        "auth_service: {authentication: {device_trust: required}}",
        "auth_service: {authentication: {allow_local_auth: false}}",
        "auth_service: {authentication: {hardware_key: {pin_cache_ttl: 1m}}}",
        "auth_service: {authentication: {second_factor: webauthn}}",
        "auth_service: {authentication: {second_factors: []}}",
        "auth_service: {session_recording: proxy-sync}",
        "auth_service: {web_idle_timeout: 5m}",
        "auth_service: {session_control_timeout: 10s}",
        "auth_service: {message_of_the_day: hello}",
        "auth_service: {proxy_checks_host_keys: no}",
        "auth_service: {proxy_protocol: on}",
        "wayleave: {ciphers: [aes256-gcm@openssh.com]}",
        "wayleave: {ciphersuites: [TLS_AES_128_GCM_SHA256]}",
        "wayleave: {connection_limits: {rates: [{period: 1m, average: 2, burst: 3}]}}",
        "ssh_service: {pam: {service_name: sshd}}",
        "ssh_service: {enhanced_recording: {enabled: yes}}",
        "ssh_service: {restricted_session: {enabled: yes}}",
        "ssh_service: {listen_addr: 127.0.0.1:3022}",
    ] {
        let name = text.split(':').next().unwrap();
        let auth = if name == "auth_service" { "" } else { "auth_service: {}\n" };
        let report = report(&format!("{auth}{text}\n"));
        assert_ne!(report, "accepted", "{text}");
    }
}

fn report(text: &str) -> String {
    Config::parse(text, "w.yaml").map_or_else(|errors| errors.to_string(), |_| "accepted".to_owned())
}

fn check(text: &str, expected: &str) {
    assert_eq!(report(text), expected);
}

fn check_golden(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.txt"));
    let golden = std::fs::read_to_string(&path).unwrap();
    let mut got = String::new();
    let mut blocks = 0;
    let mut input = String::new();
    let mut lines = golden.lines();
    while let Some(line) = lines.next() {
        if line != ">>>" {
            input.push_str(line);
            input.push('\n');
            continue;
        }
        got.push_str(&format!("{input}>>>\n{}\n\n", report(&input)));
        input.clear();
        blocks += 1;
        // The old report, up to the empty line.
        for old in lines.by_ref() {
            if old.is_empty() {
                break;
            }
        }
    }
    let beside = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.txt"));
    if got != golden {
        std::fs::write(&beside, &got).unwrap();
    }
    assert!(blocks > 3, "{name}: {blocks} blocks");
    assert_eq!(got, golden, "differs from {}; what it got is in {}", path.display(), beside.display());
}
