//! Which commands are file copies, for `ssh_file_copy`.
//!
//! This keeps the usual tools from copying: scp's own protocol, rsync, and SFTP servers run as a command.
//! It cannot keep a user with a shell from it (`cat file`, `base64 file`): whoever must not read a file must
//! not have the rights to.

/// Whether a command line runs the far end of a file copy.
pub(crate) fn copies_files(command: &str) -> bool {
    // A shell runs it, so there may be several commands, and words before the one that matters.
    let separators = |c: char| matches!(c, ';' | '&' | '|' | '\n' | '(' | ')' | '{' | '}' | '`');
    command.split(separators).any(copies_files_alone)
}

fn copies_files_alone(command: &str) -> bool {
    let words: Vec<&str> = command.split_whitespace().map(unquoted).collect();
    words.iter().enumerate().any(|(index, word)| {
        let arguments = words.get(index + 1..).unwrap_or_default();
        match program(word) {
            "scp" => arguments.iter().any(|argument| is_scp_server_flag(argument)),
            "rsync" => arguments.contains(&"--server"),
            "sftp-server" | "internal-sftp" => true,
            _ => false,
        }
    })
}

/// `-t` (to here) or `-f` (from here), alone or among other letters.
fn is_scp_server_flag(argument: &str) -> bool {
    argument
        .strip_prefix('-')
        .is_some_and(|letters| !letters.starts_with('-') && letters.contains(['t', 'f']))
}

fn program(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

fn unquoted(word: &str) -> &str {
    word.trim_matches(|c| matches!(c, '"' | '\'' | '\\' | '$'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_far_ends_of_copying_tools_are_found() {
        for command in [
            "scp -t /tmp",
            "scp -v -r -p -f -- /etc",
            "/usr/bin/scp -qt .",
            "exec scp -t x",
            "env A=1 'scp' -f y",
            "cd /tmp; scp -t x",
            "rsync --server -vlogDtprze.iLsfxCIvu . /tmp",
            "/usr/lib/openssh/sftp-server",
            "true && \"/usr/lib/openssh/sftp-server\" -e",
        ] {
            check(command, true);
        }
    }

    #[test]
    fn other_commands_are_left_alone() {
        for command in ["ls", "scp a b:c", "echo scp", "rsync a b", "tar cf - .", "grep -f x y", "man scp"] {
            check(command, false);
        }
    }

    fn check(command: &str, expected: bool) {
        assert_eq!(copies_files(command), expected, "{command}");
    }
}
