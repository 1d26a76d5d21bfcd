//! Documents of every kind, as people write them and as they are stored.

use wayleave_resource::{Kind, Resource};

/// Every kind once: what somebody writes, and the golden stored form.
const KINDS: &[(&str, &str)] = &[
    (include_str!("../golden/role.yaml"), include_str!("../golden/role.json")),
    (include_str!("../golden/user.yaml"), include_str!("../golden/user.json")),
    (include_str!("../golden/token.yaml"), include_str!("../golden/token.json")),
    (include_str!("../golden/node.yaml"), include_str!("../golden/node.json")),
    (include_str!("../golden/proxy.yaml"), include_str!("../golden/proxy.json")),
    (include_str!("../golden/lock.yaml"), include_str!("../golden/lock.json")),
    (
        include_str!("../golden/cluster_networking_config.yaml"),
        include_str!("../golden/cluster_networking_config.json"),
    ),
    (
        include_str!("../golden/cluster_auth_preference.yaml"),
        include_str!("../golden/cluster_auth_preference.json"),
    ),
    (include_str!("../golden/cert_authority.yaml"), include_str!("../golden/cert_authority.json")),
];

#[test]
fn every_kind_matches_its_golden_file_and_reads_back() {
    let mut kinds = Vec::new();
    let mut wrong = Vec::new();
    for (yaml, golden) in KINDS {
        let resource = Resource::parse_yaml(yaml).unwrap().remove(0);
        kinds.push(resource.kind());
        let stored = resource.to_stored_json();
        if stored != golden.trim_end() {
            println!("GOLDEN {} {stored}", resource.kind());
            wrong.push(resource.kind());
        }
        assert_eq!(Resource::parse_json(&stored).unwrap(), resource, "{stored}");
        let text = resource.to_yaml();
        assert_eq!(Resource::parse_yaml(&text).unwrap(), std::slice::from_ref(&resource), "{text}");
        assert_eq!(Resource::parse_yaml(&stored).unwrap(), [resource], "{stored}");
    }
    assert_eq!(kinds, Kind::ALL);
    assert_eq!(wrong, []);
}

#[test]
fn the_revision_is_shown_and_not_stored() {
    let mut resource = Resource::parse_yaml(KINDS[5].0).unwrap().remove(0);
    resource.metadata_mut().revision = Some("12".to_owned());
    assert!(resource.to_json().contains("\"revision\":\"12\""));
    assert!(!resource.to_stored_json().contains("revision"));
    assert_eq!(Resource::parse_yaml(&resource.to_yaml()).unwrap(), [resource]);
}

/// Every mistake that the text should give, as `line: path: part of the message`.
fn check(text: &str, expected: &[&str]) {
    let errors = Resource::parse_yaml(text).expect_err(text);
    let got: Vec<String> = errors
        .iter()
        .map(|e| format!("{}/{}: {}: {}", e.document, e.line.unwrap_or(0), e.path, e.message))
        .collect();
    assert_eq!(got.len(), expected.len(), "{got:#?}");
    for (got, expected) in got.iter().zip(expected) {
        let (place, part) = expected.split_once(" ~ ").expect("place ~ part");
        assert!(got.starts_with(place) && got.contains(part), "{got}\nexpected {expected}");
    }
}

fn role(spec: &str) -> String {
    format!("kind: role\nversion: v8\nmetadata:\n  name: dev\nspec:\n{spec}")
}

#[test]
fn all_mistakes_are_reported_with_line_and_near_miss() {
    check(
        "kind: role\nversion: v8\nmetadata:\n  nmae: dev\nspec:\n  options:\n    max_sesion_ttl: 8h\n    forward_agent: maybe\n  allow:\n    logins: [a, '']\n---\nkind: rolle\nversion: v8\n---\nkind: lock\nversion: v2\nmetadata: {name: l}\nspec: {target: {}, expires: tomorrow}\n",
        &[
            "1/4: metadata: ~ the field name is missing",
            "1/4: metadata.nmae: ~ did you mean name?",
            "1/7: spec.options.max_sesion_ttl: ~ did you mean max_session_ttl?",
            "1/8: spec.options.forward_agent: ~ expected true or false, found \"maybe\"",
            "1/10: spec.allow.logins[1]: ~ an empty entry",
            "2/12: kind: ~ did you mean role?",
            "3/18: spec.target: ~ name what is locked",
            "3/18: spec.expires: ~ a time such as",
        ],
    );
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    check(
        &role(
            "  options:\n    record_session: {default: strict}\n    pin_source_ip: yes\n    require_session_mfa: hardware_key\n    enhanced_recording: [network]\n    desktop_clipboard: no\n    create_host_user_mode: keep\n    device_trust_mode: required\n",
        ),
        &[
            "1/7: spec.options.record_session.default: ~ session recording comes later: a role that demands strict recording is refused",
            "1/8: spec.options.pin_source_ip: ~ pin_source_ip is not supported yet",
            "1/9: spec.options.require_session_mfa: ~ not supported yet",
            "1/10: spec.options.enhanced_recording: ~ not supported yet",
            "1/11: spec.options.desktop_clipboard: ~ cannot be forbidden yet",
            "1/12: spec.options.create_host_user_mode: ~ not supported yet",
            "1/13: spec.options.device_trust_mode: ~ not supported yet",
        ],
    );
    check(
        &role(
            "  deny:\n    db_users: [root]\n    kubernetes_labels: {env: prod}\n    db_labels: {}\n  allow:\n    require_session_join: [{name: x}]\n",
        ),
        &[
            "1/7: spec.deny.db_users: ~ a denial that nothing here can enforce is refused",
            "1/8: spec.deny.kubernetes_labels: ~ a denial that nothing here can enforce is refused",
            "1/11: spec.allow.require_session_join: ~ it restricts",
        ],
    );
    check(
        "kind: lock\nversion: v2\nmetadata: {name: l}\nspec: {target: {mfa_device: x}}",
        &["1/4: spec.target: ~ name what", "1/4: spec.target.mfa_device: ~ cannot be enforced"]
            .map(|_| "1/4: spec.target ~ "),
    );
    check(
        "kind: cluster_auth_preference\nversion: v2\nmetadata: {name: cluster-auth-preference}\nspec: {second_factor: webauthn, client_idle_timeout: 5m}",
        &[
            "1/4: spec.second_factor: ~ not supported yet",
            "1/4: spec.client_idle_timeout: ~ cluster_networking_config",
        ],
    );
    check(
        "kind: token\nversion: v2\nmetadata: {name: t}\nspec: {roles: [node, auth], join_method: github}",
        &[
            "1/4: spec.roles: ~ does not join by token",
            "1/4: spec.join_method: ~ github is not supported yet",
        ],
    );
}

