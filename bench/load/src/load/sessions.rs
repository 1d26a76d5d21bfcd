//! Many sessions of a client program whose remote command gives back each line: a line goes through each now and then.
//!
//! A line `mark` on standard input begins to count; the end of the input ends the sessions.

use crate::latency::Latencies;
use crate::options::SessionsOptions;
use crate::say;
use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt as _;
use serde_json::json;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use wayleave_runtime::{Shutdown, TaskGroup, random_u64};

/// Sessions begun at a time.
const BEGINNING_MAX: usize = 16;
/// How long a line, or the end of a session, may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Tally {
    latencies: Latencies,
    wrong: u64,
}

struct Session {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    sent: u64,
}

pub(crate) async fn run(options: SessionsOptions) -> Result<()> {
    let began = Instant::now();
    let beginning = futures::stream::iter(0..options.count).map(|_| Session::begin(&options.command));
    let sessions: Vec<Result<Session>> = beginning.buffer_unordered(BEGINNING_MAX).collect().await;
    let sessions = sessions.into_iter().collect::<Result<Vec<_>>>()?;
    say(&json!({ "done": sessions.len(), "seconds": began.elapsed().as_secs_f64() }))?;
    let (tasks, over) = (TaskGroup::new(), Shutdown::new());
    let tally = Arc::new(Mutex::new(Tally::default()));
    for session in sessions {
        let (tally, over) = (tally.clone(), over.clone());
        let interval = options.interval;
        tasks.spawn_many(async move { session.keep(interval, &tally, &over).await });
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.as_str() {
            "mark" => *lock(&tally) = Tally::default(),
            other => bail!("{other:?} is nothing to do"),
        }
    }
    let counted = Instant::now();
    over.request();
    tasks.drained(2 * PATIENCE).await;
    let tally = std::mem::take(&mut *lock(&tally));
    let mut report = tally.latencies.report(counted.elapsed());
    if let Some(report) = report.as_object_mut() {
        report.insert("wrong".into(), json!(tally.wrong));
    }
    say(&report)
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    async fn begin(command: &[String]) -> Result<Self> {
        let (program, arguments) = command.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.clone())?;
        let input = child.stdin.take().context("it was piped")?;
        let lines = BufReader::new(child.stdout.take().context("it was piped")?).lines();
        let mut session = Self { child, input, lines, sent: 0 };
        ensure!(session.echo().await?, "another line came back");
        Ok(session)
    }

    /// Sends a line of its own and waits for it; false when another came.
    async fn echo(&mut self) -> Result<bool> {
        self.sent += 1;
        let line = format!("line {} {:x}", self.sent, random_u64());
        self.input.write_all(format!("{line}\n").as_bytes()).await?;
        self.input.flush().await?;
        let came = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.context("no line came")??;
        Ok(came.context("the session ended")? == line)
    }

    async fn keep(mut self, interval: Duration, tally: &Mutex<Tally>, over: &Shutdown) {
        // They do not all speak at once.
        let first = interval.mul_f64(random_u64() as f64 / u64::MAX as f64);
        let mut wait = tokio::time::Instant::now() + first;
        while over.until(tokio::time::sleep_until(wait)).await.is_some() {
            wait += interval;
            let began = Instant::now();
            match self.echo().await {
                Ok(true) => lock(tally).latencies.add(began.elapsed()),
                Ok(false) => lock(tally).wrong += 1,
                Err(error) => return fail(tally, &error),
            }
        }
        if let Err(error) = self.end().await {
            fail(tally, &error);
        }
    }

    async fn end(mut self) -> Result<()> {
        drop(self.input);
        let rest = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.context("no end came")??;
        ensure!(rest.is_none(), "something came that was not sent: {rest:?}");
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.context("it does not end")??;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

fn fail(tally: &Mutex<Tally>, error: &anyhow::Error) {
    lock(tally).latencies.failed += 1;
    eprintln!("  a session was lost: {error:#}");
}
