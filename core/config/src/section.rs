//! Reads typed values out of one map of the file, by the key table, and reports what does not fit.
//!
//! Every method takes the key within the section. `None` means absent without a default, or
//! wrong; what is wrong is already in the report. An error never repeats a secret's text.

use crate::check::{flag, is_same};
use crate::error::{KeyPath, Place, Report};
use crate::keys::{self, Class, Kind};
use crate::value::{CaPin, LogOutput, ValueOrPath};
use crate::yaml::{Entry, Node, Value};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use wayleave_vocab::{HostPort, Labels, NameError, Secret, Ttl};

/// Longest secret in bytes.
const SECRET_BYTES_MAX: usize = 1024;
/// Longest path in bytes (Linux's own bound).
const PATH_BYTES_MAX: usize = 4096;

/// One map of the file; an absent one is empty.
#[derive(Clone)]
pub(crate) struct Section<'a> {
    report: &'a Report,
    path: KeyPath,
    place: Place,
    entries: &'a [Entry],
}

impl<'a> Section<'a> {
    /// The file's outermost map.
    pub(crate) fn root(report: &'a Report, node: &'a Node) -> Self {
        Self { report, path: KeyPath::default(), place: node.place, entries: entries(node) }
    }

    /// A section inside this one. `wayleave` is also found by its alias.
    pub(crate) fn section(&self, key: &str) -> Self {
        self.note(key, Kind::Section);
        let found =
            self.entries.iter().find(|entry| self.path.child(&entry.key).table == self.path.child(key).table);
        match found {
            Some(entry) => Self {
                report: self.report,
                path: self.path.child(&entry.key),
                place: entry.place,
                entries: entries(&entry.value),
            },
            None => Self { report: self.report, path: self.path.child(key), place: self.place, entries: &[] },
        }
    }

    /// The maps of a list.
    pub(crate) fn sections(&self, key: &str) -> Vec<Self> {
        self.note(key, Kind::Sections);
        let Some(Node { value: Value::List(items), .. }) = self.get(key) else { return Vec::new() };
        let path = self.path.child(key);
        let item = |(index, node): (usize, &'a Node)| Self {
            report: self.report,
            path: path.item(index),
            place: node.place,
            entries: entries(node),
        };
        // What is no map is reported by the check of keys.
        let maps = items.iter().enumerate().filter(|(_, node)| matches!(node.value, Value::Map(_)));
        maps.map(item).collect()
    }