#[test]
fn what_demands_nothing_passes() {
    let text = role(
        "  options:\n    pin_source_ip: off\n    require_session_mfa: No\n    record_session: {default: best_effort, desktop: true}\n    enhanced_recording: []\n    cert_format: standard\n    create_host_user_mode: off\n    request_access: optional\n    max_sessions: 0\n    max_detached: 0s\n    client_idle_timeout: never\n    port_forwarding: ON\n    forward_agent: n\n  allow:\n    app_labels: {'*': '*'}\n    request: {roles: [admin]}\n  deny: {}\n",
    )
    .replace("No\n", "no\n");
    let Resource::Role(role) = Resource::parse_yaml(&text).unwrap().remove(0) else { panic!() };
    assert_eq!(role.spec.options.port_forwarding, Some(true));
    assert_eq!(role.spec.options.forward_agent, Some(false));
    assert_eq!((role.spec.options.max_sessions, role.spec.options.client_idle_timeout), (None, None));
    assert_eq!(role.spec.allow.later.keys().collect::<Vec<_>>(), ["request"]);
    assert_eq!(role.spec.allow.app_labels.keys().collect::<Vec<_>>(), ["*"]);
    assert_eq!(role.spec.options.max_detached, "0s".parse().ok());
}

#[test]
fn versions_are_read_or_explained() {
    for (version, part) in [
        ("v3", "allow every node as soon as logins are given"),
        ("v4", "write v8"),
        ("v9", "newer than this build"),
        ("x", "there are v5, v6, v7, v8"),
    ] {
        check(&role("  allow: {}").replace("v8", version), &[&format!("1/2: version: ~ {part}")]);
    }
    for version in ["v5", "v6", "v7", "v8"] {
        Resource::parse_yaml(&role("  allow: {}").replace("v8", version)).unwrap();
    }
}

#[test]
fn text_that_two_readers_could_read_differently_is_refused() {
    for (text, part) in [
        ("kind: role\nkind: user\n", "is given twice"),
        ("kind: !!str role\n", "tags"),
        ("a: &a {b: c}\n<<: *a\n", "merge keys"),
        ("[a, b]: c\n", "a key must be a word"),
        ("", "there is no document"),
        ("# nothing\n---\n", "there is no document"),
        ("a: [", "not YAML"),
        ("a: *nothing\n", "not YAML"),
        ("- a\n", "expected a map, found a list"),
    ] {
        let errors = Resource::parse_yaml(text).expect_err(text);
        assert!(errors.to_string().contains(part), "{text:?}: {errors}");
    }
    for (text, part) in [
        (r#"{"kind":"user","kind":"role"}"#, "is given twice"),
        (r#"{"kind":"user""#, "not JSON"),
        ("[]", "expected a map, found a list"),
    ] {
        let errors = Resource::parse_json(text).expect_err(text);
        assert!(errors.to_string().contains(part), "{text:?}: {errors}");
    }
}

#[test]
fn f_aliases_do_not_explode() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..30 {
        let list = vec![format!("*a{}", n - 1); 9].join(", ");
        text.push_str(&format!("a{n}: &a{n} [{list}]\n"));
    }
    let errors = Resource::parse_yaml(&text).unwrap_err();
    assert!(errors.to_string().contains("more than 400000 values"), "{errors}");
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    assert!(Resource::parse_yaml(&deep).unwrap_err().to_string().contains("nested deeper"));
    let long = format!("kind: {}", "x".repeat(5 * 1024 * 1024));
    assert!(Resource::parse_yaml(&long).unwrap_err().to_string().contains("at most 4194304"));
}
