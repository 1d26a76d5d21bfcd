//! Properties over random roles, users and nodes.

use crate::support::{NOW, TestNode, ask, lock, logins, node, role, traits, user};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::time::Duration;
use wayleave_identity::UserPrincipal;
use wayleave_policy::{
    CompiledRole, Context, LockSet, Policy, SessionOptions, Settings, Subject, widens_own_role,
    widens_own_user,
};
use wayleave_resource::{AdminVerb, Kind, Resource, Role, RuleTarget};
use wayleave_vocab::{ClusterName, Login};

const LOGINS: &[&str] = &["root", "ubuntu", "alice"];
const ROLES: &[&str] = &["r0", "r1", "r2"];

/// Some of these, in their order, as a YAML list.
fn some(words: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    proptest::sample::subsequence(words, 0..=most).prop_map(|words| format!("[{}]", words.join(", ")))
}

fn labels() -> impl Strategy<Value = String> {
    let values = || some(&["x", "y", "'*'", "'x*'", "'^(x|y)$'", "'{{external.t}}'"], 3);
    prop_oneof![
        2 => Just("{}".to_owned()),
        1 => Just("{'*': '*'}".to_owned()),
        3 => values().prop_map(|a| format!("{{a: {a}}}")),
        2 => (values(), values()).prop_map(|(a, b)| format!("{{a: {a}, b: {b}}}")),
    ]
}

fn expression() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        5 => Just("''"),
        1 => Just(r#"'labels["a"] == "x"'"#),
        1 => Just(r#"'!contains(user.spec.traits["t"], labels["b"])'"#),
        1 => Just(r#"'contains_all(labels_matching("*"), user.spec.traits.t)'"#),
    ]
}

fn rules() -> impl Strategy<Value = String> {
    let where_ = prop_oneof![
        2 => Just(""),
        1 => Just(", where: 'equals(resource.metadata.name, user.metadata.name)'"),
        1 => Just(", where: 'equals(user.metadata.name, \"alice\")'"),
        1 => Just(", where: 'resource.metadata.labels[\"a\"] == \"x\" || user.metadata.name == \"bob\"'"),
    ];
    let rule = (some(&["role", "node", "'*'"], 2), some(&["read", "update", "'*'"], 2), where_)
        .prop_map(|(resources, verbs, where_)| format!("{{resources: {resources}, verbs: {verbs}{where_}}}"));
    proptest::collection::vec(rule, 0..3).prop_map(|rules| format!("[{}]", rules.join(", ")))
}

fn section(logins: &'static [&'static str]) -> impl Strategy<Value = String> {
    (some(logins, 2), labels(), expression(), rules()).prop_map(|(logins, labels, expression, rules)| {
        format!(
            "{{logins: {logins}, node_labels: {labels}, node_labels_expression: {expression}, rules: {rules}}}"
        )
    })
}

fn options() -> impl Strategy<Value = String> {
    let flag = || prop_oneof![Just("null"), Just("yes"), Just("no")];
    let ttl = || prop_oneof![Just("null"), Just("1h"), Just("2h")];
    let count = || prop_oneof![Just("null"), Just("1"), Just("2")];
    let lock = prop_oneof![Just("null"), Just("strict"), Just("best_effort")];
    let detached = prop_oneof![
        Just(""),
        Just(", max_detached: 1m"),
        Just(", max_detached: 5m"),
        Just(", max_detached: 1h")
    ];
    (flag(), flag(), flag(), flag(), ttl(), ttl(), count(), lock, detached)
        .prop_map(|(agent, port, copy, expired, max, idle, count, lock, detached)| {
            format!(
                "{{forward_agent: {agent}, port_forwarding: {port}, ssh_file_copy: {copy}, disconnect_expired_cert: {expired}, max_session_ttl: {max}, client_idle_timeout: {idle}, max_sessions: {count}, lock: {lock}{detached}}}"
            )
        })
}

fn allow() -> impl Strategy<Value = String> {
    section(&["root", "ubuntu", "'{{internal.logins}}'", "'{{external.t}}'"])
}

fn deny() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just("{}".to_owned()),
        1 => section(&["root", "'u*'", "'^al.*$'", "'{{external.t}}'"]),
    ]
}