    /// True when the key is written, even without a value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// True for `key: []`.
    pub(crate) fn is_empty_list(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Node { value: Value::List(items), .. }) if items.is_empty())
    }

    /// Reports a mistake about the section as a whole.
    pub(crate) fn refuse_section(&self, found: impl Into<String>, expected: impl Into<String>) {
        self.report.mistake(self.place, &self.path, found, expected);
    }

    /// Where the section stands.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Where a key's value stands, if the file gives one.
    pub(crate) fn place_of(&self, key: &str) -> Option<Place> {
        self.get(key).map(|node| node.place)
    }

    /// Reports a mistake at a key, or at the section when the key is not there.
    pub(crate) fn refuse(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) {
        let place = self.place_of(key).unwrap_or(self.place);
        self.report.mistake(place, &self.path.child(key), found, expected);
    }

    /// Reports that a key without a default is absent.
    pub(crate) fn require<T>(&self, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && self.get(key).is_none() {
            let kind = kind_of(&self.path.child(key).table);
            self.refuse(key, "nothing", kind.map_or_else(String::new, Kind::expected));
        }
        value
    }

    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        self.read(key, Kind::Flag, |field, node| field.text(node, |text| flag(text).ok_or_else(String::new)))
    }

    /// One of the table's words; `options` gives each its meaning, and may know further spellings.
    pub(crate) fn choice<T: Copy>(&self, key: &str, options: &[(&str, T)]) -> Option<T> {
        self.read(key, Kind::Choice(&[]), |field, node| {
            field.text(node, |text| {
                let found = options.iter().find(|(word, _)| is_same(word, text));
                let remark = || keys::word_elsewhere(&field.path.table, text).unwrap_or_default().to_owned();
                found.map(|(_, value)| *value).ok_or_else(remark)
            })
        })
    }

    pub(crate) fn count(&self, key: &str) -> Option<u64> {
        self.read(key, Kind::Count { min: 0, max: 0 }, |field, node| {
            let Kind::Count { min, max } = field.kind else { return None };
            field.text(node, |text| {
                let number: u64 = text.parse().map_err(|_| String::new())?;
                if (min..=max).contains(&number) { Ok(number) } else { Err("out of range".to_owned()) }
            })
        })
    }

    pub(crate) fn duration(&self, key: &str) -> Option<Duration> {
        self.read(key, Kind::Duration { min_secs: 0, max_secs: 0 }, |field, node| {
            let Kind::Duration { min_secs, max_secs } = field.kind else { return None };
            field.text(node, |text| {
                let Ttl(duration) = parse_duration(text)?;
                let in_range = Duration::from_secs(min_secs)..=Duration::from_secs(max_secs);
                if in_range.contains(&duration) { Ok(duration) } else { Err("out of range".to_owned()) }
            })
        })
    }

    /// The outer `None` is a mistake; the inner one is `never`.
    pub(crate) fn duration_or_never(&self, key: &str) -> Option<Option<Duration>> {
        self.read(key, Kind::DurationOrNever, |field, node| {
            field.text(node, |text| {
                if text.eq_ignore_ascii_case("never") {
                    return Ok(None);
                }
                let Ttl(duration) = parse_duration(text)?;
                // The field writes 0 for never as well.
                Ok(if duration.is_zero() { None } else { Some(duration) })
            })
        })
    }

    pub(crate) fn name<T>(&self, key: &str, parse: fn(String) -> Result<T, NameError>) -> Option<T> {
        self.read(key, Kind::Name(""), |field, node| {
            field.text(node, |text| parse(text.to_owned()).map_err(|error| error.rule.to_owned()))
        })
    }

    /// An address of the web, of `http` or `https`.
    pub(crate) fn url(&self, key: &str) -> Option<String> {
        self.read(key, Kind::Name(""), |field, node| {
            field.text(node, |text| {
                let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
                let is_clean = |rest: &str| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_graphic());
                match rest.filter(|rest| is_clean(rest)) {
                    Some(_) => Ok(text.to_owned()),
                    None => Err("it begins with http:// or https://".to_owned()),
                }
            })
        })
    }

    pub(crate) fn path(&self, key: &str) -> Option<PathBuf> {
        self.read(key, Kind::Path, |field, node| field.text(node, parse_path))
    }

    pub(crate) fn listen(&self, key: &str) -> Option<SocketAddr> {
        self.read(key, Kind::Listen, |field, node| field.text(node, parse_listen))
    }

    /// One address; `default_port` is meant when none is written.
    pub(crate) fn address(&self, key: &str, default_port: Option<u16>) -> Option<HostPort> {
        self.read(key, Kind::Address(0), |field, node| {
            field.text(node, |text| parse_address(text, default_port))
        })
    }

    /// One address or a list of them.
    pub(crate) fn addresses(&self, key: &str, default_port: Option<u16>) -> Vec<HostPort> {
        self.read_list(key, Kind::Addresses, true, |text| parse_address(text, default_port))
    }

    pub(crate) fn networks(&self, key: &str) -> Vec<IpNet> {
        self.read_list(key, Kind::Networks, true, parse_network)
    }

    pub(crate) fn pins(&self, key: &str) -> Vec<ValueOrPath<CaPin>> {
        self.read_list(key, Kind::Pins, true, |text| {
            if text.starts_with('/') {
                return parse_path(text).map(ValueOrPath::Path);
            }
            text.parse().map(ValueOrPath::Value).map_err(|_| String::new())
        })
    }

    /// Words; the list must have one at least.
    pub(crate) fn words(&self, key: &str) -> Option<Vec<String>> {
        let words = self.read_list(key, Kind::Words, false, |text| {
            if text.is_empty() || text.contains('\0') {
                Err("a word is empty".to_owned())
            } else {
                Ok(text.to_owned())
            }
        });
        if self.is_empty_list(key) {
            self.refuse(key, "an empty list", Kind::Words.expected());
        }
        (!words.is_empty()).then_some(words)
    }

    pub(crate) fn secret(&self, key: &str) -> Option<ValueOrPath<Secret>> {
        self.read(key, Kind::Secret, |field, node| field.text(node, parse_secret))
    }

    /// A list of URLs, or one.
    pub(crate) fn urls(&self, key: &str) -> Vec<String> {
        self.read_list(key, Kind::Urls, true, |text| {
            let is_url = text.starts_with("https://") || text.starts_with("http://");
            let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
            if is_url && is_plain { Ok(text.to_owned()) } else { Err("it is no such address".to_owned()) }
        })
    }

    /// A list of static tokens, each read by `parse`.
    pub(crate) fn tokens<T>(&self, key: &str, parse: fn(&str) -> Result<T, String>) -> Vec<T> {
        self.read_list(key, Kind::Tokens, true, parse)
    }

    pub(crate) fn log_output(&self, key: &str) -> Option<LogOutput> {
        self.read(key, Kind::LogOutput, |field, node| {
            field.text(node, |text| match text.to_ascii_lowercase().as_str() {
                "stderr" | "err" | "2" => Ok(LogOutput::Stderr),
                "stdout" | "out" | "1" => Ok(LogOutput::Stdout),
                "syslog" => Err("syslog is not supported; the journal reads stderr".to_owned()),
                _ => parse_path(text).map(LogOutput::File),
            })
        })
    }

    pub(crate) fn labels(&self, key: &str) -> Labels {
        let labels = self.read(key, Kind::Labels, |field, node| {
            let Value::Map(entries) = &node.value else {
                field.wrong(node, node.kind().to_owned(), "");
                return None;
            };
            let mut map = BTreeMap::new();
            for entry in entries {
                let field = Field { path: field.path.child(&entry.key), is_item: true, ..*field };
                let text = field.text(&entry.value, |text| {
                    let one = BTreeMap::from([(entry.key.clone(), text.to_owned())]);
                    Labels::try_from(one).map(|_| text.to_owned()).map_err(|error| error.0)
                });
                if let Some(text) = text {
                    map.insert(entry.key.clone(), text);
                }
            }
            Labels::try_from(map).map_err(|error| field.wrong(node, "too many".to_owned(), &error.0)).ok()
        });
        labels.unwrap_or_default()
    }

    fn get(&self, key: &str) -> Option<&'a Node> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (!matches!(entry.value.value, Value::Null)).then_some(&entry.value)
    }

    fn note(&self, key: &str, kind: Kind) {
        #[cfg(test)]
        self.report.asked.borrow_mut().insert(self.path.child(key).table, std::mem::discriminant(&kind));
        #[cfg(not(test))]
        let _ = (key, kind);
    }

    /// Reads the file's value, or else the table's default, in the same way.
    fn read<T>(
        &self,
        key: &str,
        kind: Kind,
        parse: impl FnOnce(&Field<'_>, &Node) -> Option<T>,
    ) -> Option<T> {
        self.note(key, kind);
        let path = self.path.child(key);
        let (kind, default) = match keys::find(&path.table).map(|row| &row.class) {
            Some(Class::Supported { kind, default, .. }) => (*kind, *default),
            Some(Class::Elsewhere { .. }) | None => (kind, ""),
        };
        let field = Field { report: self.report, path, kind, is_item: false };
        match self.get(key) {
            Some(node) => parse(&field, node),
            None if default.is_empty() => None,
            None => parse(&field, &Node::scalar(self.place, default)),
        }
    }

    /// Reads each item; `or_one` lets a single text stand for a list of one.
    fn read_list<T>(
        &self,
        key: &str,
        kind: Kind,
        or_one: bool,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let items = self.read(key, kind, |field, node| match &node.value {
            Value::List(items) => {
                let item = |(index, node): (usize, &Node)| {
                    let field = Field { path: field.path.item(index), is_item: true, ..*field };
                    field.text(node, &parse)
                };
                Some(items.iter().enumerate().filter_map(item).collect())
            }
            Value::Scalar(_) if or_one => field.text(node, &parse).map(|item| vec![item]),
            Value::Null | Value::Scalar(_) | Value::Map(_) => {
                field.wrong(node, node.kind().to_owned(), "");
                None
            }
        });
        items.unwrap_or_default()
    }
}

