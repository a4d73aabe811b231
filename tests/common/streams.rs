//! Clients of many streams at once: each takes down when it sent and when each token came, and holds that against the
//! virtual times that come with the tokens.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::json;

/// What is asked for.
#[derive(Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub streams: usize,
    /// Clients start one after the other over this time.
    pub ramp: Duration,
    /// What the machine simulates for the first time may take longer than it should: what clients see is taken down only
    /// of requests sent so long after the start, with all clients there.
    pub warm: Duration,
    /// Clients go on until this is over, from the start; they leave what they have not got by then.
    pub lasts: Duration,
    /// Virtual seconds per second on the wall.
    pub pace: f64,
    pub prompt_words: usize,
    pub output_tokens: usize,
}

/// What clients saw, in microseconds on the wall beside what the machine computed.
#[derive(Default)]
pub struct Seen {
    pub requests: usize,
    pub tokens: usize,
    /// Distance of the time to first token, and of each gap between tokens, from the computed one, while pacing held.
    pub ttft_us: Vec<u32>,
    pub itl_us: Vec<u32>,
    /// The same of those that began or ended with the machine more than `HOLDS_US` behind.
    pub behind_us: Vec<u32>,
}

/// Pacing holds while the machine is not further behind than this.
const HOLDS_US: u64 = 5_000;

impl Seen {
    /// Share of what was seen while pacing held.
    pub fn held(&self) -> f64 {
        let held = self.ttft_us.len() + self.itl_us.len();
        held as f64 / (held + self.behind_us.len()).max(1) as f64
    }
}

/// In milliseconds, 0 of nothing; sorts.
pub fn quantile_ms(of: &mut [u32], q: f64) -> f64 {
    of.sort_unstable();
    let at = (q * of.len() as f64) as usize;
    of.get(at.min(of.len().saturating_sub(1)))
        .map_or(0.0, |us| f64::from(*us) / 1e3)
}

/// The number after a key that stands near the end of an event.
fn number(event: &[u8], key: &str) -> Option<u64> {
    let at = event
        .windows(key.len())
        .rposition(|w| w == key.as_bytes())?
        + key.len();
    let digits = event[at..].iter().take_while(|b| b.is_ascii_digit());
    Some(digits.fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

/// Where the next blank line is, which ends an event.
fn blank_line(text: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + text[from..].iter().position(|b| *b == b'\n')?;
        if text.get(at + 1) == Some(&b'\n') {
            return Some(at);
        }
        from = at + 1;
    }
}

/// A token as its client saw it.
#[derive(Clone, Copy)]
struct Came {
    at: Instant,
    ps: u64,
    behind: bool,
}

/// One request from its first byte to its last.
struct Stream {
    socket: TcpStream,
    sent: Instant,
    /// Whether what is seen of it is taken down.
    look: bool,
    tokens: usize,
    made: usize,
    done: bool,
    last: Option<Came>,
    /// What has come of an event that is not all there.
    part: Vec<u8>,
}

impl Stream {
    fn ask(load: &Load, client: usize, turn: usize, looked_at: Instant) -> Self {
        // Streams that differ in length do not all end at once.
        let tokens =
            load.output_tokens / 2 + (client * 7_919 + turn * 104_729) % load.output_tokens;
        let prompt = format!("{client} {turn} ") + &"word ".repeat(load.prompt_words);
        let body = json!({
            "prompt": prompt, "max_tokens": tokens, "stream": true, "supernode_timing": true,
        })
        .to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let bytes = [head.as_bytes(), body.as_bytes()].concat();
        let mut socket = std::net::TcpStream::connect(load.address).unwrap();
        let sent = Instant::now();
        // A few kilobytes: there is room for them in a new connection.
        socket.write_all(&bytes).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            socket: TcpStream::from_std(socket),
            sent,
            look: sent >= looked_at,
            tokens,
            made: 0,
            done: false,
            last: None,
            part: Vec::new(),
        }
    }

    /// Reads what has come. False when that was the end.
    fn read(&mut self, load: &Load, buffer: &mut [u8], seen: &mut Seen) -> bool {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => break,
                Ok(n) => {
                    let now = Instant::now();
                    self.part.extend_from_slice(&buffer[..n]);
                    self.take(load, now, seen);
                    if n < buffer.len() && !self.done {
                        return true;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(e) => panic!("{e}"),
            }
        }
        assert!(
            self.done && self.made == self.tokens,
            "{} of {} tokens came",
            self.made,
            self.tokens
        );
        seen.requests += usize::from(self.look);
        false
    }

    fn take(&mut self, load: &Load, now: Instant, seen: &mut Seen) {
        let wall_us = |ps: u64| ps as f64 / 1e6 / load.pace;
        let mut from = 0;
        while let Some(n) = blank_line(&self.part[from..]) {
            let event = &self.part[from..from + n];
            from += n + 2;
            self.done |= event.ends_with(b"data: [DONE]");
            let Some(ps) = number(event, "\"at_ps\":") else {
                continue;
            };
            self.made += 1;
            seen.tokens += usize::from(self.look);
            if !self.look || self.last.is_some_and(|last| last.ps == ps) {
                // Tokens of one step come together.
                continue;
            }
            let behind = number(event, "\"late_us\":").unwrap() > HOLDS_US;
            let before = self.last.unwrap_or_else(|| Came {
                at: self.sent,
                ps: number(event, "\"arrival_ps\":").unwrap(),
                behind: false,
            });
            let seen_us = (now - before.at).as_secs_f64() * 1e6;
            let off_us = (seen_us - wall_us(ps - before.ps)).abs() as u32;
            let kind = match self.last {
                _ if behind || before.behind => &mut seen.behind_us,
                None => &mut seen.ttft_us,
                Some(_) => &mut seen.itl_us,
            };
            kind.push(off_us);
            self.last = Some(Came {
                at: now,
                ps,
                behind,
            });
        }
        self.part.drain(..from);
    }
}

