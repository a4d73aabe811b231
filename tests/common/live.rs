//! `supernode up` as a child on a port of its own, and a client of plain HTTP/1.1 that hides nothing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use super::{command, file, text};

/// DeepSeek's shape with few layers and experts: a step costs the computer little.
pub const MODEL: &str = r#"
name = "small"
layers = 4
dense_layers = 1
hidden = 7168
heads = 128
q_lora_rank = 1536
kv_lora_rank = 512
qk_nope_head_dim = 128
qk_rope_head_dim = 64
v_head_dim = 128
dense_intermediate = 18432
moe_intermediate = 2048
routed_experts = 32
shared_experts = 1
top_k = 8
expert_groups = 8
top_groups = 4
vocab = 129280
mtp_layers = 1
max_context = 131072
"#;

/// A scenario of four nodes in a directory of its own.
pub fn scenario(dir: &TempDir) -> String {
    let model = file(dir, "model.toml", MODEL);
    file(
        dir,
        "scenario.toml",
        format!(
            "machine = \"mini4\"\nmodel = \"{model}\"\n\
             [prefill]\ninstances = 1\nnpus_per_instance = 8\nredundant = 0\nshared_replicas = 16\n\
             [decode]\nnpus_per_instance = 8\n[experts]\nredundant = 0\nshared_replicas = 16\n"
        ),
    )
}

/// A machine that is up, on a port of its own.
pub struct Up {
    pub child: Child,
    pub address: String,
    pub dir: TempDir,
    said: Arc<Mutex<String>>,
}

impl Up {
    /// A small one.
    pub fn new(args: &[&str]) -> Self {
        let dir = tempdir().unwrap();
        let scenario = scenario(&dir);
        Self::launch(dir, &[&[scenario.as_str()], args].concat())
    }

    /// The machine and model of the default scenario.
    pub fn whole(args: &[&str]) -> Self {
        Self::launch(tempdir().unwrap(), args)
    }

    fn launch(dir: TempDir, args: &[&str]) -> Self {
        let mut child = command()
            .args(["up", "--listen", "127.0.0.1:0", "--json", "-"])
            .args(args)
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let address = line
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split(',').next())
            .unwrap_or_else(|| panic!("not up: {line}"))
            .to_string();
        // What it says later is not waited for, and must not fill the pipe.
        let lines = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&lines);
        std::thread::spawn(move || {
            let mut line = String::new();
            while said.read_line(&mut line).is_ok_and(|n| n > 0) {
                kept.lock().unwrap().push_str(&line);
                line.clear();
            }
        });
        Self {
            child,
            address,
            dir,
            said: lines,
        }
    }

    /// What it has said on standard error since it came up.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// The value of one series of `/metrics`.
    pub fn metric(&self, series: &str) -> f64 {
        let all = self.ask("GET", "/metrics", "").body;
        let mut lines = all.lines();
        let value = lines.find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("no {series} in {all}"));
        value.parse().unwrap()
    }

    pub fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        self.ask_with(method, path, body.as_bytes(), &[])
    }

    pub fn post(&self, path: &str, body: Value) -> Reply {
        self.ask("POST", path, &body.to_string())
    }

    pub fn ask_with(&self, method: &str, path: &str, body: &[u8], headers: &[&str]) -> Reply {
        let mut stream = self.send(method, path, body, headers);
        let mut all = Vec::new();
        // A server that has said no may close before it has read all of a body.
        let _ = stream.read_to_end(&mut all);
        Reply::of(&all)
    }

    pub fn send(&self, method: &str, path: &str, body: &[u8], headers: &[&str]) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let host = &self.address;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        );
        let says_length = ["Content-Length", "Transfer-Encoding"];
        let said = |h: &&str| says_length.iter().any(|name| h.starts_with(name));
        if !headers.iter().any(said) {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        for h in headers {
            head.push_str(&format!("{h}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        let _ = stream.write_all(body);
        stream
    }

    pub fn state(&self) -> Value {
        self.ask("GET", "/api/state", "").json()
    }

    /// Looks at the state until it is as wanted.
    pub fn await_state(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let began = Instant::now();
        loop {
            let state = self.state();
            if wanted(&state) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{what}: {state}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses Ctrl-C and gives the report.
    pub fn end(mut self) -> Value {
        let sent = Command::new("kill")
            .args(["-INT", &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        let mut said = String::new();
        let mut out = self.child.stdout.take().unwrap();
        out.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success());
        serde_json::from_str(&said).unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn of(all: &[u8]) -> Self {
        let all = text(all);
        let (head, rest) = all.split_once("\r\n\r\n").unwrap_or((&all, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .unwrap_or(0);
        let chunked = head
            .to_ascii_lowercase()
            .contains("transfer-encoding: chunked");
        Self {
            status,
            head: head.to_ascii_lowercase(),
            body: if chunked {
                unchunk(rest)
            } else {
                rest.to_string()
            },
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The events of a stream that has ended.
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> = self.body.split("\n\n").collect();
        assert_eq!(events.pop(), Some(""));
        assert_eq!(events.pop(), Some("data: [DONE]"));
        events
            .iter()
            .map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }
}

pub fn unchunk(mut rest: &str) -> String {
    let mut whole = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    whole
}

pub fn words(text: &str) -> usize {
    text.split_whitespace().count()
}
