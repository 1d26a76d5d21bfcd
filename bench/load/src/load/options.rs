//! The command line.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;
use wayleave_vocab::HostPort;

pub(crate) const USAGE: &str = "\
Usage: wayleave-load COMMAND [OPTION]…

  target   --listen ADDR                                    echo, source and sink
  agents   --ca FILE --proxy ADDR --first N --count N --target ADDR
  pooled   --ca FILE --proxies ADDR,… --first N --count N --target ADDR --connections N
                                                            agents that come back; `watch` on standard input
  probe    --ca FILE --proxies ADDR,… --first N --count N --rate N
                                                            dials a second; `mark` on standard input
  sessions --command WORDS --count N --interval-ms N        sessions of a program that gives back each line
  visitor  --ca FILE --proxy ADDR --node NAME --listen ADDR a local port that leads to the node
  dials    --connect ADDR --concurrency N --count N         connections of one byte
  stream   --connect ADDR --mib N --direction down|up       one connection of many bytes
  sweep    --ca FILE --proxy ADDR --first N --count N --concurrency N
                                                            one dial to each agent by the proxy's TLS port
  reach    --ca FILE --home ADDR --ingress ADDR --first N --count N --target ADDR
                                                            agents that connect, and when another proxy reaches them
";

pub(crate) enum Command {
    Target(TargetOptions),
    Agents(AgentsOptions),
    Pooled(PooledOptions),
    Probe(ProbeOptions),
    Sessions(SessionsOptions),
    Visitor(VisitorOptions),
    Dials(DialsOptions),
    Stream(StreamOptions),
    Sweep(SweepOptions),
    Reach(ReachOptions),
}

pub(crate) struct TargetOptions {
    pub(crate) listen: SocketAddr,
}

pub(crate) struct AgentsOptions {
    pub(crate) ca: PathBuf,
    pub(crate) proxy: HostPort,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) target: SocketAddr,
}

pub(crate) struct PooledOptions {
    pub(crate) ca: PathBuf,
    pub(crate) proxies: Vec<HostPort>,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) target: SocketAddr,
    pub(crate) connections: NonZeroU16,
}

pub(crate) struct ProbeOptions {
    pub(crate) ca: PathBuf,
    pub(crate) proxies: Vec<HostPort>,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) rate: NonZeroU32,
}

pub(crate) struct SessionsOptions {
    pub(crate) command: Vec<String>,
    pub(crate) count: usize,
    pub(crate) interval: Duration,
}

pub(crate) struct VisitorOptions {
    pub(crate) ca: PathBuf,
    pub(crate) proxy: HostPort,
    pub(crate) node: String,
    pub(crate) listen: SocketAddr,
}

pub(crate) struct DialsOptions {
    pub(crate) connect: SocketAddr,
    pub(crate) concurrency: usize,
    pub(crate) count: u64,
}

pub(crate) struct StreamOptions {
    pub(crate) connect: SocketAddr,
    pub(crate) mib: u64,
    pub(crate) is_download: bool,
}

pub(crate) struct SweepOptions {
    pub(crate) ca: PathBuf,
    pub(crate) proxy: HostPort,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) concurrency: usize,
}

pub(crate) struct ReachOptions {
    pub(crate) ca: PathBuf,
    pub(crate) home: HostPort,
    pub(crate) ingress: HostPort,
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) target: SocketAddr,
}

struct Words(BTreeMap<String, String>);

impl Words {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut words = BTreeMap::new();
        let mut arguments = arguments;
        while let Some(name) = arguments.next() {
            ensure!(name.starts_with("--"), "{name:?} is no option");
            let value = arguments.next().with_context(|| format!("{name} wants a value"))?;
            words.insert(name, value);
        }
        Ok(Self(words))
    }

    fn take<T: std::str::FromStr>(&mut self, name: &str) -> Result<T> {
        let text = self.0.remove(name).with_context(|| format!("{name} is missing"))?;
        text.parse().ok().with_context(|| format!("{name} does not take {text:?}"))
    }

    fn take_list<T: std::str::FromStr>(&mut self, name: &str) -> Result<Vec<T>> {
        let text: String = self.take(name)?;
        let words = text.split(',').map(|word| word.parse().ok());
        words.collect::<Option<_>>().with_context(|| format!("{name} does not take {text:?}"))
    }

    /// Whether it is down.
    fn take_direction(&mut self) -> Result<bool> {
        match self.take::<String>("--direction")?.as_str() {
            "down" => Ok(true),
            "up" => Ok(false),
            other => bail!("--direction does not take {other:?}"),
        }
    }
}

impl Command {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let name = arguments.next().context("no command")?;
        let mut words = Words::parse(arguments)?;
        let command = match name.as_str() {
            "target" => Self::Target(TargetOptions { listen: words.take("--listen")? }),
            "agents" => Self::Agents(AgentsOptions {
                ca: words.take("--ca")?,
                proxy: words.take("--proxy")?,
                first: words.take("--first")?,
                count: words.take("--count")?,
                target: words.take("--target")?,
            }),
            "pooled" => Self::Pooled(PooledOptions {
                ca: words.take("--ca")?,
                proxies: words.take_list("--proxies")?,
                first: words.take("--first")?,
                count: words.take("--count")?,
                target: words.take("--target")?,
                connections: words.take("--connections")?,
            }),
            "probe" => Self::Probe(ProbeOptions {
                ca: words.take("--ca")?,
                proxies: words.take_list("--proxies")?,
                first: words.take("--first")?,
                count: words.take("--count")?,
                rate: words.take("--rate")?,
            }),
            "sessions" => Self::Sessions(SessionsOptions {
                command: words.take::<String>("--command")?.split_whitespace().map(str::to_owned).collect(),
                count: words.take("--count")?,
                interval: Duration::from_millis(words.take("--interval-ms")?),
            }),
            "visitor" => Self::Visitor(VisitorOptions {
                ca: words.take("--ca")?,
                proxy: words.take("--proxy")?,
                node: words.take("--node")?,
                listen: words.take("--listen")?,
            }),
            "dials" => Self::Dials(DialsOptions {
                connect: words.take("--connect")?,
                concurrency: words.take("--concurrency")?,
                count: words.take("--count")?,
            }),
            "stream" => Self::Stream(StreamOptions {
                connect: words.take("--connect")?,
                mib: words.take("--mib")?,
                is_download: words.take_direction()?,
            }),
            "sweep" => Self::Sweep(SweepOptions {
                ca: words.take("--ca")?,
                proxy: words.take("--proxy")?,
                first: words.take("--first")?,
                count: words.take("--count")?,
                concurrency: words.take("--concurrency")?,
            }),
            "reach" => Self::Reach(ReachOptions {
                ca: words.take("--ca")?,
                home: words.take("--home")?,
                ingress: words.take("--ingress")?,
                first: words.take("--first")?,
                count: words.take("--count")?,
                target: words.take("--target")?,
            }),
            other => bail!("{other:?} is no command"),
        };
        ensure!(words.0.is_empty(), "{name} does not take {:?}", words.0.keys().collect::<Vec<_>>());
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command> {
        Command::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn commands_are_read_and_mistakes_are_told() {
        let command = parse("stream --connect 127.0.0.1:1 --mib 3 --direction up").unwrap();
        assert!(matches!(command, Command::Stream(StreamOptions { mib: 3, is_download: false, .. })));
        for bad in ["", "fly", "target", "target --listen x", "target --listen 127.0.0.1:1 --more 2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