fn a_role(name: &'static str) -> impl Strategy<Value = Role> {
    (options(), allow(), deny()).prop_map(move |(options, allow, deny)| {
        role(name, &format!("{{options: {options}, allow: {allow}, deny: {deny}}}"))
    })
}

fn roles() -> impl Strategy<Value = Vec<Role>> {
    (a_role("r0"), a_role("r1"), a_role("r2")).prop_map(|(a, b, c)| vec![a, b, c])
}

fn a_user() -> impl Strategy<Value = UserPrincipal> {
    let held = proptest::sample::subsequence(ROLES, 1..=3);
    let t = prop_oneof![Just("t="), Just("t=x"), Just("t=x,y"), Just("t=root"), Just("t=*")];
    (held, t).prop_map(|(held, t)| {
        let mut user = user(&held, &["logins=alice,root", t]);
        user.logins = logins(LOGINS);
        user
    })
}

fn nodes() -> Vec<TestNode> {
    ["", "a=x", "a=y,b=x", "a=xx,b=y", "b=z", "a=*"].map(node).into()
}

fn policy(roles: &[Role]) -> Policy {
    Policy::new(ClusterName::parse("demo").unwrap(), Settings::default(), roles)
}

/// Everything that a user may do, written out.
fn access(policy: &Policy, user: &UserPrincipal) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let locks = LockSet::default();
    let context = Context { locks: &locks, locks_age: Duration::ZERO };
    for node in nodes() {
        for login in LOGINS {
            if ask(policy, user, login, &node).is_ok() {
                found.insert(format!("{login} on {}", node.labels));
            }
        }
    }
    let resource_names = ["alice", "other"].map(|name| wayleave_vocab::ResourceName::parse(name).unwrap());
    for kind in [Kind::Role, Kind::Node, Kind::User] {
        for verb in AdminVerb::ALL {
            for resource in std::iter::once(None).chain(resource_names.iter().map(Some)) {
                let labels = node("a=x").labels;
                let view = resource.map(|name| wayleave_policy::ResourceView { name, labels: &labels });
                let target = RuleTarget::Kind(kind);
                if policy.decide_resource(user, verb, &target, view, &context, NOW).is_ok() {
                    found.insert(format!("{verb} {kind} {resource:?}"));
                }
            }
        }
    }
    found
}

