//! Users. Passwords, second factors and keys are not here: Auth stores them apart.

use crate::metadata::{Metadata, optional_time, time};
use crate::reader::{At, Fields};
use serde::Serialize;
use std::collections::BTreeSet;
use wayleave_vocab::{RoleName, Traits, UserName, Wall};

/// A person or machine user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: UserName,
    /// Labels, expiry, revision, description.
    pub metadata: Metadata,
    /// What an administrator decides.
    pub spec: UserSpec,
    /// What the cluster notes; people do not write it.
    pub status: UserStatus,
}

/// What an administrator decides about a user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UserSpec {
    /// The roles held. At least one.
    pub roles: BTreeSet<RoleName>,
    /// Traits for the templates of roles; `logins` fills `{{internal.logins}}`.
    #[serde(skip_serializing_if = "Traits::is_empty")]
    pub traits: Traits,
}

/// What the cluster notes about a user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UserStatus {
    /// Who created it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<UserName>,
    /// When it was created.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_time")]
    pub created_at: Option<Wall>,
    /// After too many wrong passwords: until when none is tried.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_time")]
    pub locked_until: Option<Wall>,
    /// Roles that were taken away while certificates with them may still be valid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub withdrawn_roles: Vec<WithdrawnRole>,
}

/// A role that was taken from a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WithdrawnRole {
    /// Which.
    pub role: RoleName,
    /// When no certificate with it is valid any more.
    #[serde(serialize_with = "time")]
    pub until: Wall,
}

impl WithdrawnRole {
    fn read(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let role = fields.required("role", At::parse);
        let until = fields.required("until", At::time);
        fields.finish();
        Some(Self { role: role?, until: until? })
    }
}

impl UserSpec {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let roles = fields.required("roles", |at| {
            let roles: BTreeSet<RoleName> = at.each_of_one_or_more(At::parse)?;
            if roles.is_empty() {
                at.fail("a user without roles can do nothing: name at least one")
            } else {
                Some(roles)
            }
        });
        let traits = fields.or_default("traits", |at| {
            let mut traits = Traits::new();
            for (name, values) in at.pairs()? {
                if !values.is_empty() {
                    traits.insert(name.to_owned(), values.each_of_one_or_more(At::line_of_text)?);
                }
            }
            Some(traits)
        });
        for name in ["oidc_identities", "saml_identities", "github_identities", "trusted_device_ids"] {
            fields.refuse(name, |_| false, "users log in with a password and a second factor");
        }
        Some(Self { roles: roles?, traits: traits? })
    }
}

impl UserStatus {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn read(at: &At<'_>) -> Option<Self> {
        let mut fields = at.fields()?;
        let created_by = fields.optional("created_by", At::parse);
        let created_at = fields.optional("created_at", At::time);
        let locked_until = fields.optional("locked_until", At::time);
        let withdrawn_roles = fields.or_default("withdrawn_roles", |at| at.each(WithdrawnRole::read));
        fields.finish();
        Some(Self {
            created_by: created_by?,
            created_at: created_at?,
            locked_until: locked_until?,
            withdrawn_roles: withdrawn_roles?,
        })
    }
}
