//! Decisions, case by case.

use crate::support::{NOW, ask, ask_with, lock, logins, node, policy, role, traits, user};
use std::time::Duration;
use wayleave_policy::{
    CompiledRole, Context, DenialReason, DenyKey, LockSet, Policy, ResourceView, Settings, Subject, access,
    auditor, editor, presets,
};
use wayleave_resource::{AdminVerb, Kind, LockingMode, RuleTarget};
use wayleave_vocab::{ClusterName, Labels, Login, ResourceName, RoleName, Ttl};

/// Is `login` allowed on a node with these labels, for a user with team=shop and logins=alice?
fn check(spec: &str, login: &str, labels: &str, expected: bool) {
    let policy = policy(&[role("r", spec)]);
    let user = user(&["r"], &["team=shop,ops", "logins=alice", "email=a@x.org", "star=*", "k8s="]);
    let got = ask(&policy, &user, login, &node(labels));
    assert_eq!(got.is_ok(), expected, "{spec} {login} {labels}: {got:?}");
}

#[test]
fn labels_are_and_over_keys_and_or_over_values() {
    let spec = "{allow: {logins: [root], node_labels: {env: [dev, 'stag*'], tier: '^(web|db)$'}}}";
    check(spec, "root", "env=dev,tier=web", true);
    check(spec, "root", "env=staging,tier=db,more=x", true);
    check(spec, "root", "env=dev", false);
    check(spec, "root", "env=prod,tier=web", false);
    check(spec, "root", "env=dev,tier=webdb", false);
    check(spec, "ubuntu", "env=dev,tier=web", false);
    check("{allow: {logins: [root], node_labels: {'*': '*'}}}", "root", "", true);
    check("{allow: {logins: [root], node_labels: {env: '*'}}}", "root", "", false);
    check("{allow: {logins: [root]}}", "root", "env=dev", false);
    check("{allow: {node_labels: {'*': '*'}}}", "root", "env=dev", false);
    check("{allow: {logins: [root], node_labels: {env: []}}}", "root", "env=dev", false);
}

#[test]
fn expressions_narrow_labels_under_allow_and_deny_by_themselves() {
    let both = "{allow: {logins: [root], node_labels: {env: dev}, node_labels_expression: 'labels[\"t\"] == \"x\"'}}";
    check(both, "root", "env=dev,t=x", true);
    check(both, "root", "env=dev,t=y", false);
    check(both, "root", "env=prod,t=x", false);
    let deny = "{allow: {logins: [root], node_labels: {'*': '*'}}, deny: {node_labels: {a: x, b: y}, node_labels_expression: 'labels[\"c\"] == \"z\"'}}";
    check(deny, "root", "a=x", true);
    check(deny, "root", "a=x,b=y", false);
    check(deny, "root", "c=z", false);
}

#[test]
fn j_a_role_that_was_taken_away_is_not_held_until_certificates_with_it_have_run_out() {
    let roles = [
        role("all", "{allow: {logins: [root], node_labels: {'*': '*'}}}"),
        role("dev", "{allow: {logins: [root], node_labels: {env: dev}}}"),
        role(
            "by-role",
            "{allow: {logins: [root], node_labels: {'*': '*'}, node_labels_expression: 'contains(user.spec.roles, \"all\")'}}",
        ),
    ];
    let until = NOW.after(Duration::from_secs(60));
    let name = |text| RoleName::parse(text).unwrap();
    let alice = wayleave_vocab::UserName::parse("alice").unwrap();
    let policy = policy(&roles).with_withdrawn_roles([(alice.clone(), name("all"), until)]);
    let prod = node("env=prod");
    let check = |held: &[&str], expected: bool| {
        let got = ask(&policy, &user(held, &[]), "root", &prod);
        assert_eq!(got.is_ok(), expected, "{held:?}: {got:?}");
    };
    check(&["all"], false);
    check(&["all", "dev"], false);
    check(&["all", "by-role"], false);
    assert!(ask(&policy, &user(&["all", "dev"], &[]), "root", &node("env=dev")).is_ok());
    let mut other = user(&["all"], &[]);
    other.name = wayleave_vocab::UserName::parse("bob").unwrap();
    assert!(ask(&policy, &other, "root", &prod).is_ok(), "others keep theirs");

    let late = policy.decide_ssh(
        &user(&["all"], &[]),
        &prod.view(),
        &Login::parse("root").unwrap(),
        &Context { locks: &LockSet::default(), locks_age: Duration::ZERO },
        until,
    );
    assert!(late.is_ok(), "{late:?}");
    let lists = policy.visible_nodes(
        &user(&["all"], &[]),
        [(prod.view(), ())],
        &Context { locks: &LockSet::default(), locks_age: Duration::ZERO },
        NOW,
    );
    assert!(lists.is_empty());
}

