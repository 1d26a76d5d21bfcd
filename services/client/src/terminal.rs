//! The person's terminal: its size, its modes, and raw mode that is always given back.

use std::io;
use wayleave_ssh::TerminalSize;

#[cfg(unix)]
pub(crate) use unix::{RawMode, is_terminal, modes, size, suspend};

/// Size of a terminal that cannot tell its own.
const SIZE_ASSUMED: TerminalSize = TerminalSize { columns: 80, rows: 24, width_pixels: 0, height_pixels: 0 };

#[cfg(unix)]
mod unix {
    use super::{SIZE_ASSUMED, TerminalSize, io};
    use rustix::process::{Signal, getpid, kill_process};
    use rustix::stdio::{stdin, stdout};
    use rustix::termios::{
        ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex as Code,
        Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr,
    };

    /// Special characters by their opcodes (RFC 4254 section 8).
    const CHARACTERS: [(u8, Code); 15] = [
        (1, Code::VINTR),
        (2, Code::VQUIT),
        (3, Code::VERASE),
        (4, Code::VKILL),
        (5, Code::VEOF),
        (6, Code::VEOL),
        (7, Code::VEOL2),
        (8, Code::VSTART),
        (9, Code::VSTOP),
        (10, Code::VSUSP),
        (12, Code::VREPRINT),
        (13, Code::VWERASE),
        (14, Code::VLNEXT),
        (16, Code::VSWTC),
        (18, Code::VDISCARD),
    ];
    const INPUT: [(u8, InputModes); 13] = [
        (30, InputModes::IGNPAR),
        (31, InputModes::PARMRK),
        (32, InputModes::INPCK),
        (33, InputModes::ISTRIP),
        (34, InputModes::INLCR),
        (35, InputModes::IGNCR),
        (36, InputModes::ICRNL),
        (37, InputModes::IUCLC),
        (38, InputModes::IXON),
        (39, InputModes::IXANY),
        (40, InputModes::IXOFF),
        (41, InputModes::IMAXBEL),
        (42, InputModes::IUTF8),
    ];
    const LOCAL: [(u8, LocalModes); 13] = [
        (50, LocalModes::ISIG),
        (51, LocalModes::ICANON),
        (52, LocalModes::XCASE),
        (53, LocalModes::ECHO),
        (54, LocalModes::ECHOE),
        (55, LocalModes::ECHOK),
        (56, LocalModes::ECHONL),
        (57, LocalModes::NOFLSH),
        (58, LocalModes::TOSTOP),
        (59, LocalModes::IEXTEN),
        (60, LocalModes::ECHOCTL),
        (61, LocalModes::ECHOKE),
        (62, LocalModes::PENDIN),
    ];
    const OUTPUT: [(u8, OutputModes); 6] = [
        (70, OutputModes::OPOST),
        (71, OutputModes::OLCUC),
        (72, OutputModes::ONLCR),
        (73, OutputModes::OCRNL),
        (74, OutputModes::ONOCR),
        (75, OutputModes::ONLRET),
    ];
    const CONTROL: [(u8, ControlModes); 2] = [(92, ControlModes::PARENB), (93, ControlModes::PARODD)];
    /// Opcodes of the sizes of a character.
    const CHARACTER_SIZES: [(u8, ControlModes); 2] = [(90, ControlModes::CS7), (91, ControlModes::CS8)];
    /// Opcodes of the speeds.
    const INPUT_SPEED: u8 = 128;
    const OUTPUT_SPEED: u8 = 129;
    /// A character that is switched off: on the wire, and in Linux.
    const WIRE_DISABLED: u32 = 255;
    const LINUX_DISABLED: u8 = 0;

    /// Whether standard input is a terminal.
    pub(crate) fn is_terminal() -> bool {
        isatty(stdin())
    }

    /// The size of the terminal.
    pub(crate) fn size() -> TerminalSize {
        let size = tcgetwinsize(stdin()).or_else(|_| tcgetwinsize(stdout()));
        size.map_or(SIZE_ASSUMED, |size| TerminalSize {
            columns: size.ws_col.into(),
            rows: size.ws_row.into(),
            width_pixels: size.ws_xpixel.into(),
            height_pixels: size.ws_ypixel.into(),
        })
    }

    /// The modes that the terminal has now, as SSH encodes them; none without a terminal.
    pub(crate) fn modes() -> Vec<(u8, u32)> {
        tcgetattr(stdin()).map(|termios| encode(&termios)).unwrap_or_default()
    }

    pub(super) fn encode(termios: &Termios) -> Vec<(u8, u32)> {
        let mut modes: Vec<(u8, u32)> = CHARACTERS
            .iter()
            .map(|(opcode, code)| {
                let character = termios.special_codes[*code];
                (*opcode, if character == LINUX_DISABLED { WIRE_DISABLED } else { character.into() })
            })
            .collect();
        let flag = |is_set: bool| u32::from(is_set);
        modes.extend(INPUT.iter().map(|(op, mode)| (*op, flag(termios.input_modes.contains(*mode)))));
        modes.extend(LOCAL.iter().map(|(op, mode)| (*op, flag(termios.local_modes.contains(*mode)))));
        modes.extend(OUTPUT.iter().map(|(op, mode)| (*op, flag(termios.output_modes.contains(*mode)))));
        let size = termios.control_modes & ControlModes::CSIZE;
        modes.extend(CHARACTER_SIZES.iter().map(|(op, mode)| (*op, flag(size == *mode))));
        modes.extend(CONTROL.iter().map(|(op, mode)| (*op, flag(termios.control_modes.contains(*mode)))));
        modes.push((INPUT_SPEED, termios.input_speed()));
        modes.push((OUTPUT_SPEED, termios.output_speed()));
        modes
    }

    /// The terminal in raw mode; what it was before comes back when this is dropped, also in a panic.
    pub(crate) struct RawMode(Termios);

    impl RawMode {
        /// Every key goes through as it is.
        pub(crate) fn enter() -> io::Result<Self> {
            let before = tcgetattr(stdin())?;
            let mut raw = before.clone();
            raw.make_raw();
            // As OpenSSH does: what the node writes is shown as it is, but a lone line feed is not our business.
            raw.special_codes[Code::VMIN] = 1;
            raw.special_codes[Code::VTIME] = 0;
            tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
            Ok(Self(before))
        }
    }

    impl Drop for RawMode {
        fn drop(&mut self) {
            // Nobody is left to tell when the terminal is gone.
            let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
        }
    }

    /// Puts this process to sleep until the shell wakes it.
    pub(crate) fn suspend() {
        // A process may always signal itself.
        let _ = kill_process(getpid(), Signal::TSTP);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::unix::encode;
    use rustix::pty::{OpenptFlags, openpt};
    use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

    #[test]
    fn modes_are_encoded_as_they_are() {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let mut termios = tcgetattr(&terminal).unwrap();
        termios.local_modes.remove(LocalModes::ECHO);
        termios.special_codes[SpecialCodeIndex::VINTR] = 7;
        termios.special_codes[SpecialCodeIndex::VQUIT] = 0;
        let modes = encode(&termios);
        let value = |opcode: u8| modes.iter().find(|(op, _)| *op == opcode).map(|(_, value)| *value);
        assert_eq!((value(1), value(2), value(53), value(51)), (Some(7), Some(255), Some(0), Some(1)));
        assert_eq!((value(90), value(91)), (Some(0), Some(1)));
        assert!(value(129).is_some_and(|speed| speed > 0));
    }
}
