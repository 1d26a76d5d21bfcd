//! `way invite`: password and second factor of a new user, and the first login.

use crate::access::wait;
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::first_contact::public_api;
use crate::home::Home;
use crate::login::keep;
use crate::new_keys::NewKeys;
use crate::output::{print, show};
use crate::prompt::{self, PasswordSource};
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde::Serialize;
use std::str::FromStr;
use wayleave_api::auth::{AcceptInviteRequest, BeginInviteRequest, BeginInviteResponse};
use wayleave_keystore::Pins;
use wayleave_vocab::HostPort;

/// Longest token in bytes.
const TOKEN_BYTES_MAX: usize = 256;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum InviteCommand {
    Accept(AcceptArgs),
    /// Show what an invitation asks for, without accepting it.
    Show(ShowArgs),
}

/// Set password and one-time codes, and log in
///
/// way invite accept 'https://proxy.example.com:443/web/invite/…#ca-pin=sha256:…'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct AcceptArgs {
    #[command(flatten)]
    which: ShowArgs,
    /// Read the new password from the first line of standard input.
    #[arg(long)]
    password_stdin: bool,
    /// The one-time code, instead of being asked for it.
    #[arg(long, value_name = "CODE")]
    totp: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// The invitation as `way users add` printed it: its address, or its token alone with --proxy.
    #[arg(value_name = "URL")]
    invitation: Invitation,
    /// Pin of the cluster's host authority, if the address does not carry it.
    #[arg(long, env = "WAY_CA_PIN", value_name = "PIN,…")]
    ca_pin: Option<Pins>,
}

/// An invitation as it was handed over: an address, or its token alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    proxy: Option<HostPort>,
    token: String,
    pins: Option<Pins>,
}

/// What an invitation asks for, as programs read it.
#[derive(Debug, Serialize)]
struct Asked {
    user: String,
    totp_uri: String,
    reset: bool,
}

impl FromStr for Invitation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, fragment) = text.trim().split_once('#').unwrap_or((text.trim(), ""));
        let pins = match fragment.strip_prefix("ca-pin=") {
            Some(pins) => Some(pins.parse().map_err(|e: <Pins as FromStr>::Err| e.to_string())?),
            None if fragment.is_empty() => None,
            None => return Err(format!("{fragment:?} behind the # is no ca-pin=…")),
        };
        let (proxy, token) = match address.strip_prefix("https://") {
            Some(rest) => {
                let (host, path) = rest.split_once('/').ok_or("the address has no token in it")?;
                let token = path
                    .trim_end_matches('/')
                    .strip_prefix("web/invite/")
                    .or_else(|| path.trim_end_matches('/').strip_prefix("web/reset/"))
                    .ok_or("the address is not https://PROXY/web/invite/TOKEN")?;
                (Some(HostPort::parse(host, Some(443)).map_err(|e| e.to_string())?), token)
            }
            None => (None, address),
        };
        let is_token = !token.is_empty()
            && token.len() <= TOKEN_BYTES_MAX
            && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
        if !is_token {
            return Err("this is neither https://PROXY/web/invite/TOKEN nor a token".to_owned());
        }
        Ok(Self { proxy, token: token.to_owned(), pins })
    }
}

impl ShowArgs {
    fn proxy(&self, global: &GlobalArgs) -> Result<HostPort, Failure> {
        global.proxy.clone().or_else(|| self.invitation.proxy.clone()).ok_or_else(|| {
            Failure::usage("through which proxy?")
                .hint("give the whole address, or the token with --proxy HOST[:PORT]")
        })
    }

    fn pins(&self) -> Option<&Pins> {
        self.ca_pin.as_ref().or(self.invitation.pins.as_ref())
    }
}

pub(crate) async fn invite(command: InviteCommand, global: &GlobalArgs) -> Result<Exit, Failure> {
    match command {
        InviteCommand::Accept(args) => accept(args, global).await,
        InviteCommand::Show(args) => {
            let mut api = public_api(&args.proxy(global)?, args.pins()).await?;
            let asked = begin(&mut api, &args.invitation.token).await?;
            show(global.format(), &asked, || asked.text())?;
            Ok(Exit::Done)
        }
    }
}

type Api = wayleave_api::auth::public_client::PublicClient<wayleave_rpc::Channel>;