#[test]
fn deny_wins_by_login_or_label() {
    let spec = "{allow: {logins: [root, ubuntu], node_labels: {'*': '*'}}, deny: {logins: ['ro*'], node_labels: {env: prod}}}";
    check(spec, "ubuntu", "env=dev", true);
    check(spec, "root", "env=dev", false);
    check(spec, "ubuntu", "env=prod", false);
    check("{allow: {logins: [root], node_labels: {'*': '*'}}, deny: {logins: ['*']}}", "root", "", false);
    check(
        "{allow: {logins: [root], node_labels: {'*': '*'}}, deny: {logins: ['^r.*t$']}}",
        "root",
        "",
        false,
    );
    // A login allowed by one role on some nodes is not lent to another role's nodes.
    let policy = policy(&[
        role("a", "{allow: {logins: [root], node_labels: {env: dev}}}"),
        role("b", "{allow: {logins: [ubuntu], node_labels: {env: prod}}}"),
    ]);
    let user = user(&["a", "b"], &[]);
    assert!(ask(&policy, &user, "root", &node("env=dev")).is_ok());
    let denial = ask(&policy, &user, "root", &node("env=prod")).unwrap_err();
    assert_eq!(denial.reason, DenialReason::LoginNotAllowed);
}

#[test]
fn templates_take_traits_literally_and_drop_what_is_missing() {
    let every = "node_labels: {'*': '*'}";
    check(&format!("{{allow: {{logins: ['{{{{internal.logins}}}}'], {every}}}}}"), "alice", "", true);
    check(&format!("{{allow: {{logins: ['{{{{internal.logins}}}}'], {every}}}}}"), "root", "", false);
    check(
        &format!("{{allow: {{logins: ['dev-{{{{email.local(external.email)}}}}'], {every}}}}}"),
        "dev-a",
        "",
        true,
    );
    check(&format!("{{allow: {{logins: ['{{{{user.metadata.name}}}}'], {every}}}}}"), "alice", "", true);
    check(
        &format!("{{allow: {{logins: ['{{{{external.none}}}}', '{{{{external.k8s}}}}'], {every}}}}}"),
        "root",
        "",
        false,
    );
    let replace = r#"{allow: {logins: ['{{regexp.replace(external["team"], "^sh(o)p$", "r$1$1t")}}', '{{regexp.replace(external.team, "^s(.*)$", "$1")}}'], node_labels: {'*': '*'}}}"#;
    check(&replace.replace("$1$1", "${1}${1}"), "root", "", true);
    let by_label = "{allow: {logins: [root], node_labels: {team: '{{external.team}}'}}}";
    check(by_label, "root", "team=ops", true);
    check(by_label, "root", "team=other", false);
    let glob = "{allow: {logins: [root], node_labels: {team: '*-{{external.team}}-*'}}}";
    check(glob, "root", "team=eu-shop-1", true);
    check(glob, "root", "team=eu-shoppe-1", false);
    // A star in a trait is a star, not everything.
    check("{allow: {logins: [root], node_labels: {env: '{{external.star}}'}}}", "root", "env=prod", false);
    check("{allow: {logins: [root], node_labels: {env: '{{external.star}}'}}}", "root", "env=*", true);
    check("{allow: {logins: [root], node_labels: {env: 'a*{{external.star}}'}}}", "root", "env=ab", false);
}

