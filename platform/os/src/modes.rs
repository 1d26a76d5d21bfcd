//! Terminal modes as SSH encodes them (RFC 4254 section 8, RFC 8160) and as Linux keeps them.

use rustix::termios::{ControlModes, InputModes, LocalModes, OutputModes, SpecialCodeIndex as Code, Termios};

/// Most modes in one request; the RFC names fewer than 70.
const MODES_MAX: usize = 256;

const TTY_OP_END: u8 = 0;
const TTY_OP_ISPEED: u8 = 128;
const TTY_OP_OSPEED: u8 = 129;

/// From this opcode on the encoding is not defined, and reading stops.
const FIRST_UNDEFINED: u8 = 160;

/// A control character that is switched off, on the wire and in Linux.
const WIRE_DISABLED: u32 = 255;
const LINUX_DISABLED: u8 = 0;

/// Speeds above this are nonsense; the kernel would take any number.
const SPEED_BAUD_MAX: u32 = 4_000_000;

/// The modes that a client wants its terminal to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TerminalModes(Vec<(u8, u32)>);

impl TerminalModes {
    /// Takes opcodes with their arguments; stops at the end mark, ignores what has no meaning here.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (u8, u32)>) -> Self {
        let defined = |(opcode, _): &(u8, u32)| *opcode != TTY_OP_END && *opcode < FIRST_UNDEFINED;
        Self(pairs.into_iter().take_while(defined).take(MODES_MAX).collect())
    }

    /// Reads the `encoded terminal modes` of a pty request; a torn end is cut off.
    pub fn decode(encoded: &[u8]) -> Self {
        Self::from_pairs(encoded.chunks(5).map_while(|chunk| match chunk {
            [opcode, a, b, c, d] => Some((*opcode, u32::from_be_bytes([*a, *b, *c, *d]))),
            _ => None,
        }))
    }

    /// Writes the modes into `termios`.
    pub(crate) fn apply(&self, termios: &mut Termios) {
        for (opcode, argument) in self.0.iter().copied() {
            match opcode {
                TTY_OP_ISPEED if (1..=SPEED_BAUD_MAX).contains(&argument) => {
                    let _refused_speed = termios.set_input_speed(argument);
                }
                TTY_OP_OSPEED if (1..=SPEED_BAUD_MAX).contains(&argument) => {
                    let _refused_speed = termios.set_output_speed(argument);
                }
                1..=18 => apply_character(termios, opcode, argument),
                30..=42 => apply_input(termios, opcode, argument != 0),
                50..=62 => apply_local(termios, opcode, argument != 0),
                70..=75 => apply_output(termios, opcode, argument != 0),
                90..=93 => apply_control(termios, opcode, argument != 0),
                _ => {}
            }
        }
    }
}

fn apply_character(termios: &mut Termios, opcode: u8, argument: u32) {
    let code = match opcode {
        1 => Code::VINTR,
        2 => Code::VQUIT,
        3 => Code::VERASE,
        4 => Code::VKILL,
        5 => Code::VEOF,
        6 => Code::VEOL,
        7 => Code::VEOL2,
        8 => Code::VSTART,
        9 => Code::VSTOP,
        10 => Code::VSUSP,
        12 => Code::VREPRINT,
        13 => Code::VWERASE,
        14 => Code::VLNEXT,
        16 => Code::VSWTC,
        18 => Code::VDISCARD,
        // VDSUSP, VFLUSH and VSTATUS do not exist on Linux.
        _ => return,
    };
    let character =
        if argument == WIRE_DISABLED { Some(LINUX_DISABLED) } else { u8::try_from(argument).ok() };
    if let Some(character) = character {
        termios.special_codes[code] = character;
    }
}

