//! Who comes in: certificate, then policy, then the machine's own account, each refusal with its reason.

use super::connection::{Done, NodeConnection, Stage};
use super::events;
use crate::authenticate::{AuthenticateError, Permissions, Trust, authenticate};
use crate::driver::Core;
use crate::limits::{self, UserSlot};
use std::time::Duration;
use wayleave_audit::{Event, Text};
use wayleave_identity::UserPrincipal;
use wayleave_os::{Account, AccountError};
use wayleave_policy::{Context, Denial, NodeView, Permit, SessionOptions};
use wayleave_session::{Connection as Limits, TooManyConnections};
use wayleave_ssh::{AuthAttempt, DisconnectReason};
use wayleave_vocab::{Login, Mono, NameError, UserName, Wall};

/// A user whose certificate was judged and whom the policy let in.
pub(crate) struct Admitted {
    pub(crate) principal: UserPrincipal,
    pub(crate) permissions: Permissions,
    pub(crate) login: Login,
    pub(crate) account: Account,
    limits: Limits,
    _slot: UserSlot,
}

impl Admitted {
    /// Sessions, silence, the certificate's end, drain: told first when data last moved, so that nobody who talks
    /// counts as silent.
    pub(crate) fn limits(&mut self, last_activity: Mono) -> &mut Limits {
        self.limits.handle_activity(last_activity);
        &mut self.limits
    }

    /// When the limits want to be looked at.
    pub(crate) fn poll_timeout(&self) -> Option<Mono> {
        self.limits.poll_timeout()
    }
}

