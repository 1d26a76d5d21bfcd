//! The line that `ls -l` would print, which version 3 sends beside each name.

use crate::Attributes;

/// A moment as a clock on the server's wall shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// Year, for instance 2026.
    pub year: i64,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month.
    pub day: u8,
    /// Hour.
    pub hour: u8,
    /// Minute.
    pub minute: u8,
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

const FORMAT_BITS: u32 = 0o170_000;

/// One line: mode, links, user, group, size, time (with the hour while `is_recent`, else the year), name.
pub fn longname(
    name: &[u8],
    attributes: &Attributes,
    links: u64,
    names: (&str, &str),
    modified: LocalTime,
    is_recent: bool,
) -> Vec<u8> {
    let mode = mode_text(attributes.permissions.unwrap_or(0));
    let month = MONTHS.get(usize::from(modified.month).saturating_sub(1)).unwrap_or(&"???");
    let LocalTime { year, day, hour, minute, .. } = modified;
    let time = if is_recent {
        format!("{month} {day:>2} {hour:02}:{minute:02}")
    } else {
        format!("{month} {day:>2}  {year}")
    };
    let (user, group) = names;
    let size = attributes.size.unwrap_or(0);
    let mut line = format!("{mode} {links:>3} {user:<8} {group:<8} {size:>8} {time} ").into_bytes();
    line.extend_from_slice(name);
    line
}

fn mode_text(mode: u32) -> String {
    let kind = match mode & FORMAT_BITS {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        0o140_000 => 's',
        0o100_000 => '-',
        _ => '?',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_like_those_of_ls() {
        check(0o100_644, true, "-rw-r--r--   1 alice    staff        1234 Mar  7 09:05 file");
        check(0o040_755, false, "drwxr-xr-x   1 alice    staff        1234 Mar  7  2026 file");
        check(0o104_711, false, "-rws--x--x   1 alice    staff        1234 Mar  7  2026 file");
        check(0o041_776, false, "drwxrwxrwT   1 alice    staff        1234 Mar  7  2026 file");
    }

    fn check(permissions: u32, is_recent: bool, expected: &str) {
        let attributes =
            Attributes { size: Some(1234), permissions: Some(permissions), ..Attributes::default() };
        let modified = LocalTime { year: 2026, month: 3, day: 7, hour: 9, minute: 5 };
        let line = longname(b"file", &attributes, 1, ("alice", "staff"), modified, is_recent);
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }
}
