//! Which decoder which target reaches, by a rule over the sources: a function of the product that is named like a
//! decoder stands in [`TABLE`] with its target, or with the reason why it needs none. A test compares both ways.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What reaches a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// A target.
    By(&'static str),
    /// None, for this reason.
    Not(&'static str),
}

use Reached::{By, Not};

/// Said by the machine's own administrator or written by this very build.
const OWN: &str = "reads what this process or its administrator wrote";
/// What prost has decoded before.
const DECODED: &str = "takes fields of a decoded protobuf message, in tests/api of services/auth";
/// Typed by the person whose process it is.
const TYPED: &str = "reads the command line of its own process";
/// A helper that is no decoder.
const SPLITS: &str = "splits a value of ours";

/// File, function, and what reaches it.
pub const TABLE: &[(&str, &str, Reached)] = &[
    (
        "adapters/ssh/src/jump/target.rs",
        "parse_target",
        Not("a node name after the decoder of ssh_request; core/vocab names are in words"),
    ),
    ("core/audit/src/envelope.rs", "decode", By("audit_event")),
    ("core/ca/src/pin.rs", "parse_pins", By("words")),
    ("core/ca/src/snapshot.rs", "decode", By("snapshot")),
    ("core/config/src/auth.rs", "parse", By("words")),
    ("core/config/src/auth.rs", "parse_token", By("configuration")),
    ("core/config/src/config.rs", "parse", By("configuration")),
    ("core/config/src/reference.rs", "split", Not(SPLITS)),
    ("core/config/src/section.rs", "parse_address", By("configuration")),
    ("core/config/src/section.rs", "parse_duration", By("configuration")),
    ("core/config/src/section.rs", "parse_listen", By("configuration")),
    ("core/config/src/section.rs", "parse_network", By("configuration")),
    ("core/config/src/section.rs", "parse_path", By("configuration")),
    ("core/config/src/section.rs", "parse_secret", By("configuration")),
    ("core/config/src/ssh.rs", "parse", By("configuration")),
    ("core/config/src/yaml.rs", "parse", By("configuration")),
    ("core/identity/src/lib.rs", "decode", By("principal")),
    ("core/identity/src/publisher.rs", "decode", By("principal")),
    ("core/policy/src/expression/mod.rs", "parse", By("resource_yaml")),
    ("core/policy/src/expression/parser.rs", "parse", By("resource_yaml")),
    ("core/policy/src/pattern.rs", "parse", By("resource_yaml")),
    ("core/policy/src/template.rs", "parse", By("resource_yaml")),
    ("core/resource/src/reader.rs", "parse", By("resource_yaml")),
    ("core/resource/src/resource.rs", "parse_json", By("resource_json")),
    ("core/resource/src/resource.rs", "parse_yaml", By("resource_yaml")),
    (
        "core/tunnel/src/proxies.rs",
        "parse",
        Not("the name of a strategy in a decoded message, in core/tunnel/tests"),
    ),
    (
        "core/resume/src/stream.rs",
        "handle_data",
        Not("takes a number of bytes, in core/resume/tests with the numbers of a lying peer"),
    ),
    ("core/vocab/src/address.rs", "parse", By("words")),
    ("core/vocab/src/address.rs", "split", Not(SPLITS)),
    ("core/vocab/src/name.rs", "parse", By("words")),
    ("platform/journal/src/record.rs", "parse_all", Not(OWN)),
    ("platform/journal/src/record.rs", "parse_one", Not(OWN)),
    ("platform/keystore/src/authority.rs", "from_pem", Not(OWN)),
    ("platform/keystore/src/credentials.rs", "from_pem", By("x509")),
    ("platform/keystore/src/web.rs", "from_pem", Not(OWN)),
    ("platform/net/src/hello.rs", "read_hello", By("client_hello")),
    ("platform/net/src/hello.rs", "read_proxy_header", By("client_hello")),
    ("platform/net/src/message.rs", "read_message", By("dial")),
    ("platform/os/src/modes.rs", "decode", By("ssh_request")),
    ("platform/os/src/order.rs", "decode", Not(OWN)),
    ("platform/os/src/sftp/tally.rs", "decode", Not("any bytes of the fixed size, in its own tests")),
    ("platform/os/src/sftp/tally.rs", "decode_action", Not("any bytes of the fixed size, in its own tests")),
    ("platform/os/src/terminal.rs", "split", Not(SPLITS)),
    (
        "platform/rpc/src/public.rs",
        "parse",
        Not("the answer of a proxy that TLS has verified, by hyper and serde"),
    ),
    ("platform/store/src/etcd/mod.rs", "decode_key", Not(OWN)),
    ("platform/store/src/key.rs", "parse", By("words")),
    ("platform/store/src/postgres/address.rs", "decoded", Not(OWN)),
    ("platform/store/src/postgres/address.rs", "parse", Not(OWN)),
    ("services/auth/src/authorities.rs", "parse", Not(OWN)),
    ("services/auth/src/authority_rotation.rs", "parse_phase", Not(DECODED)),
    ("services/auth/src/join.rs", "parse", Not(DECODED)),
    ("services/auth/src/join.rs", "parse_keys", Not(DECODED)),
    ("services/auth/src/join.rs", "parse_names", Not(DECODED)),
    ("services/auth/src/join.rs", "parse_one", Not(DECODED)),
    ("services/auth/src/join.rs", "parse_roles", Not(DECODED)),
    ("services/auth/src/keys.rs", "parse_routes", Not(OWN)),
    ("services/auth/src/mirror.rs", "parse", Not(OWN)),
    ("services/auth/src/mirror.rs", "split", Not(SPLITS)),
    ("services/auth/src/node_list.rs", "parse_kind", Not(DECODED)),
    ("services/auth/src/node_list.rs", "parse_target", Not(DECODED)),
    ("services/auth/src/node_list.rs", "parse_verb", Not(DECODED)),
    ("services/auth/src/openssh_login.rs", "parse", Not(DECODED)),
    ("services/auth/src/openssh_token.rs", "parse_key", Not(DECODED)),
    ("services/auth/src/openssh_token.rs", "parse_names", Not(DECODED)),
    ("services/auth/src/openssh_token.rs", "parse_ports", Not(DECODED)),
    ("services/auth/src/publication.rs", "parse", Not(DECODED)),
    ("services/auth/src/publication.rs", "parse_key", Not(DECODED)),
    ("services/auth/src/records.rs", "decode", Not(OWN)),
    ("services/auth/src/records.rs", "decode_resource", Not(OWN)),
    ("services/auth/src/shared_reports.rs", "decode", Not(OWN)),
    ("services/auth/src/tokens.rs", "parse_labels", Not(DECODED)),
    ("services/auth/src/tokens.rs", "parse_roles", Not(DECODED)),
    ("services/auth/src/users.rs", "parse_traits", Not(DECODED)),
    ("services/auth/src/users.rs", "parse_user", Not(DECODED)),
    ("services/client/src/identity_file.rs", "parse", By("identity_file")),
    ("services/client/src/lib.rs", "parse_failure", Not(TYPED)),
    ("services/client/src/moment.rs", "parse", Not(TYPED)),
    ("services/client/src/moment.rs", "parse_at", Not(TYPED)),
    ("services/client/src/resources.rs", "parse", By("resource_yaml")),
    ("services/client/src/ssh/forward.rs", "split", Not(TYPED)),
    ("services/client/src/users.rs", "parse_trait", Not(TYPED)),
    ("services/instance/src/join_token.rs", "parse", By("words")),
    ("wire/dial/src/lib.rs", "decode_body", By("dial")),
    ("wire/dial/src/lib.rs", "decode_request", By("dial")),
    ("wire/http-proxy/src/answer.rs", "parse_answer", By("http_proxy")),
    ("wire/http-proxy/src/bypass.rs", "parse", By("http_proxy")),
    ("wire/http-proxy/src/setting.rs", "decode_percent", By("http_proxy")),
    ("wire/http-proxy/src/setting.rs", "parse", By("http_proxy")),
    ("wire/mux/src/frame.rs", "decode", By("mux_acceptor")),
    ("wire/mux/src/input.rs", "handle_input", By("mux_connector")),
    ("wire/proxy-protocol/src/decode.rs", "parse", By("proxy_protocol")),
    ("wire/proxy-protocol/src/decode.rs", "parse_v1", By("proxy_protocol")),
    ("wire/proxy-protocol/src/decode.rs", "parse_v2", By("proxy_protocol")),
    ("wire/resume/src/frame.rs", "decode", By("resume")),
    ("wire/resume/src/frame.rs", "decode_body", By("resume")),
    ("wire/sftp/src/client.rs", "handle_data", By("sftp_reply")),
    ("wire/sftp/src/frame.rs", "split", By("sftp_request")),
    ("wire/sftp/src/request.rs", "decode", By("sftp_request")),
    ("wire/sftp/src/response.rs", "decode", By("sftp_reply")),
    ("wire/ssh/src/certificate.rs", "from_openssh", By("ssh_certificate")),
    ("wire/ssh/src/certificate.rs", "parse", By("ssh_certificate")),
    ("wire/ssh/src/certificate.rs", "parse_network", By("ssh_certificate")),
    ("wire/ssh/src/certificate.rs", "parse_networks", By("ssh_certificate")),
    ("wire/ssh/src/connection.rs", "handle_input", By("ssh_server")),
    ("wire/ssh/src/kex.rs", "parse", By("ssh_server")),
    ("wire/ssh/src/key.rs", "from_blob", By("ssh_key")),
    ("wire/ssh/src/key.rs", "from_openssh", By("ssh_key")),
    ("wire/ssh/src/mux.rs", "parse", By("ssh_request")),
    ("wire/ssh/src/private_key.rs", "from_openssh", By("ssh_key")),
    ("wire/ssh/src/proof.rs", "decode", By("ssh_key")),
    ("wire/ssh/src/request.rs", "parse", By("ssh_request")),
    ("wire/ssh/src/transport.rs", "parse", By("ssh_client")),
    ("wire/ssh/src/transport.rs", "parse_share", By("ssh_client")),
    (
        "wire/ssh/src/userauth/server.rs",
        "parse",
        Not("only behind a key exchange: src/adversary_tests.rs of wire/ssh"),
    ),
];

/// Names of functions that read what somebody else wrote, beside those that begin with `decode` or `parse`.
const NAMES: [&str; 9] = [
    "from_pem",
    "from_openssh",
    "from_blob",
    "handle_input",
    "handle_data",
    "split",
    "read_hello",
    "read_proxy_header",
    "read_message",
];

/// Directories of the product.
const TIERS: [&str; 6] = ["core", "wire", "platform", "api", "services", "adapters"];

/// The decoders of the sources: file and function.
///
/// # Panics
/// When the sources cannot be read.
pub fn of_sources() -> BTreeSet<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let mut files = Vec::new();
    for tier in TIERS {
        collect(&root.join(tier), &mut files);
    }
    let mut found = BTreeSet::new();
    for file in files {
        let source = std::fs::read_to_string(&file).unwrap();
        let product = source.split("#[cfg(test)]\nmod").next().unwrap_or_default();
        let path = file.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        found.extend(decoders(product).map(|name| (path.clone(), name.to_owned())));
    }
    found
}

/// Sources of libraries, without tests.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != "tests" {
                collect(&path, files);
            }
        } else if name.ends_with(".rs")
            && !name.ends_with("_tests.rs")
            && name != "test_node.rs"
            && path.components().any(|part| part.as_os_str() == "src")
        {
            files.push(path);
        }
    }
}

fn decoders(source: &str) -> impl Iterator<Item = &str> {
    source.split("fn ").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        let (name, rest) = rest.split_at(end);
        let is_function = rest.starts_with(['(', '<']);
        let is_decoder = name.starts_with("decode") || name.starts_with("parse") || NAMES.contains(&name);
        (is_function && is_decoder).then_some(name)
    })
}
