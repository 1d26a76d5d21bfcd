//! A cluster's authorities, an agent that echoes, a client, and the connections between them, which a test cuts.

use crate::lying::Lie;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, watch};
use wayleave_identity::{HostPrincipal, Principal, UserPrincipal};
use wayleave_keystore::{Credentials, TlsKey, TrustStore, X509Authority, X509Request};
use wayleave_net::{BoxStream, ResumptionEvent};
use wayleave_resumable::{
    Agent, AgentStream, Begun, Budget, ClientStream, News, Redial, RedialError, RedialTo, Redialled,
    Resumptions, ResumptionsConfig,
};
use wayleave_runtime::{Clock, Shutdown, SystemClock, TaskGroup};
use wayleave_vocab::{ClusterName, HostId, RoleName, SystemRole, Traits, UserName};

/// What the agent tells of proxies.
pub(crate) fn proxies() -> watch::Receiver<Vec<String>> {
    watch::Sender::new(vec!["proxy.example.com:443".to_owned()]).subscribe()
}

const PIPE_BYTES: usize = 64 * 1024;

pub(crate) struct Authorities {
    cluster: ClusterName,
    host: X509Authority,
    user: X509Authority,
}

impl Authorities {
    pub(crate) fn new() -> Self {
        let now = SystemClock::new().wall();
        Self {
            cluster: ClusterName::parse("demo").unwrap(),
            host: X509Authority::generate("host", [1; 16], now).unwrap(),
            user: X509Authority::generate("user", [2; 16], now).unwrap(),
        }
    }

    /// Another host authority takes the place of this one, as at the end of a rotation.
    pub(crate) fn rotate_host(&mut self) {
        self.host = X509Authority::generate("host", [5; 16], SystemClock::new().wall()).unwrap();
    }

    pub(crate) fn trust(&self) -> TrustStore {
        let trust = TrustStore::empty();
        trust.replace(&self.cluster, self.host.certificate_pem(), self.user.certificate_pem());
        trust
    }

    pub(crate) fn user(&self, name: &str) -> Credentials {
        self.user_who(name, |_| ())
    }

    /// A user whose certificate says something else than usual.
    pub(crate) fn user_who(&self, name: &str, change: impl FnOnce(&mut UserPrincipal)) -> Credentials {
        let now = SystemClock::new().wall();
        let mut principal = UserPrincipal {
            name: UserName::parse(name).unwrap(),
            cluster: self.cluster.clone(),
            roles: [].into(),
            logins: [].into(),
            traits: Traits::new(),
            local_admin: false,
            not_after: now.after(Duration::from_secs(3600)),
        };
        change(&mut principal);
        issue(&self.user, &Principal::User(principal), &[])
    }

    /// The same with roles.
    pub(crate) fn user_with(&self, name: &str, roles: &[&str]) -> Credentials {
        let roles = roles.iter().map(|role| RoleName::parse(*role).unwrap()).collect();
        self.user_who(name, |user| user.roles = roles)
    }

    /// The agent, or a proxy.
    pub(crate) fn host(&self, role: SystemRole, names: &[&str]) -> Credentials {
        self.host_of(HostId::from_random([3; 16]), role, names)
    }

    /// Another process of the cluster.
    pub(crate) fn other_host(&self, role: SystemRole, names: &[&str]) -> Credentials {
        self.host_of(HostId::from_random([4; 16]), role, names)
    }

    fn host_of(&self, host_id: HostId, role: SystemRole, names: &[&str]) -> Credentials {
        let now = SystemClock::new().wall();
        let principal = Principal::Host(HostPrincipal {
            host_id,
            cluster: self.cluster.clone(),
            system_roles: [role].into(),
            not_after: now.after(Duration::from_secs(3600)),
        });
        issue(&self.host, &principal, names)
    }
}

impl Authorities {
    /// An agent that has no streams yet.
    pub(crate) fn resumptions(&self, credentials: Credentials) -> Arc<Resumptions> {
        Resumptions::new(ResumptionsConfig {
            credentials,
            trust: self.trust(),
            clock: Arc::new(SystemClock::new()),
            budget: Budget::default(),
            proxies: proxies(),
        })
    }
}

