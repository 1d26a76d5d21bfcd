//! What a session's client asks for, one request at a time.

use super::admission::Refused;
use super::connection::{Done, NodeConnection, Stage};
use super::events::{self, SessionWork};
use super::file_copy;
use super::process::Command;
use super::sessions::{SessionStage, answer};
use crate::driver::Core;
use wayleave_audit::{Event, Text};
use wayleave_os::{TerminalModes, TerminalSize, TerminalSpec};
use wayleave_ssh::{ChannelId, ChannelRequest, ReplyToken};

/// The one subsystem.
const SFTP: &str = "sftp";

impl NodeConnection {
    /// A request whose turn it is.
    pub(crate) fn handle_request(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        request: ChannelRequest,
        reply: Option<ReplyToken>,
    ) {
        match request {
            ChannelRequest::Pty { term, size, modes } => {
                let spec = TerminalSpec::new(&term, terminal_size(size), TerminalModes::decode(&modes));
                self.prepare_terminal(core, channel, spec, reply);
            }
            ChannelRequest::Env { name, value } => {
                let is_accepted = self.prepare_variable(channel, &name, &value);
                answer(core, reply, is_accepted);
            }
            ChannelRequest::AuthAgent => self.prepare_agent(core, channel, reply),
            ChannelRequest::Shell => self.start_shell(core, channel, reply),
            ChannelRequest::Exec { command } => self.start_command(core, channel, &command, reply),
            ChannelRequest::Subsystem { name } => self.start_subsystem(core, channel, &name, reply),
            ChannelRequest::WindowChange { size } => {
                let is_done = self.command(channel, Command::Resize(terminal_size(size)));
                answer(core, reply, is_done);
            }
            ChannelRequest::Signal { name } => {
                let is_done = self.command(channel, Command::Signal(name));
                answer(core, reply, is_done);
            }
            ChannelRequest::EndOfWrite => {
                core.pumps.stop_outbound(channel);
                answer(core, reply, true);
            }
            ChannelRequest::X11 { .. } => {
                self.note_agent_or_x11(core, channel, "x11", "X11 forwarding is not offered");
                answer(core, reply, false);
            }
            // What only servers say, what a terminal here has no use for, and what nobody knows.
            ChannelRequest::ExitStatus { .. }
            | ChannelRequest::ExitSignal { .. }
            | ChannelRequest::XonXoff { .. }
            | ChannelRequest::Break { .. }
            | ChannelRequest::Keepalive
            | ChannelRequest::Unknown { .. } => answer(core, reply, false),
        }
    }

    fn command(&self, channel: ChannelId, command: Command) -> bool {
        self.sessions.get(&channel).is_some_and(|session| session.command(command))
    }

    fn prepare_terminal(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        spec: TerminalSpec,
        reply: Option<ReplyToken>,
    ) {
        let is_permitted = matches!(&self.stage, Stage::Admitted(user) if user.permissions.terminal);
        if !is_permitted {
            let text = "your certificate does not permit a terminal";
            self.note_session_refused(core, text);
            core.say(channel, text);
            return answer(core, reply, false);
        }
        let mut is_done = false;
        if let Some(session) = self.sessions.get_mut(&channel)
            && let SessionStage::Preparing(preparation) = &mut session.stage
        {
            preparation.terminal = Some(spec);
            is_done = true;
        }
        answer(core, reply, is_done);
    }

    fn prepare_variable(&mut self, channel: ChannelId, name: &str, value: &[u8]) -> bool {
        let Ok(value) = std::str::from_utf8(value) else { return false };
        match self.sessions.get_mut(&channel).map(|session| &mut session.stage) {
            Some(SessionStage::Preparing(preparation)) => preparation.environment.accept(name, value).is_ok(),
            _ => false,
        }
    }

    /// Whether something can still be started on the channel: one thing can.
    fn is_preparing(&self, channel: ChannelId) -> bool {
        self.sessions.get(&channel).is_some_and(|session| matches!(session.stage, SessionStage::Preparing(_)))
    }

    fn start_shell(&mut self, core: &mut Core<Done>, channel: ChannelId, reply: Option<ReplyToken>) {
        if !self.is_preparing(channel) {
            return answer(core, reply, false);
        }
        self.start_work(core, channel, SessionWork::Shell, None, reply);
    }

    fn start_command(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        command: &[u8],
        reply: Option<ReplyToken>,
    ) {
        if !self.is_preparing(channel) {
            return answer(core, reply, false);
        }
        let text = String::from_utf8_lossy(command).into_owned();
        let is_copy = file_copy::copies_files(&text);
        let work = SessionWork::Exec(text);
        if is_copy && let Err(refused) = self.may_copy_files(core) {
            return self.refuse_work(core, channel, &work, reply, &refused);
        }
        self.start_work(core, channel, work, Some(command.to_vec()), reply);
    }

    fn start_subsystem(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        name: &str,
        reply: Option<ReplyToken>,
    ) {
        if !self.is_preparing(channel) {
            return answer(core, reply, false);
        }
        if name != SFTP {
            let refused = format!("this node has no subsystem {name:?}; there is sftp");
            self.note_session_refused(core, &refused);
            core.say(channel, &refused);
            return answer(core, reply, false);
        }
        match self.may_copy_files(core) {
            Ok(()) => self.start_work(core, channel, SessionWork::Sftp, None, reply),
            Err(refused) => self.refuse_work(core, channel, &SessionWork::Sftp, reply, &refused),
        }
    }

    /// Notes that the forwarding of an agent or a display was refused.
    pub(crate) fn note_agent_or_x11(
        &mut self,
        core: &mut Core<Done>,
        channel: ChannelId,
        what: &str,
        reason: &str,
    ) {
        let id = self.sessions.get(&channel).map_or(self.id, |session| session.id);
        if let Some(session) = self.session_ref(id) {
            let outcome = events::failure(reason);
            self.note_refused(core, Event::Forward { session, what: Text::new(what), outcome });
        }
    }

    fn may_copy_files(&self, core: &Core<Done>) -> Result<(), Refused> {
        if !self.node.config.switches.ssh_file_copy {
            return Err(Refused::new(
                "ssh_file_copy is off in the agent's configuration",
                "this node does not allow file copy",
            ));
        }
        if !self.permit(core.clock.wall())?.options().ssh_file_copy {
            return Err(Refused::new("a role forbids file copy", "your roles do not allow file copy"));
        }
        Ok(())
    }
}

fn terminal_size(size: wayleave_ssh::TerminalSize) -> TerminalSize {
    TerminalSize {
        columns: size.columns,
        rows: size.rows,
        width_px: size.width_pixels,
        height_px: size.height_pixels,
    }
}
