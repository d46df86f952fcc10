//! The thread that writes the access log: it alone may wait for a disk or for the reader of a pipe.
//!
//! Each write is of whole lines: to a file many at a time, since it is only ever appended to; to
//! anything else as many as it accepts or refuses as a whole (`PIPE_BUF`). Lines that cannot be
//! written before the queue is full are dropped, counted and reported.

use memchr::memrchr;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use prefork_protocol::access_log::MAX_LINE;
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

/// The most bytes that may wait to be written.
const MAX_QUEUED: usize = 1 << 20;
/// How often a wait for the reader checks for something else to do.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How often losses are reported at most.
const LOSS_REPORT_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Writer {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when there is something to do.
    work: Condvar,
    /// Notified when something is done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Vec<u8>>,
    bytes: usize,
    busy: bool,
    next: Option<OwnedFd>,
    lost: u64,
    leave: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    pub(super) fn start(descriptor: OwnedFd) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                WriterThread {
                    file: Output::new(descriptor),
                    lost: 0,
                    reason: String::new(),
                    reported: None,
                }
                .run(&theirs);
            })?;
        Ok(Self { shared })
    }

    /// Queues lines, unless the queue is full.
    pub(super) fn push(&self, lines: Vec<u8>) {
        if lines.is_empty() {
            return;
        }
        let mut state = self.shared.state();
        if state.bytes + lines.len() > MAX_QUEUED || state.leave {
            state.lost += count(&lines);
        } else {
            state.bytes += lines.len();
            state.queue.push_back(lines);
        }
        drop(state);
        self.shared.work.notify_one();
    }

    /// Writes to another file from now on.
    pub(super) fn reopen(&self, descriptor: OwnedFd) {
        self.shared.state().next = Some(descriptor);
        self.shared.work.notify_one();
    }

    /// Waits until everything is written, for at most `limit`; the rest is dropped.
    pub(super) fn finish(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.shared.state();
        while state.busy || !state.queue.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self
                .shared
                .done
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.leave = true;
        let lost = std::mem::take(&mut state.lost)
            + state
                .queue
                .drain(..)
                .map(|lines| count(&lines))
                .sum::<u64>();
        drop(state);
        if lost > 0 {
            log::warn!("dropped {lost} lines of the access log: its reader or disk is too slow");
        }
    }
}

/// What the log is written to.
struct Output {
    descriptor: OwnedFd,
    regular: bool,
    socket: bool,
    /// The last line was not written completely.
    torn: bool,
}

impl Output {
    fn new(descriptor: OwnedFd) -> Self {
        use nix::sys::stat::SFlag;
        let mode = nix::sys::stat::fstat(&descriptor).map_or(0, |status| status.st_mode);
        let kind = SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits());
        Self {
            descriptor,
            regular: kind == SFlag::S_IFREG,
            socket: kind == SFlag::S_IFSOCK,
            torn: false,
        }
    }

    /// Returns how many bytes to write at once.
    fn portion(&self, lines: &[u8]) -> usize {
        if self.regular || lines.len() <= MAX_LINE {
            return lines.len();
        }
        memrchr(b'\n', &lines[..MAX_LINE]).map_or(MAX_LINE, |at| at + 1)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.torn {
            self.write_once(b"\n")?;
            self.torn = false;
        }
        let written = self.write_once(bytes)?;
        self.torn = written > 0 && bytes.get(written - 1) != Some(&b'\n');
        Ok(written)
    }

    /// Writes as far as one call goes; to a socket without waiting for its reader.
    fn write_once(&self, bytes: &[u8]) -> nix::Result<usize> {
        if self.socket {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            nix::sys::socket::send(self.descriptor.as_raw_fd(), bytes, flags)
        } else {
            nix::unistd::write(&self.descriptor, bytes)
        }
    }

    /// Returns whether it can be written to within a moment. Asked first, since it may be a
    /// blocking descriptor of another process.
    fn has_room(&self, wait: Duration) -> bool {
        let mut fds = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLOUT)];
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        self.regular || poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
    }
}

/// The thread's own state.
struct WriterThread {
    file: Output,
    lost: u64,
    reason: String,
    reported: Option<Instant>,
}

