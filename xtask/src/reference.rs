//! Documents under `docs/reference` that are written from the types, never by hand.

use crate::process::root;
use anyhow::{Context, Result};

struct Document {
    path: &'static str,
    render: fn() -> String,
}

const DOCUMENTS: [Document; 1] =
    [Document { path: "docs/reference/config.md", render: wayleave_config::reference_markdown }];

/// Writes the documents, or with `only_check` says which differ from what would be written; true when none do.
pub(crate) fn run(only_check: bool) -> Result<bool> {
    let mut current = true;
    for Document { path, render } in &DOCUMENTS {
        let file = root().join(path);
        let wanted = render();
        if std::fs::read_to_string(&file).is_ok_and(|present| present == wanted) {
            continue;
        }
        if only_check {
            println!("{path} is out of date: run `cargo xtask docs`");
            current = false;
        } else {
            if let Some(directory) = file.parent() {
                std::fs::create_dir_all(directory).with_context(|| format!("cannot create {directory:?}"))?;
            }
            std::fs::write(&file, wanted).with_context(|| format!("cannot write {path}"))?;
            println!("wrote {path}");
        }
    }
    Ok(current)
}
