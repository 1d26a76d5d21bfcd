//! Whether two proxies of different releases understand each other.

use wayleave_api::PEER_VERSIONS;
use wayleave_vocab::{HostId, Versions, printable};

/// Fails with the text for people when they do not.
pub(super) fn agree_with(peer: HostId, told: Versions, release: &str, own: HostId) -> Result<(), String> {
    PEER_VERSIONS.agree(told).map(|_| ()).map_err(|unsupported| {
        let own = format!("proxy {own} (release {})", env!("CARGO_PKG_VERSION"));
        let other = format!("proxy {peer} (release {})", printable(release));
        unsupported.explain(&own, &other)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(newest: u32, oldest: u32, expected: Option<&str>) {
        let [own, peer] = [1, 2].map(|n| HostId::from_random([n; 16]));
        let refused = agree_with(peer, Versions::told(newest, oldest), "9.1", own).err();
        assert_eq!(refused.is_some(), expected.is_some(), "{refused:?}");
        if let (Some(refused), Some(expected)) = (refused, expected) {
            assert!(refused.contains("release 9.1") && refused.ends_with(expected), "{refused}");
        }
    }

    #[test]
    fn a_peer_of_another_release_is_one_if_it_speaks_this_version_too() {
        check(1, 0, None);
        check(7, 1, None);
        check(7, 2, Some(concat!("(release ", env!("CARGO_PKG_VERSION"), ")")));
        check(0, 0, Some("(release 9.1)"));
    }
}
