//! Writes YAML that every reader reads alike: block style, and quotes around whatever might not be a plain word.

use serde_json::Value;

/// One document, beginning with `kind:` and ending with a newline.
pub(crate) fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) => {
            // The order of a map from serde_json is that of the alphabet; people expect this one.
            for key in ["kind", "version", "metadata", "spec", "status"] {
                if let Some(value) = map.get(key) {
                    entry(&mut out, key, value, 0);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {}
    }
    out
}

fn entry(out: &mut String, key: &str, value: &Value, indent: usize) {
    pad(out, indent);
    out.push_str(&scalar(key));
    out.push(':');
    below(out, value, indent);
}

fn below(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if map.is_empty() => out.push_str(" {}\n"),
        Value::Array(items) if items.is_empty() => out.push_str(" []\n"),
        Value::Object(map) => {
            out.push('\n');
            for (key, value) in named_first(map) {
                entry(out, key, value, indent + 2);
            }
        }
        Value::Array(items) => {
            out.push('\n');
            for item in items {
                list_item(out, item, indent);
            }
        }
        Value::String(text) => {
            out.push(' ');
            out.push_str(&scalar(text));
            out.push('\n');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            out.push(' ');
            out.push_str(&value.to_string());
            out.push('\n');
        }
    }
}

fn list_item(out: &mut String, item: &Value, indent: usize) {
    pad(out, indent);
    out.push('-');
    match item {
        Value::Object(map) if !map.is_empty() => {
            for (index, (key, value)) in named_first(map).enumerate() {
                if index == 0 {
                    out.push(' ');
                    out.push_str(&scalar(key));
                    out.push(':');
                    below(out, value, indent + 2);
                } else {
                    entry(out, key, value, indent + 2);
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            // A list in a list is rare: JSON is YAML.
            out.push(' ');
            out.push_str(&item.to_string());
            out.push('\n');
        }
        Value::Object(_)
        | Value::Array(_)
        | Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_) => {
            below(out, item, indent);
        }
    }
}

fn named_first(map: &serde_json::Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    map.iter().filter(|(key, _)| *key == "name").chain(map.iter().filter(|(key, _)| *key != "name"))
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// A plain word if it can be nothing else, otherwise JSON's quotes, which YAML reads alike.
fn scalar(text: &str) -> String {
    const NOT_WORDS: &[&str] =
        &["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "infinity"];
    let first = text.as_bytes().first().copied().unwrap_or(b' ');
    let plain = (first.is_ascii_alphabetic() || first == b'/')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/' | b'@' | b'+'))
        && !NOT_WORDS.contains(&text.to_ascii_lowercase().as_str());
    if plain {
        return text.to_owned();
    }
    let quoted = Value::String(text.to_owned()).to_string();
    if !quoted.chars().any(is_unprintable) {
        return quoted;
    }
    // JSON leaves these as they are; YAML wants them escaped.
    quoted
        .chars()
        .map(|c| if is_unprintable(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() })
        .collect()
}

fn is_unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}
