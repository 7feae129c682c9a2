//! A part of the terminal that is drawn over and over in place, with log lines scrolling by above it.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{Arc, Mutex, PoisonError},
};

use crossterm::{cursor, queue, terminal};

/// The live part of the terminal behind standard output.
pub struct Screen {
    drawn_lines: u16,
    log_lines: LogLines,
}

/// Log lines that wait to be shown above the live part: what the logger writes to.
#[derive(Clone, Default)]
pub struct LogLines(Arc<Mutex<Vec<u8>>>);

impl Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogLines {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Screen {
    /// A live part on standard output, or `None` if that is no terminal.
    pub fn on_terminal() -> Option<Self> {
        io::stdout().is_terminal().then(|| Self {
            drawn_lines: 0,
            log_lines: LogLines::default(),
        })
    }

    /// Where log lines go while this is on the terminal, or they would be drawn over.
    pub fn log_lines(&self) -> LogLines {
        self.log_lines.clone()
    }

    /// Draws `lines` in place of what was drawn before, cut to the size of the terminal.
    pub fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let (columns, rows) = terminal::size().unwrap_or((100, 24));
        let mut out = io::stdout().lock();
        self.erase(&mut out)?;
        out.write_all(&self.log_lines.take())?;
        // A row is left for the cursor: a live part as high as the terminal would scroll with every redraw.
        let shown = lines.iter().take(usize::from(rows.saturating_sub(1)));
        self.drawn_lines = 0;
        for line in shown {
            let cut: String = line.chars().take(usize::from(columns)).collect();
            writeln!(out, "{cut}")?;
            self.drawn_lines += 1;
        }
        out.flush()
    }

    fn erase(&self, out: &mut impl Write) -> io::Result<()> {
        if self.drawn_lines > 0 {
            queue!(out, cursor::MoveUp(self.drawn_lines), cursor::MoveToColumn(0))?;
            queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown))?;
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // What was logged since the last redraw must not be lost.
        let _ = io::stderr().write_all(&self.log_lines.take());
    }
}