/// One key while its value is read.
struct Field<'a> {
    report: &'a Report,
    path: KeyPath,
    kind: Kind,
    /// True for one item of the list or map at the key.
    is_item: bool,
}

impl Field<'_> {
    /// Reads text; `parse` says what is wrong with it, or nothing when the expectation says it all.
    fn text<T>(&self, node: &Node, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let Value::Scalar(text) = &node.value else {
            self.wrong(node, node.kind().to_owned(), "");
            return None;
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(problem) => {
                let found = if self.kind.is_secret() {
                    "a value that is not repeated here".to_owned()
                } else {
                    node.describe()
                };
                self.wrong(node, found, &problem);
                None
            }
        }
    }

    fn wrong(&self, node: &Node, found: String, problem: &str) {
        let expected = if self.is_item { self.kind.expected_item() } else { self.kind.expected() };
        let (found, expected) = match (problem, self.kind) {
            ("", _) => (found, expected),
            (rule, Kind::Name(_)) => (found, format!("{expected}: {rule}")),
            (problem, _) => (format!("{found} ({problem})"), expected),
        };
        self.report.mistake(node.place, &self.path, found, expected);
    }
}

fn entries(node: &Node) -> &[Entry] {
    match &node.value {
        Value::Map(entries) => entries,
        Value::Null | Value::Scalar(_) | Value::List(_) => &[],
    }
}