impl WriterThread {
    fn run(mut self, shared: &Shared) {
        loop {
            let mut state = shared.state();
            state.busy = false;
            shared.done.notify_all();
            let lines = loop {
                if let Some(next) = state.next.take() {
                    self.file = Output::new(next);
                }
                let lost = std::mem::take(&mut state.lost);
                if lost > 0 {
                    self.record_loss(lost, "its reader or disk is too slow");
                }
                if state.leave {
                    return;
                }
                if let Some(lines) = state.queue.pop_front() {
                    state.busy = true;
                    break lines;
                }
                state = match self.due() {
                    None => shared
                        .work
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner),
                    Some(wait) if wait.is_zero() => {
                        drop(state);
                        self.report_losses();
                        shared.state()
                    }
                    Some(wait) => {
                        shared
                            .work
                            .wait_timeout(state, wait)
                            .unwrap_or_else(PoisonError::into_inner)
                            .0
                    }
                };
            };
            drop(state);
            if self.due().is_some_and(|wait| wait.is_zero()) {
                self.report_losses();
            }
            let length = lines.len();
            self.write(shared, &lines);
            let mut state = shared.state();
            state.bytes -= length.min(state.bytes);
        }
    }

    fn write(&mut self, shared: &Shared, lines: &[u8]) {
        let mut rest = lines;
        while !rest.is_empty() {
            while !self.file.has_room(POLL_INTERVAL) {
                let mut state = shared.state();
                if let Some(next) = state.next.take() {
                    self.file = Output::new(next);
                }
                if state.leave {
                    state.lost += count(rest);
                    return;
                }
                let lost = std::mem::take(&mut state.lost);
                drop(state);
                self.record_loss(lost, "its reader is too slow");
                if self.due().is_some_and(|wait| wait.is_zero()) {
                    self.report_losses();
                }
            }
            let portion = self.file.portion(rest);
            match self.file.write(&rest[..portion]) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                // Another process was faster.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return self.record_loss(count(rest), &error.to_string()),
            }
        }
    }

    /// Records a loss.
    fn record_loss(&mut self, lines: u64, reason: &str) {
        if lines > 0 {
            self.lost += lines;
            reason.clone_into(&mut self.reason);
        }
    }

    /// Returns how long until losses are reported; `None` when there are none.
    fn due(&self) -> Option<Duration> {
        let until = self.reported.map_or(Duration::ZERO, |reported| {
            LOSS_REPORT_INTERVAL.saturating_sub(reported.elapsed())
        });
        (self.lost > 0).then_some(until)
    }

    fn report_losses(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        self.reported = Some(Instant::now());
        log::warn!("dropped {lost} lines of the access log: {}", self.reason);
    }
}

fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_is_written_is_there_when_finished() {
        let mut file = tempfile::tempfile().expect("a file");
        let writer = Writer::start(file.try_clone().expect("a copy").into()).expect("a thread");
        writer.push(b"one\ntwo\n".to_vec());
        writer.push(b"three\n".to_vec());
        writer.finish(Duration::from_secs(10));
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).expect("rewound");
        file.read_to_string(&mut text).expect("text");
        assert_eq!(text, "one\ntwo\nthree\n");
    }

    #[test]
    fn an_unread_pipe_blocks_no_request_and_receives_whole_lines() {
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        let writer = Writer::start(write).expect("a thread");
        let line = format!("{}\n", "x".repeat(999));
        let began = Instant::now();
        for _ in 0..300 {
            writer.push(line.repeat(30).into_bytes());
        }
        writer.finish(Duration::from_millis(100));
        assert!(began.elapsed() < Duration::from_secs(5));
        drop(writer);
        assert!(read.as_raw_fd() > 0);
        let mut text = String::new();
        std::fs::File::from(read)
            .read_to_string(&mut text)
            .expect("text");
        assert!(text.len() > 16_000 && text.lines().all(|found| found.len() == 999));
    }

    #[test]
    fn another_file_is_written_from_then_on() {
        let (one, other) = (
            tempfile::tempfile().expect("a file"),
            tempfile::tempfile().expect("a file"),
        );
        let length = |file: &std::fs::File| file.metadata().expect("its status").len();
        let writer = Writer::start(one.try_clone().expect("a copy").into()).expect("a thread");
        writer.reopen(other.try_clone().expect("a copy").into());
        writer.push(b"one\n".to_vec());
        writer.finish(Duration::from_secs(10));
        assert_eq!((length(&one), length(&other)), (0, 4));
    }
}
