//! The system's errors as SFTP says them.

use rustix::io::Errno;
use wayleave_sftp::{HandlesFull, Malformed, Output, StatusCode};

/// A request that was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    code: StatusCode,
    message: &'static str,
}

/// What most requests come to.
pub(crate) type Done<T = ()> = Result<T, Failed>;

impl Failed {
    pub(crate) const END_OF_FILE: Self = Self::new(StatusCode::EndOfFile, "End of file");
    pub(crate) const NO_SUCH_HANDLE: Self = Self::new(StatusCode::Failure, "No such open file or directory");
    pub(crate) const WRONG_HANDLE: Self = Self::new(StatusCode::Failure, "The handle is of another kind");
    pub(crate) const UNSUPPORTED: Self = Self::new(StatusCode::Unsupported, "Operation unsupported");
    pub(crate) const EXISTS: Self = Self::new(StatusCode::Failure, "File exists");

    const fn new(code: StatusCode, message: &'static str) -> Self {
        Self { code, message }
    }

    pub(crate) fn write(self, id: u32, output: &mut Output) {
        output.status(id, self.code, self.message);
    }
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        let code = match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::BADF | Errno::LOOP => StatusCode::NoSuchFile,
            Errno::PERM | Errno::ACCESS => StatusCode::PermissionDenied,
            Errno::NAMETOOLONG | Errno::INVAL => StatusCode::BadMessage,
            Errno::NOSYS | Errno::OPNOTSUPP => StatusCode::Unsupported,
            _ => StatusCode::Failure,
        };
        Self::new(code, nix::errno::Errno::from_raw(errno.raw_os_error()).desc())
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => Self::from(errno),
            None if error.kind() == std::io::ErrorKind::InvalidInput => Self::from(Errno::INVAL),
            None => Self::from(Errno::IO),
        }
    }
}

impl From<nix::Error> for Failed {
    fn from(errno: nix::Error) -> Self {
        Self::from(std::io::Error::from(errno))
    }
}

impl From<HandlesFull> for Failed {
    fn from(HandlesFull: HandlesFull) -> Self {
        Self::new(StatusCode::Failure, "Too many open files")
    }
}

impl From<Malformed> for Failed {
    fn from(_: Malformed) -> Self {
        Self::new(StatusCode::BadMessage, "Bad message")
    }
}