async fn begin(api: &mut Api, token: &str) -> Result<Asked, Failure> {
    let request = BeginInviteRequest { invite_token: token.to_owned() };
    let BeginInviteResponse { user, totp_uri, reset } =
        wait(api.begin_invite(request)).await.map_err(|failure| {
            failure.or_hint(
                "an invitation works once and for a limited time: ask the administrator for a new one",
            )
        })?;
    Ok(Asked { user, totp_uri, reset })
}

async fn accept(args: AcceptArgs, global: &GlobalArgs) -> Result<Exit, Failure> {
    let home = Home::find()?;
    let proxy = args.which.proxy(global)?;
    let mut api = public_api(&proxy, args.which.pins()).await?;
    let asked = begin(&mut api, &args.which.invitation.token).await?;
    print(&asked.text())?;
    let password = PasswordSource::from_flag(args.password_stdin).new_password()?;
    let totp_code = match args.totp {
        Some(code) => code,
        None if asked.totp_uri.is_empty() => String::new(),
        None => prompt::line("One-time code that the app shows: ")?,
    };
    let keys = NewKeys::generate()?;
    let request = AcceptInviteRequest {
        invite_token: args.which.invitation.token,
        password: password.expose_secret().to_owned(),
        totp_code,
        keys: Some(keys.public()),
        ttl_ms: global.ttl_ms(),
    };
    let answer = wait(api.accept_invite(request)).await.map_err(|failure| {
        failure.or_hint("the invitation is still good: repeat the command with the same address")
    })?;
    keep(&home, &proxy, &keys.certified(answer, vec![proxy.clone()])?)?;
    Ok(Exit::Done)
}

impl Asked {
    fn text(&self) -> String {
        let what = if self.reset { "a new password for" } else { "an account:" };
        let mut text = format!("This invitation sets up {what} {}.\n", self.user);
        if self.totp_uri.is_empty() {
            return text;
        }
        text.push_str("\nScan this with an authenticator app, or enter the address below it:\n\n");
        text.push_str(&qr_code(&self.totp_uri));
        text.push_str(&format!("\n{}\n\n", self.totp_uri));
        text
    }
}

/// A QR code of half blocks, light on dark as most terminals are. Empty when the text does not fit one.
fn qr_code(text: &str) -> String {
    match QrCode::new(text) {
        Ok(code) => {
            let mut picture = code
                .render::<Dense1x2>()
                .dark_color(Dense1x2::Light)
                .light_color(Dense1x2::Dark)
                .quiet_zone(true)
                .build();
            picture.push('\n');
            picture
        }
        Err(error) => {
            tracing::debug!(%error, "no QR code can hold the address");
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_invitation_is_read_with_its_pin() {
        let pin = format!("sha256:{}", "ab".repeat(32));
        let read: Invitation =
            format!("https://p.example.com/web/invite/0a1b#ca-pin={pin},{pin}").parse().unwrap();
        assert_eq!(read.proxy.unwrap().to_string(), "p.example.com:443");
        assert_eq!(read.token, "0a1b");
        assert!(read.pins.is_some());
        let read: Invitation = "https://[::1]:3080/web/reset/0a.1b/".parse().unwrap();
        assert_eq!((read.proxy.unwrap().to_string().as_str(), read.token.as_str()), ("[::1]:3080", "0a.1b"));
        assert_eq!("0a1b".parse::<Invitation>().unwrap().proxy, None);
    }

    #[test]
    fn what_is_no_invitation_is_refused() {
        for bad in [
            "",
            "https://p/",
            "https://p",
            "https://p/web/login/x",
            "http://p/web/invite/x",
            "https://p/web/invite/a b",
            "0a1b#ca-pin=sha256:xx",
            "0a1b#other",
        ] {
            assert!(bad.parse::<Invitation>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_second_factor_is_shown_as_code_and_as_text() {
        let uri = "otpauth://totp/demo:alice?secret=JBSWY3DPEHPK3PXP&issuer=demo";
        let asked = Asked { user: "alice".into(), totp_uri: uri.into(), reset: false };
        let text = asked.text();
        assert!(text.contains(uri) && text.contains('█') && text.contains("alice"), "{text}");
    }

    proptest! {
        #[test]
        fn f_arbitrary_invitations_never_panic(text in "\\PC{0,60}") {
            let _ = text.parse::<Invitation>();
        }
    }
}
