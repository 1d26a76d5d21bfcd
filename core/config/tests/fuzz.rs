//! Files of any content are answered, never with a panic, and what is accepted is stable.

use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_oneof, proptest};
use wayleave_config::{CaPin, Config, StaticToken};

const FIELD_FILE: &str = include_str!("data/field.yaml");

/// Pieces that files are made of.
const PIECES: &[&str] = &[
    "wayleave",
    "teleport",
    "auth_service",
    "proxy_service",
    "ssh_service",
    "enabled",
    "tokens",
    "labels",
    "commands",
    "https_keypairs",
    "proxy_protocol_from",
    "ca_pin",
    "tunnel_strategy",
    "listen_addr",
    "public_addr",
    "version",
    ": ",
    ":",
    "\n",
    "\n  ",
    "\n    ",
    "\n- ",
    "  - ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ",",
    ", ",
    "&a ",
    "*a",
    "&b ",
    "*b",
    "!!str ",
    "!x ",
    "? ",
    "| \n",
    ">-\n",
    "'",
    "\"",
    "#",
    " #",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "<<",
    "\t",
    "~",
    "null",
    "yes",
    "no",
    "0",
    "5m",
    "99999999999999999999",
    "0.0.0.0:3080",
    "[::]:1",
    "::",
    "10.0.0.0/8",
    "/path",
    "é",
    "\u{feff}",
    "\0",
    "\r\n",
    "\\",
    "sha256:",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn f_arbitrary_text_never_panics(text in any::<String>()) {
        answer(&text);
    }

    #[test]
    fn f_arbitrary_pieces_never_panic(text in pieces()) {
        answer(&text);
    }

    #[test]
    fn f_a_damaged_file_never_panics(cut in 0..FIELD_FILE.len(), len in 0..40_usize, insert in pieces()) {
        let mut text = FIELD_FILE.to_owned();
        let end = (cut + len).min(text.len());
        if text.is_char_boundary(cut) && text.is_char_boundary(end) {
            text.replace_range(cut..end, &insert);
        }
        answer(&text);
    }

    #[test]
    fn f_any_value_at_any_key_never_panics(line in 0..110_usize, value in pieces()) {
        let text: String = FIELD_FILE
            .lines()
            .enumerate()
            .map(|(n, text)| match text.split_once(':') {
                Some((key, _)) if n == line => format!("{key}: {value}\n"),
                _ => format!("{text}\n"),
            })
            .collect();
        answer(&text);
    }

    #[test]
    fn f_arbitrary_pins_and_tokens_never_panic(text in any::<String>(), piece in pieces()) {
        for text in [text.clone(), format!("sha256:{text}"), format!("node:{text}"), piece] {
            let _pin = text.parse::<CaPin>();
            let _token = StaticToken::parse(&text);
        }
    }
}

fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![9 => prop::sample::select(PIECES).prop_map(str::to_owned), 1 => any::<String>()];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn answer(text: &str) {
    match Config::parse(text, "w.yaml") {
        Ok(config) => assert!(config.auth.is_some() || config.proxy.is_some() || config.ssh.is_some()),
        Err(errors) => {
            assert!(!errors.errors.is_empty());
            for error in &errors.errors {
                assert!(error.line >= 1 && error.column >= 1 && !error.expected.is_empty(), "{error:?}");
                assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
            }
        }
    }
}
