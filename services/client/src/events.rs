//! `way events`: what happened in the cluster, from the audit log.

use crate::access::{Access, call};
use crate::cli::GlobalArgs;
use crate::failure::{Exit, Failure};
use crate::moment;
use crate::output::{Format, note, print, show, table};
use serde_json::{Map, Value};
use wayleave_api::auth::SearchEventsRequest;
use wayleave_vocab::Wall;

/// Events that are shown when nobody says how many.
const LIMIT_DEFAULT: u32 = 100;
/// Most events that are shown at once.
const LIMIT_MAX: u32 = 10_000;
/// Most questions for one list: so many pages without what is searched for are enough.
const PAGES_MAX: usize = 1_000;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum EventsCommand {
    Ls(LsArgs),
}

/// List events of the audit log, newest first
///
/// way events ls                                     the last 100
/// way events ls --from 2h --code T2000I,T2004I      sessions that began or ended in the last two hours
/// way events ls --from 2026-11-01 --to 2026-11-02   one day, in local time
/// way events ls --search alice,web-1 --limit 1000   events in which both words occur
/// way events ls --format json | jq '.[].code'       whole events, for programs
///
/// It needs a role that allows to list events, such as auditor.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, visible_alias = "search")]
pub(crate) struct LsArgs {
    /// From when on: a time (2026-11-27T15:00:00Z), a day (2026-11-27), or how long ago (2h, 7d).
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    from: Option<Wall>,
    /// Before when, in the same forms.
    #[arg(long, value_name = "TIME", value_parser = moment::parse)]
    to: Option<Wall>,
    /// Only events with one of these codes, such as T2000I.
    #[arg(long, visible_alias = "codes", value_name = "CODE,…", value_delimiter = ',')]
    code: Vec<String>,
    /// Only events in whose fields all these words occur.
    #[arg(long, value_name = "WORD,…", value_delimiter = ',')]
    search: Vec<String>,
    /// How many at most.
    #[arg(long, value_name = "NUMBER", default_value_t = LIMIT_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(LIMIT_MAX)))]
    limit: u32,
}

/// An event as Auth sent it.
type Event = Map<String, Value>;

pub(crate) async fn events(command: EventsCommand, global: &GlobalArgs) -> Result<Exit, Failure> {
    let EventsCommand::Ls(args) = command;
    if args.from.zip(args.to).is_some_and(|(from, to)| from >= to) {
        return Err(Failure::usage("--from is not before --to"));
    }
    let events = find(&Access::find(global)?, &args).await?;
    if global.format() == Format::Names {
        print(&events.iter().map(|event| text_of(event, "event") + "\n").collect::<String>())?;
    } else {
        show(global.format(), &events, || text(&events))?;
    }
    Ok(Exit::Done)
}

async fn find(access: &Access, args: &LsArgs) -> Result<Vec<Event>, Failure> {
    let mut admin = access.admin()?;
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let words: Vec<String> = args.search.iter().map(|word| word.trim().to_lowercase()).collect();
    let mut found: Vec<Event> = Vec::new();
    let mut before = 0;
    for _ in 0..PAGES_MAX {
        let request = SearchEventsRequest {
            from_ms: args.from.map_or(0, Wall::as_ms),
            to_ms: args.to.map_or(0, Wall::as_ms),
            // With words, most of a page may be left out here.
            limit: if words.is_empty() { args.limit } else { 0 },
            codes: args.code.iter().map(|code| code.trim().to_uppercase()).collect(),
            before,
        };
        let page = call(admin.search_events(request)).await?;
        let fresh = page.json.iter().filter(|json| matches(json, &words)).filter_map(|json| read(json));
        found.extend(fresh.take(wanted.saturating_sub(found.len())));
        // What does not go back would be asked for for ever.
        if found.len() >= wanted || page.next == 0 || (before != 0 && page.next >= before) {
            return Ok(found);
        }
        before = page.next;
    }
    note("note: the search was ended before the log's beginning; give --to or --code to search further back");
    Ok(found)
}

fn matches(json: &str, words: &[String]) -> bool {
    let haystack = json.to_lowercase();
    words.iter().all(|word| haystack.contains(word))
}

fn read(json: &str) -> Option<Event> {
    serde_json::from_str(json).inspect_err(|error| tracing::debug!(%error, "an event cannot be read")).ok()
}

fn text(events: &[Event]) -> String {
    if events.is_empty() {
        return "No events.\n".to_owned();
    }
    let rows: Vec<_> = events
        .iter()
        .map(|event| {
            vec![
                text_of(event, "time"),
                text_of(event, "code"),
                text_of(event, "event"),
                text_of(event, "user"),
                details(event),
            ]
        })
        .collect();
    table(&["Time", "Code", "Event", "User", "Details"], &rows)
}

fn text_of(event: &Event, field: &str) -> String {
    event.get(field).map(shown).unwrap_or_default()
}

/// Everything that has no column of its own and is not about the log itself.
fn details(event: &Event) -> String {
    const ELSEWHERE: [&str; 9] =
        ["v", "uid", "code", "time", "cluster_name", "host_id", "sequence", "event", "user"];
    let details = event.iter().filter(|(key, _)| !ELSEWHERE.contains(&key.as_str()));
    details.map(|(key, value)| format!("{key}={}", shown(value))).collect::<Vec<_>>().join(" ")
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = r#"{"v":1,"uid":"u","code":"T2000I","time":"2027-01-15T08:00:00.123Z","cluster_name":"demo",
        "host_id":"h","sequence":7,"event":"session.start","user":"alice","login":"root","interactive":true}"#;

    #[test]
    fn an_event_is_a_line() {
        assert_eq!(
            text(&[read(START).unwrap()]),
            "Time                     Code   Event         User  Details\n\
             ------------------------ ------ ------------- ----- ---------------------------\n\
             2027-01-15T08:00:00.123Z T2000I session.start alice interactive=true login=root\n"
        );
        assert_eq!(text(&[]), "No events.\n");
        assert_eq!(read("no event"), None);
    }

    #[test]
    fn all_words_must_occur() {
        let check = |words: &[&str], expected: bool| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(matches(START, &words), expected, "{words:?}");
        };
        check(&[], true);
        check(&["alice", "session.start"], true);
        check(&["alice", "bob"], false);
    }

    #[test]
    fn m_an_event_cannot_move_the_cursor() {
        let hostile = START.replace("alice", "\\u001b[2Jeve\\nforged");
        let shown = text(&[read(&hostile).unwrap()]);
        assert_eq!(shown.lines().count(), 3, "{shown}");
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
    }
}
