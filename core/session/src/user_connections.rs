//! How many connections each user has on this agent.

use std::collections::HashMap;
use std::num::NonZeroU32;
use wayleave_vocab::UserName;

/// Counts connections by user.
#[derive(Debug, Default)]
pub struct UserConnections {
    open: HashMap<UserName, u32>,
}

/// As many connections of the user are open as his roles allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{max} connections are open, more are not allowed")]
pub struct TooManyConnections {
    /// The limit.
    pub max: u32,
}

impl UserConnections {
    /// A connection of the user was permitted. Each success is followed by one [`UserConnections::handle_disconnect`].
    ///
    /// # Errors
    /// When as many are open as allowed; nothing is counted then.
    pub fn handle_connect(
        &mut self,
        user: &UserName,
        max: Option<NonZeroU32>,
    ) -> Result<(), TooManyConnections> {
        let open = self.count(user);
        if let Some(max) = max
            && open >= max.get()
        {
            return Err(TooManyConnections { max: max.get() });
        }
        self.open.insert(user.clone(), open.saturating_add(1));
        Ok(())
    }

    /// A connection of the user ended.
    pub fn handle_disconnect(&mut self, user: &UserName) {
        match self.count(user) {
            0 | 1 => {
                self.open.remove(user);
            }
            open => {
                self.open.insert(user.clone(), open - 1);
            }
        }
    }

    /// How many are open.
    pub fn count(&self, user: &UserName) -> u32 {
        self.open.get(user).copied().unwrap_or(0)
    }
}
