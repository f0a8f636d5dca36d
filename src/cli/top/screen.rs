//! Shows looks: on a terminal one screen that is drawn again, and otherwise a line for each look.
//!
//! A thread writes, so a terminal or pipe that stalls does not keep a signal from ending the
//! command.

use std::io::{self, Write};
use std::time::Duration;

use rustix::termios::tcgetwinsize;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::look::Look;
use crate::cli::output::is_drawable;

/// Another screen without a cursor, and back: the terminal keeps what it had before.
const OPEN: &str = "\x1b[?1049h\x1b[?25l";
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";
/// Moves to the first line, clears the rest of a line, and clears the lines below.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// The size of a terminal that does not tell it: columns and rows.
const USUAL_SIZE: (usize, usize) = (80, 24);
/// The longest wait for the last write.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(1);

/// The form of the output.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Form {
    Terminal,
    Lines,
    Json,
}

/// The output of the command.
#[derive(Debug)]
pub(super) struct Screen {
    form: Form,
    /// The rows that are drawn; none before the first drawing.
    drawn: Option<Vec<String>>,
}

impl Form {
    pub(super) fn of_standard_output(is_json: bool) -> Form {
        match is_drawable(&io::stdout()) {
            _ if is_json => Form::Json,
            true => Form::Terminal,
            false => Form::Lines,
        }
    }
}

impl Screen {
    pub(super) fn new(form: Form) -> Screen {
        Screen { form, drawn: None }
    }

    /// Shows a look. A look without rates is shown on a terminal only, where the next one replaces
    /// it.
    ///
    /// # Errors
    /// The output cannot be written.
    pub(super) async fn show(&mut self, look: &Look) -> io::Result<()> {
        match self.form {
            Form::Terminal => {
                let rows = look.rows();
                let open = if self.drawn.is_none() { OPEN } else { "" };
                // Before it is written, so that a signal in the meantime restores the terminal.
                self.drawn = Some(rows.clone());
                write(format!("{open}{}", drawing(&rows, size()))).await
            }
            _ if !look.is_complete() => Ok(()),
            Form::Lines => write(format!("{}\n", look.line())).await,
            Form::Json => write(format!("{}\n", look.json())).await,
        }
    }

    /// Restores the terminal, and leaves the last rows on it.
    pub(super) async fn restore(self) {
        let Some(rows) = self.drawn else { return };
        let rows: String = rows.iter().flat_map(|row| [row.as_str(), "\n"]).collect();
        let _ = timeout(RESTORE_TIMEOUT, write(format!("{CLOSE}{rows}"))).await;
    }
}

/// Returns what draws the rows. Longer ones would wrap, and more of them scroll.
fn drawing(rows: &[String], (columns, lines): (usize, usize)) -> String {
    let rows = rows.iter().take(lines).map(|row| {
        let row: String = row.chars().take(columns).collect();
        format!("{row}{CLEAR_LINE}")
    });
    let rows: Vec<String> = rows.collect();
    format!("{HOME}{}{CLEAR_BELOW}", rows.join("\r\n"))
}

/// Returns the columns and the rows of the terminal.
fn size() -> (usize, usize) {
    let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or(USUAL_SIZE, |size| (size.ws_col.into(), size.ws_row.into()))
}

/// Writes to standard output.
async fn write(text: String) -> io::Result<()> {
    let written = spawn_blocking(move || {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    });
    written.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawing_fits_the_terminal() {
        let rows = ["first".to_owned(), "æøå".repeat(30), "third".to_owned()];
        let drawn = drawing(&rows, (10, 2));
        assert_eq!(drawn, "\x1b[Hfirst\x1b[K\r\næøåæøåæøåæ\x1b[K\x1b[J");
    }
}