fn kind_of(path: &str) -> Option<Kind> {
    match keys::find(path)?.class {
        Class::Supported { kind, .. } => Some(kind),
        Class::Elsewhere { .. } => None,
    }
}

fn parse_duration(text: &str) -> Result<Ttl, String> {
    // Ttl slices at ASCII boundaries of what it was given; the file's text may be anything.
    if !text.is_ascii() {
        return Err(String::new());
    }
    text.parse::<Ttl>().map_err(|_| match text.parse::<u64>() {
        Ok(_) => "a unit is missing".to_owned(),
        Err(_) => String::new(),
    })
}

/// An absolute path without a NUL.
pub(crate) fn parse_path(text: &str) -> Result<PathBuf, String> {
    if !text.starts_with('/') {
        return Err("it does not begin with /".to_owned());
    }
    if text.len() > PATH_BYTES_MAX || text.contains('\0') {
        return Err(format!("it is longer than {PATH_BYTES_MAX} bytes or has a NUL"));
    }
    Ok(PathBuf::from(text))
}

/// A secret's text, or the path of its file.
pub(crate) fn parse_secret(text: &str) -> Result<ValueOrPath<Secret>, String> {
    if text.starts_with('/') {
        return parse_path(text).map(ValueOrPath::Path);
    }
    if text.is_empty() || text.len() > SECRET_BYTES_MAX {
        return Err(format!("it is empty or longer than {SECRET_BYTES_MAX} bytes"));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("it has white space or control characters".to_owned());
    }
    Ok(ValueOrPath::Value(Secret::new(text.to_owned())))
}

/// `ip:port`, `localhost:port`, or `:port` for every address.
fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let problem = "only an IP address or localhost can be listened on";
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| "the port is not a number from 0 to 65535".to_owned())?;
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    if text.contains('/') || text.trim() != text {
        return Err(problem.to_owned());
    }
    let address = HostPort::parse(text, None).map_err(|error| error.problem.to_owned())?;
    let ip = match address.host() {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host.parse().map_err(|_| problem.to_owned())?,
    };
    Ok(SocketAddr::new(ip, address.port()))
}

fn parse_address(text: &str, default_port: Option<u16>) -> Result<HostPort, String> {
    let address = HostPort::parse(text, default_port).map_err(|error| error.problem.to_owned())?;
    if address.port() == 0 {
        return Err("port 0 cannot be dialled".to_owned());
    }
    if address.host().parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return Err("an unspecified address cannot be dialled".to_owned());
    }
    Ok(address)
}

fn parse_network(text: &str) -> Result<IpNet, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(ip));
    }
    let network: IpNet = text.parse().map_err(|_| String::new())?;
    if network.addr() != network.network() {
        // 10.1.2.3/8 is more likely a slip than a wish to trust all of 10.0.0.0/8.
        return Err(format!("bits are set behind the prefix; the network is {}", network.trunc()));
    }
    Ok(network)
}
