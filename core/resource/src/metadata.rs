//! What every resource carries besides its name and its spec.

use crate::reader::Fields;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use wayleave_vocab::{Labels, Wall};

/// Longest description in bytes.
const DESCRIPTION_BYTES_MAX: usize = 1024;
/// Longest revision in bytes.
const REVISION_BYTES_MAX: usize = 64;

/// Labels, expiry, revision and description. The name is a typed field of each resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// For people.
    pub description: Option<String>,
    /// Labels by which the resource is found.
    pub labels: Labels,
    /// When the resource ceases to exist.
    pub expires: Option<Wall>,
    /// What the backend called the stored version; present in answers, absent in the stored form.
    pub revision: Option<String>,
}

impl Metadata {
    /// Reads everything but the name.
    pub(crate) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let description = fields.optional("description", |at| {
            let text = at.text()?;
            if text.len() > DESCRIPTION_BYTES_MAX {
                return at.fail(format_args!("has {} bytes, at most {DESCRIPTION_BYTES_MAX}", text.len()));
            }
            Some(text.to_owned())
        });
        let labels = fields.or_default("labels", |at| {
            let mut map = BTreeMap::new();
            for (key, value) in at.pairs()? {
                map.insert(key.to_owned(), value.line_of_text()?);
            }
            Labels::try_from(map).map_err(|error| at.fail::<()>(error)).ok()
        });
        let expires = fields.optional("expires", |at| at.time());
        let revision = fields.optional("revision", |at| {
            let text = at.line_of_text()?;
            if text.len() > REVISION_BYTES_MAX {
                return at.fail(format_args!("has {} bytes, at most {REVISION_BYTES_MAX}", text.len()));
            }
            Some(text)
        });
        Some(Self { description: description?, labels: labels?, expires: expires?, revision: revision? })
    }
}

#[derive(Serialize)]
pub(crate) struct MetadataView<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: &'a Labels,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "optional_time")]
    expires: Option<Wall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<&'a str>,
}

impl<'a> MetadataView<'a> {
    pub(crate) fn new(name: &'a str, metadata: &'a Metadata) -> Self {
        Self {
            name,
            description: metadata.description.as_deref(),
            labels: &metadata.labels,
            expires: metadata.expires,
            revision: metadata.revision.as_deref(),
        }
    }
}

/// Writes a point in time as RFC 3339.
pub(crate) fn time<S: Serializer>(time: &Wall, serializer: S) -> Result<S::Ok, S::Error> {
    let ms = i64::try_from(time.as_ms()).unwrap_or(i64::MAX);
    serializer.collect_str(&jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX))
}

/// Writes a point in time as RFC 3339, if there is one.
pub(crate) fn optional_time<S: Serializer>(value: &Option<Wall>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => time(value, serializer),
        None => serializer.serialize_none(),
    }
}
