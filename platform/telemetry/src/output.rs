//! Where lines go. Writing never fails for the caller: a line that cannot be written is counted.

use crate::InitError;
use crate::setting::LogOutput;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Debug)]
enum Target {
    Stderr,
    Stdout,
    File(File),
}

/// An open output.
#[derive(Debug)]
pub(crate) struct Output {
    target: Target,
    lines_lost: AtomicU64,
}

impl Output {
    pub(crate) fn open(output: &LogOutput) -> Result<Self, InitError> {
        let target = match output {
            LogOutput::Stderr => Target::Stderr,
            LogOutput::Stdout => Target::Stdout,
            LogOutput::File(path) => Target::File(
                append_to(path).map_err(|source| InitError::Open { path: path.clone(), source })?,
            ),
        };
        Ok(Self { target, lines_lost: AtomicU64::new(0) })
    }

    pub(crate) fn lines_lost(&self) -> u64 {
        self.lines_lost.load(Ordering::Relaxed)
    }

    pub(crate) fn flush(&self) {
        // Nobody is left to be told: the process ends.
        let _ = match &self.target {
            Target::Stderr => io::stderr().flush(),
            Target::Stdout => io::stdout().flush(),
            Target::File(file) => file.sync_data(),
        };
    }

    fn write_line(&self, line: &[u8]) {
        let written = match &self.target {
            Target::Stderr => io::stderr().lock().write_all(line),
            Target::Stdout => io::stdout().lock().write_all(line),
            Target::File(file) => (&*file).write_all(line),
        };
        if written.is_err() {
            self.lines_lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
    options.open(path)
}

/// One line on its way; the formatter hands over whole lines.
pub(crate) struct LineWriter(Arc<Output>);

impl Write for LineWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the formatting layer asks for a writer.
pub(crate) struct LineWriters(pub(crate) Arc<Output>);

impl<'a> MakeWriter<'a> for LineWriters {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_loses_lines_and_nothing_else() {
        let output = Output::open(&LogOutput::File("/dev/full".into())).unwrap();
        let writers = LineWriters(Arc::new(output));
        assert_eq!(writers.make_writer().write(b"x\n").unwrap(), 2);
        assert_eq!(writers.0.lines_lost(), 1);
        writers.0.flush();
    }

    #[test]
    fn a_file_is_appended_to() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        for line in ["one\n", "two\n"] {
            let output = Output::open(&LogOutput::File(path.clone())).unwrap();
            output.write_line(line.as_bytes());
            output.flush();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
