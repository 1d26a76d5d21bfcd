//! Text that somebody else wrote, made fit for terminals and logs.

use std::fmt::Write as _;

/// Control characters, line separators, and the marks that turn the direction of text around: what drives a
/// terminal, forges a line or shows other text than there is.
pub fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

/// The text with each hostile character other than a line end or tab written as `\u` and four digits, which JSON
/// reads as the same character.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => shown.push(character),
            hostile if is_hostile(hostile) => {
                // A string takes everything.
                let _taken = write!(shown, "\\u{:04x}", u32::from(hostile));
            }
            harmless => shown.push(harmless),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m_what_drives_a_terminal_is_written_out() {
        let check = |text: &str, expected: &str| assert_eq!(printable(text), expected);
        check("a\tline\nand ⟵ ünïcode", "a\tline\nand ⟵ ünïcode");
        check("\u{1b}[2J\u{7}\r", "\\u001b[2J\\u0007\\u000d");
        check("\u{9b}2J\u{7f}", "\\u009b2J\\u007f");
        check("evil\u{202e}txt.exe", "evil\\u202etxt.exe");
        check("\u{0}", "\\u0000");
    }
}
