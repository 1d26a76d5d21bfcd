//! Bugs to put in on purpose: the checks are worth something only if each of these is caught.

/// One bug, at the place where the simulation joins the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    /// Removals of routes are left out of every update.
    DropWithdrawal,
    /// A late or doubled update is taken for the newest.
    AcceptOldSequence,
    /// Updates of a former life are taken for the present one's.
    AcceptOldIncarnation,
    /// A dial is never told that time has passed.
    SkipDeadline,
    /// A byte of a stream is repeated on its way between proxies.
    ReplayByte,
    /// A piece of a stream is lost on its way between proxies.
    LosePiece,
    /// A stream is opened to another agent than was asked for.
    WrongAgent,
    /// What was consumed is never said, so that no window opens again.
    NeverRecredit,
    /// The pool is not told that a tunnel was lost.
    ForgetRedial,
    /// The pool is not told that a proxy is leaving.
    IgnoreDrain,
    /// Suspect routes are not tried.
    SuspectIsDeleted,
    /// Suspect routes never go.
    NeverExpireSuspect,
    /// "Not here" is not followed by a refresh.
    NoRetryOnNotHere,
    /// A second tunnel to a proxy is reported as one to another proxy.
    CountProxyTwice,
    /// Only the first strategy is believed.
    IgnoreStrategyChange,
    /// Tunnels that should be given up are kept.
    KeepExcess,
    /// A proxy that is asked by a peer asks another peer.
    SecondHop,
    /// Silence on a tunnel is not noticed.
    NoKeepalive,
    /// A lost lease is not noticed.
    ForgetLease,
    /// What a proxy tells of the others is taken for Auth's own word.
    BelieveProxies,
    /// A stream goes on at a byte that its client did not name.
    TrustOffset,
    /// A proxy's word is enough to end a stream that can be resumed.
    BelieveRefusals,
    /// An agent is asked for what it has not said that it can do.
    IgnoreCapabilities,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::DropWithdrawal,
        Self::AcceptOldSequence,
        Self::AcceptOldIncarnation,
        Self::SkipDeadline,
        Self::ReplayByte,
        Self::LosePiece,
        Self::WrongAgent,
        Self::NeverRecredit,
        Self::ForgetRedial,
        Self::IgnoreDrain,
        Self::SuspectIsDeleted,
        Self::NeverExpireSuspect,
        Self::NoRetryOnNotHere,
        Self::CountProxyTwice,
        Self::IgnoreStrategyChange,
        Self::KeepExcess,
        Self::SecondHop,
        Self::NoKeepalive,
        Self::ForgetLease,
        Self::BelieveProxies,
        Self::TrustOffset,
        Self::BelieveRefusals,
        Self::IgnoreCapabilities,
    ];
}
