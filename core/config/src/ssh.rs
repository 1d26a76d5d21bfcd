//! The SSH Service: `ssh_service:`.

use crate::section::Section;
use std::collections::BTreeMap;
use std::time::Duration;
use wayleave_vocab::{LABELS_MAX, Labels, NameError};

/// The SSH Service. Its switches forbid what roles may allow, never the other way round.
#[derive(Debug, Clone)]
pub struct SshConfig {
    /// Labels with fixed values.
    pub labels: Labels,
    /// Labels whose values commands print; names differ from one another and from `labels`.
    pub commands: Vec<CommandLabel>,
    /// Whether ports may be forwarded.
    pub port_forwarding: bool,
    /// Whether scp and SFTP may run.
    pub ssh_file_copy: bool,
    /// Whether the client's SSH agent may be forwarded.
    pub forward_agent: bool,
}

/// A label whose value is a command's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLabel {
    /// The label.
    pub name: LabelName,
    /// Program and arguments, run without a shell; never empty.
    pub command: Vec<String>,
    /// How often it runs; at least a second.
    pub period: Duration,
}

/// A label's name: valid as a key of [`Labels`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabelName(String);

impl LabelName {
    /// Reads a name.
    ///
    /// # Errors
    /// When [`Labels`] would not take it as a key.
    pub fn parse(text: String) -> Result<Self, NameError> {
        if Labels::default().insert(text.clone(), String::new()).is_ok() {
            return Ok(Self(text));
        }
        let given = text.chars().take(64).collect();
        Err(NameError {
            what: "label name",
            given,
            rule: "1 to 128 bytes without = , and control characters",
        })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reads the section if it is there and on.
pub(crate) fn read(section: &Section<'_>) -> Option<SshConfig> {
    let labels = section.labels("labels");
    let commands = read_commands(section, &labels);
    let port_forwarding = section.flag("port_forwarding");
    let ssh_file_copy = section.flag("ssh_file_copy");
    let forward_agent = section.flag("forward_agent");
    Some(SshConfig {
        labels,
        commands: commands?,
        port_forwarding: port_forwarding?,
        ssh_file_copy: ssh_file_copy?,
        forward_agent: forward_agent?,
    })
}

fn read_commands(section: &Section<'_>, labels: &Labels) -> Option<Vec<CommandLabel>> {
    let items = section.sections("commands");
    if items.len().saturating_add(labels.iter().count()) > LABELS_MAX {
        section.refuse("commands", "too many labels", format!("at most {LABELS_MAX} with those of labels"));
        return None;
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut commands = Vec::new();
    for item in &items {
        let command = read_command(item);
        if let Some(command) = &command {
            let name = command.name.as_str();
            if labels.get(name).is_some() {
                item.refuse("name", "a name that labels has as well", "each label once");
            }
            if let Some(line) = seen.insert(name.to_owned(), item.place().line) {
                item.refuse("name", format!("a name that line {line} has as well"), "each label once");
            }
        }
        commands.push(command);
    }
    commands.into_iter().collect()
}

fn read_command(item: &Section<'_>) -> Option<CommandLabel> {
    let name = item.require("name", item.name("name", LabelName::parse));
    let command = item.require("command", item.words("command"));
    let period = item.duration("period");
    Some(CommandLabel { name: name?, command: command?, period: period? })
}
