//! The table of keys: what a file may say. Reading, checking and the reference page all use it.
//!
//! A key that is in no row is unknown. Defaults are read by the same code as the file's own
//! values, so the page cannot disagree with the program; a test compares rows and readers.

mod auth;
mod instance;
mod others;
mod proxy;
mod ssh;

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its path; `[]` stands for each item of a list.
    pub(crate) path: &'static str,
    pub(crate) class: Class,
}

/// How a key of the table is treated.
#[derive(Debug)]
pub(crate) enum Class {
    /// Read into the configuration.
    Supported {
        kind: Kind,
        /// As the file would say it; empty when there is none.
        default: &'static str,
        about: &'static str,
    },
    /// The field knows it; here it must not be used, except where it switches something off.
    Elsewhere { passes: Passes, instead: &'static str },
}

/// Which values of a key that is not here do no harm.
#[derive(Debug)]
pub(crate) enum Passes {
    /// Nothing, `no`, an empty list or map, or a map with `enabled: no`.
    Disabled,
    /// These values (what is done here anyway), or a list of them.
    OneOf(&'static [&'static str]),
}

/// What a value looks like.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A map of keys of the table.
    Section,
    /// A list of such maps.
    Sections,
    /// A YAML 1.1 boolean.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number between two bounds.
    Count { min: u64, max: u64 },
    /// A duration between two bounds, in seconds.
    Duration { min_secs: u64, max_secs: u64 },
    /// A duration, or `never`.
    DurationOrNever,
    /// A name; the words say which.
    Name(&'static str),
    /// An absolute path.
    Path,
    /// An address of this machine to listen on.
    Listen,
    /// An address that others dial; the number is the port that is meant when none is written, 0 for none.
    Address(u16),
    /// One such address or a list of them.
    Addresses,
    /// A list of networks.
    Networks,
    /// A map of text to text.
    Labels,
    /// A list of words.
    Words,
    /// A list of URLs.
    Urls,
    /// A secret, or the absolute path of the file that holds it.
    Secret,
    /// Static tokens.
    Tokens,
    /// Pins of the cluster's CA, each a value or a path.
    Pins,
    /// `stderr`, `stdout` or an absolute path.
    LogOutput,
}

impl Kind {
    /// What belongs at such a key, for errors and for the reference.
    pub(crate) fn expected(self) -> String {
        match self {
            Self::Section => "a map of keys".to_owned(),
            Self::Sections => "a list of maps".to_owned(),
            Self::Flag => "yes or no".to_owned(),
            Self::Choice(words) => one_of(words),
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Duration { min_secs, max_secs } => {
                let (min, max) = (ttl(min_secs), ttl(max_secs));
                format!("a duration such as 90s, 30m or 1h30m, from {min} to {max}")
            }
            Self::DurationOrNever => "a duration such as 90s, 30m or 1h30m, or never".to_owned(),
            Self::Name(what) => format!("a {what}"),
            Self::Path => "an absolute path".to_owned(),
            Self::Listen => "an IP address and a port, such as 0.0.0.0:3080".to_owned(),
            Self::Address(0) => "host:port".to_owned(),
            Self::Address(port) => format!("host:port (port {port} when left out)"),
            Self::Addresses => "host:port, or a list of them".to_owned(),
            Self::Networks => "a list of networks such as 10.0.0.0/8".to_owned(),
            Self::Labels => "a map of label to value".to_owned(),
            Self::Words => "a list of words: a program and its arguments".to_owned(),
            Self::Urls => "a list of addresses such as https://etcd-1.example.com:2379".to_owned(),
            Self::Secret => "a value, or the absolute path of a file that holds it".to_owned(),
            Self::Tokens => "a list of \"roles:secret\", \"roles:/path\" or /path".to_owned(),
            Self::Pins => {
                "sha256: and 64 hexadecimal digits, or the absolute path of a file with it, or a list"
                    .to_owned()
            }
            Self::LogOutput => "stderr, stdout or an absolute path".to_owned(),
        }
    }

    /// What belongs at one item of such a list or one value of such a map.
    pub(crate) fn expected_item(self) -> String {
        match self {
            Self::Addresses => "host:port".to_owned(),
            Self::Networks => "a network such as 10.0.0.0/8".to_owned(),
            Self::Labels => "a label's text".to_owned(),
            Self::Words => "a word".to_owned(),
            Self::Urls => "an address such as https://etcd-1.example.com:2379".to_owned(),
            Self::Tokens => "\"roles:secret\", \"roles:/path\" or /path".to_owned(),
            Self::Pins => {
                "sha256: and 64 hexadecimal digits, or the absolute path of a file with it".to_owned()
            }
            other => other.expected(),
        }
    }

