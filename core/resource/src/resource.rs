//! One resource of any kind: reading, writing, and what all kinds have in common.

use crate::auth_preference::{AuthPreferenceSpec, ClusterAuthPreference};
use crate::cert_authority::{CertAuthority, CertAuthoritySpec};
use crate::error::{ResourceError, ResourceErrors};
use crate::kind::Kind;
use crate::lock::{Lock, LockSpec};
use crate::metadata::{Metadata, MetadataView};
use crate::networking::{ClusterNetworkingConfig, NetworkingSpec};
use crate::node::{Node, NodeSpec};
use crate::proxy::{Proxy, ProxySpec, ProxyStatus};
use crate::reader::{At, Fields, Report, near_miss};
use crate::role::{Role, RoleSpec, RoleVersion};
use crate::token::{Token, TokenSpec};
use crate::tree::{self, Tree};
use crate::user::{User, UserSpec, UserStatus};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use wayleave_vocab::ResourceName;

/// The version of every kind but roles, which have their own.
const VERSION: &str = "v2";

/// A resource of any kind.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is the type of the same name")]
pub enum Resource {
    Role(Box<Role>),
    User(User),
    Token(Token),
    Node(Node),
    Proxy(Proxy),
    Lock(Lock),
    ClusterNetworkingConfig(ClusterNetworkingConfig),
    ClusterAuthPreference(ClusterAuthPreference),
    CertAuthority(CertAuthority),
}

impl Resource {
    /// Reads every document of a YAML text (JSON is YAML too, but see [`Resource::parse_json`]).
    ///
    /// # Errors
    /// Every mistake of every document; nothing is returned unless all is well. A text without documents is an error.
    pub fn parse_yaml(text: &str) -> Result<Vec<Self>, ResourceErrors> {
        let one = |document, line, message| {
            ResourceErrors(vec![ResourceError { document, line, path: String::new(), message }])
        };
        let trees = tree::read_yaml(text).map_err(|e| {
            one(e.document, (e.line > 0).then_some(e.line), format!("not YAML: {}", e.message))
        })?;
        if trees.is_empty() {
            return Err(one(1, None, "there is no document in the text".to_owned()));
        }
        let (mut resources, mut errors) = (Vec::new(), Vec::new());
        for (index, tree) in trees.iter().enumerate() {
            match Self::from_tree(tree, index + 1) {
                Ok(resource) => resources.push(resource),
                Err(found) => errors.extend(found.0),
            }
        }
        if errors.is_empty() { Ok(resources) } else { Err(ResourceErrors(errors)) }
    }

    /// Reads one JSON document: what [`Resource::to_json`] and [`Resource::to_stored_json`] wrote.
    ///
    /// # Errors
    /// Every mistake of the document.
    pub fn parse_json(text: &str) -> Result<Self, ResourceErrors> {
        let fail = |message| {
            ResourceErrors(vec![ResourceError { document: 1, line: None, path: String::new(), message }])
        };
        if text.len() > tree::TEXT_BYTES_MAX {
            return Err(fail(format!("the text has {} bytes, at most {}", text.len(), tree::TEXT_BYTES_MAX)));
        }
        let tree: Tree = serde_json::from_str(text).map_err(|error| fail(format!("not JSON: {error}")))?;
        Self::from_tree(&tree, 1)
    }

    /// JSON for people and programs, with the revision.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("maps of strings always serialise")
    }

    /// JSON for the backend: without the revision, which is the backend's to know. The same resource always gives the
    /// same bytes.
    pub fn to_stored_json(&self) -> String {
        let mut stored = self.clone();
        stored.metadata_mut().revision = None;
        stored.to_json()
    }

    /// YAML for people, one document with a final newline; it reads back as the same resource.
    pub fn to_yaml(&self) -> String {
        let value = serde_json::to_value(self).expect("maps of strings always serialise");
        crate::yaml::write(&value)
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Role(_) => Kind::Role,
            Self::User(_) => Kind::User,
            Self::Token(_) => Kind::Token,
            Self::Node(_) => Kind::Node,
            Self::Proxy(_) => Kind::Proxy,
            Self::Lock(_) => Kind::Lock,
            Self::ClusterNetworkingConfig(_) => Kind::ClusterNetworkingConfig,
            Self::ClusterAuthPreference(_) => Kind::ClusterAuthPreference,
            Self::CertAuthority(_) => Kind::CertAuthority,
        }
    }

    /// The name, unique within the kind.
    pub fn name(&self) -> ResourceName {
        let name = match self {
            Self::Role(role) => role.name.to_string(),
            Self::User(user) => user.name.to_string(),
            Self::Token(token) => token.name.to_string(),
            Self::Node(node) => node.host_id.to_string(),
            Self::Proxy(proxy) => proxy.host_id.to_string(),
            Self::Lock(lock) => return lock.name.clone(),
            Self::CertAuthority(authority) => authority.spec.ca_type.to_string(),
            Self::ClusterNetworkingConfig(_) | Self::ClusterAuthPreference(_) => {
                self.kind().only_name().unwrap_or_default().to_owned()
            }
        };
        ResourceName::parse(name).expect("the alphabet of every name is within that of resource names")
    }

    /// Labels, expiry, revision, description.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Role(role) => &role.metadata,
            Self::User(user) => &user.metadata,
            Self::Token(token) => &token.metadata,
            Self::Node(node) => &node.metadata,
            Self::Proxy(proxy) => &proxy.metadata,
            Self::Lock(lock) => &lock.metadata,
            Self::ClusterNetworkingConfig(config) => &config.metadata,
            Self::ClusterAuthPreference(preference) => &preference.metadata,
            Self::CertAuthority(authority) => &authority.metadata,
        }
    }

    /// The same, to be changed.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        match self {
            Self::Role(role) => &mut role.metadata,
            Self::User(user) => &mut user.metadata,
            Self::Token(token) => &mut token.metadata,
            Self::Node(node) => &mut node.metadata,
            Self::Proxy(proxy) => &mut proxy.metadata,
            Self::Lock(lock) => &mut lock.metadata,
            Self::ClusterNetworkingConfig(config) => &mut config.metadata,
            Self::ClusterAuthPreference(preference) => &mut preference.metadata,
            Self::CertAuthority(authority) => &mut authority.metadata,
        }
    }

    fn from_tree(tree: &Tree, document: usize) -> Result<Self, ResourceErrors> {
        let report = Report::new(document);
        let resource = read(&At::root(tree, &report));
        report.finish(resource)
    }
}

