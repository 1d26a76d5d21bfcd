//! One event, one line: control characters that arrived in a value are written as escapes.

use std::fmt;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use wayleave_vocab::is_hostile;

/// Wraps a format so that nobody whose name is logged can forge a line or drive a terminal.
pub(crate) struct OneLine<F>(pub(crate) F);

impl<S, N, F> FormatEvent<S, N> for OneLine<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        for character in line.trim_end_matches('\n').chars() {
            match character {
                '\n' => writer.write_str("\\n")?,
                '\r' => writer.write_str("\\r")?,
                // Of four digits, as JSON wants it.
                hostile if is_hostile(hostile) => write!(writer, "\\u{:04x}", u32::from(hostile))?,
                harmless => writer.write_char(harmless)?,
            }
        }
        writer.write_char('\n')
    }
}
