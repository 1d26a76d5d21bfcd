//! `way login` and `way logout`.

use crate::access::wait;
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::first_contact::public_api;
use crate::home::{Home, name_of};
use crate::identity_file::Identity;
use crate::moment;
use crate::new_keys::NewKeys;
use crate::output::{note, print};
use crate::prompt::{self, PasswordSource};
use crate::status::login_text;
use wayleave_api::auth::LoginRequest;
use wayleave_keystore::Pins;
use wayleave_vocab::HostPort;

/// Log in with password and one-time code
///
/// Certificates are kept in ~/.way (or $WAY_HOME).
///
/// way login --proxy=proxy.example.com --user=alice
/// way login --proxy=10.0.0.5:3080 --ca-pin sha256:…    no public web certificate: pin it
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct LoginArgs {
    /// Pin of the cluster's host authority, several with commas; needed at first contact only.
    #[arg(long, env = "WAY_CA_PIN", value_name = "PIN,…")]
    ca_pin: Option<Pins>,
    /// Read the password from the first line of standard input.
    #[arg(long)]
    password_stdin: bool,
    /// The one-time code, instead of being asked for it.
    #[arg(long, value_name = "CODE")]
    totp: Option<String>,
}

/// Forget the current login, or that of --proxy
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct LogoutArgs {
    /// Forget every login.
    #[arg(long)]
    all: bool,
}

pub(crate) async fn login(args: LoginArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let home = Home::find()?;
    let proxy = proxy(&home, global)?;
    let user = user(&home, &proxy, global)?;
    let mut api = public_api(&proxy, args.ca_pin.as_ref()).await?;
    let password = PasswordSource::from_flag(args.password_stdin)
        .password(&format!("Password of {user} at {proxy}: "))?;
    let totp_code = match args.totp {
        Some(code) => code,
        None => prompt::line("One-time code: ")?,
    };
    let keys = NewKeys::generate()?;
    let request = LoginRequest {
        user,
        password: password.expose_secret().to_owned(),
        totp_code,
        keys: Some(keys.public()),
        ttl_ms: global.ttl_ms(),
    };
    let answer = wait(api.login(request)).await.map_err(|failure| match failure.exit {
        Exit::Denied => {
            failure.or_hint("wait for the next code and try again; `way users reset` makes both new")
        }
        _ => failure,
    })?;
    keep(&home, &proxy, &keys.certified(answer, vec![proxy.clone()])?)?;
    Ok(Exit::Done)
}

/// Keeps an identity as the current login and shows it.
pub(crate) fn keep(home: &Home, proxy: &HostPort, identity: &Identity) -> Result<(), Failure> {
    home.save(proxy, identity)?;
    print(&login_text(identity, Some(proxy), true, moment::now()))
}

fn proxy(home: &Home, global: &GlobalArgs) -> Result<HostPort, Failure> {
    if let Some(proxy) = &global.proxy {
        return Ok(proxy.clone());
    }
    let current = home.profile(None).ok().flatten();
    current.and_then(|profile| profile.identity.parts().proxies.first().cloned()).ok_or_else(|| {
        Failure::usage("which proxy?").hint("say it with --proxy HOST[:PORT], or set WAY_PROXY")
    })
}

fn user(home: &Home, proxy: &HostPort, global: &GlobalArgs) -> Result<String, Failure> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let known = || home.profile(Some(proxy)).ok().flatten().map(|p| p.identity.user().name.to_string());
    global
        .user
        .clone()
        .or_else(|| variable("WAY_USER"))
        .or_else(known)
        .or_else(|| variable("USER"))
        .or_else(|| variable("LOGNAME"))
        .ok_or_else(|| Failure::usage("which user?").hint("say it with --user NAME, or set WAY_USER"))
}

pub(crate) fn logout(args: &LogoutArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let home = Home::find()?;
    let names: Vec<String> = match &global.proxy {
        _ if args.all => home.profiles()?.into_iter().map(|profile| profile.name).collect(),
        Some(proxy) => vec![name_of(proxy)],
        None => home.current()?.into_iter().collect(),
    };
    let mut is_any = false;
    for name in &names {
        is_any |= home.remove(name)?;
    }
    note(if is_any { "Logged out." } else { "You were not logged in." });
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity_file::tests::{END, identity};

    #[test]
    fn a_second_login_needs_neither_proxy_nor_user() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let global = GlobalArgs::default();
        assert_eq!(proxy(&home, &global).unwrap_err().exit, Exit::Usage);

        home.save(&"proxy.example.com:443".parse().unwrap(), &identity(END)).unwrap();

        let found = proxy(&home, &global).unwrap();
        assert_eq!(found.to_string(), "proxy.example.com:443");
        let named = GlobalArgs { user: Some("bob".into()), ..GlobalArgs::default() };
        assert_eq!(user(&home, &found, &named).unwrap(), "bob");
    }
}
