//! SECURITY M: canary secrets are searched for in everything that is logged, at every level.

use crate::harness::{Cluster, HOUR, Keys, join_request};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use wayleave_api::auth::{
    AcceptInviteRequest, BeginInviteRequest, LoginRequest, RenewRequest, ResetUserRequest,
};
use wayleave_auth::StaticToken;
use wayleave_vocab::{Secret, SystemRole};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn m_no_secret_is_logged() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // For this thread, on which the whole test runs.
    let _guard = tracing::subscriber::set_default(subscriber);
    let static_secret = "canary-static-token-secret";
    let cluster = Cluster::start_with(|config| {
        let secret = Secret::new(static_secret.into());
        config.static_tokens = vec![StaticToken { system_roles: vec![SystemRole::Node], secret }];
    })
    .await;
    let password = "canary-password-in-a-test";
    let mut secrets = vec![static_secret.to_owned(), password.to_owned()];

    let token = cluster.token(&["Node"]).await;
    for (name, secret) in
        [("", static_secret), (token.name.as_str(), token.secret.as_str()), ("x", static_secret)]
    {
        let (request, _) = join_request(name, secret, &["Node"], "web-1");
        let _ = cluster.public().join(request).await;
    }
    // A client that puts the whole token where the name belongs.
    let whole = format!("{}.{}", token.name, token.secret);
    let (request, _) = join_request(&whole, "", &["Node"], "web-1");
    let _ = cluster.public().join(request).await;
    secrets.push(token.secret.clone());

    let invite = cluster.create_user("alice", &["access"], &[]).await;
    let begun = cluster.public().begin_invite(BeginInviteRequest { invite_token: invite.clone() }).await;
    let uri = begun.unwrap().into_inner().totp_uri;
    secrets.push(uri.split("secret=").nth(1).unwrap().split('&').next().unwrap().to_owned());
    let accept = AcceptInviteRequest {
        invite_token: invite.clone(),
        password: password.into(),
        totp_code: "123456".into(),
        keys: Some(Keys::new().public()),
        ttl_ms: 0,
    };
    let _ = cluster.public().accept_invite(accept).await;
    let login = LoginRequest {
        user: "alice".into(),
        password: password.into(),
        totp_code: "123456".into(),
        keys: Some(Keys::new().public()),
        ttl_ms: 0,
    };
    let _ = cluster.public().login(login).await;
    let reset = cluster.admin().reset_user(ResetUserRequest { name: "alice".into(), invite_ttl_ms: 0 }).await;
    secrets.push(reset.unwrap().into_inner().invite_token);
    secrets.push(invite);
    let node = cluster.join(&["Node"], "web-2").await;
    let _ = cluster.host(&node).renew(RenewRequest::default()).await;
    let _ = cluster.sign("alice", HOUR).await;
    for prefix in ["/authorities/user", "/authorities/host", "/authorities/policy"] {
        let item = cluster.backend.get(&prefix.parse().unwrap()).await.unwrap().unwrap();
        let record: serde_json::Value = serde_json::from_slice(&item.value).unwrap();
        for field in ["ssh_seed", "policy_seed"] {
            secrets.extend(record[field].as_str().map(str::to_owned));
        }
    }
    cluster.stop().await;

    let logged = captured.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let logged = String::from_utf8_lossy(&logged);
    assert!(logged.contains("a join was refused"), "the test sees what is logged");
    assert!(!logged.contains(" ERROR "), "{logged}");
    for secret in secrets {
        let lines: Vec<&str> = logged.lines().filter(|line| line.contains(&secret)).take(3).collect();
        assert!(lines.is_empty(), "a secret was logged: {lines:#?}");
    }
}
