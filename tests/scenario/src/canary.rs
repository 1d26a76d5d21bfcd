//! Secrets that may stand in no output.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::sync::Mutex;

const RANDOM_BYTES: usize = 12;

static NOTED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A new secret that will be searched for in everything that is written.
pub fn canary(kind: &str) -> String {
    let secret = format!("canary-{kind}-{}", random_hex::<RANDOM_BYTES>());
    note_canary(&secret);
    secret
}

/// Searches from now on for a secret that somebody else made: an invitation, a seed of one-time codes.
pub fn note_canary(secret: &str) {
    NOTED.lock().unwrap().push(secret.to_owned());
    if let Some(file) = std::env::var_os("WAYLEAVE_CANARY_FILE") {
        let mut file = OpenOptions::new().append(true).create(true).open(file).unwrap();
        file.write_all(format!("{secret}\n").as_bytes()).unwrap();
    }
}

/// Whether any canary of this test program stands in the bytes; tells which without repeating it whole.
pub fn is_canary_in(bytes: &[u8]) -> Option<String> {
    let noted = NOTED.lock().unwrap();
    let found =
        noted.iter().find(|canary| bytes.windows(canary.len()).any(|part| part == canary.as_bytes()))?;
    Some(format!("{}…", found.chars().take(10).collect::<String>()))
}

/// `N` random bytes in hexadecimal digits.
pub(crate) fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