fn issue(authority: &X509Authority, principal: &Principal, names: &[&str]) -> Credentials {
    let now = SystemClock::new().wall();
    let key = TlsKey::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let leaf = authority
        .issue(&X509Request {
            principal,
            common_name: "test",
            spki_der: &key.spki_der(),
            dns_names: &names,
            ip_addresses: &[],
            not_before: now.before(Duration::from_secs(60)),
            not_after: principal.not_after(),
            server: principal.as_user().is_none(),
            client: true,
            serial: [9; 16],
        })
        .unwrap();
    Credentials::from_pem(&leaf, &key.to_pem()).unwrap()
}

/// What the agent's adapter says and hears.
#[derive(Clone)]
pub(crate) struct Policy {
    /// The answer to a client that is back.
    pub(crate) answer: Arc<Mutex<Result<(), String>>>,
    pub(crate) max_detached: Arc<Mutex<Result<Duration, String>>>,
    /// The same for whoever has a role of that name, where it is less.
    pub(crate) waits: Arc<Mutex<BTreeMap<&'static str, Duration>>>,
    /// Who wanted to come back.
    pub(crate) asked: Arc<Mutex<Vec<UserPrincipal>>>,
    pub(crate) heard: Arc<Mutex<Vec<String>>>,
    deaf: Shutdown,
}

impl Policy {
    fn new() -> Self {
        Self {
            answer: Arc::new(Mutex::new(Ok(()))),
            max_detached: Arc::new(Mutex::new(Ok(Duration::from_secs(60)))),
            waits: Arc::default(),
            asked: Arc::default(),
            heard: Arc::default(),
            deaf: Shutdown::new(),
        }
    }

    fn wait(&self, user: &UserPrincipal) -> Result<Duration, String> {
        let most = self.max_detached.lock().unwrap().clone()?;
        let waits = self.waits.lock().unwrap();
        Ok(user.roles.iter().filter_map(|role| waits.get(role.as_str())).fold(most, |all, own| all.min(*own)))
    }

    fn hear(&self, event: ResumptionEvent) {
        let text = match event {
            ResumptionEvent::Detached => "detached".to_owned(),
            ResumptionEvent::Reattach { user, answer, .. } => {
                let said = self.answer.lock().unwrap().clone();
                let text = format!("reattach {}", user.name);
                self.asked.lock().unwrap().push(user);
                let _ = answer.send(said);
                text
            }
            ResumptionEvent::Refused { user, reason, .. } => {
                format!("refused {}: {reason}", user.map(|user| user.to_string()).unwrap_or_default())
            }
            ResumptionEvent::Expired { answer } => {
                let _ = answer.send(());
                "expired".to_owned()
            }
        };
        self.heard.lock().unwrap().push(text);
    }

    /// The adapter is gone, and hears nothing any more.
    pub(crate) fn deafen(&self) {
        self.deaf.request();
    }

    pub(crate) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

/// What the network does with the connections, in turn; a connection beyond the list is left alone.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate {
    /// So many bytes of each direction arrive, then it is cut.
    CutAfter { to_agent: usize, to_client: usize },
    /// It is cut when the test says so.
    Stay,
    /// It cannot be made.
    Refuse,
}

pub(crate) struct World {
    pub(crate) authorities: Authorities,
    /// Of the agent's present life.
    pub(crate) resumptions: Arc<Mutex<Arc<Resumptions>>>,
    pub(crate) policy: Policy,
    pub(crate) tasks: TaskGroup,
    pub(crate) fates: Arc<Mutex<VecDeque<Fate>>>,
    /// What went to the agent, for each connection.
    pub(crate) recorded: Arc<Mutex<Vec<Vec<u8>>>>,
    cut: Arc<Mutex<Shutdown>>,
    served: mpsc::Sender<AgentStream>,
    pub(crate) streams: mpsc::Receiver<AgentStream>,
}

impl World {
    pub(crate) fn new() -> Self {
        let authorities = Authorities::new();
        let credentials = authorities.host(SystemRole::Node, &["web-1", "web-1.demo"]);
        let resumptions = Arc::new(Mutex::new(authorities.resumptions(credentials)));
        let (served, streams) = mpsc::channel(8);
        Self {
            authorities,
            resumptions,
            policy: Policy::new(),
            tasks: TaskGroup::new(),
            fates: Arc::default(),
            recorded: Arc::default(),
            cut: Arc::new(Mutex::new(Shutdown::new())),
            served,
            streams,
        }
    }