fn read(at: &At<'_>) -> Option<Resource> {
    let mut fields = at.fields()?;
    let kind = fields.required("kind", read_kind)?;
    fields.refuse("sub_kind", |_| false, "kinds have no sub-kinds here");
    match kind {
        Kind::Role => {
            let version = fields.required("version", RoleVersion::read);
            let (name, metadata, spec) = read_body(&mut fields, RoleSpec::read)?;
            fields.finish();
            Some(Resource::Role(Box::new(Role { name, version: version?, metadata, spec })))
        }
        Kind::User => {
            let version = read_version(&mut fields);
            let status = fields.or_default("status", UserStatus::read);
            let (name, metadata, spec) = read_body(&mut fields, UserSpec::read)?;
            fields.finish();
            version?;
            Some(Resource::User(User { name, metadata, spec, status: status? }))
        }
        Kind::Token => plain(fields, TokenSpec::read, |name, metadata, spec| {
            Resource::Token(Token { name, metadata, spec })
        }),
        Kind::Node => plain(fields, NodeSpec::read, |host_id, metadata, spec| {
            Resource::Node(Node { host_id, metadata, spec })
        }),
        Kind::Proxy => {
            let status = fields.or_default("status", ProxyStatus::read);
            plain(fields, ProxySpec::read, |host_id, metadata, spec| {
                Resource::Proxy(Proxy { host_id, metadata, spec, status: status.unwrap_or_default() })
            })
        }
        Kind::Lock => plain(fields, LockSpec::read, |name, metadata, spec| {
            Resource::Lock(Lock { name, metadata, spec })
        }),
        Kind::ClusterNetworkingConfig => {
            plain(fields, NetworkingSpec::read, |NetworkingName, metadata, spec| {
                Resource::ClusterNetworkingConfig(ClusterNetworkingConfig { metadata, spec })
            })
        }
        Kind::ClusterAuthPreference => {
            plain(fields, AuthPreferenceSpec::read, |PreferenceName, metadata, spec| {
                Resource::ClusterAuthPreference(ClusterAuthPreference { metadata, spec })
            })
        }
        Kind::CertAuthority => read_authority(fields),
    }
}

fn read_authority(mut fields: Fields<'_>) -> Option<Resource> {
    let version = read_version(&mut fields);
    let body = read_body::<crate::cert_authority::CaType, _>(&mut fields, CertAuthoritySpec::read);
    let whole = fields.at().clone();
    fields.finish();
    let (name, metadata, spec) = body?;
    version?;
    if name != spec.ca_type {
        return whole.fail(format_args!("the name is {name} and the type {}: they must agree", spec.ca_type));
    }
    Some(Resource::CertAuthority(CertAuthority { metadata, spec }))
}

fn read_kind(at: &At<'_>) -> Option<Kind> {
    let text = at.text()?;
    Kind::ALL.into_iter().find(|kind| kind.as_str() == text).or_else(|| {
        let all = Kind::ALL.map(Kind::as_str);
        let near =
            near_miss(text, all.into_iter()).map_or_else(String::new, |n| format!("; did you mean {n}?"));
        at.fail(format_args!(
            "{:?} is no kind of resource{near} There are {}",
            tree::short(text),
            all.join(", ")
        ))
    })
}

fn read_version(fields: &mut Fields<'_>) -> Option<()> {
    fields.required("version", |at| match at.text()? {
        "v1" | "v2" | "v3" => Some(()),
        other => at.fail(format_args!("{other:?} is no version of this kind; write {VERSION}")),
    })
}

