//! How long after an agent has said who it is another proxy reaches it.
//!
//! One agent after the other connects to the home proxy; from the moment that its hello is sent it is dialled through the
//! other proxy until that works. Connections to that proxy are made before.

use crate::agents::{connect, greet};
use crate::authority::{Authority, agent_id, agent_name};
use crate::latency::Latencies;
use crate::options::ReachOptions;
use crate::visitor::dial;
use crate::{say, wait_end_of_input};
use anyhow::Result;
use rustls::ClientConfig;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wayleave_net::{BoxStream, connect_tls};
use wayleave_runtime::TaskGroup;
use wayleave_vocab::{HostPort, NodeName};

/// How long one agent is tried.
const PATIENCE: Duration = Duration::from_secs(30);
/// Dials for which connections are made ahead; later ones make their own.
const AHEAD: usize = 4;
/// Between a refusal and the next dial.
const PAUSE: Duration = Duration::from_millis(1);

pub(crate) async fn run(options: ReachOptions) -> Result<()> {
    let authority = Authority::read(&options.ca)?;
    let (tasks, user) = (TaskGroup::new(), authority.dial_tls()?);
    let (mut latencies, started) = (Latencies::default(), Instant::now());
    let mut held = Vec::new();
    for number in options.first..options.first + options.count {
        let (id, name) = (agent_id(number), agent_name(number)?);
        let mut entry = Entry { ingress: &options.ingress, tls: user.clone(), ahead: VecDeque::new() };
        entry.prepare().await?;
        let tls = authority.tunnel_tls(id)?;
        let (tunnel, _) = connect(&options.home, tls, options.target, &tasks, |_| {}, || {}).await?;
        let began = Instant::now();
        greet(&tunnel, id)?;
        match entry.reach(&name, began + PATIENCE).await {
            Ok(()) => latencies.add(began.elapsed()),
            Err(error) => {
                latencies.failed += 1;
                eprintln!("agent {number} is not reached: {error:#}");
            }
        }
        held.push(tunnel);
    }
    say(&latencies.report(started.elapsed()))?;
    wait_end_of_input().await
}

/// Connections to the proxy that is entered.
struct Entry<'a> {
    ingress: &'a HostPort,
    tls: Arc<ClientConfig>,
    ahead: VecDeque<BoxStream>,
}

impl Entry<'_> {
    async fn prepare(&mut self) -> Result<()> {
        while self.ahead.len() < AHEAD {
            let stream = self.connect().await?;
            self.ahead.push_back(stream);
        }
        Ok(())
    }

    async fn connect(&self) -> Result<BoxStream> {
        Ok(Box::new(connect_tls(self.ingress, self.tls.clone()).await?))
    }

    /// Fails with what was said last.
    async fn reach(&mut self, name: &NodeName, until: Instant) -> Result<()> {
        loop {
            let mut stream = match self.ahead.pop_front() {
                Some(stream) => stream,
                None => self.connect().await?,
            };
            match dial(&mut stream, name).await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}
