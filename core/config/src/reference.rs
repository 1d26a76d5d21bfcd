//! The reference page of all keys, written from the key table.

use crate::keys::{self, Class, Key, Kind, Passes};
use std::fmt::Write as _;

const INTRODUCTION: &str = "\
# Configuration reference

<!-- Generated from the key table of core/config. Do not edit. -->

One YAML file. Sections decide which services run: a section that is written runs, unless it says
`enabled: no`. Booleans are `yes`, `no`, `on`, `off`, `true`, `false`, `y` and `n` in any case.
Durations are `90s`, `30m`, `12h`, `7d` or `1h30m`. A key that stands nowhere on this page is an
error, and so is a key written twice; all mistakes of a file are reported at once with their places.
";

/// The page `docs/reference/config.md` as Markdown.
pub fn reference_markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    let mut elsewhere: Vec<&Key> = Vec::new();
    for top in keys::all().filter(|key| keys::parent(key.path).is_empty()) {
        match &top.class {
            Class::Supported { kind: Kind::Section, about, .. } => {
                let (here, not_here) = split(top.path);
                heading(&mut page, top.path, about);
                here.into_iter().for_each(|key| row(&mut page, key));
                elsewhere.extend(not_here);
            }
            Class::Supported { about, .. } => {
                heading(&mut page, top.path, about);
                row(&mut page, top);
            }
            Class::Elsewhere { .. } => elsewhere.push(top),
        }
    }
    page.push_str(
        "\n## Known elsewhere, not here\n\n\
         Keys that files of the field have. They pass without a value, or with what the second column \
         says: off is `no`, an empty list or map, or a map with `enabled: no`. Anything else is an error, \
         since a file that asks for something must not load without it.\n\n\
         | Key | Passes | Instead |\n|---|---|---|\n",
    );
    for key in elsewhere {
        if let Class::Elsewhere { passes, instead } = &key.class {
            write_line(&mut page, format_args!("| `{}` | {} | {instead} |", key.path, passing(passes)));
        }
    }
    page
}

/// The rows below a section: those read, without the sections that only hold keys not here, and those not here.
fn split(section: &str) -> (Vec<&'static Key>, Vec<&'static Key>) {
    let is_below = |key: &&Key| key.path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
    keys::all().filter(is_below).partition(|key| matches!(key.class, Class::Supported { .. }))
}

fn heading(page: &mut String, path: &str, about: &str) {
    write_line(page, format_args!("\n## {path}\n\n{about}\n"));
    page.push_str("| Key | Value | Default | Meaning |\n|---|---|---|---|\n");
}

fn row(page: &mut String, key: &Key) {
    let Class::Supported { kind, default, about } = &key.class else { return };
    let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
    write_line(page, format_args!("| `{}` | {} | {default} | {about} |", key.path, kind.expected()));
}

fn passing(passes: &Passes) -> String {
    match passes {
        Passes::Disabled => "off".to_owned(),
        Passes::OneOf(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" "),
    }
}

fn write_line(page: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(page, "{line}").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_key_once() {
        let page = reference_markdown();
        for key in keys::all() {
            let cell = format!("| `{}` |", key.path);
            let heading = format!("\n## {}\n", key.path);
            let count = page.matches(&cell).count() + page.matches(&heading).count();
            let is_scalar_section = key.path == "version";
            assert_eq!(count, 1 + usize::from(is_scalar_section), "{}", key.path);
        }
    }

    #[test]
    fn every_table_row_has_its_cells() {
        for line in reference_markdown().lines().filter(|line| line.starts_with('|')) {
            let bars = line.matches('|').count();
            assert!(bars == 4 || bars == 5, "{line}");
        }
    }
}
