//! Whole files: what the field writes, what we write, and what the defaults are.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wayleave_config::{
    Config, LockingMode, LogFormat, LogOutput, LogSeverity, ProxyProtocol, SampleOptions, SampleStorage,
    Service, StaticToken, StorageConfig, Upstream, ValueOrPath,
};
use wayleave_vocab::{Secret, SystemRole, TunnelStrategy};

/// A file as people of the field have it, with the alias and with things switched off.
const FIELD_FILE: &str = include_str!("data/field.yaml");

#[test]
fn a_file_of_the_field_loads() {
    let config = parse(FIELD_FILE);

    let instance = &config.instance;
    assert_eq!(instance.nodename.as_ref().unwrap().as_str(), "bastion-1");
    assert_eq!(instance.data_dir, PathBuf::from("/var/lib/teleport"));
    assert_eq!(instance.log.severity, LogSeverity::Warn);
    assert_eq!(instance.log.output, LogOutput::File("/var/log/teleport.log".into()));
    assert_eq!(instance.log.format, LogFormat::Json);
    assert_eq!(instance.upstream, Upstream::LocalAuth { auth_servers: Vec::new(), proxy_server: None });
    let StorageConfig::Sqlite { directory } = &instance.storage else { panic!("{:?}", instance.storage) };
    assert_eq!(directory, Path::new("/var/lib/teleport/backend"));
    assert_eq!(instance.connection_limits.max_connections.get(), 65_000);
    assert_eq!(instance.ca_pins.len(), 2);

    let auth = config.auth.as_ref().unwrap();
    assert_eq!(auth.cluster_name.as_ref().unwrap().as_str(), "example.com");
    assert_eq!(auth.public_addrs[0].to_string(), "auth.example.com:3025");
    assert_eq!(auth.locking_mode, LockingMode::Strict);
    assert_eq!(auth.default_session_ttl, Duration::from_secs(8 * 3600));
    assert_eq!(auth.client_idle_timeout, Some(Duration::from_secs(1800)));
    assert!(auth.disconnect_expired_cert);
    let TunnelStrategy::ProxyPeering { agent_connection_count } = auth.tunnel_strategy.unwrap() else {
        panic!()
    };
    assert_eq!(agent_connection_count.get(), 2);
    assert_eq!(auth.static_tokens.len(), 3);
    let StaticToken::Inline { roles, secret: ValueOrPath::Value(secret) } = &auth.static_tokens[0] else {
        panic!()
    };
    assert_eq!(roles, &BTreeSet::from([SystemRole::Proxy, SystemRole::Node]));
    assert_eq!(secret.expose_secret(), "c0ffee:with:colons");
    assert!(matches!(&auth.static_tokens[1], StaticToken::Inline { secret: ValueOrPath::Path(_), .. }));
    assert!(matches!(&auth.static_tokens[2], StaticToken::File(path) if path.ends_with("whole")));

    let proxy = config.proxy.as_ref().unwrap();
    assert_eq!(proxy.web_listen_addr.to_string(), "0.0.0.0:443");
    assert_eq!(proxy.public_addrs[0].to_string(), "teleport.example.com:443");
    assert_eq!(proxy.ssh.as_ref().unwrap().listen_addr.port(), 3023);
    assert_eq!(proxy.peer.public_addr.as_ref().unwrap().to_string(), "10.0.0.5:3021");
    assert_eq!(proxy.https_keypairs.len(), 1);
    assert_eq!(proxy.https_keypairs_reload_interval, Some(Duration::from_secs(3600)));
    let ProxyProtocol::RequiredFrom(networks) = &proxy.proxy_protocol else { panic!() };
    assert_eq!(networks.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "192.0.2.7/32"]);

    let ssh = config.ssh.as_ref().unwrap();
    assert_eq!(ssh.labels.get("env"), Some("production"));
    assert_eq!(ssh.labels.get("number"), Some("012"));
    assert_eq!(ssh.commands[0].name.as_str(), "arch");
    assert_eq!(ssh.commands[0].command, ["/bin/uname", "-p"]);
    assert!(!ssh.port_forwarding);
    assert!(ssh.ssh_file_copy && ssh.forward_agent);
}