/// Does the label expression hold, or what is wrong with it?
fn holds(expression: &str, expected: Result<bool, &str>) {
    let quoted = expression.replace('\'', "''");
    let role = role("r", &format!("{{allow: {{logins: [root], node_labels_expression: '{quoted}'}}}}"));
    let compiled = CompiledRole::compile(&role);
    match (compiled, expected) {
        (Ok(_), Ok(expected)) => {
            let user = user(&["r"], &["team=shop,ops", "email=a@x.org", "none="]);
            let node = node("env=dev,team=shop,x-a=1,x-b=2,u=UP");
            let got = ask(&policy(&[role]), &user, "root", &node);
            assert_eq!(got.is_ok(), expected, "{expression}");
        }
        (Err(errors), Err(part)) => {
            let text = errors.first().unwrap().to_string();
            assert!(text.contains(part), "{expression}: {text}");
        }
        (Ok(_), Err(part)) => panic!("{expression} should fail with {part}"),
        (Err(errors), Ok(_)) => panic!("{expression}: {errors:?}"),
    }
}

#[test]
fn label_expressions_mean_what_they_say() {
    holds(r#"labels["env"] == "dev""#, Ok(true));
    holds(r#"labels["env"] != "dev""#, Ok(false));
    holds(r#"labels.env == "dev" && !(labels["team"] == "ops")"#, Ok(true));
    holds(r#"labels["none"] == """#, Ok(true));
    holds(r#"contains(user.spec.traits["team"], labels["team"])"#, Ok(true));
    holds(r#"contains(user.spec.traits.none, labels["team"])"#, Ok(false));
    holds(r#"contains_any(user.spec.traits["team"], labels_matching("x-*"))"#, Ok(false));
    holds(r#"contains_any(labels_matching("^x-.$"), set("2", "3"))"#, Ok(true));
    holds(r#"contains_all(labels_matching("x-*"), set("1", "2"))"#, Ok(true));
    holds(r#"contains_all(labels_matching("x-*"), set("1", "3"))"#, Ok(false));
    holds(r#"contains_all(user.spec.traits.team, user.spec.traits.none)"#, Ok(false));
    holds(r#"regexp.match(labels["env"], "^(dev|test)$")"#, Ok(true));
    holds(r#"regexp.match(user.spec.traits["team"], "sh*")"#, Ok(true));
    holds(r#"regexp.match(labels["env"], "de")"#, Ok(false));
    holds(r#"contains(regexp.replace(user.spec.traits.team, "^s(.*)$", "$1"), "hop")"#, Ok(true));
    holds(r#"contains(regexp.replace(user.spec.traits.team, "^z(.*)$", "$1"), "shop")"#, Ok(false));
    holds(r#"email.local(user.spec.traits["email"]) == set("a")"#, Ok(true));
    holds(r#"strings.lower(labels["u"]) == "up" && strings.upper(labels["env"]) == "DEV""#, Ok(true));
    holds(r#"user.metadata.name == "alice" || labels["env"] == "prod""#, Ok(true));
    holds(r#"contains(user.spec.roles, "r")"#, Ok(true));
    // && binds more strongly than ||, ! than ==.
    holds(r#"labels.env == "dev" || labels.env == "x" && labels.env == "y""#, Ok(true));
    holds(r#"!(labels.env == "x") == (labels.env == "dev")"#, Ok(true));
    holds("labels['env'] == `dev`", Ok(true));
}

#[test]
fn expressions_that_are_none_say_where_and_why() {
    holds(r#"labels["env"]"#, Err("expected true or false, found a text"));
    holds(r#"labels["env"] == set("a")"#, Err("expected a text, found a list of texts"));
    holds(r#"lables["env"] == "x""#, Err("\"lables.env\" is not known here"));
    holds(r#"resource.metadata.name == "x""#, Err("is not known here"));
    holds(r#"contain(labels["a"], "x")"#, Err("contain()"));
    holds(r#"contains(labels["a"])"#, Err("expected two arguments, found 1 arguments"));
    holds(r#"regexp.match(labels["a"], labels["b"])"#, Err("expected text in quotes"));
    holds(r#"regexp.match(labels["a"], "^(($")"#, Err("not a regular expression"));
    holds(r#"labels["env" == "x""#, Err("expected text in quotes"));
    holds(r#"labels["env"] == "x"#, Err("text with a quote at its end"));
    holds(r#"labels["env"] == "x" extra"#, Err("expected the end"));
    holds(r#"labels["env"] = "x""#, Err("at 14: expected an expression, found ="));
    holds(&format!("{}labels.a == labels.b", "!".repeat(100)), Err("at most 32 levels"));
    holds(&format!("{}\"a\" == \"a\"{}", "(".repeat(100), ")".repeat(100)), Err("at most 32 levels"));
    holds(&vec!["(labels.a == labels.b)"; 150].join("||"), Err("too much"));
}

#[test]
fn roles_that_cannot_be_enforced_do_not_compile() {
    for (spec, part) in [
        ("{allow: {logins: ['*']}}", "certificates cannot carry a wildcard"),
        ("{allow: {logins: ['a b']}}", "this is no login"),
        ("{allow: {logins: ['{{internal.logns}}']}}", "spec.allow.logins[0]: between the braces"),
        ("{allow: {logins: ['{{internal.logins']}}", "do not pair"),
        ("{allow: {logins: ['a}}']}}", "do not pair"),
        ("{allow: {logins: ['{{external.a}}{{external.b}}']}}", "only one"),
        ("{deny: {node_labels: {a: '^{{external.a}}$'}}}", "regular expression cannot contain"),
        ("{deny: {node_labels: {a: '^(a$'}}}", "spec.deny.node_labels.a[0]: not a regular expression"),
        (
            "{allow: {rules: [{resources: [role], verbs: [read], where: 'session.x == \"a\"'}]}}",
            "rules[0].where",
        ),
    ] {
        let errors = CompiledRole::compile(&role("r", spec)).expect_err(spec);
        assert!(errors.first().unwrap().to_string().contains(part), "{spec}: {errors:?}");
    }
}

#[test]
fn options_merge_as_the_field_does() {
    let policy = policy(&[
        role(
            "a",
            "{options: {max_session_ttl: 8h, forward_agent: yes, port_forwarding: no, ssh_file_copy: yes, max_sessions: 5, client_idle_timeout: 1h, max_detached: 10m}}",
        ),
        role(
            "b",
            "{options: {max_session_ttl: 4h, forward_agent: no, port_forwarding: no, ssh_file_copy: no, disconnect_expired_cert: yes, lock: strict, max_sessions: 9, max_detached: 20m}}",
        ),
        role("c", "{}"),
    ]);
    let merged = |roles: &[&str]| policy.session_options(Subject::from(&user(roles, &[])), NOW).unwrap();
    let both = merged(&["a", "b"]);
    assert_eq!(both.max_session_ttl, Some("4h".parse::<Ttl>().unwrap()));
    assert_eq!(both.client_idle_timeout, Some("1h".parse::<Ttl>().unwrap()));
    assert_eq!(both.max_sessions.map(|n| n.get()), Some(5));
    assert_eq!(both.max_detached, "10m".parse().unwrap());
    assert!(
        both.forward_agent && !both.port_forwarding && !both.ssh_file_copy && both.disconnect_expired_cert
    );
    assert_eq!(both.lock, LockingMode::Strict);
    let plain = merged(&["c"]);
    assert!(
        !plain.forward_agent
            && plain.port_forwarding
            && plain.ssh_file_copy
            && !plain.disconnect_expired_cert
    );
    assert!(merged(&["b", "c"]).port_forwarding, "absence is the default, which is yes");
}

#[test]
fn certificates_that_are_not_good_are_refused_first() {
    let policy = policy(&[access()]);
    let good = user(&["access"], &["logins=root"]);
    assert!(ask(&policy, &good, "root", &node("")).is_ok());
    let mut expired = good.clone();
    expired.not_after = NOW;
    assert_eq!(
        ask(&policy, &expired, "root", &node("")).unwrap_err().reason,
        DenialReason::CertificateExpired { not_after: NOW }
    );
    let mut other = good.clone();
    other.cluster = ClusterName::parse("other").unwrap();
    assert!(matches!(
        ask(&policy, &other, "root", &node("")).unwrap_err().reason,
        DenialReason::OtherCluster { .. }
    ));
    let mut fewer = good.clone();
    fewer.logins = logins(&["ubuntu"]);
    assert_eq!(
        ask(&policy, &fewer, "root", &node("")).unwrap_err().reason,
        DenialReason::LoginNotInCertificate
    );
    let mut admin = user(&[], &[]);
    admin.local_admin = true;
    assert!(
        ask(&policy, &admin, "root", &node("")).is_err(),
        "the local administrator enters nodes by roles only"
    );
}

#[test]
fn j_a_role_that_is_gone_or_cannot_be_read_refuses() {
    let gone = user(&["access", "gone"], &["logins=root"]);
    let name = RoleName::parse("gone").unwrap();
    let without = policy(&[access()]);
    let reason = |policy: &Policy| ask(policy, &gone, "root", &node("")).unwrap_err().reason;
    assert_eq!(reason(&without), DenialReason::UnknownRole { role: name.clone() });
    let broken = without.clone().with_broken_roles([name.clone()]);
    assert_eq!(reason(&broken), DenialReason::BrokenRole { role: name.clone() });
    let bad = Policy::new(
        ClusterName::parse("demo").unwrap(),
        Settings::default(),
        &[access(), role("gone", "{deny: {node_labels: {a: '^($'}}}")],
    );
    assert_eq!((bad.errors().len(), reason(&bad)), (1, DenialReason::BrokenRole { role: name.clone() }));
    let twice = policy(&[access(), role("gone", "{}"), role("gone", "{deny: {logins: [root]}}")]);
    assert_eq!(reason(&twice), DenialReason::BrokenRole { role: name.clone() });
    let mut late = role("gone", "{}");
    late.metadata.expires = Some(NOW);
    assert_eq!(reason(&policy(&[access(), late])), DenialReason::UnknownRole { role: name });
}

#[test]
fn j_locks_lock_users_roles_logins_and_servers() {
    let policy = policy(&[access()]);
    let alice = user(&["access"], &["logins=root,ubuntu"]);
    let node = node("");
    for (spec, root, ubuntu) in [
        ("{target: {user: alice}, message: bye}", false, false),
        ("{target: {user: bob}}", true, true),
        ("{target: {role: access}}", false, false),
        ("{target: {role: editor}}", true, true),
        ("{target: {login: root}}", false, true),
        ("{target: {server_id: 01010101-0101-4101-8101-010101010101}}", false, false),
        ("{target: {server_id: 02020202-0202-4202-8202-020202020202}}", true, true),
        ("{target: {user: alice}, expires: 2020-01-01T00:00:00Z}", true, true),
    ] {
        let locks = LockSet::new(&[lock(spec)]);
        assert_eq!(ask_with(&policy, &alice, "root", &node, &locks).is_ok(), root, "{spec}");
        assert_eq!(ask_with(&policy, &alice, "ubuntu", &node, &locks).is_ok(), ubuntu, "{spec}");
    }
    let locks = LockSet::new(&[lock("{target: {user: alice}, message: bye}")]);
    let denial = ask_with(&policy, &alice, "root", &node, &locks).unwrap_err();
    assert_eq!(denial.user_text(), "access is locked: bye");
    assert!(denial.to_string().contains("lock l on user alice"));
}

#[test]
fn strict_locking_refuses_when_locks_are_old() {
    let roles = [
        role("easy", "{allow: {logins: [root], node_labels: {'*': '*'}}}"),
        role("strict", "{options: {lock: strict}}"),
    ];
    let policy = policy(&roles);
    let locks = LockSet::default();
    let root = Login::parse("root").unwrap();
    let node = node("");
    for (held, age_secs, expected) in
        [(&["easy"][..], 10_000, true), (&["easy", "strict"], 300, true), (&["easy", "strict"], 301, false)]
    {
        let context = Context { locks: &locks, locks_age: Duration::from_secs(age_secs) };
        let got = policy.decide_ssh(&user(held, &[]), &node.view(), &root, &context, NOW);
        assert_eq!(got.is_ok(), expected, "{held:?} {age_secs}");
    }
}

fn may(
    policy: &Policy,
    roles: &[&str],
    verb: AdminVerb,
    target: RuleTarget,
    resource: Option<(&str, &str)>,
) -> bool {
    let locks = LockSet::default();
    let context = Context { locks: &locks, locks_age: Duration::ZERO };
    let owned = resource
        .map(|(name, labels)| (ResourceName::parse(name).unwrap(), labels.parse::<Labels>().unwrap()));
    let view = owned.as_ref().map(|(name, labels)| ResourceView { name, labels });
    policy.decide_resource(&user(roles, &["team=shop"]), verb, &target, view, &context, NOW).is_ok()
}

#[test]
fn rules_decide_over_resources() {
    let policy = policy(&[
        role("reader", "{allow: {rules: [{resources: ['*'], verbs: [read]}]}}"),
        role(
            "shop",
            "{allow: {rules: [{resources: [role], verbs: ['*'], where: 'contains(user.spec.traits[\"team\"], resource.metadata.labels[\"team\"])'}]}}",
        ),
        role(
            "careful",
            "{deny: {rules: [{resources: [role], verbs: [delete]}, {resources: [user], verbs: ['*'], where: 'equals(resource.metadata.name, user.metadata.name)'}]}}",
        ),
    ]);
    let role_kind = RuleTarget::Kind(Kind::Role);
    let user_kind = RuleTarget::Kind(Kind::User);
    let event = RuleTarget::other("event").unwrap();
    let shop = Some(("x", "team=shop"));
    assert!(may(&policy, &["reader"], AdminVerb::Read, event, None));
    assert!(may(&policy, &["reader"], AdminVerb::ReadNoSecrets, event, None));
    assert!(!may(&policy, &["reader"], AdminVerb::List, event, None));
    assert!(!may(&policy, &["reader"], AdminVerb::Any, event, None));
    assert!(may(&policy, &["shop"], AdminVerb::Update, role_kind, shop));
    assert!(!may(&policy, &["shop"], AdminVerb::Update, role_kind, Some(("x", "team=other"))));
    assert!(!may(&policy, &["shop"], AdminVerb::Update, role_kind, None), "a predicate needs a resource");
    assert!(!may(&policy, &["shop", "careful"], AdminVerb::Delete, role_kind, shop));
    assert!(!may(&policy, &["shop", "careful"], AdminVerb::Any, role_kind, shop));
    assert!(may(&policy, &["reader", "careful"], AdminVerb::Read, user_kind, Some(("bob", ""))));
    assert!(!may(&policy, &["reader", "careful"], AdminVerb::Read, user_kind, Some(("alice", ""))));
    assert!(
        !may(&policy, &["reader", "careful"], AdminVerb::Read, user_kind, None),
        "what cannot be answered denies"
    );
    assert!(!may(&policy, &[], AdminVerb::Read, event, None));
}

#[test]
fn the_local_administrator_may_everything_until_his_certificate_ends() {
    let policy = policy(&[]);
    let mut admin = user(&[], &[]);
    admin.local_admin = true;
    let locks = LockSet::new(&[lock("{target: {user: alice}}")]);
    let context = Context { locks: &locks, locks_age: Duration::ZERO };
    let target = RuleTarget::Kind(Kind::Role);
    let permit = policy.decide_resource(&admin, AdminVerb::Create, &target, None, &context, NOW).unwrap();
    assert_eq!((permit.kind(), permit.verb()), ("role", AdminVerb::Create));
    admin.not_after = NOW;
    assert!(policy.decide_resource(&admin, AdminVerb::Create, &target, None, &context, NOW).is_err());
}

#[test]
fn presets_do_what_their_names_say() {
    let policy = policy(&presets());
    let kinds = Kind::ALL.map(RuleTarget::Kind);
    let event = RuleTarget::other("event").unwrap();
    for kind in kinds {
        assert!(!may(&policy, &["access"], AdminVerb::Read, kind, None));
        assert!(!may(&policy, &["auditor"], AdminVerb::Read, kind, None));
        assert!(may(&policy, &["editor"], AdminVerb::List, kind, None), "{kind:?}");
    }
    assert!(may(&policy, &["editor"], AdminVerb::Create, RuleTarget::Kind(Kind::User), None));
    assert!(!may(&policy, &["editor"], AdminVerb::Rotate, RuleTarget::Kind(Kind::CertAuthority), None));
    assert!(!may(&policy, &["editor"], AdminVerb::Read, RuleTarget::Kind(Kind::CertAuthority), None));
    assert!(may(&policy, &["auditor"], AdminVerb::Read, event, None));
    assert!(!may(&policy, &["editor"], AdminVerb::Read, event, None));
    let node = node("");
    assert!(ask(&policy, &user(&["access"], &["logins=root"]), "root", &node).is_ok());
    assert!(ask(&policy, &user(&["editor", "auditor"], &["logins=root"]), "root", &node).is_err());
    assert_eq!((editor().name.as_str(), auditor().name.as_str()), ("editor", "auditor"));
}

#[test]
fn certificates_name_what_roles_allow_and_do_not_deny() {
    let policy = policy(&[
        access(),
        role("more", "{allow: {logins: [deploy, '{{external.bad}}']}, deny: {logins: ['ro*']}}"),
    ]);
    let user = user(&["access", "more"], &["logins=root,ubuntu", "bad=a b,$(id),-x"]);
    let subject = Subject::from(&user);
    assert_eq!(policy.allowed_logins(subject, NOW).unwrap(), logins(&["deploy", "ubuntu"]));
    assert_eq!(policy.max_session_ttl(subject, NOW).unwrap(), Some("30h".parse().unwrap()));
    let none = traits(&[]);
    assert_eq!(
        policy.allowed_logins(Subject { traits: &none, ..subject }, NOW).unwrap(),
        logins(&["deploy"])
    );
}

#[test]
fn nodes_are_visible_where_a_login_is_allowed_or_a_rule_lists_them() {
    let policy = policy(&[
        role("dev", "{allow: {logins: [root], node_labels: {env: dev}}}"),
        role(
            "looker",
            "{allow: {node_labels: {env: [prod, dev]}, rules: [{resources: [node], verbs: [list]}]}}",
        ),
        role("labels", "{allow: {node_labels: {env: prod}}}"),
        role("nosecret", "{deny: {node_labels: {secret: '*'}}}"),
    ]);
    let nodes = [node("env=dev"), node("env=prod"), node("env=dev,secret=x"), node("")];
    let locks = LockSet::default();
    let context = Context { locks: &locks, locks_age: Duration::ZERO };
    let visible = |roles: &[&str]| {
        let nodes = nodes.iter().enumerate().map(|(index, node)| (node.view(), index));
        policy.visible_nodes(&user(roles, &[]), nodes, &context, NOW)
    };
    assert_eq!(visible(&["dev"]), [0, 2]);
    assert_eq!(visible(&["dev", "nosecret"]), [0]);
    assert_eq!(visible(&["looker"]), [0, 1, 2]);
    assert_eq!(visible(&["looker", "nosecret"]), [0, 1]);
    assert_eq!(visible(&["labels"]), [0; 0]);
    assert_eq!(visible(&["dev", "gone"]), [0; 0]);
}

#[test]
fn the_refused_learn_nothing_about_roles() {
    let policy = policy(&[role(
        "secret-role",
        "{allow: {logins: [root], node_labels: {'*': '*'}}, deny: {logins: [root]}}",
    )]);
    let denial = ask(&policy, &user(&["secret-role"], &[]), "root", &node("")).unwrap_err();
    assert_eq!(
        denial.reason,
        DenialReason::DeniedByRole { role: RoleName::parse("secret-role").unwrap(), key: DenyKey::Logins }
    );
    assert_eq!(denial.user_text(), "access denied: alice as root on web-1");
    assert_eq!(denial.to_string(), "denied: alice as root on web-1: role secret-role denies it by logins");
}
