//! What was found, for people and for programs.

use serde::Serialize;

/// What was found so far.
#[derive(Default)]
pub(super) struct Report(Vec<Finding>);

#[derive(Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    /// It works, and may not be what was meant.
    Note,
    Problem,
}

impl Report {
    pub(super) fn good(&mut self, check: &'static str, found: &str) {
        self.add(check, Status::Ok, found, None);
    }

    pub(super) fn note(&mut self, check: &'static str, found: &str, mend: &str) {
        self.add(check, Status::Note, found, Some(mend));
    }

    pub(super) fn bad(&mut self, check: &'static str, found: &str, mend: &str) {
        self.add(check, Status::Problem, found, Some(mend));
    }

    fn add(&mut self, check: &'static str, status: Status, found: &str, mend: Option<&str>) {
        let mend = mend.map(str::to_owned);
        self.0.push(Finding { check, status, found: found.to_owned(), mend });
    }

    pub(super) fn problems(&self) -> usize {
        self.0.iter().filter(|finding| finding.status == Status::Problem).count()
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.0 {
            let word = match finding.status {
                Status::Ok => "ok",
                Status::Note => "note",
                Status::Problem => "PROBLEM",
            };
            text.push_str(&format!("  {word:<8} {}\n", finding.found));
            if let Some(mend) = &finding.mend {
                text.push_str(&format!("           {mend}\n"));
            }
        }
        text.push_str(&match self.problems() {
            0 => "nothing to mend\n".to_owned(),
            1 => "1 problem\n".to_owned(),
            count => format!("{count} problems\n"),
        });
        text
    }

    pub(super) fn json(&self) -> String {
        let json = serde_json::json!({"problems": self.problems(), "findings": self.0});
        format!("{json:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let mut report = Report::default();
        report.good("files", "16384 files may be open");
        report.bad("clock", "the clock is 90 s ahead", "set the clock");
        let text = "  ok       16384 files may be open\n  PROBLEM  the clock is 90 s ahead\n           \
                    set the clock\n1 problem\n";
        assert_eq!(report.text(), text);
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!((&json["problems"], &json["findings"][1]["check"]), (&1.into(), &"clock".into()));
        assert_eq!(json["findings"][1]["mend"], "set the clock");
    }
}