#[test]
fn line_ends_and_a_byte_order_mark_change_nothing() {
    let plain = format!("{:?}", parse(FIELD_FILE));
    let windows = format!("\u{feff}{}", FIELD_FILE.replace('\n', "\r\n"));
    assert_eq!(format!("{:?}", parse(&windows)), plain);
}

#[test]
fn defaults_are_those_of_the_reference() {
    let config = parse("auth_service:\nproxy_service:\nssh_service:\n");
    let debug = format!("{config:?}");
    for expected in [
        "data_dir: \"/var/lib/wayleave\"",
        "join: None",
        "output: Stderr, severity: Info, format: Text",
        "shutdown_delay: 0ns, shutdown_timeout: 300s",
        "max_connections: 15000",
        "Sqlite { directory: \"/var/lib/wayleave/backend\" }",
        "listen_addr: 0.0.0.0:3025",
        "locking_mode: BestEffort, default_session_ttl: 43200s",
        "client_idle_timeout: None, disconnect_expired_cert: false",
        "keep_alive_interval: 300s, keep_alive_count_max: 3, tunnel_strategy: None",
        "web_listen_addr: 0.0.0.0:3080, public_addrs: [], ssh: None",
        "peer: PeerConfig { listen_addr: 0.0.0.0:3021, public_addr: None, pushes_routes: true }",
        "https_keypairs_reload_interval: None, proxy_protocol: Off, trust_x_forwarded_for: false",
        "port_forwarding: true, ssh_file_copy: true, forward_agent: true",
    ] {
        assert!(debug.contains(expected), "{expected}\nnot in\n{debug}");
    }
}

#[test]
fn sections_decide_which_services_run() {
    let agent =
        parse("wayleave: {proxy_server: p.example.com}\nssh_service: {}\nauth_service: {enabled: no}\n");
    assert!(agent.auth.is_none() && agent.proxy.is_none() && agent.ssh.is_some());
    let Upstream::ProxyServer(address) = agent.instance.upstream else { panic!() };
    assert_eq!(address.to_string(), "p.example.com:443");
    let several = parse("wayleave: {auth_servers: ['a:1', b]}\nssh_service: {}\n");
    let Upstream::AuthServers(addresses) = several.instance.upstream else { panic!() };
    assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:1", "b:3025"]);
    // What is switched off may say anything that is known.
    let off = parse(
        "auth_service: {}\nproxy_service: {enabled: 'False', acme: {enabled: yes}, web_listen_addr: x}\n",
    );
    assert!(off.proxy.is_none());
}

#[test]
fn booleans_are_those_of_yaml_1_1() {
    for (word, expected) in [
        ("yes", true),
        ("Y", true),
        ("ON", true),
        ("True", true),
        ("\"yes\"", true),
        ("no", false),
        ("n", false),
        ("Off", false),
        ("FALSE", false),
        ("'no'", false),
    ] {
        let config = parse(&format!("auth_service: {{disconnect_expired_cert: {word}}}\n"));
        assert_eq!(config.auth.unwrap().disconnect_expired_cert, expected, "{word}");
    }
}

#[test]
fn aliases_are_expanded() {
    let config = parse("auth_service: {public_addr: &a [a.example.com]}\nproxy_service: {public_addr: *a}\n");
    assert_eq!(config.proxy.unwrap().public_addrs[0].to_string(), "a.example.com:3080");
}

