//! Whom a decision is about.

use std::collections::BTreeSet;
use wayleave_identity::UserPrincipal;
use wayleave_vocab::{RoleName, Traits, UserName};

/// A user with roles and traits: from a certificate, or from the user resource before there is a certificate.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The name.
    pub name: &'a UserName,
    /// The roles held.
    pub roles: &'a BTreeSet<RoleName>,
    /// What templates and expressions see.
    pub traits: &'a Traits,
}

impl<'a> From<&'a UserPrincipal> for Subject<'a> {
    fn from(principal: &'a UserPrincipal) -> Self {
        Self { name: &principal.name, roles: &principal.roles, traits: &principal.traits }
    }
}

impl<'a> From<&'a wayleave_resource::User> for Subject<'a> {
    fn from(user: &'a wayleave_resource::User) -> Self {
        Self { name: &user.name, roles: &user.spec.roles, traits: &user.spec.traits }
    }
}
