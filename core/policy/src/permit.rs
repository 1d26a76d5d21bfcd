//! Permits: proof that this crate allowed something. They cannot be made, copied or read from anywhere else.

use crate::options::SessionOptions;
use wayleave_identity::UserPrincipal;
use wayleave_resource::AdminVerb;
use wayleave_vocab::{HostId, Login, NodeName, ResourceName, UserName, Wall};

/// One user may enter one node as one login, now. Whatever opens the session takes it by value.
#[derive(Debug)]
#[must_use = "a permit that nobody uses was asked for in vain"]
pub struct Permit {
    user: UserName,
    node: NodeName,
    host_id: HostId,
    login: Login,
    options: SessionOptions,
    certificate_ends: Wall,
}

impl Permit {
    pub(crate) fn new(
        principal: &UserPrincipal,
        node: &crate::NodeView<'_>,
        login: &Login,
        options: SessionOptions,
    ) -> Self {
        Self {
            user: principal.name.clone(),
            node: node.name.clone(),
            host_id: *node.host_id,
            login: login.clone(),
            options,
            certificate_ends: principal.not_after,
        }
    }

    /// Who.
    pub fn user(&self) -> &UserName {
        &self.user
    }

    /// Where, as people call it.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Where.
    pub fn host_id(&self) -> HostId {
        self.host_id
    }

    /// As whom.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// What the session may do.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// When the certificate ends.
    pub fn certificate_ends(&self) -> Wall {
        self.certificate_ends
    }

    /// When the session must end whatever happens: with the certificate, if the options say so.
    pub fn session_ends(&self) -> Option<Wall> {
        self.options.disconnect_expired_cert.then_some(self.certificate_ends)
    }
}

/// One user may connect to one TCP application, now. Whatever opens the connection takes it by value.
#[derive(Debug)]
#[must_use = "a permit that nobody uses was asked for in vain"]
pub struct AppPermit {
    pub(crate) user: UserName,
    pub(crate) app: NodeName,
    pub(crate) options: SessionOptions,
    pub(crate) certificate_ends: Wall,
}

impl AppPermit {
    /// Who.
    pub fn user(&self) -> &UserName {
        &self.user
    }

    /// To which.
    pub fn app(&self) -> &NodeName {
        &self.app
    }

    /// What the session may do.
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// When the certificate ends.
    pub fn certificate_ends(&self) -> Wall {
        self.certificate_ends
    }
}

/// One user may do one thing with one kind of resource, or with one resource, through the admin API.
#[derive(Debug)]
#[must_use = "a permit that nobody uses was asked for in vain"]
pub struct AdminPermit {
    pub(crate) user: UserName,
    pub(crate) verb: AdminVerb,
    pub(crate) kind: &'static str,
    pub(crate) resource: Option<ResourceName>,
}

impl AdminPermit {
    /// Who.
    pub fn user(&self) -> &UserName {
        &self.user
    }

    /// What.
    pub fn verb(&self) -> AdminVerb {
        self.verb
    }

    /// With which kind.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// With which resource; absent when the question was about the kind.
    pub fn resource(&self) -> Option<&ResourceName> {
        self.resource.as_ref()
    }
}