fn apply_input(termios: &mut Termios, opcode: u8, on: bool) {
    let mode = match opcode {
        30 => InputModes::IGNPAR,
        31 => InputModes::PARMRK,
        32 => InputModes::INPCK,
        33 => InputModes::ISTRIP,
        34 => InputModes::INLCR,
        35 => InputModes::IGNCR,
        36 => InputModes::ICRNL,
        37 => InputModes::IUCLC,
        38 => InputModes::IXON,
        39 => InputModes::IXANY,
        40 => InputModes::IXOFF,
        41 => InputModes::IMAXBEL,
        42 => InputModes::IUTF8,
        _ => return,
    };
    termios.input_modes.set(mode, on);
}

fn apply_local(termios: &mut Termios, opcode: u8, on: bool) {
    let mode = match opcode {
        50 => LocalModes::ISIG,
        51 => LocalModes::ICANON,
        52 => LocalModes::XCASE,
        53 => LocalModes::ECHO,
        54 => LocalModes::ECHOE,
        55 => LocalModes::ECHOK,
        56 => LocalModes::ECHONL,
        57 => LocalModes::NOFLSH,
        58 => LocalModes::TOSTOP,
        59 => LocalModes::IEXTEN,
        60 => LocalModes::ECHOCTL,
        61 => LocalModes::ECHOKE,
        62 => LocalModes::PENDIN,
        _ => return,
    };
    termios.local_modes.set(mode, on);
}

fn apply_output(termios: &mut Termios, opcode: u8, on: bool) {
    let mode = match opcode {
        70 => OutputModes::OPOST,
        71 => OutputModes::OLCUC,
        72 => OutputModes::ONLCR,
        73 => OutputModes::OCRNL,
        74 => OutputModes::ONOCR,
        75 => OutputModes::ONLRET,
        _ => return,
    };
    termios.output_modes.set(mode, on);
}

fn apply_control(termios: &mut Termios, opcode: u8, on: bool) {
    match opcode {
        // Character size is two bits: CS7 is one of its values, CS8 the other that terminals use.
        90 | 91 if on => {
            termios.control_modes.remove(ControlModes::CSIZE);
            termios.control_modes.insert(if opcode == 90 { ControlModes::CS7 } else { ControlModes::CS8 });
        }
        92 => termios.control_modes.set(ControlModes::PARENB, on),
        93 => termios.control_modes.set(ControlModes::PARODD, on),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, openpt};
    use rustix::termios::tcgetattr;

    #[test]
    fn modes_reach_the_terminal() {
        let mut termios = fresh();
        let modes = TerminalModes::decode(&[
            53, 0, 0, 0, 0, // ECHO off
            51, 0, 0, 0, 0, // ICANON off
            50, 0, 0, 0, 1, // ISIG on
            1, 0, 0, 0, 7, // VINTR is Ctrl-G
            2, 0, 0, 0, 255, // VQUIT disabled
            128, 0, 0, 0x96, 0, // ISPEED 38400
            129, 0, 0, 0x96, 0, // OSPEED
            0, 53, 0, 0, 0, 1,
        ]);

        modes.apply(&mut termios);

        assert!(!termios.local_modes.contains(LocalModes::ECHO));
        assert!(!termios.local_modes.contains(LocalModes::ICANON));
        assert!(termios.local_modes.contains(LocalModes::ISIG));
        assert_eq!(termios.special_codes[Code::VINTR], 7);
        assert_eq!(termios.special_codes[Code::VQUIT], 0);
        assert_eq!((termios.input_speed(), termios.output_speed()), (38_400, 38_400));
    }

    #[test]
    fn f_every_opcode_and_any_argument_is_survived() {
        let mut termios = fresh();
        for argument in [0, 1, 255, 256, u32::MAX] {
            for opcode in 0..=255 {
                TerminalModes::from_pairs([(opcode, argument)]).apply(&mut termios);
            }
        }
        for length in 0..12 {
            TerminalModes::decode(&vec![1; length]).apply(&mut termios);
        }
    }

    #[test]
    fn f_the_number_of_modes_is_bounded() {
        assert_eq!(TerminalModes::decode(&[1; 1_000_000]).0.len(), MODES_MAX);
    }

    fn fresh() -> Termios {
        tcgetattr(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap()).unwrap()
    }
}
