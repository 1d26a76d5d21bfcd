//! Traces: `tracing_service:`.

use crate::section::Section;

/// Where traces go, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracingConfig {
    /// The collector: a URL of `http` or `https`.
    pub exporter_url: String,
    /// How many of a million connections are traced.
    pub sampling_rate_per_million: u32,
}

pub(crate) fn read(section: &Section<'_>) -> Option<TracingConfig> {
    let exporter_url = section.require("exporter_url", section.url("exporter_url"));
    let sampling_rate = section.count("sampling_rate_per_million");
    Some(TracingConfig {
        exporter_url: exporter_url?,
        // The table bounds it.
        sampling_rate_per_million: u32::try_from(sampling_rate?).ok()?,
    })
}
