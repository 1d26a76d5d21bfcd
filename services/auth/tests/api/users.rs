//! Invitations, passwords, one-time codes, lockout, and certificates of users.

use crate::harness::{Cluster, HOUR, Keys, owned, refused};
use data_encoding::BASE32_NOPAD;
use std::time::Duration;
use tonic::Code;
use wayleave_api::auth::{
    AcceptInviteRequest, BeginInviteRequest, CreateUserRequest, LoginRequest, ResetUserRequest, ResourceRef,
    SearchEventsRequest, SignUserRequest, UserCertificates,
};
use wayleave_identity::{Principal, SSH_EXTENSION};
use wayleave_runtime::Clock;
use wayleave_ssh::{CertType, Certificate};

const PASSWORD: &str = "canary-password-1";
const STEP: Duration = Duration::from_secs(30);

/// The code that an authenticator would show now.
fn code(cluster: &Cluster, uri: &str) -> String {
    let secret = uri.split("secret=").nth(1).unwrap().split('&').next().unwrap();
    let secret: [u8; 20] = BASE32_NOPAD.decode(secret.as_bytes()).unwrap().try_into().unwrap();
    let totp = totp_rs::Builder::new().with_secret(totp_rs::Secret::new_stack(secret)).build_noncompliant();
    totp.generate(cluster.clock.wall().as_secs()).to_string()
}

async fn uri(cluster: &Cluster, invite_token: &str) -> String {
    let request = BeginInviteRequest { invite_token: invite_token.to_owned() };
    cluster.public().begin_invite(request).await.unwrap().into_inner().totp_uri
}

fn accept(invite_token: &str, password: &str, totp_code: String) -> AcceptInviteRequest {
    AcceptInviteRequest {
        invite_token: invite_token.to_owned(),
        password: password.to_owned(),
        totp_code,
        keys: Some(Keys::new().public()),
        ttl_ms: 0,
    }
}

fn login(user: &str, password: &str, totp_code: String) -> LoginRequest {
    LoginRequest {
        user: user.to_owned(),
        password: password.to_owned(),
        totp_code,
        keys: Some(Keys::new().public()),
        ttl_ms: 0,
    }
}

/// A user who has accepted; gives the URI of his second factor.
async fn alice(cluster: &Cluster) -> String {
    let invite = cluster.create_user("alice", &["access"], &["root", "ubuntu"]).await;
    let uri = uri(cluster, &invite).await;
    let request = accept(&invite, PASSWORD, code(cluster, &uri));
    cluster.public().accept_invite(request).await.unwrap();
    cluster.clock.advance(STEP);
    uri
}

fn principal(certificates: &UserCertificates) -> Principal {
    let certificate = Certificate::from_openssh(&certificates.ssh_certificate).unwrap();
    assert_eq!(certificate.kind(), CertType::User);
    Principal::decode(certificate.extensions()[SSH_EXTENSION].as_bytes()).unwrap()
}

#[tokio::test]
async fn an_invitation_is_accepted_once_and_login_works() {
    let cluster = Cluster::start().await;
    let invite = cluster.create_user("alice", &["access"], &["root", "ubuntu"]).await;
    let uri = uri(&cluster, &invite).await;
    assert!(uri.contains("demo:alice"), "{uri}");
    let mut public = cluster.public();
    let wrong = accept(&invite, PASSWORD, "000000".into());
    refused(public.accept_invite(wrong).await, Code::InvalidArgument);
    let weak = accept(&invite, "short", code(&cluster, &uri));
    refused(public.accept_invite(weak).await, Code::InvalidArgument);
    let certificates =
        public.accept_invite(accept(&invite, PASSWORD, code(&cluster, &uri))).await.unwrap().into_inner();
    assert_eq!(certificates.logins, ["root", "ubuntu"]);
    assert_eq!(certificates.roles, ["access"]);
    let again = accept(&invite, PASSWORD, code(&cluster, &uri));
    refused(public.accept_invite(again).await, Code::PermissionDenied);
    // The code of the acceptance is used up.
    let replayed = login("alice", PASSWORD, code(&cluster, &uri));
    refused(public.login(replayed).await, Code::PermissionDenied);
    cluster.clock.advance(STEP);
    let certificates =
        public.login(login("alice", PASSWORD, code(&cluster, &uri))).await.unwrap().into_inner();
    let Principal::User(user) = principal(&certificates) else { panic!("a host") };
    assert_eq!(user.name.as_str(), "alice");
    assert_eq!(user.not_after.as_ms(), certificates.not_after_ms);
    let life = certificates.not_after_ms - cluster.clock.wall().as_ms();
    assert!(life <= 12 * 3_600_000 && life > 12 * 3_600_000 - 2000, "{life}");
}

