//! What two processes of different releases can say to each other: a version that both speak, and capabilities.
//!
//! A version says how messages are read; it changes when an old reader would misread a new writer. A capability is a
//! name for something that came later: it is asked only of who names it, and ignored by who does not know it.

use std::collections::BTreeSet;
use std::fmt;

/// Most capabilities that are kept of one process; further ones count as not named.
pub const CAPABILITIES_MAX: usize = 64;
/// Longest name of a capability that is kept.
pub const CAPABILITY_BYTES_MAX: usize = 64;

/// The versions of one protocol that a process speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    oldest: u32,
    newest: u32,
}

/// Two processes speak no version in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsupported {
    own: Versions,
    other: Versions,
}

/// Something that not every release can do, as this one knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Carries, or passes on, streams that can be resumed.
    Resume,
}

/// What a process says that it can do, names of newer releases included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities(BTreeSet<String>);

impl Versions {
    /// One version and no other.
    pub const fn only(version: u32) -> Self {
        Self { oldest: version, newest: version }
    }

    /// All from one to another; the newest alone when it is below the oldest.
    pub const fn between(oldest: u32, newest: u32) -> Self {
        if oldest <= newest { Self { oldest, newest } } else { Self::only(newest) }
    }

    /// As a message has them, where an oldest one of zero means that there is only the newest.
    pub const fn told(newest: u32, oldest: u32) -> Self {
        if oldest == 0 { Self::only(newest) } else { Self::between(oldest, newest) }
    }

    /// The first that is spoken.
    pub const fn oldest(self) -> u32 {
        self.oldest
    }

    /// The last.
    pub const fn newest(self) -> u32 {
        self.newest
    }

    /// The newest version that both speak.
    ///
    /// # Errors
    /// [`Unsupported`] when there is none.
    pub fn agree(self, other: Self) -> Result<u32, Unsupported> {
        let newest = self.newest.min(other.newest);
        if newest >= self.oldest.max(other.oldest) {
            Ok(newest)
        } else {
            Err(Unsupported { own: self, other })
        }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { oldest, newest } = self;
        if oldest == newest {
            write!(f, "version {newest}")
        } else {
            write!(f, "versions {oldest} to {newest}")
        }
    }
}

impl Unsupported {
    /// For people: what each speaks, and which of the two to upgrade.
    pub fn explain(&self, own_name: &str, other_name: &str) -> String {
        let Self { own, other } = self;
        let older = if own.newest < other.newest { own_name } else { other_name };
        format!("{own_name} speaks {own} and {other_name} {other}: upgrade {older}")
    }
}

impl Capability {
    /// All that this release knows.
    pub const ALL: [Self; 1] = [Self::Resume];

    /// As it travels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resume => "resume",
        }
    }
}

impl Capabilities {
    /// Those of this release.
    pub fn own() -> Self {
        Capability::ALL.into_iter().collect()
    }

    /// As another process names them. Names that are too long, and those beyond [`CAPABILITIES_MAX`], are left out.
    pub fn told<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Self {
        let mut kept = BTreeSet::new();
        for name in names {
            let name = name.as_ref();
            if kept.len() < CAPABILITIES_MAX && name.len() <= CAPABILITY_BYTES_MAX {
                kept.insert(name.to_owned());
            }
        }
        Self(kept)
    }

    /// Whether this one is among them.
    pub fn has(&self, capability: Capability) -> bool {
        self.0.contains(capability.name())
    }

    /// One of these that the other process does not name.
    pub fn missing_in(&self, other: &Self) -> Option<&str> {
        self.0.iter().find(|name| !other.0.contains(*name)).map(String::as_str)
    }

    /// As they travel.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Capability>>(capabilities: I) -> Self {
        Self(capabilities.into_iter().map(|capability| capability.name().to_owned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(own: Versions, other: Versions, expected: Result<u32, &str>) {
        let agreed = own.agree(other).map_err(|unsupported| unsupported.explain("the proxy", "the agent"));
        assert_eq!(agreed, expected.map_err(str::to_owned));
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        check(Versions::only(1), Versions::only(1), Ok(1));
        check(Versions::only(1), Versions::between(1, 3), Ok(1));
        check(Versions::between(2, 4), Versions::between(1, 3), Ok(3));
        check(Versions::told(2, 0), Versions::told(3, 2), Ok(2));
    }

    #[test]
    fn without_a_common_version_the_older_side_is_named() {
        let old = "the proxy speaks version 1 and the agent versions 2 to 3: upgrade the proxy";
        check(Versions::only(1), Versions::between(2, 3), Err(old));
        let new = "the proxy speaks versions 2 to 3 and the agent version 1: upgrade the agent";
        check(Versions::between(2, 3), Versions::told(1, 0), Err(new));
    }

    fn versions() -> impl Strategy<Value = Versions> {
        (0..9_u32, 0..9_u32).prop_map(|(newest, oldest)| Versions::told(newest, oldest))
    }

    proptest! {
        #[test]
        fn both_sides_come_to_the_same_version_or_to_none(one in versions(), other in versions()) {
            let (here, there) = (one.agree(other), other.agree(one));
            prop_assert_eq!(here.is_ok(), there.is_ok());
            let speaks = |who: Versions, version: u32| (who.oldest()..=who.newest()).contains(&version);
            match (here, there) {
                (Ok(here), Ok(there)) => {
                    prop_assert_eq!(here, there);
                    prop_assert!(speaks(one, here) && speaks(other, here));
                    prop_assert!(!(here + 1..20).any(|newer| speaks(one, newer) && speaks(other, newer)));
                }
                (Err(here), Err(there)) => {
                    prop_assert!(!(0..20).any(|version| speaks(one, version) && speaks(other, version)));
                    // Both tell the same one to upgrade.
                    let (here, there) = (here.explain("one", "other"), there.explain("other", "one"));
                    prop_assert_eq!(here.rsplit(' ').next(), there.rsplit(' ').next());
                }
                _ => unreachable!(),
            }
        }

        #[test]
        fn f_what_is_kept_of_anybodys_capabilities_is_bounded(
            names in proptest::collection::vec("\\PC{0,80}", 0..200),
        ) {
            let kept = Capabilities::told(&names);
            prop_assert!(kept.names().count() <= CAPABILITIES_MAX);
            prop_assert!(kept.names().all(|name| name.len() <= CAPABILITY_BYTES_MAX));
            prop_assert_eq!(kept.missing_in(&kept), None);
        }

        #[test]
        fn what_is_missing_is_needed_and_not_named(
            needed in proptest::collection::btree_set("[a-d]", 0..4),
            named in proptest::collection::btree_set("[a-d]", 0..4),
        ) {
            let (needs, names) = (Capabilities::told(&needed), Capabilities::told(&named));
            match needs.missing_in(&names) {
                Some(missing) => prop_assert!(needed.contains(missing) && !named.contains(missing)),
                None => prop_assert!(needed.is_subset(&named)),
            }
        }
    }

    #[test]
    fn a_newer_process_with_more_capabilities_has_all_that_this_one_knows() {
        let newer = Capabilities::told(["resume", "teleportation"]);
        assert!(newer.has(Capability::Resume));
        assert_eq!(Capabilities::own().missing_in(&newer), None);
        assert_eq!(newer.missing_in(&Capabilities::own()), Some("teleportation"));
        assert_eq!(Capabilities::own().missing_in(&Capabilities::default()), Some("resume"));
    }
}
