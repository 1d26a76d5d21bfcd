//! What a process of the cluster may be.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A system role. It is written as in certificates (`Node`) and accepted in any case and as the field's token types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SystemRole {
    /// Issues certificates, holds the backend.
    Auth,
    /// The public face.
    Proxy,
    /// Serves SSH.
    Node,
    /// Serves Kubernetes clusters.
    Kube,
    /// Serves applications.
    App,
    /// Serves databases.
    Db,
    /// Serves desktops.
    WindowsDesktop,
    /// Finds resources.
    Discovery,
    /// A machine user.
    Bot,
}

/// A word that names no system role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is no system role; there are auth, proxy, node, kube, app, db, windowsdesktop, discovery, bot"
)]
pub struct ParseSystemRoleError {
    /// What was given, cut to 64 characters.
    pub given: String,
}

impl SystemRole {
    /// Every role, in the order of declaration.
    pub const ALL: [Self; 9] = [
        Self::Auth,
        Self::Proxy,
        Self::Node,
        Self::Kube,
        Self::App,
        Self::Db,
        Self::WindowsDesktop,
        Self::Discovery,
        Self::Bot,
    ];

    /// The name as certificates carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "Auth",
            Self::Proxy => "Proxy",
            Self::Node => "Node",
            Self::Kube => "Kube",
            Self::App => "App",
            Self::Db => "Db",
            Self::WindowsDesktop => "WindowsDesktop",
            Self::Discovery => "Discovery",
            Self::Bot => "Bot",
        }
    }

    /// True for the roles of an agent: those that keep a reverse tunnel.
    pub fn is_agent(self) -> bool {
        match self {
            Self::Node | Self::Kube | Self::App | Self::Db | Self::WindowsDesktop | Self::Discovery => true,
            Self::Auth | Self::Proxy | Self::Bot => false,
        }
    }
}

impl fmt::Display for SystemRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SystemRole {
    type Err = ParseSystemRoleError;

    fn from_str(s: &str) -> Result<Self, ParseSystemRoleError> {
        let plain: String = s.chars().filter(|c| !matches!(c, '_' | '-' | ' ')).collect();
        Self::ALL
            .into_iter()
            .find(|role| role.as_str().eq_ignore_ascii_case(&plain))
            .ok_or_else(|| ParseSystemRoleError { given: s.chars().take(64).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_reads_back_what_it_prints() {
        for role in SystemRole::ALL {
            assert_eq!(role.to_string().to_lowercase().parse(), Ok(role));
        }
        assert_eq!("windows_desktop".parse(), Ok(SystemRole::WindowsDesktop));
        assert!("admin".parse::<SystemRole>().is_err());
    }
}