#[test]
fn what_configure_writes_parses_back() {
    let all = [Service::Auth, Service::Proxy, Service::Ssh];
    for bits in 0..8_u8 {
        let services: BTreeSet<_> =
            all.into_iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, s)| s).collect();
        let runs = |service| services.is_empty() || services.contains(&service);
        for full in [false, true] {
            let options = if full {
                full_options(services.clone())
            } else {
                SampleOptions { services: services.clone(), ..SampleOptions::default() }
            };
            let text = Config::configure(&options);
            let config =
                Config::parse(&text, "sample.yaml").unwrap_or_else(|errors| panic!("{errors}\n{text}"));
            assert_eq!(config.auth.is_some(), runs(Service::Auth));
            assert_eq!(config.proxy.is_some(), runs(Service::Proxy));
            assert_eq!(config.ssh.is_some(), runs(Service::Ssh));
            assert!(text.lines().all(|line| line.len() <= 110), "{text}");
            if let Some(auth) = &config.auth {
                let two = TunnelStrategy::ProxyPeering { agent_connection_count: 2.try_into().unwrap() };
                assert_eq!(auth.tunnel_strategy, Some(two));
            } else if full {
                assert_eq!(config.instance.ca_pins.len(), 1);
                let ValueOrPath::Value(token) = &config.instance.join.as_ref().unwrap().token else {
                    panic!()
                };
                assert_eq!(token.expose_secret(), "no:#\"x\\é");
            }
        }
    }
}

#[test]
fn what_is_commented_out_in_the_sample_is_valid_too() {
    let text = Config::configure(&SampleOptions::default());
    let open: String = text
        .lines()
        .map(|line| match line.trim_start().strip_prefix("# ") {
            Some(rest)
                if rest.contains(": ") && !rest.contains("...") && !rest.contains("with: ")
                    || rest.ends_with(':')
                    || rest.starts_with("  - ") =>
            {
                format!("{}{rest}\n", &line[..line.len() - line.trim_start().len()])
            }
            Some(_) => String::new(),
            None => format!("{line}\n"),
        })
        .collect();
    let config = Config::parse(&open, "open.yaml").unwrap_or_else(|errors| panic!("{errors}\n{open}"));
    assert_eq!(config.proxy.unwrap().https_keypairs.len(), 1);
    assert_eq!(config.ssh.unwrap().commands.len(), 1);
    assert_eq!(config.auth.unwrap().static_tokens.len(), 1);
}

fn full_options(services: BTreeSet<Service>) -> SampleOptions {
    SampleOptions {
        services,
        nodename: Some("web-1".parse().unwrap()),
        data_dir: Some("/tmp/with space: and # more".into()),
        cluster_name: Some("example.com".parse().unwrap()),
        public_addr: Some("proxy.example.com:443".parse().unwrap()),
        auth_token: Some(ValueOrPath::Value(Secret::new("no:#\"x\\é".to_owned()))),
        ca_pins: vec![format!("sha256:{}", "ab".repeat(32)).parse().unwrap()],
        auth_server: None,
        proxy_server: Some("[2001:db8::1]:443".parse().unwrap()),
        storage: SampleStorage::Postgresql,
    }
}

#[test]
fn every_backend_that_configure_writes_parses_back() {
    for storage in [SampleStorage::Sqlite, SampleStorage::Postgresql, SampleStorage::Etcd] {
        let services = BTreeSet::from([Service::Auth]);
        let text = Config::configure(&SampleOptions { services, storage, ..SampleOptions::default() });
        let read = parse(&text).instance.storage;
        let is_it = match storage {
            SampleStorage::Sqlite => matches!(read, StorageConfig::Sqlite { .. }),
            SampleStorage::Postgresql => matches!(read, StorageConfig::Postgresql { .. }),
            SampleStorage::Etcd => matches!(&read, StorageConfig::Etcd(etcd) if etcd.has_tls()),
        };
        assert!(is_it, "{text}\n{read:?}");
    }
}

fn parse(text: &str) -> Config {
    Config::parse(text, "wayleave.yaml").unwrap_or_else(|errors| panic!("{errors}"))
}
