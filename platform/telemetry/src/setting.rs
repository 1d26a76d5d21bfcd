//! What can be set about logs, in the words of the `log` section of the configuration file.

use std::path::PathBuf;
use std::str::FromStr;

/// Where logs go, from which severity on, and in which form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogConfig {
    /// Where lines are written.
    pub output: LogOutput,
    /// The least severity that is written.
    pub severity: Severity,
    /// How a line looks.
    pub format: LogFormat,
}

impl LogConfig {
    /// For a program that a person runs: warnings on the error output, or everything that helps to find a
    /// fault with `--debug`.
    pub fn for_client(debug: bool) -> Self {
        Self {
            output: LogOutput::Stderr,
            severity: if debug { Severity::Debug } else { Severity::Warn },
            format: if debug { LogFormat::Text } else { LogFormat::Brief },
        }
    }
}

/// Where lines are written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LogOutput {
    /// The error output.
    #[default]
    Stderr,
    /// The standard output.
    Stdout,
    /// Appended to a file, which is created readable by owner and group.
    File(PathBuf),
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Severity {
    /// A person must act.
    Error,
    /// Unusual.
    Warn,
    /// State that an operator sees.
    #[default]
    Info,
    /// Decisions, names and addresses.
    Debug,
    /// Every packet.
    Trace,
}

impl Severity {
    pub(crate) fn directive(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Time, severity, spans, source and message.
    #[default]
    Text,
    /// One flat JSON object a line.
    Json,
    /// Severity, spans and message, for a person at a terminal.
    Brief,
}

/// A value that is not one of those a log setting takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no log {setting}: expected {expected}")]
pub struct ParseLogSettingError {
    /// `severity`, `format` or `output`.
    pub setting: &'static str,
    /// What was given, cut to 64 characters.
    pub given: String,
    /// What would be right.
    pub expected: &'static str,
}

fn unknown(setting: &'static str, given: &str, expected: &'static str) -> ParseLogSettingError {
    ParseLogSettingError { setting, given: given.chars().take(64).collect(), expected }
}

impl FromStr for Severity {
    type Err = ParseLogSettingError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.to_ascii_lowercase().as_str() {
            "error" | "err" => Ok(Self::Error),
            "warn" | "warning" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(unknown("severity", s, "ERROR, WARN, INFO, DEBUG or TRACE")),
        }
    }
}

impl FromStr for LogFormat {
    type Err = ParseLogSettingError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(unknown("format", s, "text or json")),
        }
    }
}

impl FromStr for LogOutput {
    type Err = ParseLogSettingError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "stderr" | "error" | "2" => Ok(Self::Stderr),
            "stdout" | "out" | "1" => Ok(Self::Stdout),
            "" | "syslog" => Err(unknown("output", s, "stderr, stdout or the path of a file")),
            path => Ok(Self::File(PathBuf::from(path))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_the_field_writes_them() {
        assert_eq!("WARNING".parse(), Ok(Severity::Warn));
        assert_eq!("err".parse(), Ok(Severity::Error));
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert_eq!("out".parse(), Ok(LogOutput::Stdout));
        assert_eq!("/var/log/w.log".parse(), Ok(LogOutput::File("/var/log/w.log".into())));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for error in [
            "loud".parse::<Severity>().unwrap_err(),
            "xml".parse::<LogFormat>().unwrap_err(),
            "syslog".parse::<LogOutput>().unwrap_err(),
        ] {
            assert!(error.to_string().contains("expected"), "{error}");
        }
    }

    #[test]
    fn a_client_is_quiet_until_asked() {
        assert_eq!(LogConfig::for_client(false).severity, Severity::Warn);
        assert_eq!(LogConfig::for_client(true).severity, Severity::Debug);
    }
}
