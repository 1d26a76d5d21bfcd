//! Which attachment of a stream counts: one at a time, and the newest proof wins.

/// The attachments of one stream, as the agent sees them.
#[derive(Debug, Default)]
pub struct Attachments {
    challenged: u64,
    attached: u64,
}

/// One try to attach: it was challenged, and its proof is good once and only while no later one has attached.
#[derive(Debug)]
#[must_use = "a challenge that nobody answers attaches nothing"]
pub struct Attempt(u64);

/// A later attempt has attached already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a later connection has taken the stream over")]
pub struct Superseded;

impl Attachments {
    /// Somebody wants to attach, and is sent a challenge that nobody was sent before.
    pub fn handle_challenge(&mut self) -> Attempt {
        self.challenged += 1;
        Attempt(self.challenged)
    }

    /// The challenge was answered with a proof that is good.
    ///
    /// # Errors
    /// [`Superseded`] when an attempt that was challenged later has attached.
    pub fn handle_proof(&mut self, attempt: Attempt) -> Result<(), Superseded> {
        let Attempt(number) = attempt;
        if number <= self.attached {
            return Err(Superseded);
        }
        self.attached = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o_an_old_proof_is_refused_once_a_newer_one_has_attached() {
        let mut attachments = Attachments::default();
        let first = attachments.handle_challenge();
        let second = attachments.handle_challenge();
        let third = attachments.handle_challenge();

        assert_eq!(attachments.handle_proof(second), Ok(()));
        assert_eq!(attachments.handle_proof(first), Err(Superseded));
        assert_eq!(attachments.handle_proof(third), Ok(()));
    }
}