/// Reads `version`, `metadata` and `spec` of a kind that has nothing else.
fn plain<N: FromStr<Err: fmt::Display>, S>(
    mut fields: Fields<'_>,
    read_spec: impl FnOnce(&mut Fields<'_>) -> Option<S>,
    build: impl FnOnce(N, Metadata, S) -> Resource,
) -> Option<Resource> {
    let version = read_version(&mut fields);
    let body = read_body(&mut fields, read_spec);
    fields.finish();
    let (name, metadata, spec) = body?;
    version?;
    Some(build(name, metadata, spec))
}

fn read_body<N: FromStr<Err: fmt::Display>, S>(
    fields: &mut Fields<'_>,
    read_spec: impl FnOnce(&mut Fields<'_>) -> Option<S>,
) -> Option<(N, Metadata, S)> {
    let named = fields.required("metadata", |at| {
        let mut fields = at.fields()?;
        let name = fields.required("name", At::parse);
        let metadata = Metadata::read(&mut fields);
        fields.refuse("namespace", |at| at.text() == Some("default"), "there are no namespaces");
        fields.finish();
        Some((name?, metadata?))
    });
    let spec = fields.required("spec", |at| {
        let mut fields = at.fields()?;
        let spec = read_spec(&mut fields);
        fields.finish();
        spec
    });
    let (name, metadata) = named?;
    Some((name, metadata, spec?))
}

macro_rules! only_name {
    ($name:ident, $kind:expr) => {
        struct $name;

        impl FromStr for $name {
            type Err = String;

            fn from_str(s: &str) -> Result<Self, String> {
                let name = $kind.only_name().unwrap_or_default();
                if s == name { Ok(Self) } else { Err(format!("there is one {}, named {name}", $kind)) }
            }
        }
    };
}

only_name!(NetworkingName, Kind::ClusterNetworkingConfig);
only_name!(PreferenceName, Kind::ClusterAuthPreference);

#[derive(Serialize)]
struct View<'a, S: Serialize> {
    kind: Kind,
    version: &'a str,
    metadata: MetadataView<'a>,
    spec: &'a S,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<StatusView<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum StatusView<'a> {
    User(&'a UserStatus),
    Proxy(&'a ProxyStatus),
}

impl Serialize for Resource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = self.name();
        match self {
            Self::Role(role) => View {
                kind: Kind::Role,
                version: role.version.as_str(),
                metadata: MetadataView::new(name.as_str(), &role.metadata),
                spec: &role.spec,
                status: None,
            }
            .serialize(serializer),
            Self::User(user) => View {
                kind: Kind::User,
                version: VERSION,
                metadata: MetadataView::new(name.as_str(), &user.metadata),
                spec: &user.spec,
                status: Some(&user.status).filter(|status| !status.is_empty()).map(StatusView::User),
            }
            .serialize(serializer),
            Self::Token(token) => self.view(&name, &token.spec).serialize(serializer),
            Self::Node(node) => self.view(&name, &node.spec).serialize(serializer),
            Self::Proxy(proxy) => View {
                status: Some(&proxy.status).filter(|status| !status.is_empty()).map(StatusView::Proxy),
                ..self.view(&name, &proxy.spec)
            }
            .serialize(serializer),
            Self::Lock(lock) => self.view(&name, &lock.spec).serialize(serializer),
            Self::ClusterNetworkingConfig(config) => self.view(&name, &config.spec).serialize(serializer),
            Self::ClusterAuthPreference(preference) => {
                self.view(&name, &preference.spec).serialize(serializer)
            }
            Self::CertAuthority(authority) => self.view(&name, &authority.spec).serialize(serializer),
        }
    }
}

impl Resource {
    fn view<'a, S: Serialize>(&'a self, name: &'a ResourceName, spec: &'a S) -> View<'a, S> {
        View {
            kind: self.kind(),
            version: VERSION,
            metadata: MetadataView::new(name.as_str(), self.metadata()),
            spec,
            status: None,
        }
    }
}

impl<'de> Deserialize<'de> for Resource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tree = Tree::deserialize(deserializer)?;
        Self::from_tree(&tree, 1).map_err(serde::de::Error::custom)
    }
}

macro_rules! by_itself {
    ($($kind:ident),* $(,)?) => {$(
        impl From<$kind> for Resource {
            fn from(inner: $kind) -> Self {
                Self::$kind(inner)
            }
        }

        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                Resource::from(self.clone()).serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match Resource::deserialize(deserializer)? {
                    Resource::$kind(inner) => Ok(inner),
                    other => Err(serde::de::Error::custom(format_args!(
                        concat!("expected a ", stringify!($kind), ", found a {}"),
                        other.kind()
                    ))),
                }
            }
        }
    )*};
}

by_itself!(User, Token, Node, Proxy, Lock, ClusterNetworkingConfig, ClusterAuthPreference, CertAuthority);

impl From<Role> for Resource {
    fn from(role: Role) -> Self {
        Self::Role(Box::new(role))
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Resource::from(self.clone()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Resource::deserialize(deserializer)? {
            Resource::Role(role) => Ok(*role),
            other => Err(serde::de::Error::custom(format_args!("expected a role, found a {}", other.kind()))),
        }
    }
}
