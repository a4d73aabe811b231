//! Clients of many streams at once: each takes down when it sent and when each token came, and holds that against the
//! virtual times that come with the tokens.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use actix_rt::net::TcpStream;
use serde_json::json;
use tokio::io::{AsyncRead, ReadBuf};

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
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.tokens += other.tokens;
        self.ttft_us.extend(other.ttft_us);
        self.itl_us.extend(other.itl_us);
        self.behind_us.extend(other.behind_us);
    }

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

/// The number after a key in one event.
fn number(event: &[u8], key: &str) -> Option<u64> {
    let at = event.windows(key.len()).position(|w| w == key.as_bytes())? + key.len();
    let digits = event[at..].iter().take_while(|b| b.is_ascii_digit());
    Some(digits.fold(0, |n, b| n * 10 + u64::from(b - b'0')))
}

/// Reads what there is, once there is something: one call to the system for what comes at once.
async fn read(stream: &mut TcpStream, into: &mut [u8]) -> usize {
    let mut into = ReadBuf::new(into);
    let read = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut into));
    read.await.unwrap();
    into.filled().len()
}

/// One request from its first byte to its last, or until `over`; nothing is taken down of one that is sent before
/// `looked_at`.
async fn request(
    load: &Load,
    client: usize,
    turn: usize,
    (looked_at, over): (Instant, Instant),
    seen: &mut Seen,
) {
    // Streams that differ in length do not all end at once.
    let tokens = load.output_tokens / 2 + (client * 7_919 + turn * 104_729) % load.output_tokens;
    let prompt = format!("{client} {turn} ") + &"word ".repeat(load.prompt_words);
    let body = json!({
        "prompt": prompt, "max_tokens": tokens, "stream": true, "supernode_timing": true,
    })
    .to_string();
    let mut stream = TcpStream::connect(load.address).await.unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let bytes = [head.as_bytes(), body.as_bytes()].concat();
    let sent = Instant::now();
    let look = sent >= looked_at;
    let mut written = 0;
    while written < bytes.len() {
        stream.writable().await.unwrap();
        match stream.try_write(&bytes[written..]) {
            Ok(n) => written += n,
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    let wall_us = |ps: u64| ps as f64 / 1e6 / load.pace;
    let (mut buffer, mut got) = (vec![0; 64 * 1024], 0);
    let mut last: Option<(Instant, u64, bool)> = None;
    let (mut made, mut done) = (0, false);
    loop {
        match read(&mut stream, &mut buffer[got..]).await {
            0 => break,
            n => got += n,
        }
        let now = Instant::now();
        if now > over {
            return;
        }
        let mut from = 0;
        while let Some(n) = buffer[from..got].windows(2).position(|w| w == b"\n\n") {
            let event = &buffer[from..from + n];
            from += n + 2;
            done |= event.ends_with(b"data: [DONE]");
            let Some(at_ps) = number(event, "\"at_ps\":") else {
                continue;
            };
            made += 1;
            seen.tokens += usize::from(look);
            if !look || last.is_some_and(|(_, ps, _)| ps == at_ps) {
                // Tokens of one step come together.
                continue;
            }
            let behind = number(event, "\"late_us\":").unwrap() > HOLDS_US;
            let (began, began_ps, was_behind) =
                last.unwrap_or_else(|| (sent, number(event, "\"arrival_ps\":").unwrap(), false));
            let seen_us = (now - began).as_secs_f64() * 1e6;
            let off_us = (seen_us - wall_us(at_ps - began_ps)).abs() as u32;
            let kind = match last {
                _ if behind || was_behind => &mut seen.behind_us,
                None => &mut seen.ttft_us,
                Some(_) => &mut seen.itl_us,
            };
            kind.push(off_us);
            last = Some((now, at_ps, behind));
        }
        buffer.copy_within(from..got, 0);
        got -= from;
    }
    assert!(done && made == tokens, "{made} of {tokens} tokens came");
    seen.requests += usize::from(look);
}

/// Has all clients ask, each one request after the other, until the time is over. Gives what they saw, and what
/// `looking` says when that begins to be taken down.
pub fn hold<T: Send>(load: &Load, looking: impl FnOnce() -> T + Send) -> (Seen, T) {
    let began = Instant::now();
    let span = (began + load.warm, began + load.lasts);
    std::thread::scope(|scope| {
        let said = scope.spawn(|| {
            std::thread::sleep(load.warm);
            looking()
        });
        let seen = actix_rt::System::new().block_on(async {
            let clients: Vec<_> = (0..load.streams)
                .map(|client| {
                    let load = load.clone();
                    actix_rt::spawn(async move {
                        let share = client as f64 / load.streams as f64;
                        actix_rt::time::sleep(load.ramp.mul_f64(share)).await;
                        let (mut seen, mut turn) = (Seen::default(), 0);
                        while Instant::now() < span.1 {
                            request(&load, client, turn, span, &mut seen).await;
                            turn += 1;
                        }
                        seen
                    })
                })
                .collect();
            let mut all = Seen::default();
            for client in clients {
                all.add(client.await.unwrap());
            }
            all
        });
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
