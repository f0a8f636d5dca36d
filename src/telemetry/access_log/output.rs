//! Where lines are written: standard output, a file or the system's log daemon.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{AccessLogError, AccessOutput};

/// The socket of the system's log daemon.
const SYSLOG: &str = "/dev/log";
/// How long the daemon may refuse to take a line.
const SYSLOG_TIMEOUT: Duration = Duration::from_secs(1);
/// Facility daemon and severity informational (RFC 5424 §6.2.1).
const PRIORITY: u8 = 3 * 8 + 6;
/// New files are for their owner and its group, such as that of a program that ships them.
const MODE: u32 = 0o640;

/// An open output.
#[derive(Debug)]
pub(super) enum Output {
    Stdout,
    File { path: PathBuf, file: File },
    Syslog { path: PathBuf, socket: UnixDatagram },
}

impl Output {
    /// Opens an output. Returns none if lines go to the process's log, or nowhere.
    pub(super) fn open(output: &AccessOutput) -> Result<Option<Output>, AccessLogError> {
        let opened = match output {
            AccessOutput::Log | AccessOutput::Off => return Ok(None),
            AccessOutput::Stdout => return Ok(Some(Output::Stdout)),
            AccessOutput::File(path) => Output::file(path),
            AccessOutput::Syslog => Output::syslog(Path::new(SYSLOG)),
        };
        let place = match output {
            AccessOutput::File(path) => path.display().to_string(),
            _ => SYSLOG.to_owned(),
        };
        opened.map(Some).map_err(|source| AccessLogError { place, source })
    }

    pub(super) fn file(path: &Path) -> io::Result<Output> {
        // Not blocking: a named pipe without a reader must not stop the start. It has no effect on
        // a file.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(MODE)
            .custom_flags(flags)
            .open(path)?;
        Ok(Output::File { path: path.to_owned(), file })
    }

    pub(super) fn syslog(path: &Path) -> io::Result<Output> {
        Ok(Output::Syslog { path: path.to_owned(), socket: connect(path)? })
    }

    /// Opens the same output again: the file that has its name now.
    pub(super) fn open_again(&mut self) -> io::Result<()> {
        *self = match self {
            Output::Stdout => return Ok(()),
            Output::File { path, .. } => Output::file(path)?,
            Output::Syslog { path, .. } => Output::syslog(path)?,
        };
        Ok(())
    }

    /// Writes whole lines.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Output::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines).and_then(|()| out.flush())
            }
            Output::File { file, .. } => file.write_all(lines),
            Output::Syslog { socket, path } => {
                let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                for line in lines {
                    if send(socket, line).is_err() {
                        // A daemon that was started again has a new socket.
                        *socket = connect(path)?;
                        send(socket, line)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Returns whether the output has a line without its end.
    pub(super) fn ends_within_a_line(&self) -> io::Result<bool> {
        let Output::File { file, path } = self else { return Ok(false) };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() == 0 {
            return Ok(false);
        }
        let mut last = [0];
        File::open(path)?.read_exact_at(&mut last, metadata.len() - 1)?;
        Ok(last != *b"\n")
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SYSLOG_TIMEOUT))?;
    socket.connect(path)?;
    Ok(socket)
}

/// Sends a line in the form of syslog(3). The daemon adds the time.
fn send(socket: &UnixDatagram, line: &[u8]) -> io::Result<()> {
    let mut datagram = format!("<{PRIORITY}>loangate[{}]: ", std::process::id()).into_bytes();
    datagram.extend_from_slice(line);
    socket.send(&datagram).map(|_| ())
}