fn no_laxer(new: &SessionOptions, old: &SessionOptions) -> bool {
    let no_more = |new: Option<u128>, old: Option<u128>| match (new, old) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(new), Some(old)) => new <= old,
    };
    let ms = |ttl: Option<wayleave_vocab::Ttl>| ttl.map(|ttl| ttl.0.as_millis());
    new.forward_agent <= old.forward_agent
        && new.port_forwarding <= old.port_forwarding
        && new.ssh_file_copy <= old.ssh_file_copy
        && new.permit_x11_forwarding <= old.permit_x11_forwarding
        && new.disconnect_expired_cert >= old.disconnect_expired_cert
        && new.lock >= old.lock
        && no_more(ms(new.max_session_ttl), ms(old.max_session_ttl))
        && no_more(ms(new.client_idle_timeout), ms(old.client_idle_timeout))
        && new.max_detached <= old.max_detached
        && no_more(new.max_sessions.map(|n| n.get().into()), old.max_sessions.map(|n| n.get().into()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn e_adding_a_deny_never_widens(roles in roles(), user in a_user(), extra in deny(), at in 0usize..3) {
        let before = access(&policy(&roles), &user);
        let extra = role("r", &format!("{{deny: {extra}}}")).spec.deny;
        let mut more = roles.clone();
        let deny = &mut more[at].spec.deny;
        deny.logins.extend(extra.logins);
        deny.rules.extend(extra.rules);
        if deny.node_labels.is_empty() {
            deny.node_labels = extra.node_labels;
        }
        if deny.node_labels_expression.is_none() {
            deny.node_labels_expression = extra.node_labels_expression;
        }
        prop_assert!(access(&policy(&more), &user).is_subset(&before));
        // The same as a role of its own, given to the user.
        let mut given = user.clone();
        let mut separate = roles.clone();
        separate.push(Role { spec: wayleave_resource::RoleSpec { allow: Default::default(), ..more[at].spec.clone() }, ..role("r9", "{}") });
        given.roles.insert(separate[3].name.clone());
        prop_assert!(access(&policy(&separate), &given).is_subset(&before));
    }

    #[test]
    fn e_deny_always_wins(roles in roles(), mut user in a_user()) {
        let mut all = roles;
        all.push(role("deny-all", "{deny: {node_labels: {'*': '*'}, rules: [{resources: ['*'], verbs: ['*']}]}}"));
        user.roles.insert(all[3].name.clone());
        prop_assert_eq!(access(&policy(&all), &user), BTreeSet::new());
        all[3] = role("deny-all", "{deny: {logins: ['*'], rules: [{resources: ['*'], verbs: ['*']}]}}");
        prop_assert_eq!(access(&policy(&all), &user), BTreeSet::new());
    }

    #[test]
    fn e_nobodys_own_write_widens(roles in roles(), user in a_user(), rewrite in a_rewrite(), at in 0usize..3) {
        let old_policy = policy(&roles);
        let mut written = roles.clone();
        // Parts of the old role stay, so that writes that pass are not only the same again.
        written[at] = rewrite.of(&roles[at]);
        if widens_own_role(&roles[at], &written[at]).is_ok() {
            let new_policy = policy(&written);
            prop_assert!(access(&new_policy, &user).is_subset(&access(&old_policy, &user)));
            let subject = Subject::from(&user);
            if let (Ok(new), Ok(old)) = (new_policy.session_options(subject, NOW), old_policy.session_options(subject, NOW)) {
                prop_assert!(no_laxer(&new, &old), "{new:?} {old:?}");
            }
        }
    }

    #[test]
    fn the_order_of_roles_does_not_matter(roles in roles(), user in a_user(), rotate in 0usize..3) {
        let mut other = roles.clone();
        other.rotate_left(rotate);
        let (one, two) = (policy(&roles), policy(&other));
        for node in nodes() {
            for login in LOGINS {
                let (one, two) = (ask(&one, &user, login, &node), ask(&two, &user, login, &node));
                prop_assert_eq!(one.map(|p| p.options().clone()), two.map(|p| p.options().clone()));
            }
        }
        prop_assert_eq!(access(&one, &user), access(&two, &user));
    }

    #[test]
    fn explanations_agree_with_decisions(roles in roles(), user in a_user(), locked in any::<bool>()) {
        let policy = policy(&roles);
        let locks = LockSet::new(locked.then(|| lock("{target: {login: root}}")).as_ref());
        let context = Context { locks: &locks, locks_age: Duration::ZERO };
        for node in nodes() {
            for login in LOGINS {
                let login = Login::parse(*login).unwrap();
                let got = policy.decide_ssh(&user, &node.view(), &login, &context, NOW);
                let said = policy.explain_ssh(&user, &node.view(), &login, &context, NOW);
                prop_assert_eq!(got.is_ok(), said.permitted);
                prop_assert_eq!(got.is_ok(), said.denial.is_none());
                prop_assert!(!said.permitted || said.decided_by.is_some());
                prop_assert!(said.decided_by.is_none_or(|by| user.roles.contains(&by.role)));
                // What is permitted is in the certificate that would be issued.
                let logins = policy.allowed_logins(Subject::from(&user), NOW).unwrap();
                prop_assert!(got.is_err() || logins.contains(&login));
            }
        }
    }

    #[test]
    fn c_a_list_shows_what_may_be_entered_and_nothing_else(roles in roles(), user in a_user()) {
        let locks = LockSet::default();
        let context = Context { locks: &locks, locks_age: Duration::ZERO };
        let nodes = nodes();
        let mut without_rules = roles.clone();
        without_rules.iter_mut().for_each(|role| role.spec.allow.rules.clear());
        for (roles, exactly) in [(roles, false), (without_rules, true)] {
            let policy = policy(&roles);
            let listed = policy.visible_nodes(&user, nodes.iter().enumerate().map(|(n, node)| (node.view(), n)), &context, NOW);
            for (n, node) in nodes.iter().enumerate() {
                let enters = LOGINS.iter().any(|login| ask(&policy, &user, login, node).is_ok());
                prop_assert!(!enters || listed.contains(&n));
                prop_assert!(!exactly || enters == listed.contains(&n));
            }
        }
    }

    #[test]
    fn f_arbitrary_texts_never_panic(text in "[ -~]{0,80}", wild in "\\PC{0,60}", user in a_user()) {
        for text in [text, wild] {
            let mut any = role("r0", "{allow: {logins: [root], node_labels: {'*': '*'}}}");
            any.spec.allow.logins.push(text.clone());
            any.spec.allow.node_labels.insert("a".into(), vec![text.clone()]);
            any.spec.deny.node_labels_expression = Some(text.clone());
            let _ = CompiledRole::compile(&any);
            any.spec.deny.node_labels_expression = None;
            any.spec.deny.logins.push(text);
            let policy = policy(&[any]);
            for node in nodes() {
                let _ = ask(&policy, &user, "root", &node);
            }
        }
    }

    #[test]
    fn f_expressions_from_their_own_words_never_panic(
        words in proptest::collection::vec(proptest::sample::select(vec![
            "labels", "[\"a\"]", ".", "user.spec.traits", ".t", "(", ")", "&&", "||", "!", "==", "!=", ",", "contains", "set",
            "regexp.match", "regexp.replace", "\"^a*$\"", "\"$0\"", "email.local", "strings.upper", "labels_matching", "'x'",
            "user.metadata.name",
        ]), 0..24),
        user in a_user(),
    ) {
        let mut any = role("r0", "{allow: {logins: [root]}}");
        any.spec.allow.node_labels_expression = Some(words.concat());
        any.spec.allow.logins.push(format!("{{{{{}}}}}", words.concat()));
        let policy = policy(&[any]);
        for node in nodes() {
            let _ = ask(&policy, &user, "root", &node);
        }
    }
}

/// Which parts of a role are replaced by random ones, and by which.
#[derive(Debug, Clone)]
struct Rewrite {
    new: Role,
    take: [bool; 8],
}

fn a_rewrite() -> impl Strategy<Value = Rewrite> {
    (a_role("r"), any::<[bool; 8]>()).prop_map(|(new, take)| Rewrite { new, take })
}

impl Rewrite {
    fn of(&self, old: &Role) -> Role {
        let [options, logins, labels, expression, rules, deny_labels, deny_logins, deny_rules] = self.take;
        let (mut role, new) = (old.clone(), self.new.spec.clone());
        let spec = &mut role.spec;
        if options {
            spec.options = new.options;
        }
        if logins {
            spec.allow.logins.pop();
        }
        if labels {
            spec.allow.node_labels = new.allow.node_labels;
        }
        if expression {
            spec.allow.node_labels_expression = new.allow.node_labels_expression;
        }
        if rules {
            spec.allow.rules = new.allow.rules;
        }
        if deny_labels {
            spec.deny.node_labels = new.deny.node_labels;
        }
        if deny_logins {
            spec.deny.logins.extend(new.deny.logins);
        }
        if deny_rules {
            spec.deny.rules.extend(new.deny.rules);
        }
        role
    }
}

#[test]
fn e_own_user_changes_nothing_that_decides() {
    let text = |spec: &str| {
        format!(
            "kind: user\nversion: v2\nmetadata: {{name: alice, expires: 2030-01-01T00:00:00Z}}\nspec: {spec}"
        )
    };
    let parse = |text: &str| match Resource::parse_yaml(text).unwrap().remove(0) {
        Resource::User(user) => user,
        other => panic!("{other:?}"),
    };
    let old = parse(&text("{roles: [a, b], traits: {t: [x]}}"));
    assert_eq!(widens_own_user(&old, &old), Ok(()));
    for spec in [
        "{roles: [a, b, c], traits: {t: [x]}}",
        "{roles: [a], traits: {t: [x]}}",
        "{roles: [a, b], traits: {t: []}}",
    ] {
        assert!(widens_own_user(&old, &parse(&text(spec))).is_err(), "{spec}");
    }
    let longer = text("{roles: [a, b], traits: {t: [x]}}").replace("2030", "2031");
    assert!(widens_own_user(&old, &parse(&longer)).is_err());
    let mut described = old.clone();
    described.metadata.description = Some("me".into());
    assert_eq!(widens_own_user(&old, &described), Ok(()));
    assert_eq!(traits(&["t=x"]), old.spec.traits);
}