    /// True where an error must not repeat the value.
    pub(crate) fn is_secret(self) -> bool {
        matches!(self, Self::Secret | Self::Tokens)
    }
}

/// Words that the field has where a key takes others, and what is said about them.
const WORDS_ELSEWHERE: &[(&str, &[&str], &str)] = &[
    ("version", &["v1", "v2"], "files of this version mean other listeners: check them, then write v3"),
    (
        "wayleave.join_params.method",
        &[
            "ec2",
            "iam",
            "azure",
            "azure_devops",
            "gcp",
            "github",
            "gitlab",
            "circleci",
            "kubernetes",
            "spacelift",
            "terraform_cloud",
            "tpm",
            "bitbucket",
            "oracle",
            "env0",
            "generic_oidc",
            "bound_keypair",
        ],
        "this join method comes with a later release",
    ),
    (
        "wayleave.storage.type",
        &["dynamodb", "firestore", "cosmosdb", "spanner", "cockroachdb"],
        "this backend is not supported",
    ),
];

/// What is said about a word that the field has at a key and we have not.
pub(crate) fn word_elsewhere(path: &str, word: &str) -> Option<&'static str> {
    let is_it = |(at, words, _): &&(&str, &[&str], &str)| {
        *at == path && words.iter().any(|known| known.eq_ignore_ascii_case(word))
    };
    WORDS_ELSEWHERE.iter().find(is_it).map(|(_, _, remark)| *remark)
}

fn ttl(secs: u64) -> String {
    wayleave_vocab::Ttl(std::time::Duration::from_secs(secs)).to_string()
}

/// `a, b or c`.
pub(crate) fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

const YEAR_SECS: u64 = 365 * 24 * 3600;
/// Any duration up to a year.
const ANY_DURATION: Kind = Kind::Duration { min_secs: 0, max_secs: YEAR_SECS };
/// A period that must not be zero.
const PERIOD: Kind = Kind::Duration { min_secs: 1, max_secs: YEAR_SECS };

/// A row for a key that is read.
const fn here(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { path, class: Class::Supported { kind, default, about } }
}

/// A row for a section.
const fn section(path: &'static str, about: &'static str) -> Key {
    here(path, Kind::Section, "", about)
}

/// A row for a key that is not here and passes when it switches something off.
const fn off(path: &'static str, instead: &'static str) -> Key {
    Key { path, class: Class::Elsewhere { passes: Passes::Disabled, instead } }
}

/// A row for a key that is not here and passes when it says what happens anyway.
const fn only(path: &'static str, values: &'static [&'static str], instead: &'static str) -> Key {
    Key { path, class: Class::Elsewhere { passes: Passes::OneOf(values), instead } }
}

/// Every row, in the order of the reference page.
pub(crate) fn all() -> impl Iterator<Item = &'static Key> {
    [others::FILE, instance::KEYS, auth::KEYS, proxy::KEYS, ssh::KEYS, others::TRACING, others::SERVICES]
        .into_iter()
        .flatten()
}

/// The row of a path.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    all().find(|key| key.path == path)
}

/// The last word of a path.
pub(crate) fn leaf(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, leaf)| leaf)
}

/// The path without its last word.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_path_is_there_once_and_below_a_section() {
        let mut seen = BTreeSet::new();
        for key in all() {
            assert!(seen.insert(key.path), "{} twice", key.path);
            let parent = parent(key.path);
            if parent.is_empty() {
                continue;
            }
            let owner =
                find(parent.trim_end_matches("[]")).unwrap_or_else(|| panic!("{} has no section", key.path));
            let Class::Supported { kind, .. } = &owner.class else {
                panic!("{} is below a key that is not read", key.path)
            };
            match kind {
                Kind::Section => assert!(!parent.ends_with("[]"), "{}", key.path),
                Kind::Sections => assert!(parent.ends_with("[]"), "{}", key.path),
                other => panic!("{} is below a {other:?}", key.path),
            }
        }
    }

    #[test]
    fn every_row_says_what_it_is() {
        for key in all() {
            let text = match &key.class {
                Class::Supported { about, .. } => about,
                Class::Elsewhere { instead, .. } => instead,
            };
            assert!(text.len() > 5 && !text.contains('|') && !text.contains('\n'), "{}", key.path);
        }
    }
}