#[tokio::test]
async fn n_whoever_fails_to_log_in_is_told_the_same() {
    let cluster = Cluster::start().await;
    let uri = alice(&cluster).await;
    cluster.create_user("invited", &["access"], &[]).await;
    let mut public = cluster.public();
    let mut told = Vec::new();
    for request in [
        login("alice", "wrong-password-1", code(&cluster, &uri)),
        login("alice", PASSWORD, "000000".into()),
        login("alice", PASSWORD, String::new()),
        login("nobody", PASSWORD, code(&cluster, &uri)),
        login("invited", PASSWORD, code(&cluster, &uri)),
        login("not a name", PASSWORD, code(&cluster, &uri)),
    ] {
        told.push(refused(public.login(request).await, Code::PermissionDenied));
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
}

#[tokio::test]
async fn n_a_code_is_good_for_one_login() {
    let cluster = Cluster::start().await;
    let uri = alice(&cluster).await;
    let mut public = cluster.public();
    let used = code(&cluster, &uri);
    public.login(login("alice", PASSWORD, used.clone())).await.unwrap();
    refused(public.login(login("alice", PASSWORD, used)).await, Code::PermissionDenied);
}

#[tokio::test]
async fn n_five_failures_lock_for_half_an_hour() {
    let cluster = Cluster::start().await;
    let uri = alice(&cluster).await;
    let mut public = cluster.public();
    for _ in 0..5 {
        let wrong = login("alice", "wrong-password-1", code(&cluster, &uri));
        refused(public.login(wrong).await, Code::PermissionDenied);
    }
    let right = |cluster: &Cluster| login("alice", PASSWORD, code(cluster, &uri));
    refused(public.login(right(&cluster)).await, Code::PermissionDenied);
    cluster.clock.advance(Duration::from_secs(29 * 60));
    refused(public.login(right(&cluster)).await, Code::PermissionDenied);
    cluster.clock.advance(Duration::from_secs(61));
    public.login(right(&cluster)).await.unwrap();
}

#[tokio::test]
async fn n_guesses_at_once_are_counted_before_they_are_compared() {
    let cluster = Cluster::start().await;
    let uri = alice(&cluster).await;
    let guesses = (0..12).map(|_| {
        let mut public = cluster.public();
        let request = login("alice", "wrong-password-1", code(&cluster, &uri));
        async move { refused(public.login(request).await, Code::PermissionDenied) }
    });
    futures::future::join_all(guesses).await;
    let events =
        cluster.admin().search_events(SearchEventsRequest::default()).await.unwrap().into_inner().json;
    let compared = events.iter().filter(|event| event.contains("\"wrong password\"")).count();
    assert_eq!(compared, 5, "the others found the user locked");
}

#[tokio::test]
async fn a_reset_takes_password_and_second_factor_away() {
    let cluster = Cluster::start().await;
    let old = alice(&cluster).await;
    let request = ResetUserRequest { name: "alice".into(), invite_ttl_ms: 0 };
    let reset = cluster.admin().reset_user(request).await.unwrap().into_inner();
    let mut public = cluster.public();
    refused(public.login(login("alice", PASSWORD, code(&cluster, &old))).await, Code::PermissionDenied);
    let new = uri(&cluster, &reset.invite_token).await;
    assert_ne!(old, new);
    public
        .accept_invite(accept(&reset.invite_token, "another-password", code(&cluster, &new)))
        .await
        .unwrap();
    cluster.clock.advance(STEP);
    public.login(login("alice", "another-password", code(&cluster, &new))).await.unwrap();
}

#[tokio::test]
async fn e_an_invitation_of_a_removed_user_is_not_good_for_the_next_of_that_name() {
    let cluster = Cluster::start().await;
    let old = cluster.create_user("alice", &["access"], &["root"]).await;
    let reference = ResourceRef { kind: "user".into(), name: "alice".into() };
    cluster.admin().delete_resource(reference).await.unwrap();
    // The administrator says that it is all right to give the name again at once.
    let lock = ResourceRef { kind: "lock".into(), name: "removed-user-alice".into() };
    cluster.admin().delete_resource(lock).await.unwrap();
    let new = cluster.create_user("alice", &["access"], &["root"]).await;
    for (invite, is_good) in [(old, false), (new, true)] {
        let request = BeginInviteRequest { invite_token: invite.clone() };
        let begun = cluster.public().begin_invite(request).await.unwrap().into_inner();
        let request = accept(&invite, PASSWORD, code(&cluster, &begun.totp_uri));
        let accepted = cluster.public().accept_invite(request).await;
        assert_eq!(accepted.is_ok(), is_good, "{accepted:?}");
    }
}

#[tokio::test]
async fn invitations_end_with_their_time() {
    let cluster = Cluster::start().await;
    let invite = cluster.create_user("alice", &["access"], &[]).await;
    cluster.clock.advance(HOUR + STEP);
    let request = BeginInviteRequest { invite_token: invite };
    refused(cluster.public().begin_invite(request).await, Code::PermissionDenied);
    for token in ["", "short", "0123456789abcdef0123456789abcdef0123456789abcdef", "ä".repeat(40).as_str()] {
        let request = BeginInviteRequest { invite_token: token.to_owned() };
        refused(cluster.public().begin_invite(request).await, Code::PermissionDenied);
    }
    let long = CreateUserRequest {
        name: "bob".into(),
        roles: owned(&["access"]),
        invite_ttl_ms: 49 * 3_600_000,
        ..Default::default()
    };
    refused(cluster.admin().create_user(long).await, Code::InvalidArgument);
}

#[tokio::test]
async fn users_need_roles_that_exist_and_names_that_are_free() {
    let cluster = Cluster::start().await;
    let create = |name: &str, roles: &[&str]| CreateUserRequest {
        name: name.to_owned(),
        roles: owned(roles),
        ..Default::default()
    };
    let mut admin = cluster.admin();
    let told = refused(admin.create_user(create("alice", &["nonsense"])).await, Code::InvalidArgument);
    assert!(told.contains("nonsense"), "{told}");
    refused(admin.create_user(create("alice", &[])).await, Code::InvalidArgument);
    refused(admin.create_user(create("a b", &["access"])).await, Code::InvalidArgument);
    admin.create_user(create("alice", &["access"])).await.unwrap();
    refused(admin.create_user(create("alice", &["access"])).await, Code::AlreadyExists);
}

#[tokio::test]
async fn e_a_certificate_lives_no_longer_than_role_and_cluster_allow() {
    let cluster = Cluster::start().await;
    cluster.role("short", "{options: {max_session_ttl: 1h}, allow: {}}").await;
    cluster.create_user("short", &["access", "short"], &[]).await;
    cluster.create_user("long", &["access"], &[]).await;
    let life = |certificates: &UserCertificates| certificates.not_after_ms - cluster.clock.wall().as_ms();
    let (short, _) = cluster.sign("short", 20 * HOUR).await;
    assert!(life(&short) <= 3_600_000);
    let (long, _) = cluster.sign("long", 1000 * HOUR).await;
    assert!(life(&long) <= 30 * 3_600_000);
    let (asked, _) = cluster.sign("long", 2 * HOUR).await;
    assert!(life(&asked) <= 2 * 3_600_000);
}

#[tokio::test]
async fn j_a_locked_user_gets_no_certificate_and_calls_nothing() {
    let cluster = Cluster::start().await;
    let uri = alice(&cluster).await;
    let mut user = cluster.user("alice").await;
    user.list_nodes(wayleave_api::auth::ListNodesRequest {}).await.unwrap();
    cluster.lock("l", "user: alice").await;
    let told =
        refused(user.list_nodes(wayleave_api::auth::ListNodesRequest {}).await, Code::PermissionDenied);
    assert!(told.contains("locked"), "{told}");
    let right = login("alice", PASSWORD, code(&cluster, &uri));
    refused(cluster.public().login(right).await, Code::PermissionDenied);
    let request = SignUserRequest { user: "alice".into(), keys: Some(Keys::new().public()), ttl_ms: 0 };
    refused(cluster.admin().sign_user(request).await, Code::PermissionDenied);
}

#[tokio::test]
async fn d_only_keys_of_ours_are_certified() {
    let cluster = Cluster::start().await;
    cluster.create_user("alice", &["access"], &[]).await;
    let (certificates, _) = cluster.sign("alice", HOUR).await;
    let good = Keys::new().public();
    let mut admin = cluster.admin();
    for (spki, ssh) in [
        (good.tls_spki_der.clone(), certificates.ssh_certificate.clone()),
        (good.tls_spki_der.clone(), "ssh-ed25519 AAAA".to_owned()),
        (good.tls_spki_der.clone(), String::new()),
        (vec![0; 64], good.ssh_public_key.clone()),
        (Vec::new(), good.ssh_public_key.clone()),
        (vec![0x30; 100_000], good.ssh_public_key.clone()),
    ] {
        let keys = wayleave_api::auth::PublicKeys { tls_spki_der: spki, ssh_public_key: ssh };
        let request = SignUserRequest { user: "alice".into(), keys: Some(keys), ttl_ms: 0 };
        refused(admin.sign_user(request).await, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn m_secrets_of_users_are_nowhere_in_the_clear() {
    let cluster = Cluster::start().await;
    let invite = cluster.create_user("alice", &["access"], &[]).await;
    let uri = uri(&cluster, &invite).await;
    let totp = code(&cluster, &uri);
    cluster.public().accept_invite(accept(&invite, PASSWORD, totp.clone())).await.unwrap();
    refused(cluster.public().login(login(PASSWORD, "x", totp)).await, Code::PermissionDenied);
    for prefix in ["/resources", "/secrets", "/audit"] {
        let page = cluster.backend.range(&prefix.parse().unwrap(), None, 1000).await.unwrap();
        for item in page.items {
            let text = String::from_utf8_lossy(&item.value);
            assert!(!text.contains(&invite), "{}", item.key);
            assert!(!text.contains(PASSWORD), "{}", item.key);
        }
    }
}