/// The clients look so seldom: one that is woken for each event takes turns with who writes the next, and most of the
/// time of both goes into that. What they see is later by so much at most.
const LOOK_EVERY: Duration = Duration::from_micros(250);
/// Unless so many events were there at the last look.
const MANY: usize = 256;

/// Has all clients ask, each one request after the other, until the time is over. Gives what they saw, and what
/// `looking` says when that begins to be taken down. One thread has all clients.
pub fn hold<T: Send>(load: &Load, looking: impl FnOnce() -> T + Send) -> (Seen, T) {
    let began = Instant::now();
    let (looked_at, over) = (began + load.warm, began + load.lasts);
    std::thread::scope(|scope| {
        let said = scope.spawn(|| {
            std::thread::sleep(load.warm);
            looking()
        });
        let mut seen = Seen::default();
        let mut poll = Poll::new().unwrap();
        let mut events = Events::with_capacity(1_024);
        let mut buffer = vec![0; 64 * 1024];
        let mut clients: Vec<(usize, Stream)> = Vec::with_capacity(load.streams);
        let ask = |client: usize, turn: usize, poll: &Poll| {
            let mut stream = Stream::ask(load, client, turn, looked_at);
            let registry = poll.registry();
            registry
                .register(&mut stream.socket, Token(client), Interest::READABLE)
                .unwrap();
            stream
        };
        while Instant::now() < over {
            let started = began.elapsed().as_secs_f64() / load.ramp.as_secs_f64();
            let started = (started * load.streams as f64) as usize + 1;
            for client in clients.len()..started.min(load.streams) {
                clients.push((0, ask(client, 0, &poll)));
            }
            match poll.poll(&mut events, Some(Duration::from_millis(1))) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                polled => polled.unwrap(),
            }
            for event in &events {
                let client = event.token().0;
                let (turn, stream) = &mut clients[client];
                if !stream.read(load, &mut buffer, &mut seen) {
                    *turn += 1;
                    *stream = ask(client, *turn, &poll);
                }
            }
            if events.iter().count() < MANY {
                std::thread::sleep(LOOK_EVERY);
            }
        }
        (seen, said.join().unwrap())
    })
}

/// Memory of a process in MB, now.
fn resident_mb(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    let kb: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kb / 1024)
}

/// How late a sleeping thread of this computer wakes up, in milliseconds: what other work on it adds to all that clients see.
pub struct Lateness {
    end: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<Vec<u32>>,
}

impl Lateness {
    const NAP: Duration = Duration::from_millis(2);

    pub fn watch() -> Self {
        let (end, ended) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut late_us = Vec::new();
            let mut slept = Instant::now();
            while ended.recv_timeout(Self::NAP).is_err() {
                let late = slept.elapsed().saturating_sub(Self::NAP);
                late_us.push(late.as_micros() as u32);
                slept = Instant::now();
            }
            late_us
        });
        Self { end, thread }
    }

    pub fn quantile_ms(self, q: f64) -> f64 {
        let _ = self.end.send(());
        quantile_ms(&mut self.thread.join().unwrap(), q)
    }
}

/// Takes down the memory of a process in MB once a second until it is told to end.
pub struct Watch {
    end: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<Vec<u64>>,
}

impl Watch {
    pub fn new(pid: u32) -> Self {
        let (end, ended) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut rows = Vec::new();
            while ended.recv_timeout(Duration::from_secs(1)).is_err() {
                rows.extend(resident_mb(pid));
            }
            rows
        });
        Self { end, thread }
    }

    pub fn rows(self) -> Vec<u64> {
        let _ = self.end.send(());
        self.thread.join().unwrap()
    }
}

/// Prints what clients saw.
pub fn show(title: &str, seen: &mut Seen, lost_s: f64, memory_mb: &[u64]) {
    let [ttft50, ttft99] = [0.5, 0.99].map(|q| quantile_ms(&mut seen.ttft_us, q));
    let [itl50, itl99] = [0.5, 0.99].map(|q| quantile_ms(&mut seen.itl_us, q));
    println!(
        "{title}: {} requests, {} tokens, {:.1}% of them while pacing held; off by: TTFT p50 {ttft50:.2} ms, p99 {ttft99:.2} ms; ITL p50 {itl50:.2} ms, \
         p99 {itl99:.2} ms; pace lost {lost_s:.2} s; memory by second {memory_mb:?} MB",
        seen.requests,
        seen.tokens,
        100.0 * seen.held()
    );
}