/// The same before the machine's account is known.
pub(crate) struct Candidate {
    attempt: Box<AuthAttempt>,
    principal: UserPrincipal,
    permissions: Permissions,
    login: Login,
    slot: UserSlot,
}

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmissionError {
    #[error(transparent)]
    Certificate(#[from] AuthenticateError),
    #[error(transparent)]
    Login(#[from] NameError),
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    TooManyConnections(#[from] TooManyConnections),
    #[error("the account that was found is another one than was asked for")]
    OtherAccount,
    #[error("there is no verified policy yet")]
    NoPolicy,
    #[error("the agent is shutting down")]
    ShuttingDown,
    #[error("the roles want sessions to end with their connection")]
    NotResumable,
}

impl AdmissionError {
    /// What the client may read; without it the client is only refused, and may try another key.
    fn user_text(&self) -> Option<String> {
        match self {
            Self::Certificate(error) => error.user_text(),
            Self::Login(error) => Some(format!("access denied: {error}")),
            Self::Denied(denial) => Some(denial.user_text()),
            Self::Account(error) => Some(format!("access denied: {error}")),
            Self::TooManyConnections(error) => Some(format!("access denied: {error}")),
            Self::OtherAccount => None,
            Self::NoPolicy => Some("this node has no policy yet; try again".to_owned()),
            Self::ShuttingDown => Some("this node is shutting down; try again".to_owned()),
            Self::NotResumable => Some("your roles want sessions to end with their connection".to_owned()),
        }
    }
}

impl NodeConnection {
    /// A client proved that it holds a certified key.
    pub(crate) fn on_auth_attempt(&mut self, core: &mut Core<Done>, attempt: Box<AuthAttempt>) {
        match self.judge(&attempt, core.clock.wall()) {
            Ok((principal, permissions, login, slot)) => {
                let wanted = login.clone();
                self.stage =
                    Stage::Admitting(Box::new(Candidate { attempt, principal, permissions, login, slot }));
                core.start(async move { Done::AccountFound(Account::lookup(&wanted).await) });
            }
            Err(rejection) => self.refuse(core, &attempt, &rejection),
        }
    }

    fn judge(
        &self,
        attempt: &AuthAttempt,
        now: Wall,
    ) -> Result<(UserPrincipal, Permissions, Login, UserSlot), Box<Rejection>> {
        let nobody = |error: AdmissionError| Box::new(Rejection { user: None, error });
        let view = self.view().ok_or(AdmissionError::NoPolicy).map_err(nobody)?;
        let trust = Trust { authorities: view.user_authorities(), cluster: view.cluster() };
        let client = self.facts.client.map(|address| address.ip().to_canonical());
        let user = authenticate(&attempt.certificate, Some(&attempt.user), &trust, client, now)
            .map_err(|error| nobody(error.into()))?;
        let named = |error| Box::new(Rejection { user: Some(user.principal.name.clone()), error });
        if self.is_draining {
            return Err(named(AdmissionError::ShuttingDown));
        }
        let login =
            Login::parse(attempt.user.as_str()).map_err(|error| named(AdmissionError::from(error)))?;
        let permit = self.decide(&user.principal, &login, now).map_err(named)?;
        let taken = self.node.slots.take(permit.user(), permit.options().max_connections);
        let slot = taken.map_err(|error| named(error.into()))?;
        Ok((user.principal, user.permissions, login, slot))
    }

    /// The machine said whether it has the account.
    pub(crate) fn on_account(&mut self, core: &mut Core<Done>, found: Result<Account, AccountError>) {
        let Stage::Admitting(candidate) = std::mem::replace(&mut self.stage, Stage::Unauthenticated) else {
            return;
        };
        let Candidate { attempt, principal, permissions, login, slot } = *candidate;
        // The policy may have changed while the name service was asked.
        let wall = core.clock.wall();
        let decided =
            found.map_err(AdmissionError::from).and_then(|account| match *account.login() == login {
                true => Ok((account, self.decide(&principal, &login, wall)?)),
                false => Err(AdmissionError::OtherAccount),
            });
        match decided {
            Ok((account, permit)) => {
                let terms = limits::terms(permit.options(), permit.certificate_ends());
                let limits = Limits::new(terms, limits::now(&*core.clock));
                let admitted = Admitted { principal, permissions, login, account, limits, _slot: slot };
                self.stage = Stage::Admitted(Box::new(admitted));
                self.unauthenticated = None;
                // Refused only when the connection is over, which the driver sees.
                let _over = core.connection.accept_auth();
            }
            Err(error) => {
                let rejection = Rejection { user: Some(principal.name), error };
                self.refuse(core, &attempt, &rejection);
            }
        }
    }

    fn refuse(&mut self, core: &mut Core<Done>, attempt: &AuthAttempt, rejection: &Rejection) {
        self.stage = Stage::Unauthenticated;
        let Rejection { user, error } = rejection;
        tracing::debug!(%error, login = attempt.user, "a user is not let in");
        let config = &self.node.config;
        let (reason, client_addr) = (Text::new(error.to_string()), self.facts.client_text());
        let event = match user {
            Some(user) => Event::SessionRejected {
                user: Text::new(user.as_str()),
                login: Text::new(attempt.user.as_str()),
                server_id: config.host_id,
                server_hostname: Text::new(config.node.as_str()),
                reason,
                client_addr,
            },
            None => {
                let said = format!("{} (login {})", attempt.certificate.key_id(), attempt.user);
                Event::AuthAttempt { user: Text::new(said), client_addr, error: reason }
            }
        };
        let (node, text) = (self.node.clone(), error.user_text());
        core.start_lasting(async move {
            events::note(node, event).await;
            Done::RefusalNoted(text)
        });
    }

    /// The refusal is in the audit log: now the client may know.
    pub(crate) fn on_refusal_noted(&mut self, core: &mut Core<Done>, text: Option<String>) {
        match text {
            Some(text) => core.end(DisconnectReason::NoMoreAuthMethodsAvailable, text),
            // Refused only when the connection is over, which the driver sees.
            None => drop(core.connection.reject_auth()),
        }
    }

    /// Asks the policy of the moment.
    fn decide(&self, principal: &UserPrincipal, login: &Login, now: Wall) -> Result<Permit, AdmissionError> {
        let view = self.view().ok_or(AdmissionError::NoPolicy)?;
        let config = &self.node.config;
        let labels = config.labels.borrow().clone();
        let node = NodeView { name: &config.node, host_id: &config.host_id, labels: &labels };
        let context = Context { locks: view.locks(), locks_age: config.policy.locks_age(now) };
        Ok(view.policy().decide_ssh(principal, &node, login, &context, now)?)
    }

    /// A fresh permit for one more thing on this connection, or what operators and the user may read.
    pub(crate) fn permit(&self, now: Wall) -> Result<Permit, Refused> {
        let Stage::Admitted(user) = &self.stage else {
            return Err(Refused::new("nobody is logged in", "access denied"));
        };
        if self.is_draining {
            return Err(Refused::new("the agent is shutting down", "the service is shutting down"));
        }
        self.decide(&user.principal, &user.login, now).map_err(|error| {
            let text = error.user_text().unwrap_or_else(|| "access denied".to_owned());
            Refused { reason: error.to_string(), text }
        })
    }

    /// Whether a user may go on with this connection after it was lost: the one who is logged in, judged as for a new
    /// connection, with the certificate that he presents now.
    pub(crate) fn may_resume(&self, user: &UserPrincipal, now: Wall) -> Result<(), Refused> {
        let (name, login) = match &self.stage {
            Stage::Unauthenticated => {
                let wait = self.node.max_detached_of(user).map_err(Refused::plain)?;
                let error = AdmissionError::NotResumable;
                return if wait.is_zero() { Err(Refused::plain(error.to_string())) } else { Ok(()) };
            }
            Stage::Admitting(candidate) => (&candidate.principal.name, &candidate.login),
            Stage::Admitted(admitted) => (&admitted.principal.name, &admitted.login),
        };
        if *name != user.name {
            let reason = format!("{} wants to go on with a connection of {name}", user.name);
            return Err(Refused { reason, text: "this is not your session".to_owned() });
        }
        let decided = self.decide(user, login, now).and_then(|permit| {
            if permit.options().max_detached.0.is_zero() { Err(AdmissionError::NotResumable) } else { Ok(()) }
        });
        decided.map_err(|error| {
            let text = error.user_text().unwrap_or_else(|| "access denied".to_owned());
            Refused { reason: error.to_string(), text }
        })
    }

    /// Judges the running connection by the policy of the moment: its certificate may have run out where
    /// sessions outlive it, and old knowledge of locks stops only what is new.
    pub(crate) fn recheck(&mut self, core: &mut Core<Done>) {
        let Stage::Admitted(user) = &self.stage else { return };
        let now = limits::now(&*core.clock);
        let ageless = UserPrincipal { not_after: Wall::from_ms(u64::MAX), ..user.principal.clone() };
        let certificate_ends = user.principal.not_after;
        let decision = self.decide_running(&ageless, &user.login, now.wall);
        if let Ok(options) = &decision {
            self.end_forwards_without_right(core, options);
        }
        let decision = decision.map(|options| limits::terms(&options, certificate_ends));
        if let Stage::Admitted(user) = &mut self.stage {
            user.limits(core.last_activity).handle_decision(decision, now);
        }
        self.apply_limits(core);
    }

    fn decide_running(
        &self,
        principal: &UserPrincipal,
        login: &Login,
        now: Wall,
    ) -> Result<SessionOptions, wayleave_session::EndReason> {
        let view = self.view().ok_or(wayleave_session::EndReason::PolicyChanged)?;
        let config = &self.node.config;
        let labels = config.labels.borrow().clone();
        let node = NodeView { name: &config.node, host_id: &config.host_id, labels: &labels };
        let context = Context { locks: view.locks(), locks_age: Duration::ZERO };
        match view.policy().decide_ssh(principal, &node, login, &context, now) {
            Ok(permit) => Ok(permit.options().clone()),
            Err(denial) => {
                tracing::info!(%denial, "a running SSH connection is no longer allowed");
                Err(limits::end_reason(denial))
            }
        }
    }
}

/// A refused login: who, if a certificate proved it, and why.
struct Rejection {
    user: Option<UserName>,
    error: AdmissionError,
}

/// A refusal of something on a running connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// For operators.
    pub(crate) reason: String,
    /// For the user.
    pub(crate) text: String,
}

impl Refused {
    pub(crate) fn new(reason: &str, text: &str) -> Self {
        Self { reason: reason.to_owned(), text: text.to_owned() }
    }

    /// The same text for both.
    pub(crate) fn plain(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { reason: text.clone(), text }
    }
}