    pub(crate) fn fates(self, fates: impl IntoIterator<Item = Fate>) -> Self {
        self.fates.lock().unwrap().extend(fates);
        self
    }

    fn network(&self) -> Network {
        Network {
            resumptions: self.resumptions.clone(),
            policy: self.policy.clone(),
            tasks: self.tasks.clone(),
            fates: self.fates.clone(),
            recorded: self.recorded.clone(),
            cut: self.cut.clone(),
            served: self.served.clone(),
        }
    }

    /// The agent begins anew, with no streams.
    pub(crate) fn restart_agent(&self, credentials: Credentials) {
        *self.resumptions.lock().unwrap() = self.authorities.resumptions(credentials);
    }

    /// How many streams the agent keeps.
    pub(crate) fn count(&self) -> usize {
        self.resumptions.lock().unwrap().count()
    }

    /// Cuts the connections that stay.
    pub(crate) fn cut(&self) {
        self.set_apart().request();
    }

    /// Cuts the connections that there are, when it is requested: none that come after.
    pub(crate) fn set_apart(&self) -> Shutdown {
        std::mem::take(&mut *self.cut.lock().unwrap())
    }

    /// The agent of the moment.
    pub(crate) fn resumptions(&self) -> Arc<Resumptions> {
        self.resumptions.lock().unwrap().clone()
    }

    /// A client's stream; the agent's end is in [`World::streams`].
    pub(crate) fn client(&self, user: &str) -> (ClientStream, Arc<Dialler>) {
        self.client_of(self.authorities.user(user))
    }

    pub(crate) fn client_of(&self, credentials: Credentials) -> (ClientStream, Arc<Dialler>) {
        let agent =
            Agent { names: vec!["web-1".into()], role: SystemRole::Node, trust: self.authorities.trust() };
        let dialler = Arc::new(Dialler {
            network: self.network(),
            credentials: Mutex::new(credentials.clone()),
            trust: Mutex::new(self.authorities.trust()),
            news: Mutex::default(),
            lies: Mutex::default(),
            tried: Mutex::default(),
        });
        let connection = self.network().connect(true).unwrap();
        let stream = ClientStream::new(connection, &credentials, agent, dialler.clone()).unwrap();
        (stream, dialler)
    }

    /// A connection to the agent that wants a stream back, by hand.
    pub(crate) fn raw(&self) -> BoxStream {
        self.network().connect(false).unwrap()
    }

    /// A connection to the agent that begins a stream, by hand.
    pub(crate) fn raw_new(&self) -> BoxStream {
        self.network().connect(true).unwrap()
    }

    /// Serves the agent's ends by sending everything back.
    pub(crate) fn echo(&mut self) {
        let mut streams = std::mem::replace(&mut self.streams, mpsc::channel(1).1);
        let tasks = self.tasks.clone();
        self.tasks.spawn("echo", async move {
            while let Some(stream) = streams.recv().await {
                tasks.spawn_many(async move {
                    let (mut read, mut write) = tokio::io::split(stream);
                    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                        let _ = write.shutdown().await;
                    }
                });
            }
        });
    }

    /// Waits for the adapter to hear something.
    pub(crate) async fn wait_heard(&self, what: &str) {
        let hearing = async {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            while !self.policy.heard().iter().any(|heard| heard.contains(what)) {
                looks.tick().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), hearing).await;
        waited.unwrap_or_else(|_| panic!("{what:?} is not among {:?}", self.policy.heard()));
    }
}

pub(crate) struct Network {
    resumptions: Arc<Mutex<Arc<Resumptions>>>,
    policy: Policy,
    pub(crate) tasks: TaskGroup,
    fates: Arc<Mutex<VecDeque<Fate>>>,
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
    cut: Arc<Mutex<Shutdown>>,
    served: mpsc::Sender<AgentStream>,
}

