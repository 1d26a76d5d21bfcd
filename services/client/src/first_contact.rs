//! Reaching the Auth Service through a proxy before there is an identity.
//!
//! The TLS connection ends at Auth, behind the proxy; so the proxy sees no password. Whether it is the right Auth is
//! known from a pin, from an earlier login, or from a web certificate that the system's own authorities vouch for.
//! Without any of them nothing is sent.

use crate::failure::{Exit, Failure, chain};
use crate::home::Home;
use rustls::ClientConfig;
use std::sync::Arc;
use wayleave_api::ALPN_AUTH;
use wayleave_api::auth::public_client::PublicClient;
use wayleave_keystore::{Credentials, Pins, client_config, pinned_client_config, public_client_config};
use wayleave_net::AddressBook;
use wayleave_rpc::{Channel, PublicPinsError, channel_through, public_pins};
use wayleave_vocab::{HostPort, SystemRole};

/// The Auth API for strangers, through `proxy`.
pub(crate) async fn public_api(
    proxy: &HostPort,
    pins: Option<&Pins>,
) -> Result<PublicClient<Channel>, Failure> {
    let profile = Home::find()?.profile(Some(proxy)).ok().flatten();
    let known = profile.as_ref().map(|profile| profile.identity.trust());
    let others = profile.iter().flat_map(|profile| &profile.identity.parts().proxies);
    let addresses = AddressBook::new(std::iter::once(proxy).chain(others).cloned().collect());
    let tls = match pins.filter(|pins| !pins.is_empty()) {
        Some(pins) => pinned(pins)?,
        None => match &known {
            Some(trust) => client_config(&Credentials::empty(), trust, SystemRole::Auth, None, &[ALPN_AUTH])
                .map_err(Failure::doing("cannot set up TLS"))?,
            None => pinned(&ask_for_pins(proxy).await?)?,
        },
    };
    let outer = public_client_config(known.as_ref()).map_err(Failure::doing("cannot set up TLS"))?;
    Ok(PublicClient::new(channel_through(addresses, tls, outer)))
}

fn pinned(pins: &Pins) -> Result<Arc<ClientConfig>, Failure> {
    pinned_client_config(pins, SystemRole::Auth, &[ALPN_AUTH]).map_err(Failure::doing("cannot set up TLS"))
}

/// The pins that a proxy states over a connection that a public authority vouches for.
async fn ask_for_pins(proxy: &HostPort) -> Result<Pins, Failure> {
    public_pins(proxy).await.map_err(|error| match &error {
        PublicPinsError::Untrusted(_) => {
            unknown_cluster(proxy, "its web certificate is not from a public authority")
        }
        PublicPinsError::Unreachable(_) | PublicPinsError::TimedOut { .. } => {
            Failure::new(Exit::Unreachable, chain(&error)).hint("check --proxy and the network")
        }
        PublicPinsError::NotAProxy(..) => Failure::new(Exit::Unreachable, chain(&error))
            .hint("check --proxy: it is the address of the proxy's web port"),
        PublicPinsError::Tls(_) => Failure::failed(chain(&error)),
    })
}

fn unknown_cluster(proxy: &HostPort, why: &str) -> Failure {
    Failure::new(Exit::Denied, format!("nothing says that {proxy} is of your cluster: {why}")).hint(
        "ask the administrator for the CA pin (on the Auth host: `way -c /etc/wayleave.yaml status`) and add \
         --ca-pin sha256:…",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_a_stranger_without_a_pin_is_told_what_to_do() {
        let failure = unknown_cluster(&"p:443".parse().unwrap(), "x");
        assert_eq!(failure.exit, Exit::Denied);
        assert!(failure.hint.unwrap().contains("--ca-pin"));
    }
}
