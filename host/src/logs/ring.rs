//! One function's lines: a ring that forgets the oldest and counts them. Not here: limits over several rings.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use tokio::sync::watch;

use super::Line;

/// What a line costs beside its text: the struct, its request's identifier, the ring's slack.
pub(super) const LINE_OVERHEAD_BYTES: usize = 128;

/// A place in a function's log; opaque to callers. Of a ring that is gone (a restart, a deletion) it means the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Cursor {
    /// No place: the newest lines.
    #[default]
    Newest,
    /// Behind this line.
    After {
        /// Which ring.
        epoch: u64,
        /// Which line.
        sequence: u64,
    },
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => Ok(()),
            Self::After { epoch, sequence } => write!(f, "{epoch:x}-{sequence}"),
        }
    }
}

/// Text that is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`after` is not a cursor: pass `next` of an earlier answer, or leave it out")]
pub(crate) struct CursorError;

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let (epoch, sequence) = text.split_once('-').ok_or(CursorError)?;
        let epoch = u64::from_str_radix(epoch, 16).map_err(|_| CursorError)?;
        Ok(Self::After { epoch, sequence: sequence.parse().map_err(|_| CursorError)? })
    }
}

/// Some lines of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) lines: Vec<Line>,
    /// Lines that lay between the cursor and the first of these, and were forgotten. Without a cursor, all forgotten ones.
    pub(crate) dropped: u64,
    /// Where to go on.
    pub(crate) next: Cursor,
}

/// Whether there is something to read.
pub(super) enum Unread {
    Some,
    /// Not yet; this changes with the next line, and ends with the ring.
    None(watch::Receiver<()>),
}

#[derive(Debug)]
pub(super) struct Ring {
    /// Of the function.
    pub(super) life: u32,
    epoch: u64,
    lines: VecDeque<Line>,
    bytes: usize,
    /// Sequence number of the last line.
    last: u64,
    written: watch::Sender<()>,
}

impl Ring {
    pub(super) fn new(life: u32, epoch: u64) -> Self {
        Self { life, epoch, lines: VecDeque::new(), bytes: 0, last: 0, written: watch::Sender::new(()) }
    }

    /// Bytes of the lines that are kept.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, line: Line, lines_max: usize, bytes_max: usize) {
        self.last += 1;
        self.bytes += size(&line);
        self.lines.push_back(Line { sequence: self.last, ..line });
        while self.lines.len() > lines_max || self.bytes > bytes_max {
            if self.drop_oldest() == 0 {
                break;
            }
        }
        self.wake();
    }

    /// The bytes that went; 0 if there is no line.
    pub(super) fn drop_oldest(&mut self) -> usize {
        let freed = self.lines.pop_front().map_or(0, |line| size(&line));
        self.bytes -= freed;
        if self.lines.capacity() > 64 && self.lines.len() < self.lines.capacity() / 4 {
            self.lines.shrink_to(self.lines.len() * 2);
        }
        freed
    }

    pub(super) fn wake(&self) {
        self.written.send_replace(());
    }

    pub(super) fn read(&self, from: Cursor, lines_max: usize) -> Page {
        let first_kept = self.last + 1 - self.lines.len() as u64;
        let first = match from {
            Cursor::Newest => first_kept.max((self.last + 1).saturating_sub(lines_max as u64)),
            after => (self.after(after) + 1).max(first_kept),
        };
        let skip = usize::try_from(first - first_kept).unwrap_or(usize::MAX);
        let lines: Vec<Line> = self.lines.iter().skip(skip).take(lines_max).cloned().collect();
        let dropped = match from {
            Cursor::Newest => first_kept - 1,
            after => first_kept.saturating_sub(self.after(after) + 1),
        };
        let sequence = lines.last().map_or(first - 1, |line| line.sequence);
        Page { lines, dropped, next: Cursor::After { epoch: self.epoch, sequence } }
    }

    pub(super) fn unread(&self, from: Cursor) -> Unread {
        match from {
            Cursor::Newest if self.last > 0 => Unread::Some,
            after if self.after(after) < self.last => Unread::Some,
            _ => Unread::None(self.written.subscribe()),
        }
    }

    /// The line that a cursor stands behind; none that is not of this ring.
    fn after(&self, cursor: Cursor) -> u64 {
        match cursor {
            Cursor::After { epoch, sequence } if epoch == self.epoch => sequence.min(self.last),
            _ => 0,
        }
    }
}

fn size(line: &Line) -> usize {
    line.message.len() + LINE_OVERHEAD_BYTES
}