impl Network {
    fn connect(&self, is_new: bool) -> Option<BoxStream> {
        let fate = self.fates.lock().unwrap().pop_front().unwrap_or(Fate::Stay);
        let (near, client) = duplex(PIPE_BYTES);
        let (agent, far) = duplex(PIPE_BYTES);
        let limits = match fate {
            Fate::CutAfter { to_agent, to_client } => (to_agent, to_client),
            Fate::Stay => (usize::MAX, usize::MAX),
            Fate::Refuse => return None,
        };
        let cut = self.cut.lock().unwrap().clone();
        let number = {
            let mut recorded = self.recorded.lock().unwrap();
            recorded.push(Vec::new());
            recorded.len() - 1
        };
        let recorded = self.recorded.clone();
        self.tasks.spawn_many(async move { relay(client, agent, limits, cut, &recorded, number).await });
        if is_new {
            self.begin(Box::new(far));
        } else {
            let resumptions = self.resumptions.lock().unwrap().clone();
            self.tasks.spawn_many(async move { resumptions.reattach(Box::new(far), None).await });
        }
        Some(Box::new(near))
    }

    fn begin(&self, far: BoxStream) {
        let policy = self.policy.clone();
        let max_detached = Arc::new(move |user: &UserPrincipal| policy.wait(user));
        let Begun { stream, mut events, keeper } = self.resumptions.lock().unwrap().begin(far, max_detached);
        let (policy, served) = (self.policy.clone(), self.served.clone());
        self.tasks.spawn_many(async move {
            let _ = served.send(stream).await;
            let hearing = async move {
                while let Some(Some(event)) = policy.deaf.until(events.recv()).await {
                    policy.hear(event);
                }
            };
            tokio::join!(hearing, keeper);
        });
    }
}

/// Passes bytes on until a limit, an end or the cut.
async fn relay(
    client: DuplexStream,
    agent: DuplexStream,
    (to_agent, to_client): (usize, usize),
    cut: Shutdown,
    recorded: &Mutex<Vec<Vec<u8>>>,
    number: usize,
) {
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut agent_read, mut agent_write) = tokio::io::split(agent);
    let up = pass(&mut client_read, &mut agent_write, to_agent, Some((recorded, number)));
    let down = pass(&mut agent_read, &mut client_write, to_client, None);
    // Whichever direction ends first, both ends are gone then.
    let passing = async {
        tokio::select! {
            () = up => {}
            () = down => {}
        }
    };
    let _ = cut.until(passing).await;
}

async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut left: usize,
    record: Option<(&Mutex<Vec<Vec<u8>>>, usize)>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while left > 0 {
        let Ok(read) = from.read(&mut buffer).await else { return };
        let count = read.min(left);
        if let Some((recorded, number)) = record {
            recorded.lock().unwrap()[number].extend_from_slice(&buffer[..count]);
        }
        if read == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        left -= count;
    }
}

/// The client's way to the agent.
pub(crate) struct Dialler {
    network: Network,
    pub(crate) credentials: Mutex<Credentials>,
    pub(crate) trust: Mutex<TrustStore>,
    pub(crate) news: Mutex<Vec<News>>,
    /// What the proxies of the next connections do, in turn; those beyond the list are honest.
    pub(crate) lies: Mutex<VecDeque<Lie>>,
    /// What the client said of proxies that it tried, for each connection.
    pub(crate) tried: Mutex<Vec<Vec<String>>>,
}

impl Redial for Dialler {
    fn redial<'a>(&'a self, to: RedialTo<'a>) -> BoxFuture<'a, Result<Redialled, RedialError>> {
        assert_eq!(to.proxies, ["proxy.example.com:443"]);
        self.tried.lock().unwrap().push(to.tried.to_vec());
        let lie = self.lies.lock().unwrap().pop_front();
        let proxy = if lie.is_some() { "liar.example.com:443" } else { "proxy.example.com:443" };
        let connection = match lie {
            None => self.network.connect(false),
            Some(Lie::Answer(frames)) => Some(self.network.lie_instead(frames)),
            Some(Lie::OtherProof(change)) => self.network.connect(false).map(|c| self.network.lie(c, change)),
        };
        let credentials = self.credentials.lock().unwrap().clone();
        let trust = self.trust.lock().unwrap().clone();
        let redialled = connection.map(|connection| Redialled {
            connection,
            credentials,
            trust,
            proxy: proxy.to_owned(),
        });
        Box::pin(async move { redialled.ok_or_else(|| RedialError("no way".into())) })
    }

    fn tell(&self, news: &News) {
        self.news.lock().unwrap().push(news.clone());
    }
}
