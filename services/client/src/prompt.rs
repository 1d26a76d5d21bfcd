//! Questions to the person at the terminal, and secrets from standard input.

use crate::failure::{Exit, Failure};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use wayleave_vocab::Secret;

/// Longest line taken, in bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// Where a password comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PasswordSource {
    /// The terminal, unseen.
    Terminal,
    /// The first line of standard input.
    StandardInput,
}

impl PasswordSource {
    /// From the flag `--password-stdin`.
    pub(crate) fn from_flag(is_stdin: bool) -> Self {
        if is_stdin { Self::StandardInput } else { Self::Terminal }
    }

    /// Asks once.
    pub(crate) fn password(self, prompt: &str) -> Result<Secret, Failure> {
        match self {
            Self::Terminal => {
                rpassword::prompt_password(prompt).map(Secret::new).map_err(|e| no_terminal(&e))
            }
            Self::StandardInput => first_line(io::stdin().lock()),
        }
    }

    /// Asks twice, for a new password. Standard input is asked once: there is no typing error to guard against.
    pub(crate) fn new_password(self) -> Result<Secret, Failure> {
        let first = self.password("New password: ")?;
        if self == Self::Terminal {
            let again = self.password("The same again: ")?;
            if again.expose_secret() != first.expose_secret() {
                return Err(Failure::failed("the two passwords differ")
                    .hint("nothing was changed: repeat the command"));
            }
        }
        Ok(first)
    }
}

/// Asks for a line that may be seen; empty when there is nobody to ask.
pub(crate) fn line(prompt: &str) -> Result<String, Failure> {
    let Some((reader, mut writer)) = terminal() else { return Ok(String::new()) };
    let ask = || {
        writer.write_all(prompt.as_bytes())?;
        writer.flush()?;
        let mut line = String::new();
        BufReader::new(reader).take(LINE_BYTES_MAX).read_line(&mut line)?;
        Ok::<_, io::Error>(line.trim().to_owned())
    };
    ask().map_err(Failure::doing("cannot ask on the terminal"))
}

/// The terminal to read from and to write to, also when standard input is a pipe.
fn terminal() -> Option<(Box<dyn Read>, Box<dyn Write>)> {
    if cfg!(unix)
        && let Ok(tty) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty")
        && let Ok(again) = tty.try_clone()
    {
        return Some((Box::new(tty), Box::new(again)));
    }
    (io::stdin().is_terminal() && io::stderr().is_terminal())
        .then(|| (Box::new(io::stdin()) as Box<dyn Read>, Box::new(io::stderr()) as Box<dyn Write>))
}

fn first_line(input: impl BufRead) -> Result<Secret, Failure> {
    let mut line = String::new();
    input
        .take(LINE_BYTES_MAX)
        .read_line(&mut line)
        .map_err(Failure::doing("cannot read the password from standard input"))?;
    let password = line.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(Failure::usage("standard input holds no password").hint("give it as the first line"));
    }
    Ok(Secret::new(password.to_owned()))
}

fn no_terminal(error: &io::Error) -> Failure {
    Failure::new(Exit::Usage, format!("cannot ask for the password: {error}"))
        .hint("without a terminal, give it on standard input with --password-stdin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_the_first_line_of_standard_input() {
        let read = |text: &str| first_line(text.as_bytes()).map(|s| s.expose_secret().to_owned());
        assert_eq!(read(" a b \r\nmore\n"), Ok(" a b ".to_owned()));
        assert_eq!(read("x"), Ok("x".to_owned()));
        assert!(read("\n").is_err());
        assert!(read("").is_err());
    }
}
