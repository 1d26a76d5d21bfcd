//! Rows of `ssh_service:`.

use super::{Key, Kind, PERIOD, here, off, only, section};

const LISTENS_NOWHERE: &str =
    "agents listen nowhere; the node is reached by its name through the proxy, remove the key";

pub(super) const KEYS: &[Key] = &[
    section("ssh_service", "The SSH Service: makes this machine a node. The section switches it on."),
    here("ssh_service.enabled", Kind::Flag, "yes", "no keeps the section and leaves the service off."),
    here(
        "ssh_service.labels",
        Kind::Labels,
        "",
        "Labels of the node, by which roles and searches select it.",
    ),
    here("ssh_service.commands", Kind::Sections, "", "Labels whose values are the output of commands."),
    here("ssh_service.commands[].name", Kind::Name("label name"), "", "The label."),
    here(
        "ssh_service.commands[].command",
        Kind::Words,
        "",
        "The program and its arguments, run without a shell.",
    ),
    here("ssh_service.commands[].period", PERIOD, "1m", "How often the command runs."),
    here(
        "ssh_service.port_forwarding",
        Kind::Flag,
        "yes",
        "no forbids port forwarding on this node, whatever a role allows.",
    ),
    here(
        "ssh_service.ssh_file_copy",
        Kind::Flag,
        "yes",
        "no forbids scp and SFTP on this node, whatever a role allows.",
    ),
    here(
        "ssh_service.forward_agent",
        Kind::Flag,
        "yes",
        "no forbids agent forwarding on this node, whatever a role allows. Wayleave's own key.",
    ),
    only("ssh_service.listen_addr", &["0.0.0.0:3022", "[::]:3022"], LISTENS_NOWHERE),
    off("ssh_service.force_listen", LISTENS_NOWHERE),
    off("ssh_service.public_addr", LISTENS_NOWHERE),
    off("ssh_service.permit_user_env", "~/.ssh/environment is never read; set it to no or remove the key"),
    off("ssh_service.x11", "X11 forwarding is not supported; set enabled: no"),
    off("ssh_service.pam", "PAM is not supported; set enabled: no"),
    off("ssh_service.enhanced_recording", "enhanced recording is not supported; set enabled: no"),
    off(
        "ssh_service.restricted_session",
        "restricted sessions are not supported; a file that demands them must not load without them",
    ),
    only(
        "ssh_service.disable_create_host_user",
        &["yes"],
        "host users are never created; set it to yes or remove the key",
    ),
];
